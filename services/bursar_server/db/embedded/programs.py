"""Runs PostgreSQL's programs as the server's account, so that none outlives this process."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bursar_server.db.embedded.account import ServerAccount
from bursar_server.db.embedded.leftovers import HERE
from bursar_server.db.preconditions import DatabaseStartError

_LAUNCHER = Path(__file__).with_name("launcher.py")
_PROGRAM_TIMEOUT_S = 120.0


def kernel_sends_death_signal() -> bool:
    """Whether a child can ask this system for a signal at its parent's end."""
    return sys.platform == "linux"


def data_argument(pgdata: Path) -> str:
    """Return the value of -D for a program whose working directory is `pgdata`.

    On Linux not the path: the account may not be allowed to walk it, and `initdb` puts it into shell commands.
    """
    return HERE if sys.platform == "linux" else str(pgdata)


def launch_command(
    account: ServerAccount, command: Sequence[str | Path], *, death_signal: signal.Signals | None
) -> list[str]:
    """Return the command line that becomes `command`, run as `account`."""
    uid, gid = (account.uid, account.gid) if account.leaves_root else (-1, -1)
    number = int(death_signal) if death_signal is not None else 0
    head = [
        sys.executable,
        "-I",
        "-S",
        str(_LAUNCHER),
        "run",
        str(os.getpid()),
        str(uid),
        str(gid),
        str(number),
    ]
    return head + [str(part) for part in command]


def program_environment() -> Mapping[str, str]:
    """Return an environment that says nothing about databases, in which texts are English and times UTC."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH") if name in os.environ}
    return {"LC_ALL": "C", "TZ": "UTC", "PATH": "/usr/bin:/bin", **kept}


def run_program(
    account: ServerAccount, command: Sequence[str | Path], *, directory: Path, given: str = ""
) -> None:
    """Run a program to its end, in `directory`, with `given` on its standard input.

    Raises:
        DatabaseStartError: it failed or took more than two minutes; the message has its last lines.

    """
    death_signal = signal.SIGKILL if kernel_sends_death_signal() else None
    name = Path(command[0]).name
    try:
        ended = subprocess.run(  # noqa: S603  (programs of the installed package alone)
            launch_command(account, command, death_signal=death_signal),
            cwd=directory,
            env=program_environment(),
            input=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            timeout=_PROGRAM_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DatabaseStartError(f"{name} did not end in {_PROGRAM_TIMEOUT_S:.0f} s") from error
    if ended.returncode != 0:
        lines = "\n".join(ended.stdout.strip().splitlines()[-12:])
        raise DatabaseStartError(f"{name} failed with status {ended.returncode}:\n{lines}")


class ServerProcess:
    """A server as a direct child, which gets a fast shutdown when this process ends, however it ends.

    The kernel's death signal counts from the end of the *thread* that started the child, so one thread starts it and
    stays until it has ended.
    """

    def __init__(self, command: Sequence[str], *, directory: Path, log_handle: int) -> None:
        self._command = command
        self._directory = directory
        self._log_handle = log_handle
        self._popen: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._failure: OSError | None = None
        self._spawned = threading.Event()
        self._ended = threading.Event()
        self._telling = threading.Lock()
        self._on_end: Callable[[int], None] | None = None

    @property
    def pid(self) -> int:
        """The server's process number."""
        assert self._popen is not None, "not started"  # noqa: S101
        return self._popen.pid

    @property
    def exit_status(self) -> int | None:
        """How the server ended (negative: by that signal), or None while it runs."""
        return self._popen.returncode if self._popen is not None and self._ended.is_set() else None

    def start(self) -> None:
        """Start the server; it may not answer yet."""
        threading.Thread(target=self._keep, name="bursar-postgres", daemon=True).start()
        self._spawned.wait()
        if self._failure is not None:
            raise DatabaseStartError(f"cannot start postgres: {self._failure}") from self._failure
        if not kernel_sends_death_signal():
            self._watchdog = _start_watchdog(self.pid)

    def call_at_end(self, on_end: Callable[[int], None]) -> None:
        """Have `on_end(exit_status)` called, in a thread of this object, when the server ends by itself."""
        with self._telling:
            self._on_end = on_end
        if self._ended.is_set():
            self._tell()

    def stop(self, number: signal.Signals, timeout_s: float) -> bool:
        """Send a signal if the server still runs; return whether it has ended within the time."""
        with self._telling:
            self._on_end = None
        if self._popen is not None and not self._ended.is_set():
            # Not reaped yet, or `_ended` would be set: the number is still its own.
            self._popen.send_signal(number)
        has_ended = self._ended.wait(timeout_s)
        if has_ended:
            self._dismiss_watchdog()
        return has_ended

    def wait(self, timeout_s: float) -> bool:
        """Wait for the server's end; return whether it has ended."""
        return self._ended.wait(timeout_s)

    def _keep(self) -> None:
        try:
            self._popen = subprocess.Popen(  # noqa: S603  (as above)
                self._command,
                cwd=self._directory,
                env=program_environment(),
                stdin=subprocess.DEVNULL,
                stdout=self._log_handle,
                stderr=self._log_handle,
                # Ctrl-C in a terminal is for Bursar, which stops its server when the work is done.
                start_new_session=True,
            )
        except OSError as error:
            self._failure = error
            return
        finally:
            self._spawned.set()
        self._popen.wait()
        self._ended.set()
        self._tell()

    def _tell(self) -> None:
        with self._telling:
            on_end, self._on_end = self._on_end, None
        if on_end is not None and self._popen is not None:
            self._dismiss_watchdog()
            on_end(self._popen.returncode)

    def _dismiss_watchdog(self) -> None:
        watchdog, self._watchdog = self._watchdog, None
        if watchdog is not None:
            watchdog.communicate(b".")


def _start_watchdog(pid: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603  (our own script)
        [sys.executable, "-I", "-S", str(_LAUNCHER), "watch", str(pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
