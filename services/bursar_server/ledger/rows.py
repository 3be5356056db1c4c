"""The rows of the ledger as a batch's statements take them: in binary (docs/adr/0013-rows-in-binary.md), a few as JSON.

Each table that is written for every call has a type on the lane's own connection, of the columns named here.
"""

from collections.abc import Mapping
from datetime import date, datetime
from typing import Final
from uuid import UUID

import orjson

from bursar_server.db import binary
from bursar_server.db.binary import (
    boolean,
    booleans,
    four_int8s,
    int8,
    int8s,
    jsonb,
    text,
    timestamp,
    uuid,
    uuids,
)
from bursar_server.db.tables import ROLLUP_COUNTERS
from bursar_server.kit.periods import day_of
from bursar_server.ledger.model import (
    Attribution,
    BalanceState,
    Entry,
    FiredThreshold,
    Hold,
    PostingLine,
    PricedItem,
    Record,
)
from bursar_server.pricing.model import Usage

Quarters = Mapping[tuple[tuple[UUID, UUID, UUID, str, str], datetime], list[int]]
"""What a batch adds to rollups, by (tenant, user, key, provider, model) and quarter-hour."""

_ATTRIBUTION = "tenant_id uuid, api_key_id uuid, user_id uuid, masked_key text, group_ids uuid[], tags jsonb, session_id text"
_BALANCE = "spent_nanos bigint, held_nanos bigint, spent_tokens bigint, held_tokens bigint, shadow_denials bigint, alerted_pct integer"
_ROLLUP = (
    f"user_id uuid, api_key_id uuid, provider text, model text, {' bigint, '.join(ROLLUP_COUNTERS)} bigint"
)
COLUMNS: Mapping[str, str] = {
    "balance_row": f"tenant_id uuid, budget_id uuid, period_key text, {_BALANCE}",
    "taken_balance_row": f"tenant_id uuid, budget_id uuid, period_key text, {_BALANCE}, was_"
    + _BALANCE.replace(", ", ", was_"),
    "hold_row": f"{_ATTRIBUTION}, request_id uuid, check_sha256 text, check_time timestamptz, lease_expire_time timestamptz,"
    " service_account boolean, provider text, model text, estimate_input_tokens bigint, estimate_output_tokens bigint,"
    " release_on_expiry boolean, leg_tenant_ids uuid[], leg_budget_ids uuid[], leg_period_keys text[],"
    " leg_user_scoped boolean[], leg_nanos bigint[], leg_tokens bigint[], grant_ids uuid[], grant_nanos bigint[]",
    "record_row": f"{_ATTRIBUTION}, request_id uuid, revision smallint, source text, body_sha256 text, usage_time timestamptz,"
    " posted_time timestamptz, start_time timestamptz, end_time timestamptz, provider text, model text, service_tier text,"
    " outcome text, items jsonb, price_id uuid, input_tokens bigint, output_tokens bigint, input_cost_nanos bigint,"
    " output_cost_nanos bigint, other_cost_nanos bigint, cost_nanos bigint, provider_cost_nanos bigint,"
    " overage_nanos bigint, hold_shortfall_nanos bigint, estimated boolean, unpriced boolean, lease_expired boolean,"
    " unchecked boolean, postings jsonb",
    "entry_row": "tenant_id uuid, op_id uuid, revision smallint, usage_time timestamptz, posted_time timestamptz,"
    " leg smallint, kind text, account text, account_tenant_id uuid, account_id uuid, period_key text, amount_nanos bigint,"
    " amount_tokens bigint",
    "quarter_row": f"tenant_id uuid, bucket_time timestamptz, {_ROLLUP}",
    "day_row": f"tenant_id uuid, bucket_day date, {_ROLLUP}",
}
"""The columns of each type of rows, in their order, as its declaration has them."""

_NO_TAGS: Final = jsonb(b"{}")
_NO_TEXT: Final = text("")
_NO_ITEMS: Final = jsonb(b"[]")
_USAGE_FIELDS: Final = Usage._fields


def _head_of(row_type: str) -> bytes:
    return binary.row_head(len(COLUMNS[row_type].split(", ")))


_BALANCE_ROW: Final = _head_of("balance_row")
_TAKEN_BALANCE_ROW: Final = _head_of("taken_balance_row")
_HOLD_ROW: Final = _head_of("hold_row")
_RECORD_ROW: Final = _head_of("record_row")
_ENTRY_ROW: Final = _head_of("entry_row")
_ROLLUP_ROW: Final = _head_of("quarter_row")


def names_of(row_type: str) -> str:
    """Return the names of a type's columns, as a statement lists them."""
    return ", ".join(column.rpartition(" ")[0] for column in COLUMNS[row_type].split(", "))


class RowWriter:
    """Writes the rows of one batch. Remembers what many of them have in common for as long as it lives."""

    def __init__(self, posted_time: datetime) -> None:
        self._posted_time = timestamp(posted_time)
        self._texts: dict[str, bytes] = {}
        self._times: dict[datetime, bytes] = {}
        self._period_keys: dict[tuple[str, ...], bytes] = {}
        # What the entries of one revision share.
        self._op: tuple[UUID, int, datetime] | None = None
        self._of_op = b""

    def _text(self, value: str) -> bytes:
        """Return a text that other rows have too."""
        found = self._texts.get(value)
        if found is None:
            found = self._texts[value] = text(value)
        return found

    def _time(self, value: datetime) -> bytes:
        """Return an instant that other rows have too."""
        found = self._times.get(value)
        if found is None:
            found = self._times[value] = timestamp(value)
        return found

    def _keys(self, values: tuple[str, ...]) -> bytes:
        """Return the keys of the periods that a call's legs are in: those of nearly every call."""
        found = self._period_keys.get(values)
        if found is None:
            found = self._period_keys[values] = binary.texts(values)
        return found

    def _attribution(self, attribution: Attribution) -> list[bytes]:
        tags, session_id = attribution.tags, attribution.session_id
        return [
            uuid(attribution.tenant_id),
            uuid(attribution.api_key_id),
            uuid(attribution.user_id),
            text(attribution.masked_key),
            uuids(attribution.group_ids),
            jsonb(orjson.dumps(tags)) if tags else _NO_TAGS,
            text(session_id) if session_id else _NO_TEXT,
        ]

    def hold(self, hold: Hold) -> bytes:
        """Return a row of `holds`."""
        legs, grant_legs = hold.legs, hold.grant_legs
        parts = self._attribution(hold.attribution)
        parts.extend(
            [
                uuid(hold.request_id),
                text(hold.check_sha256),
                self._time(hold.check_time),
                self._time(hold.lease_expire_time),
                boolean(hold.attribution.service_account),
                self._text(hold.provider),
                self._text(hold.model),
                int8(hold.estimate_input_tokens),
                int8(hold.estimate_output_tokens),
                boolean(hold.release_on_expiry),
                uuids([leg.key[0] for leg in legs]),
                uuids([leg.key[1] for leg in legs]),
                self._keys(tuple([leg.key[2] for leg in legs])),
                booleans([leg.user_scoped for leg in legs]),
                int8s([leg.nanos for leg in legs]),
                int8s([leg.tokens for leg in legs]),
                uuids([leg.key[1] for leg in grant_legs]),
                int8s([leg.nanos for leg in grant_legs]),
            ]
        )
        return _HOLD_ROW + b"".join(parts)

    def record(self, record: Record) -> bytes:
        """Return a row of `usage_records`; the first item names the model and the price."""
        items, cost = record.items, record.cost
        first = items[0] if items else None
        parts = self._attribution(record.attribution)
        parts.extend(
            [
                uuid(record.request_id),
                binary.int2(record.revision),
                self._text(record.source),
                text(record.body_sha256),
                self._time(record.usage_time),
                self._posted_time,
                timestamp(record.start_time),
                timestamp(record.end_time),
                self._text(record.provider),
                self._text(first.model if first else record.model),
                self._text(first.service_tier if first else ""),
                self._text(record.outcome),
                jsonb(orjson.dumps([item_json(item) for item in items])) if items else _NO_ITEMS,
                uuid(first.price_id if first else None),
                int8(sum([item.usage.input_tokens for item in items])),
                int8(sum([item.usage.output_tokens for item in items])),
                four_int8s(cost.input_nanos, cost.output_nanos, cost.other_nanos, cost.total_nanos),
                int8(record.provider_cost_nanos),
                int8(record.overage_nanos),
                int8(record.hold_shortfall_nanos),
                boolean(record.estimated),
                boolean(record.unpriced),
                boolean(record.lease_expired),
                boolean(record.unchecked),
                jsonb(orjson.dumps([posting_json(line) for line in record.postings])),
            ]
        )
        return _RECORD_ROW + b"".join(parts)

    def entry(self, entry: Entry) -> bytes:
        """Return a row of `ledger_entries`."""
        op = (entry.op_id, entry.revision, entry.usage_time)
        if op != self._op:
            self._op = op
            self._of_op = _ENTRY_ROW + b"".join(
                [
                    uuid(entry.tenant_id),
                    uuid(entry.op_id),
                    binary.int2(entry.revision),
                    self._time(entry.usage_time),
                    self._posted_time,
                ]
            )
        return self._of_op + b"".join(
            [
                binary.int2(entry.leg),
                self._text(entry.kind),
                self._text(entry.account),
                uuid(entry.account_tenant_id),
                uuid(entry.account_id),
                self._text(entry.period_key),
                int8(entry.amount_nanos),
                int8(entry.amount_tokens),
            ]
        )

    def balance(self, state: BalanceState, was: BalanceState | None = None) -> bytes:
        """Return a row of `balances`, and after it what it was taken to be, where that is given."""
        tenant_id, budget_id, period_key = state.key
        place = uuid(tenant_id) + uuid(budget_id) + self._text(period_key)
        if was is None:
            return _BALANCE_ROW + place + _figures(state)
        return _TAKEN_BALANCE_ROW + place + _figures(state) + _figures(was)

    def quarters(self, quarters: Quarters) -> list[bytes]:
        """Return what to add to `rollup_quarters`, sorted by key: rows are locked in that order."""
        return [
            self._rollup(key, self._time(bucket), counters)
            for (key, bucket), counters in sorted(quarters.items(), key=lambda item: _place(*item[0]))
        ]

    def days(self, quarters: Quarters) -> list[bytes]:
        """Return the same by UTC day: what to add to `rollup_days`, sorted by key."""
        days: dict[tuple[tuple[UUID, UUID, UUID, str, str], date], list[int]] = {}
        for (key, bucket), counters in quarters.items():
            day = days.setdefault((key, day_of(bucket)), [0] * len(counters))
            for index, amount in enumerate(counters):
                day[index] += amount
        return [
            self._rollup(key, binary.day(day), counters)
            for (key, day), counters in sorted(days.items(), key=lambda item: _place(*item[0]))
        ]

    def _rollup(self, key: tuple[UUID, UUID, UUID, str, str], bucket: bytes, counters: list[int]) -> bytes:
        a, b, c, d, e, f, g, h, i, j, k, m = counters
        return _ROLLUP_ROW + b"".join(
            [
                uuid(key[0]),
                bucket,
                uuid(key[1]),
                uuid(key[2]),
                self._text(key[3]),
                self._text(key[4]),
                four_int8s(a, b, c, d),
                four_int8s(e, f, g, h),
                four_int8s(i, j, k, m),
            ]
        )


def _figures(state: BalanceState) -> bytes:
    figures = four_int8s(state.spent_nanos, state.held_nanos, state.spent_tokens, state.held_tokens)
    return figures + int8(state.shadow_denials) + binary.int4(state.alerted_pct)


def item_json(item: PricedItem) -> dict[str, object]:
    """Return an item as the record keeps it: only the parts that are not 0."""
    usage: dict[str, int] = {}
    for index, value in enumerate(item.usage):
        if value:
            usage[_USAGE_FIELDS[index]] = value
    return {
        "model": item.model,
        "service_tier": item.service_tier,
        "price_id": item.price_id,
        "usage": usage,
    }


def posting_json(line: PostingLine) -> dict[str, object]:
    """Return a posting as the record keeps it."""
    return {
        "account": line.account,
        "tenant_id": line.tenant_id,
        "id": line.account_id,
        "period_key": line.period_key,
        "user_scoped": line.user_scoped,
        "nanos": line.nanos,
        "tokens": line.tokens,
    }


def alert_row(threshold: FiredThreshold, now: datetime) -> dict[str, object]:
    """Return a row of `alert_states`."""
    return {
        "tenant_id": threshold.budget_tenant_id,
        "budget_id": threshold.budget_id,
        "period_key": threshold.period_key,
        "threshold_pct": threshold.threshold_pct,
        "soft_limit": threshold.soft_limit,
        "spent_nanos": threshold.spent_nanos,
        "spent_tokens": threshold.spent_tokens,
        "fire_time": now,
    }


def _place(key: tuple[UUID, UUID, UUID, str, str], bucket: date) -> tuple[int, date, int, int, str, str]:
    """Return what rows of rollups are sorted by: the order of their primary keys."""
    return key[0].int, bucket, key[1].int, key[2].int, key[3], key[4]
