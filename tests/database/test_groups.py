"""Groups: nested, with members by id or e-mail, and names unique in their tenant."""

import asyncio
from uuid import UUID

import pytest

from bursar.v1 import budget_pb2, budget_service_pb2, tenant_pb2, user_service_pb2
from bursar.v1 import tenant_service_pb2 as pb
from bursar_server.db.unit_of_work import UnitOfWork
from bursar_server.kit.caller import Caller, Role
from bursar_server.kit.errors import BursarError, Reason
from bursar_server.kit.ids import DEFAULT_TENANT_ID
from support.admin import ADMIN, OPERATOR, AdminSide, admin_side, version_of
from support.called import called_by

STRANGER = Caller(Role.TENANT_ADMIN, "s", frozenset({UUID(int=7)}))


@pytest.fixture
def admin(unit_of_work: UnitOfWork) -> AdminSide:
    return admin_side(unit_of_work)


async def user(admin: AdminSide, email: str) -> str:
    request = user_service_pb2.CreateUserRequest(email=email)
    return (await admin.user_rpc.create_user(request, called_by(ADMIN))).user.user_id


async def create(admin: AdminSide, name: str, parent: str = "", *users: str) -> tenant_pb2.Group:
    request = pb.CreateGroupRequest(name=name, parent_group_id=parent, user_ids=users)
    return (await admin.tenant_rpc.create_group(request, called_by(ADMIN))).group


async def refused(coroutine: object) -> BursarError:
    with pytest.raises(BursarError) as caught:
        await coroutine  # type: ignore[misc]
    return caught.value


async def test_members_are_named_by_id_or_e_mail(admin: AdminSide) -> None:
    """C24: either works, in any case, and naming one twice is once."""
    alice, bob = await user(admin, "alice@example.com"), await user(admin, "bob@example.com")
    group = await create(admin, "core", "", alice, " ALICE@example.com ", "bob@example.com")
    assert sorted(group.user_ids) == sorted([alice, bob])
    members = pb.SetGroupMembersRequest(group_id=group.group_id, user_ids=["bob@example.com"])
    changed = (await admin.tenant_rpc.set_group_members(members, called_by(ADMIN))).group
    assert list(changed.user_ids) == [bob]
    listed = await admin.tenant_rpc.list_groups(pb.ListGroupsRequest(), called_by(ADMIN))
    assert [list(one.user_ids) for one in listed.groups] == [[bob]]


async def test_an_unknown_member_is_named(admin: AdminSide) -> None:
    """F108: a person in the wrong group is spend in the wrong place, so nobody is added by guessing."""
    for unknown in ("nobody@example.com", "00000000-0000-7000-8000-0000000000ff"):
        error = await refused(create(admin, "core", "", unknown))
        assert (error.reason, error.field) == (Reason.NOT_FOUND, "user_ids")
        assert unknown in error.message
    assert (await refused(create(admin, "core", "", "not an e-mail"))).field == "user_ids"


async def test_a_name_is_unique_in_its_tenant(admin: AdminSide) -> None:
    await create(admin, "core")
    error = await refused(create(admin, " core "))
    assert (error.reason, error.field) == (Reason.ALREADY_EXISTS, "name")
    await admin.tenant_rpc.create_tenant(pb.CreateTenantRequest(name="acme"), called_by(OPERATOR))
    elsewhere = pb.CreateGroupRequest(name="core", tenant_id="acme")
    assert (await admin.tenant_rpc.create_group(elsewhere, called_by(OPERATOR))).group.name == "core"


async def test_groups_nest_and_never_in_a_circle(admin: AdminSide) -> None:
    """F036, S1: a group is a part of another; not of itself, nor of what is a part of it."""
    top = await create(admin, "engineering")
    below = await create(admin, "core", top.group_id)
    assert below.parent_group_id == top.group_id
    circle = pb.UpdateGroupRequest(group_id=top.group_id, parent_group_id=below.group_id)
    error = await refused(admin.tenant_rpc.update_group(circle, called_by(ADMIN)))
    assert (error.reason, error.field) == (Reason.INVALID_FIELD, "parent_group_id")
    out = pb.UpdateGroupRequest(group_id=below.group_id, parent_group_id="")
    assert (await admin.tenant_rpc.update_group(out, called_by(ADMIN))).group.parent_group_id == ""
    await admin.tenant_rpc.update_group(circle, called_by(ADMIN))


async def test_two_moves_at_once_make_no_circle(admin: AdminSide) -> None:
    a, b = await create(admin, "a"), await create(admin, "b")
    moves = [(a, b), (b, a)]
    results = await asyncio.gather(
        *(
            admin.tenant_rpc.update_group(
                pb.UpdateGroupRequest(group_id=one.group_id, parent_group_id=other.group_id), called_by(ADMIN)
            )
            for one, other in moves
        ),
        return_exceptions=True,
    )
    assert sorted(type(one).__name__ for one in results) == ["BursarError", "UpdateGroupResponse"]


async def test_a_rename_leaves_the_rest(admin: AdminSide) -> None:
    top = await create(admin, "engineering")
    below = await create(admin, "core", top.group_id, await user(admin, "alice@example.com"))
    renamed = pb.UpdateGroupRequest(group_id=below.group_id, name="kernel")
    group = (await admin.tenant_rpc.update_group(renamed, called_by(ADMIN))).group
    assert (group.name, group.parent_group_id, list(group.user_ids)) == (
        "kernel",
        top.group_id,
        list(below.user_ids),
    )


async def test_a_group_in_use_is_not_deleted(admin: AdminSide) -> None:
    """A group with groups below it, or with an enabled budget, stays until they are gone."""
    top = await create(admin, "engineering")
    below = await create(admin, "core", top.group_id)
    delete_top = pb.DeleteGroupRequest(group_id=top.group_id)
    delete_below = pb.DeleteGroupRequest(group_id=below.group_id)
    assert (
        await refused(admin.tenant_rpc.delete_group(delete_top, called_by(ADMIN)))
    ).reason is Reason.WRONG_STATE
    scope = budget_pb2.BudgetScope(group_id=below.group_id)
    made = await admin.budget_rpc.create_budget(
        budget_service_pb2.CreateBudgetRequest(budget=budget_pb2.Budget(scope=scope, limit_usd=5)),
        called_by(ADMIN),
    )
    error = await refused(admin.tenant_rpc.delete_group(delete_below, called_by(ADMIN)))
    assert error.reason is Reason.WRONG_STATE
    await admin.budget_rpc.delete_budget(
        budget_service_pb2.DeleteBudgetRequest(budget_id=made.budget.budget_id), called_by(ADMIN)
    )
    await admin.tenant_rpc.delete_group(delete_below, called_by(ADMIN))
    await admin.tenant_rpc.delete_group(delete_top, called_by(ADMIN))
    assert not (await admin.tenant_rpc.list_groups(pb.ListGroupsRequest(), called_by(ADMIN))).groups


async def test_a_foreign_group_is_not_found(admin: AdminSide) -> None:
    """F013: neither to change nor as a parent."""
    group = await create(admin, "core")
    change = pb.UpdateGroupRequest(group_id=group.group_id, name="mine")
    assert (
        await refused(admin.tenant_rpc.update_group(change, called_by(STRANGER)))
    ).reason is Reason.NOT_FOUND
    await admin.tenant_rpc.create_tenant(pb.CreateTenantRequest(name="acme"), called_by(OPERATOR))
    foreign = pb.CreateGroupRequest(tenant_id="acme", name="x", parent_group_id=group.group_id)
    error = await refused(admin.tenant_rpc.create_group(foreign, called_by(OPERATOR)))
    assert (error.reason, error.field) == (Reason.NOT_FOUND, "parent_group_id")


async def test_changes_bind_at_once_and_are_audited(admin: AdminSide, unit_of_work: UnitOfWork) -> None:
    """S13, F177: each change raises the configuration's version, and says what changed."""
    alice = await user(admin, "alice@example.com")
    before = await version_of(unit_of_work)
    group = await create(admin, "core")
    members = pb.SetGroupMembersRequest(group_id=group.group_id, user_ids=[alice])
    await admin.tenant_rpc.set_group_members(members, called_by(ADMIN))
    await admin.tenant_rpc.delete_group(pb.DeleteGroupRequest(group_id=group.group_id), called_by(ADMIN))
    assert await version_of(unit_of_work) >= before + 3
    async with unit_of_work.begin() as conn:
        events, _ = await admin.audit.list(conn, {DEFAULT_TENANT_ID})
    assert [one.event.action for one in events[:3]] == ["delete_group", "set_group_members", "create_group"]
    assert events[1].event.details == {"added": [alice], "removed": []}


async def test_which_groups_count_and_which_a_lead_reads(admin: AdminSide, unit_of_work: UnitOfWork) -> None:
    """S1, F013: calls count upwards, a lead reads downwards."""
    alice = await user(admin, "alice@example.com")
    top = await create(admin, "engineering")
    middle = await create(admin, "core", top.group_id, alice)
    bottom = await create(admin, "kernel", middle.group_id)
    async with unit_of_work.begin() as conn:
        counting = await admin.groups.counting(conn, DEFAULT_TENANT_ID, UUID(alice))
        led = await admin.groups.led_by(conn, DEFAULT_TENANT_ID, UUID(alice))
    assert counting == {UUID(top.group_id), UUID(middle.group_id)}
    assert led == {UUID(middle.group_id), UUID(bottom.group_id)}
