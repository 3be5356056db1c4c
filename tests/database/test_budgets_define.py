"""Budgets made, changed and deleted: fields, versions, who may, and what the operator's ceiling allows."""

import asyncio
from typing import Any
from uuid import UUID

import pytest
from google.protobuf.json_format import MessageToDict

from bursar.v1 import budget_pb2, tenant_service_pb2, user_pb2, user_service_pb2
from bursar.v1 import budget_service_pb2 as pb
from bursar.v1.budget_pb2 import Budget, BudgetScope
from bursar.v1.budget_service_connect import BudgetService as BudgetProtocol
from bursar_server.db.connection import tenant_lock_key
from bursar_server.db.unit_of_work import UnitOfWork
from bursar_server.kit.caller import Caller, Role
from bursar_server.kit.errors import BursarError, Reason
from bursar_server.kit.ids import DEFAULT_TENANT_ID, PLATFORM_TENANT_ID
from support.admin import ADMIN, BILLING, DEVELOPER, OPERATOR, AdminSide, admin_side, version_of
from support.called import called_by

STRANGER = Caller(Role.TENANT_ADMIN, "s", frozenset({UUID(int=7)}))
DEFAULT = BudgetScope(tenant_id="default")


@pytest.fixture
def admin(unit_of_work: UnitOfWork) -> AdminSide:
    return admin_side(unit_of_work)


async def create(
    admin: AdminSide, caller: Caller = ADMIN, scope: BudgetScope = DEFAULT, **fields: Any
) -> Budget:
    if "limit_tokens" not in fields:
        fields.setdefault("limit_usd", 10)
    request = pb.CreateBudgetRequest(budget=Budget(scope=scope, **fields))
    return (await admin.budget_rpc.create_budget(request, called_by(caller))).budget


async def update(admin: AdminSide, budget: Budget, caller: Caller = ADMIN) -> Budget:
    return (
        await admin.budget_rpc.update_budget(pb.UpdateBudgetRequest(budget=budget), called_by(caller))
    ).budget


async def delete(admin: AdminSide, budget: Budget, version: int = 0, caller: Caller = ADMIN) -> None:
    request = pb.DeleteBudgetRequest(budget_id=budget.budget_id, version=version)
    await admin.budget_rpc.delete_budget(request, called_by(caller))


async def names(admin: AdminSide, caller: Caller, **query: Any) -> list[str]:
    answer = await admin.budget_rpc.list_budgets(pb.ListBudgetsRequest(**query), called_by(caller))
    return [budget.name for budget in answer.budgets]


async def refused(coroutine: object) -> BursarError:
    with pytest.raises(BursarError) as caught:
        await coroutine  # type: ignore[misc]
    return caught.value


async def user(admin: AdminSide, email: str) -> str:
    request = user_service_pb2.CreateUserRequest(email=email, role=user_pb2.ROLE_MEMBER)
    return (await admin.user_rpc.create_user(request, called_by(ADMIN))).user.user_id


def test_the_handlers_are_the_service(admin: AdminSide) -> None:
    handlers: BudgetProtocol = admin.budget_rpc
    assert handlers is admin.budget_rpc


async def test_a_budget_is_what_was_asked_for(admin: AdminSide) -> None:
    """F014, F015, F016, F024, F037, F038, F039: every field comes back; ids and versions are the server's."""
    asked = Budget(
        budget_id="00000000-0000-7000-8000-0000000000ff",
        version=7,
        name="evaluation",
        scope=DEFAULT,
        period=budget_pb2.BUDGET_PERIOD_MONTHLY,
        anchor_day=15,
        timezone="Europe/Berlin",
        limit_usd=12.5,
        soft_limit_pct=70,
        alert_thresholds_pct=[100, 50],
        enforcement=budget_pb2.ENFORCEMENT_SOFT,
        admission=budget_pb2.ADMISSION_UPPER_BOUND,
        max_wait_ms=0,
        fit_output=True,
        guard_streams=True,
        shadow=True,
        on_lease_expiry=budget_pb2.LEASE_EXPIRY_RELEASE,
        on_unreachable=budget_pb2.ON_UNREACHABLE_LAST_KNOWN_GOOD,
        enabled=False,
        owners=["lead@example.com"],
        reason="agreed with finance",
    )
    made = (
        await admin.budget_rpc.create_budget(pb.CreateBudgetRequest(budget=asked), called_by(ADMIN))
    ).budget
    assert made.budget_id != asked.budget_id
    assert made.version == 1
    expected = MessageToDict(asked) | {
        "budgetId": made.budget_id,
        "version": "1",
        "scope": {"tenantId": str(DEFAULT_TENANT_ID)},
        "alertThresholdsPct": [50, 100],
        "limitNanos": "12500000000",
        "managedBy": "MANAGED_BY_TENANT",
    }
    assert {k: v for k, v in MessageToDict(made).items() if not k.endswith("Time")} == expected
    got = await admin.budget_rpc.get_budget(
        pb.GetBudgetRequest(budget_id=made.budget_id), called_by(DEVELOPER)
    )
    assert got.budget == made


async def test_a_budget_needs_no_more_than_a_limit(admin: AdminSide) -> None:
    """F018, F021, C01, C03, C05: the defaults of a budget."""
    made = await create(admin)
    assert (made.period, made.timezone) == (budget_pb2.BUDGET_PERIOD_DAILY, "UTC")
    assert (made.soft_limit_pct, list(made.alert_thresholds_pct)) == (80, [80, 90, 100])
    assert (made.enforcement, made.admission) == (
        budget_pb2.ENFORCEMENT_HARD,
        budget_pb2.ADMISSION_ANY_REMAINING,
    )
    assert (made.max_wait_ms, made.enabled, made.shadow, made.fit_output) == (2000, True, False, False)
    assert made.on_unreachable == budget_pb2.ON_UNREACHABLE_SIDECAR


async def test_each_scope_names_its_subject(admin: AdminSide) -> None:
    """F032, F035, F036, C24: tenant, group, user (id or e-mail), key, tag and global stand side by side."""
    alice = await user(admin, "alice@example.com")
    group = tenant_service_pb2.CreateGroupRequest(name="core", user_ids=[alice])
    group_id = (await admin.tenant_rpc.create_group(group, called_by(ADMIN))).group.group_id
    key = tenant_service_pb2.CreateApiKeyRequest(name="app", user_id=alice)
    key_id = (await admin.tenant_rpc.create_api_key(key, called_by(ADMIN))).api_key.key_id
    here = str(DEFAULT_TENANT_ID)
    for asked, stored in (
        (BudgetScope(user_id="Alice@example.com"), BudgetScope(tenant_id=here, user_id=alice)),
        (BudgetScope(user_id=alice), BudgetScope(tenant_id=here, user_id=alice)),
        (BudgetScope(group_id=group_id), BudgetScope(tenant_id=here, group_id=group_id)),
        (BudgetScope(api_key_id=key_id), BudgetScope(tenant_id=here, api_key_id=key_id)),
        (
            BudgetScope(tenant_id="default", tag_key="team", tag_value="core"),
            BudgetScope(tenant_id=here, tag_key="team", tag_value="core"),
        ),
        (BudgetScope(tenant_id=here), BudgetScope(tenant_id=here)),
    ):
        assert (await create(admin, scope=asked)).scope == stored
    assert (await create(admin, OPERATOR, BudgetScope(), name="all")).scope == BudgetScope()
    assert len(await names(admin, ADMIN, user_id="alice@example.com")) == 2
    assert len(await names(admin, ADMIN, group_id=group_id)) == 1
    assert len(await names(admin, ADMIN, api_key_id=key_id)) == 1


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"limit_usd": float("nan")}, "budget.limit_usd"),
        ({"limit_usd": -1}, "budget.limit_usd"),
        ({"limit_usd": 0.0000000001}, "budget.limit_usd"),
        ({"limit_usd": 1, "limit_tokens": 1}, "budget.limit_tokens"),
        ({"limit_usd": 1, "limit_nanos": 5}, "budget.limit_nanos"),
        ({"limit_tokens": -1}, "budget.limit_tokens"),
        ({"limit_usd": None}, "budget.limit_usd"),
        ({"soft_limit_pct": 0}, "budget.soft_limit_pct"),
        ({"alert_thresholds_pct": [1001]}, "budget.alert_thresholds_pct"),
        ({"timezone": "Mars"}, "budget.timezone"),
        ({"anchor_day": 1}, "budget.anchor_day"),
        ({"anchor_day": -1}, "budget.anchor_day"),
        ({"max_wait_ms": 60_001}, "budget.max_wait_ms"),
        ({"name": "x" * 201}, "budget.name"),
        ({"reason": "x" * 1001}, "budget.reason"),
        ({"owners": ["nobody"]}, "budget.owners[0]"),
        ({"period": 99}, "budget.period"),
        ({"managed_by": budget_pb2.MANAGED_BY_PLATFORM}, "budget.managed_by"),
        ({"scope": BudgetScope(user_id="nobody@example.com")}, "budget.scope.user_id"),
        ({"scope": BudgetScope(user_id="a@b.c", tag_key="x", tag_value="y")}, "budget.scope"),
        ({"scope": BudgetScope(tag_value="y")}, "budget.scope.tag_key"),
        ({"scope": BudgetScope(tag_key="x")}, "budget.scope.tag_value"),
        ({"scope": BudgetScope(group_id="core")}, "budget.scope.group_id"),
    ],
)
async def test_what_a_budget_cannot_be_is_refused_by_name(
    admin: AdminSide, fields: dict[str, Any], field: str
) -> None:
    """F015: nothing is stored, and the error names the field."""
    assert (await refused(create(admin, **fields))).field == field
    assert not await names(admin, ADMIN)


async def test_an_update_changes_what_it_names(admin: AdminSide, unit_of_work: UnitOfWork) -> None:
    """F024, S13: the version goes up; what is absent stays; it binds with the next batch."""
    made = await create(admin, name="cap", reason="why", owners=["a@b.c"], anchor_day=0)
    before = await version_of(unit_of_work)
    changed = await update(admin, Budget(budget_id=made.budget_id, version=1, limit_usd=20))
    assert await version_of(unit_of_work) == before + 1
    assert (changed.version, changed.limit_usd, changed.name, changed.reason) == (2, 20, "cap", "why")
    assert list(changed.owners) == ["a@b.c"]
    whole = Budget()
    whole.CopyFrom(changed)
    whole.limit_usd = 30.25
    changed = await update(admin, whole)
    assert (changed.version, changed.limit_nanos) == (3, 30_250_000_000)
    whole.CopyFrom(changed)
    whole.limit_nanos = 7
    assert (await update(admin, whole)).limit_usd == 7e-9
    tokens = Budget(budget_id=made.budget_id, version=4, limit_tokens=1000)
    changed = await update(admin, tokens)
    assert (changed.limit_tokens, changed.HasField("limit_usd")) == (1000, False)


async def test_a_stale_version_changes_nothing(admin: AdminSide) -> None:
    """F024: of two that read the same version, the second is told to read again (ABORTED)."""
    made = await create(admin)
    results = await asyncio.gather(
        *(update(admin, Budget(budget_id=made.budget_id, version=1, limit_usd=limit)) for limit in (1, 2, 3)),
        return_exceptions=True,
    )
    errors = [one for one in results if isinstance(one, BursarError)]
    assert [one.reason for one in errors] == [Reason.VERSION_STALE] * 2
    assert errors[0].metadata == {"version": "2"}
    error = await refused(update(admin, Budget(budget_id=made.budget_id, limit_usd=1)))
    assert error.field == "budget.version"
    assert (await refused(delete(admin, made, version=1))).reason is Reason.VERSION_STALE
    await delete(admin, made, version=2)


async def test_deleting_is_the_admins(admin: AdminSide) -> None:
    """F005, C11: a developer creates and edits, and deletes nothing."""
    made = await create(admin, DEVELOPER)
    await update(admin, Budget(budget_id=made.budget_id, version=1, limit_usd=1), DEVELOPER)
    assert (await refused(delete(admin, made, caller=DEVELOPER))).reason is Reason.PERMISSION_DENIED
    await delete(admin, made)
    assert (await refused(delete(admin, made))).reason is Reason.NOT_FOUND
    assert not await names(admin, ADMIN)


async def test_each_side_reads_what_the_other_made(admin: AdminSide) -> None:
    """F025, F026, F027: provenance follows from the role; the other side's budgets are read-only."""
    ours, theirs = await create(admin, name="ours"), await create(admin, BILLING, name="theirs")
    assert ours.managed_by == budget_pb2.MANAGED_BY_TENANT
    assert theirs.managed_by == budget_pb2.MANAGED_BY_PLATFORM
    assert await names(admin, ADMIN) == await names(admin, OPERATOR) == ["ours", "theirs"]
    for budget, caller in ((ours, OPERATOR), (theirs, ADMIN)):
        change = Budget(budget_id=budget.budget_id, version=1, limit_usd=1)
        assert (await refused(update(admin, change, caller))).reason is Reason.MANAGED_ELSEWHERE
        assert (await refused(delete(admin, budget, caller=caller))).reason is Reason.MANAGED_ELSEWHERE


async def test_a_tenant_stays_under_the_operators_ceiling(admin: AdminSide) -> None:
    """F028, F029, F030, F031, F199: the tightest enabled PLATFORM budget for the tenant; global ones do not count."""
    await create(admin, limit_usd=1_000_000)
    await create(admin, OPERATOR, BudgetScope(), limit_usd=1)
    await create(admin, OPERATOR, limit_usd=50)
    tight = await create(admin, OPERATOR, limit_usd=20)
    error = await refused(create(admin, limit_usd=20.01))
    assert (error.reason, error.field) == (Reason.ABOVE_CEILING, "budget.limit_usd")
    assert error.metadata["ceiling"] == "20 US dollars"
    made = await create(admin, limit_usd=20)
    raised = Budget(budget_id=made.budget_id, version=1, limit_usd=21)
    assert (await refused(update(admin, raised))).reason is Reason.ABOVE_CEILING
    await update(admin, Budget(budget_id=tight.budget_id, version=1, enabled=False), OPERATOR)
    assert (await update(admin, raised)).limit_usd == 21
    await create(admin, OPERATOR, limit_tokens=100)
    assert (await refused(create(admin, limit_tokens=101))).field == "budget.limit_tokens"


async def test_a_lowered_ceiling_leaves_what_is_there_until_it_is_changed(admin: AdminSide) -> None:
    """F028: the tenant's own budget stays (the tighter one governs); what changes has to fit."""
    made = await create(admin, limit_usd=100)
    await create(admin, OPERATOR, limit_usd=20)
    renamed = await update(admin, Budget(budget_id=made.budget_id, version=1, name="still mine"))
    moved = Budget(budget_id=made.budget_id, version=renamed.version, limit_usd=90)
    assert (await refused(update(admin, moved))).reason is Reason.ABOVE_CEILING
    moved.limit_usd = 19
    assert (await update(admin, moved)).limit_usd == 19


async def test_global_budgets_are_the_operators(admin: AdminSide) -> None:
    """F030, C08: tenants neither make, see nor touch them."""
    everyone = await create(admin, OPERATOR, BudgetScope(), name="everyone")
    await create(admin, name="ours")
    assert (await refused(create(admin, ADMIN, BudgetScope()))).reason is Reason.PERMISSION_DENIED
    assert await names(admin, ADMIN) == ["ours"]
    assert await names(admin, OPERATOR) == ["everyone", "ours"]
    assert await names(admin, OPERATOR, tenant_id="default") == ["ours"]
    unbound = Caller(Role.TENANT_ADMIN, "every tenant's admin")
    assert await names(admin, unbound) == ["ours"]
    for caller in (ADMIN, unbound):
        for call in (
            admin.budget_rpc.get_budget(pb.GetBudgetRequest(budget_id=everyone.budget_id), called_by(caller)),
            admin.budget_rpc.get_budget_status(
                pb.GetBudgetStatusRequest(budget_id=everyone.budget_id), called_by(caller)
            ),
            delete(admin, everyone, caller=caller),
        ):
            assert (await refused(call)).reason is Reason.NOT_FOUND
    error = await refused(
        update(admin, Budget(budget_id=everyone.budget_id, version=1, scope=DEFAULT), OPERATOR)
    )
    assert error.field == "budget.scope"


async def test_a_lead_reads_its_groups(admin: AdminSide) -> None:
    """F013, C11."""
    ids = []
    for name in ("core", "sales"):
        request = tenant_service_pb2.CreateGroupRequest(name=name)
        ids.append((await admin.tenant_rpc.create_group(request, called_by(ADMIN))).group.group_id)
    mine, other = [
        await create(admin, scope=BudgetScope(group_id=group_id), name=group_id) for group_id in ids
    ]
    await create(admin, name="tenant")
    lead = Caller(
        Role.GROUP_LEAD, "lead", frozenset({DEFAULT_TENANT_ID}), group_ids=frozenset({UUID(ids[0])})
    )
    assert await names(admin, lead) == [mine.name]
    read = pb.GetBudgetStatusRequest(budget_id=mine.budget_id)
    await admin.budget_rpc.get_budget_status(read, called_by(lead))
    read = pb.GetBudgetStatusRequest(budget_id=other.budget_id)
    assert (
        await refused(admin.budget_rpc.get_budget_status(read, called_by(lead)))
    ).reason is Reason.NOT_FOUND


async def test_another_tenants_budgets_are_not_found(admin: AdminSide) -> None:
    """F013: neither to read nor to name a subject of."""
    made = await create(admin)
    assert await names(admin, STRANGER) == []
    assert (await refused(delete(admin, made, caller=STRANGER))).reason is Reason.NOT_FOUND
    assert (await refused(create(admin, STRANGER))).reason is Reason.NOT_FOUND
    alice = await user(admin, "alice@example.com")
    error = await refused(create(admin, STRANGER, BudgetScope(user_id=alice)))
    assert error.reason is Reason.NOT_FOUND


async def test_budgets_are_listed_by_name_in_pages(admin: AdminSide) -> None:
    """F123, F046: in a stable order, also where names are the same."""
    for name in ("b", "a", "c", "a"):
        await create(admin, name=name)
    seen: list[str] = []
    ids: set[str] = set()
    token = ""
    while True:
        request = pb.ListBudgetStatusesRequest(page_size=1, page_token=token)
        answer = await admin.budget_rpc.list_budget_statuses(request, called_by(ADMIN))
        seen += [status.budget.name for status in answer.statuses]
        ids |= {status.budget.budget_id for status in answer.statuses}
        token = answer.next_page_token
        if not token:
            break
    assert (seen, len(ids)) == (["a", "a", "b", "c"], 4)


async def test_every_change_is_audited(admin: AdminSide, unit_of_work: UnitOfWork) -> None:
    """F169, F026, F039, F177: who, what was there before, and what is there now; money as decimal text."""
    made = await create(admin, limit_usd=0.1, reason="start")
    await update(admin, Budget(budget_id=made.budget_id, version=1, limit_usd=0.2, reason="more"))
    await delete(admin, made)
    async with unit_of_work.begin() as conn:
        deleted, updated, created = (await admin.audit.list(conn, {DEFAULT_TENANT_ID}))[0]
    assert [one.event.action for one in (created, updated, deleted)] == [
        "BUDGET_CAP_CREATED",
        "BUDGET_CAP_UPDATED",
        "BUDGET_CAP_DELETED",
    ]
    assert {one.event.details["managed_by"] for one in (created, updated, deleted)} == {"TENANT"}
    assert created.event.details["limit_usd"] == "0.1"
    assert updated.event.details["old"] == {"limit_usd": "0.1", "reason": "start", "version": 1}
    assert updated.event.details["new"] == {"limit_usd": "0.2", "reason": "more", "version": 2}
    assert created.event.actor == "admin@example.com"
    await create(admin, OPERATOR, BudgetScope())
    async with unit_of_work.begin() as conn:
        events, _ = await admin.audit.list(conn, {PLATFORM_TENANT_ID})
    assert events[0].event.details["managed_by"] == "PLATFORM"


@pytest.mark.parametrize(
    "tenant_id", [PLATFORM_TENANT_ID, DEFAULT_TENANT_ID, UUID("ffffffff-ffff-7fff-bfff-fffffffffffe")]
)
def test_a_lock_key_fits_the_database(tenant_id: UUID) -> None:
    assert -(2**63) <= tenant_lock_key(tenant_id) < 2**63
