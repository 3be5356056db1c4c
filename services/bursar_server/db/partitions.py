"""Monthly partitions, by ranges of the UUIDv7 itself: made ahead of time, and never a DEFAULT one."""

from datetime import UTC, datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from bursar_server.db.tables import PARTITIONED_TABLES
from bursar_server.kit import ids

MONTHS_BEHIND = 1
MONTHS_AHEAD = 3


def month_start(instant: datetime, months: int) -> datetime:
    """Return the first instant (UTC) of the month that lies `months` after that of `instant`."""
    index = instant.year * 12 + instant.month - 1 + months
    return datetime(index // 12, index % 12 + 1, 1, tzinfo=UTC)


async def ensure_partitions(connection: AsyncConnection, now: datetime) -> list[str]:
    """Make the partitions from last month to three months ahead that are missing; return the names of those made.

    Safe to run from several processes at once; called at start and hourly.
    """
    existing = set(
        (
            await connection.execute(
                text(
                    "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
                    " JOIN pg_class p ON p.oid = i.inhparent WHERE p.relname = ANY(:tables)"
                ),
                {"tables": list(PARTITIONED_TABLES)},
            )
        ).scalars()
    )
    wanted = {
        f"{table}_{month_start(now, months):%Y_%m}": (table, months)
        for months in range(-MONTHS_BEHIND, MONTHS_AHEAD + 1)
        for table in PARTITIONED_TABLES
    }
    missing = [name for name in wanted if name not in existing]
    if not missing:
        return []
    # One maker at a time: two CREATE TABLE ... PARTITION OF of the same name would fail instead of waiting.
    await connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('bursar.partitions'))"))
    for name in missing:
        table, months = wanted[name]
        low = ids.floor_uuid7(month_start(now, months))
        high = ids.floor_uuid7(month_start(now, months + 1))
        await connection.execute(
            text(
                f"CREATE TABLE IF NOT EXISTS {name} PARTITION OF {table} FOR VALUES FROM ('{low}') TO ('{high}')"
            )
        )
    return missing


async def oldest_partition_start(connection: AsyncConnection) -> datetime | None:
    """Return the first instant of the oldest month whose records are kept."""
    names = (
        await connection.execute(
            text(
                "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
                " JOIN pg_class p ON p.oid = i.inhparent WHERE p.relname = 'usage_records'"
            )
        )
    ).scalars()
    months = sorted(name.removeprefix("usage_records_") for name in names)
    return datetime.strptime(months[0], "%Y_%m").replace(tzinfo=UTC) if months else None
