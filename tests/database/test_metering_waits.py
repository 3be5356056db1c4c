"""Calls that do not fit only because of other calls' holds wait for them, instead of being refused (S10)."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from bursar_server.metering.model import PrincipalRef
from support.metering import Ledger, ledger_on


@pytest.fixture
async def ledger(database_url: str) -> AsyncIterator[Ledger]:
    async with ledger_on(database_url) as ledger:
        yield ledger
        ledger.assert_books()
        assert ledger.sql("SELECT count(*) FROM check_waits WHERE expire_time > now()") == [(0,)]


async def _call(ledger: Ledger, key: PrincipalRef, seconds: float, **given: Any) -> bool:
    check = await ledger.check(key, may_wait=True, **given)
    if check.allowed:
        await asyncio.sleep(seconds)
        await ledger.deduct(key, check.request_id)
    return bool(check.allowed)


@pytest.mark.parametrize("seconds", [0.0, 0.1])
async def test_a_budget_worth_100_calls_lets_exactly_100_through(ledger: Ledger, seconds: float) -> None:
    """S10, S11, C03: of 300 calls, 64 at a time, a budget worth 100 lets exactly 100 through; nothing stays held."""
    key = ledger.key()
    # Each call may cost twice what it does: held amounts are in the way of others until they are known.
    ledger.budget("TENANT", 100 * 100 + 100, admission="UPPER_BOUND", max_wait_ms=20_000)
    gate = asyncio.Semaphore(64)

    async def one() -> bool:
        async with gate:
            return await _call(ledger, key, seconds, max_output_tokens=95)

    results = await asyncio.gather(*(one() for _ in range(300)))
    assert sum(results) == 100
    assert ledger.sql("SELECT spent_nanos, held_nanos FROM balances") == [(10_000, 0)]


async def test_a_wait_ends_with_the_budgets_patience(ledger: Ledger) -> None:
    """S10: a wait that times out answers BUDGET_HELD, retryable; nothing was spent."""
    key = ledger.key()
    ledger.budget("TENANT", 150, admission="UPPER_BOUND", max_wait_ms=300)
    first = await ledger.check(key)
    started = time.monotonic()
    answer = await ledger.check(key, may_wait=True)
    assert 0.25 < time.monotonic() - started < 1.5
    assert (answer.denials[0].code, answer.denials[0].retryable, answer.retry_after_ms) == (
        "BUDGET_HELD",
        True,
        1000,
    )
    await ledger.deduct(key, first.request_id)


async def test_a_waiting_call_is_denied_when_the_money_is_gone(ledger: Ledger) -> None:
    """S10: where spent alone leaves no room, it is denied at once, also in the middle of a wait."""
    key = ledger.key()
    ledger.budget("TENANT", 150, admission="UPPER_BOUND", max_wait_ms=20_000)
    first = await ledger.check(key)
    waiting = asyncio.create_task(ledger.check(key, may_wait=True))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    await ledger.deduct(key, first.request_id)
    answer = await asyncio.wait_for(waiting, 2)
    assert answer.denials[0].code == "BUDGET_CAP_HARD"


async def test_a_raised_limit_wakes_those_who_wait(ledger: Ledger) -> None:
    """S13: waiting Checks look again when the limit is raised elsewhere."""
    key = ledger.key()
    ledger.budget("TENANT", 150, admission="UPPER_BOUND", max_wait_ms=20_000)
    first = await ledger.check(key)
    waiting = asyncio.create_task(ledger.check(key, may_wait=True))
    await asyncio.sleep(0.1)
    ledger.sql("UPDATE budgets SET limit_nanos = 1000")
    ledger.bump()
    second = await asyncio.wait_for(waiting, 2)
    assert second.allowed
    for check in (first, second):
        await ledger.deduct(key, check.request_id)


async def test_first_come_first_served_in_every_process(database_url: str, ledger: Ledger) -> None:
    """S10: a call in another process does not overtake one that has waited longer, even if it would fit."""
    key = ledger.key()
    ledger.budget("TENANT", 250, admission="UPPER_BOUND", max_wait_ms=20_000)
    first = await ledger.check(key)
    second = await ledger.check(key, max_output_tokens=20)
    large = asyncio.create_task(ledger.check(key, may_wait=True, max_output_tokens=70))
    await asyncio.sleep(0.1)
    async with ledger_on(database_url) as other:
        small = asyncio.create_task(other.check(key, may_wait=True, max_output_tokens=10))
        await asyncio.sleep(0.3)
        assert not large.done()
        assert not small.done()
        await ledger.release(key, first.request_id)
        served = await asyncio.wait_for(large, 2)
        assert served.allowed
        late = await asyncio.wait_for(small, 2)
        assert late.allowed
        for check in (second, served, late):
            await ledger.release(key, check.request_id)


async def test_a_batch_never_waits(ledger: Ledger) -> None:
    """S10: a Check that may not wait is told at once that others hold the budget."""
    key = ledger.key()
    ledger.budget("TENANT", 150, admission="UPPER_BOUND")
    first = await ledger.check(key)
    started = time.monotonic()
    assert (await ledger.check(key)).denials[0].code == "BUDGET_HELD"
    assert time.monotonic() - started < 0.5
    await ledger.deduct(key, first.request_id)


async def test_expected_holds_what_such_calls_usually_cost(ledger: Ledger) -> None:
    """S11: without history the input and 1,024 outputs; then the 95th percentile of the key and model."""
    key = ledger.key()
    ledger.budget("TENANT", 1_000_000, admission="EXPECTED")
    first = await ledger.check(key, max_output_tokens=32_000)
    assert first.held_nanos == 10 + 2 * 1_024
    await ledger.release(key, first.request_id)
    for output_tokens in [*range(100, 119), 1_000]:
        await ledger.deduct(key, (await ledger.check(key)).request_id, 0, output_tokens)
    usual = await ledger.check(key, max_output_tokens=32_000)
    assert usual.held_nanos == 2 * 118
    small = await ledger.check(key, max_output_tokens=5)
    assert small.held_nanos == 20
    for check in (usual, small):
        await ledger.release(key, check.request_id)


async def test_expected_serves_a_small_prompt_on_a_small_budget(ledger: Ledger) -> None:
    """S11: where no other hold is open, no more is held than what remains, whatever max_tokens says."""
    key = ledger.key()
    ledger.budget("TENANT", 500, admission="EXPECTED")
    check = await ledger.check(key, max_output_tokens=32_000)
    assert check.allowed
    assert check.held_nanos == 500
    await ledger.deduct(key, check.request_id)
    assert (await ledger.check(key, max_output_tokens=32_000)).held_nanos == 400


@pytest.mark.parametrize("limit_tokens", [None, 550])
async def test_expected_waits_for_what_it_would_get_alone(ledger: Ledger, limit_tokens: int | None) -> None:
    """S10, S11: a call that would hold more than the budget has waits for its turn to hold all that remains."""
    key = ledger.key()
    limit_nanos = None if limit_tokens else 500
    ledger.budget("TENANT", limit_nanos, limit_tokens=limit_tokens, admission="EXPECTED", max_wait_ms=30_000)
    calls = (_call(ledger, key, 0.01, max_output_tokens=32_000) for _ in range(12))
    assert sum(await asyncio.gather(*calls)) == (10 if limit_tokens else 5)
    assert ledger.sql("SELECT held_nanos, held_tokens FROM balances") == [(0, 0)]


@pytest.mark.parametrize("seconds", [0.0, 0.1])
async def test_expected_lets_exactly_100_through(ledger: Ledger, seconds: float) -> None:
    """S10, S11: under EXPECTED without max_tokens a budget worth 100 calls lets exactly 100 of 300 through."""
    key = ledger.key()
    ledger.budget("TENANT", 10_000, admission="EXPECTED", max_wait_ms=30_000)
    gate = asyncio.Semaphore(64)

    async def one() -> bool:
        async with gate:
            return await _call(ledger, key, seconds, max_output_tokens=None)

    results = await asyncio.gather(*(one() for _ in range(300)))
    assert sum(results) == 100
    assert ledger.sql("SELECT spent_nanos, held_nanos FROM balances") == [(10_000, 0)]


async def test_fit_output_lowers_what_a_call_may_generate(ledger: Ledger) -> None:
    """C03: UPPER_BOUND with fit_output serves a small prompt on a small budget, with a lower output limit."""
    key = ledger.key()
    ledger.budget("TENANT", 500, admission="UPPER_BOUND", fit_output=True)
    refused = await ledger.check(key, max_output_tokens=32_000)
    assert refused.denials[0].code == "BUDGET_CAP_HARD"
    check = await ledger.check(key, max_output_tokens=32_000, can_fit_output=True)
    assert (check.allowed, check.fit_output_tokens, check.held_nanos) == (True, 245, 500)
    await ledger.deduct(key, check.request_id, 10, 235)
    assert (await ledger.check(key, max_output_tokens=32_000, can_fit_output=True)).denials[
        0
    ].code == "BUDGET_CAP_HARD"
    whole = await ledger.check(key, input_tokens_estimate=0, max_output_tokens=5, can_fit_output=True)
    assert (whole.allowed, whole.fit_output_tokens) == (True, None)
    await ledger.release(key, whole.request_id)
