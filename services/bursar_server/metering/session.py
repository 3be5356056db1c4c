"""What the batches of one lane share: its connection, what it remembers, and what the database's clock says."""

from datetime import datetime, timedelta

from bursar_server.db.lane import LaneConnection, Pipeline
from bursar_server.kit.clock import Clock
from bursar_server.kit.errors import BursarError, Reason
from bursar_server.ledger.model import Source
from bursar_server.metering import store
from bursar_server.metering.context import BatchContext
from bursar_server.metering.directory import Directory
from bursar_server.metering.evaluation import Outcome, Result
from bursar_server.metering.history import CostHistory
from bursar_server.metering.memory import Memory
from bursar_server.metering.model import Policy


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
        self.pipeline = Pipeline(connection)
        self.directory = directory
        self.history = history
        self.policy = policy
        self.clock = clock
        self.memory = Memory()
        self._oldest_record: datetime | None = None
        self._database_time: tuple[datetime, float] | None = None

    @property
    def ready(self) -> bool:
        """Whether the database's clock and its oldest month are known without asking."""
        return self._database_time is not None and self._oldest_record is not None

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
        self._database_time = (database_now, self.clock.monotonic())

    def oldest_record(self) -> datetime:
        """Return the first instant whose records are kept."""
        if self._oldest_record is None:
            name = store.oldest_partition_name(self.connection)
            if name is None:
                raise BursarError(
                    Reason.DATABASE_UNAVAILABLE, "the database has no partitions; run `bursar migrate`"
                )
            year, month = name.removeprefix("usage_records_").split("_")
            self._oldest_record = self.database_now().replace(
                year=int(year), month=int(month), day=1, hour=0, minute=0, second=0, microsecond=0
            )
        return self._oldest_record

    def forget_partitions(self) -> None:
        """Look for the oldest partition again: months were made or dropped."""
        self._oldest_record = None

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
