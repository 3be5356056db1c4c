"""BudgetService on the wire: doubles in US dollars outside, nanos inside."""

from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID

from connectrpc.request import RequestContext

from bursar.v1 import budget_pb2
from bursar.v1 import budget_service_pb2 as pb
from bursar_server.budgets import rules
from bursar_server.budgets.model import (
    Admission,
    Budget,
    BudgetDraft,
    BudgetFilter,
    Enforcement,
    LeaseExpiry,
    ManagedBy,
    OnUnreachable,
    Scope,
    ScopeKind,
    Standing,
)
from bursar_server.budgets.service import BudgetService
from bursar_server.db.connection import Connection
from bursar_server.db.unit_of_work import UnitOfWork
from bursar_server.groups.service import GroupService
from bursar_server.keys.service import KeyService
from bursar_server.kit.caller import Caller
from bursar_server.kit.errors import BursarError, Reason, invalid
from bursar_server.kit.ids import PLATFORM_TENANT_ID
from bursar_server.kit.money import usd_of_nanos
from bursar_server.kit.periods import NEVER, PeriodKind
from bursar_server.rpc import fields
from bursar_server.rpc.auth import caller_of
from bursar_server.tenants.service import TenantService
from bursar_server.users.model import UserStatus
from bursar_server.users.service import UserService

Context = RequestContext[Any, Any]

_PATH = "budget."
_SUBJECTS = ("group_id", "user_id", "api_key_id", "tag_key")


class BudgetRpc:
    """Answers bursar.v1.BudgetService."""

    def __init__(
        self,
        *,
        unit_of_work: UnitOfWork,
        budgets: BudgetService,
        tenants: TenantService,
        users: UserService,
        groups: GroupService,
        keys: KeyService,
    ) -> None:
        self._unit_of_work = unit_of_work
        self._budgets = budgets
        self._tenants = tenants
        self._users = users
        self._groups = groups
        self._keys = keys

    async def create_budget(self, request: pb.CreateBudgetRequest, ctx: Context) -> pb.CreateBudgetResponse:
        """Make a budget."""
        caller = caller_of(ctx)
        draft = draft_of(request.budget, None)
        async with self._unit_of_work.begin() as conn:
            tenant_id, scope = await self._scope_of(conn, caller, request.budget.scope)
            budget = await self._budgets.create(conn, caller, tenant_id, replace(draft, scope=scope))
        return pb.CreateBudgetResponse(budget=budget_message(budget))

    async def get_budget(self, request: pb.GetBudgetRequest, ctx: Context) -> pb.GetBudgetResponse:
        """Read a budget."""
        budget_id = fields.uuid(request.budget_id, "budget_id")
        async with self._unit_of_work.begin() as conn:
            budget = await self._budgets.get(conn, caller_of(ctx), budget_id)
        return pb.GetBudgetResponse(budget=budget_message(budget))

    async def list_budgets(self, request: pb.ListBudgetsRequest, ctx: Context) -> pb.ListBudgetsResponse:
        """List budgets."""
        caller = caller_of(ctx)
        async with self._unit_of_work.begin() as conn:
            page, token = await self._page(conn, caller, request)
        return pb.ListBudgetsResponse(
            budgets=[budget_message(budget) for budget in page], next_page_token=token
        )

    async def update_budget(self, request: pb.UpdateBudgetRequest, ctx: Context) -> pb.UpdateBudgetResponse:
        """Change a budget; what the request leaves out stays."""
        caller = caller_of(ctx)
        budget_id = fields.uuid(request.budget.budget_id, "budget.budget_id")
        version = fields.integer(request.budget.version, "budget.version")
        if not version:
            raise invalid("budget.version", "is needed: the version that was read")
        async with self._unit_of_work.begin() as conn:
            before = await self._budgets.get(conn, caller, budget_id)
            draft = draft_of(request.budget, before)
            if request.budget.HasField("scope"):
                tenant_id, scope = await self._scope_of(conn, caller, request.budget.scope)
                if tenant_id != before.tenant_id:
                    raise invalid("budget.scope", "a budget stays with its tenant, or with the operator")
                draft = replace(draft, scope=scope)
            budget = await self._budgets.update(conn, caller, budget_id, version, draft)
        return pb.UpdateBudgetResponse(budget=budget_message(budget))

    async def delete_budget(self, request: pb.DeleteBudgetRequest, ctx: Context) -> pb.DeleteBudgetResponse:
        """Delete a budget."""
        budget_id = fields.uuid(request.budget_id, "budget_id")
        version = fields.integer(request.version, "version")
        async with self._unit_of_work.begin() as conn:
            await self._budgets.delete(conn, caller_of(ctx), budget_id, version)
        return pb.DeleteBudgetResponse()

    async def get_budget_status(
        self, request: pb.GetBudgetStatusRequest, ctx: Context
    ) -> pb.GetBudgetStatusResponse:
        """Read where a budget stands."""
        budget_id = fields.uuid(request.budget_id, "budget_id")
        async with self._unit_of_work.begin() as conn:
            budget = await self._budgets.get(conn, caller_of(ctx), budget_id)
            [standing] = await self._budgets.standings(conn, [budget])
        return pb.GetBudgetStatusResponse(status=status_message(standing))

    async def list_budget_statuses(
        self, request: pb.ListBudgetStatusesRequest, ctx: Context
    ) -> pb.ListBudgetStatusesResponse:
        """List where budgets stand."""
        caller = caller_of(ctx)
        async with self._unit_of_work.begin() as conn:
            page, token = await self._page(conn, caller, request)
            standings = await self._budgets.standings(conn, page)
        return pb.ListBudgetStatusesResponse(
            statuses=[status_message(standing) for standing in standings], next_page_token=token
        )

    async def _page(
        self,
        conn: Connection,
        caller: Caller,
        request: pb.ListBudgetsRequest | pb.ListBudgetStatusesRequest,
    ) -> tuple[list[Budget], str]:
        tenant_ids = await self._tenants.visible(conn, caller, request.tenant_id)
        user_id = None
        if request.user_id:
            user_id = (await self._users.resolve(conn, caller, request.user_id, request.tenant_id)).user_id
        wanted = BudgetFilter(
            tenant_ids,
            user_id,
            fields.optional_uuid(request.group_id, "group_id"),
            fields.optional_uuid(request.api_key_id, "api_key_id"),
        )
        page, token = await self._budgets.list(
            conn, caller, wanted, page_size=request.page_size, page_token=request.page_token
        )
        return list(page), token

    async def _scope_of(
        self, conn: Connection, caller: Caller, scope: budget_pb2.BudgetScope
    ) -> tuple[UUID, Scope]:
        """Return the tenant and the scope that a request means; its subject exists and is of that tenant."""
        given = [name for name in _SUBJECTS if getattr(scope, name)]
        if len(given) > 1:
            raise invalid("budget.scope", f"at most one of {', '.join(_SUBJECTS)} can be set")
        if scope.tag_value and not scope.tag_key:
            raise invalid("budget.scope.tag_key", "is needed with tag_value")
        if not given and not scope.tenant_id:
            return PLATFORM_TENANT_ID, Scope(ScopeKind.GLOBAL)
        if scope.user_id:
            user = await self._users.resolve(
                conn, caller, scope.user_id, scope.tenant_id, field="budget.scope.user_id"
            )
            if user.status is UserStatus.DELETED:
                raise BursarError(Reason.WRONG_STATE, f"user {user.email} is deleted")
            return user.tenant_id, Scope(ScopeKind.USER, user_id=user.user_id)
        if scope.group_id:
            group_id = fields.uuid(scope.group_id, "budget.scope.group_id")
            found = (await self._groups.get(conn, caller, group_id)).tenant_id
            result = Scope(ScopeKind.GROUP, group_id=group_id)
        elif scope.api_key_id:
            api_key_id = fields.uuid(scope.api_key_id, "budget.scope.api_key_id")
            found = (await self._keys.get(conn, caller, api_key_id)).tenant_id
            result = Scope(ScopeKind.KEY, api_key_id=api_key_id)
        else:
            found = (await self._tenants.resolve(conn, caller, scope.tenant_id)).tenant_id
            result = Scope(ScopeKind.TENANT)
            if scope.tag_key:
                fields.tags({scope.tag_key: scope.tag_value}, "budget.scope.tag_key")
                result = Scope(ScopeKind.TAG, tag_key=scope.tag_key, tag_value=scope.tag_value)
        if scope.tenant_id:
            tenant = await self._tenants.resolve(conn, caller, scope.tenant_id)
            if tenant.tenant_id != found:
                raise invalid("budget.scope.tenant_id", f"{given[0]} is of another tenant")
        return found, result


def draft_of(budget: budget_pb2.Budget, current: Budget | None) -> BudgetDraft:
    """Return what a request says of a budget, its scope left out; empty texts and lists say nothing.

    `current` is the budget to change: a request that was made by reading it and changing one field says the limit
    twice, in US dollars and in nanos, and the one that was changed counts.
    """
    limit_nanos, limit_tokens = _limits_of(budget, current)
    reason = fields.text(budget.reason, _PATH + "reason", max_length=rules.MAX_REASON)
    timezone = fields.text(budget.timezone, _PATH + "timezone", max_length=100)
    return BudgetDraft(
        name=fields.text(budget.name, _PATH + "name", max_length=rules.MAX_NAME) or None,
        period=fields.choice(budget.period, budget_pb2.BudgetPeriod, PeriodKind, _PATH + "period"),
        anchor_day=fields.integer(budget.anchor_day, _PATH + "anchor_day", maximum=31) or None,
        timezone=timezone or None,
        limit_nanos=limit_nanos,
        limit_tokens=limit_tokens,
        soft_limit_pct=fields.optional_integer(budget, "soft_limit_pct", minimum=1, maximum=100, path=_PATH),
        alert_thresholds_pct=tuple(budget.alert_thresholds_pct) or None,
        enforcement=fields.choice(
            budget.enforcement, budget_pb2.Enforcement, Enforcement, _PATH + "enforcement"
        ),
        admission=fields.choice(budget.admission, budget_pb2.Admission, Admission, _PATH + "admission"),
        max_wait_ms=fields.optional_integer(budget, "max_wait_ms", maximum=rules.MAX_WAIT_MS, path=_PATH),
        fit_output=fields.optional_bool(budget, "fit_output"),
        shadow=fields.optional_bool(budget, "shadow"),
        on_lease_expiry=fields.choice(
            budget.on_lease_expiry, budget_pb2.LeaseExpiry, LeaseExpiry, _PATH + "on_lease_expiry"
        ),
        enabled=fields.optional_bool(budget, "enabled"),
        managed_by=fields.choice(budget.managed_by, budget_pb2.ManagedBy, ManagedBy, _PATH + "managed_by"),
        owners=tuple(
            fields.email(owner.strip(), f"{_PATH}owners[{index}]")
            for index, owner in enumerate(budget.owners)
        )
        or None,
        reason=reason or None,
        guard_streams=fields.optional_bool(budget, "guard_streams"),
        on_unreachable=fields.choice(
            budget.on_unreachable, budget_pb2.OnUnreachable, OnUnreachable, _PATH + "on_unreachable"
        ),
    )


def _limits_of(budget: budget_pb2.Budget, current: Budget | None) -> tuple[int | None, int | None]:
    of_usd = fields.usd(budget, "limit_usd", path=_PATH)
    nanos = fields.optional_integer(budget, "limit_nanos", path=_PATH)
    tokens = fields.optional_integer(budget, "limit_tokens", path=_PATH)
    if tokens is not None and (of_usd is not None or nanos is not None):
        raise invalid("budget.limit_tokens", "exactly one of limit_usd and limit_tokens can be set")
    if of_usd is None or nanos is None or usd_of_nanos(nanos) == budget.limit_usd:
        return nanos if nanos is not None else of_usd, tokens
    before = current.limit_nanos if current is not None else None
    if nanos == before:
        return of_usd, None
    if before is not None and usd_of_nanos(before) == budget.limit_usd:
        return nanos, None
    raise invalid("budget.limit_nanos", "differs from limit_usd: one of them is enough")


def scope_message(budget: Budget) -> budget_pb2.BudgetScope:
    """Return a budget's scope as the wire has it: all empty is global."""
    scope = budget.scope
    return budget_pb2.BudgetScope(
        tenant_id="" if scope.kind is ScopeKind.GLOBAL else str(budget.tenant_id),
        group_id=str(scope.group_id or ""),
        user_id=str(scope.user_id or ""),
        api_key_id=str(scope.api_key_id or ""),
        tag_key=scope.tag_key or "",
        tag_value=scope.tag_value or "",
    )


def budget_message(budget: Budget) -> budget_pb2.Budget:
    """Return a budget as the wire has it."""
    nanos = budget.limit_nanos
    return budget_pb2.Budget(
        budget_id=str(budget.budget_id),
        name=budget.name,
        scope=scope_message(budget),
        period=f"BUDGET_PERIOD_{budget.period}",
        anchor_day=budget.anchor_day,
        timezone=budget.timezone,
        limit_usd=usd_of_nanos(nanos) if nanos is not None else None,
        limit_tokens=budget.limit_tokens,
        soft_limit_pct=budget.soft_limit_pct,
        alert_thresholds_pct=budget.alert_thresholds_pct,
        enforcement=f"ENFORCEMENT_{budget.enforcement}",
        admission=f"ADMISSION_{budget.admission}",
        max_wait_ms=budget.max_wait_ms,
        fit_output=budget.fit_output,
        shadow=budget.shadow,
        on_lease_expiry=f"LEASE_EXPIRY_{budget.on_lease_expiry}",
        enabled=budget.enabled,
        managed_by=f"MANAGED_BY_{budget.managed_by}",
        owners=budget.owners,
        reason=budget.reason,
        version=budget.version,
        create_time=fields.timestamp_of(budget.create_time),
        update_time=fields.timestamp_of(budget.update_time),
        limit_nanos=nanos,
        on_unreachable=f"ON_UNREACHABLE_{budget.on_unreachable}",
        guard_streams=budget.guard_streams,
    )


def status_message(standing: Standing) -> budget_pb2.BudgetStatus:
    """Return where a budget stands as the wire has it; amounts are always set, remaining never below 0 (S22)."""
    budget, balance = standing.budget, standing.balance
    in_money = not budget.counts_tokens
    return budget_pb2.BudgetStatus(
        budget=budget_message(budget),
        period_key=balance.period_key,
        period_start_time=fields.timestamp_of(balance.period_start),
        period_end_time=fields.optional_timestamp(reset_time(standing)),
        spent_usd=usd_of_nanos(balance.spent_nanos),
        held_usd=usd_of_nanos(balance.held_nanos),
        remaining_usd=usd_of_nanos(standing.remaining) if in_money else None,
        spent_nanos=balance.spent_nanos,
        held_nanos=balance.held_nanos,
        limit_nanos=budget.limit_nanos,
        spent_tokens=balance.spent_tokens,
        utilization_pct=rules.utilization_pct(standing),
        color=f"BUDGET_COLOR_{rules.color(standing)}",
        limit_tokens=budget.limit_tokens,
        remaining_tokens=None if in_money else standing.remaining,
        shadow_denials=balance.shadow_denials,
    )


def reset_time(standing: Standing) -> datetime | None:
    """Return when a budget's period ends, or None for one that never does."""
    end = standing.balance.period_end
    return None if end == NEVER else end
