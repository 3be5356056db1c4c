"""TenantService on the wire: tenants, their keys and their groups."""

from typing import Any

from connectrpc.request import RequestContext

from bursar.v1 import tenant_pb2
from bursar.v1 import tenant_service_pb2 as pb
from bursar_server.db.unit_of_work import UnitOfWork
from bursar_server.groups.rpc import group_message
from bursar_server.groups.service import GroupService
from bursar_server.keys.model import KeyDraft
from bursar_server.keys.rpc import key_message
from bursar_server.keys.service import KeyService
from bursar_server.kit.errors import invalid
from bursar_server.rpc import fields
from bursar_server.rpc.auth import caller_of
from bursar_server.tenants.model import Tenant, TenantChange, TenantStatus
from bursar_server.tenants.rules import MAX_METADATA
from bursar_server.tenants.service import TenantService
from bursar_server.users.service import UserService

Context = RequestContext[Any, Any]

MAX_NAME = 200
MAX_REGION = 64
MAX_MEMBERS = 10_000


class TenantRpc:
    """Answers bursar.v1.TenantService."""

    def __init__(
        self,
        *,
        unit_of_work: UnitOfWork,
        tenants: TenantService,
        keys: KeyService,
        groups: GroupService,
        users: UserService,
    ) -> None:
        self._unit_of_work = unit_of_work
        self._tenants = tenants
        self._keys = keys
        self._groups = groups
        self._users = users

    async def create_tenant(self, request: pb.CreateTenantRequest, ctx: Context) -> pb.CreateTenantResponse:
        """Make a tenant."""
        async with self._unit_of_work.begin() as conn:
            tenant = await self._tenants.create(
                conn,
                caller_of(ctx),
                name=fields.text(request.name, "name", max_length=MAX_NAME, required=True),
                region=fields.text(request.region, "region", max_length=MAX_REGION),
                metadata=_metadata(request),
            )
        return pb.CreateTenantResponse(tenant=tenant_message(tenant))

    async def get_tenant(self, request: pb.GetTenantRequest, ctx: Context) -> pb.GetTenantResponse:
        """Read a tenant."""
        async with self._unit_of_work.begin() as conn:
            tenant = await self._tenants.resolve(conn, caller_of(ctx), request.tenant_id)
        return pb.GetTenantResponse(tenant=tenant_message(tenant))

    async def list_tenants(self, request: pb.ListTenantsRequest, ctx: Context) -> pb.ListTenantsResponse:
        """List tenants."""
        async with self._unit_of_work.begin() as conn:
            page, token = await self._tenants.list(
                conn, caller_of(ctx), page_size=request.page_size, page_token=request.page_token
            )
        return pb.ListTenantsResponse(
            tenants=[tenant_message(tenant) for tenant in page], next_page_token=token
        )

    async def update_tenant(self, request: pb.UpdateTenantRequest, ctx: Context) -> pb.UpdateTenantResponse:
        """Change a tenant."""
        change = TenantChange(
            fields.optional_text(request, "name", max_length=MAX_NAME),
            fields.choice(request.status, tenant_pb2.TenantStatus, TenantStatus, "status"),
            fields.optional_text(request, "region", max_length=MAX_REGION),
            _metadata(request),
        )
        async with self._unit_of_work.begin() as conn:
            tenant = await self._tenants.update(conn, caller_of(ctx), request.tenant_id, change)
        return pb.UpdateTenantResponse(tenant=tenant_message(tenant))

    async def create_api_key(self, request: pb.CreateApiKeyRequest, ctx: Context) -> pb.CreateApiKeyResponse:
        """Make a key."""
        caller = caller_of(ctx)
        draft = KeyDraft(
            name=fields.text(request.name, "name", max_length=MAX_NAME, required=True),
            service_account=request.service_account,
            act_for_users=request.act_for_users,
            trust_user_field=request.trust_user_field,
            default_tags=fields.tags(request.default_tags, "default_tags"),
        )
        async with self._unit_of_work.begin() as conn:
            user = None
            if request.user_id:
                user = await self._users.resolve(conn, caller, request.user_id, request.tenant_id)
                tenant_id = user.tenant_id
            else:
                tenant_id = (await self._tenants.resolve(conn, caller, request.tenant_id)).tenant_id
            key, secret = await self._keys.create(conn, caller, tenant_id, draft, user)
        return pb.CreateApiKeyResponse(api_key=key_message(key), secret=secret)

    async def list_api_keys(self, request: pb.ListApiKeysRequest, ctx: Context) -> pb.ListApiKeysResponse:
        """List keys."""
        caller = caller_of(ctx)
        async with self._unit_of_work.begin() as conn:
            user_id = None
            if request.user_id:
                user = await self._users.resolve(conn, caller, request.user_id, request.tenant_id)
                user_id, tenant_id = user.user_id, user.tenant_id
            else:
                tenant_id = (await self._tenants.resolve(conn, caller, request.tenant_id)).tenant_id
            page, token = await self._keys.list(
                conn,
                tenant_id,
                user_id=user_id,
                include_revoked=request.include_revoked,
                page_size=request.page_size,
                page_token=request.page_token,
            )
        return pb.ListApiKeysResponse(api_keys=[key_message(key) for key in page], next_page_token=token)

    async def revoke_api_key(self, request: pb.RevokeApiKeyRequest, ctx: Context) -> pb.RevokeApiKeyResponse:
        """End a key."""
        key_id = fields.uuid(request.key_id, "key_id")
        async with self._unit_of_work.begin() as conn:
            key = await self._keys.revoke(conn, caller_of(ctx), key_id)
        return pb.RevokeApiKeyResponse(api_key=key_message(key))

    async def create_group(self, request: pb.CreateGroupRequest, ctx: Context) -> pb.CreateGroupResponse:
        """Make a group."""
        caller = caller_of(ctx)
        parent = fields.optional_uuid(request.parent_group_id, "parent_group_id")
        name = fields.text(request.name, "name", max_length=MAX_NAME, required=True)
        async with self._unit_of_work.begin() as conn:
            tenant_id = (await self._tenants.resolve(conn, caller, request.tenant_id)).tenant_id
            user_ids = await self._users.resolve_many(conn, tenant_id, _members(request))
            group = await self._groups.create(
                conn, caller, tenant_id, name=name, parent_group_id=parent, user_ids=user_ids
            )
        return pb.CreateGroupResponse(group=group_message(group))

    async def list_groups(self, request: pb.ListGroupsRequest, ctx: Context) -> pb.ListGroupsResponse:
        """List groups."""
        async with self._unit_of_work.begin() as conn:
            tenant = await self._tenants.resolve(conn, caller_of(ctx), request.tenant_id)
            page, token = await self._groups.list(
                conn, tenant.tenant_id, page_size=request.page_size, page_token=request.page_token
            )
        return pb.ListGroupsResponse(groups=[group_message(group) for group in page], next_page_token=token)

    async def update_group(self, request: pb.UpdateGroupRequest, ctx: Context) -> pb.UpdateGroupResponse:
        """Change a group."""
        group_id = fields.uuid(request.group_id, "group_id")
        parent = fields.optional_uuid(request.parent_group_id, "parent_group_id")
        async with self._unit_of_work.begin() as conn:
            group = await self._groups.update(
                conn,
                caller_of(ctx),
                group_id,
                name=fields.optional_text(request, "name", max_length=MAX_NAME),
                parent_group_id=parent,
                take_out=request.HasField("parent_group_id") and parent is None,
            )
        return pb.UpdateGroupResponse(group=group_message(group))

    async def delete_group(self, request: pb.DeleteGroupRequest, ctx: Context) -> pb.DeleteGroupResponse:
        """Remove a group."""
        group_id = fields.uuid(request.group_id, "group_id")
        async with self._unit_of_work.begin() as conn:
            await self._groups.delete(conn, caller_of(ctx), group_id)
        return pb.DeleteGroupResponse()

    async def set_group_members(
        self, request: pb.SetGroupMembersRequest, ctx: Context
    ) -> pb.SetGroupMembersResponse:
        """Replace a group's members."""
        caller = caller_of(ctx)
        group_id = fields.uuid(request.group_id, "group_id")
        async with self._unit_of_work.begin() as conn:
            group = await self._groups.get(conn, caller, group_id)
            user_ids = await self._users.resolve_many(conn, group.tenant_id, _members(request))
            group = await self._groups.set_members(conn, caller, group_id, user_ids)
        return pb.SetGroupMembersResponse(group=group_message(group))


def _members(request: pb.CreateGroupRequest | pb.SetGroupMembersRequest) -> list[str]:
    if len(request.user_ids) > MAX_MEMBERS:
        raise invalid("user_ids", f"must have at most {MAX_MEMBERS} users")
    return list(request.user_ids)


def _metadata(request: pb.CreateTenantRequest | pb.UpdateTenantRequest) -> dict[str, str]:
    return fields.text_map(
        request.metadata, "metadata", max_entries=MAX_METADATA, max_key_length=64, max_value_length=1_000
    )


def tenant_message(tenant: Tenant) -> tenant_pb2.Tenant:
    """Return a tenant as the wire has it."""
    return tenant_pb2.Tenant(
        tenant_id=str(tenant.tenant_id),
        name=tenant.name,
        status=f"TENANT_STATUS_{tenant.status}",
        region=tenant.region,
        metadata=tenant.metadata,
        create_time=fields.timestamp_of(tenant.create_time),
        update_time=fields.timestamp_of(tenant.update_time),
    )
