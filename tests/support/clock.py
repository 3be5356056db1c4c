"""A clock that a test moves by hand."""

from datetime import UTC, datetime, timedelta


class FakeClock:
    """Stands still until it is set or advanced; a `bursar_server.kit.clock.Clock`."""

    def __init__(self, now: datetime = datetime(2026, 1, 15, 12, 0, tzinfo=UTC)) -> None:
        self._now = self._checked(now)
        self._monotonic = 1000.0

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    def set(self, now: datetime) -> None:
        """Jump to `now`, forwards or back, as a machine's clock can; the monotonic clock does not follow."""
        self._now = self._checked(now)

    def advance(self, by: timedelta | float) -> None:
        """Let time pass on both clocks: a timedelta, or seconds; never negative."""
        step = by if isinstance(by, timedelta) else timedelta(seconds=by)
        if step < timedelta(0):
            raise ValueError("time does not pass backwards: use set()")
        self._now += step
        self._monotonic += step.total_seconds()

    @staticmethod
    def _checked(now: datetime) -> datetime:
        if now.tzinfo is None:
            raise ValueError("the clock needs an aware datetime")
        return now.astimezone(UTC)
