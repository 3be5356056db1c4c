"""Batches on what a lane remembers: one round trip, and never a decision on what is not so any more.

A call of the tests costs 100 nanos.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from bursar_server.bootstrap import build_rooms
from bursar_server.db.engine import build_engine
from bursar_server.db.lane import Pipeline
from bursar_server.kit.clock import SystemClock
from bursar_server.kit.errors import BursarError, Reason
from bursar_server.metering import lane as lanes
from bursar_server.metering import memory as memories
from bursar_server.metering.ahead import AheadRunner
from bursar_server.metering.session import Session
from support.admin import OPERATOR
from support.metering import MODEL, TENANT, Ledger, new_id


@pytest.fixture
def landed(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each batch that was launched was committed as it was."""
    seen: list[bool] = []
    land = AheadRunner.land

    def noted(self: AheadRunner) -> Any:
        outcome = land(self)
        seen.append(outcome is not None)
        return outcome

    monkeypatch.setattr(AheadRunner, "land", noted)
    return seen


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every batch is tried on what is remembered, however often that was wrong."""
    monkeypatch.setattr(memories, "FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr(memories, "LONGEST_PAUSE_S", 0.0)


def session_of(ledger: Ledger) -> Session:
    [lane] = ledger.service._lanes
    assert lane._batches.runner is not None
    return lane._batches.runner.session


@pytest.mark.parametrize("admission", ["ANY_REMAINING", "UPPER_BOUND", "EXPECTED"])
async def test_a_call_takes_one_round_trip_for_its_check_and_one_for_its_deduct(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, admission: str
) -> None:
    alice = ledger.user("alice@example.com")
    key = ledger.key(alice)
    ledger.budget("TENANT", 10**6, admission=admission)
    ledger.budget("USER", 10**6, user_id=alice, admission=admission)
    for _ in range(2):
        await ledger.call(key)
    trips = 0
    land = Pipeline.land

    def counted(self: Pipeline) -> None:
        nonlocal trips
        trips += 1
        land(self)

    monkeypatch.setattr(Pipeline, "land", counted)
    for _ in range(10):
        await ledger.call(key)
    assert trips == 20
    assert ledger.sql("SELECT sum(spent_nanos), sum(held_nanos) FROM balances") == [(2_400, 0)]


@pytest.mark.usefixtures("no_pause")
@pytest.mark.parametrize("admission", ["ANY_REMAINING", "UPPER_BOUND"])
async def test_what_another_process_spent_is_seen_by_the_next_check(
    ledger: Ledger, other: Ledger, landed: list[bool], admission: str
) -> None:
    """S13: processes take turns on a budget of six calls; the seventh is denied, whoever is asked."""
    key = ledger.key()
    ledger.budget("TENANT", 600, admission=admission)
    for turn in range(6):
        await (ledger, other)[turn % 2].call(key)
    for process in (ledger, other, ledger, other):
        answer = await process.check(key)
        assert [denial.code for denial in answer.denials] == ["BUDGET_CAP_HARD"]
    assert False in landed


@pytest.mark.usefixtures("no_pause")
async def test_processes_at_once_let_through_what_there_is_and_no_more(ledger: Ledger, other: Ledger) -> None:
    """S9, S13: of two hundred calls on two processes a hundred fit."""
    keys = [ledger.key(ledger.user(f"{name}@example.com"), secret=f"bur_{name}") for name in "abcdefgh"]
    ledger.budget("TENANT", 10_000, admission="UPPER_BOUND")
    allowed = 0

    async def ask(number: int) -> None:
        nonlocal allowed
        process, key = (ledger, other)[number % 2], keys[number % len(keys)]
        check = await process.check(key)
        while [denial.code for denial in check.denials] == ["BUDGET_HELD"]:
            await asyncio.sleep(0.01)
            check = await process.check(key)
        if check.allowed:
            await process.deduct(key, check.request_id)
            allowed += 1

    await asyncio.gather(*(ask(number) for number in range(200)))
    assert allowed == 100
    assert ledger.sql("SELECT spent_nanos, held_nanos FROM balances") == [(10_000, 0)]


async def test_a_call_that_was_ended_elsewhere_is_not_charged_again(
    ledger: Ledger, other: Ledger, landed: list[bool]
) -> None:
    """S16: the hold is remembered here, and gone."""
    key = ledger.key()
    ledger.budget("TENANT", 10**6)
    await ledger.call(key)
    check = await ledger.check(key)
    first = await other.deduct(key, check.request_id)
    again = await ledger.deduct(key, check.request_id)
    assert (first.duplicate, again.duplicate) == (False, True)
    assert again.cost == first.cost
    assert landed[-1] is False
    with pytest.raises(BursarError) as refused:
        await ledger.deduct(key, check.request_id, output_tokens=1)
    assert refused.value.reason is Reason.REQUEST_ID_REUSED


async def test_a_call_that_was_released_elsewhere_is_charged_where_its_check_counted(
    ledger: Ledger, other: Ledger
) -> None:
    """S17: the late Deduct of a released call finds the legs of its Check."""
    key = ledger.key()
    budget = ledger.budget("TENANT", 10**6)
    await ledger.call(key)
    check = await ledger.check(key)
    await other.release(key, check.request_id)
    answer = await ledger.deduct(key, check.request_id)
    assert [line.account_id for line in answer.postings] == [budget]
    assert ledger.sql("SELECT spent_nanos, held_nanos FROM balances") == [(200, 0)]


@pytest.mark.parametrize("ended", ["deducted", "released", "asked"])
async def test_an_id_that_came_before_in_another_process_is_no_new_call(
    ledger: Ledger, other: Ledger, ended: str
) -> None:
    """S16, S17: a Check's id is looked for among the calls that are open and that were ended."""
    key = ledger.key()
    ledger.budget("TENANT", 10**6)
    await ledger.call(key)
    request_id = new_id()
    if ended == "asked":
        await other.check(key, request_id)
    elif ended == "deducted":
        await other.deduct(key, request_id)
    else:
        await other.release(key, request_id)
    answer = await ledger.check(key, request_id)
    assert answer.duplicate
    assert answer.allowed is (ended != "released")
    holds = 1 if ended == "asked" else 0
    assert ledger.sql("SELECT count(*) FROM holds") == [(holds,)]


@pytest.mark.usefixtures("no_pause")
async def test_a_call_that_was_allowed_elsewhere_is_not_denied_when_it_is_asked_about_again(
    ledger: Ledger, other: Ledger
) -> None:
    """S16, S17: its hold stands; where it was denied as if it were new, nobody would release the hold."""
    key = ledger.key()
    ledger.budget("TENANT", 150, admission="UPPER_BOUND")
    for process in (ledger, other):
        await process.call(key, 1, 1)
    first = await other.check(key)
    ledger.sql("UPDATE api_keys SET revoke_time = now()")
    ledger.bump()
    for _ in range(2):
        assert not (await ledger.check(key)).allowed
    again = await ledger.check(key, first.request_id)
    assert (again.allowed, again.duplicate) == (True, True)
    with pytest.raises(BursarError, match="other content"):
        await ledger.check(key, first.request_id, input_tokens_estimate=11)
    assert (await ledger.deduct(key, first.request_id)).cost.total_nanos == 100


async def test_a_change_of_the_configuration_counts_from_the_next_call_on(
    ledger: Ledger, landed: list[bool]
) -> None:
    """S13: a key that was revoked, a budget that was lowered, a price that was raised."""
    key = ledger.key()
    budget = ledger.budget("TENANT", 10**6)
    await ledger.call(key)
    await ledger.call(key)
    assert landed[-1] is True
    ledger.price(MODEL, {"input": 3_000_000, "output": 3_000_000})
    assert (await ledger.call(key)).cost.total_nanos == 165
    ledger.sql("UPDATE budgets SET limit_nanos = 300 WHERE budget_id = %s", budget)
    ledger.bump()
    assert [denial.code for denial in (await ledger.check(key)).denials] == ["BUDGET_CAP_HARD"]
    ledger.sql("UPDATE api_keys SET revoke_time = now()")
    ledger.bump()
    assert [denial.code for denial in (await ledger.check(key)).denials] == ["KEY_REVOKED"]


async def test_who_waits_in_another_process_goes_first(ledger: Ledger, other: Ledger) -> None:
    """S10: first come, first served, also before a call whose process remembers that there is enough."""
    key = ledger.key()
    ledger.budget("TENANT", 350, admission="UPPER_BOUND", max_wait_ms=5_000)
    await ledger.call(key)
    held = await ledger.check(key)
    waiting = asyncio.create_task(other.check(key, may_wait=True, max_output_tokens=90))
    await asyncio.sleep(0.2)
    behind = await ledger.check(key, input_tokens_estimate=1, max_output_tokens=1)
    assert [denial.code for denial in behind.denials] == ["BUDGET_HELD"]
    await ledger.release(key, held.request_id)
    assert (await waiting).allowed


async def test_a_batch_that_follows_one_that_failed_is_done_again_after_it(
    ledger: Ledger, landed: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two batches under way the first is refuted: both are evaluated anew, and every call is charged once."""
    monkeypatch.setattr(lanes, "MAX_AHEAD", 8)
    alice = ledger.user("alice@example.com")
    key = ledger.key(alice)
    ledger.budget("TENANT", 10**9, admission="UPPER_BOUND")
    await ledger.call(key)
    checks = await asyncio.gather(*(ledger.check(key) for _ in range(32)))
    assert all(check.allowed for check in checks)
    landed.clear()
    # Somebody else has the row for a moment, and changes it: what is under way meanwhile was evaluated on less.
    with psycopg.connect(ledger.url) as somebody:
        somebody.execute("UPDATE balances SET shadow_denials = shadow_denials + 1")
        deducts = [asyncio.create_task(ledger.deduct(key, check.request_id)) for check in checks]
        [lane] = ledger.service._lanes
        while lane._batches.under_way < 2:  # noqa: ASYNC110  (nobody is told of it)
            await asyncio.sleep(0.005)
    await asyncio.gather(*deducts)
    assert landed[:2] == [False, False]
    assert ledger.sql("SELECT spent_nanos, held_nanos, shadow_denials FROM balances") == [(3_300, 0, 1)]


async def test_a_call_that_cannot_be_written_fails_alone_of_those_under_way(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch with one poisonous call charges all the others, also where others follow before it is committed."""
    monkeypatch.setattr(lanes, "MAX_AHEAD", 8)
    key = ledger.key()
    ledger.budget("TENANT", 10**9)
    await ledger.call(key)
    sessions = ["poison" if number == 5 else "" for number in range(32)]
    checks = await asyncio.gather(*(ledger.check(key, session_id=session) for session in sessions))
    ledger.sql("ALTER TABLE usage_records ADD CONSTRAINT no_poison CHECK (session_id <> 'poison')")
    deducts = [ledger.deduct(key, check.request_id) for check in checks]
    answers = await asyncio.gather(*deducts, return_exceptions=True)
    failed = [number for number, answer in enumerate(answers) if isinstance(answer, BaseException)]
    assert failed == [5]
    assert isinstance(answers[5], BursarError)
    assert ledger.sql("SELECT count(*) FROM holds") == [(1,)]
    ledger.sql("ALTER TABLE usage_records DROP CONSTRAINT no_poison")
    assert (await ledger.deduct(key, checks[5].request_id)).cost.total_nanos == 100


async def test_what_is_posted_after_a_reports_cutoff_is_dated_after_it(
    ledger: Ledger, database_url: str
) -> None:
    """S24: also where the lane's idea of the time is behind the database's clock."""
    key = ledger.key()
    ledger.budget("TENANT", 10**6)
    await ledger.call(key)
    await ledger.call(key)
    engine = build_engine(database_url, pool_size=3)
    rooms = build_rooms(engine, SystemClock())
    now = datetime.now(UTC)
    report = await rooms.chargeback.generate(
        OPERATOR, str(TENANT), start=now - timedelta(days=1), end=now + timedelta(days=1)
    )
    session_of(ledger).note_time(report.cutoff_time - timedelta(milliseconds=500))
    await ledger.call(key)
    await engine.dispose()
    posted = ledger.sql("SELECT count(*) FROM usage_records WHERE posted_time <= %s", report.cutoff_time)
    assert posted == [(2,)]


async def test_a_lane_whose_idea_of_the_time_is_wrong_asks_the_database(
    ledger: Ledger, landed: list[bool]
) -> None:
    """S12: a clock that was set counts from the next batch on."""
    key = ledger.key()
    ledger.budget("TENANT", 10**6)
    await ledger.call(key)
    session_of(ledger).note_time(datetime.now(UTC) + timedelta(days=20))
    check = await ledger.check(key)
    assert landed[-1] is False
    assert check.allowed
    answer = await ledger.deduct(key, check.request_id)
    assert abs(answer.record.usage_time - datetime.now(UTC)) < timedelta(seconds=30)


async def test_a_memory_is_bounded(
    ledger: Ledger, landed: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memories, "MAX_BALANCES", 3)
    monkeypatch.setattr(memories, "MAX_HOLDS", 3)
    keys = []
    for number in range(6):
        user_id = ledger.user(f"user-{number}@example.com")
        keys.append(ledger.key(user_id, secret=f"bur_{number}"))
        ledger.budget("USER", 1_000, user_id=user_id, admission="UPPER_BOUND")
    for _ in range(2):
        checks = await asyncio.gather(*(ledger.check(key) for key in keys))
        for key, check in zip(keys, checks, strict=True):
            await ledger.deduct(key, check.request_id)
    for _ in range(2):
        await ledger.call(keys[0])
    memory = session_of(ledger).memory
    assert len(memory._balances) <= 3
    assert len(memory._holds) <= 3
    assert True in landed
    assert ledger.sql("SELECT sum(spent_nanos), sum(held_nanos) FROM balances") == [(1_400, 0)]
