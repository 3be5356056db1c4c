"""Access tokens: made with a secret that is shown once, and who a bearer is."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from uuid import UUID

from bursar_server.audit.service import AuditService
from bursar_server.db.connection import Connection
from bursar_server.db.unit_of_work import UnitOfWork
from bursar_server.groups.service import GroupService
from bursar_server.kit import ids
from bursar_server.kit.caller import Caller, Role
from bursar_server.kit.clock import Clock
from bursar_server.kit.errors import BursarError, Reason, invalid, not_found
from bursar_server.tenants.service import TenantService
from bursar_server.tokens import rules, store
from bursar_server.tokens.model import AccessToken
from bursar_server.users.service import UserService

# What is known of a bearer may be this old: a revoked token works no longer than that.
CACHE_SECONDS = 1.0
# How long before that a bearer who asks all the time is read again: else everybody who asks just then waits for it.
READ_AHEAD_SECONDS = 0.25
CACHE_ENTRIES = 10_000


class TokenService:
    """Makes and revokes access tokens, and says who a bearer is. Each method is a transaction of its own.

    Known bearers are remembered for at most a second, because a sidecar asks thousands of times in one.
    """

    def __init__(
        self,
        *,
        unit_of_work: UnitOfWork,
        tenants: TenantService,
        users: UserService,
        groups: GroupService,
        audit: AuditService,
        clock: Clock,
    ) -> None:
        self._unit_of_work = unit_of_work
        self._tenants = tenants
        self._users = users
        self._groups = groups
        self._audit = audit
        self._clock = clock
        # By sha256, in the order of learning: when it ends, in monotonic seconds, and who it is.
        self._known: dict[str, tuple[float, Caller]] = {}
        # What is being read, for everybody who asks meanwhile; it ends as if it were known since the reading began.
        self._reading: dict[str, tuple[float, asyncio.Task[Caller | None]]] = {}

    async def create(
        self,
        caller: Caller,
        *,
        role: Role | None = None,
        name: str = "",
        tenants: Sequence[str] = (),
        user: str = "",
        expire_time: datetime | None = None,
    ) -> tuple[AccessToken, str]:
        """Make a token and return it with its secret, which nobody can read again.

        It is a person's, with the person's role of the moment, where `user` (id or e-mail) names one; an e-mail that
        was not seen before makes the user. Else it has `role`, for the named tenants or for all. Raises INVALID_FIELD
        where these do not fit together.
        """
        caller.require_role(Role.PLATFORM_ADMIN)
        now = self._clock.now()
        if expire_time is not None and expire_time <= now:
            raise invalid("expire_time", "must be in the future")
        secret = ids.new_token_secret()
        async with self._unit_of_work.begin() as conn:
            token = AccessToken(
                ids.uuid7_at(now), name.strip(), role or Role.MEMBER, None, None, None, now, expire_time
            )
            if user:
                token = await self._of_person(conn, caller, token, user, tenants[0] if tenants else "")
            elif role is None:
                raise invalid("role", "is needed, or a user")
            else:
                named = [(await self._tenants.resolve(conn, caller, ref)).tenant_id for ref in tenants]
                tenant_ids = frozenset(named) or None
                rules.check_new(role, tenant_ids)
                token = replace(token, name=token.name or role.lower(), tenant_ids=tenant_ids)
            await store.add(conn, token, ids.sha256_hex(secret))
            await self._record(conn, "create_token", caller.actor, token)
        return token, secret

    async def ensure_token(self, secret: str, role: Role, name: str) -> AccessToken:
        """Make sure that a secret which the installation brings along is a token, and return it as it is stored.

        The same secret again changes nothing: a token that was revoked stays so. Raises WRONG_STATE where the secret
        is a token of another role already, INVALID_FIELD where it is empty.
        """
        if not secret.strip():
            raise invalid("token", "is empty")
        digest = ids.sha256_hex(secret)
        now = self._clock.now()
        token = AccessToken(ids.uuid7_at(now), name, role, None, None, None, now)
        async with self._unit_of_work.begin() as conn:
            if await store.add(conn, token, digest):
                await self._record(conn, "create_token", "system", token)
                return token
            found = await store.find_by_sha256(conn, digest)
        if found is None or found.role is not role:
            raise BursarError(
                Reason.WRONG_STATE, f"the {name} token is in use for another role already: choose another"
            )
        return found

    async def list(self) -> Sequence[AccessToken]:
        """Return all tokens, latest first."""
        async with self._unit_of_work.begin() as conn:
            return await store.list_tokens(conn)

    async def revoke(self, caller: Caller, token_id: UUID) -> AccessToken:
        """End a token for good, everywhere within a second. Raises WRONG_STATE where it was revoked before."""
        caller.require_role(Role.PLATFORM_ADMIN)
        async with self._unit_of_work.begin() as conn:
            token = await store.find(conn, token_id)
            if token is None:
                raise not_found("token", str(token_id))
            if token.revoke_time is not None:
                raise BursarError(Reason.WRONG_STATE, "the token is revoked")
            token = replace(token, revoke_time=self._clock.now())
            await store.revoke(conn, token)
            await self._record(conn, "revoke_token", caller.actor, token)
        # Who asks from now on is told of it, also where a reading began before.
        self._known.clear()
        self._reading.clear()
        return token

    async def authenticate(self, bearer: str) -> Caller | None:
        """Return the caller of an access token or of a user's own `bur_` key, or None for any other text."""
        if not bearer.isascii():
            return None
        digest = ids.sha256_hex(bearer)
        now = self._clock.monotonic()
        known = self._known.get(digest)
        reading = self._reading.get(digest)
        if known is not None and now < known[0]:
            if reading is None and now >= known[0] - READ_AHEAD_SECONDS:
                self._read(bearer, digest, now).add_done_callback(_heard)
            return known[1]
        shared = reading[1] if reading is not None and now < reading[0] else None
        work = shared or self._read(bearer, digest, now)
        # Who asked first may go away: the others still wait.
        return await asyncio.shield(work)

    def _read(self, bearer: str, digest: str, now: float) -> "asyncio.Task[Caller | None]":
        end = now + CACHE_SECONDS
        work = asyncio.create_task(self._learn(digest, end, is_key=bearer.startswith(ids.KEY_PREFIX)))
        self._reading[digest] = (end, work)
        return work

    async def _learn(self, digest: str, end: float, *, is_key: bool) -> Caller | None:
        """Read who a bearer is, and remember it until `end` unless tokens were revoked, or it was read anew, meanwhile."""
        this = asyncio.current_task()
        try:
            caller = await self._read_caller(digest, is_key=is_key)
        finally:
            newest = self._reading.get(digest, (0.0, None))[1] is this
            if newest:
                del self._reading[digest]
        if newest:
            self._known.pop(digest, None)
        if newest and caller is not None:
            while len(self._known) >= CACHE_ENTRIES:
                del self._known[next(iter(self._known))]
            self._known[digest] = (end, caller)
        return caller

    async def _read_caller(self, digest: str, *, is_key: bool) -> Caller | None:
        async with self._unit_of_work.begin() as conn:
            read = store.bearer_of_key if is_key else store.bearer_of_token
            bearer = await read(conn, digest)
            caller = rules.caller_of(bearer, self._clock.now()) if bearer else None
            if caller is None or caller.role is not Role.GROUP_LEAD:
                return caller
            if caller.user_id is None or caller.user_tenant_id is None:
                return caller
            led = await self._groups.led_by(conn, caller.user_tenant_id, caller.user_id)
            return replace(caller, group_ids=led)

    async def _of_person(
        self, conn: Connection, caller: Caller, token: AccessToken, ref: str, tenant_ref: str
    ) -> AccessToken:
        if token.role is not Role.MEMBER:
            raise invalid("role", "a person's token has the person's role")
        user = await self._users.resolve_or_make(conn, caller, ref, tenant_ref)
        return replace(
            token,
            name=token.name or user.email,
            role=user.role,
            tenant_ids=frozenset({user.tenant_id}),
            user_tenant_id=user.tenant_id,
            user_id=user.user_id,
        )

    async def _record(self, conn: Connection, action: str, actor: str, token: AccessToken) -> None:
        tenant_ids = token.tenant_ids or frozenset()
        details = {
            "name": token.name,
            "role": token.role.value,
            "tenant_ids": sorted(map(str, tenant_ids)),
            "expire_time": token.expire_time.isoformat() if token.expire_time else "",
        }
        # A token for one tenant stands in its trail, any other in the operator's.
        tenant_id = next(iter(tenant_ids)) if len(tenant_ids) == 1 else ids.PLATFORM_TENANT_ID
        resource = f"token/{token.token_id}"
        await self._audit.record(
            conn,
            tenant_id,
            action,
            actor=actor,
            resource=resource,
            user_id=token.user_id,
            details=details,
        )


def _heard(work: "asyncio.Task[Caller | None]") -> None:
    """Take a failure as heard: whoever needs the answer reads by itself, and is told."""
    if not work.cancelled():
        work.exception()
