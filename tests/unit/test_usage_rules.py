"""Ranges of sums, and what the revisions of a call come to."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bursar_server.kit.errors import BursarError
from bursar_server.kit.ids import uuid7_at
from bursar_server.pricing.model import Usage
from bursar_server.usage.model import CostRecord, RecordItem
from bursar_server.usage.rules import folded, id_bounds, segments, summed_range, total_usage

NOW = datetime(2026, 5, 20, 10, 7, 30, tzinfo=UTC)
QUARTER = timedelta(minutes=15)


def test_without_bounds_the_current_month_in_utc_until_now_is_summed() -> None:
    assert summed_range(None, None, NOW) == (
        datetime(2026, 5, 1, tzinfo=UTC),
        datetime(2026, 5, 20, 10, 15, tzinfo=UTC),
    )


def test_a_range_widens_to_the_quarter_hours_it_touches() -> None:
    """S25."""
    start, end = NOW, NOW + timedelta(seconds=1)
    assert summed_range(start, end, NOW) == (
        datetime(2026, 5, 20, 10, 0, tzinfo=UTC),
        datetime(2026, 5, 20, 10, 15, tzinfo=UTC),
    )


def test_a_range_that_does_not_go_forward_is_refused() -> None:
    """F188."""
    with pytest.raises(BursarError) as caught:
        summed_range(NOW + timedelta(days=1), None, NOW)
    assert caught.value.field == "to_time"


def test_the_end_of_time_is_a_bound_like_any_other() -> None:
    last = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    assert summed_range(NOW, last, NOW)[1] == datetime(9999, 12, 31, 23, 45, tzinfo=UTC)
    assert summed_range(last - timedelta(seconds=1), last, NOW)[0] < datetime(
        9999, 12, 31, 23, 45, tzinfo=UTC
    )
    assert id_bounds(datetime(1970, 1, 1, tzinfo=UTC), last)[0] == UUID(int=0)


instants = st.integers(0, 4 * 24 * 10).map(
    lambda quarters: datetime(2026, 3, 1, tzinfo=UTC) + quarters * QUARTER
)


@given(instants, instants)
def test_days_and_quarters_make_up_the_range_and_nothing_twice(one: datetime, other: datetime) -> None:
    """S25: whole UTC days from one grain, the ragged edges from the other."""
    start, end = min(one, other), max(one, other)
    found = segments(start, end)
    pieces = list(found.quarters)
    if found.days is not None:
        first, last = found.days
        assert first < last
        pieces.append(
            (datetime(*first.timetuple()[:3], tzinfo=UTC), datetime(*last.timetuple()[:3], tzinfo=UTC))
        )
    position = start
    for low, high in sorted(pieces):
        assert low == position
        assert low < high
        position = high
    assert position == end
    assert sum((high - low for low, high in found.quarters), timedelta()) < timedelta(days=2)


def test_ids_are_looked_for_a_week_around_a_range() -> None:
    low, high = id_bounds(NOW, NOW + timedelta(days=1))
    assert low is not None
    assert high is not None
    assert low < uuid7_at(NOW - timedelta(days=6)) < uuid7_at(NOW + timedelta(days=7)) < high
    assert not low < uuid7_at(NOW - timedelta(days=8)) < high
    assert id_bounds(None, None) == (None, None)


def a_record(revision: int, cost: int, **changes: object) -> CostRecord:
    values: dict[str, object] = {
        "tenant_id": UUID(int=1),
        "request_id": UUID(int=2),
        "revision": revision,
        "usage_time": NOW,
        "posted_time": NOW + timedelta(minutes=revision),
        "api_key_id": None,
        "user_id": None,
        "masked_key": "",
        "group_ids": (),
        "tags": {},
        "session_id": "",
        "provider": "openai",
        "model": "m",
        "service_tier": "",
        "outcome": "SUCCESS",
        "items": (),
        "price_id": None,
        "input_cost_nanos": cost,
        "output_cost_nanos": 0,
        "other_cost_nanos": 0,
        "cost_nanos": cost,
        "provider_cost_nanos": None,
        "estimated": False,
        "unpriced": False,
        "lease_expired": False,
        "unchecked": False,
    }
    return CostRecord(**(values | changes))  # type: ignore[arg-type]


def test_an_estimate_that_was_corrected_shows_what_was_really_used() -> None:
    """S16, S18: the sum of both revisions, the words of the later one, and that the lease had expired."""
    estimate = a_record(
        0, 500, estimated=True, lease_expired=True, outcome="PARTIAL",
        items=(RecordItem("asked", "", Usage(input_tokens=50, output_tokens=900)),),
    )  # fmt: skip
    correction = a_record(
        1, -180, provider_cost_nanos=317, model="served",
        items=(
            RecordItem("served", "", Usage(input_tokens=60, output_tokens=400)),
            RecordItem("asked", "", Usage(input_tokens=-50, output_tokens=-900)),
        ),
    )  # fmt: skip
    record = folded([correction, estimate])
    assert (record.cost_nanos, record.input_cost_nanos, record.revision) == (320, 320, 1)
    assert (record.model, record.outcome, record.provider_cost_nanos) == ("served", "SUCCESS", 317)
    assert (record.estimated, record.lease_expired) == (False, True)
    assert record.items == (RecordItem("served", "", Usage(input_tokens=60, output_tokens=400)),)
    assert total_usage(record.items).output_tokens == 400


def test_a_call_that_used_nothing_keeps_the_model_it_was_for() -> None:
    record = folded([a_record(0, 0, items=(RecordItem("m", "", Usage()),))])
    assert record.items == (RecordItem("m", "", Usage()),)
    assert folded([a_record(0, 0)]).items == ()
