"""Proof and statements: the audit trail and reports."""

from sqlalchemy import BigInteger, Index, LargeBinary, PrimaryKeyConstraint, Table, Text, Uuid
from sqlalchemy.dialects.postgresql import JSONB

from bursar_server.db.tables.columns import Instant, metadata, optional, required

audit_heads = Table(
    "audit_heads",
    metadata,
    required("tenant_id", Uuid),
    required("sequence", BigInteger),
    required("hash", Text),
    PrimaryKeyConstraint("tenant_id"),
    postgresql_with={"fillfactor": 50},
)

# Append-only, chained by hashes per tenant. Kept.
audit_events = Table(
    "audit_events",
    metadata,
    required("tenant_id", Uuid),
    required("sequence", BigInteger),
    required("action", Text),
    required("actor", Text),
    optional("user_id", Uuid),
    required("resource", Text),
    required("details", JSONB),
    required("create_time", Instant),
    required("previous_hash", Text),
    required("hash", Text),
    PrimaryKeyConstraint("tenant_id", "sequence"),
    Index("ix_audit_events_tenant_id_user_id_sequence", "tenant_id", "user_id", "sequence"),
)

chargeback_reports = Table(
    "chargeback_reports",
    metadata,
    required("tenant_id", Uuid),  # the platform tenant for a report on all tenants
    required("report_id", Uuid),
    required("tenant_name", Text),
    required("from_time", Instant),
    required("to_time", Instant),
    required("cutoff_time", Instant),
    required("generated_time", Instant),
    required("generated_by", Text),
    required("total_nanos", BigInteger),
    required("requests", BigInteger),
    required("content_sha256", Text),
    required("content", LargeBinary),
    PrimaryKeyConstraint("tenant_id", "report_id"),
    Index("ix_chargeback_reports_report_id", "report_id"),
)
