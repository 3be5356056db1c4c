"""Reports: fixed, hashed, and proved against the ledger."""

import asyncio
import hashlib
import json
from datetime import datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from bursar.v1 import chargeback_service_pb2 as pb
from bursar_server.chargeback import service as chargeback_service
from bursar_server.chargeback.rpc import ChargebackRpc
from bursar_server.db.connection import tenant_lock_key
from bursar_server.db.unit_of_work import UnitOfWork
from bursar_server.kit.errors import Reason
from bursar_server.kit.ids import DEFAULT_TENANT_ID, PLATFORM_TENANT_ID
from support.called import called_by
from support.clock import FakeClock
from support.reports import (
    ADMIN,
    ALICE,
    APRIL,
    KEY,
    MAY,
    OPERATOR,
    OTHER_TENANT,
    STRANGER,
    chargeback,
    content,
    download,
    generate,
    listed,
    refused,
    rows,
    spend,
    stamp,
)
from support.spending import charge, utc


@pytest.fixture
async def reports(unit_of_work: UnitOfWork, clock: FakeClock) -> ChargebackRpc:
    return await chargeback(unit_of_work, clock)


async def test_a_report_has_tenant_period_sections_and_a_total_that_adds_up(
    reports: ChargebackRpc, unit_of_work: UnitOfWork
) -> None:
    """F131, F132, F133, F136, F137: and the hash is of exactly the bytes that are downloaded."""
    await spend(unit_of_work, utc(2026, 4, 2), 2_500_000_001, user_id=ALICE, api_key_id=KEY)
    await spend(unit_of_work, utc(2026, 4, 20), 1_000, provider="anthropic", model="claude")
    await spend(unit_of_work, MAY, 77)
    report = await generate(reports)
    assert (report.tenant_id, report.tenant_name, report.generated_by) == (
        str(DEFAULT_TENANT_ID),
        "default",
        "admin@example.com",
    )
    assert (report.from_time, report.to_time) == (stamp(APRIL), stamp(MAY))
    assert (report.total_nanos, report.total_usd, report.requests) == (2_500_001_001, 2.500001001, 2)
    pieces = await download(reports, report.report_id)
    data = b"".join(piece.data for piece in pieces)
    assert hashlib.sha256(data).hexdigest() == report.content_sha256
    assert (pieces[0].filename, pieces[0].content_type) == (
        "chargeback-default-2026-04-01-to-2026-04-30.json",
        "application/json",
    )
    found = json.loads(data)
    assert found["report_id"] == report.report_id
    assert found["proved_against_ledger"]
    for section in ("tenants", "api_keys", "models", "providers", "days", "line_items"):
        assert sum(row["cost_nanos"] for row in found[section]) == 2_500_001_001
    assert found["api_keys"][0]["api_key_name"] == "ci"
    assert found["api_keys"][0]["user"] == "alice@example.com"
    assert [day["day"] for day in found["days"]] == ["2026-04-02", "2026-04-20"]
    assert "earlier_periods" not in found


async def test_by_default_it_covers_the_previous_calendar_month(
    reports: ChargebackRpc, unit_of_work: UnitOfWork
) -> None:
    """F129."""
    now: datetime = (await rows(unit_of_work, "SELECT clock_timestamp()"))[0][0]
    report = await generate(reports, start=None, end=None)
    first = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    assert report.to_time == stamp(first)
    assert report.from_time == stamp((first - timedelta(days=1)).replace(day=1))
    assert (await refused(generate(reports, end=None))).field == "to_time"


async def test_a_month_until_its_last_second_has_every_row_of_it(
    reports: ChargebackRpc, unit_of_work: UnitOfWork
) -> None:
    """F201, C20."""
    await spend(unit_of_work, APRIL, 1)
    await spend(unit_of_work, MAY - timedelta(microseconds=1), 10)
    await spend(unit_of_work, MAY, 100)
    report = await generate(reports, end=utc(2026, 4, 30, 23, 59, 59))
    assert (report.total_nanos, report.to_time) == (11, stamp(MAY))


async def test_a_report_on_all_tenants_is_the_operators(
    reports: ChargebackRpc, unit_of_work: UnitOfWork
) -> None:
    """F130, F013: blank is all tenants for the operator, and a tenant's own for everybody else."""
    await spend(unit_of_work, APRIL, 3)
    await spend(unit_of_work, APRIL, 5, tenant_id=OTHER_TENANT)
    report = await generate(reports, OPERATOR)
    assert (report.tenant_id, report.tenant_name, report.total_nanos) == ("", "All tenants", 8)
    found = await content(reports, report.report_id, OPERATOR)
    assert [(row["tenant_name"], row["cost_nanos"]) for row in found["tenants"]] == [
        ("Acme", 5),
        ("default", 3),
    ]
    assert (await generate(reports, STRANGER)).total_nanos == 5
    assert (await generate(reports, OPERATOR, tenant_id="Acme")).total_nanos == 5
    for attempt in (
        reports.get_report(
            pb.ChargebackServiceGetReportRequest(report_id=report.report_id), called_by(ADMIN)
        ),
        download(reports, report.report_id),
        generate(reports, tenant_id="Acme"),
    ):
        assert (await refused(attempt)).reason is Reason.NOT_FOUND


async def test_a_report_of_nothing_is_a_report(reports: ChargebackRpc) -> None:
    report = await generate(reports)
    assert report.HasField("total_nanos")
    assert (report.total_nanos, report.total_usd, report.requests) == (0, 0.0, 0)
    assert (await content(reports, report.report_id))["line_items"] == []


# -- fixed ------------------------------------------------------------------------------------------


async def test_numbers_cannot_drift_once_a_report_is_generated(
    reports: ChargebackRpc, unit_of_work: UnitOfWork
) -> None:
    """F134: neither a late charge nor a rename changes a byte."""
    await spend(unit_of_work, APRIL, 5, api_key_id=KEY)
    report = await generate(reports)
    before = await download(reports, report.report_id)
    await spend(unit_of_work, APRIL, 7)
    await rows(unit_of_work, "UPDATE api_keys SET name = 'renamed' RETURNING 1")
    await rows(unit_of_work, "UPDATE tenants SET name = 'renamed' WHERE name = 'default' RETURNING 1")
    assert await download(reports, report.report_id) == before
    request = pb.ChargebackServiceGetReportRequest(report_id=report.report_id)
    assert (await reports.get_report(request, called_by(ADMIN))).report == report


async def test_a_report_that_the_ledger_does_not_bear_out_is_refused(
    reports: ChargebackRpc, unit_of_work: UnitOfWork
) -> None:
    """S26: rather no bill than a wrong one."""
    await spend(unit_of_work, utc(2026, 4, 2), 5)
    await rows(unit_of_work, "UPDATE rollup_days SET cost_nanos = 6 RETURNING 1")
    error = await refused(generate(reports))
    assert error.reason is Reason.INTERNAL
    assert "0.000000006 USD" in error.message
    assert await listed(reports) == []


async def test_a_call_whose_id_is_far_from_its_time_is_proved_too(
    reports: ChargebackRpc, unit_of_work: UnitOfWork
) -> None:
    """S16: charged under an id that the server made weeks later."""
    late = await spend(unit_of_work, utc(2026, 4, 25), 0, source="RELEASE")
    await spend(unit_of_work, utc(2026, 4, 2), 5, request_id=late, revision=1)
    found = await content(reports, (await generate(reports)).report_id)
    assert (found["totals"]["cost_nanos"], found["proved_against_ledger"]) == (5, True)


async def test_what_is_too_much_to_add_up_again_is_left_to_verify(
    reports: ChargebackRpc, unit_of_work: UnitOfWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report costs the same at a million calls and at a billion, and says whether it was proved."""
    monkeypatch.setattr(chargeback_service, "MAX_PROVED_REQUESTS", 1)
    await spend(unit_of_work, APRIL, 5)
    await spend(unit_of_work, APRIL, 5)
    found = await content(reports, (await generate(reports)).report_id)
    assert found["proved_against_ledger"] is False


async def test_months_whose_records_are_gone_can_still_be_reported_on(
    reports: ChargebackRpc, unit_of_work: UnitOfWork
) -> None:
    await spend(unit_of_work, APRIL, 5)
    async with unit_of_work.begin() as conn:
        await conn.execute(text("DROP TABLE usage_records_2026_03, ledger_entries_2026_03"))
        await conn.execute(text("DROP TABLE usage_records_2026_04, ledger_entries_2026_04"))
    report = await generate(reports)
    assert report.total_nanos == 5
    assert (await content(reports, report.report_id))["proved_against_ledger"] is False


async def test_too_many_line_items_are_refused(
    reports: ChargebackRpc, unit_of_work: UnitOfWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chargeback_service, "MAX_LINE_ITEMS", 1)
    await spend(unit_of_work, APRIL, 5, model="a")
    await spend(unit_of_work, APRIL, 5, model="b")
    assert (await refused(generate(reports))).reason is Reason.REQUEST_TOO_LARGE


@pytest.mark.parametrize("tenant_id", [DEFAULT_TENANT_ID, PLATFORM_TENANT_ID])
async def test_a_batch_under_way_is_waited_for_and_the_next_one_is_after_the_cut_off(
    reports: ChargebackRpc, unit_of_work: UnitOfWork, engine: AsyncEngine, tenant_id: UUID
) -> None:
    """S24: what was posted until the cut-off is in the report, and nothing else."""
    share = text("SELECT pg_advisory_xact_lock_shared(:key)")
    key = {"key": tenant_lock_key(tenant_id)}
    async with engine.connect() as lane:
        await lane.execute(share, key)
        await charge(lane, APRIL, 5)
        generating = asyncio.create_task(
            generate(reports, OPERATOR if tenant_id == PLATFORM_TENANT_ID else ADMIN)
        )
        await asyncio.sleep(0.2)
        assert not generating.done()
        now = (await lane.execute(text("SELECT clock_timestamp()"))).scalar_one()
        await lane.commit()
        report = await generating
        assert report.total_nanos == 5
        cutoff = report.cutoff_time.ToDatetime(now.tzinfo)
        assert now < cutoff
        await lane.execute(share, key)
        assert (await lane.execute(text("SELECT clock_timestamp()"))).scalar_one() > cutoff


async def test_many_reports_at_once_do_not_wait_for_one_another_for_ever(reports: ChargebackRpc) -> None:
    made = await asyncio.gather(*(generate(reports) for _ in range(12)))
    assert len({report.report_id for report in made}) == 12
