"""What a service passes on to stores: the connection of an open transaction, and the database's clock."""

from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

Connection = AsyncConnection
"""The connection of an open transaction; services hand it to stores and never look inside."""


async def database_now(conn: Connection) -> datetime:
    """Return the database's clock at this instant, not at the transaction's start: what decides periods and grants."""
    now: datetime = (await conn.execute(select(func.clock_timestamp()))).scalar_one()
    return now.astimezone(UTC)


async def lock_tenant(conn: Connection, tenant_id: UUID) -> None:
    """Wait until no batch that meters the tenant is under way, and keep new ones out until the transaction ends.

    Every batch shares this lock for its tenants and for the platform tenant, as its first statement. Waiters queue in
    order of arrival, so that a stream of batches cannot keep a change out.
    """
    await conn.execute(select(func.pg_advisory_xact_lock(tenant_lock_key(tenant_id))))


def tenant_lock_key(tenant_id: UUID) -> int:
    """Return the advisory lock's key of a tenant."""
    high, low = tenant_id.bytes[:8], tenant_id.bytes[8:]
    return int.from_bytes(low, "big", signed=True) ^ int.from_bytes(high, "big", signed=True)
