"""The hash chain of the audit trail."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from bursar_server.audit.model import ZERO_HASH, AuditEvent, AuditHead
from bursar_server.audit.rules import canonical_text, chain, event_hash

TENANT = UUID(int=1)
NOW = datetime(2026, 5, 1, 12, 0, 0, 1, tzinfo=UTC)
EVENT = AuditEvent(
    "set_budget", "operator", "budget/1", NOW, UUID(int=2), {"limit_usd": "5", "pct": [80, 90]}
)

texts = st.text(max_size=20)
details = st.dictionaries(texts, st.one_of(texts, st.integers(), st.booleans(), st.none(), st.lists(texts)))
events = st.lists(
    st.builds(
        AuditEvent, action=texts, actor=texts, resource=texts, create_time=st.just(NOW), details=details
    ),
    max_size=5,
)


def test_the_text_that_is_hashed_does_not_depend_on_how_an_event_was_written() -> None:
    """F176: the order of keys and the zone of a time change nothing."""
    turned = replace(
        EVENT,
        details={"pct": [80, 90], "limit_usd": "5"},
        create_time=NOW.astimezone(timezone(timedelta(hours=2))),
    )
    assert canonical_text(TENANT, 1, turned) == canonical_text(TENANT, 1, EVENT)
    assert canonical_text(TENANT, 1, EVENT) == (
        '{"action":"set_budget","actor":"operator","create_time":"2026-05-01T12:00:00.000001Z",'
        '"details":{"limit_usd":"5","pct":[80,90]},"resource":"budget/1","sequence":1,'
        '"tenant_id":"00000000-0000-0000-0000-000000000001","user_id":"00000000-0000-0000-0000-000000000002"}'
    )


def test_every_part_of_an_event_is_in_its_hash() -> None:
    """F176: nothing about an event can be changed unseen."""
    changed = [
        replace(EVENT, action="x"),
        replace(EVENT, actor="x"),
        replace(EVENT, resource="x"),
        replace(EVENT, create_time=NOW + timedelta(microseconds=1)),
        replace(EVENT, user_id=None),
        replace(EVENT, details={}),
    ]
    hashes = {event_hash(ZERO_HASH, TENANT, 1, event) for event in [EVENT, *changed]}
    hashes |= {
        event_hash("1" * 64, TENANT, 1, EVENT),
        event_hash(ZERO_HASH, UUID(int=3), 1, EVENT),
        event_hash(ZERO_HASH, TENANT, 2, EVENT),
    }
    assert len(hashes) == 10


@given(events, events)
def test_a_chain_goes_on_where_it_ended(first: list[AuditEvent], second: list[AuditEvent]) -> None:
    """F176: numbers without gaps, each event hashed with the one before, in one append or in several."""
    head = AuditHead(0, ZERO_HASH)
    whole, end = chain(TENANT, head, [*first, *second])
    part, middle = chain(TENANT, head, first)
    rest, end_of_parts = chain(TENANT, middle, second)
    assert (part + rest, end_of_parts) == (whole, end)
    assert [one.sequence for one in whole] == list(range(1, len(whole) + 1))
    previous = ZERO_HASH
    for one in whole:
        assert one.previous_hash == previous
        assert one.hash == event_hash(previous, TENANT, one.sequence, one.event)
        previous = one.hash
