"""The smallest aiohttp application: what a Python web process weighs before it does anything."""

from __future__ import annotations

import asyncio
import json

import uvloop
from aiohttp import web


async def hello(_request: web.Request) -> web.Response:
    """Answer anything."""
    return web.Response(text="hello\n")


async def main() -> None:
    """Serve until killed."""
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", hello)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0]
    print(json.dumps({"event": "ready", "listen": f"{host}:{port}"}), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
