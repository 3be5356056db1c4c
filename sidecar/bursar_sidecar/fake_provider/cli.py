"""The fake provider's command line."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from pathlib import Path

import click
from aiohttp import web

from bursar_sidecar.fake_provider.served import Served
from bursar_sidecar.fake_provider.server import Settings, application


@click.command(name="bursar-fake-provider")
@click.option(
    "--listen", default="127.0.0.1:0", show_default=True, help="HOST:PORT; port 0 takes a free one."
)
@click.option("--latency-ms", default=0, show_default=True, help="Wait before each answer, milliseconds.")
@click.option("--seed", default=0, show_default=True, help="Other texts and token counts.")
@click.option(
    "--log", "log_path", type=click.Path(path_type=Path), help="Append a line of JSON for each call."
)
def main(listen: str, latency_ms: int, seed: int, log_path: Path | None) -> None:
    """Serve OpenAI's, Anthropic's and Gemini's APIs without any of them."""
    host, _, port = listen.rpartition(":")
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(log_path.open("a", encoding="utf-8")) if log_path is not None else None
        served = Served(log=log)
        asyncio.run(_serve(host or "127.0.0.1", int(port), Settings(latency_ms, seed), served))


async def _serve(host: str, port: int, settings: Settings, served: Served) -> None:
    runner = web.AppRunner(application(settings, served), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, host.strip("[]"), port)
    await site.start()
    bound_host, bound_port = runner.addresses[0][:2]
    shown = f"[{bound_host}]" if ":" in bound_host else bound_host
    click.echo(json.dumps({"event": "ready", "listen": f"{shown}:{bound_port}"}))
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
    await runner.cleanup()
