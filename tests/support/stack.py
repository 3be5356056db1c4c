"""Bursar as a stranger runs it: real processes on free ports and throw-away folders, found by their ready lines."""

from __future__ import annotations

import itertools
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bursar_server.db.embedded.directory import DirectoryLock
from support.database import memory_folder
from support.door_clients import Reply, post, request

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
ANYWHERE = "127.0.0.1:0"
FREE_PORTS = {
    "BURSAR_LISTEN": ANYWHERE,
    "BURSAR_GRPC_LISTEN": ANYWHERE,
    "BURSAR_SIDECAR_LISTEN": ANYWHERE,
}
UP = ("-m", "bursar_server", "up")
SERVE = ("-m", "bursar_server", "serve")
SIDECAR = ("-m", "bursar_sidecar")
PROVIDER = ("-m", "bursar_sidecar.fake_provider", "--listen", ANYWHERE)

_START_TIMEOUT_S = 60
_STOP_TIMEOUT_S = 45
# What a developer's shell may hold and a stranger's does not: settings of Bursar, and keys that would make calls real.
_NOT_A_STRANGERS = ("BURSAR_", "OTEL_", "OPENAI_", "ANTHROPIC_", "GEMINI_", "GOOGLE_")


def environment(**settings: str) -> dict[str, str]:
    """Return the environment of a clean shell with free ports, and `settings` in it."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_NOT_A_STRANGERS) and not name.endswith("_API_KEY")
    }
    kept["PATH"] = f"{BIN}{os.pathsep}{kept.get('PATH', os.defpath)}"
    return {**kept, **FREE_PORTS, **settings}


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Give a folder, in memory where there is room; it is removed afterwards."""
    with memory_folder() as folder:
        lock = DirectoryLock(folder)  # says that it is not abandoned, however long it is used
        try:
            yield folder
        finally:
            lock.release()


@dataclass
class Child:
    """A process and what its ready line says; `log` is what it wrote on stderr."""

    process: subprocess.Popen[str]
    ready: dict[str, Any]
    log_file: Path

    @property
    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    @property
    def url(self) -> str:
        return f"http://{self.ready['listen']}"

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        """End it as `kill -9` does."""
        self.process.kill()
        self.process.wait()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask it to stop; return its exit code, or fail with its log when it does not."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"not stopped within {_STOP_TIMEOUT_S} s:\n{self.log}") from None


@contextmanager
def started(
    arguments: tuple[str, ...],
    environ: Mapping[str, str],
    folder: Path,
    *,
    program: Path | str = sys.executable,
    cwd: Path | None = None,
) -> Iterator[Child]:
    """Run a command until its ready line is there; it is stopped afterwards. Its stderr goes into `folder`."""
    child = spawned(arguments, environ, folder, program=program, cwd=cwd)
    try:
        child.ready = ready_line(child)
        yield child
    finally:
        try:
            child.stop()
        finally:
            if child.process.stdout is not None:
                child.process.stdout.close()


def spawned(
    arguments: tuple[str, ...],
    environ: Mapping[str, str],
    folder: Path,
    *,
    program: Path | str = sys.executable,
    cwd: Path | None = None,
) -> Child:
    """Run a command and return at once, not ready yet. Its stderr goes into `folder`."""
    log_file = folder / f"stderr-{next(_numbers)}.log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [str(program), *arguments], env=dict(environ), cwd=cwd or folder, stdout=subprocess.PIPE,
            stderr=log, stdin=subprocess.DEVNULL, text=True,
        )  # fmt: skip
    return Child(process, {}, log_file)


_numbers = itertools.count(1)


def ready_line(child: Child) -> dict[str, Any]:
    """Wait for a command's ready line and return it; fails with its log when it ends before, or takes a minute."""
    output = child.process.stdout
    assert output is not None
    if not select.select([output], [], [], _START_TIMEOUT_S)[0]:
        raise AssertionError(f"not ready within {_START_TIMEOUT_S} s:\n{child.log}")
    line = output.readline()
    if not line:
        child.process.wait(_STOP_TIMEOUT_S)
        raise AssertionError(f"ended with {child.process.returncode} before it was ready:\n{child.log}")
    ready: dict[str, Any] = json.loads(line)
    assert ready["event"] == "ready", line
    return ready


@dataclass(frozen=True)
class ControlPlane:
    """How to talk to a control plane as its administrator."""

    url: str
    grpc_address: str
    token: str
    authority: Path | None = None

    def post(self, rpc: str, body: object, token: str | None = None) -> Reply:
        """Call an RPC (`UserService/SetBudget`) as plain `curl` with JSON does."""
        return post(self.url, rpc, body, token=token or self.token, authority=self.authority)

    def rpc(self, rpc: str, body: object, token: str | None = None) -> dict[str, Any]:
        """Call an RPC that is expected to succeed; return its answer."""
        reply = self.post(rpc, body, token)
        assert reply.status == 200, f"{rpc}: {reply.status} {reply.body!r}"
        return reply.json

    def key_for(self, email: str, **fields: object) -> str:
        """Make an API key of a user, who is made too if need be; return the secret."""
        made = self.rpc("TenantService/CreateApiKey", {"name": "an app", "user_id": email, **fields})
        return str(made["secret"])

    def person(self, name: str, limit_usd: float | None = None, **fields: object) -> tuple[str, str]:
        """Make a user that no other test has, with a daily budget where a limit is given; return e-mail and key."""
        email = f"{name}-{next(_numbers)}@example.com"
        if limit_usd is None:
            self.rpc("UserService/CreateUser", {"email": email})
        else:
            self.rpc("UserService/SetBudget", {"user_id": email, "limit_usd": limit_usd, **fields})
        return email, self.key_for(email)

    def records(self, **filters: object) -> list[dict[str, Any]]:
        """Return the cost records that match (at most 1000), the newest first."""
        found = self.rpc("UsageService/ListCostRecords", {"page_size": 1000, **filters})
        return list(found.get("records", []))


@dataclass(frozen=True)
class Stack(ControlPlane):
    """Everything that `bursar up` started."""

    sidecar_url: str = ""
    provider_url: str = ""
    folder: Path = field(default_factory=Path)
    child: Child | None = None

    @property
    def data_dir(self) -> Path:
        return self.folder / "data"

    def call(
        self, path: str, body: object, key: str | None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """Make one call through the sidecar, as a client without an SDK does; streams are read to their end."""
        return call(self.sidecar_url, path, body, key, headers)

    def served(self) -> list[dict[str, Any]]:
        """Return the calls that the fake provider has served."""
        return served(self.provider_url)

    def count(self, metric: str) -> int:
        """Return a counter of the sidecar (`calls_total{upstream="openai"}`), 0 where it has not counted yet."""
        return sidecar_count(self.sidecar_url, metric)


def call(
    url: str, path: str, body: object, key: str | None, headers: Mapping[str, str] | None = None
) -> Reply:
    """Post JSON to a provider's API, as text or as an object, and read the answer to its end."""
    sent = {"content-type": "application/json", **(headers or {})}
    if key is not None:
        sent["authorization"] = f"Bearer {key}"
    data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    return request(url, path, data, headers=sent)


def served(provider_url: str) -> list[dict[str, Any]]:
    """Return the calls that a fake provider has served, the last thousand."""
    calls: list[dict[str, Any]] = json.loads(request(provider_url, "/__served", method="GET").body)
    return calls


def sidecar_count(url: str, metric: str) -> int:
    """Return a counter or gauge of a sidecar, 0 where it has not counted yet."""
    text = request(url, "/metrics", method="GET").body.decode()
    values = (line.rpartition(" ") for line in text.splitlines())
    return next((int(float(value)) for name, _, value in values if name == f"bursar_sidecar_{metric}"), 0)


def control_plane(child: Child, data_dir: Path, authority: Path | None = None) -> ControlPlane:
    """Return how to talk to the control plane that a child is."""
    scheme = "http" if authority is None else "https"
    token = (data_dir / "admin-token").read_text(encoding="utf-8").strip()
    return ControlPlane(f"{scheme}://{child.ready['listen']}", child.ready["grpc_listen"], token, authority)


def stack_of(child: Child, folder: Path, provider_url: str = "") -> Stack:
    """Return how to use what `bursar up` started with the data directory `folder/data`."""
    fake = child.ready.get("fake_provider_listen")
    return Stack(
        url=child.url,
        grpc_address=child.ready["grpc_listen"],
        token=Path(child.ready["admin_token_file"]).read_text(encoding="utf-8").strip(),
        sidecar_url=f"http://{child.ready['sidecar_listen']}",
        provider_url=f"http://{fake}" if fake else provider_url,
        folder=folder,
        child=child,
    )


@contextmanager
def running_stack(folder: Path, **settings: str) -> Iterator[Stack]:
    """Run `bursar up` in `folder` for as long as the block lasts, with a fake provider unless `settings` name one."""
    environ = environment(**{"BURSAR_DATA_DIR": str(folder / "data"), **settings})
    with started(UP, environ, folder) as child:
        yield stack_of(child, folder, settings.get("BURSAR_UPSTREAM_OPENAI_URL", ""))


def bursar(
    *arguments: str, environ: Mapping[str, str] | None = None, cwd: Path | None = None, timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run the command `bursar` to its end."""
    return subprocess.run(
        [str(BIN / "bursar"), *arguments], env=dict(environ or environment()), cwd=cwd, text=True,
        capture_output=True, stdin=subprocess.DEVNULL, check=False, timeout=timeout,
    )  # fmt: skip


def children_of(pid: int) -> list[int]:
    """Return the processes below a process, all generations."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                after_name = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents.setdefault(int(after_name[1]), []).append(int(entry.name))
    below = list(parents.get(pid, []))
    for child in below:
        below += parents.get(child, [])
    return below


def wait_until_stopped(pids: list[int], seconds: float) -> list[int]:
    """Wait until processes have ended; return those that still run after `seconds`."""
    end = time.monotonic() + seconds
    while left := [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
        if time.monotonic() > end:
            return left
        time.sleep(0.05)
    return []
