"""SetBudget and ResetSpend: a user's own budget, set in one line, raised and reset."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, insert, select, update

from bursar.v1 import budget_pb2, tenant_service_pb2, user_pb2
from bursar.v1 import budget_service_pb2 as budget_pb
from bursar.v1 import user_service_pb2 as pb
from bursar.v1.budget_pb2 import Budget, BudgetScope
from bursar_server.db.engine import build_engine
from bursar_server.db.tables import alert_states, balances, ledger_entries, rollup_days, users
from bursar_server.db.unit_of_work import UnitOfWork
from bursar_server.kit.caller import Caller, Role
from bursar_server.kit.errors import BursarError, Reason
from bursar_server.kit.ids import DEFAULT_TENANT_ID
from support.admin import (
    ADMIN,
    DEVELOPER,
    OPERATOR,
    USD,
    AdminSide,
    admin_side,
    clock_of,
    record_call,
    version_of,
)
from support.called import called_by

ALICE = "alice@example.com"
DAILY, MONTHLY = budget_pb2.BUDGET_PERIOD_DAILY, budget_pb2.BUDGET_PERIOD_MONTHLY
TOTAL = budget_pb2.BUDGET_PERIOD_TOTAL


@pytest.fixture
def admin(unit_of_work: UnitOfWork) -> AdminSide:
    return admin_side(unit_of_work)


@pytest.fixture
async def elsewhere(database_url: str) -> AsyncIterator[UnitOfWork]:
    """Another process on the same database."""
    engine = build_engine(database_url, pool_size=5)
    yield UnitOfWork(engine)
    await engine.dispose()


async def set_budget(admin: AdminSide, limit: float, caller: Caller = OPERATOR, **fields: Any) -> Budget:
    given: dict[str, Any] = {"user_id": ALICE, "limit_usd": limit} | fields
    request = pb.SetBudgetRequest(**given)
    return (await admin.user_rpc.set_budget(request, called_by(caller))).budget


async def reset(admin: AdminSide, caller: Caller = OPERATOR, **fields: Any) -> list[budget_pb2.BudgetStatus]:
    request = pb.ResetSpendRequest(user_id=ALICE, **fields)
    return list((await admin.user_rpc.reset_spend(request, called_by(caller))).statuses)


async def own_budgets(admin: AdminSide) -> list[Budget]:
    request = budget_pb.ListBudgetsRequest(user_id=ALICE)
    return list((await admin.budget_rpc.list_budgets(request, called_by(OPERATOR))).budgets)


async def status(admin: AdminSide, budget: Budget) -> budget_pb2.BudgetStatus:
    request = budget_pb.GetBudgetStatusRequest(budget_id=budget.budget_id)
    return (await admin.budget_rpc.get_budget_status(request, called_by(OPERATOR))).status


async def spend(admin: AdminSide, budget: Budget, nanos: int, *fired: int, tokens: int = 0) -> None:
    """Let a budget have spent an amount in its current period, with the thresholds that fired for it."""
    period_key = (await status(admin, budget)).period_key
    async with admin.unit_of_work.begin() as conn:
        await conn.execute(
            update(balances)
            .where(balances.c.budget_id == UUID(budget.budget_id), balances.c.period_key == period_key)
            .values(spent_nanos=nanos, spent_tokens=tokens, alerted_pct=max(fired, default=0))
        )
        for pct in fired:
            await conn.execute(
                insert(alert_states).values(
                    tenant_id=DEFAULT_TENANT_ID, budget_id=UUID(budget.budget_id), period_key=period_key,
                    threshold_pct=pct, soft_limit=False, spent_nanos=nanos, spent_tokens=0,
                    fire_time=func.now(),
                )
            )  # fmt: skip


async def fired(admin: AdminSide) -> tuple[int, list[int]]:
    """Return the highest threshold that a balance remembers, and the thresholds that have a row."""
    async with admin.unit_of_work.begin() as conn:
        highest = (await conn.execute(select(func.max(balances.c.alerted_pct)))).scalar_one()
        query = select(alert_states.c.threshold_pct).order_by(alert_states.c.threshold_pct)
        return highest, list((await conn.execute(query)).scalars())


async def refused(coroutine: object) -> BursarError:
    with pytest.raises(BursarError) as caught:
        await coroutine  # type: ignore[misc]
    return caught.value


async def test_an_e_mail_and_a_limit_are_enough(admin: AdminSide) -> None:
    """F044, F192, C24: dollars a day for a user not seen before; HARD and ANY_REMAINING unless said otherwise."""
    budget = await set_budget(admin, 10)
    assert (budget.limit_usd, budget.period, budget.name) == (10, DAILY, "alice@example.com daily")
    assert (budget.enforcement, budget.admission) == (
        budget_pb2.ENFORCEMENT_HARD,
        budget_pb2.ADMISSION_ANY_REMAINING,
    )
    user = (await admin.user_rpc.get_user(pb.GetUserRequest(user_id=ALICE), called_by(OPERATOR))).user
    assert budget.scope == BudgetScope(tenant_id=str(DEFAULT_TENANT_ID), user_id=user.user_id)
    assert user.tenant_id == str(DEFAULT_TENANT_ID)


async def test_setting_again_changes_the_same_budget(admin: AdminSide, unit_of_work: UnitOfWork) -> None:
    """F044, F058, S13: an upsert of the period's budget; absent fields keep what is set; it binds at once."""
    first = await set_budget(
        admin,
        10,
        enforcement=budget_pb2.ENFORCEMENT_SOFT,
        admission=budget_pb2.ADMISSION_UPPER_BOUND,
        reason="why",
    )
    before = await version_of(unit_of_work)
    second = await set_budget(admin, 0)
    assert await version_of(unit_of_work) > before
    assert (second.budget_id, second.limit_usd, second.reason) == (first.budget_id, 0, "why")
    assert second.version > first.version
    assert (second.enforcement, second.admission) == (
        budget_pb2.ENFORCEMENT_SOFT,
        budget_pb2.ADMISSION_UPPER_BOUND,
    )
    month = await set_budget(admin, 100, period=MONTHLY, reason="x")
    assert month.budget_id != first.budget_id
    assert {budget.name for budget in await own_budgets(admin)} == {f"{ALICE} daily", f"{ALICE} monthly"}


async def test_setting_at_once_from_two_processes_makes_one_user_and_one_budget(
    admin: AdminSide, elsewhere: UnitOfWork
) -> None:
    """F044: whoever comes second changes what the first has made."""
    other = admin_side(elsewhere)
    made = await asyncio.gather(*(set_budget(side, 1 + n) for n, side in enumerate([admin, other] * 3)))
    assert len({budget.budget_id for budget in made}) == 1
    assert sorted(budget.version for budget in made) == [1, 2, 3, 4, 5, 6]
    async with admin.unit_of_work.begin() as conn:
        assert (await conn.execute(select(func.count()).select_from(users))).scalar_one() == 1
    assert len(await own_budgets(admin)) == 1


async def test_the_configured_budget_does_not_stand_beside_the_one_that_is_set(
    unit_of_work: UnitOfWork,
) -> None:
    """F043, F044: a new user gets the configured daily budget, unless a daily one is what is being set."""
    admin = admin_side(unit_of_work, default_daily_budget_nanos=5 * USD)
    assert [budget.limit_usd for budget in [await set_budget(admin, 10)]] == [10]
    assert len(await own_budgets(admin)) == 1
    await set_budget(admin, 100, user_id="bob@example.com", period=MONTHLY)
    request = budget_pb.ListBudgetsRequest(user_id="bob@example.com")
    found = await admin.budget_rpc.list_budgets(request, called_by(OPERATOR))
    assert [budget.limit_usd for budget in found.budgets] == [5, 100]
    raised = await set_budget(admin, 7, user_id="bob@example.com")
    assert raised.budget_id == found.budgets[0].budget_id


async def test_each_side_sets_its_own(admin: AdminSide) -> None:
    """F025, F027, F049: an operator's and a tenant's stand side by side, and the tighter one governs."""
    ours = await set_budget(admin, 3, DEVELOPER)
    theirs = await set_budget(admin, 5)
    assert (ours.managed_by, theirs.managed_by) == (
        budget_pb2.MANAGED_BY_TENANT,
        budget_pb2.MANAGED_BY_PLATFORM,
    )
    assert (await set_budget(admin, 4, ADMIN)).budget_id == ours.budget_id
    answer = await admin.user_rpc.get_budget(pb.UserServiceGetBudgetRequest(user_id=ALICE), called_by(ADMIN))
    assert (answer.budget.budget.budget_id, answer.budget_remaining_usd) == (ours.budget_id, 4)


async def test_a_tenants_own_stays_under_the_ceiling(admin: AdminSide) -> None:
    """F028: also where it is set in one line; nothing is made, the user included."""
    ceiling = Budget(scope=BudgetScope(tenant_id="default"), limit_usd=20)
    await admin.budget_rpc.create_budget(budget_pb.CreateBudgetRequest(budget=ceiling), called_by(OPERATOR))
    assert (await refused(set_budget(admin, 21, ADMIN))).reason is Reason.ABOVE_CEILING
    error = await refused(own_budgets(admin))
    assert error.reason is Reason.NOT_FOUND
    assert (await set_budget(admin, 20, ADMIN)).limit_usd == 20


async def test_what_is_disabled_is_enabled_by_setting_it(admin: AdminSide) -> None:
    """S4: a limit that is set holds, from what the period has seen already."""
    budget = await set_budget(admin, 10, period=TOTAL)
    request = budget_pb.UpdateBudgetRequest(
        budget=Budget(budget_id=budget.budget_id, version=1, enabled=False)
    )
    await admin.budget_rpc.update_budget(request, called_by(OPERATOR))
    async with admin.unit_of_work.begin() as conn:
        now = await clock_of(admin.unit_of_work)
        await record_call(conn, now, 3 * USD, user_id=UUID(budget.scope.user_id))
    again = await set_budget(admin, 10, period=TOTAL)
    assert (again.budget_id, again.enabled) == (budget.budget_id, True)
    assert (await status(admin, again)).spent_usd == 3


async def test_budgets_in_tokens_and_shadows_are_left_alone(admin: AdminSide) -> None:
    """C13, S3: SetBudget sets money that binds."""
    await set_budget(admin, 1, period=MONTHLY)
    for budget in (
        Budget(scope=BudgetScope(user_id=ALICE), limit_tokens=1000, name="tokens"),
        Budget(scope=BudgetScope(user_id=ALICE), limit_usd=1, shadow=True, name="shadow"),
    ):
        await admin.budget_rpc.create_budget(
            budget_pb.CreateBudgetRequest(budget=budget), called_by(OPERATOR)
        )
    assert (await set_budget(admin, 9)).name == f"{ALICE} daily"
    assert len(await own_budgets(admin)) == 4


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"limit_usd": None}, "limit_usd"),
        ({"limit_usd": -1}, "limit_usd"),
        ({"limit_usd": float("inf")}, "limit_usd"),
        ({"user_id": ""}, "user_id"),
        ({"user_id": "bob"}, "user_id"),
        ({"user_id": "00000000-0000-7000-8000-0000000000ff"}, "user_id"),
        ({"period": 42}, "period"),
        ({"reason": "x" * 1001}, "reason"),
    ],
)
async def test_what_cannot_be_set_is_refused_by_name(
    admin: AdminSide, fields: dict[str, Any], field: str
) -> None:
    assert (await refused(set_budget(admin, 1, **fields))).field == field


async def test_a_tenant_that_does_not_exist_is_not_found(admin: AdminSide) -> None:
    assert (await refused(set_budget(admin, 1, tenant_id="nowhere"))).reason is Reason.NOT_FOUND


async def test_setting_is_audited_under_both_names(admin: AdminSide) -> None:
    """F173, F169, F177: set_budget with the old limit, and what happened to the budget."""
    budget = await set_budget(admin, 0.1, reason="start")
    await set_budget(admin, 0.25)
    async with admin.unit_of_work.begin() as conn:
        events, _ = await admin.audit.list(conn, {DEFAULT_TENANT_ID}, user_id=UUID(budget.scope.user_id))
    assert [one.event.action for one in events] == [
        "set_budget",
        "BUDGET_CAP_UPDATED",
        "set_budget",
        "BUDGET_CAP_CREATED",
        "create_user",
    ]
    details = events[0].event.details
    assert (details["old_limit_usd"], details["limit_usd"]) == ("0.1", "0.25")
    assert events[2].event.details["old_limit_usd"] == ""
    assert events[4].event.details["auto_provisioned"] is True


@pytest.mark.parametrize(
    ("limit", "stays", "rows"), [(2, 100, [80, 90, 100]), (11, 90, [80, 90]), (12, 80, [80]), (100, 0, [])]
)
async def test_a_raised_limit_arms_the_thresholds_above_it_again(
    admin: AdminSide, limit: int, stays: int, rows: list[int]
) -> None:
    """S21: raising takes no alert back; those above the new utilisation can fire again."""
    budget = await set_budget(admin, 10)
    await spend(admin, budget, 10 * USD, 80, 90, 100)
    await set_budget(admin, limit)
    assert await fired(admin) == (stays, rows)


async def test_a_reset_brings_what_was_spent_to_nothing(admin: AdminSide) -> None:
    """S19, S21, S22, F173: by an entry; rollups and records stay, thresholds can fire again; held stays held."""
    budget = await set_budget(admin, 10, period=TOTAL)
    now = await clock_of(admin.unit_of_work)
    async with admin.unit_of_work.begin() as conn:
        await record_call(conn, now, 12 * USD, user_id=UUID(budget.scope.user_id))
    await spend(admin, budget, 12 * USD, 80, 100, tokens=110)
    before = await version_of(admin.unit_of_work)
    [stands] = await reset(admin, reason="goodwill")
    assert (stands.spent_usd, stands.spent_tokens, stands.remaining_usd) == (0, 0, 10)
    assert await version_of(admin.unit_of_work) > before
    assert await fired(admin) == (0, [])
    async with admin.unit_of_work.begin() as conn:
        query = select(ledger_entries).where(ledger_entries.c.kind == "RESET")
        entry = (await conn.execute(query)).one()
        spent = (await conn.execute(select(func.sum(rollup_days.c.cost_nanos)))).scalar_one()
        events, _ = await admin.audit.list(conn, {DEFAULT_TENANT_ID}, action="reset_spend")
    assert (entry.amount_nanos, entry.amount_tokens) == (-12 * USD, -110)
    assert (entry.account, str(entry.account_id), entry.period_key) == (
        "BUDGET",
        budget.budget_id,
        stands.period_key,
    )
    assert spent == 12 * USD
    assert events[0].event.details["old_spent_usd"] == "12"
    assert events[0].event.details["reason"] == "goodwill"


async def test_a_reset_again_posts_nothing_and_is_audited(admin: AdminSide) -> None:
    """S19, S26."""
    await set_budget(admin, 10)
    await reset(admin)
    async with admin.unit_of_work.begin() as conn:
        assert (await conn.execute(select(func.count()).select_from(ledger_entries))).scalar_one() == 0
        events, _ = await admin.audit.list(conn, {DEFAULT_TENANT_ID}, action="reset_spend")
    assert len(events) == 1


async def test_a_reset_takes_all_own_budgets_or_the_one_that_is_named(admin: AdminSide) -> None:
    """S19: of that user only."""
    day, month = await set_budget(admin, 10), await set_budget(admin, 100, period=MONTHLY)
    other = await set_budget(admin, 1, user_id="bob@example.com")
    for budget in (day, month, other):
        await spend(admin, budget, USD)
    [stands] = await reset(admin, budget_id=month.budget_id)
    assert stands.budget.budget_id == month.budget_id
    assert (await status(admin, day)).spent_usd == 1
    assert len(await reset(admin)) == 2
    assert (await status(admin, day)).spent_usd == 0
    assert (await status(admin, other)).spent_usd == 1
    assert (await refused(reset(admin, budget_id=other.budget_id))).reason is Reason.NOT_FOUND


async def test_a_tenant_resets_what_it_manages(admin: AdminSide) -> None:
    """F025, F027: the operator's budgets are not the tenant's to loosen; the operator resets any."""
    theirs = await set_budget(admin, 10)
    await spend(admin, theirs, USD)
    assert (await refused(reset(admin, ADMIN))).reason is Reason.MANAGED_ELSEWHERE
    ours = await set_budget(admin, 5, ADMIN)
    await spend(admin, ours, USD)
    assert [one.budget.budget_id for one in await reset(admin, ADMIN)] == [ours.budget_id]
    assert (await status(admin, theirs)).spent_usd == 1
    assert len(await reset(admin)) == 2


async def test_whose_budget_it_is_has_to_exist(admin: AdminSide) -> None:
    assert (await refused(reset(admin))).reason is Reason.NOT_FOUND
    request = pb.CreateUserRequest(email=ALICE, role=user_pb2.ROLE_MEMBER)
    await admin.user_rpc.create_user(request, called_by(ADMIN))
    assert (await refused(reset(admin))).reason is Reason.NOT_FOUND
    acme = tenant_service_pb2.CreateTenantRequest(name="acme")
    await admin.tenant_rpc.create_tenant(acme, called_by(OPERATOR))
    stranger = Caller(Role.TENANT_ADMIN, "s", frozenset({UUID(int=7)}))
    assert (await refused(reset(admin, stranger))).reason is Reason.NOT_FOUND


async def test_the_old_periods_balance_is_not_reset(admin: AdminSide) -> None:
    """S19: the current period's spent, and no other."""
    budget = await set_budget(admin, 10)
    yesterday = datetime.fromisoformat("2026-01-01T00:00:00+00:00")
    async with admin.unit_of_work.begin() as conn:
        await conn.execute(
            insert(balances).values(
                tenant_id=DEFAULT_TENANT_ID, budget_id=UUID(budget.budget_id), period_key="2026-01-01T00:00:00Z#1",
                period_start=yesterday, period_end=yesterday + timedelta(days=1), spent_nanos=7,
            )
        )  # fmt: skip
    await reset(admin)
    async with admin.unit_of_work.begin() as conn:
        assert (await conn.execute(select(func.sum(balances.c.spent_nanos)))).scalar_one() == 7
