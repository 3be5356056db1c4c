"""S4: a budget that is made, enabled or redefined counts what its scope has spent in the period already."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, select, text

from bursar.v1 import budget_pb2, tenant_service_pb2, user_service_pb2
from bursar.v1 import budget_service_pb2 as pb
from bursar.v1.budget_pb2 import Budget, BudgetScope, BudgetStatus
from bursar_server.db.connection import tenant_lock_key
from bursar_server.db.tables import balances, ledger_entries
from bursar_server.db.unit_of_work import UnitOfWork
from bursar_server.kit.ids import DEFAULT_TENANT_ID, PLATFORM_TENANT_ID
from bursar_server.kit.periods import PeriodKind, period_at
from support.admin import ADMIN, OPERATOR, USD, AdminSide, admin_side, clock_of, record_call
from support.called import called_by

MONTHLY = budget_pb2.BUDGET_PERIOD_MONTHLY
HOUR = timedelta(hours=1)
DEFAULT = BudgetScope(tenant_id="default")
ALICE, BOB, KEY = UUID(int=101), UUID(int=102), UUID(int=201)


@pytest.fixture
def admin(unit_of_work: UnitOfWork) -> AdminSide:
    return admin_side(unit_of_work)


@pytest.fixture
async def month(unit_of_work: UnitOfWork) -> datetime:
    """The first instant of the month."""
    return period_at(PeriodKind.MONTHLY, 0, "UTC", await clock_of(unit_of_work)).start


async def create(admin: AdminSide, scope: BudgetScope = DEFAULT, **fields: Any) -> Budget:
    fields = {"period": MONTHLY} | fields
    if "limit_tokens" not in fields:
        fields.setdefault("limit_usd", 500)
    request = pb.CreateBudgetRequest(budget=Budget(scope=scope, **fields))
    return (await admin.budget_rpc.create_budget(request, called_by(OPERATOR))).budget


async def update(admin: AdminSide, budget: Budget, **fields: Any) -> Budget:
    changed = Budget(budget_id=budget.budget_id, version=budget.version, **fields)
    request = pb.UpdateBudgetRequest(budget=changed)
    return (await admin.budget_rpc.update_budget(request, called_by(OPERATOR))).budget


async def status(admin: AdminSide, budget: Budget) -> BudgetStatus:
    request = pb.GetBudgetStatusRequest(budget_id=budget.budget_id)
    return (await admin.budget_rpc.get_budget_status(request, called_by(OPERATOR))).status


async def record(unit_of_work: UnitOfWork, *calls: tuple[datetime, int], **fields: Any) -> None:
    async with unit_of_work.begin() as conn:
        for usage_time, cost_usd in calls:
            await record_call(conn, usage_time, cost_usd * USD, **fields)


async def entries(unit_of_work: UnitOfWork, budget: Budget) -> list[tuple[str, str, int, int]]:
    async with unit_of_work.begin() as conn:
        query = select(ledger_entries).where(ledger_entries.c.account_id == UUID(budget.budget_id))
        rows = await conn.execute(query.order_by(ledger_entries.c.posted_time))
        return [(row.kind, row.period_key, row.amount_nanos, row.amount_tokens) for row in rows]


@asynccontextmanager
async def a_batch_under_way(unit_of_work: UnitOfWork) -> AsyncIterator[Any]:
    """Hold what a batch that meters the default tenant holds, and let it write; it commits at the end."""
    async with unit_of_work.begin() as conn:
        for tenant_id in (DEFAULT_TENANT_ID, PLATFORM_TENANT_ID):
            await conn.execute(
                text("SELECT pg_advisory_xact_lock_shared(:k)"), {"k": tenant_lock_key(tenant_id)}
            )
        yield conn


async def test_a_budget_made_late_counts_what_was_spent(
    admin: AdminSide, unit_of_work: UnitOfWork, month: datetime
) -> None:
    """S4: a $500 monthly budget made on the 20th after $450 leaves $50, by an entry of the ledger."""
    await record(unit_of_work, (month, 200), (month + HOUR, 250), (month - HOUR, 1000))
    budget = await create(admin)
    stands = await status(admin, budget)
    assert (stands.spent_usd, stands.remaining_usd, stands.utilization_pct) == (450, 50, 90)
    assert stands.color == budget_pb2.BUDGET_COLOR_AMBER
    assert stands.spent_tokens == 220
    assert await entries(unit_of_work, budget) == [("OPENING", stands.period_key, 450 * USD, 220)]


async def test_each_scope_counts_its_own(admin: AdminSide, unit_of_work: UnitOfWork, month: datetime) -> None:
    """S4, F033, F034, F066, F194: a user over all keys, a group over all members and groups below, a key, a tag."""
    people = [user_service_pb2.CreateUserRequest(email=f"{name}@example.com") for name in ("alice", "bob")]
    alice, bob = [
        UUID((await admin.user_rpc.create_user(person, called_by(ADMIN))).user.user_id) for person in people
    ]
    keys = []
    for name in ("one", "two"):
        request = tenant_service_pb2.CreateApiKeyRequest(name=name, user_id=str(alice))
        made = await admin.tenant_rpc.create_api_key(request, called_by(ADMIN))
        keys.append(UUID(made.api_key.key_id))
    groups: list[UUID] = []
    for name in ("engineering", "core", "sales"):
        parent = str(groups[0]) if name == "core" else ""
        group = tenant_service_pb2.CreateGroupRequest(name=name, parent_group_id=parent)
        found = (await admin.tenant_rpc.create_group(group, called_by(ADMIN))).group
        groups.append(UUID(found.group_id))
    tenant = tenant_service_pb2.CreateTenantRequest(name="acme")
    acme = UUID((await admin.tenant_rpc.create_tenant(tenant, called_by(OPERATOR))).tenant.tenant_id)
    core = {"tags": {"team": "core"}, "group_ids": [groups[1]]}
    await record(unit_of_work, (month, 1), user_id=alice, api_key_id=keys[0], **core)
    await record(unit_of_work, (month, 2), user_id=alice, api_key_id=keys[1], tags={"team": "x"})
    await record(
        unit_of_work, (month, 4), user_id=bob, group_ids=[groups[0]], tags={"team": "core", "a": "b"}
    )
    await record(unit_of_work, (month, 8), group_ids=[groups[2]])
    await record(unit_of_work, (month, 16), tenant_id=acme, user_id=alice, api_key_id=keys[0], **core)
    for scope, spent in (
        (BudgetScope(user_id=str(alice)), 3),
        (BudgetScope(user_id=str(bob)), 4),
        (BudgetScope(api_key_id=str(keys[0])), 1),
        (BudgetScope(group_id=str(groups[0])), 5),
        (BudgetScope(group_id=str(groups[1])), 1),
        (BudgetScope(group_id=str(groups[2])), 8),
        (BudgetScope(tenant_id="default", tag_key="team", tag_value="core"), 5),
        (DEFAULT, 15),
        (BudgetScope(tenant_id="acme"), 16),
        (BudgetScope(), 31),
    ):
        assert (await status(admin, await create(admin, scope))).spent_usd == spent


async def test_what_grants_bore_does_not_count_for_the_user(
    admin: AdminSide, unit_of_work: UnitOfWork, month: datetime
) -> None:
    """S4, S6: only the rest counts against budgets of scope user; budgets of any other scope count the full cost."""
    person = user_service_pb2.CreateUserRequest(email="alice@example.com")
    alice = UUID((await admin.user_rpc.create_user(person, called_by(ADMIN))).user.user_id)
    made = user_service_pb2.CreateGrantRequest(user_id=str(alice), amount_usd=100)
    made.expires_at.FromDatetime(month + timedelta(days=60))
    grant = UUID((await admin.user_rpc.create_grant(made, called_by(OPERATOR))).grant.grant_id)
    await record(unit_of_work, (month, 10), user_id=alice, from_grants={grant: 4 * USD})
    await record(unit_of_work, (month - HOUR, 50), user_id=alice, from_grants={grant: 50 * USD})
    async with unit_of_work.begin() as conn:
        await conn.execute(text("UPDATE grants SET spent_nanos = 54000000000"))
    own = await create(admin, BudgetScope(user_id=str(alice)))
    assert ((await status(admin, own)).spent_usd, (await status(admin, own)).spent_tokens) == (6, 110)
    assert (await status(admin, await create(admin))).spent_usd == 10


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kolkata", "America/Los_Angeles", "Pacific/Auckland"])
@pytest.mark.parametrize("kind", [PeriodKind.DAILY, PeriodKind.WEEKLY, PeriodKind.MONTHLY, PeriodKind.TOTAL])
async def test_the_period_is_cut_in_the_budgets_zone(
    admin: AdminSide, unit_of_work: UnitOfWork, zone: str, kind: PeriodKind
) -> None:
    """S4, S23: to the quarter-hour at both ends, whole days between, from the period's first instant on."""
    now = await clock_of(unit_of_work)
    period = period_at(kind, 0, zone, now)
    start = max(period.start, now - timedelta(days=20))
    if start == period.start:
        await record(unit_of_work, (start - timedelta(seconds=1), 64))
    await record(unit_of_work, (start, 1), (start + timedelta(minutes=16), 2), (start + 9 * HOUR, 4))
    if period.end - start > timedelta(days=3):
        await record(unit_of_work, (start + 30 * HOUR, 8))
    budget = await create(admin, period=f"BUDGET_PERIOD_{kind}", timezone=zone)
    expected = 15 if period.end - start > timedelta(days=3) else 7
    assert (await status(admin, budget)).spent_usd == expected


async def test_a_budget_in_tokens_opens_with_tokens(
    admin: AdminSide, unit_of_work: UnitOfWork, month: datetime
) -> None:
    """S4, F037, C13: input and output."""
    await record(unit_of_work, (month, 1), input_tokens=700, output_tokens=50)
    stands = await status(admin, await create(admin, limit_tokens=1000))
    assert (stands.spent_tokens, stands.remaining_tokens, stands.utilization_pct) == (750, 250, 75)
    assert not stands.HasField("remaining_usd")


async def test_nothing_spent_opens_without_an_entry(admin: AdminSide, unit_of_work: UnitOfWork) -> None:
    """S26: a balance is the sum of its entries, here of none."""
    budget = await create(admin)
    assert await entries(unit_of_work, budget) == []
    async with unit_of_work.begin() as conn:
        row = (await conn.execute(select(balances))).one()
    assert (row.period_key, row.spent_nanos) == ((await status(admin, budget)).period_key, 0)


async def test_a_disabled_budget_opens_when_it_is_enabled(
    admin: AdminSide, unit_of_work: UnitOfWork, month: datetime
) -> None:
    """S4: a disabled budget neither counts nor denies; enabling counts what was spent meanwhile."""
    await record(unit_of_work, (month, 3))
    budget = await create(admin, enabled=False)
    assert await entries(unit_of_work, budget) == []
    await record(unit_of_work, (month, 4))
    budget = await update(admin, budget, enabled=True)
    assert (await status(admin, budget)).spent_usd == 7
    budget = await update(admin, budget, enabled=False)
    await record(unit_of_work, (month, 5))
    budget = await update(admin, budget, enabled=True)
    assert (await status(admin, budget)).spent_usd == 12
    keys = [key for _, key, _, _ in await entries(unit_of_work, budget)]
    assert [key.partition("#")[2] for key in keys] == ["2", "3"]


async def test_a_new_definition_opens_anew_and_the_old_balance_stays(
    admin: AdminSide, unit_of_work: UnitOfWork, month: datetime
) -> None:
    """S4: scope, period, anchor and zone; a new limit or name opens nothing."""
    await record(unit_of_work, (month, 3), tags={"team": "core"})
    await record(unit_of_work, (month, 4))
    budget = await create(admin)
    budget = await update(admin, budget, limit_usd=10, name="renamed")
    assert len(await entries(unit_of_work, budget)) == 1
    tagged = BudgetScope(tenant_id="default", tag_key="team", tag_value="core")
    budget = await update(admin, budget, scope=tagged)
    assert (await status(admin, budget)).spent_usd == 3
    budget = await update(admin, budget, scope=DEFAULT, period=budget_pb2.BUDGET_PERIOD_TOTAL)
    assert (await status(admin, budget)).spent_usd == 7
    assert [amount for _, _, amount, _ in await entries(unit_of_work, budget)] == [7 * USD, 3 * USD, 7 * USD]
    async with unit_of_work.begin() as conn:
        assert (await conn.execute(select(func.count()).select_from(balances))).scalar_one() == 3


@pytest.mark.parametrize("scope", [DEFAULT, BudgetScope()])
async def test_a_call_that_is_being_charged_meanwhile_is_counted(
    admin: AdminSide, unit_of_work: UnitOfWork, month: datetime, scope: BudgetScope
) -> None:
    """S4: what changes a tenant's budgets (or the operator's) waits for the batches under way, and sees what they did."""
    async with a_batch_under_way(unit_of_work) as conn:
        making = asyncio.create_task(create(admin, scope))
        await asyncio.sleep(0.2)
        assert not making.done()
        await record_call(conn, month, 450 * USD)
    assert (await status(admin, await making)).remaining_usd == 50


async def test_another_tenants_batches_do_not_wait(admin: AdminSide, unit_of_work: UnitOfWork) -> None:
    """A change of one tenant's budgets keeps only that tenant's metering out."""
    acme = tenant_service_pb2.CreateTenantRequest(name="acme")
    await admin.tenant_rpc.create_tenant(acme, called_by(OPERATOR))
    async with a_batch_under_way(unit_of_work):
        await asyncio.wait_for(create(admin, BudgetScope(tenant_id="acme")), 5)
