"""The SQL of grants. What is spent and held of one is the ledger's to write."""

from collections.abc import Collection
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row, insert, select, tuple_, update

from bursar_server.db.connection import Connection
from bursar_server.db.tables import grants
from bursar_server.grants.model import Grant


async def add(conn: Connection, grant: Grant) -> None:
    """Add a grant."""
    values = {name: getattr(grant, name) for name in Grant.__slots__}
    await conn.execute(insert(grants).values(values))


async def find(conn: Connection, grant_id: UUID) -> Grant | None:
    """Return a grant by its id."""
    row = (await conn.execute(select(grants).where(grants.c.grant_id == grant_id))).one_or_none()
    return _grant(row) if row else None


async def list_grants(
    conn: Connection,
    tenant_ids: Collection[UUID] | None,
    *,
    user_id: UUID | None,
    active_at: datetime | None,
    after: tuple[datetime, UUID] | None,
    limit: int | None,
) -> list[Grant]:
    """Return grants, latest first; with `active_at` only those that can be drawn on then."""
    query = select(grants)
    if tenant_ids is not None:
        query = query.where(grants.c.tenant_id.in_(tenant_ids))
    if user_id is not None:
        query = query.where(grants.c.user_id == user_id)
    if active_at is not None:
        query = query.where(
            grants.c.revoke_time.is_(None),
            grants.c.starts_at <= active_at,
            grants.c.expires_at > active_at,
            grants.c.spent_nanos < grants.c.amount_nanos,
        )
    if after is not None:
        query = query.where(tuple_(grants.c.create_time, grants.c.grant_id) < tuple_(*after))
    query = query.order_by(grants.c.create_time.desc(), grants.c.grant_id.desc()).limit(limit)
    return [_grant(row) for row in await conn.execute(query)]


async def revoke(conn: Connection, grant: Grant, at: datetime, by: str) -> Grant | None:
    """End a grant and return it, or None where it was revoked before. What was spent and what is held stays."""
    row = (
        await conn.execute(
            update(grants)
            .where(
                grants.c.tenant_id == grant.tenant_id,
                grants.c.grant_id == grant.grant_id,
                grants.c.revoke_time.is_(None),
            )
            .values(revoke_time=at, revoked_by=by)
            .returning(*grants.c)
        )
    ).one_or_none()
    return _grant(row) if row else None


def _grant(row: Row[Any]) -> Grant:
    return Grant(*(getattr(row, name) for name in Grant.__slots__))
