"""Grants: given for a time, spent before budgets, revoked."""

from datetime import datetime, timedelta
from uuid import UUID

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import update

from bursar.v1 import grant_pb2, user_pb2
from bursar.v1 import user_service_pb2 as pb
from bursar_server.db.tables import grants
from bursar_server.db.unit_of_work import UnitOfWork
from bursar_server.kit.caller import Caller, Role
from bursar_server.kit.errors import BursarError, Reason
from bursar_server.kit.ids import DEFAULT_TENANT_ID
from support.admin import ADMIN, DEVELOPER, OPERATOR, USD, AdminSide, admin_side, clock_of, version_of
from support.called import called_by

STRANGER = Caller(Role.TENANT_ADMIN, "s", frozenset({UUID(int=7)}))
DAY = timedelta(days=1)


@pytest.fixture
def admin(unit_of_work: UnitOfWork) -> AdminSide:
    return admin_side(unit_of_work)


@pytest.fixture
async def now(unit_of_work: UnitOfWork) -> datetime:
    return await clock_of(unit_of_work)


def stamp(instant: datetime) -> Timestamp:
    value = Timestamp()
    value.FromDatetime(instant)
    return value


async def give(
    admin: AdminSide,
    amount: float,
    expires: datetime,
    starts: datetime | None = None,
    user: str = "alice@example.com",
    caller: Caller = OPERATOR,
) -> grant_pb2.Grant:
    request = pb.CreateGrantRequest(
        user_id=user, amount_usd=amount, reason="launch week", expires_at=stamp(expires)
    )
    if starts is not None:
        request.starts_at.CopyFrom(stamp(starts))
    return (await admin.user_rpc.create_grant(request, called_by(caller))).grant


async def spend(unit_of_work: UnitOfWork, grant: grant_pb2.Grant, spent: int, held: int = 0) -> None:
    async with unit_of_work.begin() as conn:
        await conn.execute(
            update(grants)
            .where(grants.c.grant_id == UUID(grant.grant_id))
            .values(spent_nanos=spent, held_nanos=held)
        )


async def refused(coroutine: object) -> BursarError:
    with pytest.raises(BursarError) as caught:
        await coroutine  # type: ignore[misc]
    return caught.value


async def left(admin: AdminSide, user: str = "alice@example.com") -> pb.UserServiceGetBudgetResponse:
    return await admin.user_rpc.get_budget(pb.UserServiceGetBudgetRequest(user_id=user), called_by(OPERATOR))


async def test_a_grant_says_what_was_given(admin: AdminSide, now: datetime) -> None:
    """F074, F075: an amount, a reason, a start and an end; it can be drawn on from now where no start is given."""
    grant = await give(admin, 10.5, now + DAY)
    assert (grant.amount_usd, grant.amount_nanos, grant.spent_usd, grant.remaining_usd) == (
        10.5,
        10_500_000_000,
        0,
        10.5,
    )
    assert (grant.reason, grant.created_by) == ("launch week", "operator")
    assert grant.status == grant_pb2.GRANT_STATUS_ACTIVE
    assert grant.starts_at.ToDatetime(now.tzinfo) >= now
    assert grant.expires_at == stamp(now + DAY)


async def test_a_grant_for_an_e_mail_not_seen_before_makes_the_user(
    admin: AdminSide, unit_of_work: UnitOfWork, now: datetime
) -> None:
    """F075, contract: the user is made, and that is audited; S13: a waiting call sees the grant at once."""
    before = await version_of(unit_of_work)
    grant = await give(admin, 1, now + DAY)
    assert await version_of(unit_of_work) > before
    async with unit_of_work.begin() as conn:
        events, _ = await admin.audit.list(conn, {DEFAULT_TENANT_ID}, user_id=UUID(grant.user_id))
    assert [one.event.action for one in events] == ["create_grant", "create_user"]
    assert events[0].event.details["amount_usd"] == "1"
    assert events[1].event.details["auto_provisioned"] is True
    again = await give(admin, 2, now + DAY)
    assert again.user_id == grant.user_id


async def test_what_nobody_could_draw_on_is_refused(admin: AdminSide, now: datetime) -> None:
    """F075, F080."""
    assert (await refused(give(admin, 0, now + DAY))).field == "amount_usd"
    assert (await refused(give(admin, 1, now - DAY))).field == "expires_at"
    assert (await refused(give(admin, 1, now + DAY, now + 2 * DAY))).field == "expires_at"
    request = pb.CreateGrantRequest(user_id="alice@example.com", amount_usd=1)
    assert (await refused(admin.user_rpc.create_grant(request, called_by(OPERATOR)))).field == "expires_at"
    request = pb.CreateGrantRequest(user_id="alice@example.com", expires_at=stamp(now + DAY))
    assert (await refused(admin.user_rpc.create_grant(request, called_by(OPERATOR)))).field == "amount_usd"


async def test_a_service_account_gets_none(admin: AdminSide, now: datetime) -> None:
    """S5."""
    request = pb.CreateUserRequest(email="ci@example.com", service_account=True, role=user_pb2.ROLE_MEMBER)
    await admin.user_rpc.create_user(request, called_by(OPERATOR))
    assert (await refused(give(admin, 1, now + DAY, user="ci@example.com"))).field == "user_id"


async def test_active_grants_stand_in_the_order_they_are_spent(
    admin: AdminSide, unit_of_work: UnitOfWork, now: datetime
) -> None:
    """F076, F077, F080, F200, S6: earliest expiry first; neither scheduled nor spent nor revoked ones."""
    b = await give(admin, 2.0, now + 10 * DAY)
    a = await give(admin, 0.3, now + 5 * DAY)
    same_day = await give(admin, 1, now + 10 * DAY)
    await give(admin, 9, now + 3 * DAY, now + DAY)
    spent = await give(admin, 9, now + DAY)
    await spend(unit_of_work, spent, 9 * USD)
    revoked = await give(admin, 9, now + DAY)
    await admin.user_rpc.revoke_grant(pb.RevokeGrantRequest(grant_id=revoked.grant_id), called_by(OPERATOR))
    found = await left(admin)
    assert [one.grant_id for one in found.active_grants] == [a.grant_id, b.grant_id, same_day.grant_id]
    assert found.grants_remaining_usd == 3.3
    assert not found.HasField("total_remaining_usd")
    await spend(unit_of_work, b, USD // 2, USD // 4)
    assert (await left(admin)).grants_remaining_usd == 2.55


async def test_grants_are_listed_latest_first(admin: AdminSide, now: datetime) -> None:
    """F123: in pages, for a user, a tenant, or only those that can be drawn on now."""
    made = [(await give(admin, number, now + DAY)).grant_id for number in (1, 2, 3)]
    later = (await give(admin, 4, now + 3 * DAY, now + DAY)).grant_id
    other = (await give(admin, 5, now + DAY, user="bob@example.com")).grant_id
    seen: list[str] = []
    token = ""
    while True:
        request = pb.ListGrantsRequest(page_size=2, page_token=token)
        answer = await admin.user_rpc.list_grants(request, called_by(ADMIN))
        seen += [grant.grant_id for grant in answer.grants]
        token = answer.next_page_token
        if not token:
            break
    assert seen == [other, later, *made[::-1]]
    request = pb.ListGrantsRequest(user_id="alice@example.com", active_only=True)
    answer = await admin.user_rpc.list_grants(request, called_by(DEVELOPER))
    assert [grant.grant_id for grant in answer.grants] == made[::-1]
    assert not (await admin.user_rpc.list_grants(pb.ListGrantsRequest(), called_by(STRANGER))).grants


async def test_revoking_returns_nothing(admin: AdminSide, unit_of_work: UnitOfWork, now: datetime) -> None:
    """F079, S8: what was spent stays spent, what open calls hold stays theirs; audited, and final."""
    grant = await give(admin, 10, now + DAY)
    await spend(unit_of_work, grant, 4 * USD, 2 * USD)
    request = pb.RevokeGrantRequest(grant_id=grant.grant_id, reason="left the project")
    gone = (await admin.user_rpc.revoke_grant(request, called_by(ADMIN))).grant
    assert (gone.spent_usd, gone.held_usd, gone.revoked_by) == (4, 2, "admin@example.com")
    assert gone.status == grant_pb2.GRANT_STATUS_REVOKED
    assert not (await left(admin)).active_grants
    async with unit_of_work.begin() as conn:
        events, _ = await admin.audit.list(conn, {DEFAULT_TENANT_ID}, action="revoke_grant")
    assert events[0].event.details == {
        "amount_usd": "10",
        "spent_usd": "4",
        "held_usd": "2",
        "reason": "left the project",
    }
    error = await refused(admin.user_rpc.revoke_grant(request, called_by(ADMIN)))
    assert error.reason is Reason.WRONG_STATE


async def test_a_foreign_grant_is_not_found(admin: AdminSide, now: datetime) -> None:
    """F013."""
    grant = await give(admin, 1, now + DAY)
    for grant_id in (grant.grant_id, "00000000-0000-7000-8000-0000000000ff"):
        request = pb.RevokeGrantRequest(grant_id=grant_id)
        error = await refused(admin.user_rpc.revoke_grant(request, called_by(STRANGER)))
        assert error.reason is Reason.NOT_FOUND
