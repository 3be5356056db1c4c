"""The fake provider makes the trouble it is asked for, and says what it served."""

from __future__ import annotations

import asyncio
import gzip
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from bursar_sidecar.fake_provider.plan import expected_usage, plan, wish_of
from bursar_sidecar.providers.base import Outcome, dialect_named
from support.fake_provider import FakeProvider, fake_provider

CHAT = "/v1/chat/completions"
APIS: dict[str, tuple[str, dict[str, Any], dict[str, str]]] = {
    "openai": (CHAT, {"model": "m", "messages": []}, {"authorization": "Bearer k"}),
    "anthropic": ("/v1/messages", {"model": "m", "max_tokens": 99, "messages": []}, {"x-api-key": "k"}),
    "gemini": ("/v1beta/models/m:generateContent", {"contents": []}, {"x-goog-api-key": "k"}),
}


@pytest.fixture
async def provider() -> AsyncIterator[FakeProvider]:
    async with fake_provider() as running:
        yield running


@pytest.fixture
async def session(provider: FakeProvider) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(provider.url, auto_decompress=False) as session:
        yield session


async def ask(
    session: aiohttp.ClientSession, api: str = "openai", stream: bool = False, **knobs: str
) -> tuple[aiohttp.ClientResponse, bytes]:
    path, body, headers = APIS[api]
    sent = {**headers, **{f"x-fake-{name.replace('_', '-')}": value for name, value in knobs.items()}}
    async with session.post(path, json={**body, "stream": stream}, headers=sent) as answer:
        return answer, await answer.read()


def error_of(api: str, body: bytes) -> tuple[str, str]:
    error = json.loads(body)["error"]
    return error["message"], error["status" if api == "gemini" else "type"]


@pytest.mark.parametrize("api", APIS)
async def test_a_missing_credential_is_refused_in_the_apis_shape(
    session: aiohttp.ClientSession, provider: FakeProvider, api: str
) -> None:
    path, body, _ = APIS[api]
    async with session.post(path, json=body) as answer:
        message, kind = error_of(api, await answer.read())
        assert answer.status == 401
    kinds = {
        "openai": "invalid_request_error",
        "anthropic": "authentication_error",
        "gemini": "UNAUTHENTICATED",
    }
    assert (message, kind) == ("No API key was provided.", kinds[api])
    assert provider.calls[-1].usage is None


async def test_geminis_key_may_be_in_the_query(
    session: aiohttp.ClientSession, provider: FakeProvider
) -> None:
    path, body, _ = APIS["gemini"]
    async with session.post(f"{path}?key=secret&alt=json", json=body) as answer:
        assert answer.status == 200
    assert provider.calls[-1].query == "alt=json"


@pytest.mark.parametrize("api", APIS)
async def test_an_error_that_was_asked_for(session: aiohttp.ClientSession, api: str) -> None:
    answer, body = await ask(session, api, status="429", retry_after="3")
    assert (answer.status, answer.headers["retry-after"]) == (429, "3")
    assert error_of(api, body)[1] in ("requests", "rate_limit_error", "RESOURCE_EXHAUSTED")


@pytest.mark.parametrize(
    ("api", "path", "body", "status"),
    [
        ("openai", CHAT, "{", 400),
        ("openai", CHAT, "[]", 400),
        ("openai", CHAT, "{}", 400),
        ("openai", "/v1/nowhere", '{"model":"m"}', 404),
        ("anthropic", "/v1/messages", '{"model":"m"}', 400),
    ],
)
async def test_a_bad_request_is_refused(
    session: aiohttp.ClientSession, api: str, path: str, body: str, status: int
) -> None:
    async with session.post(path, data=body, headers=APIS[api][2]) as answer:
        assert answer.status == status
        assert error_of(api, await answer.read())[0]


async def test_a_connection_breaks_off_where_it_was_asked_to(
    session: aiohttp.ClientSession, provider: FakeProvider
) -> None:
    _, whole = await ask(session, stream=True)
    came = bytearray()

    async def read() -> None:
        path, body, headers = APIS["openai"]
        headers = {**headers, "x-fake-abort-after-bytes": "700", "x-fake-chunk-bytes": "64"}
        async with session.post(path, json={**body, "stream": True}, headers=headers) as answer:
            async for piece in answer.content.iter_any():
                came.extend(piece)

    with pytest.raises(aiohttp.ClientPayloadError):
        await read()
    assert came == whole[:700]
    assert (provider.calls[-1].sent_bytes, provider.calls[-1].completed) == (700, False)


async def test_streams_without_their_end_with_errors_and_in_pieces(session: aiohttp.ClientSession) -> None:
    _, whole = await ask(session, stream=True)
    assert (await ask(session, stream=True, no_marker="1"))[1] + b"data: [DONE]\n\n" == whole
    assert (await ask(session, stream=True, chunk_bytes="7", pace_ms="0"))[1] == whole
    _, broken = await ask(session, stream=True, error_after_events="2")
    assert broken.count(b"\n\n") == 3
    assert b"event: error" in broken
    assert broken.startswith(b"\n\n".join(whole.split(b"\n\n")[:2]))


async def test_json_answers_padded_compressed_and_without_usage(session: aiohttp.ClientSession) -> None:
    _, whole = await ask(session)
    _, padded = await ask(session, pad_bytes="2000000")
    assert len(padded) == len(whole) + 2_000_000
    assert json.loads(padded) == json.loads(whole)
    answer, packed = await ask(session, gzip="1")
    assert answer.headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed) == whole
    _, silent = await ask(session, no_usage="1")
    assert set(json.loads(whole)) - set(json.loads(silent)) == {"usage"}


async def test_tokens_model_and_latency_can_be_asked_for(
    session: aiohttp.ClientSession, provider: FakeProvider
) -> None:
    began = asyncio.get_running_loop().time()
    _, body = await ask(session, output_tokens="5", model="m-2026-01-01", latency_ms="30")
    assert asyncio.get_running_loop().time() - began >= 0.03
    answer = json.loads(body)
    assert (answer["model"], answer["usage"]["completion_tokens"]) == ("m-2026-01-01", 5)
    call = provider.calls[-1]
    assert call.usage == expected_usage(call.path, call.body, output_tokens=5)


async def test_what_was_served_can_be_looked_up(session: aiohttp.ClientSession) -> None:
    """Credentials are never shown: only their hash."""
    answer, body = await ask(session)
    async with session.get("/__served") as shown:
        calls = await shown.json()
        text = await shown.text()
    assert (calls[0]["id"], calls[0]["status"]) == (answer.headers["x-request-id"], 200)
    assert calls[0]["sent_bytes"] == len(body)
    assert json.loads(calls[0]["body"])["model"] == "m"
    assert "Bearer" not in text
    assert "authorization" not in calls[0]["header_names"]
    async with session.post("/__reset"):
        pass
    async with session.get("/__served") as shown:
        assert await shown.json() == []
    async with session.get("/healthz") as healthy:
        assert await healthy.text() == "ok"


def test_counts_follow_from_the_prompt_and_the_seed_alone() -> None:
    """F099: inserted options and removed tags change nothing, so a test knows what a call costs."""
    asked: dict[str, Any] = {"model": "gpt-5", "messages": [{"role": "user", "content": "Hello"}]}
    changed = {
        **asked,
        "stream": True,
        "stream_options": {"include_usage": True},
        "metadata": {"tags": {"a": "b"}},
    }
    assert plan(wish_of(CHAT, asked), 7) == plan(wish_of(CHAT, changed), 7)
    assert plan(wish_of(CHAT, asked), 7) != plan(wish_of(CHAT, asked), 8)


async def test_the_command_line(tmp_path: Path) -> None:
    """One line of JSON says where it listens; SIGTERM ends it; the log has a line for each call."""
    log = tmp_path / "served.jsonl"
    command = [
        "-m",
        "bursar_sidecar.fake_provider",
        "--listen",
        "127.0.0.1:0",
        "--log",
        str(log),
        "--seed",
        "5",
    ]
    process = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    ready = json.loads(await process.stdout.readline())
    assert ready["event"] == "ready"
    async with aiohttp.ClientSession(f"http://{ready['listen']}") as session:
        _, body = await ask(session, "anthropic")
    process.send_signal(signal.SIGTERM)
    assert await process.wait() == 0
    assert await process.stdout.read() == b""
    line = json.loads(log.read_text())
    usage = json.loads(body)["usage"]
    assert line["usage"]["output_tokens"] == usage["output_tokens"]
    assert (line["path"], line["completed"]) == ("/v1/messages", True)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("dialect", "path", "fields"),
    [
        ("openai", CHAT, {"messages": [{"role": "user", "content": "Hello " * 900}], "n": 2}),
        ("openai", "/v1/completions", {"prompt": "Once upon"}),
        ("openai", "/v1/responses", {"input": "Hello " * 900}),
        ("openai", "/v1/embeddings", {"input": "Hello"}),
        ("anthropic", "/v1/messages", {"max_tokens": 400, "messages": [{"content": "Hello " * 900}]}),
        ("gemini", "/v1beta/models/gemini-2.5-pro:generateContent", {"contents": [{"text": "Hello " * 900}]}),
        ("gemini", "/v1beta/models/gemini-2.5-pro:streamGenerateContent", {"contents": [{"text": "Hello"}]}),
        (
            "gemini",
            "/v1beta/models/gemini-2.5-pro:streamGenerateContent?alt=sse",
            {"contents": [{"text": "Hi"}]},
        ),
    ],
)
async def test_the_meter_finds_what_was_served(
    provider: FakeProvider,
    session: aiohttp.ClientSession,
    dialect: str,
    path: str,
    fields: dict[str, Any],
    stream: bool,
) -> None:
    """F100: model and every count of an answer, read from the bytes as they come off the wire."""
    spoken = dialect_named(dialect)
    asked = fields if dialect == "gemini" else {"model": "gpt-5", "stream": stream, **fields}
    call = spoken.open("POST", *path.partition("?")[::2], {}, json.dumps(asked).encode())
    headers = {**spoken.credential_headers("k"), "x-fake-chunk-bytes": "99"}
    async with session.post(path, data=call.body, headers=headers) as answer:
        reader = spoken.reader(call, answer.status, answer.headers["content-type"])
        async for piece in answer.content.iter_any():
            reader.feed(piece)
    reader.end()
    metered = reader.metered()
    served = provider.calls[-1]
    assert (reader.complete, metered.outcome, metered.estimated) == (True, Outcome.SUCCESS, False)
    assert [(item.model, item.usage) for item in metered.items] == [(served.model, served.usage)]
