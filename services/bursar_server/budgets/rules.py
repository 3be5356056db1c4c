"""What a budget may be, who may change and read it, and how far it is spent. Pure; amounts in nanos or tokens."""

from collections.abc import Collection, Sequence
from dataclasses import fields, replace
from datetime import datetime
from uuid import UUID

from bursar_server.budgets.model import (
    Admission,
    Budget,
    BudgetDraft,
    Color,
    Enforcement,
    LeaseExpiry,
    ManagedBy,
    Scope,
    ScopeKind,
    Standing,
)
from bursar_server.kit.caller import PLATFORM_ROLES, Caller, Role
from bursar_server.kit.errors import BursarError, Reason, invalid
from bursar_server.kit.money import usd_text
from bursar_server.kit.periods import PeriodKind, zone_named

DEFAULT_SOFT_LIMIT_PCT = 80
DEFAULT_THRESHOLDS_PCT = (80, 90, 100)
DEFAULT_MAX_WAIT_MS = 2_000

MAX_NAME = 200
MAX_REASON = 1_000
MAX_OWNERS = 20
MAX_THRESHOLDS = 10
MAX_THRESHOLD_PCT = 1_000
MAX_WAIT_MS = 60_000
MAX_INT64 = 2**63 - 1

_ANCHORS = {
    PeriodKind.WEEKLY: 7,
    PeriodKind.MONTHLY: 31,
    PeriodKind.QUARTERLY: 31,
    PeriodKind.YEARLY: 31,
}
# From the shortest to the longest: what a longer period allows, no shorter one within it may exceed.
_LENGTHS = tuple(PeriodKind)


def new_budget(
    draft: BudgetDraft, tenant_id: UUID, budget_id: UUID, managed_by: ManagedBy, now: datetime
) -> Budget:
    """Return the budget that a draft asks for, with the defaults of C01, C02, C03 and C05.

    Raises INVALID_FIELD naming the field (`budget.limit_usd`) for what a budget cannot be.
    """
    if draft.scope is None:
        raise invalid("budget.scope", "is needed")
    period = draft.period or PeriodKind.DAILY
    empty = Budget(
        tenant_id=tenant_id,
        budget_id=budget_id,
        name=f"{draft.scope.kind.lower()} {period.lower()}",
        scope=draft.scope,
        period=period,
        anchor_day=0,
        timezone="UTC",
        limit_nanos=None,
        limit_tokens=None,
        soft_limit_pct=DEFAULT_SOFT_LIMIT_PCT,
        alert_thresholds_pct=DEFAULT_THRESHOLDS_PCT,
        enforcement=Enforcement.HARD,
        admission=Admission.ANY_REMAINING,
        max_wait_ms=DEFAULT_MAX_WAIT_MS,
        fit_output=False,
        shadow=False,
        on_lease_expiry=LeaseExpiry.CHARGE_ESTIMATE,
        enabled=True,
        managed_by=managed_by,
        owners=(),
        reason="",
        definition_revision=1,
        version=1,
        create_time=now,
        update_time=now,
    )
    return _checked(_with(empty, draft))


def changed(budget: Budget, draft: BudgetDraft, now: datetime) -> Budget:
    """Return the budget after a change: its version goes up, and its definition's revision where S4 says so.

    Raises INVALID_FIELD naming the field for what a budget cannot be.
    """
    after = _checked(_with(budget, draft))
    renewed = after.enabled and not budget.enabled
    revision = budget.definition_revision + (1 if renewed or redefined(budget, after) else 0)
    return replace(after, definition_revision=revision, version=budget.version + 1, update_time=now)


def redefined(before: Budget, after: Budget) -> bool:
    """Return whether what a budget counts, or when it starts anew, has changed (S4)."""
    return (before.scope, before.period, before.anchor_day, before.timezone) != (
        after.scope,
        after.period,
        after.anchor_day,
        after.timezone,
    )


def limit_moved(before: Budget, after: Budget) -> bool:
    """Return whether the limit or its unit has changed: thresholds above the new utilisation fire again (S21)."""
    return (before.limit_nanos, before.limit_tokens) != (after.limit_nanos, after.limit_tokens)


def _with(budget: Budget, draft: BudgetDraft) -> Budget:
    given = {
        field.name: value
        for field in fields(draft)
        if field.name not in ("limit_nanos", "limit_tokens", "managed_by")
        and (value := getattr(draft, field.name)) is not None
    }
    if draft.limit_nanos is not None or draft.limit_tokens is not None:
        given |= {"limit_nanos": draft.limit_nanos, "limit_tokens": draft.limit_tokens}
    if draft.managed_by is not None and draft.managed_by is not budget.managed_by:
        raise invalid("budget.managed_by", f"is {budget.managed_by}: it follows from who made the budget")
    if draft.period is not None and draft.period is not budget.period and draft.anchor_day is None:
        given["anchor_day"] = 0
    return replace(budget, **given)


def _checked(budget: Budget) -> Budget:
    _check_limit(budget)
    _check_period(budget)
    _check_scope(budget.scope)
    if not budget.name.strip() or len(budget.name) > MAX_NAME:
        raise invalid("budget.name", f"must have 1 to {MAX_NAME} characters")
    if len(budget.reason) > MAX_REASON:
        raise invalid("budget.reason", f"must have at most {MAX_REASON} characters")
    if budget.soft_limit_pct is not None and not 1 <= budget.soft_limit_pct <= 100:
        raise invalid("budget.soft_limit_pct", "must be between 1 and 100")
    if not 0 <= budget.max_wait_ms <= MAX_WAIT_MS:
        raise invalid("budget.max_wait_ms", f"must be between 0 and {MAX_WAIT_MS}")
    return replace(
        budget,
        name=budget.name.strip(),
        anchor_day=(budget.anchor_day or 1) if budget.period in _ANCHORS else 0,
        alert_thresholds_pct=_thresholds(budget.alert_thresholds_pct),
        owners=_owners(budget.owners),
    )


def _check_limit(budget: Budget) -> None:
    if budget.limit_nanos is None and budget.limit_tokens is None:
        raise invalid("budget.limit_usd", "is needed, or limit_tokens; 0 is a limit of nothing")
    if budget.limit_nanos is not None and budget.limit_tokens is not None:
        raise invalid("budget.limit_tokens", "exactly one of limit_usd and limit_tokens can be set")
    if not 0 <= budget.limit <= MAX_INT64:
        field = "limit_tokens" if budget.counts_tokens else "limit_usd"
        raise invalid(f"budget.{field}", "must not be negative, and must fit 64 bits")


def _check_period(budget: Budget) -> None:
    if zone_named(budget.timezone) is None:
        raise invalid("budget.timezone", f"{budget.timezone[:100]!r} is not an IANA time zone")
    highest = _ANCHORS.get(budget.period, 0)
    if not 0 <= budget.anchor_day <= highest:
        wanted = f"must be between 1 and {highest}" if highest else "has no meaning"
        raise invalid("budget.anchor_day", f"{wanted} for {budget.period}")


def _check_scope(scope: Scope) -> None:
    if scope.kind is ScopeKind.TAG and not scope.tag_value:
        raise invalid("budget.scope.tag_value", "is needed with tag_key")


def _thresholds(given: Sequence[int]) -> tuple[int, ...]:
    for pct in given:
        if not 1 <= pct <= MAX_THRESHOLD_PCT:
            raise invalid("budget.alert_thresholds_pct", f"must be between 1 and {MAX_THRESHOLD_PCT}")
    ascending = tuple(sorted(set(given)))
    if len(ascending) > MAX_THRESHOLDS:
        raise invalid("budget.alert_thresholds_pct", f"must have at most {MAX_THRESHOLDS} values")
    return ascending


def _owners(given: Sequence[str]) -> tuple[str, ...]:
    owners = tuple(dict.fromkeys(owner.strip().lower() for owner in given))
    if len(owners) > MAX_OWNERS:
        raise invalid("budget.owners", f"must have at most {MAX_OWNERS} e-mails")
    return owners


def managed_by_of(role: Role) -> ManagedBy:
    """Return who manages what a caller of this role makes (F025)."""
    return ManagedBy.PLATFORM if role in PLATFORM_ROLES else ManagedBy.TENANT


def check_may_change(caller: Caller, budget: Budget) -> None:
    """Raise MANAGED_ELSEWHERE where the other side made the budget: each side reads what the other set (F025, F027)."""
    if budget.managed_by is not managed_by_of(caller.role):
        raise BursarError(
            Reason.MANAGED_ELSEWHERE,
            f"budget {budget.name!r} is managed by {budget.managed_by}: its owner has to change it",
            metadata={"managed_by": budget.managed_by, "budget_id": str(budget.budget_id)},
        )


def check_ceiling(budget: Budget, ceilings: Sequence[Budget]) -> None:
    """Raise ABOVE_CEILING where a tenant's budget lies above what the operator set for the tenant (F028, F029).

    A ceiling is an enabled PLATFORM budget of scope tenant, in the same unit and of the same or a longer period: what
    a month may cost bounds what a day may. Shadow budgets deny nothing, and global ones are no ceiling (F030). Without
    a ceiling the budget stands on its own (F031).
    """
    if budget.managed_by is not ManagedBy.TENANT:
        return
    governing = [
        ceiling
        for ceiling in ceilings
        if ceiling.managed_by is ManagedBy.PLATFORM
        and ceiling.scope.kind is ScopeKind.TENANT
        and ceiling.enabled
        and not ceiling.shadow
        and ceiling.counts_tokens == budget.counts_tokens
        and _LENGTHS.index(ceiling.period) >= _LENGTHS.index(budget.period)
    ]
    tightest = min(governing, key=lambda ceiling: ceiling.limit, default=None)
    if tightest is not None and budget.limit > tightest.limit:
        field = "budget.limit_tokens" if budget.counts_tokens else "budget.limit_usd"
        raise BursarError(
            Reason.ABOVE_CEILING,
            f"{field}: must be at or below the operator's {tightest.period.lower()} ceiling of {shown_limit(tightest)}",
            field=field,
            metadata={"ceiling_budget_id": str(tightest.budget_id), "ceiling": shown_limit(tightest)},
        )


def may_list(caller: Caller, budget: Budget) -> bool:
    """Return whether a caller may read a budget: global ones are the operator's, a lead reads its own groups'."""
    if not caller.may_see(budget.tenant_id):
        return False
    if caller.role is Role.GROUP_LEAD:
        return budget.scope.kind is ScopeKind.GROUP and budget.scope.group_id in caller.group_ids
    return caller.is_platform or budget.scope.kind is not ScopeKind.GLOBAL


def readable(
    budget: Budget,
    *,
    user_id: UUID | None,
    api_key_id: UUID | None,
    role: Role | None,
    group_ids: Collection[UUID],
) -> bool:
    """Return whether a reader may see a budget's name and figures, or only its kind and reset time (S2, C08, F013).

    The reader is a user of the budget's tenant, or a platform role; a principal that calls reads as a member.
    `group_ids` are the groups that a lead leads.
    """
    if role in PLATFORM_ROLES:
        return True
    kind = budget.scope.kind
    if kind is ScopeKind.GLOBAL:
        return False
    if role in (Role.TENANT_ADMIN, Role.TENANT_DEVELOPER):
        return True
    if kind is ScopeKind.USER:
        return user_id is not None and budget.scope.user_id == user_id
    if kind is ScopeKind.KEY:
        return api_key_id is not None and budget.scope.api_key_id == api_key_id
    return kind is ScopeKind.GROUP and role is Role.GROUP_LEAD and budget.scope.group_id in group_ids


def utilization_pct(standing: Standing) -> float:
    """Return spent in percent of the limit, cut to 4 decimals so that 100 is not shown too soon; may pass 100 (S22).

    Of a limit of nothing, 0 while nothing is spent and 100 from then on.
    """
    limit = standing.budget.limit
    if limit == 0:
        return 100.0 if standing.spent > 0 else 0.0
    return max(0, standing.spent) * 1_000_000 // limit / 10_000


def color(standing: Standing) -> Color:
    """Return AMBER from the soft limit, RED from the limit, else GREEN (F069, F070). A limit of nothing is RED."""
    budget, spent = standing.budget, standing.spent
    if spent >= budget.limit:
        return Color.RED
    if budget.soft_limit_pct is not None and spent * 100 >= budget.soft_limit_pct * budget.limit:
        return Color.AMBER
    return Color.GREEN


def shown_limit(budget: Budget) -> str:
    """Return a limit as text for people: `12.5 US dollars` or `1000 tokens`."""
    if budget.counts_tokens:
        return f"{budget.limit} tokens"
    return f"{usd_text(budget.limit)} US dollars"


def details(budget: Budget) -> dict[str, object]:
    """Return a budget's definition as audit events hold it: money as decimal text, no floats (F177)."""
    scope = budget.scope
    subject = scope.group_id or scope.user_id or scope.api_key_id
    return {
        "name": budget.name,
        "scope": scope.kind.value,
        "subject": str(subject) if subject else f"{scope.tag_key}={scope.tag_value}" if scope.tag_key else "",
        "period": budget.period.value,
        "anchor_day": budget.anchor_day,
        "timezone": budget.timezone,
        "limit_usd": usd_text(budget.limit_nanos) if budget.limit_nanos is not None else "",
        "limit_tokens": budget.limit_tokens,
        "soft_limit_pct": budget.soft_limit_pct,
        "alert_thresholds_pct": list(budget.alert_thresholds_pct),
        "enforcement": budget.enforcement.value,
        "admission": budget.admission.value,
        "max_wait_ms": budget.max_wait_ms,
        "fit_output": budget.fit_output,
        "shadow": budget.shadow,
        "on_lease_expiry": budget.on_lease_expiry.value,
        "on_unreachable": budget.on_unreachable.value,
        "guard_streams": budget.guard_streams,
        "enabled": budget.enabled,
        "owners": list(budget.owners),
        "reason": budget.reason,
        "version": budget.version,
    }
