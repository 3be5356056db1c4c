"""What the kernel says of processes: the processor time they used, and the memory they hold."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")


def cpu_s(pid: int) -> float:
    """Return the processor time of a process, all of its threads, in seconds (to 10 ms)."""
    fields = _fields(pid)
    return (int(fields[11]) + int(fields[12])) / _TICKS


def tree_cpu_s(pid: int) -> float:
    """Return the processor time of a process with all processes below it, those that have ended included."""
    fields = _fields(pid)
    total = sum(int(fields[index]) for index in (11, 12, 13, 14)) / _TICKS
    for child in _children(pid):
        try:
            total += tree_cpu_s(child)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total


def rss_mib(pid: int) -> float:
    """Return the resident memory of a process in MiB."""
    for line in (_PROC / str(pid) / "status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ProcessLookupError(pid)


def _fields(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on."""
    return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()


def _children(pid: int) -> Iterable[int]:
    for tasks in (_PROC / str(pid) / "task").glob("*/children"):
        try:
            yield from (int(child) for child in tasks.read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
