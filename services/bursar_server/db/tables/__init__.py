"""The schema: one table of each kind, money in nanos, instants in UTC.

Every table that grows has `tenant_id` first in its primary key, so that the schema can be distributed by tenant. What bounds
each growing table is said beside it. Enumerations are stored as the short names of the protocol ("DAILY", "HARD").
"""

from bursar_server.db.tables.calls import (
    COST_COUNTERS,
    PARTITIONED_TABLES,
    ROLLUP_COUNTERS,
    alert_states,
    check_waits,
    holds,
    ledger_entries,
    odd_request_ids,
    rate_windows,
    rollup_days,
    rollup_quarters,
    usage_records,
)
from bursar_server.db.tables.columns import metadata
from bursar_server.db.tables.people import (
    access_tokens,
    api_keys,
    config_versions,
    group_members,
    groups,
    tenants,
    users,
)
from bursar_server.db.tables.proof import audit_events, audit_heads, chargeback_reports
from bursar_server.db.tables.spending import balances, budgets, grants, prices

__all__ = [
    "COST_COUNTERS",
    "PARTITIONED_TABLES",
    "ROLLUP_COUNTERS",
    "access_tokens",
    "alert_states",
    "api_keys",
    "audit_events",
    "audit_heads",
    "balances",
    "budgets",
    "chargeback_reports",
    "check_waits",
    "config_versions",
    "grants",
    "group_members",
    "groups",
    "holds",
    "ledger_entries",
    "metadata",
    "odd_request_ids",
    "prices",
    "rate_windows",
    "rollup_days",
    "rollup_quarters",
    "tenants",
    "usage_records",
    "users",
]
