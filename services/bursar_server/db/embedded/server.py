"""The embedded PostgreSQL: started with Bursar, stopped with it, and the same SQL as any other server."""

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import psycopg

from bursar_server.db.embedded import cluster
from bursar_server.db.embedded.account import ServerAccount, choose_account
from bursar_server.db.embedded.binaries import Binaries, find_binaries, runnable_binaries
from bursar_server.db.embedded.directory import DirectoryLock, SocketFolder, give_to_holder
from bursar_server.db.embedded.leftovers import PID_FILE, cluster_name, end_leftovers
from bursar_server.db.embedded.programs import (
    ServerProcess,
    data_argument,
    kernel_sends_death_signal,
    launch_command,
)
from bursar_server.db.preconditions import DatabaseStartError

_POLL_S = 0.004
_RETRY_S = 0.2
# Recovery reads at most max_wal_size of log; a server that works on it is not given up for being slow.
_READY_TIMEOUT_S = 600.0
_STOP_STEPS = ((signal.SIGINT, 60.0), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 10.0))
_LARGEST_LOG_BYTES = 4 << 20

# What a server says that meets the remains of an earlier one; they go away.
_IN_THE_WAY = re.compile(r"lock file .* already exists|pre-existing shared memory block|is still in use")


class EmbeddedPostgres:
    """A PostgreSQL server of this process's own, in one folder.

    The folder holds the cluster (`data`, with the socket, mode 0700), a password for each role (0600), the server's
    log, and a lock that this process keeps while the server runs. The server takes connections by its Unix socket
    alone and only with a password. It gets a fast shutdown when this process ends, also by `kill -9`.

    Blocking; use it from a thread of an event loop's process. Not safe to call from two threads at once.
    """

    def __init__(
        self,
        directory: Path,
        *,
        on_exit: Callable[[int], None] | None = None,
        start_timeout_s: float = 60.0,
    ) -> None:
        """Name the folder; nothing happens yet.

        `on_exit(status)` is called in another thread if the server ends without `stop()` (a negative status is the
        signal that ended it): what was committed is safe, and connections fail until a new start. `start_timeout_s`
        bounds how long a start waits for the remains of an earlier server.
        """
        self._directory = directory
        self._on_exit = on_exit
        self._start_timeout_s = start_timeout_s
        self._passwords: dict[str, str] = {}
        self._lock: DirectoryLock | None = None
        self._socket_folder: SocketFolder | None = None
        self._process: ServerProcess | None = None

    @property
    def url(self) -> str:
        """The address of the database `bursar` for the role that owns it, for psycopg; it holds the password."""
        return self._url(cluster.ROLE, cluster.DATABASE)

    @property
    def superuser_url(self) -> str:
        """The address of the database `postgres` for the server's superuser: for maintenance, never for requests."""
        return self._url(cluster.SUPERUSER, "postgres")

    @property
    def pid(self) -> int | None:
        """The server's process number, or None when it does not run."""
        process = self._process
        return process.pid if process is not None and process.exit_status is None else None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> str:
        """Start the server, making the cluster at the first start; return `url` when it answers.

        Processes and files that a killed server left are cleared away first.

        Raises:
            DirectoryInUseError: another process runs a server here.
            DatabaseStartError: anything else in the way; the message says what.

        """
        if self._lock is not None:
            raise DatabaseStartError(f"the server in {self._directory} is already started")
        try:
            directory = self._open_directory()
            account = choose_account(directory, directory / "data")
            self._lock = DirectoryLock(directory)
            self._start_in(directory, account)
        except OSError as error:
            self.stop()
            raise DatabaseStartError(f"the embedded PostgreSQL cannot start: {error}") from error
        except BaseException:
            self.stop()
            raise
        return self.url

    def stop(self) -> None:
        """Shut the server down, ending what its connections do, and let the folder go; also after a failed start.

        What does not end within a minute is stopped harder; nothing that was committed is lost by that.
        """
        process, self._process = self._process, None
        for number, timeout_s in _STOP_STEPS:
            if process is None or process.stop(number, timeout_s):
                break
        if self._socket_folder is not None:
            self._socket_folder.close()
            self._socket_folder = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _open_directory(self) -> Path:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory = self._directory.resolve(strict=True)
        return self._directory

    def _start_in(self, directory: Path, account: ServerAccount) -> None:
        pgdata = directory / "data"
        is_new = not cluster.is_initialised(pgdata)
        found = find_binaries(None if is_new else cluster.major_version(pgdata))
        binaries = runnable_binaries(found, account)
        if is_new:
            cluster.create_cluster(pgdata, binaries, account)
        deadline = time.monotonic() + self._start_timeout_s
        end_leftovers(pgdata, timeout_s=self._start_timeout_s)
        if not all(cluster.password_file(directory, role).is_file() for role in cluster.ROLES):
            cluster.set_passwords(pgdata, binaries, account, is_new=False)
        for role in cluster.ROLES:
            self._passwords[role] = cluster.password_file(directory, role).read_text().strip()
        self._socket_folder = SocketFolder(pgdata)
        while (complaint := self._launch(pgdata, binaries, account)) is not None:
            if not _IN_THE_WAY.search(complaint) or time.monotonic() > deadline:
                raise DatabaseStartError(f"postgres did not start:\n{complaint}")
            time.sleep(_RETRY_S)
            end_leftovers(pgdata, timeout_s=self._start_timeout_s)
        self._say_hello(directory)
        if self._on_exit is not None and self._process is not None:
            self._process.call_at_end(self._on_exit)

    def _launch(self, pgdata: Path, binaries: Binaries, account: ServerAccount) -> str | None:
        """Start a server and wait until it takes connections; return None, or what it said when it ended instead."""
        log, log_size = _open_log(pgdata.parent)
        try:
            command = launch_command(
                account,
                _server_command(pgdata, binaries),
                death_signal=signal.SIGINT if kernel_sends_death_signal() else None,
            )
            process = ServerProcess(command, directory=pgdata, log_handle=log)
            process.start()
            self._process = process
            deadline = time.monotonic() + _READY_TIMEOUT_S
            while not _is_ready(pgdata, process.pid):
                if process.wait(_POLL_S):
                    self._process = None
                    return (
                        _log_since(log, log_size) or f"it ended with status {process.exit_status} and no word"
                    )
                if time.monotonic() > deadline:
                    raise DatabaseStartError(f"postgres was not ready in {_READY_TIMEOUT_S:.0f} s")
        finally:
            os.close(log)
        return None

    def _say_hello(self, directory: Path) -> None:
        try:
            psycopg.connect(self.url, connect_timeout=10).close()
        except psycopg.OperationalError as error:
            files = ", ".join(str(cluster.password_file(directory, role)) for role in cluster.ROLES)
            raise DatabaseStartError(
                f"the embedded PostgreSQL runs, but does not let Bursar in: {error}".rstrip()
                + f"\nIf the password is wrong: delete {files}, and the next start makes new ones."
            ) from error

    def _url(self, role: str, database: str) -> str:
        if self._socket_folder is None:
            raise DatabaseStartError("the embedded PostgreSQL is not started")
        return f"postgresql://{role}:{quote(self._passwords[role])}@/{database}?host={quote(str(self._socket_folder.path))}&port=5432"


def _server_command(pgdata: Path, binaries: Binaries) -> list[str]:
    settings = {
        "cluster_name": cluster_name(pgdata),
        "listen_addresses": "",
        "port": "5432",
        "unix_socket_directories": ".",  # the working directory, `pgdata`: no path is too long for it
        "unix_socket_permissions": "0700",
        "logging_collector": "off",
        "log_destination": "stderr",
        # Says in a list of processes which folder it is, because -D does not.
        "bursar.directory": str(pgdata),
    }
    command = [str(binaries.postgres), "-D", data_argument(pgdata)]
    for name, value in settings.items():
        command += ["-c", f"{name}={value}"]
    return command


def _is_ready(pgdata: Path, pid: int) -> bool:
    """Whether the server says in its lock file that it takes connections."""
    try:
        handle = os.open(pgdata / PID_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        lines = os.read(handle, 4096).decode(errors="replace").splitlines()
    finally:
        os.close(handle)
    return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"


def _open_log(directory: Path) -> tuple[int, int]:
    """Open the server's log to append to, and return it with its size; a large one is set aside first."""
    path = directory / "postgres.log"
    with contextlib.suppress(FileNotFoundError):
        if path.lstat().st_size > _LARGEST_LOG_BYTES:
            path.replace(directory / "postgres.log.1")
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open(path, flags, 0o600)
    give_to_holder(handle, directory)
    return handle, os.fstat(handle).st_size


def _log_since(handle: int, size: int) -> str:
    text = os.pread(handle, 65536, size).decode(errors="replace")
    return "\n".join(text.strip().splitlines()[-12:])
