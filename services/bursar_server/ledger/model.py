"""What the ledger holds: legs, holds, balances, grants, records and entries, as one batch works on them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

from bursar_server.pricing.model import CallCost, Usage


class EntryKind(StrEnum):
    """Why an entry was posted. Rollups tie to CHARGE, EXPIRY and ADJUSTMENT; balances to all kinds (S19, S24)."""

    CHARGE = "CHARGE"
    EXPIRY = "EXPIRY"
    ADJUSTMENT = "ADJUSTMENT"
    OPENING = "OPENING"
    RESET = "RESET"


class Account(StrEnum):
    """What an entry is posted to."""

    TENANT = "TENANT"
    BUDGET = "BUDGET"
    GRANT = "GRANT"


class Source(StrEnum):
    """What wrote a revision of a record."""

    DEDUCT = "DEDUCT"
    EXPIRY = "EXPIRY"
    RELEASE = "RELEASE"


BalanceKey = tuple[UUID, UUID, str]
"""Tenant, budget and period key."""

GrantKey = tuple[UUID, UUID]
"""Tenant and grant."""

CallKey = tuple[UUID, UUID]
"""Tenant and request."""


@dataclass
class BalanceState:
    """A locked balance. `changed` marks it for the batch's write."""

    key: BalanceKey
    period_start: datetime
    period_end: datetime
    spent_nanos: int
    held_nanos: int
    spent_tokens: int
    held_tokens: int
    shadow_denials: int
    alerted_pct: int
    changed: bool = False

    def copy(self) -> "BalanceState":
        """Return another one of the same figures, not changed yet."""
        return BalanceState(
            self.key, self.period_start, self.period_end, self.spent_nanos, self.held_nanos, self.spent_tokens,
            self.held_tokens, self.shadow_denials, self.alerted_pct,
        )  # fmt: skip


@dataclass
class GrantState:
    """A locked grant. `changed` marks it for the batch's write."""

    key: GrantKey
    amount_nanos: int
    spent_nanos: int
    held_nanos: int
    starts_at: datetime
    expires_at: datetime
    create_time: datetime
    revoked: bool
    changed: bool = False

    @property
    def free_nanos(self) -> int:
        """What is neither spent nor held."""
        return max(0, self.amount_nanos - self.spent_nanos - self.held_nanos)

    def active_at(self, instant: datetime) -> bool:
        """Whether it can be drawn on by a call made then (S7)."""
        return not self.revoked and self.starts_at <= instant < self.expires_at


class Leg(NamedTuple):
    """What a call holds of one budget. Legs of ANY_REMAINING budgets hold 0 (S9)."""

    key: BalanceKey
    user_scoped: bool
    nanos: int = 0
    tokens: int = 0


class GrantLeg(NamedTuple):
    """What a call holds of one grant that was active at its Check."""

    key: GrantKey
    nanos: int = 0


class Attribution(NamedTuple):
    """Whom a call counts for, as resolved when it was made; renames and deletions never change it (S1)."""

    tenant_id: UUID
    api_key_id: UUID | None
    user_id: UUID | None
    masked_key: str
    service_account: bool
    group_ids: tuple[UUID, ...]
    tags: Mapping[str, str]
    session_id: str


@dataclass
class Hold:
    """An open call: what it may draw on, and until when unless its lease is renewed."""

    request_id: UUID
    check_sha256: str
    check_time: datetime
    lease_expire_time: datetime
    attribution: Attribution
    provider: str
    model: str
    estimate_input_tokens: int
    estimate_output_tokens: int
    release_on_expiry: bool
    legs: tuple[Leg, ...]
    grant_legs: tuple[GrantLeg, ...]

    @property
    def held_nanos(self) -> int:
        """The largest amount held on one budget together with its grants: what is set aside for the call."""
        of_grants = sum(leg.nanos for leg in self.grant_legs)
        largest = max((leg.nanos + (of_grants if leg.user_scoped else 0) for leg in self.legs), default=0)
        return max(largest, of_grants)


class PostingLine(NamedTuple):
    """What one account bore of a call; kept on the record also where it is 0, so that a late Deduct finds the legs."""

    account: Account
    tenant_id: UUID
    account_id: UUID
    period_key: str
    user_scoped: bool
    nanos: int
    tokens: int


class PricedItem(NamedTuple):
    """One model's usage with the price that was used; price_id None is unpriced."""

    model: str
    service_tier: str
    usage: Usage
    price_id: UUID | None


class Charge(NamedTuple):
    """What a call is to be charged with. `item_costs` are the parts of `cost` by item; `model` stands where there is none."""

    source: Source
    kind: EntryKind
    body_sha256: str
    provider: str
    outcome: str
    model: str
    items: tuple[PricedItem, ...]
    item_costs: tuple[CallCost, ...]
    cost: CallCost
    estimated: bool = False
    start_time: datetime | None = None
    end_time: datetime | None = None
    provider_cost_nanos: int | None = None
    unchecked: bool = False

    @property
    def unpriced(self) -> bool:
        """Whether a model had no price."""
        return any(item.price_id is None for item in self.items)

    @property
    def tokens(self) -> int:
        """What budgets in tokens count."""
        return sum(item.usage.input_tokens + item.usage.output_tokens for item in self.items)


@dataclass
class Record:
    """A revision of a usage record. Later revisions carry signed differences."""

    request_id: UUID
    revision: int
    source: Source
    body_sha256: str
    usage_time: datetime
    attribution: Attribution
    provider: str
    outcome: str
    model: str
    items: tuple[PricedItem, ...]
    cost: CallCost
    postings: tuple[PostingLine, ...]
    start_time: datetime | None = None
    end_time: datetime | None = None
    provider_cost_nanos: int | None = None
    overage_nanos: int = 0
    hold_shortfall_nanos: int = 0
    estimated: bool = False
    unpriced: bool = False
    lease_expired: bool = False
    unchecked: bool = False


@dataclass(frozen=True)
class PastRevision:
    """What is needed of a revision that is in the database already."""

    revision: int
    source: Source
    body_sha256: str
    usage_time: datetime
    provider: str
    model: str
    cost: CallCost
    items: tuple[PricedItem, ...]
    postings: tuple[PostingLine, ...]
    overage_nanos: int
    hold_shortfall_nanos: int
    unpriced: bool
    unchecked: bool
    attribution: Attribution

    @property
    def takes_back(self) -> bool:
        """Whether a release took back what the lease's expiry charged (S17): booked as a Deduct, but nobody sent one."""
        return self.source is Source.DEDUCT and not self.body_sha256

    def taken_back(self) -> "PastRevision":
        """Return what is left of an expiry's charge that was taken back: where it counted, and nothing."""
        postings = tuple(line._replace(nanos=0, tokens=0) for line in self.postings)
        return replace(self, source=Source.DEDUCT, cost=CallCost(0, 0, 0), items=(), postings=postings)

    def as_charge(self) -> Charge:
        """Return what an expiry charged: one item at most, so that its cost is the call's."""
        return Charge(
            self.source, EntryKind.EXPIRY, self.body_sha256, self.provider, "", self.model, self.items, (self.cost,),
            self.cost, estimated=self.source is Source.EXPIRY,
        )  # fmt: skip


class Entry(NamedTuple):
    """A line of the ledger: never changed once written."""

    tenant_id: UUID
    op_id: UUID
    revision: int
    leg: int
    kind: EntryKind
    account: Account
    account_tenant_id: UUID
    account_id: UUID
    period_key: str
    amount_nanos: int
    amount_tokens: int
    usage_time: datetime


@dataclass(frozen=True)
class FiredThreshold:
    """A threshold that a Deduct reached (S21). `soft_limit` says that it is the soft limit too."""

    budget_id: UUID
    budget_tenant_id: UUID
    period_key: str
    threshold_pct: int
    soft_limit: bool
    spent_nanos: int
    spent_tokens: int
