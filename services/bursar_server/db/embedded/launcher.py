"""Starts a program of PostgreSQL as the right account, tied to the life of the process that asked for it.

Run as a script by `python -I -S`, with the standard library alone; never imported. It exists because none of this can
be done safely between fork and exec of a process that has threads:

    launcher.py run PARENT_PID UID GID DEATH_SIGNAL PROGRAM ARGUMENT...
        becomes PROGRAM, in the working directory it was started in. With UID >= 0 it first leaves root for UID and
        GID for good. With DEATH_SIGNAL > 0 the kernel sends that signal when the starting thread ends.
    launcher.py watch PID
        waits for the end of its standard input, then sends SIGINT to PID; for systems without that service of the
        kernel. A byte on the standard input says that there is nothing to watch any more.
"""

import ctypes  # before root is left: the account may not be able to read the standard library
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1

FAILED = 125


def _fail(message: str) -> None:
    sys.stderr.write(message + "\n")
    sys.stderr.flush()
    os._exit(FAILED)


def _leave_root(uid: int, gid: int) -> None:
    try:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    except OSError as error:
        _fail(
            f"cannot become uid {uid} gid {gid}: {error.strerror}; start Bursar as an ordinary user instead"
        )


def _ask_for_death_signal(number: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0) != 0:
        _fail(f"prctl(PR_SET_PDEATHSIG): {os.strerror(ctypes.get_errno())}")


def _run(arguments: list[str]) -> None:
    parent_pid, uid, gid, death_signal = (int(number) for number in arguments[:4])
    command = arguments[4:]
    if uid >= 0:
        _leave_root(uid, gid)
    os.umask(0o077)
    if death_signal > 0:
        # After setuid and not before: a change of credentials clears it.
        _ask_for_death_signal(death_signal)
    # Who dies before the line above sends no signal.
    if os.getppid() != parent_pid:
        _fail("the starting process has gone")
    # The interpreter may need these, the program finds its libraries by itself.
    environment = {k: v for k, v in os.environ.items() if k not in ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")}
    try:
        os.execve(command[0], command, environment)  # noqa: S606  (no shell is the point)
    except OSError as error:
        _fail(f"cannot run {command[0]}: {error.strerror}")


def _watch(arguments: list[str]) -> None:
    pid = int(arguments[0])
    if sys.stdin.buffer.read(1):
        return
    try:
        # The server leads its own session; a stranger that got its number since then hardly does.
        if os.getsid(pid) == pid:
            os.kill(pid, signal.SIGINT)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    {"run": _run, "watch": _watch}[sys.argv[1]](sys.argv[2:])
