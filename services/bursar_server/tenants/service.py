"""Tenants: who they are, which one a request means, and the start of every change to what a Check reads."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from uuid import UUID

from bursar_server.audit.service import AuditService
from bursar_server.db.connection import Connection
from bursar_server.kit import ids, paging
from bursar_server.kit.caller import Caller
from bursar_server.kit.clock import Clock
from bursar_server.kit.errors import BursarError, Reason, invalid, not_found
from bursar_server.tenants import rules, store
from bursar_server.tenants.model import Tenant, TenantChange, TenantStatus


class TenantService:
    """Makes, finds and changes tenants. Every method takes the connection of the caller's transaction."""

    def __init__(self, *, audit: AuditService, clock: Clock) -> None:
        self._audit = audit
        self._clock = clock

    async def begin_change(self, conn: Connection, tenant_id: UUID) -> datetime:
        """Start a change to what a Check reads of a tenant, and return the database's clock.

        Global budgets and the operator's prices are the platform tenant's.
        The version of the tenant's configuration goes up, so that every process reloads it with its next batch (S13).
        The tenant is locked against metering until the transaction ends: from here on no Deduct of it is under way,
        and what is read of its ledger is complete (S4). Changes of one tenant come one after the other. Keep what
        follows short. Raises NOT_FOUND for a tenant that does not exist.
        """
        now = await store.bump_version(conn, tenant_id)
        if now is None:
            raise not_found("tenant", str(tenant_id))
        return now

    async def resolve(self, conn: Connection, caller: Caller, ref: str) -> Tenant:
        """Return the tenant that a request names by id or name.

        Empty is the only tenant of a caller that is bound to one, else the default tenant. Raises NOT_FOUND for one
        that does not exist or that the caller may not see, and INVALID_FIELD where empty could be several.
        """
        if ref:
            tenant_id = ids.parse_uuid(ref)
            found = await store.find(conn, tenant_id=tenant_id, name=ref.strip())
        elif caller.tenant_ids is not None and len(caller.tenant_ids) == 1:
            found = await store.find(conn, tenant_id=next(iter(caller.tenant_ids)))
        elif caller.may_see(ids.DEFAULT_TENANT_ID):
            found = await store.find(conn, tenant_id=ids.DEFAULT_TENANT_ID)
        else:
            raise invalid("tenant_id", "is needed: this token is for several tenants")
        if found is None or not caller.may_see(found.tenant_id):
            raise not_found("tenant", ref or "default")
        return found

    async def visible(self, conn: Connection, caller: Caller, ref: str) -> frozenset[UUID] | None:
        """Return the tenants that a list speaks of: the one named, else all that the caller may see (None is all)."""
        if ref:
            return frozenset({(await self.resolve(conn, caller, ref)).tenant_id})
        return caller.tenant_ids

    async def create(
        self, conn: Connection, caller: Caller, *, name: str, region: str = "", metadata: Mapping[str, str]
    ) -> Tenant:
        """Make a tenant; its id is the server's (F178, F179). Raises ALREADY_EXISTS where the name is taken."""
        now = self._clock.now()
        empty = Tenant(ids.uuid7_at(now), "", TenantStatus.ACTIVE, "", {}, now, now)
        tenant = rules.changed(empty, TenantChange(name, None, region, metadata), now)
        if not await store.add(conn, tenant):
            raise BursarError(
                Reason.ALREADY_EXISTS, f"name: a tenant {tenant.name!r} exists already", field="name"
            )
        await self._record(conn, "create_tenant", caller, tenant, _details(tenant))
        return tenant

    async def list(
        self, conn: Connection, caller: Caller, *, page_size: int = 0, page_token: str = ""
    ) -> tuple[Sequence[Tenant], str]:
        """Return the tenants that the caller may see by name, and the next page's token."""
        size = paging.page_size_of(page_size)
        query = ["tenants", sorted(map(str, caller.tenant_ids)) if caller.tenant_ids is not None else None]
        token = paging.decode_page_token(page_token, query, 2)
        after = (token[0], paging.position_uuid(token[1])) if token else None
        found = await store.list_tenants(conn, caller.tenant_ids, after=after, limit=size + 1)
        return paging.cut_page(found, size, query, lambda tenant: [tenant.name, str(tenant.tenant_id)])

    async def update(self, conn: Connection, caller: Caller, ref: str, change: TenantChange) -> Tenant:
        """Change a tenant and return it. Raises PERMISSION_DENIED for what is the operator's to change."""
        rules.check_may_change(caller, change)
        tenant_id = (await self.resolve(conn, caller, ref)).tenant_id
        await self.begin_change(conn, tenant_id)
        before = await self.resolve(conn, caller, str(tenant_id))
        after = rules.changed(before, change, self._clock.now())
        await store.write(conn, after)
        old, new = _details(before), _details(after)
        differing = [key for key in new if old[key] != new[key]]
        details = {"old": {key: old[key] for key in differing}, "new": {key: new[key] for key in differing}}
        await self._record(conn, "update_tenant", caller, after, details)
        return after

    async def _record(
        self, conn: Connection, action: str, caller: Caller, tenant: Tenant, details: Mapping[str, object]
    ) -> None:
        resource = f"tenant/{tenant.tenant_id}"
        await self._audit.record(
            conn, tenant.tenant_id, action, actor=caller.actor, resource=resource, details=details
        )


def _details(tenant: Tenant) -> dict[str, object]:
    return {
        "name": tenant.name,
        "status": tenant.status.value,
        "region": tenant.region,
        "metadata": dict(tenant.metadata),
    }
