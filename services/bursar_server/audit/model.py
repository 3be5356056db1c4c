"""What an audit event is."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

ZERO_HASH = "0" * 64


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """Something that happened in a tenant, before it is chained. `details` is JSON without floats: money as decimal text."""

    action: str
    actor: str
    resource: str
    create_time: datetime
    user_id: UUID | None = None
    details: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AuditHead:
    """The end of a tenant's chain."""

    sequence: int
    hash: str


@dataclass(frozen=True, slots=True)
class ChainedEvent:
    """An event in its place in the chain."""

    tenant_id: UUID
    sequence: int
    event: AuditEvent
    previous_hash: str
    hash: str
