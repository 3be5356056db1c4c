"""Time as the server sees it."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from bursar_server.kit.clock import Clock, SystemClock
from support.clock import FakeClock


def test_the_system_clock_is_aware_and_in_utc() -> None:
    """S23: instants are UTC."""
    assert SystemClock().now().utcoffset() == timedelta(0)


def test_the_monotonic_clock_never_goes_back() -> None:
    clock = SystemClock()
    readings = [clock.monotonic() for _ in range(1000)]
    assert readings == sorted(readings)


def test_a_fake_clock_stands_still_until_it_is_moved() -> None:
    start = datetime(2026, 3, 29, 0, 59, 59, 999_999, tzinfo=UTC)
    clock = FakeClock(start)
    fake: Clock = clock
    assert (fake.now(), fake.now()) == (start, start)
    before = clock.monotonic()
    clock.advance(timedelta(microseconds=1))
    clock.advance(1.5)
    assert clock.now() == datetime(2026, 3, 29, 1, 0, 1, 500_000, tzinfo=UTC)
    assert clock.monotonic() - before == pytest.approx(1.500001)


def test_setting_a_fake_clock_back_leaves_durations_alone() -> None:
    clock = FakeClock()
    before = clock.monotonic()
    clock.set(datetime(2020, 1, 1, 1, tzinfo=timezone(timedelta(hours=1))))
    assert clock.now() == datetime(2020, 1, 1, tzinfo=UTC)
    assert clock.now().utcoffset() == timedelta(0)
    assert clock.monotonic() == before


def test_a_fake_clock_takes_no_naive_time_and_no_way_back() -> None:
    with pytest.raises(ValueError, match="aware"):
        FakeClock(datetime(2026, 1, 1))
    with pytest.raises(ValueError, match="backwards"):
        FakeClock().advance(-1)
