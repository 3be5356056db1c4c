"""`bursar up`: the control plane in this process; the sidecar, and a fake provider where there is no key, as its children."""

import asyncio
import contextlib
import json
import os
import re
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from bursar_server.bootstrap import ControlPlane, running_control_plane
from bursar_server.config import Config
from bursar_server.kit.addresses import Address
from bursar_server.process import (
    START_ERRORS,
    announce,
    settle_memory,
    stop_signal,
    try_ports,
    why_not_started,
)
from bursar_server.settings import parse_address
from bursar_server.telemetry import set_up_logging, telemetry_of

# The variables that usually hold a provider's key: with one of them the real providers are used.
PROVIDER_KEYS = (
    "OPENAI_API_KEY",
    "ANTHROPIC_API_KEY",
    "GEMINI_API_KEY",
    "GOOGLE_API_KEY",
    "AZURE_OPENAI_API_KEY",
    "AZURE_API_KEY",
    "AWS_BEARER_TOKEN_BEDROCK",
    "MISTRAL_API_KEY",
    "GROQ_API_KEY",
    "DEEPSEEK_API_KEY",
    "XAI_API_KEY",
    "COHERE_API_KEY",
    "CO_API_KEY",
    "OPENROUTER_API_KEY",
    "TOGETHER_API_KEY",
    "CEREBRAS_API_KEY",
    "PERPLEXITY_API_KEY",
    "HF_TOKEN",
)
FAKED = ("OPENAI", "ANTHROPIC", "GEMINI")
# Longer than an earlier sidecar may take to finish its calls: the new one waits for its outbox.
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 35.0

# Becomes a program that the kernel ends with SIGTERM when the process that started it goes, even by kill -9. Between
# fork and exec of a process with threads nothing of this would be safe, so it is a program of its own.
_LAUNCHER = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 15, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the starting process has gone")
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


class ChildError(Exception):
    """A child did not become ready; the message names it."""


@dataclass(slots=True)
class Child:
    """A running child and what its ready line said."""

    name: str
    process: asyncio.subprocess.Process
    ready: Mapping[str, Any]

    async def stop(self) -> None:
        """Ask it to stop and wait until it has finished what it accepted; then end it."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self.process.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()


@asynccontextmanager
async def child(name: str, arguments: tuple[str, ...], environ: Mapping[str, str]) -> AsyncIterator[Child]:
    """Run `python <arguments>` and give it once its ready line is there; it is stopped when the context closes."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *arguments,
        env=dict(environ), stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        # Ctrl-C reaches this process alone, which stops its children in order.
        start_new_session=True,
    )  # fmt: skip
    running = Child(name, process, {})
    try:
        running.ready = await _ready_line(name, process)
        yield running
    finally:
        await running.stop()


async def _ready_line(name: str, process: asyncio.subprocess.Process) -> Mapping[str, Any]:
    if process.stdout is None:
        raise ChildError(f"{name} has no output")
    try:
        line = await asyncio.wait_for(process.stdout.readline(), START_TIMEOUT_S)
        found = json.loads(line)
    except (TimeoutError, ValueError) as error:
        raise ChildError(f"the {name} did not start; what it said is above") from error
    if not isinstance(found, dict):
        raise ChildError(f"the {name} said something else than that it is ready")
    return found


def has_provider(environ: Mapping[str, str]) -> bool:
    """Whether the environment names a provider: a key in its usual variable, or an upstream's address or key."""
    return any(
        value and (name in PROVIDER_KEYS or re.fullmatch(r"BURSAR_UPSTREAM_.+_(URL|API_KEY)", name))
        for name, value in environ.items()
    )


def sidecar_environ(
    environ: Mapping[str, str], config: Config, plane: ControlPlane, sidecar_listen: Address, fake: str | None
) -> dict[str, str]:
    """Return the environment of the sidecar: ours, with where the control plane is, and the fake provider."""
    found = dict(environ)
    scheme = "http" if config.tls is None else "https"
    found.setdefault("BURSAR_CONTROL_PLANE_URL", f"{scheme}://{plane.listen.reachable}")
    if config.tls is not None:
        found.setdefault("BURSAR_CONTROL_PLANE_CA", str(config.tls.certificate))
    found["BURSAR_SIDECAR_TOKEN"] = plane.sidecar_token
    found["BURSAR_DATA_DIR"] = str(config.data_dir)
    found["BURSAR_LOG_LEVEL"] = config.log_level
    found["BURSAR_SIDECAR_LISTEN"] = str(sidecar_listen)
    if fake is not None:
        for name in FAKED:
            found[f"BURSAR_UPSTREAM_{name}_URL"] = f"http://{fake}"
            found[f"BURSAR_UPSTREAM_{name}_API_KEY"] = "fake"
    # Settings of the control plane's file, and what only the operator may know, are not the sidecar's.
    for name in ("BURSAR_CONFIG", "BURSAR_ADMIN_TOKEN", "BURSAR_DATABASE_URL"):
        found.pop(name, None)
    return found


async def run_up(
    config: Config, sidecar_listen: Address, environ: Mapping[str, str], tell: Callable[[str], None]
) -> int:
    """Run everything until SIGTERM, SIGINT or the end of a child; return the exit code.

    `tell` says lines to the person who started it.
    """
    set_up_logging(config.log_level)
    telemetry = telemetry_of(environ)
    stop = stop_signal()
    ready = False
    try:
        try_ports(config.listen, config.grpc_listen, sidecar_listen)
        async with contextlib.AsyncExitStack() as stack:
            plane = await stack.enter_async_context(running_control_plane(config, telemetry))
            children = []
            fake = None
            if not has_provider(environ):
                arguments = ("-m", "bursar_sidecar.fake_provider", "--listen", "127.0.0.1:0")
                provider = await stack.enter_async_context(child("fake provider", arguments, environ))
                fake = str(provider.ready["listen"])
                children.append(provider)
            settings = sidecar_environ(environ, config, plane, sidecar_listen, fake)
            sidecar = await stack.enter_async_context(child("sidecar", ("-m", "bursar_sidecar"), settings))
            children.append(sidecar)
            ready = True
            settle_memory()
            line = _line(config, plane, str(sidecar.ready["listen"]), fake)
            announce(line)
            tell(hints(line, config))
            return await _until_the_end(stop, plane.failed, children, tell)
    except (*START_ERRORS, ChildError) as error:
        if ready:
            raise
        tell(f"bursar: {why_not_started(error, config, {'BURSAR_SIDECAR_LISTEN': sidecar_listen})}")
        return 1
    finally:
        telemetry.close()


def _line(config: Config, plane: ControlPlane, sidecar_listen: str, fake: str | None) -> dict[str, Any]:
    admin_token_file = None if config.admin_token else str(config.admin_token_file.resolve())
    line = {
        "listen": str(plane.listen),
        "grpc_listen": str(plane.grpc_listen),
        "sidecar_listen": sidecar_listen,
        "admin_token_file": admin_token_file,
    }
    return line if fake is None else {**line, "fake_provider_listen": fake}


async def _until_the_end(
    stop: asyncio.Event, failed: asyncio.Event, children: list[Child], tell: Callable[[str], None]
) -> int:
    """Wait for a signal, or for a part that ends by itself: then nothing is restarted, and everything stops."""
    stopping = asyncio.create_task(stop.wait())
    failing = asyncio.create_task(failed.wait())
    ends = {asyncio.create_task(running.process.wait()): running for running in children}
    done, rest = await asyncio.wait({stopping, failing, *ends}, return_when=asyncio.FIRST_COMPLETED)
    for task in rest:
        task.cancel()
    if stopping in done:
        tell("Stopping: what was accepted is finished first. Ctrl-C again ends it at once.")
        return 0
    if failing in done:
        tell("bursar: the embedded database ended; stopping")
    for task in done:
        if task in ends:
            tell(f"bursar: the {ends[task].name} ended with status {task.result()}; stopping")
    return 1


_HINTS = r"""
Bursar is running; Ctrl-C stops it.

  control plane   {url}   (gRPC: {grpc})
  sidecar         {sidecar}
  data            {data}
  provider        {provider}

Try in another terminal: a budget, a key, and a call through the sidecar.

  TOKEN={token}
  curl -sw '\n' {url}/bursar.v1.UserService/SetBudget -H "Authorization: Bearer $TOKEN" \
    -H "Content-Type: application/json" -d '{{"user_id":"alice@example.com","limit_usd":10.0}}'
  KEY=$(curl -s {url}/bursar.v1.TenantService/CreateApiKey -H "Authorization: Bearer $TOKEN" \
    -H "Content-Type: application/json" -d '{{"name":"my app","user_id":"alice@example.com"}}' \
    | sed 's/.*"secret":"\([^"]*\)".*/\1/')
  curl -siw '\n' {sidecar}/openai/v1/chat/completions -H "Authorization: Bearer $KEY" \
    -H "Content-Type: application/json" \
    -d '{{"model":"gpt-4o","messages":[{{"role":"user","content":"Say hello."}}]}}'

"""


def hints(line: Mapping[str, Any], config: Config) -> str:
    """Return what a person can do next, with the addresses and paths as they are."""
    scheme = "http" if config.tls is None else "https"
    token_file = line["admin_token_file"]
    fake = line.get("fake_provider_listen")
    listen = parse_address(line["listen"]).reachable
    return _HINTS.format(
        url=f"{scheme}://{listen}",
        grpc=line["grpc_listen"],
        sidecar=f"http://{parse_address(line['sidecar_listen']).reachable}",
        data=config.data_dir.resolve(),
        provider=f"a fake one at {fake}; set OPENAI_API_KEY (or another provider's) for a real one"
        if fake
        else "as the environment says",
        token=f"$(cat {shlex.quote(token_file)})" if token_file else '"$BURSAR_ADMIN_TOKEN"',
    )
