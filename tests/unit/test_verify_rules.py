"""What the proof works out again: costs, sums, chains and reports."""

import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bursar_server.audit.model import ZERO_HASH, AuditEvent, AuditHead
from bursar_server.audit.rules import chain
from bursar_server.chargeback.model import ReportHead
from bursar_server.ledger.model import Charge, EntryKind, PricedItem, Source
from bursar_server.ledger.rules import minus, negated, rollup_lines
from bursar_server.pricing.model import CallCost, Price, PriceSource, Usage
from bursar_server.pricing.rules import call_cost
from bursar_server.verify import rules
from bursar_server.verify.model import ExpiredRevision, StoredRecord, UnreadableError, item_of

NOW = datetime(2026, 5, 1, 12, 7, tzinfo=UTC)
TENANT = UUID(int=1)
REQUEST = UUID(int=2)

counts = st.integers(0, 10_000)
rates = st.integers(0, 10**9)
usages = st.builds(
    Usage, input_tokens=counts, output_tokens=counts, cache_read_tokens=counts, reasoning_tokens=counts
)


def price(number: int, input_rate: int, output_rate: int) -> Price:
    return Price(
        TENANT, UUID(int=number), PriceSource.TENANT, "m*", "", "", {"input": input_rate, "output": output_rate}, (), None,
        NOW, NOW, NOW, 1,
    )  # fmt: skip


def stored(items: tuple[PricedItem, ...], cost: CallCost, **more: object) -> StoredRecord:
    record = StoredRecord(
        REQUEST, 0, "DEDUCT", None, None, "openai", items[0].model if items else "m", NOW, NOW, items,
        sum(item.usage.input_tokens for item in items), sum(item.usage.output_tokens for item in items), cost,
        any(item.price_id is None for item in items), False, None,
    )  # fmt: skip
    return replace(record, **more)  # type: ignore[arg-type]


@st.composite
def charges(draw: st.DrawFn) -> tuple[Charge, dict[UUID, Price]]:
    """Draw a charge as metering makes it, and the prices that it names."""
    prices = {UUID(int=n): price(n, draw(rates), draw(rates)) for n in (10, 11)}
    items = tuple(
        PricedItem(f"m{index}", "", draw(usages), draw(st.sampled_from([None, *prices])))
        for index in range(draw(st.integers(0, 3)))
    )
    priced = [(item.usage, prices.get(item.price_id) if item.price_id else None) for item in items]
    cost = call_cost(priced)
    first, others = cost, [call_cost([each]) for each in priced[1:]]
    for other in others:
        first = minus(first, other)
    charge = Charge(
        Source.DEDUCT, EntryKind.CHARGE, "", "openai", "SUCCESS", "m", items, (first, *others) if items else (), cost,
        draw(st.booleans()),
    )  # fmt: skip
    return charge, prices


@given(charges())
def test_a_charge_is_proved_by_its_items(drawn: tuple[Charge, dict[UUID, Price]]) -> None:
    """S15, S25: what metering charges and counts is what its record comes to."""
    charge, prices = drawn
    record = stored(charge.items, charge.cost, estimated=charge.estimated)
    assert list(rules.record_differences(TENANT, record, prices.get)) == []
    sums = rules.rollup_additions([record], prices.get)
    bucket = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
    expected: dict[str, list[int]] = {}
    for model, line in rollup_lines(charge):
        expected[model] = [a + b for a, b in zip(expected.get(model, [0] * len(line)), line, strict=True)]
    assert sums == {
        (bucket, UUID(int=0), UUID(int=0), "openai", model): line for model, line in expected.items()
    }


@given(charges(), usages, st.sampled_from([None, UUID(int=10)]))
def test_a_correction_is_proved_with_what_it_takes_back(
    drawn: tuple[Charge, dict[UUID, Price]], estimate: Usage, price_id: UUID | None
) -> None:
    """S16: the later revision costs the difference; both together leave in the sums what the call really was."""
    charge, prices = drawn
    old_item = PricedItem("m0", "", estimate, price_id)
    old_cost = call_cost([(estimate, prices.get(price_id) if price_id else None)])
    old = stored((old_item,), old_cost, source="EXPIRY", estimated=True)
    items = (*charge.items, negated(old_item))
    new = stored(
        items,
        minus(charge.cost, old_cost),
        revision=1,
        estimated=charge.estimated,
        unpriced=charge.unpriced,
        expired=ExpiredRevision("openai", (old_item,), old_cost),
        model=items[0].model,
    )
    assert list(rules.record_differences(TENANT, new, prices.get)) == []
    both = {key: line for key, line in rules.rollup_additions([old, new], prices.get).items() if any(line)}
    model = charge.items[0].model if charge.items else "m0"
    alone = rules.rollup_additions(
        [stored(charge.items, charge.cost, estimated=charge.estimated, model=model)], prices.get
    )
    assert both == {key: line for key, line in alone.items() if any(line)}


@given(charges(), st.integers(1, 5))
def test_a_nano_too_much_is_seen(drawn: tuple[Charge, dict[UUID, Price]], more: int) -> None:
    """S15: cost = usage × price, to the nano, part by part."""
    charge, prices = drawn
    cost = charge.cost
    dearer = CallCost(cost.input_nanos + more, cost.output_nanos, cost.other_nanos)
    [total] = rules.record_differences(TENANT, stored(charge.items, dearer), prices.get)
    assert (total.figure, total.said, total.proved) == (
        "cost_nanos",
        cost.total_nanos + more,
        cost.total_nanos,
    )
    moved = CallCost(cost.input_nanos + more, cost.output_nanos - more, cost.other_nanos)
    parts = [
        found.figure for found in rules.record_differences(TENANT, stored(charge.items, moved), prices.get)
    ]
    assert parts == ["input_cost_nanos", "output_cost_nanos"]


def test_an_unknown_price_and_unreadable_items_are_said() -> None:
    item = PricedItem("m", "", Usage(input_tokens=5), UUID(int=99))
    [found] = rules.record_differences(TENANT, stored((item,), CallCost(5, 0, 0)), lambda _: None)
    assert found.proved == f"price {UUID(int=99)}: does not exist"
    unreadable: list[Any] = [{}, {"usage": []}, 7, None]
    unreadable.append({"model": "m", "service_tier": "", "price_id": "x", "usage": {}})
    for item_json in unreadable:
        with pytest.raises(UnreadableError):
            item_of(item_json)
    strange = {"model": "m", "service_tier": "", "price_id": None, "usage": {"miles": 1}}
    with pytest.raises(UnreadableError, match="miles"):
        item_of(strange)


def _event(number: int) -> AuditEvent:
    return AuditEvent(f"action{number}", "me", "thing/1", NOW + timedelta(seconds=number))


def test_a_chain_is_followed_and_a_break_told_once() -> None:
    """F176: each event is hashed with the one before it; the end of the chain is its last event."""
    start = AuditHead(0, ZERO_HASH)
    events, head = chain(TENANT, start, [_event(number) for number in range(5)])
    assert list(rules.chain_differences(TENANT, start, events)) == []
    assert list(rules.chain_differences(TENANT, AuditHead(2, events[1].hash), events[2:])) == []
    assert list(rules.head_differences(TENANT, head, AuditHead(5, events[-1].hash))) == []

    def told(changed: list[object]) -> list[str]:
        return [found.figure for found in rules.chain_differences(TENANT, start, changed)]  # type: ignore[arg-type]

    assert told([*events[:2], *events[3:]]) == ["place"]
    assert told([*events[:2], replace(events[2], event=_event(9)), *events[3:]]) == ["hash"]
    [forged], _ = chain(TENANT, AuditHead(2, events[1].hash), [_event(9)])
    assert told([*events[:2], forged, *events[3:]]) == ["previous_hash"]
    assert [found.figure for found in rules.head_differences(TENANT, head, start)] == ["sequence"]


def test_a_report_is_proved_from_its_bytes() -> None:
    """F132, S24: the row says what the hashed content says."""
    text = "2026-05-01T12:07:00Z"
    stated = {"totals": {"cost_nanos": 5, "requests": 2}, "from": text, "to": text, "cutoff_time": text}
    content = json.dumps(stated).encode()
    head = ReportHead(
        TENANT, REQUEST, "acme", NOW, NOW, NOW, NOW, "me", 5, 2, hashlib.sha256(content).hexdigest()
    )

    def told(head: ReportHead, content: bytes = content) -> list[tuple[str, int | str]]:
        return [(found.figure, found.proved) for found in rules.report_differences(head, content)]

    assert told(head) == []
    assert told(replace(head, total_nanos=6)) == [("total_nanos", 5)]
    assert told(replace(head, requests=6)) == [("requests", 2)]
    assert [figure for figure, _ in told(replace(head, end=NOW + timedelta(days=1)))] == ["to_time"]
    assert [figure for figure, _ in told(head, content + b" ")] == ["content_sha256"]
    other = b"[]"
    assert [
        figure for figure, _ in told(replace(head, content_sha256=hashlib.sha256(other).hexdigest()), other)
    ] == ["content"]
