"""The fake provider inside the test's own process, on a free port."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import web

from bursar_sidecar.fake_provider.served import Call, Served
from bursar_sidecar.fake_provider.server import Settings, application


@dataclass(frozen=True, slots=True)
class FakeProvider:
    """A running fake provider: where it listens, and what it has served."""

    url: str
    served: Served

    @property
    def calls(self) -> list[Call]:
        return list(self.served.calls)


@asynccontextmanager
async def fake_provider(seed: int = 0, latency_ms: int = 0) -> AsyncIterator[FakeProvider]:
    """Run a fake provider for as long as the block lasts."""
    served = Served()
    runner = web.AppRunner(application(Settings(latency_ms, seed), served), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    try:
        yield FakeProvider(f"http://{host}:{port}", served)
    finally:
        await runner.cleanup()
