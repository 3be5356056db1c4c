"""Batches that the event loop runs itself: what fails there is gone on with, and what has to wait does not hold it up.

A call of the tests costs 100 nanos.
"""

from __future__ import annotations

import asyncio
import time

import psycopg
import pytest

from bursar_server.metering.batches import Batches
from bursar_server.metering.session import Session
from support.metering import Ledger


async def test_a_connection_that_ends_while_nobody_asks_is_made_anew(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S20: the event loop, which watches it, notices it and looks no more; the next call finds another."""
    key = ledger.key()
    ledger.budget("TENANT", 10**6)
    for _ in range(2):
        await ledger.call(key)
    looks = 0
    arrived = Batches.arrived

    def counted(self: Batches) -> bool:
        nonlocal looks
        looks += 1
        return arrived(self)

    monkeypatch.setattr(Batches, "arrived", counted)
    ledger.sql(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'bursar-lane'"
        " AND datname = current_database()"
    )
    await asyncio.sleep(0.2)
    assert 1 <= looks <= 2  # the server's last words, and the end
    assert (await ledger.call(key)).cost.total_nanos == 100
    assert ledger.sql("SELECT spent_nanos, held_nanos FROM balances") == [(300, 0)]


async def test_a_lane_whose_connection_is_closed_under_it_goes_on(ledger: Ledger) -> None:
    """S20: what is lent to the event loop may be lost already, and nobody be told."""
    key = ledger.key()
    ledger.budget("TENANT", 10**6)
    await ledger.call(key)
    [lane] = ledger.service._lanes

    def close(session: Session) -> None:
        session.connection.close()

    await lane.perform(close)
    assert (await asyncio.wait_for(ledger.call(key), 10)).cost.total_nanos == 100
    assert ledger.sql("SELECT spent_nanos, held_nanos FROM balances") == [(200, 0)]


async def test_a_lane_outlives_a_failure_that_nobody_thought_of(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = ledger.key()
    ledger.budget("TENANT", 10**6)
    for _ in range(2):
        await ledger.call(key)

    def fails(self: Batches) -> bool:
        raise RuntimeError("unthought of")

    monkeypatch.setattr(Batches, "arrived", fails)
    for _ in range(2):
        assert (await asyncio.wait_for(ledger.call(key), 10)).cost.total_nanos == 100
    assert ledger.sql("SELECT spent_nanos, held_nanos FROM balances") == [(400, 0)]


async def test_the_event_loop_goes_on_while_the_database_does_not(ledger: Ledger) -> None:
    """S20: a batch that was sent ahead waits for a locked row; the loop that sent it does not."""
    key = ledger.key()
    ledger.budget("TENANT", 10**6, admission="UPPER_BOUND")
    for _ in range(2):
        await ledger.call(key)
    with psycopg.connect(ledger.url) as somebody:
        somebody.execute("SELECT FROM balances FOR UPDATE")
        check = asyncio.create_task(ledger.check(key))
        [lane] = ledger.service._lanes
        longest, last, until = 0.0, time.monotonic(), time.monotonic() + 0.3
        while last < until:
            await asyncio.sleep(0.001)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
        assert lane._batches.under_way == 1
        assert not check.done()
    assert longest < 0.45  # the lane waits 0.5 s for a lock
    assert (await check).allowed
