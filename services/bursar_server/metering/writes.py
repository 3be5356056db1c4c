"""What a batch writes: in lock order, one statement a table, and the commit."""

from collections.abc import Callable
from uuid import UUID

from bursar_server.audit.model import AuditHead
from bursar_server.audit.rules import chain
from bursar_server.db.lane import LaneConnection
from bursar_server.metering import store
from bursar_server.metering.context import BatchContext


def write(connection: LaneConnection, context: BatchContext) -> None:
    """Write what has changed and commit, in one round trip; two where audit events are chained."""
    heads: Callable[[], list[tuple[UUID, int, str]]] | None = None
    with connection.pipeline():
        context.books.send_writes(connection.execute)
        _write_rates(connection, context)
        _write_waits(connection, context)
        if context.audit:
            tenants = sorted({tenant_id for tenant_id, _ in context.audit})
            heads = connection.execute(store.LOCK_AUDIT_HEADS, (tenants,)).fetchall
        else:
            connection.execute("COMMIT")
    if heads is None:
        return
    chained, last = [], []
    for tenant_id, sequence, digest in heads():
        events = [event for owner, event in context.audit if owner == tenant_id]
        places, head = chain(tenant_id, AuditHead(sequence, digest), events)
        chained += places
        last.append((tenant_id, head))
    with connection.pipeline():
        connection.execute(store.INSERT_AUDIT_EVENTS, (store.audit_rows(chained),))
        connection.execute(store.UPDATE_AUDIT_HEADS, (store.audit_head_rows(last),))
        connection.execute("COMMIT")


def _write_rates(connection: LaneConnection, context: BatchContext) -> None:
    rates = context.rates
    changed = [(key, rates.requests[key]) for key in sorted(rates.changed)]
    update = [item for item in changed if item[0] in rates.stored]
    insert = [item for item in changed if item[0] not in rates.stored]
    if update:
        connection.execute(store.UPDATE_RATES, (store.rate_rows(update),))
    if insert:
        connection.execute(store.INSERT_RATES, (store.rate_rows(insert),))


def _write_waits(connection: LaneConnection, context: BatchContext) -> None:
    waits = context.waits
    if waits.joined:
        connection.execute(store.JOIN_WAITS, (store.wait_rows(sorted(waits.joined.items())),))
    if waits.left:
        keys = sorted(waits.left)
        connection.execute(store.LEAVE_WAITS, tuple([key[part] for key in keys] for part in range(3)))
