"""Periods in any zone: half-open, contiguous, and cut where the zone's days are."""

from datetime import UTC, datetime, timedelta
from zoneinfo import available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bursar_server.kit.periods import (
    PeriodKind,
    ceil_quarter_hour,
    period_at,
    period_key,
    quarter_hour_of,
    zone_named,
)

ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Asia/Kolkata",
    "Australia/Lord_Howe",
    "America/Santiago",
    "Pacific/Apia",
]
instants = st.datetimes(datetime(2000, 1, 1), datetime(2090, 1, 1)).map(lambda at: at.replace(tzinfo=UTC))
kinds = st.sampled_from([kind for kind in PeriodKind if kind is not PeriodKind.TOTAL])


@given(kinds, st.integers(0, 31), st.sampled_from(ZONES), instants)
def test_periods_meet(kind: PeriodKind, anchor: int, zone: str, at: datetime) -> None:
    """S23: an instant lies in its period, and the next period begins where this one ends."""
    if kind is PeriodKind.WEEKLY:
        anchor %= 8
    period = period_at(kind, anchor, zone, at)
    assert period.start <= at < period.end
    assert period_at(kind, anchor, zone, period.end).start == period.end
    assert period_at(kind, anchor, zone, period.start) == period
    assert period_at(kind, anchor, zone, period.end - timedelta(microseconds=1)) == period


@pytest.mark.parametrize(("day", "hours"), [((2026, 3, 29), 23), ((2026, 10, 25), 25), ((2026, 6, 1), 24)])
def test_a_day_lasts_as_long_as_its_zone_says(day: tuple[int, int, int], hours: int) -> None:
    """S23: 23 to 25 hours where the zone changes its clocks."""
    period = period_at(PeriodKind.DAILY, 0, "Europe/Berlin", datetime(*day, 12, tzinfo=UTC))
    assert period.end - period.start == timedelta(hours=hours)


def test_a_day_without_midnight_begins_where_the_gap_ends() -> None:
    """S23: in Santiago the clocks skip from midnight to one o'clock."""
    period = period_at(PeriodKind.DAILY, 0, "America/Santiago", datetime(2026, 9, 6, 12, tzinfo=UTC))
    assert (period.start, period.end) == (
        datetime(2026, 9, 6, 4, tzinfo=UTC),
        datetime(2026, 9, 7, 3, tzinfo=UTC),
    )


@pytest.mark.parametrize(
    ("at", "start", "end"),
    [
        ((2026, 2, 10), (2026, 1, 31), (2026, 2, 28)),
        ((2026, 2, 28), (2026, 2, 28), (2026, 3, 31)),
        ((2026, 12, 31), (2026, 12, 31), (2027, 1, 31)),
    ],
)
def test_a_monthly_anchor_of_31_is_the_last_day(
    at: tuple[int, int, int], start: tuple[int, int, int], end: tuple[int, int, int]
) -> None:
    """S23, C01: a monthly anchor of 31 means the last day where the month is shorter."""
    period = period_at(PeriodKind.MONTHLY, 31, "UTC", datetime(*at, tzinfo=UTC))
    assert period.start == datetime(*start, tzinfo=UTC)
    assert period.end == datetime(*end, tzinfo=UTC)


def test_weeks_start_on_monday_or_the_anchor() -> None:
    """S23: weeks start on Monday or the anchor's weekday."""
    friday = datetime(2026, 5, 1, 12, tzinfo=UTC)
    assert period_at(PeriodKind.WEEKLY, 0, "UTC", friday).start == datetime(2026, 4, 27, tzinfo=UTC)
    assert period_at(PeriodKind.WEEKLY, 5, "UTC", friday).start == datetime(2026, 5, 1, tzinfo=UTC)
    assert period_at(PeriodKind.WEEKLY, 6, "UTC", friday).start == datetime(2026, 4, 25, tzinfo=UTC)


def test_a_total_budget_never_starts_anew() -> None:
    """C01: TOTAL has one period."""
    assert period_at(PeriodKind.TOTAL, 0, "UTC", datetime(1999, 1, 1, tzinfo=UTC)) == period_at(
        PeriodKind.TOTAL, 0, "UTC", datetime(2199, 1, 1, tzinfo=UTC)
    )


def test_zones_come_from_the_pinned_package() -> None:
    """S23: every zone of the package is known; a path that leaves it is not."""
    assert all(
        zone_named(name) is not None for name in available_timezones() & {"Europe/Paris", "Asia/Tokyo", "UTC"}
    )
    for name in ("", "Mars/Olympus", "../../etc/passwd", "Europe//Berlin", "Europe/..", "europe/berlin "):
        assert zone_named(name) is None


@given(instants)
def test_quarter_hours_hold_their_instants(at: datetime) -> None:
    """S25: ranges widen to the quarter-hour."""
    assert quarter_hour_of(at) <= at <= ceil_quarter_hour(at)
    assert ceil_quarter_hour(at) - quarter_hour_of(at) in (timedelta(0), timedelta(minutes=15))


def test_a_period_key_names_the_first_instant_and_the_definition() -> None:
    """S4: a new definition has balances of its own."""
    assert period_key(datetime(2026, 5, 1, tzinfo=UTC), 3) == "2026-05-01T00:00:00Z#3"
