"""Grants: money for a user, given for a time, and ended early if need be."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from uuid import UUID

from bursar_server.audit.service import AuditService
from bursar_server.db.connection import Connection, database_now
from bursar_server.grants import rules, store
from bursar_server.grants.model import Grant
from bursar_server.kit import ids, paging
from bursar_server.kit.caller import Caller
from bursar_server.kit.clock import Clock
from bursar_server.kit.errors import BursarError, Reason, not_found
from bursar_server.kit.money import usd_text
from bursar_server.tenants.service import TenantService
from bursar_server.users.model import User


class GrantService:
    """Makes, lists and revokes grants. Every method takes the connection of the caller's transaction."""

    def __init__(self, *, tenants: TenantService, audit: AuditService, clock: Clock) -> None:
        self._tenants = tenants
        self._audit = audit
        self._clock = clock

    async def create(
        self,
        conn: Connection,
        caller: Caller,
        user: User,
        *,
        amount_nanos: int,
        expires_at: datetime,
        starts_at: datetime | None = None,
        reason: str = "",
    ) -> Grant:
        """Give a user money that is spent before its budgets, from `starts_at` (None is now) until `expires_at`.

        It counts from the next Check on, also for those that wait (S13). Raises INVALID_FIELD for one that nobody
        could draw on.
        """
        caller.require_tenant(user.tenant_id)
        now = await self._tenants.begin_change(conn, user.tenant_id)
        start = starts_at or now
        rules.check_new(user, amount_nanos, start, expires_at, reason, now)
        made = self._clock.now()
        grant = Grant(
            user.tenant_id,
            ids.uuid7_at(made),
            user.user_id,
            amount_nanos,
            0,
            0,
            reason,
            start,
            expires_at,
            made,
            caller.actor,
        )
        await store.add(conn, grant)
        details = {
            "amount_usd": usd_text(amount_nanos),
            "reason": reason,
            "starts_at": start.isoformat(),
            "expires_at": expires_at.isoformat(),
        }
        await self._record(conn, "create_grant", caller, grant, details)
        return grant

    async def list(
        self,
        conn: Connection,
        tenant_ids: Collection[UUID] | None,
        *,
        user_id: UUID | None = None,
        active_only: bool = False,
        page_size: int = 0,
        page_token: str = "",
    ) -> tuple[Sequence[Grant], str]:
        """Return grants, latest first, and the next page's token. `tenant_ids` None is every tenant."""
        size = paging.page_size_of(page_size)
        query = [
            "grants",
            sorted(map(str, tenant_ids)) if tenant_ids is not None else None,
            user_id,
            active_only,
        ]
        token = paging.decode_page_token(page_token, query, 2)
        found = await store.list_grants(
            conn,
            tenant_ids,
            user_id=user_id,
            active_at=await database_now(conn) if active_only else None,
            after=(paging.position_instant(token[0]), paging.position_uuid(token[1])) if token else None,
            limit=size + 1,
        )
        return paging.cut_page(
            found, size, query, lambda grant: [grant.create_time.isoformat(), str(grant.grant_id)]
        )

    async def active(
        self, conn: Connection, tenant_id: UUID, user_id: UUID, now: datetime
    ) -> Sequence[Grant]:
        """Return the grants that a user can draw on now, in the order they are spent (S6)."""
        found = await store.list_grants(
            conn, [tenant_id], user_id=user_id, active_at=now, after=None, limit=None
        )
        return rules.in_waterfall_order(found, now)

    async def revoke(self, conn: Connection, caller: Caller, grant_id: UUID, *, reason: str = "") -> Grant:
        """End a grant: what was spent stays spent, and what open calls hold stays theirs (S8, F079).

        Raises NOT_FOUND for one that the caller may not see, WRONG_STATE for one that has ended already.
        """
        seen = await store.find(conn, grant_id)
        if seen is None or not caller.may_see(seen.tenant_id):
            raise not_found("grant", str(grant_id))
        now = await self._tenants.begin_change(conn, seen.tenant_id)
        rules.check_revocable(seen, now)
        grant = await store.revoke(conn, seen, self._clock.now(), caller.actor)
        if grant is None:
            raise BursarError(Reason.WRONG_STATE, "the grant is revoked")
        details = {
            "amount_usd": usd_text(grant.amount_nanos),
            "spent_usd": usd_text(grant.spent_nanos),
            "held_usd": usd_text(grant.held_nanos),
            "reason": reason,
        }
        await self._record(conn, "revoke_grant", caller, grant, details)
        return grant

    async def _record(
        self, conn: Connection, action: str, caller: Caller, grant: Grant, details: Mapping[str, object]
    ) -> None:
        await self._audit.record(
            conn,
            grant.tenant_id,
            action,
            actor=caller.actor,
            resource=f"grant/{grant.grant_id}",
            user_id=grant.user_id,
            details=details,
        )
