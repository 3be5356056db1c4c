"""The hop to a provider: connections are kept, answers come when they please, and a proxy is gone through."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from bursar.v1 import metering_pb2
from support.fake_control_plane import Served
from support.odd_upstream import CHAT, OddUpstream, json_answer
from support.sidecars import AUTHORIZED, CHAT_PATH, RunningSidecar, environment, running_sidecar, until


@pytest.fixture
async def sidecar(plane: Served, upstream: OddUpstream, tmp_path: Path) -> AsyncIterator[RunningSidecar]:
    async with running_sidecar(environment(plane.url, tmp_path, openai=upstream.url)) as running:
        yield running


async def answered(sidecar: RunningSidecar, **request: Any) -> tuple[int, bytes]:
    async with await sidecar.post(**request) as response:
        return response.status, await response.read()


async def test_a_connection_is_used_again(sidecar: RunningSidecar, upstream: OddUpstream) -> None:
    for _ in range(5):
        assert await answered(sidecar) == (200, CHAT)
    assert upstream.connections == 1


async def test_a_connection_that_the_provider_ends_is_not(
    sidecar: RunningSidecar, upstream: OddUpstream
) -> None:
    upstream.answer = json_answer(CHAT, "200 OK", "connection: close")
    for _ in range(3):
        assert await answered(sidecar) == (200, CHAT)
    assert upstream.connections == 3


async def test_an_app_that_has_left_takes_its_connection_along(
    sidecar: RunningSidecar, upstream: OddUpstream, plane: Served
) -> None:
    """Half an answer stays unread: whoever came next would read the rest of it as its own."""

    async def halting(_: object, writer: asyncio.StreamWriter) -> None:
        writer.write(json_answer(CHAT)[:-5])
        await writer.drain()
        await asyncio.sleep(0.4)
        writer.write(json_answer(CHAT)[-5:])

    upstream.script = halting
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await answered(sidecar)
    upstream.script = None
    assert await answered(sidecar) == (200, CHAT)
    assert upstream.connections == 2


async def test_interim_answers_are_passed_over(
    sidecar: RunningSidecar, upstream: OddUpstream, plane: Served
) -> None:
    interim = b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"
    upstream.answer = interim + json_answer(CHAT)
    for _ in range(2):
        assert await answered(sidecar) == (200, CHAT)
    assert len(plane.service.records) == 2


@pytest.mark.parametrize(
    "answer", [b"SSH-2.0-OpenSSH_9.6\r\n\r\n", b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n"]
)
async def test_what_is_no_answer_is_a_502(
    sidecar: RunningSidecar, upstream: OddUpstream, plane: Served, answer: bytes
) -> None:
    upstream.answer = answer
    status, body = await answered(sidecar)
    assert status == 502
    assert json.loads(body)["error"]["code"] == "UPSTREAM_UNREACHABLE"
    (record,) = plane.service.records.values()
    assert record.outcome == metering_pb2.OUTCOME_FAILED


class Impatient(asyncio.Protocol):
    """A provider that answers 413 as soon as it has seen a head, reads no more, and leaves the connection open."""

    def __init__(self, made: list[asyncio.Transport]) -> None:
        self.made = made

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.made.append(transport)

    def data_received(self, data: bytes) -> None:
        self.transport.pause_reading()
        self.transport.write(json_answer(b'{"error":{"message":"too long"}}', "413 Content Too Large"))


@asynccontextmanager
async def impatient() -> AsyncIterator[str]:
    made: list[asyncio.Transport] = []
    server = await asyncio.get_running_loop().create_server(lambda: Impatient(made), "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for transport in made:
            transport.abort()


@pytest.mark.parametrize("size", [6 << 20, 1_000_000, 10])
async def test_an_answer_that_comes_before_its_request_is_read_is_passed_on(
    plane: Served, tmp_path: Path, size: int
) -> None:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "A" * size}]}).encode()
    async with (
        impatient() as url,
        running_sidecar(environment(plane.url, tmp_path, openai=url)) as sidecar,
        asyncio.timeout(4),
    ):
        status, _ = await answered(sidecar, data=io.BytesIO(body))
    assert status == 413


async def test_a_proxy_is_gone_through(
    plane: Served, upstream: OddUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", upstream.url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    async with running_sidecar(environment(plane.url, tmp_path, openai="http://provider.example")) as sidecar:
        assert await answered(sidecar) == (200, CHAT)
    assert upstream.heard[0].target == "http://provider.example/v1/chat/completions"


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize("pause_s", [0.0, 0.05])
async def test_an_answer_that_nobody_asked_for_is_nobodys(
    sidecar: RunningSidecar, upstream: OddUpstream, method: str, pause_s: float
) -> None:
    """A provider that answers twice (or says 408 to a connection that waits) must not answer somebody else's call."""

    async def twice(_: object, writer: asyncio.StreamWriter) -> None:
        writer.write(json_answer(CHAT))
        await asyncio.sleep(pause_s)
        writer.write(json_answer(b'{"of":"another"}'))

    upstream.script = twice
    assert await answered(sidecar) == (200, CHAT)
    await asyncio.sleep(0.1)
    upstream.script = None
    request = sidecar.client.request(method, sidecar.url + CHAT_PATH, json={"model": "m"}, headers=AUTHORIZED)
    async with request as response:
        assert await response.read() == CHAT
    assert upstream.connections == 2


@asynccontextmanager
async def silent() -> AsyncIterator[str]:
    """Give the address of a provider that takes connections and never says anything, not even which TLS it speaks."""
    made: list[asyncio.Transport] = []

    class Silent(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            made.append(transport)

    server = await asyncio.get_running_loop().create_server(Silent, "127.0.0.1", 0)
    try:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for transport in made:
            transport.abort()


@pytest.mark.parametrize(("method", "size"), [("POST", 10), ("POST", 2 << 20), ("PUT", 10)])
@pytest.mark.parametrize("why", ["app", "time", "stop"])
async def test_a_call_that_is_given_up_before_it_was_sent_is_released(
    plane: Served, tmp_path: Path, method: str, size: int, why: str
) -> None:
    """S17: the app leaves, the time is up or the sidecar stops while there is no connection yet: nothing was sent."""
    async with silent() as provider:
        settings = environment(plane.url, tmp_path, openai=provider)
        settings |= {"BURSAR_ON_DISCONNECT": "CANCEL", "BURSAR_SHUTDOWN_TIMEOUT_MS": "200"}
        if why == "time":
            settings["BURSAR_UPSTREAM_ANSWER_TIMEOUT_MS"] = "300"
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * size}]})
        async with running_sidecar(settings) as sidecar:
            data = io.BytesIO(body.encode())
            request = sidecar.client.request(method, sidecar.url + CHAT_PATH, data=data, headers=AUTHORIZED)
            if why == "time":
                async with request as response:
                    assert response.status == 504
            else:
                asking = asyncio.ensure_future(request.__aenter__())
                await until(lambda: sidecar.sidecar.gate.open_calls == 1)
                await asyncio.sleep(0.1)
                if why == "app":
                    asking.cancel()
                    await until(lambda: sidecar.sidecar.gate.open_calls == 0)
                    await until(lambda: bool(plane.service.released))
            # Only a time that is up is a failure of the provider's.
            assert await sidecar.metric("upstream_errors_total") == (why == "time")
        if why == "stop":
            with pytest.raises(aiohttp.ClientError):
                await asking
        assert [record.outcome for record in plane.service.records.values()] == []
        assert len(plane.service.released) == 1
        assert not plane.service.holds
