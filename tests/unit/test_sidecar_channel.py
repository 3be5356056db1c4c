"""The hop to the control plane reads HTTP/1.1 as servers and the proxies before them write it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from bursar_sidecar.channel import Answer, BrokenError, Channel, LateError, NotSentError
from support.odd_upstream import deaf_address

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/proto; x=y\r\nContent-Length: 5\r\n\r\nhello"
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter, int], Awaitable[None]]


@asynccontextmanager
async def serving(serve: Serve) -> AsyncIterator[tuple[Channel, list[int]]]:
    """Run a server that handles each connection with `serve` (given its number); count the connections."""
    connections: list[int] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(len(connections))
        try:
            await serve(reader, writer, connections[-1])
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    channel = Channel(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/base/", 1.0)
    try:
        yield channel, connections
    finally:
        await channel.close()
        server.close()


async def request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    return head + await reader.readexactly(size)


def always(answer: bytes, pieces: int = 1) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: int) -> None:
        while True:
            await request(reader)
            step = max(len(answer) // pieces, 1)
            for start in range(0, len(answer), step):
                writer.write(answer[start : start + step])
                await writer.drain()
                if pieces > 1:
                    await asyncio.sleep(0)
            if b"close" in answer or (b"length" not in answer.lower() and b"chunked" not in answer):
                return

    return serve


@pytest.mark.parametrize("pieces", [1, 7, 1000])
@pytest.mark.parametrize(
    "answer",
    [
        OK,
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
        b"HTTP/1.1 200\r\ncontent-type:application/proto\r\ntransfer-encoding: chunked\r\n\r\n2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-type: application/proto\r\nTransfer-Encoding: Chunked\r\n\r\n5\r\nhello\r\n0\r\na: b\r\n\r\n",
        b"HTTP/1.0 200 OK\r\ncontent-type: application/proto\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ncontent-type: application/proto\r\ncontent-encoding: identity\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello",
    ],
)
async def test_an_answer_is_read_however_it_is_framed(answer: bytes, pieces: int) -> None:
    async with serving(always(answer, pieces)) as (channel, _):
        for _ in range(2):
            got = await channel.post("/x", "a: b\r\n", b"body", 5)
            assert got == Answer(200, "application/proto", b"hello")


async def test_connections_are_kept() -> None:
    async with serving(always(OK)) as (channel, connections):
        for _ in range(20):
            await channel.post("/x", "", b"", 5)
        assert len(connections) == 1
        await asyncio.gather(*(channel.post("/x", "", b"", 5) for _ in range(5)))
        assert len(connections) <= 5


async def test_the_request_is_what_was_asked() -> None:
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: int) -> None:
        heard.append(await request(reader))
        writer.write(OK)

    async with serving(serve) as (channel, _):
        await channel.post("/a.b/C", "x: 1\r\n", b"\x00body", 5)
    assert heard[0].startswith(b"POST /base/a.b/C HTTP/1.1\r\nhost: 127.0.0.1:")
    assert heard[0].endswith(b"x: 1\r\ncontent-length: 5\r\n\r\n\x00body")


async def test_a_kept_connection_that_died_is_replaced() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        await request(reader)
        writer.write(OK)
        if number:
            await request(reader)
            writer.write(OK)

    async with serving(serve) as (channel, connections):
        await channel.post("/x", "", b"", 5)
        assert (await channel.post("/x", "", b"", 5)).body == b"hello"
        assert len(connections) == 2


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\nconnection: close\r\n\r\nhello",
        b"x" * 70_000,
        b"",
    ],
)
async def test_anything_else_is_a_broken_connection(answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: int) -> None:
        await request(reader)
        writer.write(answer)
        await writer.drain()

    async with serving(serve) as (channel, _):
        with pytest.raises(BrokenError):
            await channel.post("/x", "", b"", 5)


async def test_time_runs_out() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: int) -> None:
        await request(reader)
        await asyncio.sleep(0.5)

    async with serving(serve) as (channel, connections):
        with pytest.raises(LateError):
            await channel.post("/x", "", b"", 0.05)
        assert len(connections) == 1


async def test_nobody_listens() -> None:
    channel = Channel(deaf_address(), 1.0)
    with pytest.raises(NotSentError):
        await channel.post("/x", "", b"", 5)
    await channel.close()


async def test_a_late_answer_never_goes_to_another_request() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        while True:
            await request(reader)
            if number == 0:
                await asyncio.sleep(0.1)
            writer.write(OK.replace(b"hello", b"from%d" % number))

    async with serving(serve) as (channel, _):
        with pytest.raises(LateError):
            await channel.post("/x", "", b"", 0.02)
        assert (await channel.post("/x", "", b"", 5)).body == b"from1"
