"""Many callers at once, in two control planes on one database. A call of the tests costs 100 nanos."""

import asyncio
import multiprocessing
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from bursar_server.bootstrap import Rooms, build_rooms
from bursar_server.budgets.model import BudgetDraft
from bursar_server.db.connection import Connection
from bursar_server.db.engine import build_engine, connect_lane
from bursar_server.keys.model import KeyDraft
from bursar_server.kit.clock import SystemClock
from bursar_server.kit.errors import BursarError, Reason
from bursar_server.kit.ids import sha256_hex
from bursar_server.metering.lane import Lane
from bursar_server.metering.model import CheckAnswer, Policy, PrincipalRef
from bursar_server.metering.observer import MeteringObserver
from bursar_server.metering.service import MeteringService
from bursar_server.notify.service import NotifyService
from bursar_server.telemetry import Telemetry
from support.admin import OPERATOR
from support.metering import PLATFORM, TENANT, Ledger, ledger_on, new_id

CALL_NANOS = 100
DAILY_NANOS = 10**9
EXPIRE = "UPDATE holds SET lease_expire_time = now() - interval '1 second'"


@pytest.fixture
async def planes(database_url: str) -> AsyncIterator[list[Ledger]]:
    """Two sets of lanes that know nothing of each other: what two processes are to the database."""
    async with ledger_on(database_url) as one, ledger_on(database_url, lanes=2) as other:
        yield [one, other]
        one.assert_books()


@pytest.fixture
async def rooms(database_url: str) -> AsyncIterator[Rooms]:
    engine = build_engine(database_url, pool_size=8)
    yield build_rooms(engine, SystemClock(), DAILY_NANOS)
    await engine.dispose()


def fresh_subject(ledger: Ledger, scope: str, limit_nanos: int, **columns: Any) -> PrincipalRef:
    """Make a budget of a scope, and a key that it counts; nobody has asked about either before."""
    alice = ledger.user("alice@example.com")
    key = ledger.key(alice, default_tags={"team": "core"})
    [(key_id,)] = ledger.sql("SELECT api_key_id FROM api_keys")
    outer = ledger.group("company")
    ledger.group("team", alice, parent=outer)
    subject: dict[str, dict[str, Any]] = {
        "GLOBAL": {"tenant_id": PLATFORM}, "TENANT": {}, "GROUP": {"group_id": outer}, "USER": {"user_id": alice},
        "KEY": {"api_key_id": key_id}, "TAG": {"tag_key": "team", "tag_value": "core"},
    }  # fmt: skip
    ledger.budget(scope, limit_nanos, **subject[scope], **columns)
    return key


async def ask_until_decided(ledger: Ledger, key: PrincipalRef) -> CheckAnswer:
    """Ask again as long as only other calls' holds are in the way, as an app does that is told 429."""
    while True:
        answer: CheckAnswer = await ledger.check(key)
        if answer.allowed or answer.denials[0].code != "BUDGET_HELD":
            return answer
        await asyncio.sleep(random.uniform(0.001, 0.02))


@pytest.mark.parametrize("scope", ["GLOBAL", "TENANT", "GROUP", "USER", "KEY", "TAG"])
async def test_an_upper_bound_is_exact_on_a_fresh_subject(planes: list[Ledger], scope: str) -> None:
    """C03, S10: of 300 calls at once, on two planes, a budget worth 100 never holds more and serves exactly 100."""
    key = fresh_subject(planes[0], scope, 100 * CALL_NANOS, admission="UPPER_BOUND")
    first = await asyncio.gather(*(planes[number % 2].check(key) for number in range(300)))
    allowed = [answer.request_id for answer in first if answer.allowed]
    assert len(allowed) == 100
    assert {answer.denials[0].code for answer in first if not answer.allowed} == {"BUDGET_HELD"}
    served = 0

    async def end(number: int, request_id: UUID) -> None:
        """Every other of the first calls is never sent, so that another one can be."""
        nonlocal served
        if number % 2:
            await planes[number // 2 % 2].release(key, request_id)
        else:
            await planes[number // 2 % 2].deduct(key, request_id)
            served += 1

    async def another(number: int) -> None:
        nonlocal served
        answer = await ask_until_decided(planes[number % 2], key)
        if answer.allowed:
            await planes[number % 2].deduct(key, answer.request_id)
            served += 1

    ends = (end(number, request_id) for number, request_id in enumerate(allowed))
    await asyncio.gather(*ends, *(another(number) for number in range(200)))
    assert served == 100
    assert planes[0].sql("SELECT spent_nanos, held_nanos FROM balances") == [(100 * CALL_NANOS, 0)]


@pytest.mark.parametrize("scope", ["GLOBAL", "TENANT", "GROUP", "USER", "KEY", "TAG"])
async def test_any_remaining_overshoots_by_what_is_in_flight(planes: list[Ledger], scope: str) -> None:
    """C03, S14: with ANY_REMAINING the overshoot is at most what 16 callers have in flight, and is told to the nano."""
    limit, in_flight, overage = 20 * CALL_NANOS - 1, 16, 0
    key = fresh_subject(planes[0], scope, limit)

    async def caller(number: int) -> None:
        nonlocal overage
        while (answer := await planes[number % 2].check(key)).allowed:
            charged = await planes[number % 2].deduct(key, answer.request_id)
            overage += charged.overage_nanos

    await asyncio.gather(*(caller(number) for number in range(in_flight)))
    [(spent, held)] = planes[0].sql("SELECT spent_nanos, held_nanos FROM balances")
    assert held == 0
    assert limit <= spent < limit + in_flight * CALL_NANOS
    assert overage == spent - limit
    telemetry = Telemetry()
    observer = MeteringObserver(telemetry, NotifyService())
    for outcome in (outcome for plane in planes for outcome in plane.outcomes):
        observer.batch_committed(outcome, len(outcome.results))
    [told] = [
        line for line in telemetry.prometheus().splitlines() if line.startswith("bursar_overshoot_usd ")
    ]
    assert round(Decimal(told.split()[1]) * 10**9) == overage


async def test_grants_are_not_spent_twice(planes: list[Ledger]) -> None:
    """S6, S7: calls of one user at once on two planes share its grants, and its budget bears the rest."""
    alice = planes[0].user("alice@example.com")
    key = planes[0].key(alice)
    planes[0].budget("USER", 40 * CALL_NANOS, user_id=alice, admission="UPPER_BOUND")
    for days in (3, 1, 2):
        planes[0].grant(alice, 10 * CALL_NANOS + 50, expires_in=timedelta(days=days))

    async def one(number: int) -> int:
        answer = await ask_until_decided(planes[number % 2], key)
        if not answer.allowed:
            return 0
        charged = await planes[number % 2].deduct(key, answer.request_id)
        assert sum(line.nanos for line in charged.postings) == CALL_NANOS
        return 1

    assert sum(await asyncio.gather(*(one(number) for number in range(150)))) == 71
    assert planes[0].sql("SELECT DISTINCT spent_nanos, held_nanos FROM grants") == [(10 * CALL_NANOS + 50, 0)]
    assert planes[0].sql("SELECT spent_nanos, held_nanos FROM balances") == [(39 * CALL_NANOS + 50, 0)]


async def test_a_user_is_made_once(database_url: str, planes: list[Ledger], rooms: Rooms) -> None:
    """F043: the first calls of an e-mail, many at once on two planes, make one user with one daily budget."""

    async def ensure(tenant_id: UUID, email: str) -> None:
        async with rooms.unit_of_work.begin() as conn:
            await rooms.users.ensure(conn, tenant_id, email, "system")

    key = planes[0].key(act_for_users=True)
    ref = PrincipalRef(key.api_key_sha256, "new@example.com")
    async with services(database_url, ensure) as found:
        answers = await asyncio.gather(
            *(found[number % 2].check(planes[0].check_call(ref)) for number in range(40))
        )
    assert all(answer.allowed for answer in answers)
    [(user_id,)] = planes[0].sql("SELECT user_id FROM users")
    assert {answer.subject.user_id for answer in answers if answer.subject} == {user_id}
    assert planes[0].sql("SELECT limit_nanos FROM budgets") == [(DAILY_NANOS,)]
    assert planes[0].sql("SELECT count(*), count(DISTINCT leg_budget_ids) FROM holds") == [(40, 1)]
    await asyncio.gather(*(planes[0].deduct(ref, answer.request_id) for answer in answers))
    assert planes[0].sql("SELECT spent_nanos FROM balances") == [(40 * CALL_NANOS,)]


@asynccontextmanager
async def services(
    url: str, ensure: Callable[[UUID, str], Awaitable[object]]
) -> AsyncIterator[list[MeteringService]]:
    """Give two metering services with a lane each, which make users as a control plane does."""
    policy, clock = Policy(), SystemClock()
    lanes = [Lane(f"plane-{n}", lambda: connect_lane(url), policy, clock, lambda *_: None) for n in range(2)]
    for lane in lanes:
        lane.start()
    try:
        yield [MeteringService([lane], ensure, policy, clock) for lane in lanes]
    finally:
        for lane in lanes:
            await lane.stop()


async def test_a_key_works_from_its_first_instant(planes: list[Ledger], rooms: Rooms) -> None:
    """S13: keys are used on both planes in the instant in which they were made, while their tenant is busy."""
    busy = planes[0].key(secret="bur_busy")
    stop = asyncio.Event()

    async def go_on(number: int) -> None:
        while not stop.is_set():
            await planes[number % 2].call(busy)

    callers = [asyncio.create_task(go_on(number)) for number in range(6)]
    for number in range(10):
        async with rooms.unit_of_work.begin() as conn:
            _, secret = await rooms.keys.create(conn, OPERATOR, TENANT, KeyDraft(f"app {number}"))
        ref = PrincipalRef(api_key_sha256=sha256_hex(secret))
        answers = await asyncio.gather(*(planes[side % 2].check(ref) for side in range(6)))
        assert all(answer.allowed for answer in answers)
    stop.set()
    await asyncio.gather(*callers)


async def test_what_is_delivered_many_times_is_charged_once(planes: list[Ledger]) -> None:
    """S16, S18: Checks, Deducts and expiries of the same calls, on both planes at once, are each one call."""
    ledger = planes[0]
    alice = ledger.user("alice@example.com")
    key = ledger.key(alice)
    ledger.budget("USER", 10**6, user_id=alice, admission="UPPER_BOUND")
    ledger.grant(alice, 1_234)
    calls = [new_id() for _ in range(40)]
    for answer in await asyncio.gather(*(plane.check(key, call) for call in calls for plane in planes)):
        assert answer.allowed
    assert ledger.sql("SELECT count(*) FROM holds") == [(40,)]
    ledger.sql(EXPIRE)

    async def deliver(call: UUID, plane: Ledger) -> Any:
        await asyncio.sleep(random.uniform(0, 0.05))
        return await plane.deduct(key, call, 10, 20)

    answers, *_ = await asyncio.gather(
        asyncio.gather(*(deliver(call, plane) for call in calls for plane in planes * 2)),
        *(plane.service.sweep_once() for plane in planes * 2),
    )
    assert {answer.cost.total_nanos for answer in answers} == {50}
    assert sum(not answer.duplicate for answer in answers) == 40
    assert ledger.sql("SELECT sum(cost_nanos) FROM usage_records") == [(40 * 50,)]
    assert ledger.sql("SELECT sum(requests) FROM rollup_days") == [(40,)]


async def test_the_books_are_right_in_a_storm(planes: list[Ledger], rooms: Rooms) -> None:
    """S20, S26: calls that end in every way while budgets and grants change: nothing is lost, doubled or refused."""
    ledger = planes[0]
    alice, bob = ledger.user("alice@example.com"), ledger.user("bob@example.com")
    keys = [ledger.key(alice, secret="bur_a"), ledger.key(bob, secret="bur_b")]
    budgets = [
        ledger.budget("USER", 10**5, user_id=alice, admission="UPPER_BOUND"),
        ledger.budget("TENANT", 10**6, admission="EXPECTED"),
        ledger.budget("GLOBAL", 10**6, tenant_id=PLATFORM),
    ]
    stop = asyncio.Event()
    charged: dict[UUID, int] = {}

    async def caller(number: int) -> None:
        plane, key, dice = planes[number % 2], keys[number // 2 % 2], random.Random(number)
        while not stop.is_set():
            answer = await plane.check(key)
            if not answer.allowed:
                continue
            if (way := dice.random()) < 0.15:
                await plane.release(key, answer.request_id)
                continue
            if way < 0.3:
                ledger.sql(EXPIRE + " WHERE request_id = %s", answer.request_id)
                await planes[(number + 1) % 2].service.sweep_once()
            tokens = dice.randrange(60)
            for plane_again in planes if way > 0.8 else [plane]:
                cost = (await plane_again.deduct(key, answer.request_id, 10, tokens)).cost
                charged[answer.request_id] = cost.total_nanos

    async def admin() -> None:
        for number in range(12):
            limit = BudgetDraft(limit_nanos=10**5 + number)

            async def work(conn: Connection, limit: BudgetDraft = limit, number: int = number) -> None:
                await rooms.budgets.update(conn, OPERATOR, budgets[number % 3], 0, limit)
                user = await rooms.users.resolve(conn, OPERATOR, "alice@example.com")
                expires = datetime.now(UTC) + timedelta(days=1)
                grant = await rooms.grants.create(conn, OPERATOR, user, amount_nanos=333, expires_at=expires)
                if number % 2:
                    await rooms.grants.revoke(conn, OPERATOR, grant.grant_id)
                if number % 4 == 3:
                    await rooms.budgets.reset(conn, OPERATOR, user)

            async with rooms.unit_of_work.begin() as conn:
                await work(conn)
            await asyncio.sleep(0.05)

    callers = [asyncio.create_task(caller(number)) for number in range(12)]
    await admin()
    stop.set()
    await asyncio.gather(*callers)
    found = ledger.sql(
        "SELECT request_id, sum(cost_nanos)::bigint FROM usage_records WHERE cost_nanos <> 0 GROUP BY 1"
    )
    assert dict(found) == {call: nanos for call, nanos in charged.items() if nanos}
    assert ledger.sql("SELECT sum(held_nanos) FROM balances") == [(0,)]
    assert ledger.sql("SELECT count(*) FROM holds") == [(0,)]


def _calls_of_a_process(url: str, sha256: str, calls: int, at_once: int) -> int:
    """In a process of its own: make so many calls, wait where others hold the budget; return how many were served."""

    async def work() -> int:
        gate = asyncio.Semaphore(at_once)
        key = PrincipalRef(api_key_sha256=sha256)
        async with ledger_on(url) as ledger:
            ledger.sql("INSERT INTO ready VALUES (pg_backend_pid())")
            while ledger.sql("SELECT count(*) FROM ready") != [(2,)]:  # noqa: ASYNC110  (another process)
                await asyncio.sleep(0.01)

            async def one() -> bool:
                async with gate:
                    check = await ledger.check(key, may_wait=True, max_output_tokens=95)
                    if check.allowed:
                        await asyncio.sleep(random.uniform(0, 0.02))
                        await ledger.deduct(key, check.request_id)
                    return bool(check.allowed)

            return sum(await asyncio.gather(*(one() for _ in range(calls))))

    return asyncio.run(work())


async def test_a_budget_worth_100_calls_in_two_processes(database_url: str) -> None:
    """C03, S10: of 1,000 calls of two processes, 32 at a time in each, exactly 100 get through; held is 0 in the end."""
    async with ledger_on(database_url) as ledger:
        ledger.sql("CREATE TABLE ready (process int)")
        # A call may cost twice what it does: it waits for others as long as one of these has room.
        key = fresh_subject(
            ledger, "TENANT", 100 * CALL_NANOS + 100, admission="UPPER_BOUND", max_wait_ms=30_000
        )
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
            loop = asyncio.get_running_loop()
            served = await asyncio.gather(
                *(
                    loop.run_in_executor(pool, _calls_of_a_process, database_url, key.api_key_sha256, 500, 32)
                    for _ in range(2)
                )
            )
        assert sum(served) == 100
        assert min(served) > 0
        assert ledger.sql("SELECT spent_nanos, held_nanos FROM balances") == [(100 * CALL_NANOS, 0)]
        ledger.assert_books()


async def test_a_queue_that_is_full_says_so(ledger_of_one: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """S20: a lane takes no more than it can remember; who is turned away is told to try again."""
    monkeypatch.setattr("bursar_server.metering.inbox.MAX_WAITING", 10)
    key = ledger_of_one.key()
    answers = await asyncio.gather(
        *(ledger_of_one.deduct(key, new_id()) for _ in range(400)), return_exceptions=True
    )
    refused = [answer for answer in answers if isinstance(answer, BursarError)]
    assert {error.reason for error in refused} == {Reason.OVERLOADED}
    charged = len(answers) - len(refused)
    assert ledger_of_one.sql("SELECT count(*) FROM usage_records") == [(charged,)]


@pytest.fixture
async def ledger_of_one(database_url: str) -> AsyncIterator[Ledger]:
    async with ledger_on(database_url) as ledger:
        yield ledger
        ledger.assert_books()
