"""What a chargeback report is made of."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from bursar_server.usage.model import Group, Totals


@dataclass(frozen=True, slots=True)
class ReportHead:
    """What is known of a report without reading it. `tenant_id` is the platform tenant for a report on all tenants."""

    tenant_id: UUID
    report_id: UUID
    tenant_name: str
    start: datetime
    end: datetime
    cutoff_time: datetime
    generated_time: datetime
    generated_by: str
    total_nanos: int
    requests: int
    content_sha256: str


@dataclass(frozen=True, slots=True)
class KeyName:
    """What an API key is called, how it is shown, and whose it is (None: nobody's)."""

    name: str
    masked_key: str
    user_id: UUID | None


@dataclass(frozen=True, slots=True)
class Names:
    """What the ids in a report are called at the time it is generated: tenants, keys, and the e-mails of users."""

    tenants: Mapping[str, str]
    keys: Mapping[str, KeyName]
    users: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class EarlierPeriods:
    """What was posted for calls before the end of the preceding report after that had been fixed (S24).

    `lines` are signed, by tenant and month; `until` is the preceding report's end.
    """

    report_id: UUID
    until: datetime
    cutoff_time: datetime
    lines: tuple[Group, ...]

    @property
    def totals(self) -> Totals:
        """The sum of the lines."""
        return sum((line.totals for line in self.lines), Totals())


@dataclass(frozen=True, slots=True)
class Figures:
    """Everything that a report says, read from one snapshot of the database.

    `items` are by tenant, user, key, provider and model; `days` by day; `months` by tenant and month, of all calls from
    `months_start` to the report's end, so that the next report can tell what was posted since.
    """

    items: tuple[Group, ...]
    days: tuple[Group, ...]
    months_start: datetime
    months: tuple[Group, ...]
    names: Names
    proved: bool
    earlier: EarlierPeriods | None = None

    @property
    def totals(self) -> Totals:
        """The sum of the items."""
        return sum((item.totals for item in self.items), Totals())
