"""A server that gives every request the same answer and counts them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import web


@dataclass(slots=True)
class Canned:
    """Where the server listens, and how many requests it has had."""

    url: str = ""
    requests: int = 0


@asynccontextmanager
async def canned(status: int, headers: Mapping[str, str], body: bytes) -> AsyncIterator[Canned]:
    """Answer everything with `status`, `headers` and `body` for as long as the block lasts."""
    found = Canned()

    async def answer(_request: web.Request) -> web.Response:
        found.requests += 1
        return web.Response(status=status, headers=headers, body=body)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    found.url = f"http://{host}:{port}"
    try:
        yield found
    finally:
        await runner.cleanup()
