"""Months to record in are there in time, whoever reads or fails meanwhile."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime

import psycopg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from bursar_server import bootstrap
from bursar_server.db.partitions import ensure_partitions, month_start, oldest_partition_start
from bursar_server.db.unit_of_work import UnitOfWork
from bursar_server.kit.errors import BursarError
from support.metering import ledger_on
from support.sidecars import until

NEXT_MONTH = month_start(datetime.now(UTC), 1)
INDEXES = """
SELECT c.relname, array_agg(regexp_replace(pg_get_indexdef(x.indexrelid), '.* USING', '') ORDER BY 1)
FROM pg_class c JOIN pg_index x ON x.indrelid = c.oid WHERE c.relispartition AND c.relkind = 'r' GROUP BY 1"""


async def test_a_new_month_is_like_the_others(engine: AsyncEngine, database_url: str) -> None:
    work = UnitOfWork(engine)
    async with work.begin() as conn:
        made = await ensure_partitions(conn, NEXT_MONTH)
        assert len(made) == 2
        assert await ensure_partitions(conn, NEXT_MONTH) == []
        assert await oldest_partition_start(conn) == month_start(datetime.now(UTC), -1)
    with psycopg.connect(database_url) as connection:
        indexes: dict[str, list[str]] = dict(connection.execute(INDEXES).fetchall())
        for table in ("usage_records", "ledger_entries"):
            of_table = [found for name, found in indexes.items() if name.startswith(table)]
            assert len(of_table) == 6
            assert of_table.count(of_table[0]) == 6


async def test_two_makers_at_once_make_one(engine: AsyncEngine) -> None:
    async def make() -> list[str]:
        async with UnitOfWork(engine).begin() as conn:
            return await ensure_partitions(conn, NEXT_MONTH)

    made = await asyncio.gather(make(), make(), make())
    assert sorted(map(len, made)) == [0, 0, 2]


async def test_a_month_is_made_while_somebody_reads(engine: AsyncEngine, database_url: str) -> None:
    """A backup or a report reads for minutes: neither the month nor any call waits for it."""
    async with ledger_on(database_url) as ledger:
        key = ledger.key()
        ledger.budget("TENANT", 10**9, admission="UPPER_BOUND")
        await ledger.call(key)
        with psycopg.connect(database_url) as reader:
            reader.execute("SELECT count(*) FROM ledger_entries, usage_records")

            async def make() -> None:
                async with UnitOfWork(engine).begin() as conn:
                    assert await ensure_partitions(conn, NEXT_MONTH)

            started = time.monotonic()
            making = asyncio.ensure_future(make())
            while not making.done():
                await ledger.call(key)
            await making
            assert time.monotonic() - started < 2


async def test_months_are_made_after_any_failure(
    engine: AsyncEngine, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that is read-only for a while (a failover, a full disk) ends no task that nobody looks at."""
    failures: list[BaseException] = []
    work = UnitOfWork(engine)

    async def make(conn: object) -> list[str]:
        try:
            return await ensure_partitions(conn, NEXT_MONTH)  # type: ignore[arg-type]
        except BaseException as error:
            failures.append(error)
            raise

    monkeypatch.setattr(bootstrap, "PARTITION_INTERVAL_S", 0.05)
    monkeypatch.setattr(bootstrap, "ensure_partitions", make)

    def newest(connection: psycopg.Connection[tuple[str]]) -> str:
        row = connection.execute(
            "SELECT max(relname) FROM pg_class WHERE relname LIKE 'usage_records_____\\___' AND relkind = 'r'"
        ).fetchone()
        assert row is not None
        return row[0]

    with psycopg.connect(
        database_url, autocommit=True, options="-c default_transaction_read_only=off"
    ) as connection:
        before = newest(connection)
        row = connection.execute("SELECT current_database()").fetchone()
        assert row is not None
        connection.execute(f'ALTER DATABASE "{row[0]}" SET default_transaction_read_only = on')
        keeping = asyncio.create_task(bootstrap._keep_partitions(work))
        await until(lambda: bool(failures))
        assert not isinstance(failures[0], BursarError)
        connection.execute(f'ALTER DATABASE "{row[0]}" SET default_transaction_read_only = off')
        await engine.dispose()
        await until(lambda: newest(connection) > before)
        assert not keeping.done()
        keeping.cancel()
        await asyncio.wait({keeping})
