"""The hash chain of a tenant's audit trail (F176)."""

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC
from uuid import UUID

from bursar_server.audit.model import AuditEvent, AuditHead, ChainedEvent


def canonical_text(tenant_id: UUID, sequence: int, event: AuditEvent) -> str:
    """Return the JSON text that an event's hash is of: keys sorted, no white space, times in UTC with microseconds."""
    return json.dumps(
        {
            "action": event.action,
            "actor": event.actor,
            "create_time": f"{event.create_time.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}",
            "details": event.details,
            "resource": event.resource,
            "sequence": sequence,
            "tenant_id": str(tenant_id),
            "user_id": str(event.user_id) if event.user_id else "",
        },
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=False,
    )


def event_hash(previous_hash: str, tenant_id: UUID, sequence: int, event: AuditEvent) -> str:
    """Return the sha256 of the previous hash, a line feed and the event's canonical text, in hexadecimal."""
    text = f"{previous_hash}\n{canonical_text(tenant_id, sequence, event)}"
    return hashlib.sha256(text.encode()).hexdigest()


def chain(
    tenant_id: UUID, head: AuditHead, events: Sequence[AuditEvent]
) -> tuple[list[ChainedEvent], AuditHead]:
    """Return the events in their places after `head`, and the new head."""
    chained = []
    sequence, previous = head.sequence, head.hash
    for event in events:
        sequence += 1
        digest = event_hash(previous, tenant_id, sequence, event)
        chained.append(ChainedEvent(tenant_id, sequence, event, previous, digest))
        previous = digest
    return chained, AuditHead(sequence, previous)
