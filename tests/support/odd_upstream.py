"""A provider that a test scripts to the byte: what it answers, when it stops, what it heard."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field


@dataclass
class Heard:
    """One request as it arrived; header names in lower case."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name), None)


Script = Callable[[Heard, asyncio.StreamWriter], Awaitable[None]]


def head(status: str = "200 OK", *lines: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode()


def json_answer(body: bytes, status: str = "200 OK", *lines: str) -> bytes:
    return head(status, "content-type: application/json", f"content-length: {len(body)}", *lines) + body


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


STREAM_HEAD = head("200 OK", "content-type: text/event-stream", "transfer-encoding: chunked")
LAST_CHUNK = b"0\r\n\r\n"

CHAT = (
    b'{"id":"1","object":"chat.completion","model":"gpt-4o-mini-2024-07-18","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"Hello"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":7,"completion_tokens":5,"total_tokens":12}}'
)


@dataclass
class OddUpstream:
    """Where it listens, what it heard, and what it does next (`answer` bytes, or a `script`)."""

    url: str = ""
    answer: bytes = json_answer(CHAT)
    script: Script | None = None
    heard: list[Heard] = field(default_factory=list)
    connections: int = 0
    broken: int = 0  # connections that the other side closed while a script was writing


def deaf_address() -> str:
    """Return an address where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


def once(answer: bytes) -> Script:
    """Answer and close the connection."""

    async def run(_: Heard, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.close()

    return run


async def _heard(reader: asyncio.StreamReader) -> Heard | None:
    first = await reader.readline()
    if not first:
        return None
    method, target, _ = first.decode().split(" ")
    headers: list[tuple[str, str]] = []
    while (line := await reader.readline()).strip():
        name, _, value = line.decode("latin-1").partition(":")
        headers.append((name.strip().lower(), value.strip()))
    size = next((int(value) for name, value in headers if name == "content-length"), 0)
    return Heard(method, target, headers, await reader.readexactly(size))


@asynccontextmanager
async def odd_upstream() -> AsyncIterator[OddUpstream]:
    """Run a scripted upstream for as long as the block lasts."""
    odd = OddUpstream()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        odd.connections += 1
        try:
            while (heard := await _heard(reader)) is not None:
                odd.heard.append(heard)
                if odd.script is None:
                    writer.write(odd.answer)
                    await writer.drain()
                else:
                    await odd.script(heard, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            odd.broken += 1
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1 << 20)
    odd.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield odd
    finally:
        server.close()
