"""Users: who they are, which one a request means, and what follows when one is made or goes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from uuid import UUID

from bursar_server.audit.service import AuditService
from bursar_server.budgets.model import ManagedBy
from bursar_server.budgets.rules import managed_by_of
from bursar_server.budgets.service import BudgetService
from bursar_server.db.connection import Connection
from bursar_server.groups.service import GroupService
from bursar_server.keys.service import KeyService
from bursar_server.kit import ids, paging
from bursar_server.kit.caller import Caller
from bursar_server.kit.clock import Clock
from bursar_server.kit.errors import BursarError, Reason, not_found
from bursar_server.kit.periods import PeriodKind
from bursar_server.tenants.service import TenantService
from bursar_server.users import rules, store
from bursar_server.users.model import (
    DEFAULT_RATE_LIMIT,
    User,
    UserChange,
    UserDraft,
    UserStatus,
)


class UserService:
    """Makes, finds and changes users. Every method takes the connection of the caller's transaction.

    `default_daily_budget_nanos` is what every new user may spend in a day, or None for no such budget (F043).
    """

    def __init__(
        self,
        *,
        tenants: TenantService,
        budgets: BudgetService,
        keys: KeyService,
        groups: GroupService,
        audit: AuditService,
        clock: Clock,
        default_daily_budget_nanos: int | None = None,
    ) -> None:
        self._tenants = tenants
        self._budgets = budgets
        self._keys = keys
        self._groups = groups
        self._audit = audit
        self._clock = clock
        self._default_daily_budget_nanos = default_daily_budget_nanos

    async def resolve(
        self, conn: Connection, caller: Caller, ref: str, tenant_ref: str = "", *, field: str = "user_id"
    ) -> User:
        """Return the user that a request names by id or e-mail (C24, F192); a deleted one by id only.

        Raises NOT_FOUND for one that does not exist or that the caller may not see, USER_AMBIGUOUS for an e-mail that
        users of several tenants have.
        """
        user = await self._find(conn, await self._tenants.visible(conn, caller, tenant_ref), ref, field)
        if user is None:
            raise BursarError(Reason.NOT_FOUND, f"{field}: no such user: {ref[:100]!r}", field=field)
        return user

    async def resolve_or_make(
        self,
        conn: Connection,
        caller: Caller,
        ref: str,
        tenant_ref: str = "",
        *,
        sets: PeriodKind | None = None,
    ) -> User:
        """Return the user that a request names, making it where its e-mail was not seen before.

        A change of the user's tenant has begun when this returns, so that two requests make one user. `sets` is the
        period of the budget that the request sets for it. Raises WRONG_STATE for a deleted user.
        """
        user = await self._find(conn, await self._tenants.visible(conn, caller, tenant_ref), ref, "user_id")
        if user is None:
            if ids.parse_uuid(ref.strip()) is not None:
                raise BursarError(Reason.NOT_FOUND, f"user_id: no such user: {ref!r}", field="user_id")
            tenant = await self._tenants.resolve(conn, caller, tenant_ref)
            return await self.ensure(conn, tenant.tenant_id, ref, caller.actor, sets=sets, field="user_id")
        await self._tenants.begin_change(conn, user.tenant_id)
        user = await self.resolve(conn, caller, str(user.user_id))
        if user.status is UserStatus.DELETED:
            raise BursarError(Reason.WRONG_STATE, f"user {user.email} is deleted")
        return user

    async def resolve_many(
        self, conn: Connection, tenant_id: UUID, refs: Sequence[str], field: str = "user_ids"
    ) -> list[UUID]:
        """Return the ids of a tenant's users that are named by id or e-mail, in order and without repetition.

        Raises NOT_FOUND naming the field for one that the tenant does not have.
        """
        wanted = {ref: ids.parse_uuid(ref.strip()) for ref in refs}
        emails = {
            ref: rules.normalized_email(ref, field) for ref, user_id in wanted.items() if user_id is None
        }
        found = await store.find_all(
            conn, tenant_id, [user_id for user_id in wanted.values() if user_id], list(emails.values())
        )
        known = {user.user_id: user.user_id for user in found}
        by_email = {user.email: user.user_id for user in found}
        resolved = []
        for ref, user_id in wanted.items():
            match = known.get(user_id) if user_id is not None else by_email.get(emails[ref])
            if match is None:
                raise BursarError(Reason.NOT_FOUND, f"{field}: no such user: {ref[:100]!r}", field=field)
            resolved.append(match)
        return list(dict.fromkeys(resolved))

    async def ensure(
        self,
        conn: Connection,
        tenant_id: UUID,
        email: str,
        actor: str,
        *,
        sets: PeriodKind | None = None,
        field: str = "email",
    ) -> User:
        """Return the tenant's user with an e-mail, making it with the configured daily budget where it is new (F043).

        Where it is new a change of the tenant has begun: two processes make one user. Raises INVALID_FIELD naming
        `field` for what is no e-mail.
        """
        address = rules.normalized_email(email, field)
        found = await store.find_by_email(conn, address, [tenant_id])
        if not found or sets is not None:
            await self._tenants.begin_change(conn, tenant_id)
            found = await store.find_by_email(conn, address, [tenant_id])
        if found:
            return found[0]
        user = await self._add(conn, tenant_id, UserDraft(address), actor, auto_provisioned=True)
        default = rules.default_daily_nanos(user, self._default_daily_budget_nanos, sets=sets)
        if default is not None:
            await self._budgets.give_daily(conn, user, default, managed_by=ManagedBy.PLATFORM, actor=actor)
        return user

    async def create(self, conn: Connection, caller: Caller, tenant_ref: str, draft: UserDraft) -> User:
        """Make a user with its daily budget, the one given or else the configured one (F043).

        The operator manages the configured budget, the caller's side the one given. Raises ALREADY_EXISTS where the
        tenant has a user with the e-mail.
        """
        tenant = await self._tenants.resolve(conn, caller, tenant_ref)
        address = rules.normalized_email(draft.email)
        rules.check_may_give(caller, draft.role)
        await self._tenants.begin_change(conn, tenant.tenant_id)
        await self._check_email_is_free(conn, tenant.tenant_id, address)
        user = await self._add(conn, tenant.tenant_id, replace(draft, email=address), caller.actor)
        default = rules.default_daily_nanos(user, self._default_daily_budget_nanos, sets=None)
        if draft.daily_budget_nanos is not None:
            await self._budgets.give_daily(
                conn,
                user,
                draft.daily_budget_nanos,
                managed_by=managed_by_of(caller.role),
                actor=caller.actor,
            )
        elif default is not None:
            await self._budgets.give_daily(
                conn, user, default, managed_by=ManagedBy.PLATFORM, actor=caller.actor
            )
        return user

    async def list(
        self,
        conn: Connection,
        caller: Caller,
        tenant_ref: str = "",
        *,
        status: UserStatus | None = None,
        page_size: int = 0,
        page_token: str = "",
    ) -> tuple[Sequence[User], str]:
        """Return users by e-mail, and the next page's token; deleted ones only when asked for."""
        size = paging.page_size_of(page_size)
        tenant_ids = await self._tenants.visible(conn, caller, tenant_ref)
        query = ["users", sorted(map(str, tenant_ids)) if tenant_ids is not None else None, status]
        token = paging.decode_page_token(page_token, query, 2)
        after = (token[0], paging.position_uuid(token[1])) if token else None
        found = await store.list_users(conn, tenant_ids, status=status, after=after, limit=size + 1)
        return paging.cut_page(found, size, query, lambda user: [user.email, str(user.user_id)])

    async def update(
        self, conn: Connection, caller: Caller, ref: str, tenant_ref: str, change: UserChange
    ) -> User:
        """Change a user and return it (F094). Raises ALREADY_EXISTS where the tenant has a user with the e-mail."""
        before = await self._locked(conn, caller, ref, tenant_ref, field="id")
        after = replace(
            before,
            email=before.email if change.email is None else rules.normalized_email(change.email),
            display_name=before.display_name if change.display_name is None else change.display_name,
            role=change.role or before.role,
            rate_limit=before.rate_limit if change.rate_limit is None else change.rate_limit,
        )
        rules.check_rate_limit(after.rate_limit)
        if after.role is not before.role:
            rules.check_may_give(caller, after.role)
        if after.email != before.email:
            await self._check_email_is_free(conn, after.tenant_id, after.email)
        return await self._write(conn, caller, "update_user", before, after)

    async def deactivate(self, conn: Connection, caller: Caller, ref: str, tenant_ref: str = "") -> User:
        """Deny all further calls of a user until it is reactivated; done already, nothing changes."""
        return await self._set_status(
            conn, caller, ref, tenant_ref, "deactivate_user", UserStatus.DEACTIVATED
        )

    async def reactivate(self, conn: Connection, caller: Caller, ref: str, tenant_ref: str = "") -> User:
        """Allow a user's calls again; done already, nothing changes."""
        return await self._set_status(conn, caller, ref, tenant_ref, "reactivate_user", UserStatus.ACTIVE)

    async def delete(self, conn: Connection, caller: Caller, ref: str, tenant_ref: str = "") -> None:
        """Delete a user for good: its keys are revoked, its budgets and memberships end, its e-mail is free again.

        Its history stays, the audit trail included (F174).
        """
        before = await self._locked(conn, caller, ref, tenant_ref)
        await self._keys.revoke_of_user(conn, caller.actor, before)
        await self._budgets.forget_user(conn, before, caller.actor)
        await self._groups.forget_user(conn, before.tenant_id, before.user_id)
        await self._write(conn, caller, "delete_user", before, replace(before, status=UserStatus.DELETED))

    async def _find(
        self, conn: Connection, tenant_ids: frozenset[UUID] | None, ref: str, field: str
    ) -> User | None:
        user_id = ids.parse_uuid(ref.strip())
        if user_id is not None:
            return await store.find(conn, user_id, tenant_ids)
        found = await store.find_by_email(conn, rules.normalized_email(ref, field), tenant_ids)
        if len(found) > 1:
            raise BursarError(
                Reason.USER_AMBIGUOUS,
                f"{field}: users of several tenants have this e-mail: send tenant_id too",
                field="tenant_id",
            )
        return found[0] if found else None

    async def _locked(
        self, conn: Connection, caller: Caller, ref: str, tenant_ref: str, field: str = "user_id"
    ) -> User:
        """Begin a change of the user's tenant, and return the user as nobody else can change it now."""
        seen = await self.resolve(conn, caller, ref, tenant_ref, field=field)
        await self._tenants.begin_change(conn, seen.tenant_id)
        user = await store.find(conn, seen.user_id, [seen.tenant_id])
        if user is None:
            raise not_found("user", ref)
        rules.check_may_change(caller, user)
        return user

    async def _set_status(
        self, conn: Connection, caller: Caller, ref: str, tenant_ref: str, action: str, status: UserStatus
    ) -> User:
        before = await self._locked(conn, caller, ref, tenant_ref)
        if before.status is status:
            return before
        return await self._write(conn, caller, action, before, replace(before, status=status))

    async def _check_email_is_free(self, conn: Connection, tenant_id: UUID, email: str) -> None:
        if await store.find_by_email(conn, email, [tenant_id]):
            raise BursarError(Reason.ALREADY_EXISTS, f"email: {email!r} is a user already", field="email")

    async def _add(
        self,
        conn: Connection,
        tenant_id: UUID,
        draft: UserDraft,
        actor: str,
        *,
        auto_provisioned: bool = False,
    ) -> User:
        now = self._clock.now()
        user = User(
            tenant_id,
            ids.uuid7_at(now),
            draft.email,
            draft.display_name,
            draft.role,
            UserStatus.ACTIVE,
            draft.service_account,
            DEFAULT_RATE_LIMIT,
            now,
            now,
        )
        await store.add(conn, user)
        details = {**_details(user), "auto_provisioned": auto_provisioned}
        await self._record(conn, "create_user", actor, user, details)
        return user

    async def _write(self, conn: Connection, caller: Caller, action: str, before: User, after: User) -> User:
        after = replace(after, update_time=self._clock.now())
        await store.write(conn, after)
        old, new = _details(before), _details(after)
        differing = [name for name in new if old[name] != new[name]]
        details = {
            "email": after.email,
            "old": {name: old[name] for name in differing},
            "new": {name: new[name] for name in differing},
        }
        await self._record(conn, action, caller.actor, after, details)
        return after

    async def _record(
        self, conn: Connection, action: str, actor: str, user: User, details: Mapping[str, object]
    ) -> None:
        resource = f"user/{user.user_id}"
        await self._audit.record(
            conn,
            user.tenant_id,
            action,
            actor=actor,
            resource=resource,
            user_id=user.user_id,
            details=details,
        )


def _details(user: User) -> dict[str, object]:
    return {
        "email": user.email,
        "display_name": user.display_name,
        "role": user.role.value,
        "status": user.status.value,
        "service_account": user.service_account,
        "rate_limit": user.rate_limit,
    }
