"""One call through the sidecar: checked, forwarded as it is, charged before the app sees its end."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bursar.v1 import metering_pb2
from bursar_sidecar.providers.readers import JsonReader
from support.fake_control_plane import KEY, Served
from support.odd_upstream import CHAT, OddUpstream, head, json_answer
from support.sidecars import AUTHORIZED, CHAT_PATH, RunningSidecar, environment, running_sidecar, until

BODY = (
    b'{ "model":"gpt-4o-mini",\n "messages":[{"role":"user","content":"Hi"}], "temperature": 0.20, "x":1e2 }'
)


@pytest.fixture
async def sidecar(plane: Served, upstream: OddUpstream, tmp_path: Path) -> AsyncIterator[RunningSidecar]:
    addresses = dict.fromkeys(("openai", "anthropic", "gemini", "azure", "groq"), upstream.url)
    async with running_sidecar(environment(plane.url, tmp_path, **addresses)) as running:
        yield running


def only_record(plane: Served) -> object:
    (record,) = plane.service.records.values()
    return record


@pytest.mark.parametrize("stage", ["feed", "metered"])
async def test_a_defect_of_the_sidecar_loses_no_charge(
    sidecar: RunningSidecar, plane: Served, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """S17: an answer that its reader cannot cope with is charged an estimate, and the call is open no longer."""

    def broken(*_: object) -> object:
        raise RecursionError("nobody thought of this")

    monkeypatch.setattr(JsonReader, stage, broken)
    monkeypatch.setattr(JsonReader, "metered", broken)
    async with await sidecar.post() as response:
        assert response.status == 500
        assert json.loads(await response.read())["error"]["code"] == "INTERNAL"
    await until(lambda: bool(plane.service.records))
    record = plane.service.records[response.headers["x-bursar-request-id"]]
    assert record.estimated
    assert record.items[0].usage.output_tokens > 0
    assert sidecar.sidecar.gate.open_calls == 0


async def test_a_call_is_checked_forwarded_and_charged(
    sidecar: RunningSidecar, plane: Served, upstream: OddUpstream
) -> None:
    """F048 F059 F099: the app changes base URL and key; the answer comes when the Deduct is committed."""
    async with await sidecar.post(data=BODY, headers={"content-type": "application/json"}) as response:
        assert await response.read() == CHAT
    assert response.status == 200
    (heard,) = upstream.heard
    assert heard.body == BODY
    assert heard.target == "/v1/chat/completions"
    assert heard.header("authorization") == "Bearer sk-openai"
    assert heard.header("accept-encoding") == "identity"
    (check,) = plane.service.checks
    assert (check.provider, check.model) == ("openai", "gpt-4o-mini")
    assert check.input_tokens_estimate > 0
    record = plane.service.records[response.headers["x-bursar-request-id"]]
    assert record.request_id == check.request_id
    assert record.outcome == metering_pb2.OUTCOME_SUCCESS
    assert (record.items[0].usage.input_tokens, record.items[0].usage.output_tokens) == (7, 5)
    assert record.items[0].model == "gpt-4o-mini-2024-07-18"
    assert record.start_time.ToNanoseconds() <= record.end_time.ToNanoseconds()
    assert response.headers["x-bursar-cost-usd"] == "0.000012"
    assert response.headers["x-bursar-remaining-usd"] == "999.999988"
    assert plane.service.holds == {}


async def test_an_answer_of_json_waits_for_its_deduct(sidecar: RunningSidecar, plane: Served) -> None:
    """The contract: a JSON answer is held back whole until the Deduct is committed."""
    plane.service.deduct_delay_s = 0.3
    asked = asyncio.ensure_future(sidecar.post())
    await asyncio.sleep(0.15)
    assert not asked.done()
    async with await asked as response:
        assert response.status == 200
    assert len(plane.service.records) == 1


@pytest.mark.parametrize("name", ["authorization", "x-api-key", "x-goog-api-key", "api-key"])
async def test_the_key_comes_in_any_header(sidecar: RunningSidecar, upstream: OddUpstream, name: str) -> None:
    value = f"Bearer {KEY}" if name == "authorization" else KEY
    others = {"x-api-key": "sk-ant-x", "authorization": "Bearer sk-y", "api-key": "z", "x-goog-api-key": "w"}
    for path in (
        CHAT_PATH,
        "/anthropic/v1/messages",
        "/gemini/v1beta/models/g:generateContent",
        "/azure/openai/x",
    ):
        async with sidecar.client.post(
            sidecar.url + path, headers={**others, name: value}, data=BODY
        ) as response:
            assert response.status == 200, await response.text()
    sent = [{header for header in upstream.heard[index].headers if header[0] in others} for index in range(4)]
    assert sent == [
        {("authorization", "Bearer sk-openai")},
        {("x-api-key", "sk-anthropic")},
        {("x-goog-api-key", "sk-gemini")},
        {("api-key", "sk-azure")},
    ]


async def test_the_key_comes_as_geminis_parameter(sidecar: RunningSidecar, upstream: OddUpstream) -> None:
    path = f"/v1beta/models/g:generateContent?alt=json&key={KEY}&x=%20"
    async with sidecar.client.post(sidecar.url + path, data=b"{}") as response:
        assert response.status == 200
    assert upstream.heard[0].target == "/v1beta/models/g:generateContent?alt=json&x=%20"


async def test_tags_session_and_user_go_to_the_control_plane_only(
    sidecar: RunningSidecar, plane: Served, upstream: OddUpstream
) -> None:
    """F152 F153 F162: tags are recorded with the call and taken out of what the provider sees."""
    headers = {
        "x-bursar-tags": "team=core,project=x",
        "baggage": "bursar.tag.env=prod,bursar.tag.team=other",
        "x-bursar-session": "s-1",
        "x-bursar-user": "bob@example.com",
    }
    body = {"model": "m", "metadata": {"tags": {"Project": "y"}, "keep": "me"}, "messages": []}
    async with await sidecar.post(json=body, headers=headers) as response:
        assert response.status == 200
    (check,), record = plane.service.checks, only_record(plane)
    tags = {"team": "core", "project": "x", "env": "prod", "Project": "y"}
    for asked in (check, record):
        assert dict(asked.tags) == tags  # type: ignore[attr-defined]
        assert (asked.session_id, asked.user_id) == ("s-1", "bob@example.com")  # type: ignore[attr-defined]
    (heard,) = upstream.heard
    assert json.loads(heard.body) == {"model": "m", "metadata": {"keep": "me"}, "messages": []}
    assert not [name for name, _ in heard.headers if name.startswith("x-bursar")]
    assert heard.header("baggage") == headers["baggage"]


@pytest.mark.parametrize(
    ("headers", "body", "named"),
    [
        ({"x-bursar-tags": "novalue"}, {}, "x-bursar-tags"),
        ({"x-bursar-session": "s" * 200}, {}, "x-bursar-session"),
        ({}, {"metadata": {"tags": {"a": 1}}}, "metadata.tags"),
    ],
)
async def test_attribution_that_cannot_be_recorded_is_a_400(
    sidecar: RunningSidecar,
    upstream: OddUpstream,
    headers: dict[str, str],
    body: dict[str, object],
    named: str,
) -> None:
    async with await sidecar.post(headers=headers, json={"model": "m", **body}) as response:
        error = (await response.json())["error"]
    assert response.status == 400
    assert named in error["message"]
    assert response.headers["x-should-retry"] == "false"
    assert response.headers["x-bursar-request-id"]
    assert upstream.heard == []


async def test_no_key_is_a_401_and_nothing_is_asked(
    sidecar: RunningSidecar, plane: Served, upstream: OddUpstream
) -> None:
    for path, shape in (
        (CHAT_PATH, "error"),
        ("/anthropic/v1/messages", "type"),
        ("/v1/models/g:x", "error"),
    ):
        async with sidecar.client.post(
            sidecar.url + path, headers={"x-api-key": "sk-1"}, data=BODY
        ) as response:
            assert response.status == 401
            assert shape in await response.json()
            assert response.headers["x-bursar-request-id"]
    assert plane.service.checks == []
    assert upstream.heard == []


@pytest.mark.parametrize(
    ("denial", "status", "retry"),
    [
        (metering_pb2.Denial(code="BUDGET_CAP_HARD", reason="insufficient_budget"), 402, "false"),
        (metering_pb2.Denial(code="BUDGET_HELD", reason="rate_limit", retryable=True), 429, None),
        (metering_pb2.Denial(code="RATE_LIMITED", reason="rate_limit", retryable=True), 429, None),
        (metering_pb2.Denial(code="KEY_UNKNOWN", reason="authentication"), 401, "false"),
        (metering_pb2.Denial(code="KEY_REVOKED", reason="permission"), 403, "false"),
    ],
)
async def test_a_denial_is_told_in_the_words_of_the_api(
    sidecar: RunningSidecar,
    plane: Served,
    upstream: OddUpstream,
    denial: metering_pb2.Denial,
    status: int,
    retry: str | None,
) -> None:
    """F053 F054 C04: a denial tells the caller what to do."""
    plane.service.account.denial = denial
    async with await sidecar.post() as response:
        error = (await response.json())["error"]
    assert (response.status, error["code"]) == (status, denial.code)
    assert response.headers.get("x-should-retry") == retry
    assert ("retry-after" in response.headers) == (status == 429)
    assert response.headers["x-bursar-request-id"] == plane.service.checks[0].request_id
    assert upstream.heard == []
    assert await sidecar.metric("refusals_total") == 1
    assert sidecar.sidecar.gate.open_calls == 0


async def test_any_other_path_passes_through_as_a_call_without_usage(
    sidecar: RunningSidecar, plane: Served, upstream: OddUpstream
) -> None:
    """F048: every request is checked; one without usage costs nothing and is recorded."""
    upstream.answer = json_answer(b'{"object":"list","data":[]}')
    async with sidecar.client.get(sidecar.url + "/openai/v1/models?limit=2", headers=AUTHORIZED) as response:
        assert await response.json() == {"object": "list", "data": []}
    assert upstream.heard[0].target == "/v1/models?limit=2"
    (check,) = plane.service.checks
    assert (check.input_tokens_estimate, check.max_output_tokens) == (0, 0)
    assert list(only_record(plane).items) == []  # type: ignore[attr-defined]


async def test_head_options_and_empty_answers(sidecar: RunningSidecar, upstream: OddUpstream) -> None:
    upstream.answer = head("200 OK", "content-length: 1234", "content-type: text/plain")
    async with sidecar.client.head(sidecar.url + "/openai/v1/files/1", headers=AUTHORIZED) as response:
        assert response.headers["content-length"] == "1234"
    upstream.answer = head("204 No Content", "allow: GET")
    async with sidecar.client.options(sidecar.url + "/openai/v1/files", headers=AUTHORIZED) as response:
        assert (response.status, response.headers["allow"]) == (204, "GET")
        assert "content-length" not in response.headers
    upstream.answer = head("302 Found", "location: https://elsewhere.example/", "content-length: 0")
    async with sidecar.client.get(
        sidecar.url + "/openai/v1/files/1/content", headers=AUTHORIZED, allow_redirects=False
    ) as response:
        assert (response.status, response.headers["location"]) == (302, "https://elsewhere.example/")
    assert [heard.method for heard in upstream.heard] == ["HEAD", "OPTIONS", "GET"]


@pytest.mark.parametrize("status", ["400 Bad Request", "429 Too Many Requests", "500 Oops", "529 Overloaded"])
async def test_the_providers_own_errors_pass_through_and_cost_nothing(
    sidecar: RunningSidecar, plane: Served, upstream: OddUpstream, status: str
) -> None:
    """S17 C18: a call that failed at the provider is a record with cost 0 and its outcome."""
    upstream.answer = json_answer(b'{"error":{"message":"no"}}', status, "retry-after: 7", "x-request-id: r1")
    async with await sidecar.post() as response:
        assert await response.json() == {"error": {"message": "no"}}
    assert response.status == int(status[:3])
    assert response.reason == status[4:]
    assert (response.headers["retry-after"], response.headers["x-request-id"]) == ("7", "r1")
    record = only_record(plane)
    assert record.outcome == metering_pb2.OUTCOME_FAILED  # type: ignore[attr-defined]
    assert list(record.items) == []  # type: ignore[attr-defined]
    assert response.headers["x-bursar-cost-usd"] == "0"


async def test_an_answer_compressed_against_our_word_is_read(
    sidecar: RunningSidecar, plane: Served, upstream: OddUpstream
) -> None:
    upstream.answer = json_answer(gzip.compress(CHAT), "200 OK", "content-encoding: gzip")
    async with sidecar.client.post(
        sidecar.url + CHAT_PATH, headers=AUTHORIZED, data=BODY, auto_decompress=False
    ) as response:
        assert await response.read() == CHAT
        assert "content-encoding" not in response.headers
    assert response.headers["x-bursar-cost-usd"] == "0.000012"


async def test_a_body_is_bounded(plane: Served, upstream: OddUpstream, tmp_path: Path) -> None:
    settings = environment(plane.url, tmp_path, openai=upstream.url)
    async with running_sidecar({**settings, "BURSAR_REQUEST_MAX_BYTES": "2048"}) as sidecar:

        async def endless() -> AsyncIterator[bytes]:
            while True:
                yield b"x" * 1000

        async with await sidecar.post(data=b"x" * 2048) as response:
            assert response.status == 200
        async with await sidecar.post(data=b"x" * 2049) as response:
            assert response.status == 413
            assert (await response.json())["error"]["code"] == "REQUEST_TOO_LARGE"
        async with await sidecar.post(data=endless()) as response:
            assert response.status == 413
    assert len(plane.service.checks) == 1


async def test_a_large_body_travels_byte_for_byte(sidecar: RunningSidecar, upstream: OddUpstream) -> None:
    image = "A" * (3 << 20)
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": image}]}).encode()
    async with await sidecar.post(data=io.BytesIO(body), headers={"expect": "100-continue"}) as response:
        assert response.status == 200
    assert upstream.heard[0].body == body
    assert upstream.heard[0].header("expect") is None


async def test_websockets_are_refused(sidecar: RunningSidecar, upstream: OddUpstream) -> None:
    headers = {**AUTHORIZED, "connection": "Upgrade", "upgrade": "websocket"}
    async with sidecar.client.get(sidecar.url + "/openai/v1/realtime", headers=headers) as response:
        assert response.status == 501
        assert (await response.json())["error"]["code"] == "WEBSOCKET_UNSUPPORTED"
    assert upstream.heard == []


async def test_a_carried_key_leaves_the_apps_credential_untouched(
    plane: Served, upstream: OddUpstream, tmp_path: Path
) -> None:
    """The contract: the sidecar carries one BURSAR_API_KEY for its app; the app's own credential passes through."""
    settings = environment(plane.url, tmp_path, openai=upstream.url, gemini=upstream.url)
    async with running_sidecar({**settings, "BURSAR_API_KEY": KEY}) as sidecar:

        async def sent(path: str, headers: dict[str, str]) -> tuple[str | None, str]:
            async with sidecar.client.post(sidecar.url + path, headers=headers, data=BODY) as response:
                assert response.status == 200
            return upstream.heard[-1].header("authorization"), upstream.heard[-1].target

        assert await sent(CHAT_PATH, {"authorization": "Bearer sk-app"}) == (
            "Bearer sk-app",
            "/v1/chat/completions",
        )
        assert await sent(CHAT_PATH, {}) == ("Bearer sk-openai", "/v1/chat/completions")
        assert await sent(CHAT_PATH, AUTHORIZED) == ("Bearer sk-openai", "/v1/chat/completions")
        path = "/v1beta/models/g:generateContent?key=AIza-app"
        assert await sent(path, {}) == (None, path)
        assert upstream.heard[-1].header("x-goog-api-key") is None
    assert {check.api_key_sha256 for check in plane.service.checks} == set(plane.service.accounts)


async def test_calls_at_the_same_time_share_few_requests(sidecar: RunningSidecar, plane: Served) -> None:
    """Natural batching: what waits while a batch is out travels together."""
    plane.service.check_delay_s = plane.service.deduct_delay_s = 0.02

    async def one() -> None:
        async with await sidecar.post() as response:
            assert response.status == 200

    await asyncio.gather(*(one() for _ in range(60)))
    assert sum(plane.service.check_batches) == sum(plane.service.deduct_batches) == 60
    assert len(plane.service.check_batches) <= 12
    assert len(plane.service.deduct_batches) <= 20


async def test_the_pages_about_itself(sidecar: RunningSidecar) -> None:
    await until(lambda: sidecar.sidecar.control_plane.reachable)
    for path, says in (("/healthz", "ok"), ("/readyz", "ready"), ("/metrics", "bursar_sidecar_open_calls 0")):
        async with sidecar.client.get(sidecar.url + path) as response:
            assert response.status == 200
            assert says in await response.text()
