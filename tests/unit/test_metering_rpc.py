"""What metering reads from a request, and how it answers a batch."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

from bursar.v1 import metering_pb2
from bursar.v1 import metering_service_pb2 as pb
from bursar_server.kit.caller import Caller, Role
from bursar_server.kit.errors import invalid
from bursar_server.metering.model import CheckAnswer
from bursar_server.metering.rpc import _check_parts, _say_each, check_call, deduct_call

CALLER = Caller(Role.SIDECAR, "sidecar")
REQUEST_ID = "0190a1b2-0000-7000-8000-00000000a11c"


def test_what_tells_a_repeat_is_hashed_as_it_always_was() -> None:
    """S16: the books keep these hashes, so that a call is known again whatever version wrote it."""
    check = pb.CheckRequest(
        request_id=REQUEST_ID,
        api_key_sha256="ab" * 32,
        user_id="alice@example.com",
        tenant_id="acme",
        provider="openai",
        model="it's",
        input_tokens_estimate=7,
        max_output_tokens=9,
        tags={"b": "2", "a": "é"},
        session_id="s",
    )
    instant = {"seconds": 1_700_000_000, "nanos": 123_456_789}
    deduct = pb.DeductRequest(
        request_id=REQUEST_ID,
        provider="openai",
        items=[{"model": "m", "service_tier": "flex", "usage": {"input_tokens": 5, "requests": 1}}],
        outcome=metering_pb2.OUTCOME_PARTIAL,
        estimated=True,
        provider_cost_usd=0.1,
        start_time=instant,
        end_time=instant,
    )
    assert (
        check_call(check, CALLER, None).body_sha256
        == "a05b8d1fab8981241dfc81b2d7ce442981fa8e1c2e7aa5d805978a6446572961"
    )
    assert (
        deduct_call(deduct, CALLER).body_sha256
        == "a76aa7e2fbfcb11795f2720899686217717aef696337c8c900d826f08cb7737e"
    )


def test_each_answer_of_a_batch_stands_alone() -> None:
    """One that cannot be given, or cannot be said, is an error in its place."""
    fine = CheckAnswer(UUID(REQUEST_ID), (), 1, 2, datetime(2026, 5, 1, tzinfo=UTC), None)
    too_large = CheckAnswer(UUID(REQUEST_ID), (), None, 2**70, None, None)
    answers: list[CheckAnswer | BaseException] = [
        fine,
        invalid("model", "is wrong"),
        too_large,
        OSError(),
        fine,
    ]
    response = pb.BatchCheckResponse()
    _say_each(response.results, "check", _check_parts, answers)
    kinds = [result.WhichOneof("result") for result in response.results]
    assert kinds == ["check", "error", "error", "error", "check"]
    codes = [result.error.code for result in response.results]
    assert codes == [0, 3, 13, 13, 0]
    first = response.results[0].check
    assert (first.remaining_nanos, first.hold_expire_time.seconds) == (1, 1_777_593_600)
