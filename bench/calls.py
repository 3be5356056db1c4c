"""Metered calls over the whole path (app, sidecar, control plane, PostgreSQL, provider), against a plain proxy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.figures import Figure, Pace, percentile, side_by_side
from bench.load import Load, drive
from bench.machine import cpu_s
from bench.stack import Stack

_WARM_S = 1.0
PROVIDER_MS = 50
GAP_MS = 10


@dataclass(frozen=True)
class _Slice:
    """One measured stretch of metered calls, with what they cost in processor time, in µs a call."""

    load: Load
    sidecar_us: float = 0.0
    plane_us: float = 0.0


async def _metered(stack: Stack, requests: Sequence[bytes], in_flight: int, seconds: float) -> _Slice:
    sidecar, plane = stack.sidecar_cpu_s(), stack.plane_cpu_s()
    load = await drive(stack.sidecar.url, requests, in_flight, seconds)
    sidecar, plane = stack.sidecar_cpu_s() - sidecar, stack.plane_cpu_s() - plane
    return _Slice(load, sidecar / load.calls * 1e6, plane / load.calls * 1e6)


async def _proxied(stack: Stack, requests: Sequence[bytes], in_flight: int, seconds: float) -> _Slice:
    proxy = cpu_s(stack.proxy.pid)
    load = await drive(stack.proxy.url, requests, in_flight, seconds)
    return _Slice(load, (cpu_s(stack.proxy.pid) - proxy) / load.calls * 1e6)


async def _rounds(
    stack: Stack, pace: Pace, in_flight: int, *, stream: bool, headers: dict[str, str] | None = None
) -> list[tuple[_Slice, _Slice]]:
    """Warm both paths, then measure them in turns."""
    metered = stack.metered(stream=stream, headers=headers)
    plain = stack.plain(stream=stream, headers=headers)
    warm_s = min(_WARM_S, pace.seconds)
    await drive(stack.sidecar.url, metered, in_flight, warm_s)
    await drive(stack.proxy.url, plain, in_flight, warm_s)
    return await side_by_side(
        pace,
        lambda: _metered(stack, metered, in_flight, pace.seconds),
        lambda: _proxied(stack, plain, in_flight, pace.seconds),
    )


def _values(
    found: list[tuple[_Slice, _Slice]],
    value: Callable[[_Slice], float],
    theirs: Callable[[_Slice], float] | None = None,
) -> tuple[list[float], list[float]]:
    return [value(mine) for mine, _ in found], [(theirs or value)(against) for _, against in found]


async def whole_answers(stack: Stack, pace: Pace) -> list[Figure]:
    """JSON calls, 64 in flight: processor time of each part, and calls a second."""
    found = await _rounds(stack, pace, 64, stream=False)
    sidecar = _values(found, lambda side: side.sidecar_us)
    plane = _values(found, lambda side: side.plane_us, lambda side: side.sidecar_us)
    rate = _values(found, lambda side: side.load.per_s)
    return [
        Figure("CPU of the sidecar a call", "proxy", "µs", *sidecar, 2.0),
        Figure("CPU of control plane + PostgreSQL a call", "proxy", "µs", *plane, 2.0),
        Figure("metered calls/s, 64 in flight", "proxy", "/s", *rate, 0.3, at_least=True),
    ]


async def streams(stack: Stack, pace: Pace) -> list[Figure]:
    """Streams of 34 events, 64 in flight: streams a second."""
    found = await _rounds(stack, pace, 64, stream=True)
    rate = _values(found, lambda side: side.load.per_s)
    cpu = (
        percentile([mine.sidecar_us for mine, _ in found], 50),
        percentile([p.sidecar_us for _, p in found], 50),
    )
    note = f"processor time of a stream: sidecar {cpu[0]:.0f} µs, proxy {cpu[1]:.0f} µs"
    what = "metered streams/s of 34 events, 64 in flight"
    return [Figure(what, "proxy", "/s", *rate, 0.3, at_least=True, notes=[note])]


async def first_byte(stack: Stack, pace: Pace) -> list[Figure]:
    """The first event of a stream, 32 at a time, from a provider that thinks before it and pauses between events."""
    headers = {"x-first-ms": str(PROVIDER_MS), "x-gap-ms": str(GAP_MS)}
    found = await _rounds(stack, pace, 32, stream=True, headers=headers)
    times = _values(found, lambda side: percentile(side.load.first_byte_s, 50) * 1000)
    return [Figure("first byte of a stream, 32 streams", "proxy", "ms", *times, 1.2)]


async def added(stack: Stack, pace: Pace) -> list[Figure]:
    """What metering adds to a call's median, 16 in flight, against what a proxy and one transaction add."""
    headers = {"x-first-ms": str(PROVIDER_MS)}
    metered, plain = stack.metered(headers=headers), stack.plain(headers=headers)

    async def median_ms(url: str, requests: Sequence[bytes]) -> float:
        return percentile((await drive(url, requests, 16, pace.seconds)).whole_s, 50) * 1000

    async def ours() -> tuple[float, float]:
        return await median_ms(stack.sidecar.url, metered), await median_ms(stack.provider.url, plain)

    async def against() -> tuple[float, float]:
        return await median_ms(stack.proxy.url, plain), (await stack.server.pgbench(16, pace.seconds)).mean_ms

    await drive(stack.sidecar.url, metered, 16, min(_WARM_S, pace.seconds))
    mine, theirs, notes = [], [], []
    for (through, direct), (proxied, transaction_ms) in await side_by_side(pace, ours, against):
        mine.append(through - direct)
        theirs.append(proxied - direct + transaction_ms)
        notes.append(f"{proxied - direct:.1f} + {transaction_ms:.1f}")
    note = f"proxy's own + transaction, in ms: {', '.join(notes)}"
    return [
        Figure("added median of a call, 16 in flight", "proxy + TPC-B", "ms", mine, theirs, 1.5, notes=[note])
    ]
