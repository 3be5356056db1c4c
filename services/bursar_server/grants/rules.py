"""What a grant may be, and in which order grants are spent."""

from collections.abc import Sequence
from datetime import datetime

from bursar_server.grants.model import Grant, GrantStatus
from bursar_server.kit.errors import BursarError, Reason, invalid
from bursar_server.users.model import User

MAX_REASON = 1_000


def check_new(
    user: User, amount_nanos: int, starts_at: datetime, expires_at: datetime, reason: str, now: datetime
) -> None:
    """Raise INVALID_FIELD for a grant that nobody could draw on (F075, F080), or for a service account (S5)."""
    if user.service_account:
        raise invalid("user_id", f"{user.email} is a service account, which has no grants")
    if amount_nanos <= 0:
        raise invalid("amount_usd", "must be more than 0")
    if expires_at <= now:
        raise invalid("expires_at", "must be in the future")
    if expires_at <= starts_at:
        raise invalid("expires_at", "must be after starts_at")
    if len(reason) > MAX_REASON:
        raise invalid("reason", f"must have at most {MAX_REASON} characters")


def check_revocable(grant: Grant, now: datetime) -> None:
    """Raise WRONG_STATE for a grant that has ended already."""
    status = grant.status_at(now)
    if status in (GrantStatus.REVOKED, GrantStatus.EXPIRED):
        raise BursarError(Reason.WRONG_STATE, f"the grant is {status.lower()}")


def in_waterfall_order(grants: Sequence[Grant], now: datetime) -> list[Grant]:
    """Return the grants that can be drawn on now as they are spent.

    The earliest expiry comes first, ties by creation (S6, F077, C12).
    """
    active = [grant for grant in grants if grant.status_at(now) is GrantStatus.ACTIVE]
    return sorted(active, key=lambda grant: (grant.expires_at, grant.create_time, grant.grant_id))
