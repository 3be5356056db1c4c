"""Tenants: made by the operator, found by id or name, changed by whom they concern."""

import asyncio
from uuid import UUID

import pytest

from bursar.v1 import tenant_pb2
from bursar.v1 import tenant_service_pb2 as pb
from bursar.v1.tenant_service_connect import TenantService as TenantProtocol
from bursar_server.db.unit_of_work import UnitOfWork
from bursar_server.kit.caller import Caller, Role
from bursar_server.kit.errors import BursarError, Reason
from bursar_server.kit.ids import DEFAULT_TENANT_ID, PLATFORM_TENANT_ID, time_of_uuid7
from support.admin import ADMIN, OPERATOR, AdminSide, admin_side, version_of
from support.called import called_by


@pytest.fixture
def admin(unit_of_work: UnitOfWork) -> AdminSide:
    return admin_side(unit_of_work)


async def create(admin: AdminSide, name: str, caller: Caller = OPERATOR) -> tenant_pb2.Tenant:
    request = pb.CreateTenantRequest(name=name, region="eu", metadata={"cost.anomaly-threshold-pct": "50"})
    return (await admin.tenant_rpc.create_tenant(request, called_by(caller))).tenant


async def get(admin: AdminSide, ref: str, caller: Caller = OPERATOR) -> tenant_pb2.Tenant:
    return (await admin.tenant_rpc.get_tenant(pb.GetTenantRequest(tenant_id=ref), called_by(caller))).tenant


def test_the_handlers_are_the_service(admin: AdminSide) -> None:
    handlers: TenantProtocol = admin.tenant_rpc
    assert handlers is admin.tenant_rpc


async def test_a_tenant_has_what_was_said_of_it_and_an_id_of_the_server(admin: AdminSide) -> None:
    """F178, F179, F184: name, status, region and metadata; the id is a UUID that the server makes."""
    made = await create(admin, " acme ")
    assert (made.name, made.region, made.status) == ("acme", "eu", tenant_pb2.TENANT_STATUS_ACTIVE)
    assert dict(made.metadata) == {"cost.anomaly-threshold-pct": "50"}
    assert time_of_uuid7(UUID(made.tenant_id)) is not None
    assert await get(admin, "acme") == made
    assert await get(admin, made.tenant_id) == made


async def test_a_single_tenant_installation_names_none(admin: AdminSide) -> None:
    """The tenant `default` exists from the start, and empty means it."""
    assert (await get(admin, "")).name == "default"
    assert (await get(admin, "default")).tenant_id == str(DEFAULT_TENANT_ID)


async def test_a_token_of_one_tenant_means_that_one(admin: AdminSide) -> None:
    acme = await create(admin, "acme")
    caller = Caller(Role.TENANT_ADMIN, "a@acme.test", frozenset({UUID(acme.tenant_id)}))
    assert (await get(admin, "", caller)).name == "acme"
    two = Caller(Role.TENANT_ADMIN, "x", frozenset({UUID(acme.tenant_id), UUID(int=7)}))
    with pytest.raises(BursarError, match="tenant_id") as caught:
        await get(admin, "", two)
    assert caught.value.reason is Reason.INVALID_FIELD


async def test_tenants_do_not_see_each_other(admin: AdminSide) -> None:
    """F013: another tenant is not found, whether by name, by id or in a list."""
    acme = await create(admin, "acme")
    for ref in ("acme", acme.tenant_id):
        with pytest.raises(BursarError) as caught:
            await get(admin, ref, ADMIN)
        assert caught.value.reason is Reason.NOT_FOUND
    listed = await admin.tenant_rpc.list_tenants(pb.ListTenantsRequest(), called_by(ADMIN))
    assert [tenant.name for tenant in listed.tenants] == ["default"]


async def test_the_platforms_own_row_is_no_tenant(admin: AdminSide) -> None:
    for ref in ("platform", str(PLATFORM_TENANT_ID)):
        with pytest.raises(BursarError) as caught:
            await get(admin, ref)
        assert caught.value.reason is Reason.NOT_FOUND
    listed = await admin.tenant_rpc.list_tenants(pb.ListTenantsRequest(), called_by(OPERATOR))
    assert [tenant.name for tenant in listed.tenants] == ["default"]


async def test_tenants_are_listed_by_name_in_pages(admin: AdminSide) -> None:
    for name in ("zeta", "acme", "mid"):
        await create(admin, name)
    names: list[str] = []
    token = ""
    for _ in range(3):
        request = pb.ListTenantsRequest(page_size=2, page_token=token)
        answer = await admin.tenant_rpc.list_tenants(request, called_by(OPERATOR))
        names += [tenant.name for tenant in answer.tenants]
        token = answer.next_page_token
        if not token:
            break
    assert names == ["acme", "default", "mid", "zeta"]


@pytest.mark.parametrize("name", ["acme", "platform", "default"])
async def test_a_name_is_unique(admin: AdminSide, name: str) -> None:
    await create(admin, "acme")
    with pytest.raises(BursarError) as caught:
        await create(admin, name)
    assert (caught.value.reason, caught.value.field) == (Reason.ALREADY_EXISTS, "name")


async def test_of_two_tenants_made_at_once_with_one_name_one_is_made(admin: AdminSide) -> None:
    made = await asyncio.gather(create(admin, "acme"), create(admin, "acme"), return_exceptions=True)
    assert sorted(type(one).__name__ for one in made) == ["BursarError", "Tenant"]


@pytest.mark.parametrize("name", ["", "  ", "00000000-0000-7000-8000-0000000000aa"])
async def test_a_name_is_not_empty_and_does_not_read_as_an_id(admin: AdminSide, name: str) -> None:
    with pytest.raises(BursarError) as caught:
        await create(admin, name)
    assert caught.value.field == "name"


async def test_a_change_leaves_what_it_does_not_name(admin: AdminSide, unit_of_work: UnitOfWork) -> None:
    """F178, F184: the status can change; metadata is merged, an empty value removes an entry. S13: it binds at once."""
    made = await create(admin, "acme")
    before = await version_of(unit_of_work, UUID(made.tenant_id))
    request = pb.UpdateTenantRequest(
        tenant_id="acme",
        status=tenant_pb2.TENANT_STATUS_SUSPENDED,
        metadata={"cost.anomaly-threshold-pct": "", "owner": "finance"},
    )
    changed = (await admin.tenant_rpc.update_tenant(request, called_by(OPERATOR))).tenant
    assert (changed.name, changed.region) == ("acme", "eu")
    assert changed.status == tenant_pb2.TENANT_STATUS_SUSPENDED
    assert dict(changed.metadata) == {"owner": "finance"}
    assert await version_of(unit_of_work, UUID(made.tenant_id)) > before


async def test_a_tenants_admin_changes_its_metadata_and_nothing_else(admin: AdminSide) -> None:
    """C11: name, status and region are the operator's."""
    request = pb.UpdateTenantRequest(metadata={"a": "b"})
    assert (await admin.tenant_rpc.update_tenant(request, called_by(ADMIN))).tenant.metadata["a"] == "b"
    for refused in (
        pb.UpdateTenantRequest(status=tenant_pb2.TENANT_STATUS_SUSPENDED),
        pb.UpdateTenantRequest(name="mine"),
        pb.UpdateTenantRequest(region="us"),
    ):
        with pytest.raises(BursarError) as caught:
            await admin.tenant_rpc.update_tenant(refused, called_by(ADMIN))
        assert caught.value.reason is Reason.PERMISSION_DENIED


async def test_a_name_of_another_tenant_cannot_be_taken(admin: AdminSide) -> None:
    await create(admin, "acme")
    with pytest.raises(BursarError) as caught:
        await admin.tenant_rpc.update_tenant(
            pb.UpdateTenantRequest(tenant_id="acme", name="default"), called_by(OPERATOR)
        )
    assert caught.value.reason is Reason.ALREADY_EXISTS


async def test_making_and_changing_a_tenant_is_audited(admin: AdminSide, unit_of_work: UnitOfWork) -> None:
    """F173, F177, F180: who did it and what was there before, in the tenant's own trail."""
    made = await create(admin, "acme")
    await admin.tenant_rpc.update_tenant(
        pb.UpdateTenantRequest(tenant_id="acme", region="us"), called_by(OPERATOR)
    )
    async with unit_of_work.begin() as conn:
        events, _ = await admin.audit.list(conn, {UUID(made.tenant_id)})
    assert [(one.event.action, one.event.actor) for one in events] == [
        ("update_tenant", "operator"),
        ("create_tenant", "operator"),
    ]
    assert events[0].event.details == {"old": {"region": "eu"}, "new": {"region": "us"}}
    assert events[0].event.resource == f"tenant/{made.tenant_id}"
