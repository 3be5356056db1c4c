"""What a user is."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from bursar_server.kit.caller import Role

DEFAULT_RATE_LIMIT = 60


class UserStatus(StrEnum):
    """Whether a user can call."""

    ACTIVE = "ACTIVE"
    DEACTIVATED = "DEACTIVATED"
    DELETED = "DELETED"


@dataclass(frozen=True, slots=True)
class User:
    """A person or a service account. `rate_limit` is in requests per minute; 0 is off (F092)."""

    tenant_id: UUID
    user_id: UUID
    email: str
    display_name: str
    role: Role
    status: UserStatus
    service_account: bool
    rate_limit: int
    create_time: datetime
    update_time: datetime


@dataclass(frozen=True, slots=True)
class UserDraft:
    """A user to make. `daily_budget_nanos` None takes the configured default, if there is one (F043)."""

    email: str
    display_name: str = ""
    role: Role = Role.MEMBER
    service_account: bool = False
    daily_budget_nanos: int | None = None


@dataclass(frozen=True, slots=True)
class UserChange:
    """What to change of a user; None stays."""

    email: str | None = None
    display_name: str | None = None
    role: Role | None = None
    rate_limit: int | None = None
