"""The rows of the ledger as JSON: what the batch's INSERT and UPDATE statements take."""

from collections.abc import Mapping
from datetime import date, datetime
from uuid import UUID

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


def balance_row(state: BalanceState) -> dict[str, object]:
    """Return a row of `balances`."""
    return {
        "tenant_id": state.key[0],
        "budget_id": state.key[1],
        "period_key": state.key[2],
        "spent_nanos": state.spent_nanos,
        "held_nanos": state.held_nanos,
        "spent_tokens": state.spent_tokens,
        "held_tokens": state.held_tokens,
        "shadow_denials": state.shadow_denials,
        "alerted_pct": state.alerted_pct,
    }


def balance_as_taken(state: BalanceState) -> dict[str, object]:
    """Return what a row of `balances` was taken to be, in columns of their own."""
    return {
        "was_spent_nanos": state.spent_nanos,
        "was_held_nanos": state.held_nanos,
        "was_spent_tokens": state.spent_tokens,
        "was_held_tokens": state.held_tokens,
        "was_shadow_denials": state.shadow_denials,
        "was_alerted_pct": state.alerted_pct,
    }


def attribution_columns(attribution: Attribution) -> dict[str, object]:
    """Return the columns that say whom a call counts for."""
    return {
        "tenant_id": attribution.tenant_id,
        "api_key_id": attribution.api_key_id,
        "user_id": attribution.user_id,
        "masked_key": attribution.masked_key,
        "group_ids": attribution.group_ids,
        "tags": attribution.tags,
        "session_id": attribution.session_id,
    }


def hold_row(hold: Hold) -> dict[str, object]:
    """Return a row of `holds`."""
    return attribution_columns(hold.attribution) | {
        "request_id": hold.request_id,
        "check_sha256": hold.check_sha256,
        "check_time": hold.check_time,
        "lease_expire_time": hold.lease_expire_time,
        "service_account": hold.attribution.service_account,
        "provider": hold.provider,
        "model": hold.model,
        "estimate_input_tokens": hold.estimate_input_tokens,
        "estimate_output_tokens": hold.estimate_output_tokens,
        "release_on_expiry": hold.release_on_expiry,
        "leg_tenant_ids": [leg.key[0] for leg in hold.legs],
        "leg_budget_ids": [leg.key[1] for leg in hold.legs],
        "leg_period_keys": [leg.key[2] for leg in hold.legs],
        "leg_user_scoped": [leg.user_scoped for leg in hold.legs],
        "leg_nanos": [leg.nanos for leg in hold.legs],
        "leg_tokens": [leg.tokens for leg in hold.legs],
        "grant_ids": [leg.key[1] for leg in hold.grant_legs],
        "grant_nanos": [leg.nanos for leg in hold.grant_legs],
    }


def record_row(record: Record, now: datetime) -> dict[str, object]:
    """Return a row of `usage_records`; the first item names the model and the price."""
    first = record.items[0] if record.items else None
    return attribution_columns(record.attribution) | {
        "request_id": record.request_id,
        "revision": record.revision,
        "source": record.source,
        "body_sha256": record.body_sha256,
        "usage_time": record.usage_time,
        "posted_time": now,
        "start_time": record.start_time,
        "end_time": record.end_time,
        "provider": record.provider,
        "model": first.model if first else record.model,
        "service_tier": first.service_tier if first else "",
        "outcome": record.outcome,
        "items": [item_json(item) for item in record.items],
        "price_id": first.price_id if first else None,
        "input_tokens": sum(item.usage.input_tokens for item in record.items),
        "output_tokens": sum(item.usage.output_tokens for item in record.items),
        "input_cost_nanos": record.cost.input_nanos,
        "output_cost_nanos": record.cost.output_nanos,
        "other_cost_nanos": record.cost.other_nanos,
        "cost_nanos": record.cost.total_nanos,
        "provider_cost_nanos": record.provider_cost_nanos,
        "overage_nanos": record.overage_nanos,
        "hold_shortfall_nanos": record.hold_shortfall_nanos,
        "estimated": record.estimated,
        "unpriced": record.unpriced,
        "lease_expired": record.lease_expired,
        "unchecked": record.unchecked,
        "postings": [posting_json(line) for line in record.postings],
    }


def item_json(item: PricedItem) -> dict[str, object]:
    """Return an item as the record keeps it: only the parts that are not 0."""
    return {
        "model": item.model,
        "service_tier": item.service_tier,
        "price_id": item.price_id,
        "usage": {name: value for name, value in zip(Usage._fields, item.usage, strict=True) if value},
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


def entry_row(entry: Entry, now: datetime) -> dict[str, object]:
    """Return a row of `ledger_entries`."""
    return {
        "tenant_id": entry.tenant_id,
        "op_id": entry.op_id,
        "revision": entry.revision,
        "leg": entry.leg,
        "kind": entry.kind,
        "account": entry.account,
        "account_tenant_id": entry.account_tenant_id,
        "account_id": entry.account_id,
        "period_key": entry.period_key,
        "amount_nanos": entry.amount_nanos,
        "amount_tokens": entry.amount_tokens,
        "usage_time": entry.usage_time,
        "posted_time": now,
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


def _rollup_row(
    key: tuple[UUID, UUID, UUID, str, str], bucket: tuple[str, object], counters: list[int]
) -> dict[str, object]:
    return {
        "tenant_id": key[0],
        bucket[0]: bucket[1],
        "user_id": key[1],
        "api_key_id": key[2],
        "provider": key[3],
        "model": key[4],
    } | dict(zip(ROLLUP_COUNTERS, counters, strict=True))


def _place(key: tuple[UUID, UUID, UUID, str, str], bucket: date) -> tuple[int, date, int, int, str, str]:
    """Return what rows of rollups are sorted by: the order of their primary keys."""
    return key[0].int, bucket, key[1].int, key[2].int, key[3], key[4]


def quarter_rows(quarters: Quarters) -> list[dict[str, object]]:
    """Return what to add to `rollup_quarters`, sorted by key: rows are locked in that order."""
    return [
        _rollup_row(key, ("bucket_time", bucket), counters)
        for (key, bucket), counters in sorted(quarters.items(), key=lambda item: _place(*item[0]))
    ]


def day_rows(quarters: Quarters) -> list[dict[str, object]]:
    """Return the same by UTC day: what to add to `rollup_days`, sorted by key."""
    days: dict[tuple[tuple[UUID, UUID, UUID, str, str], date], list[int]] = {}
    for (key, bucket), counters in quarters.items():
        day = days.setdefault((key, day_of(bucket)), [0] * len(counters))
        for index, amount in enumerate(counters):
            day[index] += amount
    return [
        _rollup_row(key, ("bucket_day", day), counters)
        for (key, day), counters in sorted(days.items(), key=lambda item: _place(*item[0]))
    ]
