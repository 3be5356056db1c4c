"""Calls: open holds, records, the ledger and its sums."""

from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Column,
    Date,
    Index,
    Integer,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    Uuid,
)
from sqlalchemy.dialects.postgresql import JSONB

from bursar_server.db.tables.columns import (
    Instant,
    TextArray,
    UuidArray,
    counters,
    metadata,
    optional,
    required,
)

COST_COUNTERS = ("input_cost_nanos", "output_cost_nanos", "other_cost_nanos", "cost_nanos")


# Open calls only: a row is deleted by the Deduct, the release or the lease's expiry.
holds = Table(
    "holds",
    metadata,
    required("tenant_id", Uuid),
    required("request_id", Uuid),
    required("check_sha256", Text),
    required("check_time", Instant),
    required("lease_expire_time", Instant),
    optional("api_key_id", Uuid),
    optional("user_id", Uuid),
    required("masked_key", Text),
    required("service_account", Boolean),
    required("group_ids", UuidArray),
    required("tags", JSONB),
    required("session_id", Text),
    required("provider", Text),
    required("model", Text),
    required("estimate_input_tokens", BigInteger),
    required("estimate_output_tokens", BigInteger),
    required("release_on_expiry", Boolean),
    # The legs: what matched at the Check, and how much of it is held. Parallel arrays, so that SQL can lock by them.
    required("leg_tenant_ids", UuidArray),
    required("leg_budget_ids", UuidArray),
    required("leg_period_keys", TextArray),
    required("leg_user_scoped", ARRAY(Boolean)),
    required("leg_nanos", ARRAY(BigInteger)),
    required("leg_tokens", ARRAY(BigInteger)),
    # The grants that were active at the Check (S7), and how much of each is held.
    required("grant_ids", UuidArray),
    required("grant_nanos", ARRAY(BigInteger)),
    PrimaryKeyConstraint("tenant_id", "request_id"),
    # A Deduct or a renewal may name nothing but the call.
    Index("ix_holds_request_id", "request_id"),
    Index("ix_holds_lease_expire_time", "lease_expire_time"),
    postgresql_with={
        "fillfactor": 70,
        "autovacuum_vacuum_scale_factor": 0.0,
        "autovacuum_vacuum_threshold": 5000,
        "autovacuum_vacuum_cost_delay": 0,
    },
)

# Partitioned by month by the UUIDv7 itself; months may be dropped after 13.
usage_records = Table(
    "usage_records",
    metadata,
    required("tenant_id", Uuid),
    required("request_id", Uuid),
    # Revision 0 is the first of Deduct, expiry and release; later ones carry signed differences.
    required("revision", SmallInteger),
    required("source", Text),  # DEDUCT, EXPIRY, RELEASE
    required("body_sha256", Text),
    required("usage_time", Instant),
    required("posted_time", Instant),
    optional("start_time", Instant),
    optional("end_time", Instant),
    optional("api_key_id", Uuid),
    optional("user_id", Uuid),
    required("masked_key", Text),
    required("group_ids", UuidArray),
    required("tags", JSONB),
    required("session_id", Text),
    required("provider", Text),
    required("model", Text),
    required("service_tier", Text),
    required("outcome", Text),
    # Each model's usage and the price that was used: [{"model", "service_tier", "price_id", "usage", "cost": […]}].
    required("items", JSONB),
    optional("price_id", Uuid),
    required("input_tokens", BigInteger),
    required("output_tokens", BigInteger),
    *[required(name, BigInteger) for name in COST_COUNTERS],
    optional("provider_cost_nanos", BigInteger),
    required("overage_nanos", BigInteger),
    required("hold_shortfall_nanos", BigInteger),
    required("estimated", Boolean),
    required("unpriced", Boolean),
    required("lease_expired", Boolean),
    required("unchecked", Boolean),
    # Every leg, also those that bore nothing: [{"account", "tenant_id", "id", "period_key", "user_scoped", "nanos", "tokens"}].
    required("postings", JSONB),
    PrimaryKeyConstraint("tenant_id", "request_id", "revision"),
    postgresql_partition_by="RANGE (request_id)",
)

# The ledger: append-only. Partitioned like usage_records; months may be dropped once closing entries exist.
ledger_entries = Table(
    "ledger_entries",
    metadata,
    required("tenant_id", Uuid),
    required("op_id", Uuid),
    required("revision", SmallInteger),
    required("leg", SmallInteger),
    required("kind", Text),  # CHARGE, EXPIRY, ADJUSTMENT, OPENING, RESET
    required("account", Text),  # TENANT, BUDGET, GRANT
    required("account_tenant_id", Uuid),
    required("account_id", Uuid),
    required("period_key", Text),
    required("amount_nanos", BigInteger),
    required("amount_tokens", BigInteger),
    required("usage_time", Instant),
    required("posted_time", Instant),
    PrimaryKeyConstraint("tenant_id", "op_id", "revision", "leg"),
    postgresql_partition_by="RANGE (op_id)",
)

PARTITIONED_TABLES = ("usage_records", "ledger_entries")

# Ids that could not be placed in a partition, and the ids that stand for them. Rare; kept.
odd_request_ids = Table(
    "odd_request_ids",
    metadata,
    required("tenant_id", Uuid),
    required("given_id", Text),
    required("request_id", Uuid),
    required("create_time", Instant),
    PrimaryKeyConstraint("tenant_id", "given_id"),
)

# Checks that wait for other calls' holds (S10): other processes queue behind them. Rows end by themselves.
check_waits = Table(
    "check_waits",
    metadata,
    required("tenant_id", Uuid),
    required("budget_id", Uuid),
    required("request_id", Uuid),
    required("wait_since", Instant),
    required("expire_time", Instant),
    PrimaryKeyConstraint("tenant_id", "budget_id", "request_id"),
)

# Exact sums, written in the Deduct's transaction: a row for each combination used in a quarter-hour, or a UTC day.
ROLLUP_COUNTERS = (
    "requests",
    "estimated_requests",
    "unpriced_requests",
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    *COST_COUNTERS,
)


def _rollup(name: str, bucket: Column[Any]) -> Table:
    return Table(
        name,
        metadata,
        required("tenant_id", Uuid),
        bucket,
        required("user_id", Uuid),  # all zeros where there is none
        required("api_key_id", Uuid),  # all zeros where there is none
        required("provider", Text),
        required("model", Text),
        *counters(ROLLUP_COUNTERS),
        PrimaryKeyConstraint("tenant_id", bucket.name, "user_id", "api_key_id", "provider", "model"),
        postgresql_with={"fillfactor": 80},
    )


rollup_quarters = _rollup("rollup_quarters", required("bucket_time", Instant))
rollup_days = _rollup("rollup_days", required("bucket_day", Date))

# A threshold fires once in a period (S21): the row is the proof that it did.
alert_states = Table(
    "alert_states",
    metadata,
    required("tenant_id", Uuid),
    required("budget_id", Uuid),
    required("period_key", Text),
    required("threshold_pct", SmallInteger),
    required("soft_limit", Boolean),
    required("spent_nanos", BigInteger),
    required("spent_tokens", BigInteger),
    required("fire_time", Instant),
    PrimaryKeyConstraint("tenant_id", "budget_id", "period_key", "threshold_pct"),
)

# Minute-window counters; rows older than two minutes are deleted (F093).
rate_windows = Table(
    "rate_windows",
    metadata,
    required("tenant_id", Uuid),
    required("user_id", Uuid),
    required("window_start", Instant),
    required("requests", Integer),
    PrimaryKeyConstraint("tenant_id", "user_id", "window_start"),
    postgresql_with={"fillfactor": 70},
)
