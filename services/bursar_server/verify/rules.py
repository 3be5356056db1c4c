"""What the books must come to, worked out again from what they are made of. Pure."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from uuid import UUID

from bursar_server.audit.model import AuditHead, ChainedEvent
from bursar_server.audit.rules import event_hash
from bursar_server.chargeback.model import ReportHead
from bursar_server.kit.periods import quarter_hour_of
from bursar_server.ledger.model import PricedItem
from bursar_server.ledger.rules import minus, negated
from bursar_server.pricing.model import CallCost, Price, Usage
from bursar_server.pricing.rules import call_cost
from bursar_server.verify.model import Difference, RollupKey, StoredRecord, UnreadableError

NOBODY = UUID(int=0)
NOTHING = CallCost(0, 0, 0)

PriceOf = Callable[[UUID], Price | None]


# -- I7: cost = usage x the named price ---------------------------------------------------------------


def own_items(record: StoredRecord) -> tuple[PricedItem, ...]:
    """Return what a revision charges; a correction also carries, negated, what the expiry charged (S16).

    Raises UnreadableError where a correction does not take back just that.
    """
    if record.expired is None:
        return record.items
    taken_back = tuple(negated(item) for item in record.expired.items)
    kept = len(record.items) - len(taken_back)
    if record.items[max(0, kept) :] != taken_back:
        raise UnreadableError("items: they do not take back what the lease's expiry charged")
    return record.items[:kept]


def named_prices(record: StoredRecord) -> set[UUID]:
    """Return the prices that a record names."""
    return {item.price_id for item in record.items if item.price_id is not None}


def cost_again(record: StoredRecord, price_of: PriceOf) -> CallCost:
    """Return what a revision costs by the prices that it names (S15); an unpriced item costs nothing.

    A correction is the difference between the real usage and what the expiry charged, part by part. Raises
    UnreadableError where a price is not there.
    """
    priced = [(item.usage, _price(item, price_of)) for item in own_items(record)]
    cost = call_cost(priced, record.provider_cost_nanos)
    return minus(cost, record.expired.cost) if record.expired else cost


def _price(item: PricedItem, price_of: PriceOf) -> Price | None:
    if item.price_id is None:
        return None
    price = price_of(item.price_id)
    if price is None:
        raise UnreadableError(f"price {item.price_id}: does not exist")
    return price


def record_differences(tenant_id: UUID, record: StoredRecord, price_of: PriceOf) -> Iterator[Difference]:
    """Yield where a record's cost, tokens or flag do not follow from its items and their prices (I7)."""
    ids = {"request_id": str(record.request_id), "revision": str(record.revision)}

    def differs(figure: str, said: int | str, by: str, proved: int | str) -> Difference:
        return Difference("I7", tenant_id, "record", ids, figure, "record", said, by, proved)

    try:
        cost = cost_again(record, price_of)
        unpriced = any(item.price_id is None for item in own_items(record))
    except UnreadableError as error:
        yield differs("cost_nanos", record.cost.total_nanos, "its items", str(error))
        return
    if record.cost.total_nanos != cost.total_nanos:
        yield differs("cost_nanos", record.cost.total_nanos, "usage × price", cost.total_nanos)
    elif record.cost != cost:
        for part in ("input", "output", "other"):
            said, proved = getattr(record.cost, f"{part}_nanos"), getattr(cost, f"{part}_nanos")
            if said != proved:
                yield differs(f"{part}_cost_nanos", said, "usage × price", proved)
    for name in ("input_tokens", "output_tokens"):
        tokens = sum(getattr(item.usage, name) for item in record.items)
        if getattr(record, name) != tokens:
            yield differs(name, getattr(record, name), "its items", tokens)
    if record.unpriced != unpriced:
        yield differs("unpriced", str(record.unpriced).lower(), "its items", str(unpriced).lower())


# -- I4: what records add to the sums -----------------------------------------------------------------


def rollup_additions(records: Iterable[StoredRecord], price_of: PriceOf) -> dict[RollupKey, list[int]]:
    """Return what revisions of one tenant add to the quarter-hour sums, by row, in the order of their counters (S25)."""
    sums: dict[RollupKey, list[int]] = {}

    def add(record: StoredRecord, provider: str, model: str, line: Sequence[int], sign: int) -> None:
        bucket = quarter_hour_of(record.usage_time)
        key = (bucket, record.user_id or NOBODY, record.api_key_id or NOBODY, provider, model)
        counters = sums.setdefault(key, [0] * len(line))
        for index, amount in enumerate(line):
            counters[index] += sign * amount

    for record in records:
        if record.source == "RELEASE":
            continue
        cost, items, expired = record.cost, record.items, record.expired
        if expired is not None:
            cost = CallCost(
                cost.input_nanos + expired.cost.input_nanos,
                cost.output_nanos + expired.cost.output_nanos,
                cost.other_nanos + expired.cost.other_nanos,
            )
            items = items[: max(0, len(items) - len(expired.items))]
            for model, line in _lines(record.model, expired.items, expired.cost, True, price_of):
                add(record, expired.provider, model, line, -1)
        for model, line in _lines(record.model, items, cost, record.estimated, price_of):
            add(record, record.provider, model, line, 1)
    return sums


def _lines(
    model: str, items: Sequence[PricedItem], cost: CallCost, estimated: bool, price_of: PriceOf
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield what one charge adds to the sums of each model: the first carries the call, and what rounding leaves."""
    unpriced = any(item.price_id is None for item in items)
    others = [_alone(item, price_of) for item in items[1:]]
    first = cost
    for other in others:
        first = minus(first, other)
    empty = PricedItem(model, "", Usage(), None)
    for index, (item, share) in enumerate(zip(items or (empty,), (first, *others), strict=True)):
        usage, calls = item.usage, int(index == 0)
        counters = (
            calls, calls * int(estimated), calls * int(unpriced), usage.input_tokens, usage.output_tokens,
            usage.cache_read_tokens, usage.cache_write_5m_tokens + usage.cache_write_1h_tokens, usage.reasoning_tokens,
            share.input_nanos, share.output_nanos, share.other_nanos, share.total_nanos,
        )  # fmt: skip
        yield item.model, counters


def _alone(item: PricedItem, price_of: PriceOf) -> CallCost:
    price = price_of(item.price_id) if item.price_id else None
    return call_cost([(item.usage, price)]) if price else NOTHING


# -- I9: the audit trail ------------------------------------------------------------------------------


def chain_differences(
    tenant_id: UUID, before: AuditHead, events: Sequence[ChainedEvent]
) -> Iterator[Difference]:
    """Yield where events do not follow one another from `before` on, or are not what they were hashed as (I9).

    A broken link is told once: what comes after is compared with what stands there.
    """
    sequence, previous = before.sequence, before.hash
    for chained in events:
        ids = {"sequence": str(chained.sequence)}
        if chained.sequence != sequence + 1:
            yield Difference(
                "I9", tenant_id, "audit event", ids, "place", "event", chained.sequence, "the one before it + 1", sequence + 1
            )  # fmt: skip
        elif chained.previous_hash != previous:
            yield Difference(
                "I9", tenant_id, "audit event", ids, "previous_hash", "event", chained.previous_hash, "the one before it",
                previous,
            )  # fmt: skip
        digest = event_hash(chained.previous_hash, tenant_id, chained.sequence, chained.event)
        if chained.hash != digest:
            yield Difference(
                "I9", tenant_id, "audit event", ids, "hash", "event", chained.hash, "its content", digest
            )
        sequence, previous = chained.sequence, chained.hash


def head_differences(tenant_id: UUID, head: AuditHead, last: AuditHead) -> Iterator[Difference]:
    """Yield where the end of a chain is not its last event (I9)."""
    if head.sequence != last.sequence:
        yield Difference(
            "I9", tenant_id, "audit head", {}, "sequence", "head", head.sequence, "last event", last.sequence
        )
    elif head.hash != last.hash:
        yield Difference(
            "I9", tenant_id, "audit head", {}, "hash", "head", head.hash, "last event", last.hash
        )


# -- I10: reports -------------------------------------------------------------------------------------


def report_differences(head: ReportHead, content: bytes) -> Iterator[Difference]:
    """Yield where a report's content is not what was hashed, or its row says something else (I10)."""

    def differs(figure: str, said: int | str, by: str, proved: int | str) -> Difference:
        ids = {"report_id": str(head.report_id)}
        return Difference("I10", head.tenant_id, "report", ids, figure, "report", said, by, proved)

    digest = hashlib.sha256(content).hexdigest()
    if digest != head.content_sha256:
        yield differs("content_sha256", head.content_sha256, "its content", digest)
        return
    try:
        stated = json.loads(content)
        said: dict[str, int | str] = {
            "total_nanos": int(stated["totals"]["cost_nanos"]),
            "requests": int(stated["totals"]["requests"]),
            "from_time": _same_instant(stated["from"], head.start),
            "to_time": _same_instant(stated["to"], head.end),
            "cutoff_time": _same_instant(stated["cutoff_time"], head.cutoff_time),
        }
    except (KeyError, TypeError, ValueError) as error:
        yield differs("content", f"{type(error).__name__}: {error}", "its hash", "a report")
        return
    row: dict[str, int | str] = {
        "total_nanos": head.total_nanos,
        "requests": head.requests,
        "from_time": instant_text(head.start),
        "to_time": instant_text(head.end),
        "cutoff_time": instant_text(head.cutoff_time),
    }
    for figure, value in row.items():
        if value != said[figure]:
            yield differs(figure, value, "its content", said[figure])


def _same_instant(text: str, like: datetime) -> str:
    return instant_text(datetime.fromisoformat(text).astimezone(like.tzinfo))


def instant_text(instant: datetime) -> str:
    """Return an instant as differences show it."""
    return instant.isoformat()
