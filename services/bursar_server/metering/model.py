"""What metering is asked, and what it answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

from bursar_server.budgets.model import Budget, OnUnreachable
from bursar_server.ledger.model import FiredThreshold, PostingLine, Record
from bursar_server.pricing.model import CallCost, Usage


class PricingOnMissing(StrEnum):
    """What happens to a model without a price (C19); a fallback price is a price like any other."""

    RECORD_ZERO = "RECORD_ZERO"
    BLOCK = "BLOCK"


class NoBudgetPolicy(StrEnum):
    """What happens to a principal that no budget of scope user, key, group or tenant matches (C10)."""

    ALLOW = "ALLOW"
    DENY = "DENY"


@dataclass(frozen=True)
class Policy:
    """The installation's choices that a Check follows."""

    hold_lease_ms: int = 60_000
    no_budget: NoBudgetPolicy = NoBudgetPolicy.ALLOW
    on_missing: PricingOnMissing = PricingOnMissing.RECORD_ZERO
    # What an answer may have where neither the call nor the model's price says it.
    default_max_output_tokens: int = 16_384


class PrincipalRef(NamedTuple):
    """How a request names its principal: a key's hash, a user (id or e-mail), a tenant (id or name).

    `body_user` is what the body of the app's request names; only keys with `trust_user_field` believe it.
    Its representation is part of what a Check is hashed by (S16): names and order stay.
    """

    api_key_sha256: str = ""
    user: str = ""
    tenant: str = ""
    body_user: str = ""

    @property
    def empty(self) -> bool:
        """Whether it names nobody."""
        return not (self.api_key_sha256 or self.user or self.tenant)

    @classmethod
    def of_tenant(cls, tenant_id: UUID) -> "PrincipalRef":
        """Return the reference that names a tenant and nobody in it."""
        return cls(tenant=str(tenant_id))


class Problem(StrEnum):
    """Why a principal may not call at all; the codes of denials."""

    KEY_UNKNOWN = "KEY_UNKNOWN"
    KEY_REVOKED = "KEY_REVOKED"
    USER_UNKNOWN = "USER_UNKNOWN"
    USER_NOT_ALLOWED = "USER_NOT_ALLOWED"
    USER_DEACTIVATED = "USER_DEACTIVATED"
    TENANT_SUSPENDED = "TENANT_SUSPENDED"


@dataclass(frozen=True)
class Subject:
    """A principal as resolved: whom its calls count for, and what limits them. Valid for the versions it was read at."""

    tenant_id: UUID
    tenant_version: int
    platform_version: int
    problem: Problem | None = None
    # An e-mail that the tenant does not have yet; the user is made, and the subject read again (F043).
    new_email: str = ""
    api_key_id: UUID | None = None
    masked_key: str = ""
    user_id: UUID | None = None
    email: str = ""
    service_account: bool = False
    rate_limit: int = 0
    group_ids: tuple[UUID, ...] = ()
    default_tags: Mapping[str, str] | None = None
    budgets: tuple[Budget, ...] = ()
    grant_ids: tuple[UUID, ...] = ()

    @property
    def actor(self) -> str:
        """The name that audit events carry."""
        return self.email or (f"key:{self.masked_key}" if self.masked_key else "unknown")


class CheckCall(NamedTuple):
    """Asks whether a call may be made."""

    request_id: UUID
    principal: PrincipalRef
    allowed_tenants: frozenset[UUID] | None
    provider: str
    model: str
    input_tokens_estimate: int
    max_output_tokens: int | None
    tags: Mapping[str, str]
    session_id: str
    body_sha256: str
    # When the answer is of no use any more, in the clock's monotonic seconds.
    deadline: float | None = None
    # Whether the answer may wait for other calls' holds (S10), and since when it does.
    may_wait: bool = False
    # Whether the caller lowers the call's output limit where it is told to.
    can_fit_output: bool = False
    wait_since: datetime | None = None
    # The budgets (tenant and id) whose queues it stands in.
    waits_for: tuple[tuple[UUID, UUID], ...] = ()
    # Whether the answer says what each budget has left.
    with_budgets: bool = False


class DeductItem(NamedTuple):
    """One model's usage as it was reported."""

    model: str
    service_tier: str
    usage: Usage


class DeductCall(NamedTuple):
    """Asks to charge a call. `request_id` is None where the given one is no UUIDv7."""

    given_id: str
    request_id: UUID | None
    principal: PrincipalRef
    allowed_tenants: frozenset[UUID] | None
    provider: str
    items: tuple[DeductItem, ...]
    outcome: str
    estimated: bool
    provider_cost_nanos: int | None
    start_time: datetime | None
    end_time: datetime | None
    tags: Mapping[str, str]
    session_id: str
    body_sha256: str
    # By which policy a sidecar that could not ask let the call through.
    degraded: OnUnreachable | None = None

    @property
    def said_id(self) -> str:
        """The id that was given, always written alike: what another one can stand for (S16)."""
        return self.given_id if self.request_id is None else str(self.request_id)


@dataclass(frozen=True)
class RefusedCalls:
    """Calls of one principal that a sidecar refused in one outage, by which policy."""

    calls: int
    policy: OnUnreachable
    first_time: datetime | None
    last_time: datetime | None


@dataclass(frozen=True)
class ReleaseCall:
    """Says that a call was never sent, or reports calls that a sidecar refused by itself."""

    request_id: UUID
    principal: PrincipalRef
    allowed_tenants: frozenset[UUID] | None
    refused: RefusedCalls | None = None


@dataclass(frozen=True)
class ExpireCall:
    """Says that a lease ended."""

    tenant_id: UUID
    request_id: UUID


Call = CheckCall | DeductCall | ReleaseCall | ExpireCall


@dataclass(frozen=True)
class Denial:
    """One reason against a call (S2). Amounts only where the principal may read them; remaining orders denials."""

    code: str
    reason: str
    message: str
    scope: str = ""
    budget_id: UUID | None = None
    limit_nanos: int | None = None
    spent_nanos: int | None = None
    limit_tokens: int | None = None
    spent_tokens: int | None = None
    reset_time: datetime | None = None
    retryable: bool = False
    remaining: int = 0


@dataclass(frozen=True)
class BudgetLeft:
    """What a budget leaves, in its own unit; never below 0."""

    budget_id: UUID
    amount: int
    in_tokens: bool


@dataclass(frozen=True)
class Outlook:
    """What a sidecar goes by while it cannot ask: the budgets' strictest word, and what they leave where that matters.

    `by_tags`: other tags may mean other budgets.
    """

    policy: OnUnreachable | None
    budgets: tuple[BudgetLeft, ...]
    by_tags: bool


class CheckAnswer(NamedTuple):
    """The decision; allowed when there are no denials."""

    request_id: UUID
    denials: tuple[Denial, ...]
    remaining_nanos: int | None
    held_nanos: int
    hold_expire_time: datetime | None
    subject: Subject | None
    duplicate: bool = False
    retry_after_ms: int | None = None
    fit_output_tokens: int | None = None
    guard_output_tokens: int | None = None
    outlook: Outlook | None = None

    @property
    def allowed(self) -> bool:
        """Whether the call may be made."""
        return not self.denials


class DeductAnswer(NamedTuple):
    """What a call was charged in all."""

    request_id: UUID
    cost: CallCost
    postings: tuple[PostingLine, ...]
    remaining_nanos: int | None
    overage_nanos: int
    hold_shortfall_nanos: int
    unpriced: bool
    unchecked: bool
    duplicate: bool = False
    alerts: tuple[FiredThreshold, ...] = ()
    record: Record | None = None


@dataclass(frozen=True)
class ReleaseAnswer:
    """Whether a hold was removed."""

    released: bool


@dataclass(frozen=True)
class NewUser:
    """The call names an e-mail that its tenant does not have: make the user, then ask again (F043)."""

    tenant_id: UUID
    email: str


@dataclass(frozen=True)
class Waiting:
    """The call fits but for other calls' holds: it is decided again, until `until`, when `answer` is given (S10)."""

    answer: CheckAnswer
    wait_since: datetime
    until: datetime
    waits_for: tuple[tuple[UUID, UUID], ...]
    budget_id: UUID


Answer = CheckAnswer | DeductAnswer | ReleaseAnswer | NewUser | Waiting
