"""Requests as no SDK writes them: targets that lead elsewhere, odd framing, slow bodies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from support.fake_control_plane import KEY, Served
from support.odd_upstream import CHAT, OddUpstream
from support.sidecars import RunningSidecar, environment, running_sidecar, until

AUTHORIZATION = f"authorization: Bearer {KEY}"
BODY = b'{"model":"m","messages":[]}'


@pytest.fixture
async def sidecar(plane: Served, upstream: OddUpstream, tmp_path: Path) -> AsyncIterator[RunningSidecar]:
    settings = environment(plane.url, tmp_path, openai=upstream.url) | {"BURSAR_BODY_TIMEOUT_MS": "300"}
    async with running_sidecar(settings) as running:
        yield running


async def raw(sidecar: RunningSidecar, data: bytes) -> bytes:
    """Send bytes, and return what comes until the connection closes or falls silent."""
    host, port = sidecar.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    got = b""
    try:
        async with asyncio.timeout(1.5):
            while piece := await reader.read(65536):
                got += piece
                if got.endswith((CHAT, b"}}")):
                    break
    except TimeoutError:
        pass
    finally:
        writer.close()
    return got


def posted(target: str, *lines: str, body: bytes = BODY) -> bytes:
    head = [
        f"POST {target} HTTP/1.1",
        "host: x",
        AUTHORIZATION,
        f"content-length: {len(body)}",
        *lines,
        "",
        "",
    ]
    return "\r\n".join(head).encode() + body


@pytest.mark.parametrize(
    "target",
    [
        "http://evil.example/openai/v1/chat/completions",
        "//evil.example/openai/v1/chat/completions",
        "/openai/../anthropic/v1/messages",
        "/openai/%2e%2e/anthropic/v1/messages",
        "/openai/v1//evil.example/x",
        "/openai/v1/..%2f..%2fx",
    ],
)
async def test_a_target_that_leads_elsewhere_is_a_400(
    sidecar: RunningSidecar, plane: Served, upstream: OddUpstream, target: str
) -> None:
    answer = await raw(sidecar, posted(target))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert plane.service.checks == []
    assert upstream.heard == []


@pytest.mark.parametrize("method", ["CONNECT evil.example:443", "OPTIONS *"])
async def test_it_is_no_forward_proxy(sidecar: RunningSidecar, upstream: OddUpstream, method: str) -> None:
    answer = await raw(
        sidecar, f"{method} HTTP/1.1\r\nhost: evil.example\r\n{AUTHORIZATION}\r\n\r\n".encode()
    )
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert upstream.heard == []


async def test_the_host_header_names_no_destination(sidecar: RunningSidecar, upstream: OddUpstream) -> None:
    answer = await raw(sidecar, posted("/openai/v1/chat/completions", "x-forwarded-host: evil.example"))
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert upstream.heard[0].header("host") == upstream.url.removeprefix("http://")


@pytest.mark.parametrize(
    "lines",
    [
        ("transfer-encoding: chunked",),
        ("content-length: 3",),
        ("transfer-encoding: chunked, identity",),
    ],
)
async def test_framing_with_two_meanings_is_refused(
    sidecar: RunningSidecar, upstream: OddUpstream, lines: tuple[str, ...]
) -> None:
    """Two requests must never be seen where the provider would see one, or the other way round."""
    answer = await raw(sidecar, posted("/openai/v1/chat/completions", *lines))
    assert answer.split(b" ")[1] == b"400"
    assert KEY.encode() not in answer
    assert upstream.heard == []


async def test_an_offer_of_http_2_is_passed_over(
    sidecar: RunningSidecar, plane: Served, upstream: OddUpstream
) -> None:
    """`curl --http2` offers an upgrade; the call is metered like any other."""
    lines = ("connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAMAAABkAAQAAP__")
    answer = await raw(sidecar, posted("/openai/v1/chat/completions", *lines))
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert upstream.heard[0].body == BODY
    assert [name for name, _ in upstream.heard[0].headers if name in ("upgrade", "http2-settings")] == []
    assert len(plane.service.records) == 1


async def test_a_chunked_request_is_read_whole(sidecar: RunningSidecar, upstream: OddUpstream) -> None:
    head = f"POST /openai/v1/chat/completions HTTP/1.1\r\nhost: x\r\n{AUTHORIZATION}\r\ntransfer-encoding: chunked\r\n\r\n"
    answer = await raw(
        sidecar,
        head.encode() + b"5\r\n" + BODY[:5] + b"\r\n%x\r\n" % len(BODY[5:]) + BODY[5:] + b"\r\n0\r\n\r\n",
    )
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert upstream.heard[0].body == BODY


async def test_a_body_that_never_comes_is_a_408(sidecar: RunningSidecar, plane: Served) -> None:
    data = posted("/openai/v1/chat/completions", body=BODY * 10)[: -len(BODY)]
    answer = await raw(sidecar, data)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert plane.service.checks == []


async def test_an_app_that_goes_away_within_its_body_leaves_nothing(
    sidecar: RunningSidecar, plane: Served
) -> None:
    host, port = sidecar.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(posted("/openai/v1/chat/completions", body=BODY * 10)[: -len(BODY)])
    await writer.drain()
    await asyncio.sleep(0.05)
    writer.close()
    await asyncio.sleep(0.1)
    assert plane.service.checks == []
    assert await sidecar.metric("refusals_total") == 1
    assert sidecar.sidecar.gate.open_calls == 0


async def test_requests_on_one_connection_are_told_apart(
    sidecar: RunningSidecar, plane: Served, upstream: OddUpstream
) -> None:
    await raw(sidecar, posted("/openai/v1/chat/completions") * 3)
    await until(lambda: len(plane.service.records) >= 1)
    assert all(heard.body == BODY for heard in upstream.heard)
