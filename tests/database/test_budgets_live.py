"""Budgets that are made and changed while calls are being metered, with real lanes on the same database."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from bursar.v1 import budget_pb2, tenant_service_pb2
from bursar.v1 import budget_service_pb2 as budget_pb
from bursar.v1 import user_service_pb2 as pb
from bursar.v1.budget_pb2 import Budget, BudgetScope, BudgetStatus
from bursar_server.db.unit_of_work import UnitOfWork
from bursar_server.kit.ids import sha256_hex
from bursar_server.metering.model import PrincipalRef
from support.admin import OPERATOR, AdminSide, admin_side, clock_of
from support.called import called_by
from support.metering import Ledger, ledger_on, new_id

ALICE = "alice@example.com"
TOTAL = budget_pb2.BUDGET_PERIOD_TOTAL


@pytest.fixture
def admin(unit_of_work: UnitOfWork) -> AdminSide:
    return admin_side(unit_of_work)


@pytest.fixture
async def ledger(database_url: str) -> AsyncIterator[Ledger]:
    async with ledger_on(database_url, lanes=2) as ledger:
        yield ledger
        ledger.assert_books()


async def create(admin: AdminSide, scope: BudgetScope, **fields: Any) -> Budget:
    request = budget_pb.CreateBudgetRequest(budget=Budget(scope=scope, period=TOTAL, **fields))
    return (await admin.budget_rpc.create_budget(request, called_by(OPERATOR))).budget


async def update(admin: AdminSide, budget: Budget, **fields: Any) -> Budget:
    changed = Budget(budget_id=budget.budget_id, version=budget.version, **fields)
    request = budget_pb.UpdateBudgetRequest(budget=changed)
    return (await admin.budget_rpc.update_budget(request, called_by(OPERATOR))).budget


async def status(admin: AdminSide, budget: Budget) -> BudgetStatus:
    request = budget_pb.GetBudgetStatusRequest(budget_id=budget.budget_id)
    return (await admin.budget_rpc.get_budget_status(request, called_by(OPERATOR))).status


async def key_of_alice(admin: AdminSide) -> tuple[PrincipalRef, tenant_service_pb2.CreateApiKeyResponse]:
    await admin.user_rpc.create_user(pb.CreateUserRequest(email=ALICE), called_by(OPERATOR))
    request = tenant_service_pb2.CreateApiKeyRequest(name="app", user_id=ALICE, default_tags={"team": "core"})
    made = await admin.tenant_rpc.create_api_key(request, called_by(OPERATOR))
    return PrincipalRef(api_key_sha256=sha256_hex(made.secret)), made


async def test_nothing_is_missed_and_nothing_counted_twice(admin: AdminSide, ledger: Ledger) -> None:
    """S4, S26: whatever is being charged while budgets are made, enabled and redefined, each has spent the total."""
    key, made = await key_of_alice(admin)
    group = tenant_service_pb2.CreateGroupRequest(name="core", user_ids=[ALICE])
    group_id = (await admin.tenant_rpc.create_group(group, called_by(OPERATOR))).group.group_id
    first, stop = asyncio.Event(), asyncio.Event()
    charged = 0

    async def call_on_and_on() -> None:
        nonlocal charged
        while not stop.is_set():
            answer = await ledger.deduct(key, new_id())
            charged += answer.cost.total_nanos
            first.set()

    callers = [asyncio.create_task(call_on_and_on()) for _ in range(6)]
    await first.wait()
    budgets = []
    for scope in (
        BudgetScope(tenant_id="default"),
        BudgetScope(user_id=ALICE),
        BudgetScope(api_key_id=made.api_key.key_id),
        BudgetScope(group_id=group_id),
        BudgetScope(tenant_id="default", tag_key="team", tag_value="core"),
        BudgetScope(),
    ):
        await asyncio.sleep(0.05)
        budgets.append(await create(admin, scope, limit_usd=100))
    await asyncio.sleep(0.05)
    budgets[0] = await update(admin, budgets[0], enabled=False)
    budgets[1] = await update(admin, budgets[1], period=budget_pb2.BUDGET_PERIOD_YEARLY)
    await asyncio.sleep(0.05)
    budgets[0] = await update(admin, budgets[0], enabled=True)
    await asyncio.sleep(0.05)
    stop.set()
    await asyncio.gather(*callers)
    assert charged > 0
    for budget in budgets:
        stands = await status(admin, budget)
        assert (stands.budget.scope, stands.spent_nanos) == (budget.scope, charged)
    assert ledger.sql("SELECT count(*) FROM ledger_entries WHERE kind = 'OPENING'") == [(8,)]


async def test_what_grants_bore_is_left_out_of_an_opening(admin: AdminSide, ledger: Ledger) -> None:
    """S4, S6: a call of 100 nanos of which a grant bore 30 opens the user's budget with 70."""
    key, _ = await key_of_alice(admin)
    grant = pb.CreateGrantRequest(user_id=ALICE, amount_usd=0.00000003)
    grant.expires_at.FromDatetime(await clock_of(admin.unit_of_work) + timedelta(days=1))
    await admin.user_rpc.create_grant(grant, called_by(OPERATOR))
    assert (await ledger.call(key)).cost.total_nanos == 100
    own = await create(admin, BudgetScope(user_id=ALICE), limit_usd=1)
    assert ((await status(admin, own)).spent_nanos, (await status(admin, own)).spent_tokens) == (70, 55)


async def test_what_is_changed_binds_with_the_next_call(admin: AdminSide, ledger: Ledger) -> None:
    """S13, F054, F058: a budget, a raised limit, a reset and a grant each count for the very next Check."""
    key, _ = await key_of_alice(admin)

    async def allowed() -> bool:
        answer = await ledger.check(key)
        if answer.allowed:
            await ledger.release(key, answer.request_id)
        return bool(answer.allowed)

    async def limit(usd: float) -> None:
        request = pb.SetBudgetRequest(user_id=ALICE, limit_usd=usd)
        await admin.user_rpc.set_budget(request, called_by(OPERATOR))

    assert await allowed()
    await limit(0.0000001)
    assert (await ledger.call(key)).cost.total_nanos == 100
    assert not await allowed()
    await limit(0.0000002)
    assert await allowed()
    await limit(0.0000001)
    assert not await allowed()
    await admin.user_rpc.reset_spend(pb.ResetSpendRequest(user_id=ALICE), called_by(OPERATOR))
    assert await allowed()
    await limit(0)
    assert not await allowed()
    grant = pb.CreateGrantRequest(user_id=ALICE, amount_usd=1)
    grant.expires_at.FromDatetime(await clock_of(admin.unit_of_work) + timedelta(days=1))
    given = (await admin.user_rpc.create_grant(grant, called_by(OPERATOR))).grant
    assert await allowed()
    request = pb.RevokeGrantRequest(grant_id=given.grant_id)
    await admin.user_rpc.revoke_grant(request, called_by(OPERATOR))
    assert not await allowed()


async def test_a_threshold_fires_again_after_the_limit_is_raised(admin: AdminSide, ledger: Ledger) -> None:
    """S21: once a period, and once more for those that lie above the new utilisation."""
    key, _ = await key_of_alice(admin)
    set_budget = pb.SetBudgetRequest(user_id=ALICE, limit_usd=0.0000001)
    await admin.user_rpc.set_budget(set_budget, called_by(OPERATOR))

    async def fired() -> list[int]:
        answer = await ledger.deduct(key, new_id())
        return [alert.threshold_pct for alert in answer.alerts]

    assert await fired() == [80, 90, 100]
    assert await fired() == []
    set_budget.limit_usd = 0.0000003
    await admin.user_rpc.set_budget(set_budget, called_by(OPERATOR))
    assert await fired() == [80, 90, 100]
    await admin.user_rpc.reset_spend(pb.ResetSpendRequest(user_id=ALICE), called_by(OPERATOR))
    assert [await fired() for _ in range(3)] == [[], [], [80, 90, 100]]


async def test_a_reset_loses_no_call(admin: AdminSide, ledger: Ledger) -> None:
    """S19, S26: a reset and the calls that are charged meanwhile come one after the other."""
    key, _ = await key_of_alice(admin)
    set_budget = pb.SetBudgetRequest(user_id=ALICE, limit_usd=1, period=TOTAL)
    budget = (await admin.user_rpc.set_budget(set_budget, called_by(OPERATOR))).budget

    async def calls() -> None:
        for _ in range(10):
            await ledger.deduct(key, new_id())

    callers = [asyncio.create_task(calls()) for _ in range(4)]
    for _ in range(5):
        await admin.user_rpc.reset_spend(pb.ResetSpendRequest(user_id=ALICE), called_by(OPERATOR))
    await asyncio.gather(*callers)
    taken = ledger.sql(
        "SELECT coalesce(-sum(amount_nanos), 0)::bigint FROM ledger_entries WHERE kind = 'RESET'"
    )[0][0]
    assert (await status(admin, budget)).spent_nanos == 40 * 100 - taken
