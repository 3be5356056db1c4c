"""`bursar up` as a person runs it, and the commands beside it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.readme import install_curl
from support.stack import SERVE, UP, Child, environment, scratch_folder, started


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[Child, Path]]:
    with (
        scratch_folder() as folder,
        started(UP, environment(BURSAR_DATA_DIR=str(folder / "data")), folder) as child,
    ):
        yield child, folder


def bursar(folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a command beside a running Bursar, in its data directory."""
    return subprocess.run(
        [sys.executable, "-m", "bursar_server", *arguments],
        env=environment(**{"BURSAR_DATA_DIR": str(folder / "data"), **settings}),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def children_of(pid: int) -> set[int]:
    listed = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True
    ).stdout
    return {int(line.split()[0]) for line in listed.splitlines() if int(line.split()[1]) == pid}


def gone(pids: set[int], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return True
        time.sleep(0.05)
    return False


def test_the_hints_are_commands_that_work(running: tuple[Child, Path]) -> None:
    """What `make up` prints to try next is run as it stands."""
    child, folder = running
    end = time.monotonic() + 5
    while "Say hello." not in child.log:  # they come after the ready line
        assert time.monotonic() < end
        time.sleep(0.01)
    lines = child.log.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("  TOKEN="))
    commands = "\n".join(lines[first : lines.index("", first)])
    settings = environment()
    if shutil.which("curl") is None:
        install_curl(folder)
        settings["PATH"] = f"{folder}{os.pathsep}{settings['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", commands], cwd=folder, env=settings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert '"limitNanos":"10000000000"' in done.stdout
    assert re.search(r"^HTTP/1.1 200 OK\r?$", done.stdout, re.MULTILINE)
    assert "x-bursar-cost-usd" in done.stdout


def test_secrets_are_their_owners_alone(running: tuple[Child, Path]) -> None:
    child, folder = running
    token_file = Path(child.ready["admin_token_file"])
    assert token_file == (folder / "data" / "admin-token").resolve()
    for path in (token_file, folder / "data" / "sidecar-token"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.read_text().strip() not in child.log


def test_a_token_is_printed_once_and_works(running: tuple[Child, Path]) -> None:
    """F006, F008: made beside the running installation; a person's reads its own budget."""
    child, folder = running
    done = bursar(folder, "token", "create", "--user", "bob@example.com", "--name", "laptop")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"bat_[\w-]{43}\n", done.stdout)
    assert done.stdout.strip() not in done.stderr
    assert "There was no user bob@example.com: it was made." in done.stderr
    again = bursar(folder, "token", "create", "--user", "bob@example.com")
    assert "There was no user" not in again.stderr
    token = done.stdout.strip()
    asked = urllib.request.Request(
        f"{child.url}/bursar.v1.UserService/GetMyBudget",
        data=b"{}",
        headers={"authorization": f"Bearer {token}", "content-type": "application/json"},
    )
    with urllib.request.urlopen(asked, timeout=30) as answer:
        body = json.load(answer)
    assert body["user"]["email"] == "bob@example.com"
    refused = bursar(folder, "token", "create", "--role", "tenant_admin", "--tenant", "no such")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("bursar: no such tenant")


def test_the_doctor_finds_nothing_and_then_something(running: tuple[Child, Path]) -> None:
    child, folder = running
    healthy = bursar(folder, "doctor", BURSAR_LISTEN=child.ready["listen"])
    assert healthy.returncode == 0, healthy.stdout
    assert "a Bursar is running here, and is ready" in healthy.stdout
    assert healthy.stdout.endswith("All is well.\n")
    token_file = Path(child.ready["admin_token_file"])
    token_file.chmod(0o644)
    try:
        ill = bursar(folder, "doctor", BURSAR_LISTEN=child.ready["sidecar_listen"])
    finally:
        token_file.chmod(0o600)
    assert ill.returncode == 1
    assert f"-> chmod 600 {folder / 'data' / 'admin-token'}" in ill.stdout
    assert "-> end the program that uses it, or choose another with BURSAR_LISTEN" in ill.stdout
    unreachable = bursar(folder, "doctor", BURSAR_DATABASE_URL="postgresql://u:secret-word@127.0.0.1:1/x")
    assert unreachable.returncode == 1
    assert "cannot be reached" in unreachable.stdout
    assert "secret-word" not in unreachable.stdout + unreachable.stderr


def test_a_second_one_says_who_is_there(running: tuple[Child, Path]) -> None:
    child, folder = running
    second = bursar(folder, "up")
    assert (second.returncode, second.stdout) == (1, "")
    assert f"in use by pid {child.pid}; is Bursar running already?" in second.stderr


@pytest.mark.parametrize("name", ["BURSAR_LISTEN", "BURSAR_GRPC_LISTEN", "BURSAR_SIDECAR_LISTEN"])
def test_a_port_in_use_is_named_before_anything_starts(tmp_path: Path, name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = bursar(tmp_path, "up", **{name: address})
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"bursar: cannot listen on {address}: address already in use")
    assert done.stderr.endswith(f"choose another with {name}\n")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_stops_everything(number: int) -> None:
    with scratch_folder() as folder:
        with started(UP, environment(BURSAR_DATA_DIR=str(folder / "data")), folder) as child:
            others = children_of(child.pid)
            assert len(others) >= 3  # PostgreSQL, the sidecar, the fake provider
            assert child.stop(number) == 0
            assert gone(others, 5)
            assert "Traceback" not in child.log
        # And what it left starts again.
        with started(SERVE, environment(BURSAR_DATA_DIR=str(folder / "data")), folder) as again:
            assert set(again.ready) == {"event", "listen", "grpc_listen"}
            assert again.stop() == 0


def test_kill_9_leaves_no_process_behind() -> None:
    with (
        scratch_folder() as folder,
        started(UP, environment(BURSAR_DATA_DIR=str(folder / "data")), folder) as child,
    ):
        others = children_of(child.pid)
        child.kill()
        assert gone(others, 20)


def test_the_end_of_a_child_ends_the_rest() -> None:
    with (
        scratch_folder() as folder,
        started(UP, environment(BURSAR_DATA_DIR=str(folder / "data")), folder) as child,
    ):
        [sidecar] = [
            pid
            for pid in children_of(child.pid)
            if b"bursar_sidecar\0" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        os.kill(sidecar, signal.SIGKILL)
        assert child.process.wait(30) == 1
        assert "the sidecar ended with status -9; stopping" in child.log
