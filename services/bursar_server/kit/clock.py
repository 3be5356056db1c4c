"""Time: the one place of the server that asks the machine for it."""

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Tells the time; passed to whoever needs it, so that a test can set it (design: words)."""

    def now(self) -> datetime:
        """Return the instant: aware, UTC, to the microsecond. It may jump when the machine's clock is set."""
        ...

    def monotonic(self) -> float:
        """Return seconds since an unspecified start; never goes back. For durations and deadlines."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> datetime:
        """Return the machine's idea of the instant, aware and UTC, to the microsecond."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Return the machine's monotonic clock in seconds."""
        return time.monotonic()
