"""The strict JSON reader: what proto3 JSON parsers let pass by silence is refused here, naming the field."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from bursar.v1 import (
    budget_pb2,
    budget_service_pb2,
    metering_service_pb2,
    tenant_service_pb2,
    usage_service_pb2,
)
from bursar.v1.budget_pb2 import BudgetPeriod, Enforcement
from bursar.v1.user_service_pb2 import CreateGrantRequest, SetBudgetRequest, UpdateUserRequest
from bursar_server.kit.errors import BursarError, Reason
from bursar_server.rpc.codec import json_of
from bursar_server.rpc.strict_json import parse_json


def read(kind: type[Message], text: str | dict[str, Any]) -> Any:
    return parse_json((text if isinstance(text, str) else json.dumps(text)).encode(), kind)


def refused(kind: type[Message], text: str | dict[str, Any]) -> BursarError:
    with pytest.raises(BursarError) as caught:
        read(kind, text)
    assert caught.value.code == 3
    return caught.value


def test_both_spellings_of_names_are_read() -> None:
    """F189: clients rely on snake_case and on camelCase."""
    snake = read(SetBudgetRequest, {"user_id": "alice@example.com", "limit_usd": 10.0})
    camel = read(SetBudgetRequest, {"userId": "alice@example.com", "limitUsd": 10})
    assert snake == camel
    assert (snake.user_id, snake.limit_usd) == ("alice@example.com", 10.0)


@pytest.mark.parametrize(
    "name", ["DAY", "day", "DAILY", "daily", "Daily", "BUDGET_PERIOD_DAILY", "budget_period_daily", 1]
)
def test_a_period_has_many_names(name: object) -> None:
    """C01: F017 and F018 spell periods differently; all of them, in any case, and the proto name are read."""
    assert read(SetBudgetRequest, {"period": name}).period == BudgetPeriod.BUDGET_PERIOD_DAILY


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("week", "WEEKLY"),
        ("MONTH", "MONTHLY"),
        ("Quarter", "QUARTERLY"),
        ("year", "YEARLY"),
        ("total", "TOTAL"),
    ],
)
def test_every_period_has_its_noun(name: str, value: str) -> None:
    """C01."""
    assert read(SetBudgetRequest, {"period": name}).period == BudgetPeriod.Value(f"BUDGET_PERIOD_{value}")


def test_other_enums_are_read_without_prefix_too() -> None:
    assert read(SetBudgetRequest, {"enforcement": "soft"}).enforcement == Enforcement.ENFORCEMENT_SOFT
    summary = read(usage_service_pb2.GetCostSummaryRequest, {"group_by": ["user", "COST_DIMENSION_MODEL"]})
    assert len(summary.group_by) == 2


@pytest.mark.parametrize("value", ["HARDD", "", "DAY", "ENFORCEMENT", 3, -1, 99])
def test_an_unknown_enum_value_is_never_a_default(value: object) -> None:
    error = refused(SetBudgetRequest, {"enforcement": value})
    assert (error.reason, error.field) == (Reason.UNKNOWN_ENUM_VALUE, "enforcement")
    assert "one of HARD, SOFT" in error.message


def test_an_unknown_field_is_named_with_what_was_meant() -> None:
    error = refused(SetBudgetRequest, {"user_id": "a@b", "enforcment": "HARD"})
    assert (error.reason, error.field) == (Reason.UNKNOWN_FIELD, "enforcment")
    assert "did you mean enforcement?" in error.message


def test_the_path_of_a_nested_field_is_told() -> None:
    kind = budget_service_pb2.CreateBudgetRequest
    assert refused(kind, {"budget": {"scope": {"user_id": 7}}}).field == "budget.scope.user_id"
    assert (
        refused(kind, {"budget": {"alert_thresholds_pct": [80, "x"]}}).field
        == "budget.alert_thresholds_pct[1]"
    )
    assert refused(kind, {"budget": {"scop": {}}}).field == "budget.scop"
    items = {"items": [{"model": "a"}, {"usage": {"input_tokens": 1.5}}]}
    assert refused(metering_service_pb2.DeductRequest, items).field == "items[1].usage.input_tokens"
    tags = {"tags": {"team": 5}}
    assert refused(metering_service_pb2.CheckRequest, tags).field == "tags[team]"


@pytest.mark.parametrize(
    "text",
    [
        '{"user_id":"a","user_id":"b"}',
        '{"user_id":"a","userId":"a"}',
        '{"userId":null,"user_id":"a"}',
    ],
)
def test_a_field_given_twice_is_refused(text: str) -> None:
    assert refused(SetBudgetRequest, text).field == "user_id"


def test_a_tag_given_twice_is_refused() -> None:
    text = '{"tags":{"team":"core","team":"data"}}'
    assert refused(metering_service_pb2.CheckRequest, text).field == "tags[team]"


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("NaN", "finite"),
        ("Infinity", "finite"),
        ('"NaN"', "finite"),
        ('"-Infinity"', "finite"),
        ("1e999", "finite"),
        ("1" + "0" * 400, "finite"),
        ('"ten"', "number"),
        ('"0x10"', "number"),
        ("true", "number"),
        ("[1]", "number"),
    ],
)
def test_a_number_that_is_none_is_refused(value: str, problem: str) -> None:
    error = refused(SetBudgetRequest, f'{{"limit_usd":{value}}}')
    assert (error.reason, error.field) == (Reason.INVALID_FIELD, "limit_usd")
    assert problem in error.message


@pytest.mark.parametrize(
    "value", [1.5, "1.5", "1e3", "١", True, 2**31, -(2**31) - 1, "99999999999999999999999"]
)
def test_a_whole_number_out_of_shape_is_refused(value: object) -> None:
    assert refused(UpdateUserRequest, {"rate_limit": value}).field == "rate_limit"


@pytest.mark.parametrize(("value", "number"), [(120, 120), ("120", 120), (1e2, 100), (0, 0), ("-5", -5)])
def test_whole_numbers_come_as_numbers_or_text(value: object, number: int) -> None:
    assert read(UpdateUserRequest, {"rate_limit": value}).rate_limit == number


def test_sixty_four_bits_are_kept_exactly() -> None:
    kind = budget_service_pb2.CreateBudgetRequest
    assert read(kind, {"budget": {"limit_tokens": str(2**63 - 1)}}).budget.limit_tokens == 2**63 - 1
    assert read(kind, {"budget": {"limit_tokens": 2**53 + 1}}).budget.limit_tokens == 2**53 + 1
    assert refused(kind, {"budget": {"limit_tokens": 2**63}}).field == "budget.limit_tokens"


@pytest.mark.parametrize(
    "text", ['{"user_id":"a\\u0000b"}', '{"user_id":"\\ud83d"}', '{"user_id":"x\\udc00"}']
)
def test_nul_and_half_a_character_are_refused(text: str) -> None:
    assert refused(SetBudgetRequest, text).field == "user_id"


def test_a_megabyte_of_name_is_refused() -> None:
    error = refused(tenant_service_pb2.CreateTenantRequest, {"name": "x" * 1_000_000})
    assert error.field == "name"
    assert len(error.message) < 200


@pytest.mark.parametrize(
    "text",
    [
        "2026-05-01",
        "2026-05-01T00:00",
        "2026-05-01T00:00:00",
        "2026-05-01 00:00:00Z",
        "2026-02-30T00:00:00Z",
        "2026-05-01T24:00:00Z",
        "2026-05-01T00:00:60Z",
        "2026-05-01T00:00:00.1234567890Z",
        "0000-01-01T00:00:00Z",
        "now",
        1777593600,
    ],
)
def test_anything_but_a_full_instant_is_refused(text: object) -> None:
    """F188: a bare date is rejected."""
    error = refused(CreateGrantRequest, {"starts_at": text})
    assert (error.reason, error.field) == (Reason.INVALID_FIELD, "starts_at")


def test_instants_are_read_to_the_nanosecond() -> None:
    request = read(CreateGrantRequest, {"starts_at": "2026-05-01T02:00:00.123456789+02:00"})
    assert request.starts_at.ToJsonString() == "2026-05-01T00:00:00.123456789Z"
    early = read(CreateGrantRequest, {"starts_at": "0001-01-01T00:00:00+14:00"})
    assert early.starts_at.seconds == -62135596800 - 14 * 3600


def test_ranges_are_called_from_and_to() -> None:
    kind = usage_service_pb2.GetCostSummaryRequest
    request = read(kind, {"from": "2026-04-01T00:00:00Z", "to_time": "2026-05-01T00:00:00Z"})
    assert request.HasField("from_time")
    assert request.HasField("to_time")
    assert refused(kind, {"from": "2026-04-01"}).field == "from_time"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "empty"),
        (b"{", "not valid JSON"),
        (b"[]", "object"),
        (b"null", "object"),
        (b'"x"', "object"),
        (b"\xff\xfe{}", "not valid JSON"),
        ("\ufeff{}".encode(), "not valid JSON"),
        (b"[" * 100_000, "nested"),
        (b'{"limit_usd":' + b"1" * 5000 + b"}", "not valid JSON"),
    ],
)
def test_a_body_that_is_no_object_is_malformed(text: bytes, reason: str) -> None:
    with pytest.raises(BursarError) as caught:
        parse_json(text, SetBudgetRequest)
    assert caught.value.reason is Reason.MALFORMED_REQUEST
    assert reason in caught.value.message


@pytest.mark.parametrize("value", [[], "x", 3, True])
def test_a_message_must_be_an_object(value: object) -> None:
    assert refused(budget_service_pb2.CreateBudgetRequest, {"budget": value}).field == "budget"


def test_null_leaves_a_field_absent_and_is_no_element() -> None:
    request = read(SetBudgetRequest, {"user_id": None, "limit_usd": None, "period": None})
    assert request == SetBudgetRequest()
    kind = tenant_service_pb2.SetGroupMembersRequest
    assert refused(kind, {"user_ids": ["a", None]}).field == "user_ids[1]"


def test_an_empty_message_is_there() -> None:
    assert read(budget_service_pb2.CreateBudgetRequest, {"budget": {}}).HasField("budget")


_budgets = st.builds(
    budget_pb2.Budget,
    name=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40),
    period=st.sampled_from(list(BudgetPeriod.values())),
    anchor_day=st.integers(-(2**31), 2**31 - 1),
    limit_usd=st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False)),
    limit_tokens=st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)),
    alert_thresholds_pct=st.lists(st.integers(0, 1000), max_size=4),
    shadow=st.one_of(st.none(), st.booleans()),
    owners=st.lists(st.sampled_from(["a@b", "ä@ö"]), max_size=3),
    scope=st.builds(budget_pb2.BudgetScope, tag_key=st.sampled_from(["", "team"])),
)


@given(_budgets)
def test_what_is_written_is_read_back(budget: budget_pb2.Budget) -> None:
    request = budget_service_pb2.CreateBudgetRequest(budget=budget)
    assert parse_json(json_of(request), type(request)) == request
    # And what other proto3 JSON libraries write.
    for text in (
        json_format.MessageToJson(request),
        json_format.MessageToJson(request, preserving_proto_field_name=True, use_integers_for_enums=True),
    ):
        assert parse_json(text.encode(), type(request)) == request


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=8),
        lambda x: (
            st.lists(x) | st.dictionaries(st.sampled_from(["budget", "scope", "name", "limit_usd", "x"]), x)
        ),
    )
)
def test_nothing_but_our_own_errors_comes_out(value: object) -> None:
    codes = {3}
    try:
        parse_json(json.dumps(value).encode(), budget_service_pb2.CreateBudgetRequest)
    except BursarError as error:
        codes.add(error.code)
    assert codes == {3}
