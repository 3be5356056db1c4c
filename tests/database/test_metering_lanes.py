"""Everybody who asks a lane gets an answer, and it is the answer to what was asked.

A call of the tests costs 100 nanos.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any
from uuid import UUID

import psycopg
import pytest

from bursar_server.db.connection import tenant_lock_key
from bursar_server.kit.errors import BursarError, Reason
from bursar_server.metering import store, tickets
from bursar_server.metering.model import PrincipalRef
from support.metering import TENANT, Ledger, ledger_on, new_id


def lock_balances(somebody: psycopg.Connection[Any], tenant_id: UUID) -> None:
    somebody.execute("SELECT FROM balances WHERE tenant_id = %s FOR UPDATE", (tenant_id,))


@pytest.mark.parametrize("locked_calls", [1, 20])
async def test_who_was_locked_out_is_tried_again_while_others_are_served(
    ledger: Ledger, locked_calls: int
) -> None:
    """S20: the calls of a tenant whose rows are free again, and those of others in the same turn, are not mixed up."""
    acme = ledger.tenant("acme")
    of_acme, of_others = ledger.key(tenant_id=acme, secret="bur_acme"), ledger.key()
    ledger.budget("TENANT", 10**9, tenant_id=acme)
    ledger.budget("TENANT", 10**9)
    for _ in range(3):
        await ledger.call(of_acme)
        await ledger.call(of_others)
    answered = 0
    stop = False

    async def check_on(key: PrincipalRef, pause_s: float) -> None:
        nonlocal answered
        while not stop:
            check = await ledger.check(key, request_id := new_id())
            assert check.request_id == request_id
            answered += 1
            await ledger.deduct(key, request_id)
            await asyncio.sleep(pause_s)

    with psycopg.connect(ledger.url) as somebody:
        lock_balances(somebody, acme)
        ids = [new_id() for _ in range(locked_calls)]
        blocked = [asyncio.create_task(ledger.deduct(of_acme, request_id)) for request_id in ids]
        await asyncio.sleep(0.7)
        crowd = [asyncio.create_task(check_on(of_others, 0.0)) for _ in range(4)]
        await asyncio.sleep(1.5)
    crowd.append(asyncio.create_task(check_on(of_acme, 0.02)))
    charged = await asyncio.wait_for(asyncio.gather(*blocked), 10)
    await asyncio.sleep(0.5)
    stop = True
    await asyncio.wait_for(asyncio.gather(*crowd), 10)
    assert [answer.request_id for answer in charged] == ids
    assert ledger.sql("SELECT sum(spent_nanos), sum(held_nanos) FROM balances") == [
        (100 * (6 + locked_calls + answered), 0)
    ]


async def test_a_burst_that_is_larger_than_what_the_socket_takes_is_answered(ledger: Ledger) -> None:
    """S20: what the thread sent and could not send whole is not left to the event loop, which waits for answers only."""
    key = ledger.key()
    ledger.budget("TENANT", 10**12)
    for _ in range(3):
        await ledger.call(key)
    ledger.sql("UPDATE balances SET shadow_denials = shadow_denials + 1")
    await ledger.call(key)  # not as remembered: for a while the thread has the batches
    await asyncio.sleep(0.3)
    tags = {f"t{number}": "x" * 200 for number in range(40)}
    with psycopg.connect(ledger.url, autocommit=True) as somebody:
        somebody.execute("SELECT pg_advisory_lock(%s)", (tenant_lock_key(TENANT),))
        burst = [asyncio.create_task(ledger.check(key, tags=tags)) for _ in range(250)]
        await asyncio.sleep(0.2)
    answers = await asyncio.wait_for(asyncio.gather(*burst), 10)
    assert all(answer.allowed for answer in answers)


async def test_who_was_locked_out_and_then_waits_for_holds_gets_an_answer(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S10, S20: how long it was locked out before is not held against it when its rows are locked again."""
    monkeypatch.setattr(tickets, "LOCKED_PATIENCE_S", 1.5)
    key = ledger.key()
    ledger.budget("TENANT", 150, admission="UPPER_BOUND", max_wait_ms=30_000)
    first = await ledger.check(key)
    with psycopg.connect(ledger.url) as somebody:
        lock_balances(somebody, TENANT)
        waiting = asyncio.create_task(ledger.check(key, may_wait=True))
        await asyncio.sleep(1.2)
    await asyncio.sleep(1.0)
    assert not waiting.done()
    with psycopg.connect(ledger.url) as somebody:
        lock_balances(somebody, TENANT)
        locked = asyncio.create_task(ledger.deduct(key, new_id(), 1, 1))
        await asyncio.sleep(1.0)
    await locked
    await ledger.release(key, first.request_id)
    assert (await asyncio.wait_for(waiting, 5)).allowed
    await ledger.release(key, waiting.result().request_id)


async def test_who_is_locked_out_for_too_long_is_told_so_also_behind_others(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S20: a call that waits for its tenant's rows behind others of it is given up like them, not forgotten."""
    monkeypatch.setattr(tickets, "LOCKED_PATIENCE_S", 1.0)
    key = ledger.key()
    ledger.budget("TENANT", 10**6)
    await ledger.call(key)
    with psycopg.connect(ledger.url) as somebody:
        lock_balances(somebody, TENANT)
        blocked = []
        for _ in range(20):
            blocked.append(asyncio.create_task(ledger.deduct(key, new_id())))
            await asyncio.sleep(0.1)
        ended = await asyncio.wait_for(asyncio.gather(*blocked, return_exceptions=True), 10)
    assert {error.reason for error in ended if isinstance(error, BursarError)} == {
        Reason.DATABASE_UNAVAILABLE
    }


async def test_what_calls_cost_is_read_again_when_that_failed(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S11: EXPECTED holds what such calls usually cost, also after the first reading of them broke off."""
    key = ledger.key()
    ledger.budget("TENANT", 10**9)
    for _ in range(25):
        await ledger.call(key)
    async with ledger_on(ledger.url) as fresh:
        recent_costs = store.recent_costs
        fails = True

        def read(*given: Any) -> Any:
            nonlocal fails
            if fails:
                fails = False
                raise psycopg.errors.QueryCanceled
            return recent_costs(*given)

        monkeypatch.setattr(store, "recent_costs", read)
        ledger.sql("UPDATE budgets SET admission = 'EXPECTED'")
        ledger.bump()
        with suppress(BursarError):
            await fresh.check(key, max_output_tokens=None)
        check = await fresh.check(key, max_output_tokens=None)
        assert not fails
        assert check.held_nanos == 100
