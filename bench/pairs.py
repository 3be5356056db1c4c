"""Durable Check + Deduct pairs, in this process: callers, a lane as the control plane runs it, and the server."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

import psycopg
from sqlalchemy.ext.asyncio import create_async_engine

from bench.figures import Figure, Pace, side_by_side
from bench.postgres import Server
from bursar_server.db import migrate
from bursar_server.db.engine import connect_lane
from bursar_server.db.partitions import ensure_partitions
from bursar_server.kit import ids
from bursar_server.kit.clock import SystemClock
from bursar_server.metering.lane import Lane
from bursar_server.metering.model import CheckCall, DeductCall, DeductItem, Policy, PrincipalRef
from bursar_server.metering.observer import MeteringObserver
from bursar_server.metering.service import MeteringService
from bursar_server.notify.service import NotifyService
from bursar_server.pricing.model import Usage
from bursar_server.process import settle_memory
from bursar_server.telemetry import Telemetry
from support.metering import IN_NANOS, MODEL, OUT_NANOS, PLATFORM, Ledger

USERS = 1_000
PLENTY_NANOS = 10**17
_WARM_S = 1.0
_ITEMS = (DeductItem(MODEL, "", Usage(input_tokens=250, output_tokens=120, requests=1)),)
_SHA = "0" * 64


@dataclass(frozen=True)
class Slice:
    """What one measured stretch gave: pairs a second, and the processor time of a pair here and in PostgreSQL."""

    per_s: float
    here_us: float
    server_us: float


class Pairs:
    """Callers of one database: each asks, deducts, and asks again."""

    def __init__(self, server: Server, ledger: Ledger, keys: list[PrincipalRef]) -> None:
        self._server = server
        self.ledger = ledger
        self._keys = keys
        self._clock = SystemClock()
        self._paired = 0

    async def run(self, callers: int, seconds: float) -> Slice:
        """Keep so many callers busy for so long."""
        before = self._paired
        here, there = time.process_time(), self._server.cpu_s()
        began = time.perf_counter()
        await asyncio.gather(*(self._call(number, callers, began + seconds) for number in range(callers)))
        took = time.perf_counter() - began
        pairs = self._paired - before
        here, there = time.process_time() - here, self._server.cpu_s() - there
        return Slice(pairs / took, here / pairs * 1e6, there / pairs * 1e6)

    async def _call(self, number: int, step: int, deadline: float) -> None:
        service, keys = self.ledger.service, self._keys
        while time.perf_counter() < deadline:
            key = keys[number % len(keys)]
            number += step
            request_id = ids.uuid7_at(self._clock.now())
            answer = await service.check(
                CheckCall(request_id, key, None, "openai", MODEL, 250, 256, {}, "", _SHA)
            )
            if not answer.allowed:
                raise RuntimeError(f"denied: {answer.denials}")
            deduct = DeductCall(
                str(request_id), request_id, key, None, "openai", _ITEMS, "SUCCESS", False, None, None, None, {}, "", _SHA
            )  # fmt: skip
            await service.deduct(deduct)
            self._paired += 1

    def prove(self) -> None:
        """Raise unless every pair is in the books exactly once and nothing is held any more."""
        (counted,) = self.ledger.sql("SELECT count(*), count(DISTINCT request_id) FROM usage_records")
        (held,) = self.ledger.sql(
            "SELECT (SELECT count(*) FROM holds), (SELECT sum(held_nanos) FROM balances)"
        )
        if counted != (self._paired, self._paired) or held != (0, 0):
            raise RuntimeError(f"{self._paired} pairs were answered, records {counted}, held {held}")
        self.ledger.assert_books()


@asynccontextmanager
async def _lane_on(url: str) -> AsyncIterator[Ledger]:
    """Run a lane on a new database as the control plane does, with what counts and tells."""
    await asyncio.to_thread(migrate.prepare, url)
    engine = create_async_engine(url.replace("postgresql://", "postgresql+psycopg://", 1))
    async with engine.begin() as connection:
        await ensure_partitions(connection)
    await engine.dispose()
    policy, clock = Policy(), SystemClock()
    observer = MeteringObserver(Telemetry(), NotifyService())
    lane = Lane("bench-lane", lambda: connect_lane(url), policy, clock, observer.batch_committed)

    async def ensure_user(tenant_id: UUID, email: str) -> None:
        raise LookupError(email)

    with psycopg.connect(url, autocommit=True) as rows:
        rows.execute("SET synchronous_commit = off")  # only what is set up here, not what is measured
        ledger = Ledger(url, MeteringService([lane], ensure_user, policy, clock), rows)
        ledger.price(MODEL, {"input": IN_NANOS * 1_000_000, "output": OUT_NANOS * 1_000_000})
        lane.start()
        try:
            yield ledger
        finally:
            await lane.stop()


@asynccontextmanager
async def _spread(server: Server) -> AsyncIterator[Pairs]:
    """A thousand users with a key and a budget each, under a tenant's budget and a global one."""
    async with _lane_on(server.create("pairs_spread")) as ledger:
        ledger.budget("TENANT", PLENTY_NANOS)
        ledger.budget("GLOBAL", PLENTY_NANOS, tenant_id=PLATFORM)
        keys = []
        for number in range(USERS):
            user_id = ledger.user(f"user-{number}@example.com")
            keys.append(ledger.key(user_id, secret=f"bur_{number}"))
            ledger.budget("USER", PLENTY_NANOS, user_id=user_id)
        yield await _ready(Pairs(server, ledger, keys), 256)


@asynccontextmanager
async def _hot(server: Server) -> AsyncIterator[Pairs]:
    """One app's key, and the tenant's budget."""
    async with _lane_on(server.create("pairs_hot")) as ledger:
        ledger.budget("TENANT", PLENTY_NANOS)
        yield await _ready(Pairs(server, ledger, [ledger.key(service_account=True)]), 64)


async def _ready(pairs: Pairs, callers: int) -> Pairs:
    await pairs.run(callers, _WARM_S)
    settle_memory()  # as the control plane does when it is ready
    return pairs


def _figure(what: str, against: str, target: float, found: list[tuple[Slice, float]]) -> Figure:
    here = sorted(mine.here_us for mine, _ in found)[len(found) // 2]
    there = sorted(mine.server_us for mine, _ in found)[len(found) // 2]
    return Figure(
        what, against, "/s", [mine.per_s for mine, _ in found], [theirs for _, theirs in found], target, at_least=True,
        notes=[f"processor time of a pair: {here:.0f} µs here (callers included), {there:.0f} µs in PostgreSQL"],
    )  # fmt: skip


async def spread(server: Server, pace: Pace) -> list[Figure]:
    """Many callers of many users; then one caller alone."""

    async def many() -> float:
        return (await server.pgbench(32, pace.seconds)).per_s

    async def one() -> float:
        return (await server.pgbench(1, pace.seconds)).per_s

    async with _spread(server) as pairs:
        found = await side_by_side(pace, lambda: pairs.run(256, pace.seconds), many)
        alone = await side_by_side(pace, lambda: pairs.run(1, pace.seconds), one)
        pairs.prove()
    gc.unfreeze()
    return [
        _figure("pairs/s, 1,000 users, 256 callers", "TPC-B, 32 clients", 1.5, found),
        _figure("pairs/s, one caller", "TPC-B, 1 client", 0.3, alone),
    ]


async def hot(server: Server, pace: Pace) -> list[Figure]:
    """All callers on one tenant's budget."""

    async def one_row() -> float:
        return (await server.pgbench(32, pace.seconds, one_row=True)).per_s

    async with _hot(server) as pairs:
        found = await side_by_side(pace, lambda: pairs.run(64, pace.seconds), one_row)
        pairs.prove()
    gc.unfreeze()
    return [_figure("pairs/s, one tenant budget, 64 callers", "updates of one row, 32 clients", 2.5, found)]
