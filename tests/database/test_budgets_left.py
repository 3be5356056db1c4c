"""Where budgets stand, and what a user has left: GetBudgetStatus, GetBudget and GetMyBudget."""

from collections.abc import Mapping
from datetime import UTC, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import update
from sqlalchemy.dialects.postgresql import insert as upsert

from bursar.v1 import budget_pb2, tenant_service_pb2, user_pb2
from bursar.v1 import budget_service_pb2 as budget_pb
from bursar.v1 import user_service_pb2 as pb
from bursar.v1.budget_pb2 import Budget, BudgetScope
from bursar_server.db.tables import balances
from bursar_server.db.unit_of_work import UnitOfWork
from bursar_server.kit.caller import Caller
from bursar_server.kit.errors import BursarError, Reason
from bursar_server.kit.ids import DEFAULT_TENANT_ID, PLATFORM_TENANT_ID
from bursar_server.kit.periods import PeriodKind, period_at, period_key
from support.admin import ADMIN, OPERATOR, USD, AdminSide, admin_side, clock_of
from support.called import called_by

ALICE = "alice@example.com"
DEFAULT = BudgetScope(tenant_id="default")


@pytest.fixture
def admin(unit_of_work: UnitOfWork) -> AdminSide:
    return admin_side(unit_of_work)


async def create(admin: AdminSide, scope: BudgetScope, spent: Mapping[str, object], **fields: Any) -> Budget:
    """Make a budget that has spent or holds amounts in its current period already."""
    if "limit_tokens" not in fields:
        fields.setdefault("limit_usd", 10)
    request = budget_pb.CreateBudgetRequest(budget=Budget(scope=scope, **fields))
    budget = (await admin.budget_rpc.create_budget(request, called_by(OPERATOR))).budget
    if spent:
        tenant_id = PLATFORM_TENANT_ID if scope == BudgetScope() else DEFAULT_TENANT_ID
        async with admin.unit_of_work.begin() as conn:
            changed = update(balances).where(balances.c.budget_id == UUID(budget.budget_id)).values(**spent)
            assert (await conn.execute(changed.where(balances.c.tenant_id == tenant_id))).rowcount == 1
    return budget


async def status(admin: AdminSide, budget: Budget) -> budget_pb2.BudgetStatus:
    request = budget_pb.GetBudgetStatusRequest(budget_id=budget.budget_id)
    return (await admin.budget_rpc.get_budget_status(request, called_by(OPERATOR))).status


async def person(admin: AdminSide, email: str = ALICE, **fields: Any) -> user_pb2.User:
    request = pb.CreateUserRequest(email=email, **fields)
    return (await admin.user_rpc.create_user(request, called_by(OPERATOR))).user


async def caller_of(admin: AdminSide, email: str = ALICE) -> Caller:
    _, secret = await admin.tokens.create(OPERATOR, user=email)
    caller = await admin.tokens.authenticate(secret)
    assert caller is not None
    return caller


async def mine(admin: AdminSide, caller: Caller) -> pb.GetMyBudgetResponse:
    return await admin.user_rpc.get_my_budget(pb.GetMyBudgetRequest(), called_by(caller))


async def grant(admin: AdminSide, amount: float) -> None:
    request = pb.CreateGrantRequest(user_id=ALICE, amount_usd=amount)
    request.expires_at.FromDatetime(await clock_of(admin.unit_of_work) + timedelta(days=1))
    await admin.user_rpc.create_grant(request, called_by(OPERATOR))


async def test_a_status_says_it_all(admin: AdminSide) -> None:
    """F067, F071, F073, S10: spend, limit, the gap between them, the period, and how far it is spent."""
    spent = {"spent_nanos": 4 * USD, "held_nanos": USD, "spent_tokens": 7, "shadow_denials": 2}
    budget = await create(admin, DEFAULT, spent, period=budget_pb2.BUDGET_PERIOD_MONTHLY)
    stands = await status(admin, budget)
    assert stands.budget == budget
    assert (stands.spent_usd, stands.held_usd, stands.remaining_usd) == (4, 1, 5)
    assert (stands.spent_nanos, stands.held_nanos, stands.limit_nanos) == (4 * USD, USD, 10 * USD)
    assert (stands.spent_tokens, stands.shadow_denials, stands.utilization_pct) == (7, 2, 40)
    assert stands.color == budget_pb2.BUDGET_COLOR_GREEN
    period = period_at(PeriodKind.MONTHLY, 0, "UTC", await clock_of(admin.unit_of_work))
    assert stands.period_start_time.ToDatetime(UTC) == period.start
    assert stands.period_end_time.ToDatetime(UTC) == period.end
    assert stands.period_key == period_key(period.start, 1)


@pytest.mark.parametrize(
    ("spent", "color", "pct", "remaining"),
    [
        (7 * USD, "GREEN", 70, 3),
        (8 * USD, "AMBER", 80, 2),
        (10 * USD, "RED", 100, 0),
        (15 * USD, "RED", 150, 0),
    ],
)
async def test_how_far_it_is_spent(
    admin: AdminSide, spent: int, color: str, pct: float, remaining: float
) -> None:
    """F069, F070, S22: amber at the soft limit, red at the limit; remaining is never below 0."""
    stands = await status(admin, await create(admin, DEFAULT, {"spent_nanos": spent}))
    assert budget_pb2.BudgetColor.Name(stands.color) == f"BUDGET_COLOR_{color}"
    assert (stands.utilization_pct, stands.remaining_usd) == (pct, remaining)


async def test_a_period_without_a_row_is_empty(admin: AdminSide) -> None:
    """A new period is a new row, and there is none before its first call."""
    budget = await create(admin, DEFAULT, {"spent_nanos": 5, "period_key": "2020-01-01T00:00:00Z#1"})
    stands = await status(admin, budget)
    assert (stands.spent_nanos, stands.held_nanos, stands.remaining_usd) == (0, 0, 10)
    assert all(stands.HasField(name) for name in ("spent_usd", "held_usd", "spent_tokens", "shadow_denials"))


async def test_a_total_never_ends(admin: AdminSide) -> None:
    """C01: TOTAL never resets."""
    stands = await status(admin, await create(admin, DEFAULT, {}, period=budget_pb2.BUDGET_PERIOD_TOTAL))
    assert not stands.HasField("period_end_time")
    assert stands.period_key == "1970-01-01T00:00:00Z#1"


async def test_a_person_reads_its_own_budget(admin: AdminSide) -> None:
    """F072, F008: what grants and the daily budget leave together, when it starts anew, and whose it is."""
    user = await person(admin)
    await create(admin, BudgetScope(user_id=ALICE), {"spent_nanos": 4 * USD, "held_nanos": USD})
    await grant(admin, 2.5)
    found = await mine(admin, await caller_of(admin))
    assert found.budget.remaining_usd == found.budget_remaining_usd == 5
    assert (found.grants_remaining_usd, found.total_remaining_usd) == (2.5, 7.5)
    assert found.effective_remaining_usd == 7.5
    assert [one.remaining_usd for one in found.active_grants] == [2.5]
    assert found.user == user
    assert found.period_key == found.budget.period_key
    assert found.period_reset_time == found.budget.period_end_time
    [binding] = found.binding_budgets
    assert (binding.scope, binding.limit_usd, binding.spent_usd, binding.exhausted) == ("user", 10, 4, False)


async def test_a_users_own_key_reads_it_too(admin: AdminSide) -> None:
    """Contract: a user's own `bur_` key may call GetMyBudget; the budget is the person's, whichever key (F066)."""
    user = await person(admin)
    await create(admin, BudgetScope(user_id=ALICE), {"spent_nanos": 4 * USD})
    for name in ("one", "two"):
        request = tenant_service_pb2.CreateApiKeyRequest(name=name, user_id=user.user_id)
        made = await admin.tenant_rpc.create_api_key(request, called_by(OPERATOR))
        caller = await admin.tokens.authenticate(made.secret)
        assert caller is not None
        assert (await mine(admin, caller)).budget_remaining_usd == 6


async def test_without_limits_nothing_is_said(admin: AdminSide) -> None:
    """C10: absent is no limit."""
    await person(admin)
    found = await mine(admin, await caller_of(admin))
    assert not any(
        found.HasField(name)
        for name in ("budget", "total_remaining_usd", "budget_remaining_usd", "effective_remaining_usd")
    )
    assert found.HasField("grants_remaining_usd")
    assert not found.binding_budgets


async def layers(admin: AdminSide) -> list[str]:
    """Make a budget at every layer of alice's, and return their names, strictest first."""
    user = await person(admin)
    parent = tenant_service_pb2.CreateGroupRequest(name="engineering")
    top = (await admin.tenant_rpc.create_group(parent, called_by(OPERATOR))).group.group_id
    child = tenant_service_pb2.CreateGroupRequest(name="core", parent_group_id=top, user_ids=[user.user_id])
    await admin.tenant_rpc.create_group(child, called_by(OPERATOR))
    other = tenant_service_pb2.CreateGroupRequest(name="sales")
    sales = (await admin.tenant_rpc.create_group(other, called_by(OPERATOR))).group.group_id
    await create(admin, BudgetScope(), {"spent_nanos": 9 * USD}, name="everyone")
    await create(admin, DEFAULT, {"spent_nanos": 7 * USD}, name="tenant")
    await create(admin, BudgetScope(group_id=top), {"spent_nanos": 5 * USD}, name="group")
    await create(admin, BudgetScope(user_id=ALICE), {}, name="own")
    # None of these binds a call of alice's for sure.
    await create(admin, BudgetScope(group_id=sales), {}, limit_usd=0, name="other group")
    await create(admin, BudgetScope(tenant_id="default", tag_key="a", tag_value="b"), {}, limit_usd=0)
    await create(admin, DEFAULT, {}, limit_usd=0, shadow=True, name="shadow")
    await create(admin, DEFAULT, {}, limit_usd=0, enforcement=budget_pb2.ENFORCEMENT_SOFT, name="soft")
    await create(admin, DEFAULT, {}, limit_usd=0, enabled=False, name="disabled")
    return ["everyone", "tenant", "group", "own"]


async def test_every_layer_counts_and_a_member_reads_its_own(admin: AdminSide) -> None:
    """S2, F049, F050, C08, F013: of others' budgets only the kind and when they start anew."""
    await layers(admin)
    found = await mine(admin, await caller_of(admin))
    assert found.effective_remaining_usd == 1
    assert [one.scope for one in found.binding_budgets] == ["global", "tenant", "group", "user"]
    for one in found.binding_budgets[:3]:
        assert (one.budget_id, one.name) == ("", "")
        assert not any(one.HasField(name) for name in ("limit_usd", "spent_usd", "remaining_usd"))
        assert one.HasField("period_reset_time")
    assert (found.binding_budgets[3].name, found.binding_budgets[3].remaining_usd) == ("own", 10)


async def test_what_an_admin_reads_of_a_users_layers(admin: AdminSide) -> None:
    """S2, C08: the tenant's roles read the tenant's figures, the operator all."""
    names = await layers(admin)
    request = pb.UserServiceGetBudgetRequest(user_id=ALICE)
    found = await admin.user_rpc.get_budget(request, called_by(ADMIN))
    assert [one.name for one in found.binding_budgets] == ["", *names[1:]]
    found = await admin.user_rpc.get_budget(request, called_by(OPERATOR))
    assert [one.name for one in found.binding_budgets] == names
    assert [one.remaining_usd for one in found.binding_budgets] == [1, 3, 5, 10]


async def test_a_lead_reads_the_groups_it_leads(admin: AdminSide) -> None:
    """F013: the groups it is in and those below, not those above."""
    await layers(admin)
    request = pb.UpdateUserRequest(id=ALICE, role=user_pb2.ROLE_GROUP_LEAD)
    await admin.user_rpc.update_user(request, called_by(OPERATOR))
    groups = await admin.tenant_rpc.list_groups(tenant_service_pb2.ListGroupsRequest(), called_by(OPERATOR))
    core = next(group.group_id for group in groups.groups if group.name == "core")
    await create(admin, BudgetScope(group_id=core), {}, limit_usd=20, name="core")
    found = await mine(admin, await caller_of(admin))
    assert [one.name for one in found.binding_budgets] == ["", "", "", "own", "core"]


async def test_a_service_account_skips_the_user_layer(admin: AdminSide) -> None:
    """S5, F061, C09."""
    await person(admin, service_account=True)
    await create(admin, BudgetScope(user_id=ALICE), {}, limit_usd=1)
    await create(admin, DEFAULT, {}, limit_usd=8)
    found = await mine(admin, await caller_of(admin))
    assert not found.HasField("budget")
    assert found.effective_remaining_usd == 8


async def test_who_is_nobody_has_no_budget_of_its_own(admin: AdminSide) -> None:
    """F008: GetMyBudget is a person's."""
    with pytest.raises(BursarError) as caught:
        await mine(admin, OPERATOR)
    assert caught.value.reason is Reason.PERMISSION_DENIED


async def test_balances_of_another_tenant_with_the_same_key_are_not_read(admin: AdminSide) -> None:
    """A balance is the budget's of its own tenant."""
    budget = await create(admin, DEFAULT, {"spent_nanos": USD})
    stands = await status(admin, budget)
    async with admin.unit_of_work.begin() as conn:
        await conn.execute(
            upsert(balances).values(
                tenant_id=PLATFORM_TENANT_ID, budget_id=UUID(budget.budget_id), period_key=stands.period_key,
                period_start=stands.period_start_time.ToDatetime(UTC),
                period_end=stands.period_end_time.ToDatetime(UTC), spent_nanos=9 * USD,
            )
        )  # fmt: skip
    assert (await status(admin, budget)).spent_usd == 1
