"""The admin side of the control plane on a test's own database, and calls that were made there before the test began."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import func, insert, select
from sqlalchemy.dialects.postgresql import insert as upsert

from bursar_server.audit.service import AuditService
from bursar_server.budgets.rpc import BudgetRpc
from bursar_server.budgets.service import BudgetService
from bursar_server.db.connection import Connection
from bursar_server.db.tables import (
    COST_COUNTERS,
    ROLLUP_COUNTERS,
    api_keys,
    config_versions,
    ledger_entries,
    rollup_days,
    rollup_quarters,
    usage_records,
)
from bursar_server.db.unit_of_work import UnitOfWork
from bursar_server.grants.service import GrantService
from bursar_server.groups.service import GroupService
from bursar_server.keys.service import KeyService
from bursar_server.kit.caller import Caller, Role
from bursar_server.kit.clock import Clock, SystemClock
from bursar_server.kit.ids import DEFAULT_TENANT_ID, uuid7_at
from bursar_server.kit.periods import day_of, quarter_hour_of
from bursar_server.tenants.rpc import TenantRpc
from bursar_server.tenants.service import TenantService
from bursar_server.tokens.service import TokenService
from bursar_server.users.rpc import UserRpc
from bursar_server.users.service import UserService

USD = 1_000_000_000

OPERATOR = Caller(Role.PLATFORM_ADMIN, "operator")
BILLING = Caller(Role.BILLING_ADMIN, "billing")
ADMIN = Caller(Role.TENANT_ADMIN, "admin@example.com", frozenset({DEFAULT_TENANT_ID}))
DEVELOPER = Caller(Role.TENANT_DEVELOPER, "dev@example.com", frozenset({DEFAULT_TENANT_ID}))


@dataclass(frozen=True)
class AdminSide:
    """The services and the RPC handlers, assembled as a server does it."""

    unit_of_work: UnitOfWork
    audit: AuditService
    tenants: TenantService
    keys: KeyService
    groups: GroupService
    users: UserService
    tokens: TokenService
    grants: GrantService
    budgets: BudgetService
    user_rpc: UserRpc
    tenant_rpc: TenantRpc
    budget_rpc: BudgetRpc


def admin_side(
    unit_of_work: UnitOfWork, *, clock: Clock | None = None, default_daily_budget_nanos: int | None = None
) -> AdminSide:
    """Assemble the admin side."""
    clock = clock or SystemClock()
    audit = AuditService(clock=clock)
    tenants = TenantService(audit=audit, clock=clock)
    budgets = BudgetService(tenants=tenants, audit=audit, clock=clock)
    keys = KeyService(tenants=tenants, audit=audit, clock=clock)
    groups = GroupService(tenants=tenants, budgets=budgets, audit=audit, clock=clock)
    grants = GrantService(tenants=tenants, audit=audit, clock=clock)
    users = UserService(
        tenants=tenants,
        budgets=budgets,
        keys=keys,
        groups=groups,
        audit=audit,
        clock=clock,
        default_daily_budget_nanos=default_daily_budget_nanos,
    )
    tokens = TokenService(
        unit_of_work=unit_of_work, tenants=tenants, users=users, groups=groups, audit=audit, clock=clock
    )
    return AdminSide(
        unit_of_work,
        audit,
        tenants,
        keys,
        groups,
        users,
        tokens,
        grants,
        budgets,
        UserRpc(
            unit_of_work=unit_of_work,
            tenants=tenants,
            users=users,
            budgets=budgets,
            grants=grants,
            groups=groups,
            audit=audit,
        ),
        TenantRpc(unit_of_work=unit_of_work, tenants=tenants, keys=keys, groups=groups, users=users),
        BudgetRpc(
            unit_of_work=unit_of_work, budgets=budgets, tenants=tenants, users=users, groups=groups, keys=keys
        ),
    )


async def version_of(unit_of_work: UnitOfWork, tenant_id: UUID = DEFAULT_TENANT_ID) -> int:
    """Return the version of a tenant's configuration."""
    async with unit_of_work.begin() as conn:
        query = select(config_versions.c.version).where(config_versions.c.tenant_id == tenant_id)
        return int((await conn.execute(query)).scalar_one())


async def clock_of(unit_of_work: UnitOfWork) -> datetime:
    """Return the database's clock: what decides periods."""
    async with unit_of_work.begin() as conn:
        now: datetime = (await conn.execute(select(func.clock_timestamp()))).scalar_one()
    return now.astimezone(UTC)


async def record_call(
    conn: Connection,
    usage_time: datetime,
    cost_nanos: int,
    *,
    tenant_id: UUID = DEFAULT_TENANT_ID,
    user_id: UUID | None = None,
    api_key_id: UUID | None = None,
    group_ids: Collection[UUID] = (),
    tags: Mapping[str, str] | None = None,
    from_grants: Mapping[UUID, int] | None = None,
    input_tokens: int = 100,
    output_tokens: int = 10,
) -> UUID:
    """Write what a Deduct writes of a call: its record, its entries, its place in both rollups. Returns its id."""
    request_id = uuid7_at(usage_time)
    call = {"tenant_id": tenant_id, "user_id": user_id, "api_key_id": api_key_id}
    counters: dict[str, Any] = dict.fromkeys((*ROLLUP_COUNTERS, *COST_COUNTERS), 0) | {
        "requests": 1,
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "output_cost_nanos": cost_nanos,
        "cost_nanos": cost_nanos,
    }
    values: dict[str, Any] = {
        column.name: {"TEXT": "", "JSONB": [], "BOOLEAN": False}.get(str(column.type), 0)
        for column in usage_records.columns
        if not column.nullable
    }
    values |= {name: counters[name] for name in ("input_tokens", "output_tokens", *COST_COUNTERS)}
    values |= call | {"request_id": request_id, "revision": 0, "source": "DEDUCT", "outcome": "SUCCESS"}
    values |= {"usage_time": usage_time, "posted_time": usage_time, "provider": "openai", "model": "gpt-4o"}
    values |= {"group_ids": list(group_ids), "tags": dict(tags or {})}
    await conn.execute(insert(usage_records).values(values))
    lines = [("TENANT", tenant_id, cost_nanos, input_tokens + output_tokens)]
    lines += [("GRANT", grant_id, nanos, 0) for grant_id, nanos in (from_grants or {}).items()]
    for leg, (account, account_id, nanos, tokens) in enumerate(lines):
        await conn.execute(
            insert(ledger_entries).values(
                tenant_id=tenant_id, op_id=request_id, revision=0, leg=leg, kind="CHARGE", account=account,
                account_tenant_id=tenant_id, account_id=account_id, period_key="", amount_nanos=nanos,
                amount_tokens=tokens, usage_time=usage_time, posted_time=usage_time,
            )
        )  # fmt: skip
    key = {"tenant_id": tenant_id, "provider": "openai", "model": "gpt-4o"}
    key |= {"user_id": user_id or UUID(int=0), "api_key_id": api_key_id or UUID(int=0)}
    for table, bucket, value in (
        (rollup_quarters, "bucket_time", quarter_hour_of(usage_time)),
        (rollup_days, "bucket_day", day_of(usage_time)),
    ):
        added = upsert(table).values(key | {bucket: value} | counters)
        sums = {name: table.c[name] + added.excluded[name] for name in counters}
        await conn.execute(added.on_conflict_do_update(index_elements=table.primary_key, set_=sums))
    return request_id


async def key_row(conn: Connection, api_key_id: UUID) -> Any:
    """Return what is stored of a key."""
    return (await conn.execute(select(api_keys).where(api_keys.c.api_key_id == api_key_id))).one()
