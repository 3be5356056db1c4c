"""One error table for both doors: the same code, the same ErrorInfo, the same field, and nothing internal."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from google.protobuf.message import Message

from bursar.v1.chargeback_service_pb2 import ChargebackServiceDownloadReportRequest
from bursar.v1.user_service_pb2 import CreateGrantRequest, GetMyBudgetRequest, SetBudgetRequest
from support.door_clients import Failure, call_grpc, post, post_binary, request
from support.doors import Doors


@pytest.fixture(scope="module")
def doors() -> Iterator[Doors]:
    with Doors() as running:
        yield running


def both(doors: Doors, rpc: str, message: Message, *, token: str = "platform-admin-token") -> Failure:
    """Send a message to both doors; return the failure, which has to be the same but for the request's id."""
    over_grpc = call_grpc(doors.grpc_address, rpc, message, token=token).failure
    over_connect = post_binary(doors.url, rpc, message, token=token).failure
    assert over_grpc is not None
    if over_grpc.reason != "INTERNAL":
        assert over_grpc == over_connect
    assert over_grpc.code == over_connect.code
    return over_connect


@pytest.mark.parametrize(
    ("user_id", "token"),
    [
        ("alice@example.com", "platform-admin-token"),
        ("missing@example.com", "platform-admin-token"),
        ("Grüße", "platform-admin-token"),
        ("a\0b", "platform-admin-token"),
        ("x" * 5_000_000, "platform-admin-token"),
        ("alice@example.com", "sidecar-token"),
        ("alice@example.com", "nobody"),
    ],
)
def test_the_short_way_and_the_long_way_say_the_same(doors: Doors, user_id: str, token: str) -> None:
    """Plain binary calls do not pass through connectrpc, those that accept packed answers do."""
    data = SetBudgetRequest(user_id=user_id, limit_usd=1).SerializeToString()
    headers = {"content-type": "application/proto", "authorization": f"Bearer {token}", "x-request-id": "r"}
    path = "/bursar.v1.UserService/SetBudget"
    short = request(doors.url, path, data, headers=headers)
    long = request(doors.url, path, data, headers=headers | {"accept-encoding": "identity, br"})
    assert (short.status, short.body if short.status == 200 else short.json) == (
        long.status,
        long.body if long.status == 200 else long.json,
    )
    assert {name: short.headers[name] for name in ("content-type", "x-request-id")} == {
        name: long.headers[name] for name in ("content-type", "x-request-id")
    }
    assert "content-length" in short.headers


def test_not_found(doors: Doors) -> None:
    failure = both(
        doors, "UserService/SetBudget", SetBudgetRequest(user_id="missing@example.com", limit_usd=1)
    )
    assert (failure.code, failure.reason, failure.domain) == (5, "NOT_FOUND", "bursar.dev")


def test_a_wrong_field_is_named(doors: Doors) -> None:
    failure = both(doors, "UserService/SetBudget", SetBudgetRequest(user_id="alice@example.com"))
    assert failure == Failure(
        code=3,
        message="limit_usd: is needed",
        reason="INVALID_FIELD",
        domain="bursar.dev",
        metadata={"field": "limit_usd"},
        violations=(("limit_usd", "is needed"),),
    )


@pytest.mark.parametrize(
    "limit",
    [float("nan"), float("inf"), float("-inf"), -0.01, -1e-9, 0.1234567891, 1e-10, 1e12, 5e-324],
)
def test_an_amount_that_is_none_is_refused(doors: Doors, limit: float) -> None:
    request = SetBudgetRequest(user_id="alice@example.com", limit_usd=limit)
    failure = both(doors, "UserService/SetBudget", request)
    assert (failure.code, failure.fields) == (3, ("limit_usd",))


@pytest.mark.parametrize("text", ["x" * 1_000_000, "a\0b"])
def test_a_text_that_cannot_be_is_refused(doors: Doors, text: str) -> None:
    request = SetBudgetRequest(user_id="alice@example.com", limit_usd=1, reason=text)
    assert both(doors, "UserService/SetBudget", request).fields == ("reason",)


def test_an_unknown_enum_number_is_refused(doors: Doors) -> None:
    request = SetBudgetRequest(user_id="alice@example.com", limit_usd=1, period=42)  # type: ignore[arg-type]
    failure = both(doors, "UserService/SetBudget", request)
    assert (failure.code, failure.reason, failure.fields) == (3, "UNKNOWN_ENUM_VALUE", ("period",))


def test_an_instant_out_of_range_is_refused(doors: Doors) -> None:
    request = CreateGrantRequest()
    request.starts_at.seconds = -1
    assert both(doors, "UserService/CreateGrant", request).fields == ("starts_at",)
    request.starts_at.seconds = 253402300800
    assert both(doors, "UserService/CreateGrant", request).fields == ("starts_at",)


def test_refused_requests_never_reach_the_service(doors: Doors) -> None:
    before = list(doors.users.seen)
    for body in (
        {"user_id": "nobody@example.com", "limit_used": 1},
        {"user_id": "a@b", "enforcement": "HARDD"},
    ):
        assert post(doors.url, "UserService/SetBudget", body).status == 400
    assert doors.users.seen == before


@pytest.mark.parametrize(
    ("body", "reason", "field"),
    [
        ({"user_id": "a@b", "limit_usd": 1, "enforcment": "HARD"}, "UNKNOWN_FIELD", "enforcment"),
        ({"user_id": "a@b", "limit_usd": 1, "enforcement": "HARDD"}, "UNKNOWN_ENUM_VALUE", "enforcement"),
        ({"user_id": "a@b", "limit_usd": "NaN"}, "INVALID_FIELD", "limit_usd"),
        ('{"user_id":"a@b","limit_usd":-Infinity}', "INVALID_FIELD", "limit_usd"),
        ('{"user_id":"a@b","userId":"a@b","limit_usd":1}', "INVALID_FIELD", "user_id"),
        ('{"user_id":"\\ud800"}', "INVALID_FIELD", "user_id"),
        ("{", "MALFORMED_REQUEST", None),
        (b"", "MALFORMED_REQUEST", None),
        (b"\xff", "MALFORMED_REQUEST", None),
    ],
)
def test_json_errors_carry_the_same_details(
    doors: Doors, body: object, reason: str, field: str | None
) -> None:
    """Decoding fails before any interceptor sees a message, and still looks like every other error."""
    reply = post(doors.url, "UserService/SetBudget", body)
    failure = reply.failure
    assert (reply.status, failure.code, failure.reason, failure.domain) == (400, 3, reason, "bursar.dev")
    assert failure.fields == ((field,) if field else ())


def test_a_bare_date_is_http_400(doors: Doors) -> None:
    """F188."""
    reply = post(doors.url, "UserService/CreateGrant", {"starts_at": "2026-05-01"})
    assert (reply.status, reply.failure.fields) == (400, ("starts_at",))
    fine = post(doors.url, "UserService/CreateGrant", {"starts_at": "2026-05-01T00:00:00.5+02:00"})
    assert fine.json["grant"]["startsAt"] == "2026-04-30T22:00:00.500Z"


def test_a_defect_shows_an_id_and_nothing_else(doors: Doors, caplog: pytest.LogCaptureFixture) -> None:
    request = SetBudgetRequest(user_id="broken@example.com", limit_usd=1)
    with caplog.at_level(logging.ERROR):
        failure = both(doors, "UserService/SetBudget", request)
    assert (failure.code, failure.reason) == (13, "INTERNAL")
    assert "secret text" not in str(failure)
    assert failure.metadata["request_id"] in failure.message
    # Once for each door, with the traceback, under the id that the caller has.
    records = [record for record in caplog.records if record.exc_info]
    assert len(records) == 2
    assert failure.metadata["request_id"] in [vars(record)["request_id"] for record in records]
    assert all("secret text" in str(record.exc_info[1]) for record in records if record.exc_info)


def test_a_defect_while_authenticating_is_scrubbed_too(doors: Doors) -> None:
    failure = both(doors, "UserService/SetBudget", SetBudgetRequest(), token="breaks")
    assert (failure.code, failure.reason) == (13, "INTERNAL")
    assert "secret text" not in str(failure)


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Bearer ", "Basic YTpi", "Bearer " + "x" * 600, "Bearer nobody"]
)
def test_without_a_good_token(doors: Doors, authorization: str | None) -> None:
    headers = {} if authorization is None else {"authorization": authorization}
    reply = post(doors.url, "UserService/SetBudget", {}, token=None, headers=headers)
    assert (reply.status, reply.failure.code, reply.failure.reason) == (401, 16, "UNAUTHENTICATED")
    metadata = tuple(headers.items())
    over_grpc = call_grpc(doors.grpc_address, "UserService/SetBudget", b"", token=None, metadata=metadata)
    assert over_grpc.failure == reply.failure


def test_the_scheme_is_written_in_any_case(doors: Doors) -> None:
    headers = {"authorization": "bearer  alice"}
    assert post(doors.url, "UserService/GetMyBudget", {}, token=None, headers=headers).status == 200


def test_a_stranger_is_refused_before_its_body_is_read(doors: Doors) -> None:
    reply = post(doors.url, "UserService/SetBudget", b"no json at all", token="nobody")
    assert reply.status == 401


def test_with_the_wrong_role(doors: Doors) -> None:
    """C11."""
    failure = both(doors, "UserService/SetBudget", SetBudgetRequest(), token="sidecar-token")
    assert (failure.code, failure.reason) == (7, "PERMISSION_DENIED")
    assert "tenant_developer" in failure.message
    assert "this token is sidecar" in failure.message
    download = ChargebackServiceDownloadReportRequest(report_id="x")
    over_grpc = call_grpc(
        doors.grpc_address, "ChargebackService/DownloadReport", download, token="member-token"
    )
    assert over_grpc.failure is not None
    assert over_grpc.failure.code == 7


def test_ones_own_budget_needs_a_person(doors: Doors) -> None:
    """F008: the admin token belongs to nobody; a person's token and its own key do."""
    failure = both(doors, "UserService/GetMyBudget", GetMyBudgetRequest())
    assert (failure.code, failure.reason) == (7, "PERMISSION_DENIED")
    assert post(doors.url, "UserService/GetMyBudget", {}, token="bur_alice").status == 200
    assert both(doors, "UserService/SetBudget", SetBudgetRequest(), token="bur_alice").code == 7


def test_what_is_not_built_says_so(doors: Doors) -> None:
    from bursar.v1.tenant_service_pb2 import GetTenantRequest

    assert both(doors, "TenantService/GetTenant", GetTenantRequest()).code == 12
