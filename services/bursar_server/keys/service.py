"""API keys: made with a secret that is shown once, listed masked, and revoked for good."""

from collections.abc import Sequence
from dataclasses import replace
from uuid import UUID

from bursar_server.audit.service import AuditService
from bursar_server.db.connection import Connection
from bursar_server.keys import rules, store
from bursar_server.keys.model import ApiKey, KeyDraft
from bursar_server.kit import ids, paging
from bursar_server.kit.caller import Caller
from bursar_server.kit.clock import Clock
from bursar_server.kit.errors import BursarError, Reason, not_found
from bursar_server.tenants.service import TenantService
from bursar_server.users.model import User


class KeyService:
    """Makes, lists and revokes keys. Every method takes the connection of the caller's transaction."""

    def __init__(self, *, tenants: TenantService, audit: AuditService, clock: Clock) -> None:
        self._tenants = tenants
        self._audit = audit
        self._clock = clock

    async def create(
        self, conn: Connection, caller: Caller, tenant_id: UUID, draft: KeyDraft, user: User | None = None
    ) -> tuple[ApiKey, str]:
        """Make a key and return it with its secret, which nobody can read again (F181, F182).

        Raises NOT_FOUND for a user of another tenant, INVALID_FIELD for what does not fit together, and WRONG_STATE
        for a user that is not active.
        """
        caller.require_tenant(tenant_id)
        if user is not None and user.tenant_id != tenant_id:
            raise BursarError(Reason.NOT_FOUND, f"no such user: {user.email!r}", field="user_id")
        service_account = rules.check_draft(draft, user)
        await self._tenants.begin_change(conn, tenant_id)
        secret = ids.new_key_secret()
        now = self._clock.now()
        key = ApiKey(
            tenant_id,
            ids.uuid7_at(now),
            draft.name.strip(),
            ids.masked(secret),
            user.user_id if user else None,
            service_account,
            draft.act_for_users,
            draft.trust_user_field,
            dict(draft.default_tags or {}),
            now,
        )
        await store.add(conn, key, ids.sha256_hex(secret))
        await self._record(conn, "create_api_key", caller.actor, key)
        return key, secret

    async def get(self, conn: Connection, caller: Caller, api_key_id: UUID) -> ApiKey:
        """Return a key. Raises NOT_FOUND for one that does not exist or that the caller may not see."""
        key = await store.find(conn, api_key_id)
        if key is None or not caller.may_see(key.tenant_id):
            raise not_found("API key", str(api_key_id))
        return key

    async def list(
        self,
        conn: Connection,
        tenant_id: UUID,
        *,
        user_id: UUID | None = None,
        include_revoked: bool = False,
        page_size: int = 0,
        page_token: str = "",
    ) -> tuple[Sequence[ApiKey], str]:
        """Return a tenant's keys, latest first, and the next page's token."""
        size = paging.page_size_of(page_size)
        query = ["keys", tenant_id, user_id, include_revoked]
        token = paging.decode_page_token(page_token, query, 2)
        after = (paging.position_instant(token[0]), paging.position_uuid(token[1])) if token else None
        found = await store.list_keys(
            conn, [tenant_id], user_id=user_id, include_revoked=include_revoked, after=after, limit=size + 1
        )
        return paging.cut_page(
            found, size, query, lambda key: [key.create_time.isoformat(), str(key.api_key_id)]
        )

    async def revoke(self, conn: Connection, caller: Caller, api_key_id: UUID) -> ApiKey:
        """End a key for good and return it. Raises WRONG_STATE where it was revoked before."""
        key = await self.get(conn, caller, api_key_id)
        await self._tenants.begin_change(conn, key.tenant_id)
        key = await self.get(conn, caller, api_key_id)
        if key.revoke_time is not None:
            raise BursarError(Reason.WRONG_STATE, f"the key was revoked on {key.revoke_time:%Y-%m-%d}")
        return await self._revoke(conn, caller.actor, key)

    async def revoke_of_user(self, conn: Connection, actor: str, user: User) -> None:
        """End all keys of a user; the caller has begun the change."""
        keys = await store.list_keys(
            conn, [user.tenant_id], user_id=user.user_id, include_revoked=False, after=None, limit=None
        )
        for key in keys:
            await self._revoke(conn, actor, key)

    async def _revoke(self, conn: Connection, actor: str, key: ApiKey) -> ApiKey:
        now = self._clock.now()
        await store.revoke(conn, key, now)
        await self._record(conn, "revoke_api_key", actor, key)
        return replace(key, revoke_time=now)

    async def _record(self, conn: Connection, action: str, actor: str, key: ApiKey) -> None:
        details = {
            "name": key.name,
            "masked_key": key.masked_key,
            "service_account": key.service_account,
            "act_for_users": key.act_for_users,
            "trust_user_field": key.trust_user_field,
            "default_tags": dict(key.default_tags),
        }
        resource = f"api_key/{key.api_key_id}"
        await self._audit.record(
            conn,
            key.tenant_id,
            action,
            actor=actor,
            resource=resource,
            user_id=key.user_id,
            details=details,
        )
