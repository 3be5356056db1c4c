"""Reports as they follow one another, are listed, downloaded and deleted."""

import csv
import io
from decimal import Decimal

import pytest

from bursar.v1 import chargeback_service_pb2 as pb
from bursar_server.chargeback.rpc import ChargebackRpc
from bursar_server.db.unit_of_work import UnitOfWork
from bursar_server.kit.caller import Caller, Role
from bursar_server.kit.errors import Reason
from support.called import called_by
from support.clock import FakeClock
from support.reports import (
    ADMIN,
    ALICE,
    APRIL,
    JUNE,
    KEY,
    MARCH,
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
)
from support.spending import charge, utc


@pytest.fixture
async def reports(unit_of_work: UnitOfWork, clock: FakeClock) -> ChargebackRpc:
    return await chargeback(unit_of_work, clock)


async def test_what_comes_after_a_report_is_in_the_next_one_as_earlier_periods(
    reports: ChargebackRpc, unit_of_work: UnitOfWork
) -> None:
    """S24: once, in the next report and no other, whatever month it is of."""
    estimated = await spend(unit_of_work, utc(2026, 4, 9), 500, source="EXPIRY", kind="EXPIRY")
    await spend(unit_of_work, utc(2026, 3, 9), 40)
    await generate(reports, start=MARCH, end=APRIL)
    april = await generate(reports)
    await spend(
        unit_of_work, utc(2026, 4, 9), -180, request_id=estimated, revision=1, kind="ADJUSTMENT", requests=0,
        input_tokens=0, output_tokens=0,
    )  # fmt: skip
    await spend(unit_of_work, utc(2026, 3, 30), 7)
    await spend(unit_of_work, utc(2026, 5, 5), 1000)
    may = await generate(reports, start=MAY, end=JUNE)
    found = await content(reports, may.report_id)
    earlier = found["earlier_periods"]
    assert [(line["month"], line["cost_nanos"], line["requests"]) for line in earlier["lines"]] == [
        ("2026-03", 7, 1),
        ("2026-04", -180, 0),
    ]
    assert (earlier["since_report_id"], earlier["totals"]["cost_nanos"]) == (april.report_id, -173)
    assert (may.total_nanos, found["amount_due"]["cost_nanos"]) == (1000, 827)
    june = await content(reports, (await generate(reports, start=JUNE, end=utc(2026, 7, 1))).report_id)
    assert june["earlier_periods"]["lines"] == []
    again = await content(reports, (await generate(reports, start=MAY, end=JUNE)).report_id)
    assert again["earlier_periods"]["lines"] == earlier["lines"]


async def test_a_short_report_in_between_takes_nothing_away_from_the_monthly_ones(
    reports: ChargebackRpc, unit_of_work: UnitOfWork
) -> None:
    """S24: the preceding report is the one whose end lies nearest before."""
    await generate(reports)
    await spend(unit_of_work, utc(2026, 4, 20), 7)
    await generate(reports, start=utc(2026, 4, 10), end=utc(2026, 4, 11))
    may = await content(reports, (await generate(reports, start=MAY, end=JUNE)).report_id)
    assert [line["cost_nanos"] for line in may["earlier_periods"]["lines"]] == [7]


async def test_the_chain_of_a_tenant_and_that_of_all_tenants_are_apart(
    reports: ChargebackRpc, unit_of_work: UnitOfWork
) -> None:
    await generate(reports, OPERATOR)
    await spend(unit_of_work, APRIL, 3, tenant_id=OTHER_TENANT)
    own = await content(reports, (await generate(reports, start=MAY, end=JUNE)).report_id)
    assert "earlier_periods" not in own
    every = await content(reports, (await generate(reports, OPERATOR, MAY, JUNE)).report_id, OPERATOR)
    assert [(line["tenant_name"], line["cost_nanos"]) for line in every["earlier_periods"]["lines"]] == [
        ("Acme", 3)
    ]


async def test_reports_are_listed_latest_first_to_those_whose_they_are(
    reports: ChargebackRpc,
) -> None:
    """F135, F136, F123."""
    mine = [(await generate(reports)).report_id for _ in range(3)]
    theirs = (await generate(reports, STRANGER)).report_id
    every = (await generate(reports, OPERATOR)).report_id
    assert await listed(reports) == mine[::-1]
    assert await listed(reports, STRANGER) == [theirs]
    assert await listed(reports, OPERATOR) == [every, theirs, *mine[::-1]]
    assert await listed(reports, OPERATOR, tenant_id="Acme") == [theirs]
    first = await reports.list_reports(pb.ChargebackServiceListReportsRequest(page_size=2), called_by(ADMIN))
    assert await listed(reports, page_size=2, page_token=first.next_page_token) == mine[:1]
    unbound = Caller(Role.TENANT_ADMIN, "unbound")
    assert every not in await listed(reports, unbound)


async def test_the_csv_adds_up_to_the_total_and_comes_in_pieces(
    reports: ChargebackRpc, unit_of_work: UnitOfWork
) -> None:
    """F138, F144: one row for each key, user, provider and model."""
    async with unit_of_work.begin() as conn:
        for number in range(400):
            await charge(
                conn, APRIL, 10**9 + number, model=f"=model-{number:03}", user_id=ALICE, api_key_id=KEY
            )
    report = await generate(reports)
    pieces = await download(reports, report.report_id, "REPORT_FORMAT_CSV")
    assert len(pieces) > 1
    assert max(len(piece.data) for piece in pieces) <= 65_536
    assert [bool(piece.filename) for piece in pieces] == [True] + [False] * (len(pieces) - 1)
    assert pieces[0].filename.endswith(".csv")
    assert pieces[0].content_type == "text/csv; charset=utf-8"
    table = b"".join(piece.data for piece in pieces).decode()
    found = list(csv.DictReader(io.StringIO(table, newline="")))
    assert len(found) == 400
    assert sum(Decimal(row["cost_usd"]) for row in found) == Decimal(report.total_nanos).scaleb(-9)
    assert (found[0]["user"], found[0]["api_key"], found[0]["masked_key"]) == (
        "alice@example.com",
        "ci",
        "bur_abcd…wxyz",
    )
    assert all(row["model"].startswith("'=") for row in found)


async def test_generating_and_deleting_are_audited_with_the_hash_and_downloading_is_not(
    reports: ChargebackRpc, unit_of_work: UnitOfWork
) -> None:
    """F140, F171, C16, C17: the hash survives the report."""
    report = await generate(reports)
    await download(reports, report.report_id)
    deletion = pb.ChargebackServiceDeleteReportRequest(report_id=report.report_id)
    assert (await refused(reports.delete_report(deletion, called_by(STRANGER)))).reason is Reason.NOT_FOUND
    await reports.delete_report(deletion, called_by(ADMIN))
    assert await listed(reports) == []
    assert (await refused(reports.delete_report(deletion, called_by(ADMIN)))).reason is Reason.NOT_FOUND
    assert (await refused(download(reports, report.report_id))).reason is Reason.NOT_FOUND
    events = await rows(unit_of_work, "SELECT action, details, actor FROM audit_events ORDER BY sequence")
    assert [event.action for event in events] == ["CHARGEBACK_REPORT_GENERATED", "CHARGEBACK_REPORT_DELETED"]
    assert {event.details["content_sha256"] for event in events} == {report.content_sha256}
