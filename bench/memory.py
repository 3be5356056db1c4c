"""What the sidecar holds in memory: at rest, and after many calls."""

from __future__ import annotations

import asyncio

from bench.figures import Figure, Pace
from bench.load import drive
from bench.machine import rss_mib
from bench.stack import Stack, running, sidecar_settings
from support.stack import SIDECAR

_REST_S = 0.5
# What a process takes while it first meets its load is no growth: connections, buffers, caches that are bounded.
_WARM_SHARE = 0.1
# What "no growth" allows for the allocator.
_GROWTH = 1.05


async def memory(stack: Stack, pace: Pace) -> list[Figure]:
    """A sidecar of its own, at rest beside a bare application; then the same one after so many calls."""
    settings = sidecar_settings(stack.folder / "bursar", stack.plane, stack.provider)
    settings["BURSAR_OUTBOX_DIR"] = str(stack.folder / "outbox-memory")
    with (
        running(stack.folder, "-m", "bench.bare") as bare,
        running(stack.folder, *SIDECAR, **settings) as sidecar,
    ):
        await asyncio.sleep(_REST_S)
        idle, bare_mib = rss_mib(sidecar.pid), rss_mib(bare.pid)
        requests = stack.metered()
        warm_calls = max(1, round(pace.calls * _WARM_SHARE))
        await drive(sidecar.url, requests, 64, calls=warm_calls)
        warm = rss_mib(sidecar.pid)
        await drive(sidecar.url, requests, 64, calls=pace.calls - warm_calls)
        after = rss_mib(sidecar.pid)
    what = f"memory of the sidecar after {pace.calls:,} calls"
    return [
        Figure("memory of the sidecar at rest", "bare aiohttp app", "MiB", [idle], [bare_mib], 1.7),
        Figure(what, f"after {warm_calls:,}", "MiB", [after], [warm], _GROWTH),
    ]
