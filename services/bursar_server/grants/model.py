"""What a grant is."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID


class GrantStatus(StrEnum):
    """Whether a grant can be drawn on."""

    SCHEDULED = "SCHEDULED"
    ACTIVE = "ACTIVE"
    SPENT = "SPENT"
    EXPIRED = "EXPIRED"
    REVOKED = "REVOKED"


@dataclass(frozen=True, slots=True)
class Grant:
    """Money for a user, spent before any budget, earliest expiry first (S6, F074).

    It can be drawn on from `starts_at` until `expires_at`, exclusive.
    """

    tenant_id: UUID
    grant_id: UUID
    user_id: UUID
    amount_nanos: int
    spent_nanos: int
    held_nanos: int
    reason: str
    starts_at: datetime
    expires_at: datetime
    create_time: datetime
    created_by: str
    revoke_time: datetime | None = None
    revoked_by: str | None = None

    @property
    def remaining_nanos(self) -> int:
        """What is neither spent nor held, never below 0."""
        return max(0, self.amount_nanos - self.spent_nanos - self.held_nanos)

    def status_at(self, instant: datetime) -> GrantStatus:
        """Return whether it can be drawn on at an instant (S7, S8)."""
        if self.revoke_time is not None:
            return GrantStatus.REVOKED
        if instant >= self.expires_at:
            return GrantStatus.EXPIRED
        if instant < self.starts_at:
            return GrantStatus.SCHEDULED
        return GrantStatus.SPENT if self.spent_nanos >= self.amount_nanos else GrantStatus.ACTIVE
