"""What the batches of one lane share: its connection, what it remembers, and what the database's clock says."""

from datetime import datetime, timedelta

from bursar_server.db.lane import LaneConnection, Pipeline
from bursar_server.db.partitions import Months, months_between
from bursar_server.kit.clock import Clock
from bursar_server.kit.errors import BursarError, Reason
from bursar_server.ledger.model import Source
from bursar_server.ledger.service import ROW_TYPES
from bursar_server.metering import store
from bursar_server.metering.context import BatchContext
from bursar_server.metering.directory import Directory
from bursar_server.metering.evaluation import Outcome, Result
from bursar_server.metering.history import CostHistory
from bursar_server.metering.memory import Memory
from bursar_server.metering.model import Policy

# A clock that is further back than this was set.
STEP_BACK = timedelta(seconds=5)
# Months are made and dropped by others: they are looked for again after so long, and on the days at their edges.
MONTHS_LAST_S = 60.0
_EDGE = timedelta(days=1)


class Session:
    """A connection and what goes with it; ends with it, but for the directory and the history. Belongs to one lane."""

    def __init__(
        self,
        connection: LaneConnection,
        directory: Directory,
        history: CostHistory,
        policy: Policy,
        clock: Clock,
    ) -> None:
        self.connection = connection
        self.pipeline = Pipeline(connection, ROW_TYPES)
        self.directory = directory
        self.history = history
        self.policy = policy
        self.clock = clock
        self.memory = Memory()
        self._months: tuple[Months, float] | None = None
        self._database_time: tuple[datetime, float] | None = None

    @property
    def ready(self) -> bool:
        """Whether the database's clock and its months are known without asking, and now is none of the outermost days."""
        if self._database_time is None or self._months is None:
            return False
        return _well_within(self.database_now(), self._months[0])

    def database_now(self) -> datetime:
        """Return about what the database's clock says; the batch itself asks it."""
        if self._database_time is None:
            return self.asked_now()
        at, monotonic = self._database_time
        return at + timedelta(seconds=self.clock.monotonic() - monotonic)

    def asked_now(self) -> datetime:
        """Return what the database's clock says; asks it."""
        row = self.connection.execute("SELECT clock_timestamp()").fetchone()
        assert row is not None  # noqa: S101  (a SELECT without FROM has one row)
        now: datetime = row[0]
        self.note_time(now)
        return now

    def note_time(self, database_now: datetime) -> None:
        """Take what the database's clock said just now."""
        if self._database_time is not None and database_now < self.database_now() - STEP_BACK:
            self.directory.forget()  # what was left out as over may not be
        self._database_time = (database_now, self.clock.monotonic())

    def months(self) -> Months:
        """Return the months that records can be of, as they were known last."""
        return self._months[0] if self._months is not None else self._asked_months()

    def fresh_months(self) -> Months:
        """Return the months that records can be of; asks for them where that was long ago, or now is in none of them."""
        now, monotonic = self.database_now(), self.clock.monotonic()
        if self._months is not None:
            months, asked = self._months
            if monotonic - asked < MONTHS_LAST_S and _well_within(now, months):
                return months
        return self._asked_months()

    def _asked_months(self) -> Months:
        names = store.partition_names(self.connection)
        if names is None:
            raise BursarError(
                Reason.DATABASE_UNAVAILABLE, "the database has no partitions; run `bursar migrate`"
            )
        months = months_between(*names)
        self._months = (months, self.clock.monotonic())
        return months

    def rollback(self) -> None:
        """End the transaction that failed."""
        # Not through psycopg, which forgets every prepared statement of the connection with it, the pipeline's too.
        self.pipeline.send("ROLLBACK")
        self.pipeline.run()

    def committed(self, results: list[Result], context: BatchContext) -> Outcome:
        """Learn what the calls of a committed batch cost, and return what came of it."""
        written = [record for records in context.books.records.values() for record in records]
        self.history.add(
            (
                record.attribution.tenant_id, record.attribution.api_key_id, record.model, record.cost.total_nanos
            )
            for record in written
            if record.source is Source.DEDUCT and record.revision == 0 and record.items
        )  # fmt: skip
        expired = [record for record in written if record.source is Source.EXPIRY]
        return Outcome(results, context.books.fired, expired, bool(context.books.gone_holds))


def _well_within(now: datetime, months: Months) -> bool:
    return months.start + _EDGE <= now < months.end - _EDGE
