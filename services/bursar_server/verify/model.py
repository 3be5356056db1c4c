"""What the proof of the books finds, and what it looks at to find it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from bursar_server.ledger.model import PricedItem
from bursar_server.pricing.model import CallCost, Usage

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

FIRST_ID = UUID(int=0)
LAST_ID = UUID(int=2**128 - 1)

IdRange = tuple[UUID, UUID]
"""Ids from the first on, up to but without the second."""


@dataclass(frozen=True, slots=True)
class Invariant:
    """A line of the ledger's README: its number, what must hold, and what is counted of it."""

    number: str
    says: str
    counted: str


INVARIANTS = (
    Invariant("I1", "spent of each balance = its entries", "balances"),
    Invariant("I2", "held of each balance = its open holds", "open holds"),
    Invariant("I3", "grants: spent = entries, held = holds, none overdrawn", "grants"),
    Invariant("I4", "charges = records = quarter-hours = days", "rollup rows"),
    Invariant("I5", "every account bears what its call cost", "entries of calls"),
    Invariant("I6", "input + output + other = cost", "records"),
    Invariant("I7", "cost = usage × the price that the record names", "records"),
    Invariant("I8", "revisions are whole, one Deduct a call", "records"),
    Invariant("I9", "the audit trail's chain of hashes is whole", "audit events"),
    Invariant("I10", "reports are as hashed, and as the ledger stood", "reports"),
    Invariant("I11", "no hold outlives its call", "open holds"),
    Invariant("I12", "accounts exist, sums are never negative", "accounts"),
)


@dataclass(frozen=True, slots=True)
class Difference:
    """Two figures that should be the same: what a row says, and what the rows behind it come to.

    `ids` name the row. `figure` says what is compared; its last word is the unit where there is one. The figures are
    integers, or texts where no numbers are compared. `note` says what else a reader has to know.
    """

    invariant: str
    tenant_id: UUID
    subject: str
    ids: Mapping[str, str]
    figure: str
    said_by: str
    said: int | str
    proved_by: str
    proved: int | str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Scope:
    """What to look at: one tenant (name or id) or all, and what began at `since` or later, or everything."""

    tenant: str = ""
    since: datetime | None = None

    @property
    def first_instant(self) -> datetime:
        """The instant from which on things are looked at."""
        return self.since or EPOCH


@dataclass(frozen=True, slots=True)
class Tenant:
    """Whose books are looked at."""

    tenant_id: UUID
    name: str


@dataclass(slots=True)
class Progress:
    """How far the proof is; changes as it goes on."""

    tenant: str = ""
    tenants_done: int = 0
    tenants: int = 0
    doing: str = ""
    counts: dict[str, int] = field(default_factory=dict)

    def count(self, what: str, number: int) -> None:
        """Add to what has been looked at."""
        self.counts[what] = self.counts.get(what, 0) + number


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the proof came to: the number of differences by invariant, what was looked at, and what was left out."""

    differences: Mapping[str, int]
    counts: Mapping[str, int]
    tenants: int
    seconds: float
    left_out: Sequence[str] = ()

    @property
    def clean(self) -> bool:
        """Whether every invariant holds."""
        return not any(self.differences.values())


# -- what is read back from the books -----------------------------------------------------------------


class UnreadableError(Exception):
    """A stored row is not made the way Bursar makes it."""


def item_of(item: Mapping[str, Any]) -> PricedItem:
    """Return an item as the record keeps it. Raises UnreadableError where it is none."""
    try:
        price_id = UUID(item["price_id"]) if item["price_id"] else None
        usage = {str(name): int(value) for name, value in item["usage"].items()}
        return PricedItem(str(item["model"]), str(item["service_tier"]), Usage(**usage), price_id)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UnreadableError(f"items: {type(error).__name__}: {error}") from error


@dataclass(frozen=True, slots=True)
class ExpiredRevision:
    """What a lease's expiry charged: what a later Deduct takes back."""

    provider: str
    items: tuple[PricedItem, ...]
    cost: CallCost


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A revision of a usage record, as far as costs and sums depend on it. `expired` is the expiry that it corrects."""

    request_id: UUID
    revision: int
    source: str
    user_id: UUID | None
    api_key_id: UUID | None
    provider: str
    model: str
    usage_time: datetime
    posted_time: datetime
    items: tuple[PricedItem, ...]
    input_tokens: int
    output_tokens: int
    cost: CallCost
    unpriced: bool
    estimated: bool
    expired: ExpiredRevision | None
    provider_cost_nanos: int | None = None


RollupKey = tuple[datetime, UUID, UUID, str, str]
"""A row of the quarter-hour sums of a tenant: its start, user, key (all zeros where there is none), provider, model."""
