"""The SQL of the audit trail: rows are added, never changed."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row, and_, insert, or_, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from bursar_server.audit.model import ZERO_HASH, AuditEvent, AuditHead, ChainedEvent
from bursar_server.db.connection import Connection
from bursar_server.db.tables import audit_events, audit_heads

Position = tuple[datetime, UUID, int]
"""Where an event stands among those of several tenants: its time, its tenant, its number there."""


async def lock_head(conn: Connection, tenant_id: UUID) -> AuditHead:
    """Lock the end of a tenant's chain until the transaction ends, and return it; a new tenant's is made."""
    query = (
        select(audit_heads.c.sequence, audit_heads.c.hash)
        .where(audit_heads.c.tenant_id == tenant_id)
        .with_for_update()
    )
    found = (await conn.execute(query)).one_or_none()
    if found is None:
        first = upsert(audit_heads).values(tenant_id=tenant_id, sequence=0, hash=ZERO_HASH)
        await conn.execute(first.on_conflict_do_nothing())
        found = (await conn.execute(query)).one()
    return AuditHead(found.sequence, found.hash)


async def append(conn: Connection, tenant_id: UUID, events: Sequence[ChainedEvent], head: AuditHead) -> None:
    """Add the events and move the locked end of the chain behind them."""
    await conn.execute(insert(audit_events).values([_columns(event) for event in events]))
    await conn.execute(
        update(audit_heads)
        .where(audit_heads.c.tenant_id == tenant_id)
        .values(sequence=head.sequence, hash=head.hash)
    )


async def list_events(
    conn: Connection,
    tenant_ids: Collection[UUID] | None,
    *,
    user_id: UUID | None,
    action: str,
    after: Position | None,
    limit: int,
) -> list[ChainedEvent]:
    """Return events newest first: of one tenant by their number, of several (None is all) by their time."""
    table = audit_events.c
    query = select(audit_events).limit(limit)
    if user_id is not None:
        query = query.where(table.user_id == user_id)
    if action:
        query = query.where(table.action == action)
    if tenant_ids is not None and len(tenant_ids) == 1:
        query = query.where(table.tenant_id == next(iter(tenant_ids))).order_by(table.sequence.desc())
        if after is not None:
            query = query.where(table.sequence < after[2])
    else:
        if tenant_ids is not None:
            query = query.where(table.tenant_id.in_(tenant_ids))
        query = query.order_by(table.create_time.desc(), table.tenant_id.desc(), table.sequence.desc())
        if after is not None:
            query = query.where(_older_than(after))
    return [_event(row) for row in await conn.execute(query)]


def _older_than(position: Position) -> Any:
    table = audit_events.c
    instant, tenant_id, sequence = position
    return or_(
        table.create_time < instant,
        and_(table.create_time == instant, table.tenant_id < tenant_id),
        and_(table.create_time == instant, table.tenant_id == tenant_id, table.sequence < sequence),
    )


def _columns(chained: ChainedEvent) -> dict[str, object]:
    event = chained.event
    return {
        "tenant_id": chained.tenant_id,
        "sequence": chained.sequence,
        "action": event.action,
        "actor": event.actor,
        "user_id": event.user_id,
        "resource": event.resource,
        "details": dict(event.details),
        "create_time": event.create_time,
        "previous_hash": chained.previous_hash,
        "hash": chained.hash,
    }


def _event(row: Row[Any]) -> ChainedEvent:
    event = AuditEvent(row.action, row.actor, row.resource, row.create_time, row.user_id, row.details)
    return ChainedEvent(row.tenant_id, row.sequence, event, row.previous_hash, row.hash)
