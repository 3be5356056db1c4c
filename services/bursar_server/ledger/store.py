"""The SQL of a lane's batch: lock and read in one round trip, write and commit in another; or all of it in one.

Rows are locked in the order that every money transaction keeps: balances, grants, holds; each set sorted by key.
What is written for every call goes in binary, one parameter a table; what is rare as JSON, which needs no escaping.
"""

from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson
from psycopg import Connection

from bursar_server.db.binary import array_of, columns_of
from bursar_server.db.lane import Rows, Send
from bursar_server.db.tables import ROLLUP_COUNTERS
from bursar_server.ledger import rows
from bursar_server.ledger.model import (
    Account,
    Attribution,
    BalanceKey,
    BalanceState,
    CallKey,
    Entry,
    FiredThreshold,
    GrantKey,
    GrantLeg,
    GrantState,
    Hold,
    Leg,
    PastRevision,
    PostingLine,
    PricedItem,
    Record,
    Source,
)
from bursar_server.pricing.model import CallCost, Usage

Row = tuple[Any, ...]

ROW_TYPES: Mapping[str, str] = rows.COLUMNS
"""The types that a lane's connection needs for `send_writes`."""

_BALANCE = """
SELECT b.tenant_id, b.budget_id, b.period_key, b.period_start, b.period_end, b.spent_nanos, b.held_nanos, b.spent_tokens,
       b.held_tokens, b.shadow_denials, b.alerted_pct"""
_LOCK_BALANCES = f"""{_BALANCE}
FROM unnest(%s::uuid[], %s::uuid[], %s::text[]) AS k(t, i, p)
    JOIN balances b ON b.tenant_id = k.t AND b.budget_id = k.i AND b.period_key = k.p
ORDER BY b.tenant_id, b.budget_id, b.period_key FOR UPDATE OF b"""
_LOCK_BALANCES_OF_HOLDS = f"""{_BALANCE}
FROM balances b JOIN (
    SELECT t, i, p FROM unnest(%s::uuid[], %s::uuid[], %s::text[]) AS k(t, i, p)
    UNION
    SELECT l.t, l.i, l.p FROM unnest(%s::uuid[]) AS c(id) JOIN holds h ON h.request_id = c.id,
        unnest(h.leg_tenant_ids, h.leg_budget_ids, h.leg_period_keys) AS l(t, i, p)
) AS k ON b.tenant_id = k.t AND b.budget_id = k.i AND b.period_key = k.p
ORDER BY b.tenant_id, b.budget_id, b.period_key FOR UPDATE OF b"""

_LOCK_GRANTS = """
SELECT g.tenant_id, g.grant_id, g.amount_nanos, g.spent_nanos, g.held_nanos, g.starts_at, g.expires_at, g.create_time,
       g.revoke_time IS NOT NULL
FROM grants g JOIN (
    SELECT t, i FROM unnest(%s::uuid[], %s::uuid[]) AS k(t, i)
    UNION
    SELECT h.tenant_id, l.i FROM unnest(%s::uuid[]) AS c(id) JOIN holds h ON h.request_id = c.id,
        unnest(h.grant_ids) AS l(i)
) AS k ON g.tenant_id = k.t AND g.grant_id = k.i
ORDER BY g.tenant_id, g.grant_id FOR UPDATE OF g"""

_LOCK_HOLDS = """
SELECT h.tenant_id, h.request_id, h.check_sha256, h.check_time, h.lease_expire_time, h.api_key_id, h.user_id, h.masked_key,
       h.service_account, h.group_ids, h.tags, h.session_id, h.provider, h.model, h.estimate_input_tokens,
       h.estimate_output_tokens, h.release_on_expiry, h.leg_tenant_ids, h.leg_budget_ids, h.leg_period_keys,
       h.leg_user_scoped, h.leg_nanos, h.leg_tokens, h.grant_ids, h.grant_nanos
FROM unnest(%s::uuid[]) AS c(id) JOIN holds h ON h.request_id = c.id
ORDER BY h.tenant_id, h.request_id FOR UPDATE OF h"""

_READ_REVISIONS = """
SELECT r.tenant_id, r.request_id, r.revision, r.source, r.body_sha256, r.usage_time, r.provider, r.model, r.input_cost_nanos,
       r.output_cost_nanos, r.other_cost_nanos, r.items, r.postings, r.overage_nanos, r.hold_shortfall_nanos, r.unpriced,
       r.unchecked, r.api_key_id, r.user_id, r.masked_key, r.group_ids, r.tags, r.session_id
FROM unnest(%s::uuid[], %s::uuid[]) AS k(t, id) JOIN usage_records r ON r.tenant_id = k.t AND r.request_id = k.id
ORDER BY r.tenant_id, r.request_id, r.revision"""

_UPDATE_BALANCES = """
UPDATE balances b SET spent_nanos = x.spent_nanos, held_nanos = x.held_nanos, spent_tokens = x.spent_tokens,
    held_tokens = x.held_tokens, shadow_denials = x.shadow_denials, alerted_pct = x.alerted_pct
FROM unnest(%s::pg_temp.balance_row[]) AS x
WHERE b.tenant_id = x.tenant_id AND b.budget_id = x.budget_id AND b.period_key = x.period_key"""

_UPDATE_GRANTS = """
UPDATE grants g SET spent_nanos = x.spent_nanos, held_nanos = x.held_nanos
FROM json_to_recordset(%s) AS x(tenant_id uuid, grant_id uuid, spent_nanos bigint, held_nanos bigint)
WHERE g.tenant_id = x.tenant_id AND g.grant_id = x.grant_id"""

_DELETE_HOLDS = """
DELETE FROM holds h USING unnest(%s::uuid[], %s::uuid[]) AS k(t, id) WHERE h.tenant_id = k.t AND h.request_id = k.id"""

# What a batch took for granted is confirmed by statements that fail with a division by zero where it is not so.
_IS_AS_IT_WAS = """b.tenant_id = x.tenant_id AND b.budget_id = x.budget_id AND b.period_key = x.period_key
    AND b.spent_nanos = x.was_spent_nanos AND b.held_nanos = x.was_held_nanos AND b.spent_tokens = x.was_spent_tokens
    AND b.held_tokens = x.was_held_tokens AND b.shadow_denials = x.was_shadow_denials
    AND b.alerted_pct = x.was_alerted_pct"""
_CONFIRM_BALANCES = f"""
SELECT 1 / (count(*) = %s::bigint)::int
FROM unnest(%s::pg_temp.taken_balance_row[]) AS x JOIN balances b ON {_IS_AS_IT_WAS}"""
# In the order that every money transaction keeps: an UPDATE of several rows takes them as they come.
_LOCK_TAKEN_BALANCES = """
SELECT FROM unnest(%s::uuid[], %s::uuid[], %s::text[]) AS k(t, i, p)
    JOIN balances b ON b.tenant_id = k.t AND b.budget_id = k.i AND b.period_key = k.p
ORDER BY b.tenant_id, b.budget_id, b.period_key FOR UPDATE OF b"""
_UPDATE_CONFIRMED_BALANCES = f"""
WITH done AS (UPDATE balances b SET spent_nanos = x.spent_nanos, held_nanos = x.held_nanos, spent_tokens = x.spent_tokens,
    held_tokens = x.held_tokens, shadow_denials = x.shadow_denials, alerted_pct = x.alerted_pct
FROM unnest(%s::pg_temp.taken_balance_row[]) AS x
WHERE {_IS_AS_IT_WAS} RETURNING 1)
SELECT 1 / (count(*) = %s::bigint)::int FROM done"""
_DELETE_CONFIRMED_HOLDS = f"""
WITH done AS ({_DELETE_HOLDS} RETURNING 1) SELECT 1 / (count(*) = %s::bigint)::int FROM done"""
_CONFIRM_NEW = """
SELECT 1 / (NOT EXISTS (
    SELECT FROM unnest(%s::uuid[], %s::uuid[]) AS k(t, id)
        JOIN usage_records r ON r.tenant_id = k.t AND r.request_id = k.id))::int"""
_CONFIRM_NOT_OPEN = """
SELECT 1 / (NOT EXISTS (
    SELECT FROM unnest(%s::uuid[], %s::uuid[]) AS k(t, id)
        JOIN holds h ON h.tenant_id = k.t AND h.request_id = k.id))::int"""

_ROLLUP_SUMS = ", ".join(f"{name} = r.{name} + excluded.{name}" for name in ROLLUP_COUNTERS)


def _insert_rows(table: str, row_type: str) -> str:
    return (
        f"INSERT INTO {table} AS r ({rows.names_of(row_type)}) SELECT * FROM unnest(%s::pg_temp.{row_type}[])"
    )


def _add_to_rollup(table: str, row_type: str, bucket: str) -> str:
    return f"""{_insert_rows(table, row_type)}
ON CONFLICT (tenant_id, {bucket}, user_id, api_key_id, provider, model) DO UPDATE SET {_ROLLUP_SUMS}"""


_INSERT_HOLDS = _insert_rows("holds", "hold_row")
_INSERT_RECORDS = _insert_rows("usage_records", "record_row")
_INSERT_ENTRIES = _insert_rows("ledger_entries", "entry_row")
_INSERT_ALERTS = "INSERT INTO alert_states SELECT * FROM json_populate_recordset(NULL::alert_states, %s)"
_ADD_TO_QUARTERS = _add_to_rollup("rollup_quarters", "quarter_row", "bucket_time")
_ADD_TO_DAYS = _add_to_rollup("rollup_days", "day_row", "bucket_day")


@dataclass(frozen=True)
class LockedRows:
    """What a batch has locked and read."""

    balances: dict[BalanceKey, BalanceState]
    grants: dict[GrantKey, GrantState]
    holds: dict[CallKey, Hold]
    past: dict[CallKey, list[PastRevision]]


def send_locks(
    send: Send,
    balances: Iterable[BalanceKey],
    grants: Iterable[GrantKey],
    held_calls: Iterable[UUID],
    calls: Iterable[CallKey],
    unknown_legs: Collection[UUID],
) -> Callable[[], LockedRows]:
    """Queue the statements that lock and read a batch's state; the function returned fetches it after the round trip.

    `held_calls` are the calls whose holds are locked too; of `unknown_legs` also the balances that they are on. Their
    grants are locked only where any are named, so that the many batches that no grant is part of have a statement less.
    """
    balance_keys, grant_keys, call_keys = list(balances), list(grants), list(calls)
    held = array_of(held_calls)
    periods = _texts(key[2] for key in balance_keys)
    if unknown_legs:
        legs = array_of(unknown_legs)
        of_balances = send(_LOCK_BALANCES_OF_HOLDS, *columns_of(balance_keys, 2), periods, legs)
    else:
        of_balances = send(_LOCK_BALANCES, *columns_of(balance_keys, 2), periods)
    of_grants = send(_LOCK_GRANTS, *columns_of(grant_keys, 2), held) if grant_keys else None
    of_holds = send(_LOCK_HOLDS, held)
    of_revisions = send(_READ_REVISIONS, *columns_of(call_keys, 2))

    def fetch() -> LockedRows:
        past: dict[CallKey, list[PastRevision]] = {}
        for row in of_revisions.rows():
            past.setdefault((row[0], row[1]), []).append(_revision(row))
        return LockedRows(
            {
                (row[0], row[1], row[2]): BalanceState((row[0], row[1], row[2]), *row[3:])
                for row in of_balances.rows()
            },
            {
                (row[0], row[1]): GrantState((row[0], row[1]), *row[2:])
                for row in (of_grants.rows() if of_grants else ())
            },
            {(row[0], row[1]): _hold(row) for row in of_holds.rows()},
            past,
        )

    return fetch


def _hold(row: Row) -> Hold:
    attribution = Attribution(row[0], row[5], row[6], row[7], row[8], tuple(row[9]), row[10], row[11])
    legs = tuple(
        Leg((tenant_id, budget_id, period_key), user_scoped, nanos, tokens)
        for tenant_id, budget_id, period_key, user_scoped, nanos, tokens in zip(*row[17:23], strict=True)
    )
    grants = tuple(
        GrantLeg((row[0], grant_id), nanos) for grant_id, nanos in zip(row[23], row[24], strict=True)
    )
    return Hold(
        row[1], row[2], row[3], row[4], attribution, row[12], row[13], row[14], row[15], row[16], legs, grants
    )


def _revision(row: Row) -> PastRevision:
    attribution = Attribution(row[0], row[17], row[18], row[19], False, tuple(row[20]), row[21], row[22])
    return PastRevision(
        row[2], Source(row[3]), row[4], row[5], row[6], row[7], CallCost(row[8], row[9], row[10]),
        tuple(_item(item) for item in row[11]), tuple(_posting(line) for line in row[12]), row[13], row[14], row[15],
        row[16], attribution,
    )  # fmt: skip


def _item(item: Mapping[str, Any]) -> PricedItem:
    price_id = UUID(item["price_id"]) if item["price_id"] else None
    return PricedItem(item["model"], item["service_tier"], Usage(**item["usage"]), price_id)


def _posting(line: Mapping[str, Any]) -> PostingLine:
    return PostingLine(
        Account(line["account"]), UUID(line["tenant_id"]), UUID(line["id"]), line["period_key"], line["user_scoped"],
        line["nanos"], line["tokens"],
    )  # fmt: skip


def missing_balances(
    connection: Connection[Row], periods: Iterable[tuple[BalanceKey, datetime, datetime]]
) -> None:
    """Make balances that do not exist yet, and commit them: a new period is a new row."""
    payload = [
        {
            "tenant_id": key[0],
            "budget_id": key[1],
            "period_key": key[2],
            "period_start": start,
            "period_end": end,
        }
        for key, start, end in sorted(periods, key=lambda row: row[0])
    ]
    connection.execute(
        "INSERT INTO balances (tenant_id, budget_id, period_key, period_start, period_end)"
        " SELECT tenant_id, budget_id, period_key, period_start, period_end"
        " FROM json_populate_recordset(NULL::balances, %s) ON CONFLICT DO NOTHING",
        (_json(payload),),
    )


def confirm_new(send: Send, calls: Sequence[CallKey], held: Container[CallKey]) -> None:
    """Queue what fails unless none of these calls has a record, or a hold: of those `held` now its key says so itself."""
    send(_CONFIRM_NEW, *columns_of(calls, 2))
    unheld = [call for call in calls if call not in held]
    if unheld:
        send(_CONFIRM_NOT_OPEN, *columns_of(unheld, 2))


def _send_balances(
    send: Send,
    writer: rows.RowWriter,
    balances: Collection[BalanceState],
    taken: Mapping[BalanceKey, BalanceState] | None,
) -> None:
    """Queue what writes the balances that have changed; with `taken`, it confirms also what all of them were taken for."""
    if taken is None:
        changed = [writer.balance(state) for state in balances if state.changed]
        if changed:
            send(_UPDATE_BALANCES, Rows("balance_row", changed))
        return
    update: list[bytes] = []
    confirm: list[bytes] = []
    for state in sorted(balances, key=lambda state: state.key):
        (update if state.changed else confirm).append(writer.balance(state, taken[state.key]))
    if confirm:
        send(_CONFIRM_BALANCES, str(len(confirm)), Rows("taken_balance_row", confirm))
    if len(update) > 1:
        keys = [state.key for state in balances if state.changed]
        send(_LOCK_TAKEN_BALANCES, *columns_of(keys, 2), _texts(key[2] for key in keys))
    if update:
        send(_UPDATE_CONFIRMED_BALANCES, Rows("taken_balance_row", update), str(len(update)))


def send_writes(
    send: Send,
    now: datetime,
    *,
    balances: Collection[BalanceState],
    taken: Mapping[BalanceKey, BalanceState] | None,
    grants: Iterable[GrantState],
    new_holds: Iterable[Hold],
    gone_holds: Iterable[CallKey],
    records: Iterable[Record],
    entries: Iterable[Entry],
    quarters: rows.Quarters,
    fired: Iterable[FiredThreshold],
) -> None:
    """Queue the statements that write a batch's changes, in lock order. Nothing is sent for what did not change.

    `taken` is given where nothing was locked: the balances as the batch took them to be. They, and that the holds that
    go were there, are confirmed in the same statements: one fails with UNCONFIRMED_ERROR where they are not so.
    """
    writer = rows.RowWriter(now)
    _send_balances(send, writer, balances, taken)
    changed_grants = [
        {
            "tenant_id": s.key[0],
            "grant_id": s.key[1],
            "spent_nanos": s.spent_nanos,
            "held_nanos": s.held_nanos,
        }
        for s in grants
        if s.changed
    ]
    if changed_grants:
        send(_UPDATE_GRANTS, _json(changed_grants))
    gone = list(gone_holds)
    if gone and taken is None:
        send(_DELETE_HOLDS, *columns_of(gone, 2))
    elif gone:
        send(_DELETE_CONFIRMED_HOLDS, *columns_of(gone, 2), str(len(gone)))
    _insert(send, _INSERT_HOLDS, "hold_row", [writer.hold(hold) for hold in new_holds])
    _insert(send, _INSERT_RECORDS, "record_row", [writer.record(record) for record in records])
    _insert(send, _INSERT_ENTRIES, "entry_row", [writer.entry(entry) for entry in entries])
    if quarters:
        send(_ADD_TO_QUARTERS, Rows("quarter_row", writer.quarters(quarters)))
        send(_ADD_TO_DAYS, Rows("day_row", writer.days(quarters)))
    alerts = [rows.alert_row(threshold, now) for threshold in fired]
    if alerts:
        send(_INSERT_ALERTS, _json(alerts))


def _insert(send: Send, statement: str, row_type: str, payload: list[bytes]) -> None:
    if payload:
        send(statement, Rows(row_type, payload))


def _texts(period_keys: Iterable[str]) -> str:
    """Return period keys as the text of an array; nothing in them needs quotes."""
    return "{" + ",".join(period_keys) + "}"


def _json(payload: list[dict[str, object]]) -> str:
    return orjson.dumps(payload).decode()
