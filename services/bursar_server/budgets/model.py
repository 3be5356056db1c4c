"""What a budget is."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from bursar_server.kit.periods import Period, PeriodKind, period_at, period_key


class ScopeKind(StrEnum):
    """Whose calls a budget counts."""

    GLOBAL = "GLOBAL"
    TENANT = "TENANT"
    GROUP = "GROUP"
    USER = "USER"
    KEY = "KEY"
    TAG = "TAG"


class Enforcement(StrEnum):
    """What happens when a budget is spent (S3)."""

    HARD = "HARD"
    SOFT = "SOFT"


class Admission(StrEnum):
    """What the check before a call compares with what is left (C03)."""

    ANY_REMAINING = "ANY_REMAINING"
    EXPECTED = "EXPECTED"
    UPPER_BOUND = "UPPER_BOUND"


class LeaseExpiry(StrEnum):
    """What happens to a call whose lease ends without a Deduct (S18)."""

    CHARGE_ESTIMATE = "CHARGE_ESTIMATE"
    RELEASE = "RELEASE"


class OnUnreachable(StrEnum):
    """What happens to the calls that a budget counts while a sidecar cannot ask; SIDECAR leaves it to its setting."""

    SIDECAR = "SIDECAR"
    CLOSED = "CLOSED"
    OPEN = "OPEN"
    LAST_KNOWN_GOOD = "LAST_KNOWN_GOOD"


class ManagedBy(StrEnum):
    """Who set a budget and may change it (F025)."""

    PLATFORM = "PLATFORM"
    TENANT = "TENANT"


@dataclass(frozen=True)
class Scope:
    """Whose calls a budget counts; the fields that its kind does not use are None."""

    kind: ScopeKind
    group_id: UUID | None = None
    user_id: UUID | None = None
    api_key_id: UUID | None = None
    tag_key: str | None = None
    tag_value: str | None = None


@dataclass(frozen=True)
class Budget:
    """A ceiling on spending. Exactly one of `limit_nanos` and `limit_tokens` is set (C13).

    `tenant_id` is the platform tenant for a global budget. `definition_revision` goes up with every change of scope,
    period, anchor or zone, and with enabling, so that balances of the old definition stay as they were (S4).
    """

    tenant_id: UUID
    budget_id: UUID
    name: str
    scope: Scope
    period: PeriodKind
    anchor_day: int
    timezone: str
    limit_nanos: int | None
    limit_tokens: int | None
    soft_limit_pct: int | None
    alert_thresholds_pct: tuple[int, ...]
    enforcement: Enforcement
    admission: Admission
    max_wait_ms: int
    fit_output: bool
    shadow: bool
    on_lease_expiry: LeaseExpiry
    enabled: bool
    managed_by: ManagedBy
    owners: tuple[str, ...]
    reason: str
    definition_revision: int
    version: int
    create_time: datetime
    update_time: datetime
    on_unreachable: OnUnreachable = OnUnreachable.SIDECAR
    guard_streams: bool = False

    @property
    def limit(self) -> int:
        """The limit in the budget's own unit: nanos, or tokens."""
        return self.limit_nanos if self.limit_nanos is not None else self.limit_tokens or 0

    @property
    def counts_tokens(self) -> bool:
        """Whether the limit is in tokens."""
        return self.limit_tokens is not None

    def period_at(self, instant: datetime) -> Period:
        """Return the period that `instant` lies in."""
        return period_at(self.period, self.anchor_day, self.timezone, instant)

    def period_key_at(self, instant: datetime) -> str:
        """Return the key of the balance that `instant` counts in."""
        return period_key(self.period_at(instant).start, self.definition_revision)


@dataclass(frozen=True)
class Balance:
    """Where a budget stands in one period. Amounts in nanos and tokens; both are kept whatever the limit's unit."""

    budget_id: UUID
    period_key: str
    period_start: datetime
    period_end: datetime
    spent_nanos: int = 0
    held_nanos: int = 0
    spent_tokens: int = 0
    held_tokens: int = 0
    shadow_denials: int = 0


class Color(StrEnum):
    """How far a budget is spent (F069, F070)."""

    GREEN = "GREEN"
    AMBER = "AMBER"
    RED = "RED"


@dataclass(frozen=True)
class Standing:
    """A budget and where it stands in the period that an instant lies in. Amounts are in the budget's own unit."""

    budget: Budget
    balance: Balance

    @property
    def spent(self) -> int:
        """What was spent."""
        return self.balance.spent_tokens if self.budget.counts_tokens else self.balance.spent_nanos

    @property
    def held(self) -> int:
        """What is held for open calls."""
        return self.balance.held_tokens if self.budget.counts_tokens else self.balance.held_nanos

    @property
    def left(self) -> int:
        """Limit − spent − held, which can be negative (S10)."""
        return self.budget.limit - self.spent - self.held

    @property
    def remaining(self) -> int:
        """What is left as it is shown: never below 0 (S22)."""
        return max(0, self.left)

    @property
    def enforced(self) -> bool:
        """Whether the budget can deny a call (S3)."""
        return self.budget.enabled and self.budget.enforcement is Enforcement.HARD and not self.budget.shadow


@dataclass(frozen=True)
class BudgetDraft:
    """What a request says of a budget; None is what it does not say: a default where the budget is new, else it stays."""

    name: str | None = None
    scope: Scope | None = None
    period: PeriodKind | None = None
    anchor_day: int | None = None
    timezone: str | None = None
    limit_nanos: int | None = None
    limit_tokens: int | None = None
    soft_limit_pct: int | None = None
    alert_thresholds_pct: tuple[int, ...] | None = None
    enforcement: Enforcement | None = None
    admission: Admission | None = None
    max_wait_ms: int | None = None
    fit_output: bool | None = None
    shadow: bool | None = None
    on_lease_expiry: LeaseExpiry | None = None
    enabled: bool | None = None
    managed_by: ManagedBy | None = None
    owners: tuple[str, ...] | None = None
    reason: str | None = None
    on_unreachable: OnUnreachable | None = None
    guard_streams: bool | None = None


@dataclass(frozen=True)
class BudgetFilter:
    """Which budgets to list. `tenant_ids` None is every tenant; an absent subject does not narrow."""

    tenant_ids: frozenset[UUID] | None = None
    user_id: UUID | None = None
    group_id: UUID | None = None
    api_key_id: UUID | None = None
