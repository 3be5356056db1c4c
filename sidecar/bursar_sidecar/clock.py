"""Time: the one place of the sidecar that asks the machine for it."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Tells the time; passed to whoever needs it, so that a test can set it."""

    def now_ns(self) -> int:
        """Return the instant in nanoseconds since 1970 (UTC). It may jump when the machine's clock is set."""
        ...

    def monotonic(self) -> float:
        """Return seconds since an unspecified start; never goes back. For durations and deadlines."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def now_ns(self) -> int:
        """Return the machine's idea of the instant in nanoseconds since 1970."""
        return time.time_ns()

    def monotonic(self) -> float:
        """Return the machine's monotonic clock in seconds."""
        return time.monotonic()
