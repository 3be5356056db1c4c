"""The sums of quarter-hours and days against each other and against the records (I4, I12)."""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from uuid import UUID

from bursar_server.db.tables import ROLLUP_COUNTERS
from bursar_server.kit.ids import floor_uuid7
from bursar_server.kit.periods import ceil_quarter_hour, day_of
from bursar_server.verify import rules
from bursar_server.verify import statements as sql
from bursar_server.verify.model import EPOCH, FIRST_ID, LAST_ID, Difference, IdRange, StoredRecord, Tenant
from bursar_server.verify.store import Prices, Row, TooLongError
from bursar_server.verify.work import ID_MARGIN, NEAR, SETTLED, Work


class RollupsCheck:
    """Proves the days from the quarter-hours: both are written in one transaction, so that a snapshot shows both."""

    async def of_tenant(self, work: Work, tenant: Tenant) -> AsyncIterator[Difference]:
        """Yield where the grains differ, and what is below zero."""
        work.show("sums")
        async for start, end in work.days(tenant):
            span: dict[str, object] = {"tenant_id": tenant.tenant_id, "start": start, "end": end}
            async with work.books.snapshot():
                days = await work.books.rows(sql.DAYS_DIFFER, span)
                negative = {
                    table: await work.books.rows(statement, span | _bounds(table, start, end))
                    for table, statement in sql.NEGATIVE_ROLLUPS.items()
                }
            for row in days:
                for difference in _counter_differences(tenant.tenant_id, "day", row, "day", "quarter-hours"):
                    yield difference
            for table, rows in negative.items():
                for row in rows:
                    yield _below_zero(tenant.tenant_id, table, row)


class RecordSums:
    """What a tenant's records come to, row by row of the quarter-hours, and where the quarter-hours say otherwise.

    Goes the way of the balances: pages first, what was posted since next, and at last all of the rows that still differ.
    """

    def __init__(self, work: Work, tenant: Tenant, prices: Prices) -> None:
        self._work = work
        self._tenant_id = tenant.tenant_id
        self._until = work.now - SETTLED
        self._from = ceil_quarter_hour(work.scope.first_instant)
        self.prices = prices

    @property
    def first_id_time(self) -> datetime:
        """The time from which on ids are to be read."""
        return max(EPOCH, self._work.scope.first_instant - ID_MARGIN) if self._work.scope.since else EPOCH

    async def add(self, records: Sequence[StoredRecord], *, again: bool = False) -> None:
        """Add records to the sums; at the first look only what was posted long enough ago."""
        if again:
            await self.prices.load(
                {price_id for record in records for price_id in rules.named_prices(record)}
            )
        counted = [record for record in records if again or record.posted_time <= self._until]
        sums = rules.rollup_additions(counted, self.prices.get)
        if len(counted) < len(records):
            # Rows that were added to since then are noted too, with what they come to until then.
            for key, counters in rules.rollup_additions(records, self.prices.get).items():
                sums.setdefault(key, [0] * len(counters))
        await self._work.books.add_to_rollups(self._tenant_id, sums, only_known=again)

    async def differences(self) -> AsyncIterator[Difference]:
        """Yield where the quarter-hours are not what the records come to."""
        books, owner = self._work.books, {"tenant_id": self._tenant_id}
        first = await self._first_provable()
        if first is None:
            return
        self._work.show("sums of records")
        async for start, end in self._work.days(Tenant(self._tenant_id, "")):
            if end > first:
                found = await books.rows(sql.SAY_ROLLUPS, owner | {"start": max(start, first), "end": end})
                self._work.count("rollup rows", found[0][0])
        await books.rows(sql.LEAVE_OUT_EARLIER_ROLLUPS, owner | {"start": first})
        await books.rows(sql.FORGET_EQUAL_ROLLUPS, owner)
        note = ""
        near = (floor_uuid7(self._until - NEAR), LAST_ID)
        for ids, after in ((near, self._until), ((FIRST_ID, LAST_ID), None)):
            if not (await books.rows(sql.ANY_ROLLUPS, owner))[0][0]:
                return
            try:
                await self._look_again(ids, after)
                note = ""
            except TooLongError:
                note = "not confirmed: one snapshot was too short to sum everything"
        async for difference in self._left(note):
            yield difference

    async def _first_provable(self) -> datetime | None:
        """Return from when on all records of a quarter-hour are kept."""
        kept = self._work.records_kept_from
        if kept is None:
            return None
        before = {"tenant_id": self._tenant_id, "day": day_of(kept)}
        if (await self._work.books.rows(sql.ANY_ROLLUP_BEFORE, before))[0][0]:
            # Months were dropped; a call's id can lie in the month before its time.
            kept += ID_MARGIN
            self._work.leave_out(f"sums before {kept:%Y-%m-%d} against records: these months are dropped")
        return max(kept, self._from)

    async def _look_again(self, ids: IdRange, after: datetime | None) -> None:
        books, owner = self._work.books, {"tenant_id": self._tenant_id}
        self._work.show("sums of records again")
        async with books.snapshot():
            await books.rows(sql.SAY_ROLLUPS_AGAIN, owner)
            if after is None:
                await books.rows(sql.START_ROLLUPS_AGAIN, owner)
            low = ids[0]
            async for page in books.pages(
                sql.EDGE_OF_RECORDS, owner, self._work.sizes.rows, low=low, high=ids[1]
            ):
                records, _ = await books.records(self._tenant_id, page, posted_after=after, of_suspects=True)
                await self.add(records, again=True)
            await books.rows(sql.FORGET_EQUAL_ROLLUPS, owner)

    async def _left(self, note: str) -> AsyncIterator[Difference]:
        offset, limit = 0, self._work.sizes.rows
        while True:
            page = {"tenant_id": self._tenant_id, "offset": offset, "limit": limit}
            found = await self._work.books.rows(sql.ROLLUPS_LEFT, page)
            for row in found:
                for difference in _counter_differences(
                    self._tenant_id, "quarter_hour", row, "quarter-hour", "records", note
                ):
                    yield difference
            if len(found) < limit:
                return
            offset += limit


def _bounds(table: str, start: datetime, end: datetime) -> dict[str, object]:
    """Return a range in the terms of a table's buckets."""
    if table == "rollup_days":
        return {"start": day_of(start), "end": day_of(end)}
    return {}


def _ids(bucket_name: str, row: Row) -> dict[str, str]:
    bucket, user_id, api_key_id, provider, model = row[:5]
    shown = bucket.strftime("%Y-%m-%dT%H:%MZ") if isinstance(bucket, datetime) else str(bucket)
    ids = {bucket_name: shown, "provider": provider, "model": model}
    return ids | {
        name: str(value)
        for name, value in (("user_id", user_id), ("api_key_id", api_key_id))
        if value != rules.NOBODY
    }


def _counter_differences(
    tenant_id: UUID, bucket_name: str, row: Row, said_by: str, proved_by: str, note: str = ""
) -> list[Difference]:
    """Return the counters of a row that differ."""
    ids = _ids(bucket_name, row)
    count = len(ROLLUP_COUNTERS)
    said, proved = row[5 : 5 + count], row[5 + count :]
    return [
        Difference("I4", tenant_id, "sum", ids, name, said_by, int(one), proved_by, int(other), note)
        for name, one, other in zip(ROLLUP_COUNTERS, said, proved, strict=True)
        if one != other
    ]


def _below_zero(tenant_id: UUID, table: str, row: Row) -> Difference:
    name, least = min(zip(ROLLUP_COUNTERS, row[5:], strict=True), key=lambda counter: int(counter[1]))
    bucket_name = "day" if table == "rollup_days" else "quarter_hour"
    return Difference("I12", tenant_id, "sum", _ids(bucket_name, row), name, table, int(least), "at least", 0)
