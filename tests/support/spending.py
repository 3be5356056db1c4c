"""Calls that were charged, written as the ledger writes them: record, entry on the tenant, and both rollups."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text

from bursar_server.audit.service import AuditService
from bursar_server.budgets.service import BudgetService
from bursar_server.db.connection import Connection
from bursar_server.db.partitions import ensure_partitions
from bursar_server.groups.service import GroupService
from bursar_server.keys.service import KeyService
from bursar_server.kit.clock import Clock
from bursar_server.kit.ids import DEFAULT_TENANT_ID, uuid7_at
from bursar_server.kit.periods import day_of, quarter_hour_of
from bursar_server.tenants.service import TenantService
from bursar_server.usage.service import UsageService
from bursar_server.users.service import UserService

NOBODY = UUID(int=0)

_RECORD = text(
    "INSERT INTO usage_records (tenant_id, request_id, revision, source, body_sha256, usage_time, posted_time,"
    " api_key_id, user_id, masked_key, group_ids, tags, session_id, provider, model, service_tier, outcome, items,"
    " price_id, input_tokens, output_tokens, input_cost_nanos, output_cost_nanos, other_cost_nanos, cost_nanos,"
    " provider_cost_nanos, overage_nanos, hold_shortfall_nanos, estimated, unpriced, lease_expired, unchecked, postings)"
    " VALUES (:tenant_id, :request_id, :revision, :source, '', :at, :posted, :api_key_id, :user_id, :masked_key, '{}',"
    " CAST(:tags AS jsonb), '', :provider, :model, '', :outcome, CAST(:items AS jsonb), :price_id, :input_tokens,"
    " :output_tokens, :input_nanos, :output_nanos, :other_nanos, :cost_nanos, :provider_cost_nanos, 0, 0, :estimated,"
    " :unpriced, :lease_expired, false, '[]')"
)
_ENTRY = text(
    "INSERT INTO ledger_entries (tenant_id, op_id, revision, leg, kind, account, account_tenant_id, account_id,"
    " period_key, amount_nanos, amount_tokens, usage_time, posted_time) VALUES (:tenant_id, :request_id, :revision, 0,"
    " :kind, 'TENANT', :tenant_id, :tenant_id, '', :cost_nanos, :tokens, :at, :posted)"
)


def _rollup(table: str, bucket: str) -> Any:
    counters = [
        "requests",
        "estimated_requests",
        "unpriced_requests",
        "input_tokens",
        "output_tokens",
        "input_cost_nanos",
        "output_cost_nanos",
        "other_cost_nanos",
        "cost_nanos",
    ]
    return text(
        f"INSERT INTO {table} AS r (tenant_id, {bucket}, user_id, api_key_id, provider, model, {', '.join(counters)})"
        " VALUES (:tenant_id, :bucket, :user_id, :api_key_id, :provider, :model, :requests, :estimated, :unpriced,"
        " :input_tokens, :output_tokens, :input_nanos, :output_nanos, :other_nanos, :cost_nanos)"
        f" ON CONFLICT (tenant_id, {bucket}, user_id, api_key_id, provider, model) DO UPDATE SET "
        + ", ".join(f"{name} = r.{name} + excluded.{name}" for name in counters)
    )


_QUARTER = _rollup("rollup_quarters", "bucket_time")
_DAY = _rollup("rollup_days", "bucket_day")


async def charge(
    conn: Connection,
    at: datetime,
    nanos: int,
    *,
    tenant_id: UUID = DEFAULT_TENANT_ID,
    user_id: UUID | None = None,
    api_key_id: UUID | None = None,
    provider: str = "openai",
    model: str = "gpt-4o",
    input_tokens: int = 100,
    output_tokens: int = 10,
    output_nanos: int = 0,
    other_nanos: int = 0,
    request_id: UUID | None = None,
    revision: int = 0,
    source: str = "DEDUCT",
    kind: str = "CHARGE",
    posted: datetime | None = None,
    requests: int = 1,
    estimated: bool = False,
    unpriced: bool = False,
    outcome: str = "SUCCESS",
    provider_cost_nanos: int | None = None,
    tags: dict[str, str] | None = None,
    items: list[dict[str, object]] | None = None,
) -> UUID:
    """Charge a call made `at`; return its id. A release is a record and nothing else."""
    await ensure_partitions(conn, at)
    values: dict[str, Any] = {
        "tenant_id": tenant_id,
        "request_id": request_id or uuid7_at(at),
        "revision": revision,
        "source": source,
        "at": at,
        "posted": posted or at,
        "api_key_id": api_key_id,
        "user_id": user_id,
        "masked_key": "bur_abcd…wxyz" if api_key_id else "",
        "tags": json.dumps(tags or {}),
        "provider": provider,
        "model": model,
        "outcome": outcome,
        "items": json.dumps(items if items is not None else [_item(model, input_tokens, output_tokens)]),
        "price_id": None if unpriced else UUID(int=1),
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "tokens": input_tokens + output_tokens,
        "input_nanos": nanos - output_nanos - other_nanos,
        "output_nanos": output_nanos,
        "other_nanos": other_nanos,
        "cost_nanos": nanos,
        "provider_cost_nanos": provider_cost_nanos,
        "kind": kind,
        "estimated": estimated,
        "unpriced": unpriced,
        "lease_expired": source == "EXPIRY",
    }
    await conn.execute(_RECORD, values)
    if source != "RELEASE":
        await conn.execute(_ENTRY, values)
        summed = values | {"requests": requests, "estimated": int(estimated), "unpriced": int(unpriced)}
        summed |= {"user_id": user_id or NOBODY, "api_key_id": api_key_id or NOBODY}
        await conn.execute(_QUARTER, summed | {"bucket": quarter_hour_of(at)})
        await conn.execute(_DAY, summed | {"bucket": day_of(at)})
    return UUID(str(values["request_id"]))


def _item(model: str, input_tokens: int, output_tokens: int) -> dict[str, object]:
    usage = {"input_tokens": input_tokens, "output_tokens": output_tokens}
    return {"model": model, "service_tier": "", "price_id": None, "usage": usage}


def usage_service(tenants: TenantService, audit: AuditService, clock: Clock) -> UsageService:
    """Return the service that reads what was charged, with what it needs to know of people."""
    budgets = BudgetService(tenants=tenants, audit=audit, clock=clock)
    users = UserService(
        tenants=tenants,
        budgets=budgets,
        keys=KeyService(tenants=tenants, audit=audit, clock=clock),
        groups=GroupService(tenants=tenants, budgets=budgets, audit=audit, clock=clock),
        audit=audit,
        clock=clock,
    )
    return UsageService(tenants=tenants, users=users)


def utc(year: int, month: int, day: int, hour: int = 0, minute: int = 0, second: int = 0) -> datetime:
    """Return an instant in UTC."""
    return datetime(year, month, day, hour, minute, second, tzinfo=UTC)


async def add_tenant(conn: Connection, tenant_id: UUID, name: str) -> None:
    """Make a tenant."""
    await conn.execute(
        text(
            "INSERT INTO tenants (tenant_id, name, status, create_time, update_time)"
            " VALUES (:id, :name, 'ACTIVE', now(), now())"
        ),
        {"id": tenant_id, "name": name},
    )
    await conn.execute(
        text("INSERT INTO config_versions (tenant_id, version) VALUES (:id, 1)"), {"id": tenant_id}
    )


async def add_user(conn: Connection, user_id: UUID, email: str, tenant_id: UUID = DEFAULT_TENANT_ID) -> None:
    """Make a user."""
    await conn.execute(
        text(
            "INSERT INTO users (tenant_id, user_id, email, role, status, rate_limit, create_time, update_time)"
            " VALUES (:tenant, :id, :email, 'MEMBER', 'ACTIVE', 60, now(), now())"
        ),
        {"tenant": tenant_id, "id": user_id, "email": email},
    )


async def add_key(
    conn: Connection,
    api_key_id: UUID,
    name: str,
    *,
    user_id: UUID | None = None,
    tenant_id: UUID = DEFAULT_TENANT_ID,
    masked: str = "bur_abcd…wxyz",
) -> None:
    """Make an API key."""
    await conn.execute(
        text(
            "INSERT INTO api_keys (tenant_id, api_key_id, name, key_sha256, masked_key, user_id, create_time)"
            " VALUES (:tenant, :id, :name, :sha, :masked, :user, now())"
        ),
        {
            "tenant": tenant_id,
            "id": api_key_id,
            "name": name,
            "sha": str(api_key_id),
            "masked": masked,
            "user": user_id,
        },
    )
