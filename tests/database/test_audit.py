"""The audit trail in the database: chained, complete under concurrency, listed newest first."""

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import func, select

from bursar.v1 import user_service_pb2 as pb
from bursar_server.audit.model import ZERO_HASH, AuditEvent, AuditHead
from bursar_server.audit.rules import chain
from bursar_server.db.tables import audit_events, audit_heads
from bursar_server.db.unit_of_work import UnitOfWork
from bursar_server.kit.caller import Caller, Role
from bursar_server.kit.errors import BursarError, Reason
from bursar_server.kit.ids import DEFAULT_TENANT_ID, PLATFORM_TENANT_ID
from support.admin import ADMIN, OPERATOR, AdminSide, admin_side
from support.called import called_by

NOW = datetime(2026, 5, 1, 12, 0, 0, 123456, tzinfo=UTC)
OTHER = UUID("00000000-0000-7000-8000-0000000000aa")


@pytest.fixture
def admin(unit_of_work: UnitOfWork) -> AdminSide:
    return admin_side(unit_of_work)


def event(number: int, **more: object) -> AuditEvent:
    details = {"number": number, "text": "Grüße 🔔", "none": None, "list": [1, "a"], **more}
    return AuditEvent("test", "tester", f"thing/{number}", NOW + timedelta(seconds=number), None, details)


async def append(admin: AdminSide, tenant_id: UUID, *events: AuditEvent) -> None:
    async with admin.unit_of_work.begin() as conn:
        await admin.audit.append(conn, tenant_id, events)


async def append_and_fail(admin: AdminSide) -> None:
    async with admin.unit_of_work.begin() as conn:
        await admin.audit.append(conn, DEFAULT_TENANT_ID, [event(1)])
        raise RuntimeError


async def test_what_is_read_back_proves_the_chain(admin: AdminSide) -> None:
    """F176: the hashes can be computed again from what the database holds."""
    await append(admin, DEFAULT_TENANT_ID, event(1), event(2))
    await append(admin, DEFAULT_TENANT_ID, event(3))
    async with admin.unit_of_work.begin() as conn:
        stored, _ = await admin.audit.list(conn, {DEFAULT_TENANT_ID})
        head = (
            await conn.execute(select(audit_heads).where(audit_heads.c.tenant_id == DEFAULT_TENANT_ID))
        ).one()
    oldest_first = list(reversed(stored))
    again, end = chain(DEFAULT_TENANT_ID, AuditHead(0, ZERO_HASH), [one.event for one in oldest_first])
    assert again == oldest_first
    assert (head.sequence, head.hash) == (end.sequence, end.hash) == (3, stored[0].hash)


async def test_appends_at_once_leave_no_gap_and_no_fork(admin: AdminSide) -> None:
    """F176: transactions that append to one chain at once come one after the other."""
    await asyncio.gather(*(append(admin, DEFAULT_TENANT_ID, event(number)) for number in range(12)))
    async with admin.unit_of_work.begin() as conn:
        stored, _ = await admin.audit.list(conn, {DEFAULT_TENANT_ID})
    oldest_first = list(reversed(stored))
    assert [one.sequence for one in oldest_first] == list(range(1, 13))
    again, _ = chain(DEFAULT_TENANT_ID, AuditHead(0, ZERO_HASH), [one.event for one in oldest_first])
    assert again == oldest_first


async def test_a_new_tenant_begins_its_own_chain_even_at_once(admin: AdminSide) -> None:
    await asyncio.gather(append(admin, OTHER, event(1)), append(admin, OTHER, event(2)))
    async with admin.unit_of_work.begin() as conn:
        stored, _ = await admin.audit.list(conn, {OTHER})
    assert [one.sequence for one in stored] == [2, 1]
    assert stored[1].previous_hash == ZERO_HASH


async def test_a_transaction_that_fails_leaves_no_event(admin: AdminSide) -> None:
    """S20: an event and what it speaks of commit together or not at all."""
    with pytest.raises(RuntimeError):
        await append_and_fail(admin)
    await append(admin, DEFAULT_TENANT_ID, event(2))
    async with admin.unit_of_work.begin() as conn:
        count = (await conn.execute(select(func.count()).select_from(audit_events))).scalar_one()
        stored, _ = await admin.audit.list(conn, {DEFAULT_TENANT_ID})
    assert (count, stored[0].sequence, stored[0].previous_hash) == (1, 1, ZERO_HASH)


async def list_log(admin: AdminSide, caller: Caller, **query: object) -> pb.ListAuditLogResponse:
    request = pb.ListAuditLogRequest(**query)  # type: ignore[arg-type]
    return await admin.user_rpc.list_audit_log(request, called_by(caller))


async def test_pages_of_one_tenants_trail(admin: AdminSide) -> None:
    """F175: newest first; every event once, with the hashes that prove its place."""
    await append(admin, DEFAULT_TENANT_ID, *(event(number) for number in range(5)))
    seen: list[int] = []
    token = ""
    while True:
        answer = await list_log(admin, ADMIN, limit=2, page_token=token)
        seen += [entry.sequence for entry in answer.entries]
        assert all(len(entry.hash) == len(entry.previous_hash) == 64 for entry in answer.entries)
        token = answer.next_page_token
        if not token:
            break
    assert seen == [5, 4, 3, 2, 1]


async def test_pages_over_all_tenants_are_in_the_order_of_time(admin: AdminSide) -> None:
    """F173: the operator reads every tenant's trail as one."""
    await append(admin, DEFAULT_TENANT_ID, event(1), event(3), event(5))
    await append(admin, PLATFORM_TENANT_ID, event(2), event(4), event(4))
    seen: list[str] = []
    token = ""
    while True:
        answer = await list_log(admin, OPERATOR, limit=2, page_token=token)
        seen += [entry.resource for entry in answer.entries]
        token = answer.next_page_token
        if not token:
            break
    assert seen == [f"thing/{number}" for number in (5, 4, 4, 3, 2, 1)]


async def test_a_tenant_reads_its_own_trail_only(admin: AdminSide) -> None:
    """F013: neither the operator's trail nor another tenant's."""
    await append(admin, PLATFORM_TENANT_ID, event(1))
    await append(admin, OTHER, event(2))
    await append(admin, DEFAULT_TENANT_ID, event(3))
    answer = await list_log(admin, ADMIN)
    assert [entry.resource for entry in answer.entries] == ["thing/3"]
    with pytest.raises(BursarError) as caught:
        await list_log(admin, ADMIN, tenant_id=str(PLATFORM_TENANT_ID))
    assert caught.value.reason is Reason.NOT_FOUND


async def test_a_trail_narrows_to_an_action_and_says_what_was_set(admin: AdminSide) -> None:
    """F177: details hold what was set."""
    await append(admin, DEFAULT_TENANT_ID, event(1, limit_usd="12.5"))
    answer = await list_log(admin, ADMIN, action="test")
    [entry] = answer.entries
    assert entry.details["limit_usd"] == "12.5"
    assert entry.details["none"] is None
    assert (entry.actor, entry.tenant_id) == ("tester", str(DEFAULT_TENANT_ID))
    assert not (await list_log(admin, ADMIN, action="other")).entries


async def test_a_token_of_another_list_is_refused(admin: AdminSide) -> None:
    await append(admin, DEFAULT_TENANT_ID, *(event(number) for number in range(3)))
    token = (await list_log(admin, ADMIN, limit=1)).next_page_token
    for query in ({"action": "x"}, {"limit": -1}):
        with pytest.raises(BursarError) as caught:
            await list_log(admin, ADMIN, page_token=token, **query)
        assert caught.value.reason is Reason.INVALID_FIELD
    stranger = Caller(Role.TENANT_ADMIN, "s", frozenset({OTHER}))
    with pytest.raises(BursarError, match="page_token"):
        await list_log(admin, stranger, page_token=token)
