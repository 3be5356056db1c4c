"""Everything as real processes: control plane, sidecar, a provider that costs nothing, and the proxy to compare with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from bench.load import chat_body, request_bytes
from bench.machine import cpu_s
from bench.postgres import Server
from support.stack import (
    ROOT,
    SERVE,
    SIDECAR,
    Child,
    ControlPlane,
    control_plane,
    environment,
    started,
)

USERS = 64
CHAT = "/v1/chat/completions"
PLENTY_USD = 10_000_000


def environment_of(folder: Path, **settings: str) -> dict[str, str]:
    """Return a stranger's environment, in which compiled modules are kept as an installation keeps them."""
    found = environment(NO_PROXY="*", PYTHONPYCACHEPREFIX=str(folder / "pycache"), **settings)
    found.pop("PYTHONDONTWRITEBYTECODE", None)
    found.pop("PYTHONUNBUFFERED", None)
    return found


@contextmanager
def running(folder: Path, *arguments: str, **settings: str) -> Iterator[Child]:
    """Run one of Bursar's commands, or a module of these benchmarks, until the block ends."""
    with started(arguments, environment_of(folder, **settings), folder, cwd=ROOT) as child:
        yield child


@dataclass
class Stack:
    """What runs, and the keys of the users who call."""

    folder: Path
    server: Server
    database_url: str
    plane: Child
    admin: ControlPlane
    sidecar: Child
    provider: Child
    proxy: Child
    keys: list[str]

    def metered(self, *, stream: bool = False, headers: dict[str, str] | None = None) -> list[bytes]:
        """Return the calls of all users through the sidecar."""
        body = chat_body(stream=stream)
        return [request_bytes(self.sidecar.url, f"/openai{CHAT}", key, body, headers) for key in self.keys]

    def plain(self, *, stream: bool = False, headers: dict[str, str] | None = None) -> list[bytes]:
        """Return a call as it goes to the provider, directly or through the proxy."""
        return [request_bytes(self.proxy.url, CHAT, "sk-bench", chat_body(stream=stream), headers)]

    def sidecar_cpu_s(self) -> float:
        """Return the sidecar's processor time."""
        return cpu_s(self.sidecar.pid)

    def plane_cpu_s(self) -> float:
        """Return the processor time of the control plane and PostgreSQL."""
        return cpu_s(self.plane.pid) + self.server.cpu_s()

    def charged(self) -> int:
        """Return how many calls are in the books."""
        with psycopg.connect(self.database_url) as connection:
            row = connection.execute("SELECT count(*) FROM usage_records WHERE source = 'DEDUCT'").fetchone()
        return int(row[0]) if row else 0


@contextmanager
def running_stack(server: Server, folder: Path) -> Iterator[Stack]:
    """Run everything; users have no rate limit and plenty to spend."""
    data = folder / "bursar"
    url = server.create("stack")
    with ExitStack() as stack:
        provider = stack.enter_context(running(folder, "-m", "bench.upstream"))
        proxy = stack.enter_context(running(folder, "-m", "bench.proxy", provider.url))
        settings = {"BURSAR_DATABASE_URL": url, "BURSAR_DATA_DIR": str(data)}
        plane = stack.enter_context(running(folder, *SERVE, **settings))
        admin = control_plane(plane, data)
        sidecar = stack.enter_context(running(folder, *SIDECAR, **sidecar_settings(data, plane, provider)))
        yield Stack(folder, server, url, plane, admin, sidecar, provider, proxy, _users(admin))


def sidecar_settings(data: Path, plane: Child, provider: Child) -> dict[str, str]:
    """Return how a sidecar finds its control plane and provider."""
    return {
        "BURSAR_CONTROL_PLANE_URL": plane.url,
        "BURSAR_DATA_DIR": str(data),
        "BURSAR_UPSTREAM_OPENAI_URL": provider.url,
        "BURSAR_UPSTREAM_OPENAI_API_KEY": "sk-bench",
    }


def _users(admin: ControlPlane) -> list[str]:
    """Make users with a daily budget each, below a budget of the tenant and a global one; return their keys."""
    keys = []
    for number in range(USERS):
        email = f"user-{number}@example.com"
        admin.rpc("UserService/SetBudget", {"user_id": email, "limit_usd": PLENTY_USD})
        admin.rpc("UserService/UpdateUser", {"id": email, "rate_limit": 0})
        keys.append(admin.key_for(email))
    for scope in ({"tenant_id": "default"}, {}):
        budget = {"name": "all", "scope": scope, "limit_usd": PLENTY_USD}
        admin.rpc("BudgetService/CreateBudget", {"budget": budget})
    return keys


def sidecar_token(data: Path) -> str:
    """Return the token that the control plane made for sidecars."""
    return (data / "sidecar-token").read_text(encoding="utf-8").strip()
