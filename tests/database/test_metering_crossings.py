"""Calls that cross each other in queues, batches, memories and locks. A call of the tests costs 100 nanos."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from bursar_server.bootstrap import build_rooms
from bursar_server.budgets.model import BudgetDraft, Scope, ScopeKind
from bursar_server.db.engine import build_engine, connect_lane
from bursar_server.kit.clock import SystemClock
from bursar_server.kit.errors import BursarError
from bursar_server.metering import directory
from bursar_server.metering.model import PrincipalRef
from support.admin import OPERATOR
from support.metering import TENANT, Ledger, ledger_on, new_id

NOBODY = PrincipalRef()


async def test_who_waits_for_its_own_budget_lets_others_by_on_one_that_is_free_again(ledger: Ledger) -> None:
    """S10: a call waits in the queues of the budgets that are in its way now, not of those that were."""
    alice, bob = ledger.user("alice@example.com"), ledger.user("bob@example.com")
    of_alice, of_bob = ledger.key(alice, secret="bur_a"), ledger.key(bob, secret="bur_b")
    ledger.budget("TENANT", 250, admission="UPPER_BOUND", max_wait_ms=20_000)
    ledger.budget("USER", 150, user_id=alice, admission="UPPER_BOUND", max_wait_ms=20_000)
    first, of_other = await ledger.check(of_alice), await ledger.check(of_bob)
    waiting = asyncio.create_task(ledger.check(of_alice, may_wait=True))
    await asyncio.sleep(0.1)
    await ledger.release(of_bob, of_other.request_id)
    await asyncio.sleep(0.2)
    assert not waiting.done()
    other = await ledger.check(of_bob)
    await ledger.release(of_alice, first.request_id)
    if other.allowed:
        await ledger.release(of_bob, other.request_id)
    await ledger.release(of_alice, (await asyncio.wait_for(waiting, 2)).request_id)
    assert other.allowed


async def test_a_budget_is_named_once_in_a_denial(ledger: Ledger) -> None:
    """S2: a budget that is held, and that others wait for too, is one denial."""
    key = ledger.key()
    ledger.budget("TENANT", 150, admission="UPPER_BOUND", max_wait_ms=20_000)
    first = await ledger.check(key)
    waiting = asyncio.create_task(ledger.check(key, may_wait=True))
    await asyncio.sleep(0.1)
    denied = await ledger.check(key)
    await ledger.release(key, first.request_id)
    await ledger.release(key, (await waiting).request_id)
    assert [denial.code for denial in denied.denials] == ["BUDGET_HELD"]


async def test_a_deduct_that_names_only_its_call_counts_on_its_tenants_budgets(ledger: Ledger) -> None:
    """S14: what is charged to a tenant never counts on the budgets of another."""
    acme = ledger.tenant("acme")
    key = ledger.key(tenant_id=acme, secret="bur_acme")
    ledger.budget("TENANT", 1_000)
    own = ledger.budget("TENANT", 1_000, tenant_id=acme)
    request_id = new_id()
    await ledger.release(key, request_id)
    answer = await ledger.deduct(NOBODY, request_id)
    assert answer.record.attribution.tenant_id == acme
    assert [line.account_id for line in answer.postings] == [own]


async def test_a_check_and_its_deduct_in_one_batch(ledger: Ledger) -> None:
    """S16: a Deduct that names only its call finds the hold that its own batch made."""
    acme = ledger.tenant("acme")
    key = ledger.key(tenant_id=acme, secret="bur_acme")
    ledger.budget("TENANT", 1_000, tenant_id=acme)
    await ledger.call(key)
    request_id = new_id()
    _, answer = await asyncio.gather(ledger.check(key, request_id), ledger.deduct(NOBODY, request_id))
    assert not answer.unchecked
    assert ledger.sql("SELECT count(*) FROM holds") == [(0,)]


async def test_what_was_fitted_is_told_again(ledger: Ledger) -> None:
    """S16, C03: a repeat of a Check tells again how much output fits, or more is sent for than is held."""
    key = ledger.key()
    ledger.budget("TENANT", 110, admission="UPPER_BOUND", fit_output=True)
    request_id = new_id()
    call = {"max_output_tokens": 2_000, "can_fit_output": True}
    first = await ledger.check(key, request_id, **call)
    again = await ledger.check(key, request_id, **call)
    assert (first.allowed, first.fit_output_tokens, first.held_nanos) == (True, 50, 110)
    assert (again.duplicate, again.fit_output_tokens) == (True, 50)


async def test_an_opening_has_the_calls_whose_ids_are_older_than_their_period(
    ledger: Ledger, database_url: str
) -> None:
    """S4: a budget begins with what its scope spent in the period, whatever the ids of these calls say."""
    key = ledger.key(default_tags={"team": "core"})
    answer = await ledger.deduct(key, new_id(datetime.now(UTC) - timedelta(days=5)))
    engine = build_engine(database_url, pool_size=1)
    rooms = build_rooms(engine, SystemClock())
    draft = BudgetDraft(scope=Scope(ScopeKind.TAG, tag_key="team", tag_value="core"), limit_nanos=1_000)
    async with rooms.unit_of_work.begin() as conn:
        made = await rooms.budgets.create(conn, OPERATOR, TENANT, draft)
        [stands] = await rooms.budgets.standings(conn, [made])
    await engine.dispose()
    counts = answer.record.usage_time >= stands.balance.period_start
    assert stands.spent == (100 if counts else 0)


async def test_calls_of_a_locked_tenant_keep_coming(ledger: Ledger, database_url: str) -> None:
    """S20: also while calls of the locked tenant go on coming in, others are hardly held up."""
    acme = ledger.tenant("acme")
    key, other = ledger.key(), ledger.key(tenant_id=acme, secret="bur_acme")
    ledger.budget("TENANT", 10**6)
    ledger.budget("TENANT", 10**6, tenant_id=acme)
    await asyncio.gather(ledger.call(key), ledger.call(other))
    blocked: list[asyncio.Task[Any]] = []
    seconds = []

    async def keep_coming() -> None:
        while True:
            blocked.append(asyncio.create_task(ledger.deduct(key, new_id())))
            await asyncio.sleep(0.05)

    with psycopg.connect(database_url) as somebody:
        somebody.execute("SELECT 1 FROM balances WHERE tenant_id = %s FOR UPDATE", (TENANT,))
        source = asyncio.create_task(keep_coming())
        await asyncio.sleep(1)
        for _ in range(8):
            began = time.monotonic()
            await ledger.call(other)
            seconds.append(time.monotonic() - began)
        source.cancel()
    await asyncio.gather(*blocked, return_exceptions=True)
    assert sorted(seconds)[4] < 0.4, seconds


async def test_a_check_that_is_too_late_leaves_no_hold_behind_a_lock(
    ledger: Ledger, database_url: str
) -> None:
    """S9: a Check whose deadline passed while its rows were locked is dropped."""
    key = ledger.key()
    ledger.budget("TENANT", 10**6, admission="UPPER_BOUND")
    await ledger.call(key)
    with psycopg.connect(database_url) as somebody:
        somebody.execute("SELECT 1 FROM balances FOR UPDATE")
        call = ledger.check_call(key, deadline=time.monotonic() + 0.3)
        check = asyncio.create_task(ledger.service.check(call))
        await asyncio.sleep(1.2)
    with pytest.raises(BursarError):
        await check
    assert ledger.sql("SELECT count(*) FROM holds") == [(0,)]


async def test_a_full_memory_forgets_nobody_who_is_asked_for(
    ledger: Ledger, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S13: principals that a batch asks for stay, however full the memory is."""
    monkeypatch.setattr(directory, "MAX_SUBJECTS", 2)
    keys = [ledger.key(secret=f"bur_{number}") for number in range(6)]
    memory = directory.Directory()
    with connect_lane(database_url) as connection:
        memory.subjects(connection, keys[:1])
        memory.subjects(connection, keys[1:4])
        assert set(memory.subjects(connection, [keys[0], keys[5]])) == {keys[0], keys[5]}
        memory.subjects(connection, [keys[0], keys[4]])


async def test_a_lane_outlives_whoever_watches_it(ledger: Ledger) -> None:
    """S20: what follows a commit (counts, notices to people) can fail; calls are answered all the same."""
    key = ledger.key()

    def fail(*_: object) -> None:
        raise RuntimeError("nobody could be told")

    [lane] = ledger.service._lanes
    lane._batches._on_batch = fail
    for _ in range(2):
        answer = await asyncio.wait_for(ledger.call(key), 5)
        assert answer.cost.total_nanos == 100
    assert lane.alive


async def test_a_released_call_is_denied_however_its_release_crossed_it(
    ledger: Ledger, database_url: str
) -> None:
    """S17: a release that crossed its Check wins: a repeat of the Check is denied, and nothing is held for it."""
    key = ledger.key()
    ledger.budget("TENANT", 1_000, admission="UPPER_BOUND")
    request_id = new_id()
    async with ledger_on(database_url) as other:
        with psycopg.connect(database_url) as gate:
            gate.execute("LOCK TABLE holds IN SHARE MODE")
            check = asyncio.create_task(other.check(key, request_id))
            await asyncio.sleep(0.25)
            await ledger.release(key, request_id)
        await check
    again = await ledger.check(key, request_id)
    assert [denial.code for denial in again.denials] == ["REQUEST_RELEASED"]
    assert ledger.sql("SELECT held_nanos FROM balances") == [(0,)]


async def test_who_goes_away_while_it_waits_waits_no_more(ledger: Ledger) -> None:
    """S10: a Check whose caller went away stands in nobody's way, and holds nothing when its turn comes."""
    key = ledger.key()
    ledger.budget("TENANT", 150, admission="UPPER_BOUND", max_wait_ms=20_000)
    first = await ledger.check(key)
    gone = asyncio.create_task(ledger.check(key, may_wait=True))
    await asyncio.sleep(0.2)
    assert ledger.sql("SELECT count(*) FROM check_waits") == [(1,)]
    gone.cancel()
    await asyncio.wait([gone])
    await asyncio.sleep(0.2)
    assert ledger.sql("SELECT count(*) FROM check_waits") == [(0,)]
    await ledger.release(key, first.request_id)
    assert (await ledger.check(key)).allowed
    assert ledger.sql("SELECT held_nanos FROM balances") == [(100,)]


async def test_a_process_that_was_killed_is_soon_in_nobodys_way(ledger: Ledger, database_url: str) -> None:
    """S10: the places of a process that is gone last three seconds; those of one that lives last as long as they wait."""
    key = ledger.key()
    budget_id = ledger.budget("TENANT", 150, admission="UPPER_BOUND", max_wait_ms=20_000)
    first = await ledger.check(key)
    waiting = asyncio.create_task(ledger.check(key, may_wait=True))
    await asyncio.sleep(0.1)
    ledger.sql(
        "INSERT INTO check_waits SELECT tenant_id, budget_id, %s, wait_since - interval '1 second', expire_time"
        " FROM check_waits",
        new_id(),
    )
    began = time.monotonic()
    await ledger.release(key, first.request_id)
    async with ledger_on(database_url) as other:
        behind = asyncio.create_task(other.check(key, may_wait=True))
        answer = await asyncio.wait_for(waiting, 6)
        assert 1 < time.monotonic() - began < 5
        await asyncio.sleep(3.5)
        rows = ledger.sql("SELECT budget_id FROM check_waits WHERE expire_time > clock_timestamp()")
        assert rows == [(budget_id,)]
        await ledger.release(key, answer.request_id)
        await other.release(key, (await asyncio.wait_for(behind, 2)).request_id)


async def test_an_answer_that_comes_just_after_its_caller_left(ledger: Ledger) -> None:
    """S17: a Check that was decided all the same is released by its caller's outbox, like any whose answer was lost."""
    key = ledger.key()
    ledger.budget("TENANT", 1_000, admission="UPPER_BOUND")
    request_id = new_id()
    check = asyncio.create_task(ledger.check(key, request_id))
    await asyncio.sleep(0)
    check.cancel()
    await asyncio.wait([check])
    await ledger.release(key, request_id)
    assert ledger.sql("SELECT coalesce(sum(held_nanos), 0) FROM balances") == [(0,)]
    assert [denial.code for denial in (await ledger.check(key, request_id)).denials] == ["REQUEST_RELEASED"]


async def test_a_repeat_in_the_same_batch_names_only_its_call(ledger: Ledger) -> None:
    """S16: a Deduct that nobody was asked about is repeated at once, and the repeat names nothing but its id."""
    acme = ledger.tenant("acme")
    key = ledger.key(tenant_id=acme, secret="bur_acme")
    calls = [new_id() for _ in range(10)]
    answers = await asyncio.gather(*(ledger.deduct(ref, call) for call in calls for ref in (key, NOBODY)))
    assert [answer.duplicate for answer in answers] == [False, True] * 10
    assert ledger.sql("SELECT tenant_id, count(*) FROM usage_records GROUP BY 1") == [(acme, 10)]


async def test_a_batch_that_begins_again_knows_its_statements(ledger: Ledger) -> None:
    """S13: what a lane has prepared outlives a rolled-back batch, however often the configuration changes under it."""
    key = ledger.key()
    for _ in range(3):
        for _ in range(
            10
        ):  # psycopg itself prepares what it has seen often, and would forget all with a ROLLBACK
            assert (await ledger.deduct(NOBODY, new_id())).unchecked
        ledger.bump(TENANT)
        assert (await ledger.check(key)).allowed
        assert (await ledger.deduct(NOBODY, new_id())).unchecked
