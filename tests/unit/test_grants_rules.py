"""What a grant may be, when it can be drawn on, and in which order."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from bursar_server.grants.model import Grant, GrantStatus
from bursar_server.grants.rules import check_new, check_revocable, in_waterfall_order
from bursar_server.kit.caller import Role
from bursar_server.kit.errors import BursarError, Reason
from bursar_server.users.model import User, UserStatus

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)
ALICE = User(
    UUID(int=1), UUID(int=2), "alice@example.com", "", Role.MEMBER, UserStatus.ACTIVE, False, 60, NOW, NOW
)
GRANT = Grant(UUID(int=1), UUID(int=3), UUID(int=2), 100, 0, 0, "", NOW - DAY, NOW + DAY, NOW - DAY, "op")


@pytest.mark.parametrize(
    ("grant", "status"),
    [
        (GRANT, GrantStatus.ACTIVE),
        (replace(GRANT, starts_at=NOW), GrantStatus.ACTIVE),
        (replace(GRANT, starts_at=NOW + timedelta(microseconds=1)), GrantStatus.SCHEDULED),
        (replace(GRANT, expires_at=NOW), GrantStatus.EXPIRED),
        (replace(GRANT, spent_nanos=100), GrantStatus.SPENT),
        (replace(GRANT, spent_nanos=60, held_nanos=40), GrantStatus.ACTIVE),
        (replace(GRANT, revoke_time=NOW, expires_at=NOW, spent_nanos=100), GrantStatus.REVOKED),
    ],
)
def test_when_a_grant_can_be_drawn_on(grant: Grant, status: GrantStatus) -> None:
    """F080, S7, S8: from starts_at until expires_at, exclusive, while something is left and it is not revoked."""
    assert grant.status_at(NOW) is status


def test_what_is_left_is_neither_spent_nor_held() -> None:
    """S10: remaining = amount − spent − held, never below 0."""
    assert replace(GRANT, spent_nanos=60, held_nanos=30).remaining_nanos == 10
    assert replace(GRANT, spent_nanos=90, held_nanos=30).remaining_nanos == 0


def test_the_earliest_expiry_is_spent_first() -> None:
    """F076, F077, C12, S6: by expiry, ties by creation; what cannot be drawn on is not among them."""
    later = replace(GRANT, grant_id=UUID(int=4), expires_at=NOW + 2 * DAY)
    older = replace(GRANT, grant_id=UUID(int=5), create_time=NOW - 2 * DAY)
    revoked = replace(GRANT, grant_id=UUID(int=6), revoke_time=NOW)
    assert in_waterfall_order([later, revoked, GRANT, older], NOW) == [older, GRANT, later]


@pytest.mark.parametrize(
    ("amount", "starts", "expires", "reason", "field"),
    [
        (0, NOW, NOW + DAY, "", "amount_usd"),
        (-1, NOW, NOW + DAY, "", "amount_usd"),
        (1, NOW - 2 * DAY, NOW - DAY, "", "expires_at"),
        (1, NOW - DAY, NOW, "", "expires_at"),
        (1, NOW + DAY, NOW + DAY, "", "expires_at"),
        (1, NOW + 2 * DAY, NOW + DAY, "", "expires_at"),
        (1, NOW, NOW + DAY, "x" * 1001, "reason"),
    ],
)
def test_a_grant_that_nobody_could_draw_on_is_refused(
    amount: int, starts: datetime, expires: datetime, reason: str, field: str
) -> None:
    """F075: an amount above 0, an end after the start and in the future."""
    with pytest.raises(BursarError) as caught:
        check_new(ALICE, amount, starts, expires, reason, NOW)
    assert caught.value.field == field


def test_a_service_account_has_no_grants() -> None:
    """S5."""
    check_new(ALICE, 1, NOW, NOW + DAY, "", NOW)
    with pytest.raises(BursarError, match="service account"):
        check_new(replace(ALICE, service_account=True), 1, NOW, NOW + DAY, "", NOW)


def test_what_has_ended_is_not_revoked_again() -> None:
    """F079: a scheduled, active or spent grant can be revoked."""
    check_revocable(GRANT, NOW)
    check_revocable(replace(GRANT, starts_at=NOW + timedelta(hours=1)), NOW)
    for ended in (replace(GRANT, revoke_time=NOW), replace(GRANT, expires_at=NOW)):
        with pytest.raises(BursarError) as caught:
            check_revocable(ended, NOW)
        assert caught.value.reason is Reason.WRONG_STATE
