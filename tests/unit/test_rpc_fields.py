"""The checks that every handler makes of a request's fields."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bursar.v1.budget_pb2 import BudgetPeriod
from bursar.v1.metering_service_pb2 import CheckRequest
from bursar.v1.usage_service_pb2 import GetCostSummaryRequest
from bursar.v1.user_service_pb2 import CreateGrantRequest, SetBudgetRequest, UpdateUserRequest
from bursar_server.kit.errors import BursarError, Reason
from bursar_server.kit.periods import PeriodKind
from bursar_server.rpc import fields

SOME_ID = "0190a1b2-0000-7000-8000-00000000a11c"


def field_of(error: pytest.ExceptionInfo[BursarError]) -> str:
    assert error.value.code == 3
    assert error.value.message.startswith(error.value.field)
    return error.value.field


@pytest.mark.parametrize(
    ("usd", "nanos"), [(0.1, 100_000_000), (0.0, 0), (10, 10**10), (1e-9, 1), (1e9, 10**18)]
)
def test_money_is_exact(usd: float, nanos: int) -> None:
    assert fields.usd(SetBudgetRequest(limit_usd=usd), "limit_usd") == nanos


def test_absent_money_is_none_and_zero_is_zero() -> None:
    """C10: 0 is a real limit of nothing; absent is no limit."""
    assert fields.usd(SetBudgetRequest(), "limit_usd") is None
    assert fields.required_usd(SetBudgetRequest(limit_usd=0), "limit_usd") == 0
    with pytest.raises(BursarError) as missing:
        fields.required_usd(SetBudgetRequest(), "limit_usd", path="budget.")
    assert field_of(missing) == "budget.limit_usd"
    with pytest.raises(BursarError) as nothing:
        fields.required_usd(CreateGrantRequest(amount_usd=0), "amount_usd", positive=True)
    assert field_of(nothing) == "amount_usd"


def test_text_is_bounded() -> None:
    assert fields.text("ab", "name", max_length=2) == "ab"
    for value, required in (("abc", False), ("", True), (" \n", True)):
        with pytest.raises(BursarError) as refused:
            fields.text(value, "name", max_length=2, required=required)
        assert field_of(refused) == "name"
    assert fields.optional_text(UpdateUserRequest(), "display_name", max_length=5) is None
    assert fields.optional_text(UpdateUserRequest(display_name=""), "display_name", max_length=5) == ""


def test_whole_numbers_are_bounded() -> None:
    assert fields.integer(0, "n") == 0
    assert fields.optional_integer(UpdateUserRequest(), "rate_limit") is None
    assert fields.optional_integer(UpdateUserRequest(rate_limit=0), "rate_limit") == 0
    for value in (-1, 11):
        with pytest.raises(BursarError) as refused:
            fields.integer(value, "n", maximum=10)
        assert field_of(refused) == "n"


@pytest.mark.parametrize(
    ("given_as", "kept_as"),
    [
        ("alice@example.com", "alice@example.com"),
        ("Alice.B+x@EXAMPLE.Com", "Alice.B+x@example.com"),
        ("ci-bot@localhost", "ci-bot@localhost"),
        ("käthe@bücher.example", "käthe@bücher.example"),
    ],
)
def test_emails(given_as: str, kept_as: str) -> None:
    """F192: a user is an e-mail in every call."""
    assert fields.email(given_as, "email") == kept_as
    assert fields.user_ref(given_as, "user_id") == kept_as


@pytest.mark.parametrize(
    "value",
    ["", "alice", "@example.com", "alice@", "a b@c.d", "a@b@c", "a@b..c", "a@-b.c", "a@b c", "<a@b.c>", "a@b.c\n",
     "x" * 65 + "@b.c", "a@" + "b" * 64 + ".c", "a@" + ".".join(["b" * 60] * 5)],
)  # fmt: skip
def test_what_is_no_email(value: str) -> None:
    with pytest.raises(BursarError) as refused:
        fields.email(value, "email")
    assert field_of(refused) == "email"


def test_a_user_is_named_by_id_or_email() -> None:
    """C24."""
    assert fields.user_ref(SOME_ID, "user_id") == UUID(SOME_ID)
    assert fields.user_ref(SOME_ID.upper(), "user_id") == UUID(SOME_ID)
    assert fields.optional_user_ref("", "user_id") is None
    for value in ("", "alice", "0190a1b2"):
        with pytest.raises(BursarError):
            fields.user_ref(value, "user_id")


@pytest.mark.parametrize("value", ["", "x", SOME_ID.replace("-", ""), "{" + SOME_ID + "}", SOME_ID + " "])
def test_ids_have_one_form(value: str) -> None:
    with pytest.raises(BursarError):
        fields.uuid(value, "report_id")
    assert fields.optional_uuid("", "report_id") is None


def test_a_choice_is_our_own_enum() -> None:
    """C01."""
    assert fields.choice(2, BudgetPeriod, PeriodKind, "period") is PeriodKind.WEEKLY
    assert fields.choice(0, BudgetPeriod, PeriodKind, "period") is None
    assert fields.enum_number(BudgetPeriod, PeriodKind.TOTAL) == BudgetPeriod.BUDGET_PERIOD_TOTAL
    with pytest.raises(BursarError, match="one of DAILY, WEEKLY") as unknown:
        fields.choice(17, BudgetPeriod, PeriodKind, "budget.period")
    assert unknown.value.reason is Reason.UNKNOWN_ENUM_VALUE
    assert field_of(unknown) == "budget.period"


def test_tags_are_bounded() -> None:
    """F153: string to string, and of a size that can be indexed."""
    good = CheckRequest(tags={"k" * 64: "v" * 256, "empty": ""})
    assert fields.tags(good.tags) == {"k" * 64: "v" * 256, "empty": ""}
    for bad in ({"": "x"}, {"k" * 65: "x"}, {"k": "v" * 257}, {str(n): "x" for n in range(33)}):
        with pytest.raises(BursarError) as refused:
            fields.tags(CheckRequest(tags=bad).tags)
        assert field_of(refused) == "tags"


def summary(first: str | None, last: str | None) -> GetCostSummaryRequest:
    request = GetCostSummaryRequest()
    if first:
        request.from_time.FromJsonString(first)
    if last:
        request.to_time.FromJsonString(last)
    return request


def test_an_end_on_59_includes_its_second() -> None:
    """C20, F201: the whole of April."""
    april = fields.time_range(summary("2026-04-01T00:00:00Z", "2026-04-30T23:59:59Z"))
    assert april == fields.TimeRange(datetime(2026, 4, 1, tzinfo=UTC), datetime(2026, 5, 1, tzinfo=UTC))
    minute = fields.time_range(summary(None, "2026-04-30T10:20:59Z"))
    assert minute.end == datetime(2026, 4, 30, 10, 21, tzinfo=UTC)


@pytest.mark.parametrize(
    "end", ["2026-04-30T23:59:58Z", "2026-04-30T23:59:59.5Z", "2026-04-30T23:59:59.000000001Z"]
)
def test_any_other_end_is_where_the_range_ends(end: str) -> None:
    """C20."""
    found = fields.time_range(summary("2026-04-01T00:00:00Z", end)).end
    assert found is not None
    assert found < datetime(2026, 5, 1, tzinfo=UTC)


def test_a_range_goes_forward() -> None:
    assert fields.time_range(summary(None, None)) == fields.TimeRange(None, None)
    for last in ("2026-04-01T00:00:00Z", "2026-03-01T00:00:00Z"):
        with pytest.raises(BursarError) as refused:
            fields.time_range(summary("2026-04-01T00:00:00Z", last))
        assert field_of(refused) == "to_time"
    assert fields.time_range(summary(None, "9999-12-31T23:59:59Z")).end == datetime(
        9999, 12, 31, 23, 59, 59, tzinfo=UTC
    )


@given(st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC)))
def test_instants_survive(value: datetime) -> None:
    """S23: UTC, to the microsecond."""
    request = CreateGrantRequest(starts_at=fields.timestamp_of(value))
    assert fields.instant(request, "starts_at") == value
    assert fields.required_instant(request, "starts_at").tzinfo is UTC


def test_an_instant_is_cut_to_microseconds() -> None:
    request = CreateGrantRequest()
    assert fields.instant(request, "starts_at") is None
    request.starts_at.FromJsonString("2026-05-01T00:00:00.123456999Z")
    expected = datetime(2026, 5, 1, tzinfo=UTC) + timedelta(microseconds=123456)
    assert fields.instant(request, "starts_at") == expected
    for seconds, nanos in ((-1, 0), (253402300800, 0), (0, -1), (0, 10**9)):
        request.starts_at.seconds, request.starts_at.nanos = seconds, nanos
        with pytest.raises(BursarError) as refused:
            fields.instant(request, "starts_at", path="grant.")
        assert field_of(refused) == "grant.starts_at"
