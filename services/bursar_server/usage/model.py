"""What was used: calls as they were charged, and sums over them."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from datetime import date, datetime
from enum import StrEnum
from uuid import UUID

from bursar_server.pricing.model import Usage

# What stands in rollups for no user and no key.
NOBODY = UUID(int=0)


@dataclass(frozen=True, slots=True)
class RecordItem:
    """What one model consumed in a call."""

    model: str
    service_tier: str
    usage: Usage


@dataclass(frozen=True, slots=True)
class CostRecord:
    """A call: the sum of its revisions, with what the latest one says of it. Costs in nanos."""

    tenant_id: UUID
    request_id: UUID
    revision: int
    usage_time: datetime
    posted_time: datetime
    api_key_id: UUID | None
    user_id: UUID | None
    masked_key: str
    group_ids: tuple[UUID, ...]
    tags: Mapping[str, str]
    session_id: str
    provider: str
    model: str
    service_tier: str
    outcome: str
    items: tuple[RecordItem, ...]
    price_id: UUID | None
    input_cost_nanos: int
    output_cost_nanos: int
    other_cost_nanos: int
    cost_nanos: int
    provider_cost_nanos: int | None
    estimated: bool
    unpriced: bool
    lease_expired: bool
    unchecked: bool


@dataclass(frozen=True, slots=True)
class RecordFilter:
    """Which calls to list; empty texts and None are any."""

    tenant_ids: Collection[UUID] | None = None
    request_id: UUID | None = None
    user_id: UUID | None = None
    api_key_id: UUID | None = None
    provider: str = ""
    model: str = ""
    start: datetime | None = None
    end: datetime | None = None


class Dimension(StrEnum):
    """What sums can be grouped by; months and days are those of UTC."""

    TENANT = "TENANT"
    USER = "USER"
    API_KEY = "API_KEY"
    PROVIDER = "PROVIDER"
    MODEL = "MODEL"
    DAY = "DAY"
    MONTH = "MONTH"


@dataclass(frozen=True, slots=True)
class SumFilter:
    """Which calls to sum: `start` and `end` lie on quarter-hours; empty texts and None are any."""

    tenant_ids: Collection[UUID] | None
    start: datetime
    end: datetime
    user_id: UUID | None = None
    api_key_id: UUID | None = None
    provider: str = ""
    model: str = ""


@dataclass(frozen=True, slots=True)
class Segments:
    """A range cut into whole UTC days, and the quarter-hours before and after them; each half-open, none empty."""

    days: tuple[date, date] | None
    quarters: tuple[tuple[datetime, datetime], ...]


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over calls: the counters of the rollup tables, by the same names."""

    requests: int = 0
    estimated_requests: int = 0
    unpriced_requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    input_cost_nanos: int = 0
    output_cost_nanos: int = 0
    other_cost_nanos: int = 0
    cost_nanos: int = 0

    def __add__(self, other: "Totals") -> "Totals":
        """Return the sums over the calls of both."""
        return Totals(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True, slots=True)
class Group:
    """The sums of one group. The values of `key` are ids and names as text; no user or key is empty; YYYY-MM-DD, YYYY-MM."""

    key: Mapping[Dimension, str]
    totals: Totals


@dataclass(frozen=True, slots=True)
class Summary:
    """Sums over the range that was used; `truncated` where there were more groups."""

    start: datetime
    end: datetime
    totals: Totals
    groups: tuple[Group, ...] = ()
    truncated: bool = False
