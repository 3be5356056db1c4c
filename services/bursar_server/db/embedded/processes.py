"""The processes of this machine, as far as they can be postgres."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True)
class Process:
    """A process that runs (not one that has ended and waits to be collected).

    `arguments` has at least one element; a server's child that renamed itself has its title as the only one.
    """

    pid: int
    uid: int
    arguments: tuple[str, ...]


def processes() -> Iterator[Process]:
    """Yield the processes that this one can see."""
    if sys.platform == "linux":
        for folder in _PROC.iterdir():
            if folder.name.isdecimal():
                found = _from_proc(int(folder.name))
                if found is not None:
                    yield found
    else:
        yield from _from_ps(["-A"])


def process(pid: int) -> Process | None:
    """Return the process with this number, or None if there is none that runs."""
    if pid <= 0:
        return None
    if sys.platform == "linux":
        return _from_proc(pid)
    return next(_from_ps(["-p", str(pid)]), None)


def working_directory(pid: int) -> os.stat_result | None:
    """Return the identity of a process's working directory, or None where this process may not know it."""
    try:
        return (_PROC / str(pid) / "cwd").stat()
    except OSError:
        return None


def _from_proc(pid: int) -> Process | None:
    folder = _PROC / str(pid)
    try:
        uid = folder.stat().st_uid
        # Empty for what has ended and for the kernel's own threads.
        command_line = (folder / "cmdline").read_bytes().rstrip(b"\0 ")
    except OSError:
        return None
    if not command_line:
        return None
    return Process(pid, uid, tuple(os.fsdecode(part) for part in command_line.split(b"\0")))


def _from_ps(selection: list[str]) -> Iterator[Process]:
    command = ["/bin/ps", *selection, "-o", "pid=,uid=,stat=,command="]
    ended = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)  # noqa: S603
    for line in ended.stdout.splitlines():
        pid, uid, state, *command_line = line.split(None, 3)
        if command_line and not state.startswith("Z"):
            # Only the words are known here: an argument with a space in it comes apart.
            title = command_line[0]
            words = (title,) if title.startswith("postgres: ") else tuple(title.split(" "))
            yield Process(int(pid), int(uid), words)
