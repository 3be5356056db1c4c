"""What a provider gets on the wire, however large the body is and whatever state the connection is in."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from aiohttp.client_proto import ResponseHandler

from bursar_sidecar.sending import AUTO_HEADERS, OutgoingRequest

_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def _on_the_wire(bodies: list[bytes | None]) -> list[tuple[bytes, bytes]]:
    """Return head and body of each POST as a server reads them, all sent over one connection."""
    seen: list[tuple[bytes, bytes]] = []
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while len(seen) < len(bodies):
            head = await reader.readuntil(b"\r\n\r\n")
            size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            seen.append((head, await reader.readexactly(size)))
            writer.write(_ANSWER)
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with (
        server,
        aiohttp.ClientSession(request_class=OutgoingRequest, skip_auto_headers=AUTO_HEADERS) as session,
    ):
        for body in bodies:
            answer = await session.post(f"http://127.0.0.1:{port}/x", data=body, headers={"X-App": "1"})
            assert await answer.read() == b"ok"
    assert connections == 1
    return seen


@pytest.mark.parametrize("paused", [False, True])
async def test_bodies_of_every_size_arrive_whole_behind_their_heads(
    monkeypatch: pytest.MonkeyPatch, paused: bool
) -> None:
    """F099: small, empty, missing and large, one after the other; also where a connection takes nothing for now."""
    if paused:
        monkeypatch.setattr(ResponseHandler, "writing_paused", property(lambda _: True))
    bodies = [
        b'{"model":"m"}',
        None,
        b"",
        bytes(range(256)) * 2048,
        b"x" * (64 << 10),
        b"y" * ((64 << 10) + 1),
    ]
    seen = await _on_the_wire(bodies)
    assert [body for _, body in seen] == [body or b"" for body in bodies]


async def test_nothing_is_added_to_what_the_app_says() -> None:
    """F099: no header of the library's own, neither with a small body nor with a large one nor without."""
    for head, body in await _on_the_wire([b"{}", None, b"z" * 200_000]):
        names = [line.partition(b":")[0].lower() for line in head.split(b"\r\n")[1:-2]]
        assert sorted(names) == [b"content-length", b"host", b"x-app"]
        assert b"content-length: %d\r\n" % len(body) in head.lower()
