"""What a report says and how it is written."""

import csv
import io
import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bursar_server.chargeback.model import EarlierPeriods, Figures, KeyName, Names, ReportHead
from bursar_server.chargeback.rules import (
    MAX_PIECE_BYTES,
    content_of,
    csv_of,
    difference,
    filename_of,
    month_start,
    months_stated,
    pieces_of,
    reported_range,
)
from bursar_server.kit.errors import BursarError
from bursar_server.usage.model import Dimension, Group, Totals

TENANT, OTHER = UUID(int=1), UUID(int=2)
ALICE, KEY = UUID(int=3), UUID(int=4)
REPORT = UUID(int=5)
APRIL, MAY = datetime(2026, 4, 1, tzinfo=UTC), datetime(2026, 5, 1, tzinfo=UTC)
CUTOFF = datetime(2026, 5, 1, 0, 10, 3, 500_000, tzinfo=UTC)
NAMES = Names(
    {str(TENANT): "Acme, Inc."},
    {str(KEY): KeyName("ci", "bur_abcd…wxyz", ALICE)},
    {str(ALICE): "alice@example.com"},
)


def line(nanos: int, *, user: str = "", key: str = "", provider: str = "openai", model: str = "m") -> Group:
    return Group(
        {
            Dimension.TENANT: str(TENANT),
            Dimension.USER: user,
            Dimension.API_KEY: key,
            Dimension.PROVIDER: provider,
            Dimension.MODEL: model,
        },
        Totals(requests=1, input_tokens=100, output_tokens=10, output_cost_nanos=nanos, cost_nanos=nanos),
    )


def day(text: str, nanos: int) -> Group:
    return Group({Dimension.DAY: text}, Totals(cost_nanos=nanos))


def month(text: str, nanos: int, requests: int = 0) -> Group:
    key = {Dimension.TENANT: str(TENANT), Dimension.MONTH: text}
    return Group(key, Totals(requests=requests, cost_nanos=nanos))


def figures(*items: Group, earlier: EarlierPeriods | None = None) -> Figures:
    total = sum(item.totals.cost_nanos for item in items)
    return Figures(
        items, (day("2026-04-02", total),), datetime(2025, 3, 1, tzinfo=UTC), (month("2026-04", total),), NAMES, True, earlier
    )  # fmt: skip


def content(what: Figures) -> bytes:
    return content_of(TENANT, "Acme, Inc.", REPORT, (APRIL, MAY), CUTOFF, "finance", what)


def cells(data: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(data.decode(), newline="")))


# -- the range --------------------------------------------------------------------------------------


def test_by_default_the_previous_calendar_month_is_reported_on() -> None:
    """F129."""
    assert reported_range(None, None, datetime(2026, 5, 1, tzinfo=UTC)) == (APRIL, MAY)
    january = datetime(2026, 1, 31, 23, 59, tzinfo=UTC)
    assert reported_range(None, None, january)[0] == datetime(2025, 12, 1, tzinfo=UTC)


@pytest.mark.parametrize(("start", "end", "field"), [(APRIL, None, "to_time"), (None, MAY, "from_time")])
def test_half_a_range_is_refused_by_the_name_of_the_other_half(
    start: datetime | None, end: datetime | None, field: str
) -> None:
    with pytest.raises(BursarError) as caught:
        reported_range(start, end, MAY)
    assert caught.value.field == field


def test_months_are_counted_over_the_ends_of_years() -> None:
    assert month_start(APRIL, -14) == datetime(2025, 2, 1, tzinfo=UTC)
    assert month_start(datetime(1, 2, 3, tzinfo=UTC), -14) == datetime(1, 1, 1, tzinfo=UTC)


# -- the content ------------------------------------------------------------------------------------


def test_the_sections_come_in_order_and_say_who_what_and_how_much() -> None:
    """F132, F133, F137: tenant, period, keys by name and mask, models, providers, days, total."""
    report = json.loads(
        content(
            figures(
                line(2_500_000_001, user=str(ALICE), key=str(KEY)), line(1, provider="anthropic", model="c")
            )
        )
    )
    assert list(report) == [
        "format", "report_id", "tenant_id", "tenant_name", "from", "to", "cutoff_time", "generated_time", "generated_by",
        "currency", "proved_against_ledger", "totals", "tenants", "api_keys", "models", "providers", "days", "amount_due",
        "line_items", "months_to_date",
    ]  # fmt: skip
    assert (report["tenant_name"], report["from"], report["to"]) == (
        "Acme, Inc.",
        "2026-04-01T00:00:00Z",
        "2026-05-01T00:00:00Z",
    )
    assert report["cutoff_time"] == "2026-05-01T00:10:03.5Z"
    assert (report["totals"]["cost_nanos"], report["totals"]["cost_usd"]) == (2_500_000_002, "2.500000002")
    first, second = report["api_keys"]
    assert (first["api_key_name"], first["masked_key"], first["user"]) == (
        "ci",
        "bur_abcd…wxyz",
        "alice@example.com",
    )
    assert (second["api_key_id"], second["masked_key"], second["cost_nanos"]) == ("", "", 1)
    assert [model["model"] for model in report["models"]] == ["m", "c"]
    assert [provider["provider"] for provider in report["providers"]] == ["openai", "anthropic"]
    assert report["amount_due"]["cost_nanos"] == 2_500_000_002


def test_the_same_figures_make_the_same_bytes() -> None:
    """F134: what the hash is of."""
    assert content(figures(line(1), line(2, model="n"))) == content(figures(line(1), line(2, model="n")))
    assert "Acme" in content(figures()).decode()


amounts = st.lists(
    st.tuples(st.integers(0, 2**60), st.sampled_from("abc"), st.sampled_from(["openai", "x"])), max_size=8,
    unique_by=lambda each: each[1:],
)  # fmt: skip


@given(amounts)
def test_every_section_and_the_csv_sum_to_the_total_to_the_nano(
    amounts: list[tuple[int, str, str]],
) -> None:
    """F134, F138."""
    data = content(figures(*(line(nanos, model=model, provider=named) for nanos, model, named in amounts)))
    report: dict[str, Any] = json.loads(data)
    total = sum(nanos for nanos, _, _ in amounts)
    for section in ("tenants", "api_keys", "models", "providers", "days", "line_items"):
        assert sum(row["cost_nanos"] for row in report[section]) == total
    assert sum((Decimal(row["cost_usd"]) for row in cells(csv_of(data))), Decimal()) == Decimal(total).scaleb(
        -9
    )


# -- earlier periods --------------------------------------------------------------------------------


def test_what_was_posted_later_is_the_difference_to_what_was_stated() -> None:
    """S24: corrections, calls that came late, and calls that were taken back."""
    stated = [month("2026-02", 50), month("2026-03", 100, requests=4)]
    now = [month("2026-02", 50), month("2026-03", 70, requests=5), month("2026-04", 9, requests=1)]
    assert difference(now, stated) == (month("2026-03", -30, requests=1), month("2026-04", 9, requests=1))
    assert difference([], [month("2026-03", 5)]) == (month("2026-03", -5),)


def test_a_report_remembers_its_months_for_the_next_one() -> None:
    """S24."""
    since, months = months_stated(content(figures(line(7))))
    assert since == datetime(2025, 3, 1, tzinfo=UTC)
    assert months == (month("2026-04", 7),)


def test_earlier_periods_are_a_section_of_their_own_and_part_of_the_amount_due() -> None:
    """S24: the total stays the period's."""
    earlier = EarlierPeriods(
        UUID(int=9), datetime(2026, 3, 31, 12, tzinfo=UTC), APRIL, (month("2026-03", -30, requests=1),)
    )
    data = content(figures(line(100), earlier=earlier))
    report = json.loads(data)
    assert report["totals"]["cost_nanos"] == 100
    assert report["earlier_periods"]["lines"][0]["cost_usd"] == "-0.00000003"
    assert report["amount_due"] == {"cost_usd": "0.00000007", "cost_nanos": 70}
    usage, late = cells(csv_of(data))
    assert (usage["section"], late["section"]) == ("usage", "earlier_periods")
    assert (late["from"], late["to"]) == ("2026-03-01T00:00:00Z", "2026-03-31T12:00:00Z")
    assert (late["cost_usd"], late["tenant"]) == ("-0.00000003", "Acme, Inc.")


# -- files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@cf/meta", "\tx", "\rx"])
def test_a_text_that_a_spreadsheet_would_run_gets_an_apostrophe(name: str) -> None:
    """F138."""
    [row] = cells(csv_of(content(figures(line(1, model=name)))))
    assert row["model"] == f"'{name}"


def test_a_csv_is_what_rfc_4180_says() -> None:
    """F138: CRLF, quotes where needed, a header, UTF-8."""
    data = csv_of(content(figures(line(1, key=str(KEY), model='a "b", c'))))
    header, row, end = data.decode().split("\r\n")
    assert header.startswith("section,from,to,tenant_id,tenant,")
    assert '"Acme, Inc."' in row
    assert '"a ""b"", c"' in row
    assert "bur_abcd…wxyz" in row
    assert end == ""


def test_a_file_is_called_by_tenant_and_period_in_plain_letters() -> None:
    head = ReportHead(TENANT, REPORT, '../Ünï "Acme"\r\n', APRIL, MAY, CUTOFF, CUTOFF, "x", 0, 0, "")
    assert filename_of(head, "csv") == "chargeback-n-acme-2026-04-01-to-2026-04-30.csv"


@given(st.binary(max_size=3 * 1024), st.integers(0, 70))
def test_pieces_are_the_whole_and_none_is_too_large(data: bytes, times: int) -> None:
    pieces = list(pieces_of(data * times))
    assert b"".join(pieces) == data * times
    assert max(map(len, pieces)) <= MAX_PIECE_BYTES
    assert len(pieces) >= 1
