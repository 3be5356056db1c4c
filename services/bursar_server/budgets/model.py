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


class ManagedBy(StrEnum):
    """Who set a budget and may change it (F025)."""

    PLATFORM = "PLATFORM"
    TENANT = "TENANT"


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose calls a budget counts; the fields that its kind does not use are None."""

    kind: ScopeKind
    group_id: UUID | None = None
    user_id: UUID | None = None
    api_key_id: UUID | None = None
    tag_key: str | None = None
    tag_value: str | None = None


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
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
