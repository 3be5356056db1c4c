"""Nothing that an app or a provider sends reaches another host, or another upstream's credential."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from support.fake_control_plane import KEY, Served
from support.odd_upstream import (
    CHAT,
    LAST_CHUNK,
    OddUpstream,
    chunk,
    head,
    json_answer,
    odd_upstream,
    once,
)
from support.sidecars import CHAT_PATH, RunningSidecar, environment, raw, running_sidecar, until

BODY = b'{"model":"gpt-4o","messages":[{"role":"user","content":"hi"}]}'
JSON = "content-type: application/json"
LENGTH = f"content-length: {len(CHAT)}"


@pytest.fixture
async def other() -> AsyncIterator[OddUpstream]:
    async with odd_upstream() as odd:
        yield odd


@pytest.fixture
async def sidecar(
    plane: Served, upstream: OddUpstream, other: OddUpstream, tmp_path: Path
) -> AsyncIterator[RunningSidecar]:
    settings = environment(plane.url, tmp_path, openai=upstream.url, anthropic=other.url)
    async with running_sidecar(settings) as running:
        yield running


def asked(
    *lines: bytes,
    target: bytes = CHAT_PATH.encode(),
    body: bytes = BODY,
    length: bool = True,
    method: bytes = b"POST",
    end: bytes = b"\r\n",
) -> bytes:
    first = [method + b" " + target + b" HTTP/1.1", b"host: x", f"authorization: Bearer {KEY}".encode()]
    first += [b"content-length: %d" % len(body)] * length
    return end.join([*first, *lines, b"", b""]) + body


CHUNKED = b"transfer-encoding: chunked"
WRONG = {
    "two lengths": asked(b"content-length: %d" % len(BODY)),
    "a list of lengths": asked(b"content-length: 62, 62", length=False),
    "a length with a sign": asked(b"content-length: +62", length=False),
    "a hexadecimal length": asked(b"content-length: 0x3e", length=False),
    "a negative length": asked(b"content-length: -1", length=False),
    "a space before the colon": asked(b"content-length : 62", length=False),
    "both framings": asked(CHUNKED),
    "both framings and a request inside": asked(
        CHUNKED, body=b"0\r\n\r\nGET /anthropic/v1/models HTTP/1.1\r\n\r\n"
    ),
    "another framing": asked(b"transfer-encoding: xchunked", length=False),
    "a control character in the framing": asked(b"transfer-encoding: \x0bchunked", length=False),
    "chunked twice": asked(CHUNKED, CHUNKED, length=False, body=b"0\r\n\r\n"),
    "a folded line": asked(b"x-a: one", b" transfer-encoding: chunked"),
    "bare line feeds": asked(end=b"\n"),
    "a line feed in a value": asked(b"x-a: one\nx-api-key: two"),
    "a carriage return in a value": asked(b"x-a: one\rx-api-key: two"),
    "a NUL in a value": asked(b"x-a: one\x00two"),
    "a NUL in a name": asked(b"x-\x00a: one"),
    "no colon": asked(f"bearer {KEY}".encode()),
    "a negative chunk": asked(CHUNKED, length=False, body=b"-1\r\n\r\n"),
    "a chunk with 0x": asked(CHUNKED, length=False, body=b"0x3e\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "chunks with line feeds": asked(CHUNKED, length=False, body=b"3e\n" + BODY + b"\n0\n\n"),
    "two hosts": asked(b"host: evil.example"),
    "a key in the first line": b"GET /x y " + KEY.encode() + b" HTTP/1.1\r\nhost: x\r\n\r\n",
    "a key in a bad name": asked(b"x-api-key : " + KEY.encode()),
    "a space in the target": asked(target=b"/openai/v1/chat completions"),
    "too long a target": asked(target=b"/openai/" + b"a" * 70_000),
    "too long a header": asked(b"x-a: " + KEY.encode() * 2000),
    "another protocol": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "another method": asked(method=b"P(ST"),
}


@pytest.mark.parametrize("name", WRONG)
async def test_a_request_that_can_be_read_in_two_ways_is_not_forwarded(
    sidecar: RunningSidecar, plane: Served, upstream: OddUpstream, other: OddUpstream, name: str
) -> None:
    """No proxy before or behind sees two requests where the sidecar sees one; and nothing of it is repeated."""
    answer = await raw(sidecar.url, WRONG[name])
    assert answer.split(b"\r\n")[0].split(b" ")[1:2] == [b"400"], answer
    assert answer.count(b"HTTP/1.") == 1
    assert KEY.encode() not in answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "INVALID_REQUEST"
    assert upstream.heard == other.heard == []
    assert plane.service.checks == []


FRAMED_ANEW = {
    "a chunk extension": asked(CHUNKED, length=False, body=b"3e;a=b\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "trailers": asked(
        CHUNKED, length=False, body=b"3e\r\n" + BODY + b"\r\n0\r\nx-api-key: evil\r\nhost: evil\r\n\r\n"
    ),
    "hop-by-hop headers": asked(
        b"connection: x-secret, x-api-key, te",
        b"x-secret: a",
        b"te: trailers",
        b"proxy-authorization: Basic x",
    ),
    "an underscore": asked(b"content_length: 5", b"transfer_encoding: chunked"),
    "another upgrade": asked(b"connection: upgrade", b"upgrade: foo", b"upgrade: websocket"),
    "names of hosts": asked(b"x-bursar-upstream: anthropic", b"x-original-url: /anthropic/v1/messages"),
}


@pytest.mark.parametrize("name", FRAMED_ANEW)
async def test_what_is_forwarded_is_framed_anew(
    sidecar: RunningSidecar, upstream: OddUpstream, name: str
) -> None:
    answer = await raw(sidecar.url, FRAMED_ANEW[name])
    assert answer.startswith(b"HTTP/1.1 200 "), answer
    (heard,) = upstream.heard
    assert heard.body == BODY
    assert heard.header("content-length") == str(len(BODY))
    assert heard.header("authorization") == "Bearer sk-openai"
    assert heard.header("host") == upstream.url.removeprefix("http://")
    gone = {
        "x-secret",
        "x-api-key",
        "te",
        "proxy-authorization",
        "transfer-encoding",
        "upgrade",
        "connection",
    }
    assert gone.isdisjoint(name for name, _ in heard.headers)
    assert not [name for name, _ in heard.headers if name.startswith("x-bursar-")]


TRICKS = [
    b"/openai/../anthropic/v1/messages",
    b"/openai/%2e%2e/anthropic/v1/messages",
    b"/openai/..%2fanthropic/v1/messages",
    b"/openai/..%5canthropic/v1/messages",
    b"/openai/..;/..;/anthropic/v1/messages",
    b"/openai/v1/%2e%2e;a=b/x",
    b"/openai/v1/..\\..\\anthropic",
    b"/openai//anthropic/v1/messages",
    b"/openai/%2f%2fevil.example/x",
    b"//evil.example/openai/v1/chat/completions",
    b"/\\evil.example/openai",
    b"http://evil.example/openai/v1/chat/completions",
    b"https://evil.example:443/openai/v1/chat/completions",
    b"http://openai@evil.example/openai/v1/chat/completions",
    b"/openai@evil.example/v1/chat/completions",
    b"/openai:443/v1/chat/completions",
    b"/openai;anthropic/v1/chat/completions",
    b"/openai%00/v1/chat/completions",
    b"/openai%2f..%2fanthropic/v1/messages",
    b"/openai#@evil.example/v1/chat/completions",
    b"evil.example:443",
    b"*",
    b"/openai/v1/chat/completions#/../../anthropic",
    b"/openai/@evil.example/v1",
    b"/openai/http://evil.example/v1",
    b"/openai/v1/chat/completions?url=http://evil.example/&upstream=anthropic",
]


@pytest.mark.parametrize("target", TRICKS)
@pytest.mark.parametrize("method", [b"POST", b"CONNECT", b"OPTIONS", b"TRACE"])
async def test_no_spelling_reaches_another_host_or_anothers_credential(
    sidecar: RunningSidecar, upstream: OddUpstream, other: OddUpstream, target: bytes, method: bytes
) -> None:
    """Only the first segment of the path chooses the upstream, and its credential goes there alone."""
    await raw(sidecar.url, asked(target=target, method=method))
    assert other.heard == []
    for heard in upstream.heard:
        assert heard.header("authorization") == "Bearer sk-openai"
        assert heard.header("host") == upstream.url.removeprefix("http://")
        assert heard.target.startswith("/")
        assert not heard.target.startswith("//")
        assert ".." not in heard.target
        assert heard.method in ("POST", "OPTIONS")
        assert KEY not in str(heard)


@pytest.mark.parametrize(
    "status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"]
)
async def test_a_redirect_is_the_apps_to_follow(
    sidecar: RunningSidecar, upstream: OddUpstream, other: OddUpstream, status: str
) -> None:
    """The sidecar never carries a credential to where an answer points."""
    upstream.answer = head(status, f"location: {other.url}/v1/messages", "content-length: 0")
    async with await sidecar.post(allow_redirects=False) as response:
        assert response.status == int(status[:3])
        assert response.headers["location"] == f"{other.url}/v1/messages"
    assert other.heard == []


UNSOUND = {
    "both framings": head("200 OK", JSON, LENGTH, CHUNKED.decode()) + chunk(CHAT) + LAST_CHUNK,
    "two lengths": head("200 OK", JSON, LENGTH, "content-length: 5") + CHAT,
    "a carriage return in a value": head("200 OK", JSON, LENGTH, "x-a: 1\rset-cookie: a=b") + CHAT,
    "a NUL in a value": head("200 OK", JSON, LENGTH, "x-a: 1\x002") + CHAT,
    "another protocol": head("101 Switching Protocols", "connection: upgrade", "upgrade: websocket")
    + b"hello",
    "a status that is none": head("99 Odd", JSON, LENGTH) + CHAT,
    "a negative chunk": head("200 OK", JSON, CHUNKED.decode()) + b"-5\r\nabc",
    "too many headers": head("200 OK", JSON, LENGTH, *(f"x-{number}: y" for number in range(3000))) + CHAT,
    "too long a header": head("200 OK", JSON, LENGTH, "x-a: " + "a" * 100_000) + CHAT,
    "no HTTP": b"SSH-2.0-OpenSSH_9.0\r\n",
}


@pytest.mark.parametrize("name", UNSOUND)
async def test_an_answer_that_is_not_sound_is_a_502(
    sidecar: RunningSidecar, plane: Served, upstream: OddUpstream, name: str
) -> None:
    upstream.script = once(UNSOUND[name])
    async with await sidecar.post(data=BODY) as response:
        assert response.status == 502
        assert (await response.json())["error"]["code"] == "UPSTREAM_UNREACHABLE"
        assert "sk-openai" not in str(response.headers)
    await until(lambda: len(plane.service.records) == 1)
    (record,) = plane.service.records.values()
    assert not record.items


async def test_an_answers_headers_end_here_where_they_are_for_this_connection(
    sidecar: RunningSidecar, upstream: OddUpstream
) -> None:
    """A provider cannot speak for the sidecar, nor to the connection behind it."""
    upstream.answer = json_answer(
        CHAT,
        "200 OK",
        "x-bursar-cost-usd: 0",
        "X-Bursar-Request-Id: evil",
        "connection: x-hop, content-type",
        "x-hop: 1",
        "x-a: 1",
        "proxy-authenticate: Basic",
        "upgrade: h2c",
        "keep-alive: timeout=1",
    )
    async with await sidecar.post(data=BODY) as response:
        assert await response.read() == CHAT
        assert response.headers["x-bursar-cost-usd"] == "0.000012"
        assert response.headers.getall("x-bursar-request-id") != ["evil"]
        assert len(response.headers.getall("x-bursar-request-id")) == 1
        assert response.headers["x-a"] == "1"
        assert {"x-hop", "proxy-authenticate", "upgrade", "keep-alive"}.isdisjoint(
            name.lower() for name in response.headers
        )


async def test_a_second_answer_nobody_asked_for_answers_nobody(
    sidecar: RunningSidecar, upstream: OddUpstream
) -> None:
    """What a provider sends behind its answer is never taken for the next call's."""
    upstream.answer = json_answer(CHAT) + json_answer(b'{"evil":true}')
    for _ in range(5):
        async with await sidecar.post(data=BODY) as response:
            assert await response.read() == CHAT
