"""The database breaks off, blocks, refuses or dawdles while calls are metered. A call of the tests costs 100 nanos."""

import asyncio
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest

from bursar_server.db import engine
from bursar_server.db.lane import Pipeline
from bursar_server.kit.errors import BursarError, Reason
from bursar_server.metering import directory
from support.metering import TENANT, Ledger, ledger_on, new_id

LANES = (
    "SELECT pid FROM pg_stat_activity WHERE application_name = 'bursar-lane' AND datname = current_database()"
)


async def until_done(ask: Callable[[], Any]) -> Any:
    """Ask until there is an answer, as a sidecar does that is told UNAVAILABLE."""
    while True:
        try:
            return await ask()
        except BursarError as error:
            if error.reason is not Reason.DATABASE_UNAVAILABLE:
                raise
        await asyncio.sleep(0.02)


# Connections that break off


class Breaking:
    """Round trips of which one loses the connection: the server has done what it was told, nobody is told so."""

    trips_left = -1


@pytest.fixture
def breaking(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Pipeline.run

    def run_and_break(pipeline: Pipeline) -> None:
        run(pipeline)
        Breaking.trips_left -= 1
        if Breaking.trips_left == 0:
            pipeline.connection.close()
            raise psycopg.OperationalError("the connection was lost")

    monkeypatch.setattr(Pipeline, "run", run_and_break)


@pytest.mark.usefixtures("breaking")
@pytest.mark.parametrize("trips", [1, 2])
async def test_a_commit_whose_answer_is_lost_is_repeated(ledger: Ledger, trips: int) -> None:
    """S16, S20: whether a batch was committed or not when its connection broke, it counts once.

    The first round trip locks and reads, the second writes and commits.
    """
    alice = ledger.user("alice@example.com")
    key = ledger.key(alice)
    ledger.budget("USER", 10_000, user_id=alice, admission="UPPER_BOUND")
    ledger.grant(alice, 130)

    async def lost(ask: Any, more: int = 0) -> Any:
        Breaking.trips_left = trips + more
        answer = await ask
        assert Breaking.trips_left < 0
        ledger.assert_books()
        return answer

    committed = trips == 2
    await ledger.call(key)
    check = await lost(ledger.check(key))
    assert (check.allowed, check.duplicate, check.held_nanos) == (True, committed, 100)
    answer = await lost(ledger.deduct(key, check.request_id))
    assert (answer.cost.total_nanos, answer.duplicate) == (100, committed)
    assert [line.nanos for line in answer.postings] == [30, 70]
    late = await ledger.check(key)
    ledger.sql("UPDATE holds SET lease_expire_time = now() - interval '1 second'")
    assert await lost(ledger.service.sweep_once()) == 1
    # A late Deduct learns in a round trip of its own which rows it needs, and begins again with another.
    corrected = await lost(ledger.deduct(key, late.request_id, 10, 5), more=2)
    assert (corrected.cost.total_nanos, corrected.duplicate) == (20, committed)
    last = await ledger.check(key)
    await lost(ledger.release(key, last.request_id))
    assert ledger.sql("SELECT spent_nanos, held_nanos FROM balances") == [(90, 0)]
    assert ledger.sql("SELECT spent_nanos, held_nanos FROM grants") == [(130, 0)]
    assert ledger.sql("SELECT sum(requests), sum(cost_nanos) FROM rollup_days") == [(3, 220)]


async def test_backends_that_are_terminated_lose_no_call(ledger: Ledger) -> None:
    """S16, S20: whenever a lane's backend is terminated, each call is charged once."""
    key = ledger.key()
    ledger.budget("TENANT", 10**9, admission="UPPER_BOUND")
    stop = asyncio.Event()

    async def one() -> UUID:
        request_id = new_id()
        assert (await until_done(lambda: ledger.check(key, request_id))).allowed
        await until_done(lambda: ledger.deduct(key, request_id))
        return request_id

    terminated = 0

    async def terminate() -> None:
        nonlocal terminated
        while not stop.is_set():
            await asyncio.sleep(random.uniform(0.001, 0.1))
            terminated += len(ledger.sql(f"SELECT pg_terminate_backend(pid) FROM ({LANES}) AS l"))

    killer = asyncio.create_task(terminate())
    calls: list[UUID] = []
    while len(calls) < 180 or terminated < 6:
        calls += await asyncio.gather(*(one() for _ in range(15)))
    stop.set()
    await killer
    charged = ledger.sql("SELECT request_id, count(*), sum(cost_nanos)::bigint FROM usage_records GROUP BY 1")
    assert sorted(charged) == [(call, 1, 100) for call in sorted(calls)]
    assert ledger.sql("SELECT spent_nanos, held_nanos FROM balances") == [(100 * len(calls), 0)]


async def test_an_idle_connection_that_is_gone_is_not_noticed(ledger: Ledger) -> None:
    """S20: a lane whose connection died while nobody called answers the next call all the same."""
    key = ledger.key()
    await ledger.call(key)
    ledger.sql(f"SELECT pg_terminate_backend(pid) FROM ({LANES}) AS l")
    assert (await ledger.call(key)).cost.total_nanos == 100
    ledger.sql(f"SELECT pg_terminate_backend(pid) FROM ({LANES}) AS l")
    assert len((await until_done(lambda: ledger.service.renew([new_id()], None)))[1]) == 1


# Locks and delays


async def test_a_lock_that_is_held_for_three_seconds_costs_no_call(ledger: Ledger, database_url: str) -> None:
    """S20: calls whose balance somebody else has locked are answered when it is free; those of others meanwhile."""
    acme = ledger.tenant("acme")
    key, other = ledger.key(), ledger.key(tenant_id=acme, secret="bur_acme")
    ledger.budget("TENANT", 10**6)
    ledger.budget("TENANT", 10**6, tenant_id=acme)
    await asyncio.gather(ledger.call(key), ledger.call(other))
    with psycopg.connect(database_url) as somebody:
        somebody.execute("SELECT 1 FROM balances WHERE tenant_id = %s FOR UPDATE", (TENANT,))
        blocked = [asyncio.create_task(ledger.deduct(key, new_id())) for _ in range(20)]
        began, longest = time.monotonic(), 0.0
        while time.monotonic() - began < 3:
            asked = time.monotonic()
            await ledger.call(other)
            longest = max(longest, time.monotonic() - asked)
    assert len(await asyncio.gather(*blocked)) == 20
    assert longest < 1.5
    assert ledger.sql("SELECT spent_nanos FROM balances WHERE tenant_id = %s", TENANT) == [(2_100,)]


async def test_transactions_that_lock_the_other_way_round(ledger: Ledger, database_url: str) -> None:
    """S20: a deadlock with somebody who keeps another order is not seen by callers."""
    key = ledger.key()
    budgets = sorted([ledger.budget("TENANT", 10**6), ledger.budget("TENANT", 10**6, period="TOTAL")])
    await ledger.call(key)
    stop = asyncio.Event()

    def lock_in_turn(first: UUID, last: UUID) -> None:
        with psycopg.connect(database_url, options="-c lock_timeout=200ms") as somebody:
            for budget in (first, last):
                somebody.execute("SELECT 1 FROM balances WHERE budget_id = %s FOR UPDATE", (budget,))
                time.sleep(0.05)

    async def against_the_order() -> None:
        while not stop.is_set():
            try:
                await asyncio.to_thread(lock_in_turn, budgets[1], budgets[0])
            except psycopg.OperationalError:
                continue

    rival = asyncio.create_task(against_the_order())
    for _ in range(8):
        await asyncio.gather(*(ledger.call(key) for _ in range(5)))
    stop.set()
    await rival
    assert ledger.sql("SELECT DISTINCT spent_nanos FROM balances") == [(4_100,)]


async def test_a_statement_that_takes_too_long_is_ended(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S20: a statement beyond its time is given up, its caller told to try again, and the next one served."""
    monkeypatch.setitem(engine._LANE_SETTINGS, "statement_timeout", "300ms")
    monkeypatch.setattr("bursar_server.metering.batches.PATIENCE_S", 0.2)
    async with ledger_on(database_url) as ledger:
        key = ledger.key()
        ledger.budget("TENANT", 1_000)
        await ledger.call(key)
        ledger.sql(
            "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN IF NEW.session_id = ''slow'' THEN PERFORM pg_sleep(10); END IF; RETURN NEW; END'"
        )
        ledger.sql("CREATE TRIGGER dawdle BEFORE INSERT ON holds FOR EACH ROW EXECUTE FUNCTION dawdle()")
        began = time.monotonic()
        with pytest.raises(BursarError) as given_up:
            await ledger.check(key, session_id="slow")
        assert given_up.value.reason is Reason.DATABASE_UNAVAILABLE
        assert time.monotonic() - began < 3
        assert (await ledger.call(key)).cost.total_nanos == 100
        ledger.assert_books()


@pytest.mark.parametrize("calls_before", range(3, 6))
async def test_a_lane_outlives_any_lock(ledger: Ledger, database_url: str, calls_before: int) -> None:
    """S20: a pipeline that breaks off just when its statements were to be prepared leaves a lane that works."""
    key = ledger.key()
    ledger.budget("TENANT", 10**6)
    for _ in range(calls_before):
        await ledger.check(key)
    with psycopg.connect(database_url) as somebody:
        somebody.execute("LOCK TABLE balances IN EXCLUSIVE MODE")
        blocked = asyncio.create_task(ledger.check(key))
        await asyncio.sleep(1.7)
    assert (await blocked).allowed
    for _ in range(8):
        assert (await ledger.check(key)).allowed


# Callers and memory


async def test_who_goes_away_takes_no_deduct_back(ledger: Ledger) -> None:
    """S14: a Deduct that was accepted is done, whether or not somebody still waits for it; a Check need not be."""
    key = ledger.key()
    ledger.budget("TENANT", 10_000, admission="UPPER_BOUND")
    check = await ledger.check(key)
    for ask in (ledger.deduct(key, check.request_id), ledger.check(key)):
        task = asyncio.create_task(ask)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
    await ledger.call(key)
    [(spent, held)] = ledger.sql("SELECT spent_nanos, held_nanos FROM balances")
    assert spent == 200
    assert held in (0, 100)


async def test_a_lane_remembers_no_more_than_it_may(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """S13: what is remembered of principals, budgets and prices is bounded, and a call is right without it."""
    monkeypatch.setattr(directory, "MAX_SUBJECTS", 5)
    monkeypatch.setattr(directory, "MAX_BUDGETS", 5)
    monkeypatch.setattr(directory, "MAX_PRICE_LISTS", 1)
    keys = []
    for number in range(30):
        user = ledger.user(f"u{number}@example.com")
        ledger.budget("USER", 250, user_id=user, admission="UPPER_BOUND")
        keys.append(ledger.key(user, secret=f"bur_{number}"))
    for _ in range(2):
        answers = await asyncio.gather(*(ledger.call(key) for key in keys))
        assert [answer.cost.total_nanos for answer in answers] == [100] * 30
    await ledger.call(keys[0])
    [lane] = ledger.service._lanes
    remembered = lane._batches.directory
    assert len(remembered._subjects) <= 5 + len(keys)
    assert len(remembered._budgets) <= 5 + len(keys)
    assert len(remembered._prices) <= 1
    denied = await asyncio.gather(*(ledger.check(key) for key in keys))
    assert {answer.allowed for answer in denied} == {False}


async def test_the_minute_turns_between_the_guess_and_the_decision(ledger: Ledger) -> None:
    """S12, S16, S23: a batch that guessed another period, another minute, or that an id is of no known time, is repeated."""
    alice = ledger.user("alice@example.com", rate_limit=1_000)
    key = ledger.key(alice)
    budget = ledger.budget("USER", 2_000, user_id=alice, admission="UPPER_BOUND")
    await ledger.call(key)
    [lane] = ledger.service._lanes
    assert lane._batches.runner is not None
    session = lane._batches.runner.session
    for shift in (timedelta(days=-2), timedelta(days=-1), timedelta(days=1), timedelta(days=40)):
        at, monotonic = session._database_time or (datetime.now(UTC), time.monotonic())
        session._database_time = (at + shift, monotonic)
        check = await ledger.check(key)
        assert check.allowed
        session._database_time = (at + shift, monotonic)
        assert (await ledger.deduct(key, check.request_id)).postings[-1].account_id == budget
        session._database_time = (at + shift, monotonic)
        assert (await ledger.deduct(key, new_id())).unchecked
        session._database_time = (at + shift, monotonic)
        unplaced = await ledger.deduct(key, None, given_id=f"call {shift}")
        assert abs(unplaced.record.usage_time - datetime.now(UTC)) < timedelta(hours=1)
    spent = ledger.sql("SELECT sum(spent_nanos), sum(held_nanos) FROM balances WHERE spent_nanos <> 0")
    assert spent == [(1_300, 0)]
    assert ledger.sql("SELECT sum(requests) FROM rate_windows") == [(5,)]
