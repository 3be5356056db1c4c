"""What an earlier server left behind: processes that nothing stops any more, and files that name them."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from bursar_server.db.embedded.processes import Process, process, processes, working_directory
from bursar_server.db.preconditions import DatabaseStartError

SOCKET_NAME = ".s.PGSQL.5432"
PID_FILE = "postmaster.pid"

# Here and not the path of the folder: it needs no permission on the folders above, and has one length.
HERE = "/proc/self/cwd"

_POLL_S = 0.01
# Fast shutdown, then immediate shutdown, then the kill that PostgreSQL recovers from as well.
_ESCALATION: tuple[tuple[float, signal.Signals], ...] = (
    (0.0, signal.SIGINT),
    (15.0, signal.SIGQUIT),
    (20.0, signal.SIGKILL),
)


def cluster_name(pgdata: Path) -> str:
    """Return the mark that every process of a server in `pgdata` carries in its command line, and no other server."""
    status = pgdata.stat()
    return f"bursar-{status.st_dev:x}-{status.st_ino:x}"


def end_leftovers(pgdata: Path, *, timeout_s: float, monotonic: Callable[[], float] = time.monotonic) -> None:
    """Stop every process of an earlier server in `pgdata`, then delete the files that would keep a new one out.

    The caller holds the directory's lock, so a server that carries the mark has lost its parent. Files are deleted
    only when no postgres uses the directory: not the one they name, and none of ours.

    Raises:
        DatabaseStartError: a postgres that Bursar did not start uses the directory, or ours does not end in time.

    """
    owner, mark = pgdata.stat().st_uid, cluster_name(pgdata)
    started = monotonic()
    steps = list(_ESCALATION)
    while remaining := [found for found in processes() if found.uid == owner and _carries(found, mark)]:
        elapsed = monotonic() - started
        if elapsed > timeout_s:
            pids = ", ".join(str(found.pid) for found in remaining)
            raise DatabaseStartError(f"processes of an earlier server in {pgdata} do not end: {pids}")
        if steps and elapsed >= steps[0][0]:
            _signal(remaining, steps.pop(0)[1])
        time.sleep(_POLL_S)
    for name in (PID_FILE, f"{SOCKET_NAME}.lock"):
        _delete_stale_lock_file(pgdata, name, owner, mark)


def _carries(found: Process, mark: str) -> bool:
    if len(found.arguments) == 1:
        return found.arguments[0].startswith(f"postgres: {mark}: ")
    return _is_postgres(found) and f"cluster_name={mark}" in found.arguments


def _is_postgres(found: Process) -> bool:
    return Path(found.arguments[0]).name in ("postgres", "postmaster")


def _signal(found: list[Process], number: signal.Signals) -> None:
    """Tell the server, which tells its children; or the children themselves where it is gone or beyond telling."""
    servers = [one for one in found if len(one.arguments) > 1]
    targets = servers if servers and number != signal.SIGKILL else found
    if not servers and number == signal.SIGINT:
        number = signal.SIGTERM  # to a child, SIGINT is only the cancelling of a statement
    for one in targets:
        try:
            os.kill(one.pid, number)
        except ProcessLookupError:
            continue
        except PermissionError as error:
            raise DatabaseStartError(
                f"an earlier server is still running as pid {one.pid}: {error}"
            ) from error


def _delete_stale_lock_file(pgdata: Path, name: str, owner: int, mark: str) -> None:
    path = pgdata / name
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except OSError:
        path.unlink(missing_ok=True)  # a link or worse: nothing that PostgreSQL writes
        return
    try:
        first_line = os.read(handle, 64).split(b"\n")[0].strip()
    finally:
        os.close(handle)
    # A stand-alone backend writes its number with a minus.
    pid = abs(int(first_line)) if first_line.lstrip(b"-").isdigit() else 0
    named = process(pid)
    if named is not None and named.uid == owner and _may_use(named, pgdata, mark):
        raise DatabaseStartError(
            f"{pgdata} is in use by a postgres that Bursar did not start, pid {pid}; stop it and start again"
        )
    path.unlink(missing_ok=True)


def _may_use(found: Process, pgdata: Path, mark: str) -> bool:
    """Whether a process that a lock file names can be a server in `pgdata`; in doubt it can."""
    if not _is_postgres(found):
        return False
    directory = working_directory(found.pid)
    if directory is not None:
        return os.path.samestat(directory, pgdata.stat())
    for name, value in zip(found.arguments, found.arguments[1:], strict=False):
        if name == "-D" and value != HERE:
            return os.path.realpath(value) == os.path.realpath(pgdata)
        if value.startswith("cluster_name=bursar-"):
            return value == f"cluster_name={mark}"
    return True
