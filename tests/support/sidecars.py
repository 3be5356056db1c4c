"""A sidecar in the test's own process, or in one of its own that can be killed."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from bursar_sidecar.app import Sidecar
from bursar_sidecar.clock import Clock
from bursar_sidecar.config import load
from support.fake_control_plane import KEY, TOKEN
from support.odd_upstream import CHAT

AUTHORIZED = {"authorization": f"Bearer {KEY}"}
CHAT_PATH = "/openai/v1/chat/completions"


def environment(control_plane: str, directory: Path, **upstreams: str) -> dict[str, str]:
    """Return what a sidecar needs; `upstreams` are addresses by name."""
    found = {
        "BURSAR_SIDECAR_LISTEN": "127.0.0.1:0",
        "BURSAR_CONTROL_PLANE_URL": control_plane,
        "BURSAR_SIDECAR_TOKEN": TOKEN,
        "BURSAR_DATA_DIR": str(directory),
        "NO_PROXY": "*",
    }
    for name, url in upstreams.items():
        found[f"BURSAR_UPSTREAM_{name.upper()}_URL"] = url
        found[f"BURSAR_UPSTREAM_{name.upper()}_API_KEY"] = f"sk-{name}"
    return found


@dataclass
class RunningSidecar:
    """A sidecar and a client that talks to it."""

    url: str
    sidecar: Sidecar
    client: aiohttp.ClientSession

    def post(self, path: str = CHAT_PATH, **kwargs: object) -> Awaitable[aiohttp.ClientResponse]:
        """Call with the test's key; a body that is not given is a small chat completion."""
        headers = {**AUTHORIZED, **kwargs.pop("headers", {})}  # type: ignore[dict-item]
        if "data" not in kwargs and "json" not in kwargs:
            kwargs["json"] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}]}
        return self.client.post(self.url + path, headers=headers, **kwargs)  # type: ignore[arg-type]

    async def metric(self, name: str) -> float:
        async with self.client.get(self.url + "/metrics") as response:
            text = await response.text()
        return sum(
            float(line.rpartition(" ")[2])
            for line in text.splitlines()
            if line.startswith((f"bursar_sidecar_{name} ", f"bursar_sidecar_{name}{{"))
        )


@asynccontextmanager
async def running_sidecar(
    settings: dict[str, str], clock: Clock | None = None
) -> AsyncIterator[RunningSidecar]:
    """Run a sidecar for as long as the block lasts."""
    sidecar = Sidecar(load({}, settings, {}), logging.getLogger("bursar_sidecar"), clock)
    listen = await sidecar.start()
    async with aiohttp.ClientSession() as client:
        try:
            yield RunningSidecar(f"http://{listen}", sidecar, client)
        finally:
            await sidecar.stop()


@dataclass
class SidecarProcess:
    """A sidecar in a process of its own."""

    url: str
    process: asyncio.subprocess.Process

    async def kill(self) -> None:
        """End it as a crash does."""
        self.process.kill()
        await self.process.wait()

    async def terminate(self) -> int:
        """Ask it to stop; return its exit status."""
        self.process.terminate()
        return await asyncio.wait_for(self.process.wait(), 20)


@asynccontextmanager
async def sidecar_process(
    settings: dict[str, str], *flags: str, log: Path | None = None
) -> AsyncIterator[SidecarProcess]:
    """Run `bursar-sidecar` for as long as the block lasts, unless it is ended earlier; `log` gets its stderr."""
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ}
    with log.open("wb") if log is not None else nullcontext() as stderr:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "bursar_sidecar",
            *flags,
            env={**inherited, **settings},
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
        )
    assert process.stdout is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), 20)
        assert line, f"ended with status {await process.wait()} before it was ready"
        ready = json.loads(line)
        assert ready["event"] == "ready"
        yield SidecarProcess(f"http://{ready['listen']}", process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        process._transport.close()  # type: ignore[attr-defined]  # else its pipe is closed only by the collector


async def raw(url: str, data: bytes) -> bytes:
    """Send bytes, and return what comes until the connection closes or falls silent."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    got = b""
    try:
        async with asyncio.timeout(1.0):
            while piece := await reader.read(65536):
                got += piece
                if got.endswith((CHAT, b"}}")):
                    break
    except (TimeoutError, ConnectionError):
        pass
    finally:
        writer.close()
    return got


async def until(true: Callable[[], bool], within_s: float = 5.0) -> None:
    """Return when the condition holds; fails when it does not in time."""
    async with asyncio.timeout(within_s):
        while not true():  # noqa: ASYNC110  (it looks at what others change)
            await asyncio.sleep(0.01)
