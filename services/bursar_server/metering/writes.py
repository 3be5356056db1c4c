"""What a batch writes: in lock order, one statement a table, and the commit."""

from collections.abc import Callable
from typing import Any

from bursar_server.audit.model import AuditHead
from bursar_server.audit.rules import chain
from bursar_server.db.binary import array_of, columns_of
from bursar_server.db.lane import Pipeline, Send
from bursar_server.metering import store
from bursar_server.metering.context import BatchContext


def write(pipeline: Pipeline, context: BatchContext) -> None:
    """Write what has changed and commit, in one round trip; two where audit events are chained."""
    heads: Callable[[], list[tuple[Any, ...]]] | None = None
    context.books.send_writes(pipeline.send)
    _write_rates(pipeline.send, context)
    _write_waits(pipeline.send, context)
    if context.audit:
        heads = pipeline.send(
            store.LOCK_AUDIT_HEADS, array_of({tenant_id for tenant_id, _ in context.audit})
        ).rows
    else:
        pipeline.send("COMMIT")
    pipeline.run()
    if heads is None:
        return
    chained, last = [], []
    for tenant_id, sequence, digest in heads():
        events = [event for owner, event in context.audit if owner == tenant_id]
        places, head = chain(tenant_id, AuditHead(sequence, digest), events)
        chained += places
        last.append((tenant_id, head))
    pipeline.send(store.INSERT_AUDIT_EVENTS, store.audit_rows(chained))
    pipeline.send(store.UPDATE_AUDIT_HEADS, store.audit_head_rows(last))
    pipeline.send("COMMIT")
    pipeline.run()


def _write_rates(send: Send, context: BatchContext) -> None:
    rates = context.rates
    changed = [(key, rates.requests[key]) for key in sorted(rates.changed)]
    update = [item for item in changed if item[0] in rates.stored]
    insert = [item for item in changed if item[0] not in rates.stored]
    if update:
        send(store.UPDATE_RATES, store.rate_rows(update))
    if insert:
        send(store.INSERT_RATES, store.rate_rows(insert))


def _write_waits(send: Send, context: BatchContext) -> None:
    waits = context.waits
    if waits.joined:
        send(store.JOIN_WAITS, store.wait_rows(sorted(waits.joined.items())))
    if waits.left:
        keys = sorted(waits.left)
        send(store.LEAVE_WAITS, *columns_of(keys, 3))
