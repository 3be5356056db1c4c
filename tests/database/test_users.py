"""Users: named by id or e-mail, made when first seen, deactivated, deleted; what follows from each."""

import asyncio
from uuid import UUID

import pytest
from google.protobuf.json_format import MessageToDict

from bursar.v1 import budget_pb2, budget_service_pb2, tenant_service_pb2, user_pb2
from bursar.v1 import user_service_pb2 as pb
from bursar.v1.user_service_connect import UserService as UserProtocol
from bursar_server.db.unit_of_work import UnitOfWork
from bursar_server.kit.caller import Caller, Role
from bursar_server.kit.errors import BursarError, Reason
from bursar_server.kit.ids import DEFAULT_TENANT_ID, time_of_uuid7
from support.admin import ADMIN, OPERATOR, USD, AdminSide, admin_side, version_of
from support.called import called_by

STRANGER = Caller(Role.TENANT_ADMIN, "s", frozenset({UUID(int=7)}))


@pytest.fixture
def admin(unit_of_work: UnitOfWork) -> AdminSide:
    return admin_side(unit_of_work)


@pytest.fixture
def with_default(unit_of_work: UnitOfWork) -> AdminSide:
    """A server with `default_daily_budget_usd: 5.00`."""
    return admin_side(unit_of_work, default_daily_budget_nanos=5 * USD)


async def create(admin: AdminSide, email: str, caller: Caller = ADMIN, **fields: object) -> user_pb2.User:
    request = pb.CreateUserRequest(email=email, **fields)  # type: ignore[arg-type]
    return (await admin.user_rpc.create_user(request, called_by(caller))).user


async def get(admin: AdminSide, ref: str, tenant: str = "", caller: Caller = ADMIN) -> user_pb2.User:
    request = pb.GetUserRequest(user_id=ref, tenant_id=tenant)
    return (await admin.user_rpc.get_user(request, called_by(caller))).user


async def refused(coroutine: object) -> BursarError:
    with pytest.raises(BursarError) as caught:
        await coroutine  # type: ignore[misc]
    return caught.value


async def budgets_of(admin: AdminSide, email: str) -> list[budget_pb2.Budget]:
    request = budget_service_pb2.ListBudgetsRequest(user_id=email)
    return list((await admin.budget_rpc.list_budgets(request, called_by(OPERATOR))).budgets)


async def actions(admin: AdminSide) -> list[str]:
    answer = await admin.user_rpc.list_audit_log(pb.ListAuditLogRequest(), called_by(ADMIN))
    return [entry.action for entry in answer.entries][::-1]


def test_the_handlers_are_the_service(admin: AdminSide) -> None:
    handlers: UserProtocol = admin.user_rpc
    assert handlers is admin.user_rpc


async def test_a_user_is_found_by_id_and_by_e_mail(admin: AdminSide) -> None:
    """F192, C24, F092: the e-mail works wherever an id does, in any case; a new user may make 60 requests a minute."""
    made = await create(admin, " Alice@Example.com ", display_name="Alice")
    assert time_of_uuid7(UUID(made.user_id)) is not None
    assert (made.email, made.display_name, made.rate_limit) == ("alice@example.com", "Alice", 60)
    assert (made.role, made.status) == (user_pb2.ROLE_MEMBER, user_pb2.USER_STATUS_ACTIVE)
    assert made.tenant_id == str(DEFAULT_TENANT_ID)
    for ref in (made.user_id, "alice@example.com", "ALICE@EXAMPLE.COM"):
        assert await get(admin, ref) == made


@pytest.mark.parametrize("ref", ["bob@example.com", "00000000-0000-7000-8000-0000000000ff"])
async def test_who_does_not_exist_is_not_found(admin: AdminSide, ref: str) -> None:
    error = await refused(get(admin, ref))
    assert (error.reason, error.field) == (Reason.NOT_FOUND, "user_id")


async def test_an_e_mail_is_unique_in_its_tenant(admin: AdminSide) -> None:
    await create(admin, "alice@example.com")
    error = await refused(create(admin, "ALICE@example.com"))
    assert (error.reason, error.field) == (Reason.ALREADY_EXISTS, "email")


async def test_an_e_mail_of_two_tenants_needs_the_tenant(admin: AdminSide) -> None:
    """Contract: an ambiguous e-mail is FAILED_PRECONDITION asking for tenant_id; a tenant's own token needs none."""
    request = tenant_service_pb2.CreateTenantRequest(name="acme")
    acme = (await admin.tenant_rpc.create_tenant(request, called_by(OPERATOR))).tenant
    here = await create(admin, "alice@example.com")
    there = await create(admin, "alice@example.com", OPERATOR, tenant_id="acme")
    error = await refused(get(admin, "alice@example.com", caller=OPERATOR))
    assert (error.reason, error.field) == (Reason.USER_AMBIGUOUS, "tenant_id")
    assert "tenant_id" in error.message
    set_budget = pb.SetBudgetRequest(user_id="alice@example.com", limit_usd=1)
    error = await refused(admin.user_rpc.set_budget(set_budget, called_by(OPERATOR)))
    assert error.reason is Reason.USER_AMBIGUOUS
    assert await get(admin, "alice@example.com", "acme", OPERATOR) == there
    assert await get(admin, "alice@example.com", acme.tenant_id, OPERATOR) == there
    assert await get(admin, "alice@example.com", caller=ADMIN) == here
    assert await get(admin, there.user_id, caller=OPERATOR) == there
    assert (await refused(get(admin, there.user_id, "default", OPERATOR))).reason is Reason.NOT_FOUND


async def test_another_tenants_user_is_not_found(admin: AdminSide) -> None:
    """F013."""
    made = await create(admin, "alice@example.com")
    for ref in (made.user_id, made.email):
        assert (await refused(get(admin, ref, caller=STRANGER))).reason is Reason.NOT_FOUND
    listed = await admin.user_rpc.list_users(pb.ListUsersRequest(), called_by(STRANGER))
    assert not listed.users


async def test_a_new_user_gets_the_configured_daily_budget(with_default: AdminSide) -> None:
    """F019, F043: $5 a day, HARD, unless the request says another; the operator manages the configured one."""
    await create(with_default, "alice@example.com")
    [budget] = await budgets_of(with_default, "alice@example.com")
    assert (budget.limit_usd, budget.name) == (5.0, "alice@example.com daily")
    assert budget.period == budget_pb2.BUDGET_PERIOD_DAILY
    assert budget.enforcement == budget_pb2.ENFORCEMENT_HARD
    assert budget.managed_by == budget_pb2.MANAGED_BY_PLATFORM
    await create(with_default, "bob@example.com", daily_budget_usd=0.5)
    [budget] = await budgets_of(with_default, "bob@example.com")
    assert (budget.limit_usd, budget.managed_by) == (0.5, budget_pb2.MANAGED_BY_TENANT)
    await create(with_default, "ci@example.com", service_account=True)
    assert not await budgets_of(with_default, "ci@example.com")


async def test_without_a_configured_budget_a_new_user_has_none(admin: AdminSide) -> None:
    """C10: absent is no limit; 0 is a limit of nothing."""
    await create(admin, "alice@example.com")
    assert not await budgets_of(admin, "alice@example.com")
    await create(admin, "bob@example.com", daily_budget_usd=0)
    assert [budget.limit_usd for budget in await budgets_of(admin, "bob@example.com")] == [0.0]


async def test_ensure_makes_a_user_once(with_default: AdminSide, unit_of_work: UnitOfWork) -> None:
    """F043: an e-mail first seen in a call becomes a user with the configured budget, audited, once."""

    async def ensure() -> UUID:
        async with unit_of_work.begin() as conn:
            user = await with_default.users.ensure(conn, DEFAULT_TENANT_ID, " Alice@example.com", "system")
            return user.user_id

    made = await asyncio.gather(*(ensure() for _ in range(5)))
    assert len(set(made)) == 1
    assert len(await budgets_of(with_default, "alice@example.com")) == 1
    before = await version_of(unit_of_work)
    assert await ensure() == made[0]
    assert await version_of(unit_of_work) == before
    answer = await with_default.user_rpc.list_audit_log(
        pb.ListAuditLogRequest(user_id="alice@example.com", action="create_user"), called_by(ADMIN)
    )
    [entry] = answer.entries
    assert entry.details["auto_provisioned"] is True
    assert entry.actor == "system"


async def test_an_update_changes_what_it_names(admin: AdminSide, unit_of_work: UnitOfWork) -> None:
    """F094, F092: UpdateUser {id, rate_limit: 120}; 0 is off; S13: with the next batch."""
    await create(admin, "alice@example.com", display_name="Alice")
    before = await version_of(unit_of_work)
    request = pb.UpdateUserRequest(id="alice@example.com", rate_limit=120)
    changed = (await admin.user_rpc.update_user(request, called_by(ADMIN))).user
    assert (changed.rate_limit, changed.display_name) == (120, "Alice")
    assert await version_of(unit_of_work) == before + 1
    request = pb.UpdateUserRequest(
        id=changed.user_id, rate_limit=0, email="A@example.com", role=user_pb2.ROLE_GROUP_LEAD
    )
    changed = (await admin.user_rpc.update_user(request, called_by(ADMIN))).user
    assert (changed.rate_limit, changed.email) == (0, "a@example.com")
    assert changed.role == user_pb2.ROLE_GROUP_LEAD
    answer = await admin.user_rpc.list_audit_log(
        pb.ListAuditLogRequest(user_id="a@example.com", limit=1), called_by(ADMIN)
    )
    assert answer.entries[0].action == "update_user"
    details = MessageToDict(answer.entries[0].details)
    assert details["old"]["rate_limit"] == 120
    assert details["new"]["email"] == "a@example.com"


async def test_an_update_that_cannot_be_is_refused(admin: AdminSide) -> None:
    await create(admin, "alice@example.com")
    await create(admin, "bob@example.com")
    for request, field in (
        (pb.UpdateUserRequest(id="alice@example.com", rate_limit=-1), "rate_limit"),
        (pb.UpdateUserRequest(id="alice@example.com", rate_limit=1_000_001), "rate_limit"),
        (pb.UpdateUserRequest(id="alice@example.com", email="bob@example.com"), "email"),
        (pb.UpdateUserRequest(id="alice@example.com", email="nobody"), "email"),
        (pb.UpdateUserRequest(id="alice@example.com", role=user_pb2.ROLE_SIDECAR), "role"),
        (pb.UpdateUserRequest(id="alice@example.com", role=user_pb2.ROLE_PLATFORM_ADMIN), "role"),
        (pb.UpdateUserRequest(id="nobody@example.com"), "id"),
    ):
        assert (await refused(admin.user_rpc.update_user(request, called_by(ADMIN)))).field == field


async def test_a_tenants_admin_does_not_reach_operators(admin: AdminSide) -> None:
    """C11: neither makes one, nor changes one that happens to be in its tenant."""
    error = await refused(create(admin, "root@example.com", ADMIN, role=user_pb2.ROLE_PLATFORM_ADMIN))
    assert error.reason is Reason.PERMISSION_DENIED
    await create(admin, "root@example.com", OPERATOR, role=user_pb2.ROLE_PLATFORM_ADMIN)
    for call in (
        admin.user_rpc.update_user(
            pb.UpdateUserRequest(id="root@example.com", email="me@x.y"), called_by(ADMIN)
        ),
        admin.user_rpc.deactivate_user(
            pb.DeactivateUserRequest(user_id="root@example.com"), called_by(ADMIN)
        ),
        admin.user_rpc.delete_user(pb.DeleteUserRequest(user_id="root@example.com"), called_by(ADMIN)),
    ):
        assert (await refused(call)).reason is Reason.PERMISSION_DENIED


async def test_deactivating_and_reactivating(admin: AdminSide, unit_of_work: UnitOfWork) -> None:
    """F173: each is audited once, and binds with the next batch; done already, nothing changes."""
    await create(admin, "alice@example.com")
    request = pb.DeactivateUserRequest(user_id="alice@example.com")
    before = await version_of(unit_of_work)
    for _ in range(2):
        user = (await admin.user_rpc.deactivate_user(request, called_by(ADMIN))).user
        assert user.status == user_pb2.USER_STATUS_DEACTIVATED
    assert await version_of(unit_of_work) > before
    again = pb.ReactivateUserRequest(user_id="alice@example.com")
    user = (await admin.user_rpc.reactivate_user(again, called_by(ADMIN))).user
    assert user.status == user_pb2.USER_STATUS_ACTIVE
    assert await actions(admin) == ["create_user", "deactivate_user", "reactivate_user"]


async def test_deleting_ends_what_is_the_users_and_keeps_its_history(admin: AdminSide) -> None:
    """F174: keys, budgets and memberships end, the e-mail is free, the trail stays and is found by id."""
    made = await create(admin, "alice@example.com", daily_budget_usd=5)
    key = await admin.tenant_rpc.create_api_key(
        tenant_service_pb2.CreateApiKeyRequest(name="app", user_id=made.user_id), called_by(ADMIN)
    )
    group = tenant_service_pb2.CreateGroupRequest(name="core", user_ids=[made.user_id])
    await admin.tenant_rpc.create_group(group, called_by(ADMIN))
    await admin.user_rpc.delete_user(pb.DeleteUserRequest(user_id="alice@example.com"), called_by(ADMIN))

    assert (await refused(get(admin, "alice@example.com"))).reason is Reason.NOT_FOUND
    assert (await get(admin, made.user_id)).status == user_pb2.USER_STATUS_DELETED
    groups = await admin.tenant_rpc.list_groups(tenant_service_pb2.ListGroupsRequest(), called_by(ADMIN))
    assert not groups.groups[0].user_ids
    keys = await admin.tenant_rpc.list_api_keys(
        tenant_service_pb2.ListApiKeysRequest(include_revoked=True), called_by(ADMIN)
    )
    assert keys.api_keys[0].key_id == key.api_key.key_id
    assert keys.api_keys[0].HasField("revoke_time")
    budgets = await admin.budget_rpc.list_budgets(budget_service_pb2.ListBudgetsRequest(), called_by(ADMIN))
    assert not budgets.budgets

    trail = await admin.user_rpc.list_audit_log(
        pb.ListAuditLogRequest(user_id=made.user_id), called_by(ADMIN)
    )
    assert [entry.action for entry in trail.entries] == [
        "delete_user",
        "BUDGET_CAP_DELETED",
        "revoke_api_key",
        "create_api_key",
        "BUDGET_CAP_CREATED",
        "create_user",
    ]
    again = await create(admin, "alice@example.com")
    assert again.user_id != made.user_id
    for call in (
        admin.user_rpc.reactivate_user(pb.ReactivateUserRequest(user_id=made.user_id), called_by(ADMIN)),
        admin.user_rpc.set_budget(pb.SetBudgetRequest(user_id=made.user_id, limit_usd=1), called_by(ADMIN)),
        admin.user_rpc.get_budget(pb.UserServiceGetBudgetRequest(user_id=made.user_id), called_by(ADMIN)),
    ):
        assert (await refused(call)).reason is Reason.WRONG_STATE


async def test_users_are_listed_by_e_mail_in_pages(admin: AdminSide) -> None:
    """F123: pages of the size asked for; deleted users only when asked for."""
    for name in ("c", "a", "d", "b"):
        await create(admin, f"{name}@example.com")
    await admin.user_rpc.delete_user(pb.DeleteUserRequest(user_id="d@example.com"), called_by(ADMIN))
    seen: list[str] = []
    token = ""
    while True:
        request = pb.ListUsersRequest(page_size=2, page_token=token)
        answer = await admin.user_rpc.list_users(request, called_by(ADMIN))
        assert len(answer.users) <= 2
        seen += [user.email[0] for user in answer.users]
        token = answer.next_page_token
        if not token:
            break
    assert seen == ["a", "b", "c"]
    gone = pb.ListUsersRequest(status=user_pb2.USER_STATUS_DELETED)
    answer = await admin.user_rpc.list_users(gone, called_by(ADMIN))
    assert [user.email for user in answer.users] == ["d@example.com"]
