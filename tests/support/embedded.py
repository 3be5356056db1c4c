"""Other processes that run an embedded PostgreSQL, and ways to look at what they leave."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from bursar_server.db.embedded.leftovers import cluster_name
from bursar_server.db.embedded.processes import Process, processes

_PROGRAM = """
import json, os, sys
from pathlib import Path
from bursar_server.db.embedded import EmbeddedPostgres, programs
from bursar_server.db.preconditions import DatabaseStartError
import encodings.idna, psycopg  # whatever is loaded late must be loaded before root is left
order = json.loads(sys.argv[1])
if order["without_kernel"]:
    programs.kernel_sends_death_signal = lambda: False
    import bursar_server.db.embedded.server as server
    server.kernel_sends_death_signal = lambda: False
if order["uid"] is not None:
    os.setgroups([])
    os.setgid(order["gid"])
    os.setuid(order["uid"])
if order["interpreter"]:
    sys.executable = order["interpreter"]
postgres = EmbeddedPostgres(Path(order["directory"]))
try:
    url = postgres.start()
except DatabaseStartError as error:
    print(json.dumps({"error": str(error)}), flush=True)
    sys.exit(3)
print(json.dumps({"url": url, "superuser_url": postgres.superuser_url, "postgres_pid": postgres.pid}), flush=True)
sys.stdin.read()
postgres.stop()
"""


@dataclass
class Owner:
    """A process that has started (or could not start) a server; closing its standard input stops both."""

    process: subprocess.Popen[str]
    answer: dict[str, Any]

    @property
    def postgres_pid(self) -> int:
        return int(self.answer["postgres_pid"])

    @property
    def url(self) -> str:
        return str(self.answer["url"])

    @property
    def error(self) -> str:
        return str(self.answer.get("error", ""))


@contextlib.contextmanager
def owner(
    directory: Path,
    *,
    account: tuple[int, int] | None = None,
    interpreter: str | None = None,
    without_kernel: bool = False,
) -> Iterator[Owner]:
    """Run another process with a server in `directory`, as `account` (uid, gid) where that is given.

    `interpreter` runs the launcher instead of the test's own; `without_kernel` does as if the kernel could not tell
    of a parent's end.
    """
    order = {
        "directory": str(directory),
        "uid": account[0] if account else None,
        "gid": account[1] if account else None,
        "interpreter": interpreter,
        "without_kernel": without_kernel,
    }
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, json.dumps(order)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        yield Owner(process, json.loads(line) if line else {})
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired, BrokenPipeError):
            process.communicate(timeout=30)
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


def copied(database: Path, target: Path) -> Path:
    """Copy a stopped server's folder with owners and modes, which takes a tenth of making one; return `target`."""
    subprocess.run(["cp", "-a", str(database), str(target)], check=True)
    return target


def servers_of(database: Path) -> list[Process]:
    """Return the processes of the server in a folder."""
    mark = cluster_name(database / "data")
    return [one for one in processes() if any(mark in argument for argument in one.arguments)]


def is_running(pid: int) -> bool:
    """Whether a process runs: one that has ended and is not collected does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # gone before, or while it was read
        return False
    except NotADirectoryError:
        return Path(f"/proc/{pid}").exists()
    return state not in "ZX"


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 15.0) -> None:
    """Wait for something that is about to be true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.005)


def execute(url: str, *statements: str) -> list[Any]:
    """Run statements, each committed; return the first column of the last one's rows."""
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.cursor()
        for statement in statements:
            cursor.execute(statement)
        return [row[0] for row in cursor.fetchall()] if cursor.description else []
