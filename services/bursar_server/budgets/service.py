"""Budgets: made, changed, deleted and reset, and where each stands. Every method takes its caller's connection."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from uuid import UUID

from bursar_server.audit.service import AuditService
from bursar_server.budgets import rules, store
from bursar_server.budgets.model import (
    Admission,
    Balance,
    Budget,
    BudgetDraft,
    BudgetFilter,
    Enforcement,
    ManagedBy,
    Scope,
    ScopeKind,
    Standing,
)
from bursar_server.db.connection import Connection, database_now
from bursar_server.kit import ids, paging
from bursar_server.kit.caller import Caller, Role
from bursar_server.kit.clock import Clock
from bursar_server.kit.errors import BursarError, Reason, invalid, not_found
from bursar_server.kit.money import usd_text
from bursar_server.kit.periods import PeriodKind
from bursar_server.ledger.rules import rearmed_pct
from bursar_server.tenants.service import TenantService
from bursar_server.users.model import User


class BudgetService:
    """Keeps the budgets of every tenant, and the operator's global ones under the platform tenant.

    A subject in a scope is given by id: whoever calls has made sure that it is the tenant's.
    """

    def __init__(self, *, tenants: TenantService, audit: AuditService, clock: Clock) -> None:
        self._tenants = tenants
        self._audit = audit
        self._clock = clock

    async def create(self, conn: Connection, caller: Caller, tenant_id: UUID, draft: BudgetDraft) -> Budget:
        """Make a budget; what its scope spent in the current period counts at once (S4).

        Raises INVALID_FIELD naming the field, ABOVE_CEILING for a tenant's budget above what the operator set (F028).
        """
        self._check_scope_is_open(caller, tenant_id, draft)
        managed_by = rules.managed_by_of(caller.role)
        now = await self._tenants.begin_change(conn, tenant_id)
        return await self._add(conn, tenant_id, draft, managed_by, caller.actor, now)

    async def get(self, conn: Connection, caller: Caller, budget_id: UUID) -> Budget:
        """Return a budget. Raises NOT_FOUND for one that does not exist or that the caller may not read (C08)."""
        budget = await store.find(conn, budget_id)
        if budget is None or not rules.may_list(caller, budget):
            raise not_found("budget", str(budget_id))
        return budget

    async def list(
        self,
        conn: Connection,
        caller: Caller,
        wanted: BudgetFilter,
        *,
        page_size: int = 0,
        page_token: str = "",
    ) -> tuple[Sequence[Budget], str]:
        """Return the budgets that the caller may read by name, and the next page's token."""
        size = paging.page_size_of(page_size)
        tenant_ids = sorted(map(str, wanted.tenant_ids)) if wanted.tenant_ids is not None else None
        query = ["budgets", tenant_ids, wanted.user_id, wanted.group_id, wanted.api_key_id]
        token = paging.decode_page_token(page_token, query, 2)
        found = await store.list_budgets(
            conn,
            wanted,
            with_global=caller.is_platform,
            led_groups=caller.group_ids if caller.role is Role.GROUP_LEAD else None,
            after=(token[0], paging.position_uuid(token[1])) if token else None,
            limit=size + 1,
        )
        return paging.cut_page(found, size, query, lambda budget: [budget.name, str(budget.budget_id)])

    async def update(
        self, conn: Connection, caller: Caller, budget_id: UUID, version: int, draft: BudgetDraft
    ) -> Budget:
        """Change a budget and return it.

        Raises VERSION_STALE where somebody else changed it since `version`, MANAGED_ELSEWHERE where the other side
        made it, and what `create` raises.
        """
        before = await self._locked(conn, caller, budget_id, version)
        if draft.scope is not None and (draft.scope.kind is ScopeKind.GLOBAL) != (
            before.scope.kind is ScopeKind.GLOBAL
        ):
            raise invalid("budget.scope", "a budget stays with its tenant, or with the operator")
        return await self._change(conn, before, draft, caller.actor)

    async def delete(self, conn: Connection, caller: Caller, budget_id: UUID, version: int = 0) -> None:
        """Delete a budget; its entries stay. Version 0 deletes whatever is there."""
        caller.require_role(Role.PLATFORM_ADMIN, Role.BILLING_ADMIN, Role.TENANT_ADMIN)
        budget = await self._locked(conn, caller, budget_id, version)
        await self._delete(conn, budget, caller.actor)

    async def set_for_user(
        self,
        conn: Connection,
        caller: Caller,
        user: User,
        *,
        limit_nanos: int,
        period: PeriodKind = PeriodKind.DAILY,
        enforcement: Enforcement | None = None,
        admission: Admission | None = None,
        reason: str | None = None,
    ) -> Budget:
        """Set the limit of a user's budget of a period, making it where there is none (F044). Returns it enabled.

        It is the oldest money budget of that user and period that the caller's side manages: an operator's and a
        tenant's stand side by side, and the tighter one governs. Absent fields keep what is set.
        """
        caller.require_tenant(user.tenant_id)
        now = await self._tenants.begin_change(conn, user.tenant_id)
        managed_by = rules.managed_by_of(caller.role)
        draft = BudgetDraft(
            limit_nanos=limit_nanos, enforcement=enforcement, admission=admission, enabled=True, reason=reason
        )
        before = await self._own(conn, user, period, managed_by)
        if before is None:
            new = replace(draft, name=_name(user, period), scope=_scope(user), period=period)
            budget = await self._add(conn, user.tenant_id, new, managed_by, caller.actor, now)
        else:
            budget = await self._change(conn, before, draft, caller.actor)
        details = {
            "period": period.value,
            "limit_usd": usd_text(limit_nanos),
            "old_limit_usd": usd_text(before.limit_nanos or 0) if before else "",
            "enforcement": budget.enforcement.value,
            "admission": budget.admission.value,
            "reason": budget.reason,
        }
        await self._record(conn, "set_budget", caller.actor, budget, details)
        return budget

    async def give_daily(
        self, conn: Connection, user: User, limit_nanos: int, *, managed_by: ManagedBy, actor: str
    ) -> Budget:
        """Give a user that was made in this transaction a DAILY HARD budget (F043). It has spent nothing yet."""
        draft = BudgetDraft(
            name=_name(user, PeriodKind.DAILY), scope=_scope(user), limit_nanos=limit_nanos, reason=""
        )
        now = await database_now(conn)
        return await self._add(conn, user.tenant_id, draft, managed_by, actor, now, spent_nothing=True)

    async def reset(
        self,
        conn: Connection,
        caller: Caller,
        user: User,
        *,
        budget_id: UUID | None = None,
        reason: str = "",
    ) -> Sequence[Standing]:
        """Bring what a user's budgets spent in the current period to 0, by entries (S19). Returns where they stand.

        A tenant resets what it manages; the operator anything. Raises NOT_FOUND where the user has no such enabled
        budget, MANAGED_ELSEWHERE where all of them are the operator's.
        """
        now = await self._tenants.begin_change(conn, user.tenant_id)
        budgets = [
            budget
            for budget in await store.of_user(conn, user.tenant_id, user.user_id)
            if budget.enabled and budget_id in (None, budget.budget_id)
        ]
        if not budgets:
            raise not_found("budget", str(budget_id) if budget_id else f"of {user.email}")
        allowed = [
            budget for budget in budgets if caller.is_platform or budget.managed_by is ManagedBy.TENANT
        ]
        if not allowed:
            rules.check_may_change(caller, budgets[0])
        keys = {_key(budget, now): budget for budget in allowed}
        found = await store.read_balances(conn, keys, lock=True)
        for key, budget in keys.items():
            spent = (found[key][0].spent_nanos, found[key][0].spent_tokens) if key in found else (0, 0)
            if spent != (0, 0):
                op_id = ids.uuid7_at(now)
                await store.post_entry(conn, op_id, "RESET", key, (-spent[0], -spent[1]), now)
                await store.clear_spent(conn, key)
            if key in found:
                await store.rearm(conn, key, 0)
            details = {
                "period_key": key[2],
                "old_spent_usd": usd_text(spent[0]),
                "old_spent_tokens": spent[1],
                "new_spent_usd": "0",
                "reason": reason,
            }
            await self._record(conn, "reset_spend", caller.actor, budget, details)
        return await self.standings(conn, allowed, now)

    async def standings(
        self, conn: Connection, budgets: Sequence[Budget], now: datetime | None = None
    ) -> Sequence[Standing]:
        """Return where budgets stand in the period that the database's clock is in; nothing spent where no row is."""
        instant = now or await database_now(conn)
        found = await store.read_balances(conn, [_key(budget, instant) for budget in budgets])
        standings = []
        for budget in budgets:
            key = _key(budget, instant)
            period = budget.period_at(instant)
            empty = Balance(budget.budget_id, key[2], period.start, period.end)
            standings.append(Standing(budget, found[key][0] if key in found else empty))
        return standings

    async def applicable(
        self,
        conn: Connection,
        tenant_id: UUID,
        user_id: UUID,
        group_ids: frozenset[UUID],
        now: datetime | None = None,
    ) -> Sequence[Standing]:
        """Return where the enabled budgets stand that count every call of a user.

        Those are its own, its groups', the tenant's and the operator's. Those of keys and tags depend on the call.
        """
        return await self.standings(conn, await store.applicable(conn, tenant_id, user_id, group_ids), now)

    async def counts_group(self, conn: Connection, tenant_id: UUID, group_id: UUID) -> bool:
        """Return whether an enabled budget counts a group."""
        return await store.counts_group(conn, tenant_id, group_id)

    async def forget_user(self, conn: Connection, user: User, actor: str) -> None:
        """Delete the budgets of a user that is deleted; the caller has begun the change."""
        for budget in await store.of_user(conn, user.tenant_id, user.user_id):
            await self._delete(conn, budget, actor)

    def _check_scope_is_open(self, caller: Caller, tenant_id: UUID, draft: BudgetDraft) -> None:
        if draft.scope is not None and draft.scope.kind is ScopeKind.GLOBAL:
            if not caller.is_platform or not caller.may_see(tenant_id):
                raise BursarError(
                    Reason.PERMISSION_DENIED,
                    "budget.scope: global budgets are the operator's; name a tenant, or a part of one",
                    field="budget.scope",
                )
            if tenant_id != ids.PLATFORM_TENANT_ID:
                raise invalid("budget.scope", "a global budget has no tenant")
        else:
            caller.require_tenant(tenant_id)

    async def _locked(self, conn: Connection, caller: Caller, budget_id: UUID, version: int) -> Budget:
        """Begin a change of the budget's tenant, and return the budget as nobody else can change it now."""
        seen = await self.get(conn, caller, budget_id)
        await self._tenants.begin_change(conn, seen.tenant_id)
        budget = await self.get(conn, caller, budget_id)
        rules.check_may_change(caller, budget)
        if version not in (0, budget.version):
            raise BursarError(
                Reason.VERSION_STALE,
                f"budget.version: the budget is at version {budget.version}, not {version}: read it again",
                field="budget.version",
                metadata={"version": str(budget.version)},
            )
        return budget

    async def _own(
        self, conn: Connection, user: User, period: PeriodKind, managed_by: ManagedBy
    ) -> Budget | None:
        for budget in await store.of_user(conn, user.tenant_id, user.user_id):
            own = budget.period is period and budget.managed_by is managed_by
            if own and not budget.counts_tokens and not budget.shadow:
                return budget
        return None

    async def _add(
        self,
        conn: Connection,
        tenant_id: UUID,
        draft: BudgetDraft,
        managed_by: ManagedBy,
        actor: str,
        now: datetime,
        *,
        spent_nothing: bool = False,
    ) -> Budget:
        budget = rules.new_budget(
            draft, tenant_id, ids.uuid7_at(self._clock.now()), managed_by, self._clock.now()
        )
        if managed_by is ManagedBy.TENANT:
            rules.check_ceiling(budget, await store.ceilings(conn, tenant_id))
        await store.add(conn, budget)
        if budget.enabled:
            await self._open(conn, budget, now, spent_nothing=spent_nothing)
        details = {"managed_by": managed_by.value, **rules.details(budget)}
        await self._record(conn, "BUDGET_CAP_CREATED", actor, budget, details)
        return budget

    async def _change(self, conn: Connection, before: Budget, draft: BudgetDraft, actor: str) -> Budget:
        after = rules.changed(before, draft, self._clock.now())
        opens = after.enabled and after.definition_revision != before.definition_revision
        moved = rules.limit_moved(before, after)
        if after.managed_by is ManagedBy.TENANT and (moved or opens):
            rules.check_ceiling(after, await store.ceilings(conn, after.tenant_id))
        await store.write(conn, after)
        now = await database_now(conn)
        if opens:
            await self._open(conn, after, now)
        elif moved and after.enabled:
            await self._rearm(conn, after, now)
        old, new = rules.details(before), rules.details(after)
        differing = [name for name in new if old[name] != new[name]]
        details = {
            "managed_by": after.managed_by.value,
            "old": {name: old[name] for name in differing},
            "new": {name: new[name] for name in differing},
        }
        await self._record(conn, "BUDGET_CAP_UPDATED", actor, after, details)
        return after

    async def _delete(self, conn: Connection, budget: Budget, actor: str) -> None:
        now = self._clock.now()
        gone = replace(budget, enabled=False, version=budget.version + 1, update_time=now)
        await store.write(conn, gone, delete_time=now)
        details = {"managed_by": budget.managed_by.value, "old": rules.details(budget)}
        await self._record(conn, "BUDGET_CAP_DELETED", actor, budget, details)

    async def _open(
        self, conn: Connection, budget: Budget, now: datetime, *, spent_nothing: bool = False
    ) -> None:
        """Begin the balance of a new definition with what its scope spent in the period so far (S4)."""
        period = budget.period_at(now)
        spent = (0, 0) if spent_nothing else await store.recorded(conn, budget, period)
        key = _key(budget, now)
        await store.open_balance(conn, key, period, spent)
        if spent != (0, 0):
            await store.post_entry(conn, ids.uuid7_at(now), "OPENING", key, spent, now)

    async def _rearm(self, conn: Connection, budget: Budget, now: datetime) -> None:
        """Let the thresholds above the utilisation that the new limit makes fire again (S21)."""
        key = _key(budget, now)
        found = await store.read_balances(conn, [key], lock=True)
        if key in found:
            balance, alerted_pct = found[key]
            stays = rearmed_pct(budget, Standing(budget, balance).spent, alerted_pct)
            if stays != alerted_pct:
                await store.rearm(conn, key, stays)

    async def _record(
        self, conn: Connection, action: str, actor: str, budget: Budget, details: Mapping[str, object]
    ) -> None:
        await self._audit.record(
            conn,
            budget.tenant_id,
            action,
            actor=actor,
            resource=f"budget/{budget.budget_id}",
            user_id=budget.scope.user_id,
            details=details,
        )


def _key(budget: Budget, now: datetime) -> store.BalanceKey:
    return budget.tenant_id, budget.budget_id, budget.period_key_at(now)


def _scope(user: User) -> Scope:
    return Scope(ScopeKind.USER, user_id=user.user_id)


def _name(user: User, period: PeriodKind) -> str:
    return f"{user.email[:180]} {period.lower()}"
