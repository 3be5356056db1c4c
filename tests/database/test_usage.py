"""Records and sums as they are shown to those who may see them."""

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import text

from bursar.v1 import usage_pb2
from bursar.v1 import usage_service_pb2 as pb
from bursar_server.audit.service import AuditService
from bursar_server.db.unit_of_work import UnitOfWork
from bursar_server.kit.caller import Caller, Role
from bursar_server.kit.errors import BursarError, Reason
from bursar_server.kit.ids import DEFAULT_TENANT_ID, uuid7_at
from bursar_server.tenants.service import TenantService
from bursar_server.usage.rpc import UsageRpc
from support.called import called_by
from support.clock import FakeClock
from support.spending import add_tenant, add_user, charge, usage_service, utc

OTHER_TENANT = UUID("00000000-0000-7000-8000-0000000000aa")
ALICE, BOB = UUID("00000000-0000-7000-8000-0000000000a1"), UUID("00000000-0000-7000-8000-0000000000b0")
KEY = UUID("00000000-0000-7000-8000-0000000000c0")
OPERATOR = Caller(Role.BILLING_ADMIN, "operator")
ADMIN = Caller(Role.TENANT_ADMIN, "admin@example.com", frozenset({DEFAULT_TENANT_ID}))
STRANGER = Caller(Role.TENANT_ADMIN, "stranger@example.com", frozenset({OTHER_TENANT}))
BY = usage_pb2.CostDimension
APRIL = utc(2026, 4, 1)


@pytest.fixture
async def usage(unit_of_work: UnitOfWork, clock: FakeClock) -> UsageRpc:
    audit = AuditService(clock=clock)
    tenants = TenantService(audit=audit, clock=clock)
    async with unit_of_work.begin() as conn:
        await add_tenant(conn, OTHER_TENANT, "other")
        await add_user(conn, ALICE, "alice@example.com")
        await add_user(conn, BOB, "bob@example.com", OTHER_TENANT)
    return UsageRpc(unit_of_work=unit_of_work, usage=usage_service(tenants, audit, clock))


def stamp(instant: datetime) -> Timestamp:
    return Timestamp(seconds=int(instant.timestamp()))


async def records(usage: UsageRpc, caller: Caller = ADMIN, **asked: Any) -> list[usage_pb2.CostRecord]:
    return list(
        (await usage.list_cost_records(pb.ListCostRecordsRequest(**asked), called_by(caller))).records
    )


async def summary(usage: UsageRpc, caller: Caller = ADMIN, **asked: Any) -> pb.GetCostSummaryResponse:
    return await usage.get_cost_summary(pb.GetCostSummaryRequest(**asked), called_by(caller))


def of_april(**more: Any) -> dict[str, Any]:
    return {"from_time": stamp(APRIL), "to_time": stamp(utc(2026, 5, 1))} | more


def groups(found: pb.GetCostSummaryResponse) -> list[tuple[dict[str, str], int]]:
    return [(dict(group.key), group.totals.cost_nanos) for group in found.groups]


async def refused(awaitable: Any) -> BursarError:
    with pytest.raises(BursarError) as caught:
        await awaitable
    return caught.value


# -- records ----------------------------------------------------------------------------------------


async def test_a_record_says_who_what_and_how_much(usage: UsageRpc, unit_of_work: UnitOfWork) -> None:
    """F100, F102, F104, F191: tenant, masked key, model, provider, tokens, costs by part, time."""
    async with unit_of_work.begin() as conn:
        request_id = await charge(
            conn, utc(2026, 4, 2, 10), 7_500_000, user_id=ALICE, api_key_id=KEY, output_nanos=5_000_000,
            input_tokens=1000, output_tokens=500, tags={"team": "core"}, provider_cost_nanos=7_400_000,
        )  # fmt: skip
    [record] = await records(usage)
    assert record.request_id == str(request_id)
    assert (record.tenant_id, record.user_id, record.api_key_id) == (
        str(DEFAULT_TENANT_ID),
        str(ALICE),
        str(KEY),
    )
    assert (record.masked_key, dict(record.tags)) == ("bur_abcd…wxyz", {"team": "core"})
    assert (record.provider, record.model) == ("openai", "gpt-4o")
    assert (record.usage.input_tokens, record.usage.output_tokens) == (1000, 500)
    assert (record.input_cost_usd, record.output_cost_usd, record.cost_usd) == (0.0025, 0.005, 0.0075)
    assert (record.cost_nanos, record.provider_cost_usd) == (7_500_000, 0.0074)
    assert record.usage_time == record.create_time == stamp(utc(2026, 4, 2, 10))
    assert record.items[0].model == "gpt-4o"
    assert record.HasField("other_cost_nanos")


async def test_a_call_without_a_price_is_there_with_its_tokens_at_0_and_flagged(
    usage: UsageRpc, unit_of_work: UnitOfWork
) -> None:
    """F106, F202: the provider and model whose price is missing can be read off."""
    async with unit_of_work.begin() as conn:
        await charge(conn, APRIL, 0, provider="novel", model="mystery", unpriced=True)
    [record] = await records(usage)
    assert (record.cost_nanos, record.unpriced, record.usage.input_tokens) == (0, True, 100)
    assert (record.provider, record.model, record.price_id) == ("novel", "mystery", "")
    found = await summary(usage, **of_april(group_by=[BY.COST_DIMENSION_PROVIDER, BY.COST_DIMENSION_MODEL]))
    assert found.groups[0].totals.unpriced_requests == 1
    assert dict(found.groups[0].key) == {"provider": "novel", "model": "mystery"}


async def test_corrections_are_part_of_their_call_and_releases_are_no_calls(
    usage: UsageRpc, unit_of_work: UnitOfWork
) -> None:
    """S16, S17, F103: one line a call, whatever was posted for it."""
    async with unit_of_work.begin() as conn:
        call = await charge(conn, utc(2026, 4, 2), 500, source="EXPIRY", kind="EXPIRY", estimated=True)
        await charge(
            conn, utc(2026, 4, 2), -180, request_id=call, revision=1, kind="ADJUSTMENT", requests=0,
            input_tokens=-40, output_tokens=-4,
        )  # fmt: skip
        await charge(conn, utc(2026, 4, 3), 0, source="RELEASE")
        returned = await charge(conn, utc(2026, 4, 4), 0, source="RELEASE")
        await charge(conn, utc(2026, 4, 4), 70, request_id=returned, revision=1)
    late, corrected = await records(usage)
    assert (late.request_id, late.cost_nanos) == (str(returned), 70)
    assert (corrected.cost_nanos, corrected.revision) == (320, 1)
    assert (corrected.estimated, corrected.lease_expired, corrected.usage.input_tokens) == (False, True, 60)


async def test_records_come_newest_first_page_by_page_whatever_their_tenant(
    usage: UsageRpc, unit_of_work: UnitOfWork
) -> None:
    """F122, F123: and a call appears once, also where tenants share an id."""
    shared = uuid7_at(utc(2026, 4, 3))
    async with unit_of_work.begin() as conn:
        made = [
            await charge(
                conn, APRIL + timedelta(hours=h), h, tenant_id=(DEFAULT_TENANT_ID, OTHER_TENANT)[h % 2]
            )
            for h in range(1, 8)
        ]
        for tenant_id in (DEFAULT_TENANT_ID, OTHER_TENANT):
            await charge(conn, utc(2026, 4, 3), 99, tenant_id=tenant_id, request_id=shared)
    seen, token = [], ""
    while True:
        asked = pb.ListCostRecordsRequest(page_size=2, page_token=token)
        page = await usage.list_cost_records(asked, called_by(OPERATOR))
        assert len(page.records) <= 2
        seen += [(record.request_id, record.tenant_id) for record in page.records]
        token = page.next_page_token
        if not token:
            break
    expected = [str(request_id) for request_id in reversed(made)]
    assert [request_id for request_id, _ in seen] == [str(shared), str(shared), *expected]
    assert len(set(seen)) == 9
    error = await refused(records(usage, OPERATOR, page_size=-1))
    assert error.field == "page_size"


async def test_a_page_token_is_good_for_the_same_question_only(
    usage: UsageRpc, unit_of_work: UnitOfWork
) -> None:
    async with unit_of_work.begin() as conn:
        await charge(conn, APRIL, 1)
        await charge(conn, APRIL, 1)
    page = await usage.list_cost_records(pb.ListCostRecordsRequest(page_size=1), called_by(ADMIN))
    error = await refused(records(usage, page_token=page.next_page_token, model="other"))
    assert error.field == "page_token"


async def test_records_can_be_filtered(usage: UsageRpc, unit_of_work: UnitOfWork) -> None:
    """F115, F119, F192: by tenant, user (also by e-mail), key, provider, model, call and time."""
    async with unit_of_work.begin() as conn:
        one = await charge(conn, APRIL, 1, user_id=ALICE, api_key_id=KEY, model="a")
        two = await charge(conn, utc(2026, 4, 30, 23, 59, 59), 2, provider="anthropic", model="b")
        three = await charge(conn, utc(2026, 5, 1), 3, tenant_id=OTHER_TENANT, user_id=BOB, model="a")

    async def ids(**asked: Any) -> set[str]:
        return {record.request_id for record in await records(usage, OPERATOR, **asked)}

    assert await ids() == {str(one), str(two), str(three)}
    assert await ids(tenant_id="other") == {str(three)}
    assert await ids(user_id="alice@example.com") == await ids(user_id=str(ALICE)) == {str(one)}
    assert await ids(api_key_id=str(KEY)) == {str(one)}
    assert await ids(provider="anthropic") == {str(two)}
    assert await ids(model="a") == {str(one), str(three)}
    assert await ids(request_id=str(two)) == {str(two)}
    assert await ids(from_time=stamp(utc(2026, 4, 1)), to_time=stamp(utc(2026, 4, 2))) == {str(one)}
    assert await ids(**of_april(to_time=stamp(utc(2026, 4, 30, 23, 59, 59)))) == {str(one), str(two)}
    assert await ids(to_time=stamp(utc(2026, 5, 1))) == {str(one), str(two)}
    assert await ids(from_time=stamp(utc(2026, 5, 1))) == {str(three)}


async def test_nobody_sees_another_tenants_calls(usage: UsageRpc, unit_of_work: UnitOfWork) -> None:
    """F013."""
    async with unit_of_work.begin() as conn:
        await charge(conn, APRIL, 1, tenant_id=OTHER_TENANT, user_id=BOB)
    assert await records(usage) == []
    assert (await refused(records(usage, tenant_id="other"))).reason is Reason.NOT_FOUND
    assert (await refused(records(usage, user_id="bob@example.com"))).reason is Reason.NOT_FOUND
    assert (await summary(usage, **of_april())).totals.requests == 0
    assert (await refused(summary(usage, tenant_id=str(OTHER_TENANT)))).reason is Reason.NOT_FOUND
    assert len(await records(usage, STRANGER)) == 1


# -- sums -------------------------------------------------------------------------------------------


async def test_totals_are_there_and_set_also_where_there_is_nothing(usage: UsageRpc) -> None:
    """F116, F187."""
    found = await summary(usage, **of_april())
    for field in ("requests", "input_tokens", "output_tokens", "cost_usd", "cost_nanos"):
        assert found.totals.HasField(field)
        assert getattr(found.totals, field) == 0
    assert list(found.groups) == []


async def test_a_range_sums_exactly_what_lies_in_its_quarter_hours(
    usage: UsageRpc, unit_of_work: UnitOfWork
) -> None:
    """S25, F187: ragged edges from quarter-hours, whole days from the other grain, and the range used is echoed."""
    async with unit_of_work.begin() as conn:
        at = utc(2026, 4, 1)
        for step in range(4 * 24 * 4):
            await charge(conn, at + step * timedelta(minutes=15), 1 << (step % 40), requests=1)

    async def total(start: datetime, end: datetime) -> int:
        return (await summary(usage, from_time=stamp(start), to_time=stamp(end))).totals.cost_nanos

    def expected(first: int, last: int) -> int:
        return sum(1 << (step % 40) for step in range(first, last))

    day = 4 * 24
    assert await total(utc(2026, 4, 1), utc(2026, 4, 5)) == expected(0, 4 * day)
    assert await total(utc(2026, 4, 1, 22, 30), utc(2026, 4, 3, 1, 15)) == expected(90, 2 * day + 5)
    assert await total(utc(2026, 4, 1, 1), utc(2026, 4, 1, 2)) == expected(4, 8)
    assert await total(utc(2026, 4, 2), utc(2026, 4, 3)) == expected(day, 2 * day)
    found = await summary(
        usage, from_time=stamp(utc(2026, 4, 1, 1, 7)), to_time=stamp(utc(2026, 4, 1, 1, 16))
    )
    assert (found.from_time, found.to_time) == (stamp(utc(2026, 4, 1, 1)), stamp(utc(2026, 4, 1, 1, 30)))
    assert found.totals.cost_nanos == expected(4, 6)


async def test_an_end_on_the_last_second_includes_it(usage: UsageRpc, unit_of_work: UnitOfWork) -> None:
    """F201, C20: April until 23:59:59 is all of April."""
    async with unit_of_work.begin() as conn:
        await charge(conn, utc(2026, 4, 30, 23, 59, 59) + timedelta(microseconds=999_999), 5)
        await charge(conn, utc(2026, 5, 1), 7)
    found = await summary(usage, from_time=stamp(APRIL), to_time=stamp(utc(2026, 4, 30, 23, 59, 59)))
    assert found.totals.cost_nanos == 5
    assert found.to_time == stamp(utc(2026, 5, 1))


async def test_sums_come_by_any_dimensions_costliest_first(usage: UsageRpc, unit_of_work: UnitOfWork) -> None:
    """F105, F119, F191: a group's key says what was asked, in those names; no user and no key are empty."""
    async with unit_of_work.begin() as conn:
        await charge(conn, utc(2026, 4, 2, 1), 10, user_id=ALICE, api_key_id=KEY, model="a")
        await charge(conn, utc(2026, 4, 2, 2), 5, user_id=ALICE, model="b")
        await charge(conn, utc(2026, 4, 3, 3), 20, provider="anthropic", model="c")
        await charge(conn, utc(2026, 4, 3, 3), 100, tenant_id=OTHER_TENANT, user_id=BOB)
    by_user = await summary(usage, **of_april(group_by=[BY.COST_DIMENSION_USER]))
    assert groups(by_user) == [({"user_id": ""}, 20), ({"user_id": str(ALICE)}, 15)]
    by_key = await summary(usage, **of_april(group_by=[BY.COST_DIMENSION_API_KEY]))
    assert groups(by_key) == [({"api_key_id": ""}, 25), ({"api_key_id": str(KEY)}, 10)]
    by_day = await summary(usage, **of_april(group_by=[BY.COST_DIMENSION_DAY, BY.COST_DIMENSION_PROVIDER]))
    assert groups(by_day) == [
        ({"day": "2026-04-03", "provider": "anthropic"}, 20),
        ({"day": "2026-04-02", "provider": "openai"}, 15),
    ]
    ragged: dict[str, Any] = {"from_time": stamp(utc(2026, 4, 2, 2)), "to_time": stamp(utc(2026, 4, 3, 12))}
    assert groups(await summary(usage, group_by=[BY.COST_DIMENSION_DAY], **ragged)) == [
        ({"day": "2026-04-03"}, 20),
        ({"day": "2026-04-02"}, 5),
    ]
    by_tenant = await summary(usage, OPERATOR, **of_april(group_by=[BY.COST_DIMENSION_TENANT]))
    assert groups(by_tenant) == [
        ({"tenant_id": str(OTHER_TENANT)}, 100),
        ({"tenant_id": str(DEFAULT_TENANT_ID)}, 35),
    ]
    assert by_tenant.totals.cost_nanos == 135
    assert (await summary(usage, **of_april(model="a", user_id="alice@example.com"))).totals.cost_nanos == 10
    assert (await summary(usage, **of_april(api_key_id=str(KEY), provider="openai"))).totals.requests == 1


@pytest.mark.parametrize(
    ("group_by", "field"),
    [([0], "group_by[0]"), ([1, 1], "group_by"), ([1, 2, 3, 4, 5], "group_by"), ([77], "group_by[0]")],
)
async def test_dimensions_that_make_no_sense_are_refused(
    usage: UsageRpc, group_by: list[int], field: str
) -> None:
    assert (await refused(summary(usage, group_by=group_by))).field == field


async def test_what_corrections_moved_elsewhere_leaves_no_group_of_zeros(
    usage: UsageRpc, unit_of_work: UnitOfWork
) -> None:
    """S16: a call that was estimated under one model and served by another."""
    async with unit_of_work.begin() as conn:
        call = await charge(conn, utc(2026, 4, 2), 500, model="asked", source="EXPIRY", kind="EXPIRY")
        await charge(
            conn, utc(2026, 4, 2), -500, model="asked", request_id=call, revision=1, requests=-1,
            input_tokens=-100, output_tokens=-10,
        )  # fmt: skip
        await charge(conn, utc(2026, 4, 2), 320, model="served")
    found = await summary(usage, **of_april(group_by=[BY.COST_DIMENSION_MODEL]))
    assert groups(found) == [({"model": "served"}, 320)]


async def test_sums_are_read_from_rollups_alone(usage: UsageRpc, unit_of_work: UnitOfWork) -> None:
    """Months of raw records can be dropped without changing a figure."""
    async with unit_of_work.begin() as conn:
        await charge(conn, utc(2026, 4, 2), 500)
        await conn.execute(text("DROP TABLE usage_records_2026_04, ledger_entries_2026_04"))
    assert (await summary(usage, **of_april())).totals.cost_nanos == 500
