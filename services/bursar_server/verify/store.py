"""The one connection that the proof works on: short snapshots, pages by key, and tables of its own for sums.

Nothing of Bursar's is ever written: transactions are read-only, in which PostgreSQL lets only a session's own temporary
tables be filled. Sums that one snapshot cannot hold are kept there, on the database's disk and not in memory.
"""

from collections import OrderedDict
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import orjson
import psycopg.errors
import sqlalchemy.exc
from sqlalchemy.ext.asyncio import AsyncConnection

from bursar_server.audit.model import AuditEvent, AuditHead, ChainedEvent
from bursar_server.chargeback.model import ReportHead
from bursar_server.db.engine import Engine
from bursar_server.db.partitions import oldest_partition_start
from bursar_server.kit.clock import Clock
from bursar_server.kit.errors import BursarError, Reason
from bursar_server.pricing.model import CallCost, Price, PriceSource, PriceTier
from bursar_server.verify import statements as sql
from bursar_server.verify.model import (
    FIRST_ID,
    LAST_ID,
    ExpiredRevision,
    IdRange,
    RollupKey,
    StoredRecord,
    Tenant,
    UnreadableError,
    item_of,
)

Row = tuple[Any, ...]
Parameters = Mapping[str, Any]

MAX_PRICES = 20_000

REPORT_HEAD = (
    "tenant_id, report_id, tenant_name, from_time, to_time, cutoff_time, generated_time, generated_by, total_nanos,"
    " requests, content_sha256"
)


# How long a snapshot may last; a single statement is ended by the database after the same time.
SNAPSHOT_S = 8.0


class TooLongError(Exception):
    """A statement took longer than a snapshot may last."""


class Books:
    """The books, seen through one connection. Made by `open_books`."""

    def __init__(self, connection: AsyncConnection, clock: Clock) -> None:
        self._connection = connection
        self._clock = clock
        self._deadline = 0.0

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[None]:
        """Let all statements inside see the database as of the first of them.

        Raises TooLongError, with what was summed inside forgotten, where that takes longer than SNAPSHOT_S: rows that
        traffic leaves behind cannot be cleaned away while a snapshot is open.
        """
        with _translated_errors():
            async with self._connection.begin():
                self._deadline = self._clock.monotonic() + SNAPSHOT_S
                yield

    async def rows(self, statement: str, parameters: Parameters | None = None) -> list[Row]:
        """Return what a statement finds; in a snapshot of its own unless one is open."""
        with _translated_errors():
            if not self._connection.in_transaction():
                async with self._connection.begin():
                    return await self._rows(statement, parameters)
            if self._clock.monotonic() > self._deadline:
                raise TooLongError("a snapshot has lasted long enough")
            return await self._rows(statement, parameters)

    async def _rows(self, statement: str, parameters: Parameters | None) -> list[Row]:
        result = await self._connection.exec_driver_sql(statement, dict(parameters or {}))
        return [tuple(row) for row in result] if result.returns_rows else []

    async def now(self) -> datetime:
        """Return the database's clock."""
        instant: datetime = (await self.rows("SELECT clock_timestamp()"))[0][0]
        return instant.astimezone(UTC)

    async def records_kept_from(self) -> datetime | None:
        """Return from when on records are kept; None where there never were any."""
        with _translated_errors():
            async with self._connection.begin():
                return await oldest_partition_start(self._connection)

    # -- whose books ----------------------------------------------------------------------------------

    async def tenants(self, after: UUID, limit: int) -> list[Tenant]:
        """Return tenants in the order of their ids, from the one after `after` on."""
        found = await self.rows(sql.TENANTS, {"after": after, "limit": limit})
        return [Tenant(*row) for row in found]

    async def tenant_named(self, name: str) -> Tenant | None:
        """Return the tenant of this name or id."""
        found = await self.rows(sql.TENANT_NAMED, {"name": name})
        return Tenant(*found[0]) if found else None

    async def pages(
        self, edge: str, parameters: Parameters, size: int, *, low: UUID = FIRST_ID, high: UUID = LAST_ID
    ) -> AsyncIterator[IdRange]:
        """Yield ranges of ids with about `size` rows each, that together are all from `low` up to `high`.

        `edge` is the statement that finds the id that lies `size` rows after `low`.
        """
        while True:
            found = await self.rows(edge, {**parameters, "low": low, "high": high, "size": size})
            following: UUID = found[0][0] if found else high
            yield low, following
            if not found:
                return
            low = following

    # -- records --------------------------------------------------------------------------------------

    async def records(
        self,
        tenant_id: UUID,
        ids: IdRange,
        *,
        posted_after: datetime | None = None,
        of_suspects: bool = False,
    ) -> tuple[list[StoredRecord], list[tuple[UUID, int, str]]]:
        """Return the records of a range of ids, by id and revision, and (id, revision, why) of those that no one can read.

        With `of_suspects` only those whose quarter-hour is under suspicion.
        """
        parameters = {"tenant_id": tenant_id, "low": ids[0], "high": ids[1], "after": posted_after}
        statement = sql.RECORDS_OF_SUSPECTS if of_suspects else sql.RECORDS
        readable, unreadable = [], []
        for row in await self.rows(statement, parameters):
            try:
                readable.append(_record(row))
            except UnreadableError as error:
                unreadable.append((row[0], row[1], str(error)))
        return readable, unreadable

    async def prices(self, price_ids: Collection[UUID]) -> dict[UUID, Price]:
        """Return prices by id, ended ones too."""
        found = await self.rows(sql.PRICES, {"price_ids": list(price_ids)})
        return {row[1]: _price(row) for row in found}

    async def add_to_rollups(
        self, tenant_id: UUID, sums: Mapping[RollupKey, Sequence[int]], *, only_known: bool
    ) -> None:
        """Add to what records come to, by row of the sums; with `only_known` only to rows that are there already."""
        rows = [
            {
                "bucket_time": key[0],
                "user_id": key[1],
                "api_key_id": key[2],
                "provider": key[3],
                "model": key[4],
            }
            | {f"c{index}": str(value) for index, value in enumerate(counters)}
            for key, counters in sums.items()
        ]
        if rows:
            statement = sql.ADD_TO_KNOWN_ROLLUPS if only_known else sql.ADD_TO_ROLLUPS
            await self.rows(statement, {"tenant_id": tenant_id, "rows": orjson.dumps(rows).decode()})

    # -- the audit trail ------------------------------------------------------------------------------

    async def audit_head(self, tenant_id: UUID) -> AuditHead | None:
        """Return the end of a tenant's chain."""
        found = await self.rows(sql.AUDIT_HEAD, {"tenant_id": tenant_id})
        return AuditHead(*found[0]) if found else None

    async def audit_events(self, tenant_id: UUID, after: int, limit: int) -> list[ChainedEvent]:
        """Return the events of a chain after a number."""
        found = await self.rows(sql.AUDIT_EVENTS, {"tenant_id": tenant_id, "after": after, "limit": limit})
        return [
            ChainedEvent(
                tenant_id, row[0], AuditEvent(row[1], row[2], row[4], row[6], row[3], row[5]), row[7], row[8]
            )
            for row in found
        ]

    async def audit_event_before(self, tenant_id: UUID, since: datetime) -> AuditHead | None:
        """Return the place of the last event before the first one made at `since` or later."""
        found = await self.rows(sql.AUDIT_EVENT_BEFORE, {"tenant_id": tenant_id, "since": since})
        return AuditHead(*found[0]) if found else None

    # -- reports --------------------------------------------------------------------------------------

    async def reports(self, tenant_id: UUID, since: datetime, after: UUID, limit: int) -> list[ReportHead]:
        """Return reports in the order of their ids, those generated at `since` or later."""
        found = await self.rows(
            f"SELECT {REPORT_HEAD} FROM chargeback_reports WHERE tenant_id = %(tenant_id)s AND report_id > %(after)s"
            " AND generated_time >= %(since)s ORDER BY report_id LIMIT %(limit)s",
            {"tenant_id": tenant_id, "since": since, "after": after, "limit": limit},
        )
        return [ReportHead(*row) for row in found]

    async def report_content(self, head: ReportHead) -> bytes | None:
        """Return the bytes of a report; None where it was deleted meanwhile."""
        found = await self.rows(
            sql.REPORT_CONTENT, {"tenant_id": head.tenant_id, "report_id": head.report_id}
        )
        return bytes(found[0][0]) if found else None


class Prices:
    """The prices that records name, as many as are needed at a time."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._known: OrderedDict[UUID, Price | None] = OrderedDict()

    async def load(self, price_ids: Collection[UUID]) -> None:
        """Make sure that `get` knows these."""
        missing = [price_id for price_id in price_ids if price_id not in self._known]
        if missing:
            found = await self._books.prices(missing)
            self._known.update({price_id: found.get(price_id) for price_id in missing})
            while len(self._known) > max(MAX_PRICES, len(price_ids)):
                self._known.popitem(last=False)

    def get(self, price_id: UUID) -> Price | None:
        """Return a price that was loaded, or None where there is no such."""
        return self._known.get(price_id)


@asynccontextmanager
async def open_books(engine: Engine, clock: Clock) -> AsyncIterator[Books]:
    """Give the books of a database, with empty tables for sums.

    Raises BursarError DATABASE_UNAVAILABLE where the database does not answer.
    """
    with _translated_errors():
        async with engine.connect() as connection:
            async with connection.begin():
                for statement in sql.MAKE_TABLES:
                    await connection.exec_driver_sql(statement)
            await connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            yield Books(connection, clock)


@contextmanager
def _translated_errors() -> Iterator[None]:
    """Raise what the database says as TooLongError or as a BursarError DATABASE_UNAVAILABLE."""
    try:
        yield
    except sqlalchemy.exc.DBAPIError as error:
        if isinstance(error.orig, psycopg.errors.QueryCanceled):
            raise TooLongError("a statement took longer than a snapshot may last") from error
        said = str(error.orig).strip().splitlines() or ["it does not answer"]
        raise BursarError(Reason.DATABASE_UNAVAILABLE, f"the database says: {said[0]}") from error
    except sqlalchemy.exc.TimeoutError as error:
        raise BursarError(Reason.DATABASE_UNAVAILABLE, "the database does not answer in time") from error


def _record(row: Row) -> StoredRecord:
    if not isinstance(row[9], list):
        raise UnreadableError("items: no list")
    expired = None
    if row[18] is not None:
        provider, items, *cost = row[18]
        expired = ExpiredRevision(provider, tuple(map(item_of, items)), CallCost(*cost))
    return StoredRecord(
        request_id=row[0], revision=row[1], source=row[2], user_id=row[3], api_key_id=row[4], provider=row[5],
        model=row[6], usage_time=row[7], posted_time=row[8], items=tuple(map(item_of, row[9])), input_tokens=row[10],
        output_tokens=row[11], cost=CallCost(row[12], row[13], row[14]), unpriced=row[16], estimated=row[17],
        expired=expired, provider_cost_nanos=row[19],
    )  # fmt: skip


def _price(row: Row) -> Price:
    tiers = tuple(PriceTier(tier["from_input_tokens"], tier["rates"]) for tier in row[7])
    return Price(row[0], row[1], PriceSource(row[2]), row[3], row[4], row[5], row[6], tiers, *row[8:])
