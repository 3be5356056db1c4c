"""The command `bursar-sidecar`."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bursar_sidecar.config import Config, ConfigError, load
from bursar_sidecar.settings import SETTINGS

if TYPE_CHECKING:
    from bursar_sidecar.app import Sidecar

_GC_THRESHOLD = 50_000
#: Signals that come with the first are part of it: when a parent dies, the kernel sends one for each of its threads.
_ONE_SIGNAL_S = 1.0
#: How often it is tried whether a stopping predecessor has let go of the outbox.
_RETRY_S = 0.1

_TEACHES = """Stand next to an app as a reverse proxy to its LLM providers, and keep it within its budgets.

Before every call the sidecar asks the control plane whether anything is left, afterwards it deducts what the call cost,
before the app sees the end of the answer.

\b
Start it beside a control plane:
  bursar-sidecar --control-plane-url http://127.0.0.1:8080 --data-dir ./.bursar
Then give the app its Bursar key and this address instead of the provider's:
  OPENAI_BASE_URL=http://127.0.0.1:4000/openai/v1      OPENAI_API_KEY=bur_…
  ANTHROPIC_BASE_URL=http://127.0.0.1:4000/anthropic   ANTHROPIC_API_KEY=bur_…

\b
The providers' own keys stay here, in their usual variables (OPENAI_API_KEY, ANTHROPIC_API_KEY, GEMINI_API_KEY …).
A provider of your own, speaking OpenAI's API, reached under /vllm/…:
  bursar-sidecar --upstream vllm.url=http://10.0.0.7:8000 --upstream vllm.dialect=openai
or BURSAR_UPSTREAM_VLLM_URL and BURSAR_UPSTREAM_VLLM_DIALECT in the environment.

Flags win over environment variables, these over the file that --config names. When it is ready it prints one JSON line
on stdout; logs go to stderr as JSON lines. /healthz, /readyz and /metrics say how it is.
"""


def main() -> None:
    """Run the command line."""
    command()


def _options(function: Callable[..., None]) -> Callable[..., None]:
    for setting in reversed(SETTINGS):
        default = setting.default if setting.default is not None else "none"
        text = f"{setting.help} [{setting.name}; {setting.unit}; default {default}]"
        function = click.option(setting.flag, setting.name, default=None, metavar="TEXT", help=text)(function)
    return function


@click.command(help=_TEACHES, context_settings={"max_content_width": 110})
@click.option(
    "--config", "config_file", type=click.Path(path_type=Path), envvar="BURSAR_CONFIG", default=None
)
@click.option(
    "--upstream", "upstream_flags", multiple=True, metavar="NAME.FIELD=VALUE", help="Where a provider is."
)
@_options
def command(config_file: Path | None, upstream_flags: tuple[str, ...], **given: str | None) -> None:
    """Read the settings and run until SIGTERM or SIGINT."""
    flags = {name: value for name, value in given.items() if value}
    try:
        config = load(flags, os.environ, _file(config_file), upstream_flags)
    except ConfigError as error:
        click.echo(f"bursar-sidecar: {error}", err=True)
        sys.exit(2)
    sys.exit(_run(_serve(config)))


async def _serve(config: Config) -> int:
    # Before the libraries are loaded: what they bring stays, and looking through it now and then only takes time.
    gc.set_threshold(_GC_THRESHOLD, 10, 10)
    from bursar_sidecar.outbox import OutboxInUseError  # late: --help and a wrong setting answer at once
    from bursar_sidecar.telemetry import start_logging

    logger = start_logging(config.log_level)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    heed = _stop_or_quit(stop, loop)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, heed)
    try:
        sidecar = await _built(config, logger, stop)
        listen = await sidecar.start()
    except (OutboxInUseError, OSError) as error:
        click.echo(f"bursar-sidecar: {error}", err=True)
        return 1
    _settle_memory()
    click.echo(json.dumps({"event": "ready", "listen": listen}))
    sys.stdout.flush()
    await stop.wait()
    logger.info("stopping", extra={"fields": {"open_calls": sidecar.gate.open_calls}})
    await sidecar.stop()
    logger.info("stopped", extra={"fields": {"outbox_depth": sidecar.outbox.depth}})
    return 0


async def _built(config: Config, logger: logging.Logger, stop: asyncio.Event) -> Sidecar:
    """Return the sidecar, as soon as a predecessor that is stopping has finished its calls.

    Raises OutboxInUseError where one that goes on has the outbox, or when this process is to stop meanwhile.
    """
    from bursar_sidecar.app import Sidecar
    from bursar_sidecar.outbox import OutboxInUseError

    told = False
    while True:
        try:
            return Sidecar(config, logger)
        except OutboxInUseError as error:
            if not error.stopping or stop.is_set():
                raise
            if not told:
                logger.info("waiting for an earlier sidecar to finish", extra={"fields": {"pid": error.pid}})
            told = True
        await asyncio.sleep(_RETRY_S)


def _stop_or_quit(stop: asyncio.Event, loop: asyncio.AbstractEventLoop) -> Callable[[], None]:
    """Return what stops at the first signal, and at a later one leaves at once: what is in the outbox is safe."""
    first_s: list[float] = []

    def heed() -> None:
        if first_s and loop.time() - first_s[0] > _ONE_SIGNAL_S:
            os._exit(130)
        first_s.append(loop.time())
        stop.set()

    return heed


def _settle_memory() -> None:
    """Let the collector pass over what has been loaded: it lives as long as the process."""
    gc.collect()
    gc.freeze()


def _run(main_coroutine: Coroutine[Any, Any, int]) -> int:
    try:
        import uvloop
    except ImportError:  # not made for every platform
        return asyncio.run(main_coroutine)
    return uvloop.run(main_coroutine)


def _file(path: Path | None) -> dict[str, object]:
    if path is None:
        return {}
    import yaml  # late: only those who use a file pay for it

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--config {path}: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"--config {path}: must hold name: value")
    return {str(key): value for key, value in content.items()}
