"""What a group is."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Group:
    """Some people who share a budget. Groups nest: members of a group count for all groups above it (S1)."""

    tenant_id: UUID
    group_id: UUID
    name: str
    parent_group_id: UUID | None
    create_time: datetime
    update_time: datetime
    # The users in it, not those of groups below it; sorted.
    user_ids: tuple[UUID, ...] = ()
