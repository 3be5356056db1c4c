"""Ranges of sums, and what the revisions of a call come to. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from uuid import UUID

from bursar_server.kit.errors import invalid
from bursar_server.kit.ids import floor_uuid7
from bursar_server.kit.periods import ceil_quarter_hour, day_of, quarter_hour_of
from bursar_server.pricing.model import Usage
from bursar_server.usage.model import CostRecord, RecordItem, Segments

# The last quarter-hour that a datetime can hold the end of.
_LAST = datetime(9999, 12, 31, 23, 45, tzinfo=UTC)

_FIRST = datetime(1970, 1, 8, tzinfo=UTC)

# A record's id is made when the call is, or later where a Deduct came without one that could be placed. A list of a range
# looks at ids that far around it: months outside are not read.
ID_MARGIN = timedelta(days=7)

_USAGE_FIELDS = Usage._fields


def summed_range(start: datetime | None, end: datetime | None, now: datetime) -> tuple[datetime, datetime]:
    """Return the range to sum, widened to quarter-hours (S25): by default the current month in UTC until now.

    Raises INVALID_FIELD where the end does not come after the start.
    """
    first = start or now.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    last = end or now
    if last <= first:
        raise invalid("to_time", "must be later than the start of the range")
    return quarter_hour_of(min(first, _LAST - timedelta(minutes=15))), ceil_quarter_hour(min(last, _LAST))


def id_bounds(start: datetime | None, end: datetime | None) -> tuple[UUID | None, UUID | None]:
    """Return between which ids the records of a range are looked for; None is unbounded."""
    low = floor_uuid7(max(start, _FIRST) - ID_MARGIN) if start is not None else None
    high = floor_uuid7(min(end, _LAST - ID_MARGIN) + ID_MARGIN) if end is not None else None
    return low, high


def segments(start: datetime, end: datetime) -> Segments:
    """Return which whole days and which quarter-hours make up a range on quarter-hours."""
    first = day_of(start) if start.time() == time() else day_of(start) + timedelta(days=1)
    last = day_of(end)
    if first >= last:
        return Segments(None, ((start, end),) if start < end else ())
    midnights = _midnight(first), _midnight(last)
    edges = ((start, midnights[0]), (midnights[1], end))
    return Segments((first, last), tuple((low, high) for low, high in edges if low < high))


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), tzinfo=UTC)


def folded(revisions: Sequence[CostRecord]) -> CostRecord:
    """Return a call as its revisions make it: costs and usage are their sums, the rest is what the latest says (S16).

    That its lease expired or that nobody checked it stays true; the provider's own cost is the last one told.
    """
    ordered = sorted(revisions, key=lambda revision: revision.revision)
    latest = ordered[-1]
    told = [each.provider_cost_nanos for each in ordered if each.provider_cost_nanos is not None]
    return replace(
        latest,
        items=_summed_items(item for each in reversed(ordered) for item in each.items),
        input_cost_nanos=sum(each.input_cost_nanos for each in ordered),
        output_cost_nanos=sum(each.output_cost_nanos for each in ordered),
        other_cost_nanos=sum(each.other_cost_nanos for each in ordered),
        cost_nanos=sum(each.cost_nanos for each in ordered),
        provider_cost_nanos=told[-1] if told else None,
        lease_expired=any(each.lease_expired for each in ordered),
        unchecked=any(each.unchecked for each in ordered),
    )


def _summed_items(items: Iterable[RecordItem]) -> tuple[RecordItem, ...]:
    """Return one item a model and tier; those whose usage corrections took back in full are left out."""
    sums: dict[tuple[str, str], Usage] = {}
    for item in items:
        key = item.model, item.service_tier
        sums[key] = added(sums.get(key, Usage()), item.usage)
    kept = [RecordItem(*key, usage) for key, usage in sums.items() if usage != Usage()]
    return tuple(kept) or tuple(RecordItem(*key, usage) for key, usage in list(sums.items())[:1])


def added(one: Usage, other: Usage) -> Usage:
    """Return what both consumed together."""
    return Usage(**{name: getattr(one, name) + getattr(other, name) for name in _USAGE_FIELDS})


def total_usage(items: Iterable[RecordItem]) -> Usage:
    """Return what all models of a call consumed together."""
    total = Usage()
    for item in items:
        total = added(total, item.usage)
    return total
