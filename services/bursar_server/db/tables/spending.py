"""What may be spent, and what it costs: budgets, balances, grants and prices."""

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Index,
    Integer,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from bursar_server.db.tables.columns import Instant, TextArray, counters, metadata, optional, required

budgets = Table(
    "budgets",
    metadata,
    required("tenant_id", Uuid),  # the platform tenant for global budgets
    required("budget_id", Uuid),
    required("name", Text),
    required("scope_kind", Text),  # GLOBAL, TENANT, GROUP, USER, KEY, TAG
    optional("group_id", Uuid),
    optional("user_id", Uuid),
    optional("api_key_id", Uuid),
    optional("tag_key", Text),
    optional("tag_value", Text),
    required("period", Text),
    required("anchor_day", SmallInteger),
    required("timezone", Text),
    optional("limit_nanos", BigInteger),
    optional("limit_tokens", BigInteger),
    optional("soft_limit_pct", SmallInteger),
    required("alert_thresholds_pct", ARRAY(Integer)),
    required("enforcement", Text),
    required("admission", Text),
    required("max_wait_ms", Integer),
    required("fit_output", Boolean),
    required("shadow", Boolean),
    required("on_lease_expiry", Text),
    required("enabled", Boolean),
    required("managed_by", Text),
    required("owners", TextArray, "'{}'"),
    required("reason", Text, "''"),
    # A change of scope, period, anchor or zone, and enabling, start a new one: its balances begin with an opening entry.
    required("definition_revision", Integer),
    required("version", BigInteger),
    required("create_time", Instant),
    required("update_time", Instant),
    optional("delete_time", Instant),
    required("on_unreachable", Text, "'SIDECAR'"),
    required("guard_streams", Boolean, "FALSE"),
    PrimaryKeyConstraint("tenant_id", "budget_id"),
    CheckConstraint("(limit_nanos IS NULL) <> (limit_tokens IS NULL)", name="one_limit"),
    Index("ix_budgets_budget_id", "budget_id"),
    Index(
        "ix_budgets_tenant_id_user_id", "tenant_id", "user_id", postgresql_where=text("user_id IS NOT NULL")
    ),
    Index(
        "ix_budgets_tenant_id_shared",
        "tenant_id",
        "scope_kind",
        postgresql_where=text("user_id IS NULL AND delete_time IS NULL"),
    ),
)

# One row a budget and period. No index on the changing columns: updates stay in the page.
balances = Table(
    "balances",
    metadata,
    required("tenant_id", Uuid),
    required("budget_id", Uuid),
    required("period_key", Text),
    required("period_start", Instant),
    required("period_end", Instant),
    *counters(("spent_nanos", "held_nanos", "spent_tokens", "held_tokens", "shadow_denials")),
    # The highest threshold that fired in the period (S21); raising the limit or a reset lowers it again.
    required("alerted_pct", Integer, "0"),
    PrimaryKeyConstraint("tenant_id", "budget_id", "period_key"),
    postgresql_with={"fillfactor": 70},
)

grants = Table(
    "grants",
    metadata,
    required("tenant_id", Uuid),
    required("grant_id", Uuid),
    required("user_id", Uuid),
    required("amount_nanos", BigInteger),
    *counters(("spent_nanos", "held_nanos")),
    required("reason", Text, "''"),
    required("starts_at", Instant),
    required("expires_at", Instant),
    required("create_time", Instant),
    required("created_by", Text),
    optional("revoke_time", Instant),
    optional("revoked_by", Text),
    PrimaryKeyConstraint("tenant_id", "grant_id"),
    Index("ix_grants_tenant_id_user_id_expires_at", "tenant_id", "user_id", "expires_at"),
    Index("ix_grants_grant_id", "grant_id"),
    postgresql_with={"fillfactor": 70},
)


prices = Table(
    "prices",
    metadata,
    required("tenant_id", Uuid),  # the platform tenant for PLATFORM and CATALOGUE
    required("price_id", Uuid),
    required("source", Text),  # TENANT, PLATFORM, CATALOGUE
    required("model_pattern", Text),
    required("provider", Text, "''"),
    required("service_tier", Text, "''"),
    # Nanos per million units, by kind of unit; absent parts cost what their whole costs.
    required("rates", JSONB),
    # [{"from_input_tokens": n, "rates": {…}}], ascending.
    required("tiers", JSONB, "'[]'"),
    optional("max_output_tokens", BigInteger),
    required("effective_time", Instant),
    required("create_time", Instant),
    required("update_time", Instant),
    optional("delete_time", Instant),
    required("version", BigInteger),
    PrimaryKeyConstraint("tenant_id", "price_id"),
    Index("ix_prices_price_id", "price_id"),
)
