"""The sidecar itself, on a machine whose clock is wrong by what a file says, which may change at any time."""

from __future__ import annotations

import mmap
import os
import struct
import time
from pathlib import Path

from bursar_sidecar import clock
from bursar_sidecar.cli import main

CLOCK_FILE = "CHAOS_CLOCK_FILE"
_OFFSET = struct.Struct("<q")


def set_clock(path: Path, offset_s: int) -> None:
    """Let the clock of the sidecars that look into `path` be so many seconds ahead."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        os.pwrite(fd, _OFFSET.pack(offset_s * 1_000_000_000), 0)
    finally:
        os.close(fd)


def _run() -> None:
    with Path(os.environ[CLOCK_FILE]).open("rb") as file:
        view = mmap.mmap(file.fileno(), _OFFSET.size, access=mmap.ACCESS_READ)

    def now_ns(_self: clock.SystemClock) -> int:
        return time.time_ns() + int(_OFFSET.unpack_from(view)[0])

    setattr(clock.SystemClock, "now_ns", now_ns)  # noqa: B010
    main()


if __name__ == "__main__":
    _run()
