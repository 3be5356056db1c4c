"""Periods: half-open ranges cut in a budget's own time zone; their key is computed from the clock, never reset by a job."""

import calendar
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from functools import lru_cache
from importlib import resources
from zoneinfo import ZoneInfo

TOTAL_START = datetime(1970, 1, 1, tzinfo=UTC)
# What "the first instant after" is for a period that never ends; PostgreSQL and protobuf can both hold it.
NEVER = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


class PeriodKind(StrEnum):
    """How long a budget lasts (C01)."""

    DAILY = "DAILY"
    WEEKLY = "WEEKLY"
    MONTHLY = "MONTHLY"
    QUARTERLY = "QUARTERLY"
    YEARLY = "YEARLY"
    TOTAL = "TOTAL"


_MONTHS = {PeriodKind.MONTHLY: 1, PeriodKind.QUARTERLY: 3, PeriodKind.YEARLY: 12}


@dataclass(frozen=True)
class Period:
    """A half-open range of instants in UTC: start <= t < end (S23)."""

    start: datetime
    end: datetime


@lru_cache(maxsize=1024)
def zone_named(name: str) -> ZoneInfo | None:
    """Return the zone from the pinned `tzdata` package, not the system's, or None if there is none of that name."""
    if name == "UTC":
        return ZoneInfo("UTC")
    parts = name.split("/")
    if not all(part and part.replace("_", "").replace("-", "").replace("+", "").isalnum() for part in parts):
        return None
    try:
        with resources.files("tzdata").joinpath("zoneinfo", *parts).open("rb") as file:
            return ZoneInfo.from_file(file, key=name)
    except (OSError, ValueError, ModuleNotFoundError):
        return None


def _first_instant(day: date, zone: ZoneInfo) -> datetime:
    """Return the first instant of a local day; where midnight does not exist, the first that does."""
    local = datetime.combine(day, time(), tzinfo=zone)
    instant = local.astimezone(UTC)
    if instant.astimezone(zone).date() < day or instant.astimezone(zone).time() != time():
        # Midnight falls into a gap: the day begins where the gap ends.
        gap = datetime.combine(day, time(), tzinfo=zone).replace(fold=0).utcoffset()
        after = datetime.combine(day, time(12), tzinfo=zone).utcoffset()
        if gap is not None and after is not None and after > gap:
            return datetime.combine(day, time(), tzinfo=UTC) - gap
    return instant


def _month_day(year: int, month: int, anchor_day: int) -> date:
    """Return the anchor's day in a month; 31 is the last day of a shorter one (S23)."""
    return date(year, month, min(anchor_day, calendar.monthrange(year, month)[1]))


def _shift_months(year: int, month: int, months: int) -> tuple[int, int]:
    index = year * 12 + (month - 1) + months
    return index // 12, index % 12 + 1


def _days(kind: PeriodKind, anchor_day: int, today: date) -> tuple[date, date]:
    """Return the first day of the period that `today` lies in, and the first day of the next."""
    if kind is PeriodKind.DAILY:
        return today, today + timedelta(days=1)
    if kind is PeriodKind.WEEKLY:
        first = today - timedelta(days=(today.isoweekday() - (anchor_day or 1)) % 7)
        return first, first + timedelta(days=7)
    length = _MONTHS[kind]
    anchor = anchor_day or 1
    month = (today.month - 1) // length * length + 1
    year = today.year
    first = _month_day(year, month, anchor)
    if today < first:
        year, month = _shift_months(year, month, -length)
        first = _month_day(year, month, anchor)
    return first, _month_day(*_shift_months(year, month, length), anchor)


@lru_cache(maxsize=4096)
def _period_of_day(kind: PeriodKind, anchor_day: int, timezone: str, today: date) -> Period:
    zone = zone_named(timezone)
    if zone is None:
        raise ValueError(f"unknown time zone: {timezone}")
    first, following = _days(kind, anchor_day, today)
    return Period(_first_instant(first, zone), _first_instant(following, zone))


def period_at(kind: PeriodKind, anchor_day: int, timezone: str, instant: datetime) -> Period:
    """Return the period that `instant` lies in, cut in `timezone`.

    `anchor_day` is an ISO weekday for WEEKLY, a day of the month for longer periods; 0 is the first. A day lasts 23 to
    25 hours where the zone says so. Raises ValueError for an unknown zone.
    """
    if kind is PeriodKind.TOTAL:
        return Period(TOTAL_START, NEVER)
    zone = zone_named(timezone)
    if zone is None:
        raise ValueError(f"unknown time zone: {timezone}")
    return _period_of_day(kind, anchor_day, timezone, instant.astimezone(zone).date())


@lru_cache(maxsize=4096)
def period_key(start: datetime, definition_revision: int) -> str:
    """Return a balance's key: the period's first instant in UTC, and the budget's definition revision."""
    return f"{start.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}#{definition_revision}"


def quarter_hour_of(instant: datetime) -> datetime:
    """Return the start of the quarter-hour that `instant` lies in, in UTC (S25)."""
    utc = instant.astimezone(UTC)
    return utc.replace(minute=utc.minute // 15 * 15, second=0, microsecond=0)


def ceil_quarter_hour(instant: datetime) -> datetime:
    """Return the first quarter-hour boundary at or after `instant` (S25)."""
    floor = quarter_hour_of(instant)
    return floor if floor == instant.astimezone(UTC) else floor + timedelta(minutes=15)


def day_of(instant: datetime) -> date:
    """Return the UTC day that `instant` lies in."""
    return instant.astimezone(UTC).date()
