"""Monthly partitions, by ranges of the UUIDv7 itself: made ahead of time, and never a DEFAULT one."""

from datetime import UTC, datetime
from typing import NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from bursar_server.db.connection import database_now
from bursar_server.db.tables import PARTITIONED_TABLES
from bursar_server.kit import ids

MONTHS_BEHIND = 1
MONTHS_AHEAD = 3


class Months(NamedTuple):
    """The instants that records can be of: `start` is the first that has a partition, `end` the first after them."""

    start: datetime
    end: datetime


def month_start(instant: datetime, months: int) -> datetime:
    """Return the first instant (UTC) of the month that lies `months` after that of `instant`."""
    index = instant.year * 12 + instant.month - 1 + months
    return datetime(index // 12, index % 12 + 1, 1, tzinfo=UTC)


async def ensure_partitions(connection: AsyncConnection, instant: datetime | None = None) -> list[str]:
    """Make the partitions from last month to three months ahead that are missing; return the names of those made.

    By the database's clock, which dates the calls, unless an instant is given. Safe to run from several processes at once;
    called at start and every minute.
    """
    now = instant or await database_now(connection)
    wanted = {
        f"{table}_{month_start(now, months):%Y_%m}": (table, months)
        for months in range(-MONTHS_BEHIND, MONTHS_AHEAD + 1)
        for table in PARTITIONED_TABLES
    }
    if not wanted.keys() - await _existing(connection):
        return []
    # One maker at a time: the second finds what the first has made.
    await connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('bursar.partitions'))"))
    missing = sorted(wanted.keys() - await _existing(connection))
    for name in missing:
        table, months = wanted[name]
        low = ids.floor_uuid7(month_start(now, months))
        high = ids.floor_uuid7(month_start(now, months + 1))
        # Attached, not made as a partition: that would wait for every reader of the table, and all calls behind it.
        await connection.execute(text(f"CREATE TABLE {name} (LIKE {table} INCLUDING ALL)"))
        await connection.execute(
            text(f"ALTER TABLE {table} ATTACH PARTITION {name} FOR VALUES FROM ('{low}') TO ('{high}')")
        )
    return missing


async def _existing(connection: AsyncConnection) -> set[str]:
    query = (
        "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
        " JOIN pg_class p ON p.oid = i.inhparent WHERE p.relname = ANY(:tables)"
    )
    return set((await connection.execute(text(query), {"tables": list(PARTITIONED_TABLES)})).scalars())


def months_between(oldest: str, newest: str) -> Months:
    """Return the months from one partition to another, by their names."""
    first, last = (datetime.strptime(name[-7:], "%Y_%m").replace(tzinfo=UTC) for name in (oldest, newest))
    return Months(first, month_start(last, 1))


async def oldest_partition_start(connection: AsyncConnection) -> datetime | None:
    """Return the first instant of the oldest month whose records are kept."""
    names = sorted(name for name in await _existing(connection) if name.startswith("usage_records_"))
    return months_between(names[0], names[-1]).start if names else None
