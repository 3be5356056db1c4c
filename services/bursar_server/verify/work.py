"""What every check gets: the books, what to look at, and somebody to tell how far it is."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta
from typing import Protocol

from bursar_server.kit.periods import NEVER
from bursar_server.verify import statements as sql
from bursar_server.verify.model import Difference, Progress, Scope, Tenant
from bursar_server.verify.store import Books

# Ids lie that far around the time of what they are of, but for calls that came very late: those are found by another look.
ID_MARGIN = timedelta(days=8)
# A call's id is at most a day older than its Check, and posted soon after.
NEAR = timedelta(hours=25)
# What was posted that long ago is committed.
SETTLED = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is looked at in one snapshot: entries that are summed, rows that are read or compared."""

    entries: int = 100_000
    records: int = 5_000
    rows: int = 20_000


@dataclass(slots=True)
class Work:
    """One run of the proof. `started` is the database's clock then, `now` that when the tenant's turn came."""

    books: Books
    scope: Scope
    sizes: Sizes
    started: datetime
    now: datetime
    records_kept_from: datetime | None
    progress: Progress
    tell: Callable[[Progress], None]
    left_out: list[str] = field(default_factory=list)

    @property
    def all_tenants(self) -> bool:
        """Whether every tenant is looked at: budgets for everybody can be proved only then."""
        return not self.scope.tenant

    def show(self, doing: str) -> None:
        """Say what is looked at now."""
        self.progress.doing = doing
        self.tell(self.progress)

    def count(self, what: str, number: int) -> None:
        """Say how much more has been looked at."""
        self.progress.count(what, number)
        self.tell(self.progress)

    def leave_out(self, what: str) -> None:
        """Remember what could not be proved, once."""
        if what not in self.left_out:
            self.left_out.append(what)

    async def days(self, tenant: Tenant) -> AsyncIterator[tuple[datetime, datetime]]:
        """Yield ranges of whole UTC days with rollups, none with many more quarter-hour rows than a page has."""
        day = datetime.combine(self.scope.first_instant.astimezone(UTC).date(), time(), UTC)
        parameters = {"tenant_id": tenant.tenant_id, "high": NEVER, "size": self.sizes.rows}
        while True:
            found = await self.books.rows(sql.EDGE_OF_QUARTERS, {**parameters, "low": day})
            if not found:
                yield day, NEVER
                return
            following = datetime.combine(found[0][0].astimezone(UTC).date(), time(), UTC)
            if following <= day:
                following = day + timedelta(days=1)
            yield day, following
            day = following


class Check(Protocol):
    """A room's part of the proof. It reads in short snapshots and yields what differs; it changes nothing."""

    def of_tenant(self, work: Work, tenant: Tenant) -> AsyncIterator[Difference]:
        """Yield the differences in a tenant's books."""
        ...
