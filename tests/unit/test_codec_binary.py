"""The binary reader of both doors: as strict as JSON, but for fields that newer clients may send."""

from __future__ import annotations

import pytest
from google.protobuf.message import Message

from bursar.v1.budget_service_pb2 import CreateBudgetRequest, ListBudgetsRequest
from bursar.v1.metering_service_pb2 import BatchDeductRequest, CheckRequest, DeductRequest
from bursar.v1.tenant_service_pb2 import CreateTenantRequest, SetGroupMembersRequest
from bursar.v1.usage_service_pb2 import GetCostSummaryRequest
from bursar.v1.user_service_pb2 import SetBudgetRequest
from bursar_server.kit.errors import BursarError, Reason
from bursar_server.rpc.codec import BinaryCodec, JsonCodec, parse_binary


def refused(message: Message) -> BursarError:
    with pytest.raises(BursarError) as caught:
        parse_binary(message.SerializeToString(), type(message))
    assert caught.value.code == 3
    return caught.value


def test_what_is_written_is_read_back() -> None:
    request = CheckRequest(request_id="x", model="gpt-4o", tags={"team": "core"}, max_output_tokens=0)
    assert BinaryCodec().decode(BinaryCodec().encode(request), CheckRequest) == request
    assert BinaryCodec().decode(bytearray(), CheckRequest) == CheckRequest()


def test_fields_of_a_newer_client_are_ignored() -> None:
    newer = b"\x0a\x01x" + b"\xfa\x7f\x03new"  # field 2047
    assert parse_binary(newer, SetBudgetRequest).user_id == "x"


def test_nul_is_refused_wherever_it_stands() -> None:
    assert refused(SetBudgetRequest(user_id="a\0b")).field == "user_id"
    assert refused(SetGroupMembersRequest(user_ids=["a", "b\0"])).field == "user_ids[1]"
    assert refused(CheckRequest(tags={"team": "\0"})).field == "tags[team]"
    assert refused(CheckRequest(tags={"\0": "x"})).field == "tags[\\x00]"
    nested = CreateBudgetRequest()
    nested.budget.scope.user_id = "\0"
    assert refused(nested).field == "budget.scope.user_id"
    deduct = BatchDeductRequest(deducts=[DeductRequest(), DeductRequest()])
    deduct.deducts[1].items.add(model="\0")
    assert refused(deduct).field == "deducts[1].items[0].model"


def test_a_megabyte_of_name_is_refused() -> None:
    assert refused(CreateTenantRequest(name="x" * 1_000_000)).field == "name"


def test_a_text_is_measured_by_itself_not_by_what_it_comes_with() -> None:
    many = BatchDeductRequest(deducts=[DeductRequest(request_id="x" * 8192, session_id="y")] * 50)
    assert len(parse_binary(many.SerializeToString(), BatchDeductRequest).deducts) == 50
    many.deducts[49].items.add(model="x" * 8193)
    assert refused(many).field == "deducts[49].items[0].model"
    tagged = BatchDeductRequest(deducts=[DeductRequest(tags={"team": "x" * 8193})])
    assert refused(tagged).field == "deducts[0].tags[team]"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_not_finite_is_refused(value: float) -> None:
    assert refused(SetBudgetRequest(limit_usd=value)).field == "limit_usd"
    deep = BatchDeductRequest(deducts=[DeductRequest(provider_cost_usd=value)])
    assert refused(deep).field == "deducts[0].provider_cost_usd"


def test_an_unknown_enum_number_is_refused() -> None:
    error = refused(SetBudgetRequest(period=99))  # type: ignore[arg-type]
    assert (error.reason, error.field) == (Reason.UNKNOWN_ENUM_VALUE, "period")
    assert refused(GetCostSummaryRequest(group_by=[1, 77])).field == "group_by[1]"  # type: ignore[list-item]
    nested = CreateBudgetRequest()
    nested.budget.enforcement = 12  # type: ignore[assignment]
    assert refused(nested).field == "budget.enforcement"


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\x05ab", b"\x0a\x02\xff\xfe"])
def test_other_bytes_are_malformed(data: bytes) -> None:
    """The last is a text that is not UTF-8, which is how half a surrogate pair looks in protobuf."""
    with pytest.raises(BursarError) as caught:
        parse_binary(data, ListBudgetsRequest)
    assert caught.value.reason is Reason.MALFORMED_REQUEST
    assert "bursar.v1.ListBudgetsRequest" in caught.value.message


def test_json_answers_are_compact_and_in_standard_names() -> None:
    data = JsonCodec().encode(SetBudgetRequest(user_id="ä", limit_usd=0.1, period=1))  # type: ignore[arg-type]
    assert data.decode() == '{"userId":"ä","limitUsd":0.1,"period":"BUDGET_PERIOD_DAILY"}'
    zero = JsonCodec().encode(SetBudgetRequest(limit_usd=0))
    assert zero in (b'{"limitUsd":0}', b'{"limitUsd":0.0}')
