"""Sizes, deadlines, ids, shutting down, and the pages beside the services."""

from __future__ import annotations

import gzip
import http.client
import json
import threading
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import grpc
import pytest
from google.protobuf.json_format import ParseDict

from bursar.v1.metering_service_pb2 import CheckRequest, CheckResponse
from bursar.v1.user_service_pb2 import SetBudgetRequest, SetBudgetResponse
from bursar_server.rpc.codec import MAX_MESSAGE_BYTES
from bursar_server.rpc.listen import Address, AddressInUseError
from bursar_server.telemetry import telemetry_of
from support.collector import Collector, attributes_of
from support.door_clients import GrpcReply, Reply, call_grpc, post, post_binary, request
from support.doors import Doors, buf_curl

RPC = "UserService/SetBudget"
ADMIN = {"authorization": "Bearer platform-admin-token"}


@pytest.fixture(scope="module")
def doors() -> Iterator[Doors]:
    with Doors() as running:
        yield running


def padded(size: int) -> bytes:
    """Return a request of exactly `size` bytes: the padding is a field that only a newer version would have."""
    start = SetBudgetRequest(user_id="alice@example.com", limit_usd=1).SerializeToString()
    # Field 2047 and its length, which takes four bytes for these sizes.
    rest = size - len(start) - 2 - 4
    length = bytes([(rest & 0x7F) | 0x80, (rest >> 7 & 0x7F) | 0x80, (rest >> 14 & 0x7F) | 0x80, rest >> 21])
    return start + b"\xfa\x7f" + length + bytes(rest)


def test_four_mebibytes_are_read(doors: Doors) -> None:
    data = padded(MAX_MESSAGE_BYTES)
    assert len(data) == MAX_MESSAGE_BYTES
    assert post_binary(doors.url, RPC, data).status == 200
    assert call_grpc(doors.grpc_address, RPC, data).failure is None


def test_one_byte_more_is_not(doors: Doors) -> None:
    data = padded(MAX_MESSAGE_BYTES + 1)
    reply = post_binary(doors.url, RPC, data)
    assert (reply.status, reply.failure.code, reply.failure.reason) == (429, 8, "REQUEST_TOO_LARGE")
    failure = call_grpc(doors.grpc_address, RPC, data).failure
    assert failure is not None
    assert failure.code == 8


def test_a_large_json_is_refused_over_http2_too(doors: Doors) -> None:
    body = json.dumps({"user_id": "x" * 5_000_000})
    assert post(doors.url, RPC, body).failure.code == 8
    for protocol in ("grpc", "grpcweb"):
        done = buf_curl(doors.url, RPC, "@-", protocol=protocol, stdin=body)
        assert done.error["code"] == "resource_exhausted"
    assert (
        buf_curl(doors.url, RPC, {"user_id": "alice@example.com", "limit_usd": 1}, protocol="grpc").code == 0
    )


def test_what_grows_too_large_unpacked_is_refused(doors: Doors) -> None:
    bomb = gzip.compress(bytes(400_000_000), 9)
    assert len(bomb) < MAX_MESSAGE_BYTES
    headers = ADMIN | {"content-type": "application/proto", "content-encoding": "gzip"}
    reply = request(doors.url, f"/bursar.v1.{RPC}", bomb, headers=headers)
    assert (reply.status, reply.failure.reason) == (429, "REQUEST_TOO_LARGE")
    over_grpc = call_grpc(doors.grpc_address, RPC, bytes(50_000_000), compression=grpc.Compression.Gzip)
    assert over_grpc.failure is not None
    assert over_grpc.failure.code == 8


def test_what_is_packed_badly_is_malformed(doors: Doors) -> None:
    headers = ADMIN | {"content-type": "application/json", "content-encoding": "gzip"}
    reply = request(doors.url, f"/bursar.v1.{RPC}", b"not gzip", headers=headers)
    assert (reply.failure.code, reply.failure.reason) == (3, "MALFORMED_REQUEST")
    packed = gzip.compress(b'{"user_id":"alice@example.com","limit_usd":1}')
    assert request(doors.url, f"/bursar.v1.{RPC}", packed, headers=headers).status == 200


def test_a_deadline_is_kept(doors: Doors) -> None:
    body = {"user_id": "slow@example.com", "limit_usd": 1}
    began = time.monotonic()
    reply = post(doors.url, RPC, body, headers={"connect-timeout-ms": "100"})
    assert (reply.status, reply.failure.code, reply.failure.reason) == (504, 4, "DEADLINE_EXCEEDED")
    over_grpc = call_grpc(doors.grpc_address, RPC, ParseDict(body, SetBudgetRequest()), timeout=0.1)
    assert over_grpc.failure is not None
    assert over_grpc.failure.code == 4
    assert time.monotonic() - began < 0.9
    assert "slow@example.com" not in doors.users.finished
    wait_until(lambda: 'door="grpc",code="deadline_exceeded"} 1' in doors.telemetry.prometheus())


@pytest.mark.parametrize("kind", ["json", "proto"])
def test_a_deadline_is_kept_in_either_format(doors: Doors, kind: str) -> None:
    headers = ADMIN | {"content-type": f"application/{kind}", "connect-timeout-ms": "100"}
    reply = request(doors.url, f"/bursar.v1.{RPC}", slow_call(kind), headers=headers)
    assert (reply.status, reply.failure.code, reply.failure.reason) == (504, 4, "DEADLINE_EXCEEDED")
    late = headers | {"connect-timeout-ms": "0"}
    assert request(doors.url, f"/bursar.v1.{RPC}", slow_call(kind), headers=late).failure.code == 4
    for odd in ("-1", "1.5", "9" * 11, ""):
        answer = request(doors.url, f"/bursar.v1.{RPC}", b"", headers=headers | {"connect-timeout-ms": odd})
        assert answer.failure.code == 3


@pytest.mark.parametrize("kind", ["json", "proto"])
def test_who_goes_away_ends_the_call(kind: str) -> None:
    """S10: what only waits for somebody is not done for nobody."""
    with Doors() as doors:
        doors.users.seconds = 30
        parts = urlsplit(doors.url)
        connection = http.client.HTTPConnection(parts.netloc, timeout=20)
        headers = ADMIN | {"content-type": f"application/{kind}"}
        connection.request("POST", f"/bursar.v1.{RPC}", slow_call(kind), headers)
        wait_until(lambda: doors.users.seen == ["slow@example.com"])
        connection.close()
        wait_until(lambda: doors.pipeline.open_calls == 0)
        assert doors.users.finished == []
        assert 'door="connect",code="canceled"} 1' in doors.telemetry.prometheus()


def test_a_body_in_pieces_is_read(doors: Doors) -> None:
    data = SetBudgetRequest(user_id="pieces@example.com", limit_usd=1).SerializeToString()
    connection = http.client.HTTPConnection(urlsplit(doors.url).netloc, timeout=20)
    headers = ADMIN | {"content-type": "application/proto"}
    for _ in range(2):
        connection.request(
            "POST", f"/bursar.v1.{RPC}", iter([data[:5], data[5:]]), headers, encode_chunked=True
        )
        answer = connection.getresponse()
        assert SetBudgetResponse.FromString(answer.read()).budget.name == "pieces@example.com"
        assert answer.status == 200
    connection.close()


def test_an_answer_is_packed_where_it_is_asked_for(doors: Doors) -> None:
    data = SetBudgetRequest(user_id="packed@example.com", limit_usd=1).SerializeToString()
    headers = ADMIN | {"content-type": "application/proto", "accept-encoding": "gzip"}
    reply = request(doors.url, f"/bursar.v1.{RPC}", data, headers=headers)
    assert reply.headers["content-encoding"] == "gzip"
    answer = SetBudgetResponse.FromString(gzip.decompress(reply.body))
    assert answer.budget.name == "packed@example.com"


def slow_call(kind: str) -> bytes:
    if kind == "json":
        return b'{"user_id":"slow@example.com","limit_usd":1}'
    return SetBudgetRequest(user_id="slow@example.com", limit_usd=1).SerializeToString()


def test_handlers_know_the_deadline(doors: Doors) -> None:
    asked = CheckRequest(request_id="x")
    headers = ADMIN | {"content-type": "application/proto", "connect-timeout-ms": "5000"}
    reply = request(doors.url, "/bursar.v1.MeteringService/Check", asked.SerializeToString(), headers=headers)
    over_grpc = call_grpc(doors.grpc_address, "MeteringService/Check", asked, timeout=5)
    for body in (reply.body, over_grpc.body):
        # Two clocks and a rounding lie between.
        assert 4000 < CheckResponse.FromString(body).retry_after_ms <= 5100
    forever = call_grpc(doors.grpc_address, "MeteringService/Check", asked, timeout=None)
    assert not CheckResponse.FromString(forever.body).HasField("retry_after_ms")


def test_the_request_id_is_echoed(doors: Doors) -> None:
    def connect(headers: dict[str, str]) -> Reply:
        return post(doors.url, "MeteringService/Check", {}, headers=headers)

    def over_grpc(metadata: tuple[tuple[str, str], ...]) -> GrpcReply:
        return call_grpc(doors.grpc_address, "MeteringService/Check", b"", metadata=metadata)

    assert connect({"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert over_grpc((("x-request-id", "abc-1"),)).trailers["x-request-id"] == "abc-1"
    made = connect({})
    assert made.json["denials"][0]["message"] == made.headers["x-request-id"]
    for insane in ("x" * 129, "a b", '{"a":1}', "ä"):
        reply = connect({"x-request-id": insane.encode("utf-8").decode("latin-1")})
        assert reply.status == 400 or len(reply.headers["x-request-id"]) == 36
    assert (
        post(doors.url, RPC, {}, headers={"x-request-id": "of-an-error"}).headers["x-request-id"]
        == "of-an-error"
    )
    refused = post(doors.url, RPC, {}, token=None, headers={"x-request-id": "of-a-refusal"})
    assert refused.headers["x-request-id"] == "of-a-refusal"


def test_what_a_handler_sets_is_sent(doors: Doors) -> None:
    body = {"user_id": "headers@example.com", "limit_usd": 1}
    assert post(doors.url, RPC, body).headers["x-extra"] == "1"
    over_grpc = call_grpc(doors.grpc_address, RPC, ParseDict(body, SetBudgetRequest()))
    assert over_grpc.trailers["x-extra"] == "1"


def test_health_and_readiness(doors: Doors) -> None:
    health = (doors.grpc_address, "/grpc.health.v1.Health/Check")
    assert request(doors.url, "/healthz", method="GET").json == {"status": "ok"}
    ready = request(doors.url, "/readyz", method="GET")
    assert (ready.status, ready.json) == (200, {"status": "ready", "checks": {"database": "ok"}})
    assert ask_health(*health, b"") == b"\x08\x01"
    assert ask_health(*health, b"\x0a\x15bursar.v1.UserService") == b"\x08\x01"
    doors.checks["database"] = "connection refused"
    try:
        unready = request(doors.url, "/readyz", method="GET")
        assert (unready.status, unready.json["checks"]["database"]) == (503, "connection refused")
        assert request(doors.url, "/healthz", method="HEAD").status == 200
        assert ask_health(*health, b"") == b"\x08\x02"
    finally:
        doors.checks["database"] = "ok"
    with pytest.raises(grpc.RpcError) as unknown:
        ask_health(*health, b"\x0a\x01x")
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND


def ask_health(address: str, method: str, body: bytes) -> bytes:
    with grpc.insecure_channel(address) as channel:
        return bytes(channel.unary_unary(method)(body, timeout=5))


def test_health_can_be_watched(doors: Doors) -> None:
    with grpc.insecure_channel(doors.grpc_address) as channel:
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"", timeout=10)
        assert next(watch) == b"\x08\x01"
        doors.checks["database"] = "connection refused"
        try:
            assert next(watch) == b"\x08\x02"
        finally:
            doors.checks["database"] = "ok"
        watch.cancel()


def test_calls_are_spans_in_the_callers_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    with Collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        telemetry = telemetry_of({"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url})
        with Doors(telemetry=telemetry) as doors:
            headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01", "x-request-id": "one"}
            post(doors.url, RPC, {"user_id": "alice@example.com", "limit_usd": 1}, headers=headers)
            call_grpc(doors.grpc_address, RPC, SetBudgetRequest(user_id="missing@example.com"))
        telemetry.close()
    first, second = sorted(collector.spans, key=lambda span: int(span.start_time_unix_nano))
    assert (first.name, first.trace_id.hex(), first.status.code) == (
        "bursar.v1.UserService/SetBudget",
        trace,
        0,
    )
    assert attributes_of(first) == {
        "rpc.system": "connect_rpc",
        "rpc.service": "bursar.v1.UserService",
        "rpc.method": "SetBudget",
        "bursar.request.id": "one",
    }
    assert attributes_of(second)["rpc.system"] == "grpc"
    assert attributes_of(second)["error.type"] == "not_found"
    assert second.status.code == 2


def test_metrics_count_what_happened(doors: Doors) -> None:
    post(doors.url, RPC, {"user_id": "counted@example.com", "limit_usd": 1})
    page = request(doors.url, "/metrics", method="GET")
    assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
    text = page.body.decode()
    assert (
        'bursar_rpc_requests_total{rpc_service="UserService",rpc_method="SetBudget",door="connect",code="ok"}'
        in text
    )
    assert "# TYPE bursar_rpc_duration_seconds histogram" in text
    assert "\nbursar_rpc_open 0\n" in text


@pytest.mark.parametrize(
    ("path", "status", "hint"),
    [("/", 404, "SetBudget"), ("/bursar.v1.UserService/SetBudgett", 404, "/bursar.v1.<Service>/<Method>")],
)
def test_other_paths_say_where_to_go(doors: Doors, path: str, status: int, hint: str) -> None:
    reply = request(doors.url, path, b"{}")
    assert reply.status == status
    assert hint in reply.json["message"]


def test_a_forgotten_content_type_is_told(doors: Doors) -> None:
    headers = ADMIN | {"content-type": "application/x-www-form-urlencoded"}
    reply = request(doors.url, f"/bursar.v1.{RPC}", b"{}", headers=headers)
    assert reply.status == 415
    assert "Content-Type must be application/json" in reply.json["message"]
    with_charset = ADMIN | {"content-type": "Application/JSON; charset=utf-8"}
    assert request(doors.url, f"/bursar.v1.{RPC}", b"{", headers=with_charset).status == 400


def test_what_http_1_cannot_carry_is_told(doors: Doors) -> None:
    headers = ADMIN | {"content-type": "application/grpc"}
    assert "needs HTTP/2" in request(doors.url, f"/bursar.v1.{RPC}", b"", headers=headers).json["message"]
    raw = ADMIN | {"content-type": "application/json", "x-name": b"\xff\xfe".decode("latin-1")}
    assert request(doors.url, f"/bursar.v1.{RPC}", b"{}", headers=raw).status == 400


def test_shutting_down_finishes_what_was_accepted() -> None:
    """A call that is under way gets its answer on both doors; new ones find nobody."""
    body = {"user_id": "slow@example.com", "limit_usd": 1}
    answers: list[int] = []
    with Doors() as doors:

        def connect() -> None:
            answers.append(post(doors.url, RPC, body).status)

        def over_grpc() -> None:
            reply = call_grpc(doors.grpc_address, RPC, ParseDict(body, SetBudgetRequest()))
            answers.append(200 if reply.failure is None else reply.failure.code)

        def over_http2() -> None:
            answers.append(
                200 if buf_curl(doors.url, RPC, body, protocol="grpc", schema=True).code == 0 else 0
            )

        callers = [threading.Thread(target=target) for target in (connect, over_grpc, over_http2)]
        for caller in callers:
            caller.start()
        wait_until(lambda: doors.pipeline.open_calls == 3)
        doors.run(doors.close(10))
        for caller in callers:
            caller.join()
        assert answers == [200, 200, 200]
        assert doors.pipeline.open_calls == 0
        with pytest.raises(ConnectionRefusedError):
            post(doors.url, RPC, body)


def wait_until(true: object, seconds: float = 5) -> None:
    assert callable(true)
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_shutting_down_does_not_wait_for_ever() -> None:
    body = {"user_id": "slow@example.com", "limit_usd": 1}
    with Doors() as doors:
        doors.users.seconds = 30
        caller = threading.Thread(target=lambda: post(doors.url, RPC, body))
        caller.start()
        wait_until(lambda: doors.pipeline.open_calls == 1)
        began = time.monotonic()
        doors.run(doors.close(1))
        assert time.monotonic() - began < 3
        caller.join()


def test_a_port_in_use_is_named(doors: Doors) -> None:
    for url in (doors.url, doors.grpc_url):
        taken = Address("127.0.0.1", int(url.rpartition(":")[2]))
        for address in (taken, Address("no-such-host.invalid", 1)):
            with pytest.raises(AddressInUseError, match=str(address)):
                doors.run(doors.open_at(address))
