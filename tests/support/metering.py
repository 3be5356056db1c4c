"""Metering on a real database, without the doors: lanes, and the rows that calls refer to."""

import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
from sqlalchemy.ext.asyncio import create_async_engine

from bursar_server.db.engine import connect_lane
from bursar_server.db.partitions import ensure_partitions
from bursar_server.kit import ids
from bursar_server.kit.clock import SystemClock
from bursar_server.metering.evaluation import Outcome
from bursar_server.metering.lane import Lane
from bursar_server.metering.model import CheckCall, DeductCall, DeductItem, Policy, PrincipalRef, ReleaseCall
from bursar_server.metering.service import MeteringService
from bursar_server.pricing.model import Usage

TENANT = ids.DEFAULT_TENANT_ID
PLATFORM = ids.PLATFORM_TENANT_ID
# Prices of the tests' model: 1 nano a token in, 2 out, so that costs are easy to follow.
MODEL = "test-model"
IN_NANOS, OUT_NANOS = 1, 2


def new_id(at: datetime | None = None) -> UUID:
    """Return a new request id."""
    return ids.uuid7_at(at or datetime.now(UTC))


class Ledger:
    """A database with metering on it."""

    def __init__(self, url: str, service: MeteringService, connection: psycopg.Connection[Any]) -> None:
        self.url = url
        self.service = service
        self._connection = connection
        self.batches: list[int] = []
        self.outcomes: list[Outcome] = []

    def sql(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Run a statement and return its rows."""
        cursor = self._connection.execute(statement, parameters)
        return cursor.fetchall() if cursor.description else []

    async def make_months(self) -> None:
        """Make the months that there should be by now, as a control plane does."""
        await _make_months(self.url)

    def bump(self, tenant_id: UUID = TENANT) -> None:
        self.sql("UPDATE config_versions SET version = version + 1 WHERE tenant_id = %s", tenant_id)

    def tenant(self, name: str) -> UUID:
        tenant_id = new_id()
        self.sql(
            "INSERT INTO tenants (tenant_id, name, status, create_time, update_time) VALUES (%s, %s, 'ACTIVE', now(), now())",
            tenant_id,
            name,
        )
        self.sql("INSERT INTO config_versions VALUES (%s, 1)", tenant_id)
        self.sql("INSERT INTO audit_heads VALUES (%s, 0, repeat('0', 64))", tenant_id)
        return tenant_id

    def user(
        self, email: str, *, rate_limit: int = 0, service_account: bool = False, tenant_id: UUID = TENANT
    ) -> UUID:
        user_id = new_id()
        self.sql(
            "INSERT INTO users (tenant_id, user_id, email, role, status, service_account, rate_limit, create_time, update_time)"
            " VALUES (%s, %s, %s, 'MEMBER', 'ACTIVE', %s, %s, now(), now())",
            tenant_id, user_id, email, service_account, rate_limit,
        )  # fmt: skip
        self.bump(tenant_id)
        return user_id

    def key(
        self,
        user_id: UUID | None = None,
        *,
        secret: str = "bur_test",
        tenant_id: UUID = TENANT,
        **columns: object,
    ) -> PrincipalRef:
        digest = hashlib.sha256(secret.encode()).hexdigest()
        self.sql(
            "INSERT INTO api_keys (tenant_id, api_key_id, name, key_sha256, masked_key, user_id, service_account,"
            " act_for_users, default_tags, trust_user_field, create_time)"
            " VALUES (%s, %s, 'app', %s, 'bur_test…test', %s, %s, %s, %s, %s, now())",
            tenant_id, new_id(), digest, user_id, columns.get("service_account", False),
            columns.get("act_for_users", False), json.dumps(columns.get("default_tags", {})),
            columns.get("trust_user_field", False),
        )  # fmt: skip
        self.bump(tenant_id)
        return PrincipalRef(api_key_sha256=digest)

    def group(self, name: str, *members: UUID, parent: UUID | None = None) -> UUID:
        group_id = new_id()
        self.sql("INSERT INTO groups VALUES (%s, %s, %s, %s, now(), now())", TENANT, group_id, name, parent)
        for user_id in members:
            self.sql("INSERT INTO group_members VALUES (%s, %s, %s)", TENANT, group_id, user_id)
        self.bump()
        return group_id

    def budget(
        self, scope_kind: str, limit_nanos: int | None, *, tenant_id: UUID = TENANT, **columns: object
    ) -> UUID:
        budget_id = new_id()
        values: dict[str, object] = {
            "tenant_id": tenant_id, "budget_id": budget_id, "name": scope_kind.lower(), "scope_kind": scope_kind,
            "period": "DAILY", "anchor_day": 0, "timezone": "UTC", "limit_nanos": limit_nanos, "limit_tokens": None,
            "soft_limit_pct": 80, "alert_thresholds_pct": [80, 90, 100], "enforcement": "HARD",
            "admission": "ANY_REMAINING", "max_wait_ms": 2000, "fit_output": False, "shadow": False,
            "on_lease_expiry": "CHARGE_ESTIMATE", "enabled": True, "managed_by": "PLATFORM", "definition_revision": 1,
            "version": 1, "create_time": datetime.now(UTC), "update_time": datetime.now(UTC),
        } | columns  # fmt: skip
        names = ", ".join(values)
        marks = ", ".join(["%s"] * len(values))
        self.sql(f"INSERT INTO budgets ({names}) VALUES ({marks})", *values.values())
        self.bump(tenant_id)
        return budget_id

    def grant(
        self,
        user_id: UUID,
        amount_nanos: int,
        *,
        expires_in: timedelta = timedelta(days=1),
        starts_in: timedelta = timedelta(hours=-1),
    ) -> UUID:
        grant_id = new_id()
        now = datetime.now(UTC)
        self.sql(
            "INSERT INTO grants (tenant_id, grant_id, user_id, amount_nanos, starts_at, expires_at, create_time, created_by)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, 'test')",
            TENANT, grant_id, user_id, amount_nanos, now + starts_in, now + expires_in, now,
        )  # fmt: skip
        self.bump()
        return grant_id

    def price(self, pattern: str, rates: Mapping[str, int], **columns: object) -> UUID:
        price_id = new_id()
        self.sql(
            "INSERT INTO prices (tenant_id, price_id, source, model_pattern, provider, rates, max_output_tokens, effective_time,"
            " create_time, update_time, version) VALUES (%s, %s, %s, %s, '', %s, %s, '2020-01-01Z', now(), now(), 1)",
            columns.get("tenant_id", PLATFORM), price_id, columns.get("source", "PLATFORM"), pattern,
            json.dumps(rates), columns.get("max_output_tokens"),
        )  # fmt: skip
        self.bump(PLATFORM)
        return price_id

    def check_call(self, principal: PrincipalRef, request_id: UUID | None = None, **given: Any) -> CheckCall:
        call: dict[str, Any] = {
            "provider": "openai", "model": MODEL, "input_tokens_estimate": 10, "max_output_tokens": 45, "tags": {},
            "session_id": "", "allowed_tenants": None,
        } | given  # fmt: skip
        named = repr(sorted((name, str(value)) for name, value in call.items()))
        return CheckCall(
            request_id or new_id(), principal, body_sha256=hashlib.sha256(named.encode()).hexdigest(), **call
        )

    def deduct_call(
        self,
        principal: PrincipalRef,
        request_id: UUID | None,
        input_tokens: int = 10,
        output_tokens: int = 45,
        **given: Any,
    ) -> DeductCall:
        items = given.pop(
            "items", (DeductItem(MODEL, "", Usage(input_tokens=input_tokens, output_tokens=output_tokens)),)
        )
        call: dict[str, Any] = {
            "given_id": str(request_id), "provider": "openai", "outcome": "SUCCESS", "estimated": False,
            "provider_cost_nanos": None, "start_time": None, "end_time": None, "tags": {}, "session_id": "",
            "allowed_tenants": None,
        } | given  # fmt: skip
        named = repr((items, sorted((name, str(value)) for name, value in call.items())))
        return DeductCall(
            request_id=request_id, principal=principal, items=items,
            body_sha256=hashlib.sha256(named.encode()).hexdigest(), **call,
        )  # fmt: skip

    async def check(self, principal: PrincipalRef, request_id: UUID | None = None, **given: Any) -> Any:
        return await self.service.check(self.check_call(principal, request_id, **given))

    async def deduct(
        self,
        principal: PrincipalRef,
        request_id: UUID | None,
        input_tokens: int = 10,
        output_tokens: int = 45,
        **given: Any,
    ) -> Any:
        return await self.service.deduct(
            self.deduct_call(principal, request_id, input_tokens, output_tokens, **given)
        )

    async def release(self, principal: PrincipalRef, request_id: UUID) -> Any:
        return await self.service.release(ReleaseCall(request_id, principal, None))

    async def call(self, principal: PrincipalRef, input_tokens: int = 10, output_tokens: int = 45) -> Any:
        """Check and Deduct one call; return the Deduct's answer, or the Check's where it was denied."""
        answer = await self.check(principal)
        if not answer.allowed:
            return answer
        return await self.deduct(principal, answer.request_id, input_tokens, output_tokens)

    def assert_books(self) -> None:
        """S26: the sums that must always hold."""
        assert self.sql(BALANCES_DIFFER) == []
        assert self.sql(GRANTS_DIFFER) == []
        assert self.sql(HELD_DIFFERS) == []
        assert self.sql(RECORDS_DIFFER) == []
        assert self.sql(ROLLUPS_DIFFER) == []
        assert self.sql(POSTINGS_DIFFER) == []


BALANCES_DIFFER = """
SELECT b.budget_id, b.period_key, b.spent_nanos, coalesce(e.nanos, 0), b.spent_tokens, coalesce(e.tokens, 0)
FROM balances b LEFT JOIN (SELECT account_tenant_id t, account_id i, period_key p, sum(amount_nanos) nanos, sum(amount_tokens) tokens
    FROM ledger_entries WHERE account = 'BUDGET' GROUP BY 1, 2, 3) e ON e.t = b.tenant_id AND e.i = b.budget_id AND e.p = b.period_key
WHERE b.spent_nanos <> coalesce(e.nanos, 0) OR b.spent_tokens <> coalesce(e.tokens, 0)"""
GRANTS_DIFFER = """
SELECT g.grant_id, g.spent_nanos, e.nanos FROM grants g LEFT JOIN (SELECT account_id i, sum(amount_nanos) nanos FROM ledger_entries
    WHERE account = 'GRANT' GROUP BY 1) e ON e.i = g.grant_id
WHERE g.spent_nanos <> coalesce(e.nanos, 0) OR g.spent_nanos > g.amount_nanos
    OR g.held_nanos <> coalesce((SELECT sum(l.n) FROM holds h, unnest(h.grant_ids, h.grant_nanos) l(i, n) WHERE l.i = g.grant_id), 0)"""
HELD_DIFFERS = """
SELECT b.budget_id, b.held_nanos, b.held_tokens FROM balances b WHERE (b.held_nanos, b.held_tokens) <> (
    SELECT coalesce(sum(l.n), 0), coalesce(sum(l.k), 0) FROM holds h,
        unnest(h.leg_budget_ids, h.leg_period_keys, h.leg_nanos, h.leg_tokens) l(i, p, n, k)
    WHERE l.i = b.budget_id AND l.p = b.period_key)"""
RECORDS_DIFFER = """
SELECT r.request_id, r.revision, r.cost_nanos, e.nanos FROM usage_records r LEFT JOIN ledger_entries e0 ON false
    LEFT JOIN (SELECT tenant_id, op_id, revision, sum(amount_nanos) nanos FROM ledger_entries WHERE account = 'TENANT'
    GROUP BY 1, 2, 3) e ON e.tenant_id = r.tenant_id AND e.op_id = r.request_id AND e.revision = r.revision
WHERE r.cost_nanos <> coalesce(e.nanos, 0)
    OR r.cost_nanos <> r.input_cost_nanos + r.output_cost_nanos + r.other_cost_nanos"""
ROLLUPS_DIFFER = """
SELECT * FROM (SELECT t.tenant_id,
    (SELECT coalesce(sum(cost_nanos), 0) FROM usage_records r WHERE r.tenant_id = t.tenant_id) records,
    (SELECT coalesce(sum(cost_nanos), 0) FROM rollup_quarters r WHERE r.tenant_id = t.tenant_id) quarters,
    (SELECT coalesce(sum(cost_nanos), 0) FROM rollup_days r WHERE r.tenant_id = t.tenant_id) days,
    (SELECT coalesce(sum(amount_nanos), 0) FROM ledger_entries e WHERE account = 'TENANT' AND account_id = t.tenant_id) charges
    FROM tenants t) x
WHERE records <> quarters OR quarters <> days OR charges <> records"""
# S14: every posting is an entry, and what grants and a budget of the user bear together is the cost, as for any other budget.
POSTINGS_DIFFER = """
SELECT r.request_id, r.revision, r.cost_nanos, p.id, p.nanos, e.amount_nanos FROM usage_records r
    CROSS JOIN jsonb_to_recordset(r.postings) p(account text, id uuid, period_key text, user_scoped bool, nanos bigint, tokens bigint)
    LEFT JOIN ledger_entries e ON e.tenant_id = r.tenant_id AND e.op_id = r.request_id AND e.revision = r.revision
        AND e.account = p.account AND e.account_id = p.id AND e.period_key = p.period_key
WHERE (coalesce(e.amount_nanos, 0), coalesce(e.amount_tokens, 0)) <> (p.nanos, p.tokens)
    OR p.account = 'BUDGET' AND r.cost_nanos <> p.nanos + CASE WHEN p.user_scoped THEN (SELECT coalesce(sum(g.nanos), 0)
        FROM jsonb_to_recordset(r.postings) g(account text, nanos bigint) WHERE g.account = 'GRANT') ELSE 0 END"""


async def _make_months(url: str) -> None:
    engine = create_async_engine(url.replace("postgresql://", "postgresql+psycopg://", 1))
    async with engine.begin() as connection:
        await ensure_partitions(connection)
    await engine.dispose()


@asynccontextmanager
async def ledger_on(url: str, *, policy: Policy | None = None, lanes: int = 1) -> AsyncIterator[Ledger]:
    """Run metering on a database; the test's model is priced."""
    await _make_months(url)
    connection_ = psycopg.connect(url, autocommit=True)
    policy = policy or Policy()
    clock = SystemClock()
    seen: list[Ledger] = []

    def on_batch(outcome: Outcome, size: int) -> None:
        seen[0].batches.append(size)
        seen[0].outcomes.append(outcome)

    made = [Lane(f"lane-{n}", lambda: connect_lane(url), policy, clock, on_batch) for n in range(lanes)]

    async def ensure_user(tenant_id: UUID, email: str) -> None:
        ledger.user(email, tenant_id=tenant_id)

    ledger = Ledger(url, MeteringService(made, ensure_user, policy, clock), connection_)
    seen.append(ledger)
    for lane in made:
        lane.start()
    ledger.price(MODEL, {"input": IN_NANOS * 1_000_000, "output": OUT_NANOS * 1_000_000})
    try:
        yield ledger
    finally:
        for lane in made:
            await lane.stop()
        connection_.close()
