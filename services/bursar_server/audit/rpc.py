"""The audit trail on the wire; UserService serves it."""

from typing import Any

from google.protobuf.struct_pb2 import Struct

from bursar.v1 import audit_pb2
from bursar_server.audit.model import ChainedEvent
from bursar_server.rpc import fields


def entry_message(chained: ChainedEvent) -> audit_pb2.AuditEntry:
    """Return an event as the wire has it, with its place in the chain (F176)."""
    event = chained.event
    fields_of_details: dict[str, Any] = dict(event.details)
    details = Struct()
    details.update(fields_of_details)
    return audit_pb2.AuditEntry(
        action=event.action,
        actor=event.actor,
        user_id=str(event.user_id or ""),
        tenant_id=str(chained.tenant_id),
        resource=event.resource,
        details=details,
        create_time=fields.timestamp_of(event.create_time),
        hash=chained.hash,
        previous_hash=chained.previous_hash,
        sequence=chained.sequence,
    )
