"""Books with a bit of everything in them, and their proof."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID

from bursar.v1 import budget_pb2, tenant_service_pb2
from bursar.v1 import budget_service_pb2 as budget_pb
from bursar.v1 import user_service_pb2 as user_pb
from bursar_server.audit.service import AuditService
from bursar_server.chargeback.service import ChargebackService
from bursar_server.db.engine import build_engine
from bursar_server.db.unit_of_work import UnitOfWork
from bursar_server.kit.clock import SystemClock
from bursar_server.kit.ids import PLATFORM_TENANT_ID
from bursar_server.kit.periods import ceil_quarter_hour, quarter_hour_of
from bursar_server.metering.model import DeductItem, PrincipalRef
from bursar_server.pricing.model import Usage
from bursar_server.tenants.service import TenantService
from bursar_server.verify.model import Difference, Outcome, Progress, Scope
from bursar_server.verify.service import VerifyService
from bursar_server.verify.work import Sizes
from support.admin import BILLING, OPERATOR, admin_side
from support.called import called_by
from support.metering import MODEL, TENANT, Ledger, ledger_on, new_id
from support.spending import usage_service

# So small that every loop over pages goes round more than once.
TINY = Sizes(entries=3, records=2, rows=2)
EXPIRE = "UPDATE holds SET lease_expire_time = now() - interval '1 second' WHERE request_id = %s"
CHEAP = "cheap-model"


@dataclass
class Proof:
    """What a run found."""

    differences: list[Difference] = field(default_factory=list)
    progress: list[str] = field(default_factory=list)
    outcome: Outcome | None = None

    @property
    def told(self) -> set[str]:
        """Invariant, figure and who says it, of every difference."""
        return {f"{found.invariant} {found.figure} by {found.said_by}" for found in self.differences}


async def prove(url: str, scope: Scope | None = None, sizes: Sizes | None = None) -> Proof:
    """Check the books of a database."""
    proof = Proof()

    def on_progress(progress: Progress) -> None:
        if not proof.progress or proof.progress[-1] != progress.doing:
            proof.progress.append(progress.doing)

    engine = build_engine(url, pool_size=1, statement_timeout_ms=8_000)
    try:
        service = VerifyService(engine=engine, clock=SystemClock(), sizes=sizes)
        proof.outcome = await service.run(scope or Scope(), proof.differences.append, on_progress)
    finally:
        await engine.dispose()
    assert sum(proof.outcome.differences.values()) == len(proof.differences)
    return proof


async def fill(url: str) -> None:
    """Fill a database with every kind of call, grant, budget, correction, audit event and report."""
    async with ledger_on(url, lanes=2) as ledger:
        engine = build_engine(url, pool_size=3)
        work = UnitOfWork(engine)
        await _live(ledger, work)
        # What was posted is older than what a first look leaves aside.
        for table in ("ledger_entries", "usage_records"):
            ledger.sql(f"UPDATE {table} SET posted_time = posted_time - interval '1 hour'")
        await _reports(work)
        await ledger.call(ledger.key(ledger.user("late@example.com"), secret="bur_late"))
        await ledger.call(ledger.key(tenant_id=_acme(ledger), secret="bur_acme_late"))
        await engine.dispose()


def _acme(ledger: Ledger) -> UUID:
    found: UUID = ledger.sql("SELECT tenant_id FROM tenants WHERE name = 'acme'")[0][0]
    return found


async def _live(ledger: Ledger, work: UnitOfWork) -> None:
    admin = admin_side(work)
    ledger.price(CHEAP, {"input": 333_333, "output": 700_000, "cache_read": 100_000, "request": 1_500_000})
    alice, bob = ledger.user("alice@example.com"), ledger.user("bob@example.com")
    keys = [ledger.key(alice, secret="bur_alice"), ledger.key(bob, secret="bur_bob")]
    robot = ledger.key(secret="bur_robot", default_tags={"team": "core"})
    ledger.group("core", alice, bob)
    acme = ledger.tenant("acme")
    keys.append(
        ledger.key(ledger.user("carol@acme.example", tenant_id=acme), tenant_id=acme, secret="bur_carol")
    )
    ledger.budget("TENANT", 1_000_000, period="MONTHLY", admission="EXPECTED")
    ledger.budget("TENANT", None, limit_tokens=1_000_000)
    ledger.budget("USER", 10_000, user_id=alice, admission="UPPER_BOUND")
    ledger.budget("USER", 500, user_id=bob, period="TOTAL", enforcement="SOFT")
    ledger.budget("TAG", 100_000, tag_key="team", tag_value="core", on_lease_expiry="RELEASE")
    ledger.budget("TENANT", 1_000_000, tenant_id=acme)
    ledger.budget("GLOBAL", 1_000_000, tenant_id=PLATFORM_TENANT_ID)
    ledger.grant(alice, 150)
    ledger.grant(alice, 300, expires_in=timedelta(days=5))
    await asyncio.gather(
        *(ledger.call(key, 7 * number + 1, 40 + number) for number in range(8) for key in keys)
    )
    await ledger.call(robot)
    await _odd_calls(ledger, keys[0], keys[2], robot)
    ledger.grant(alice, 5_000, expires_in=timedelta(days=9))
    for key in (keys[0], keys[2]):
        assert (await ledger.check(key)).allowed
    created = budget_pb.CreateBudgetRequest(
        budget=budget_pb2.Budget(scope=budget_pb2.BudgetScope(user_id=str(bob)), period="BUDGET_PERIOD_MONTHLY", limit_usd=1)
    )  # fmt: skip
    await admin.budget_rpc.create_budget(created, called_by(OPERATOR))
    await admin.user_rpc.reset_spend(user_pb.ResetSpendRequest(user_id=str(alice)), called_by(OPERATOR))
    for name in ("one", "two", "three"):
        await admin.tenant_rpc.create_group(
            tenant_service_pb2.CreateGroupRequest(name=name), called_by(OPERATOR)
        )
    await ledger.call(keys[0])


async def _odd_calls(ledger: Ledger, key: PrincipalRef, other: PrincipalRef, robot: PrincipalRef) -> None:
    """Make the calls that do not go the straight way, an open one among them."""
    for principal, late in ((key, (20, 1)), (other, (0, 900)), (key, None), (robot, (3, 3)), (robot, None)):
        check = await ledger.check(principal)
        ledger.sql(EXPIRE, check.request_id)
        assert await ledger.service.sweep_once() == 1
        if late is not None:
            await ledger.deduct(principal, check.request_id, *late)
    released = await ledger.check(key)
    await ledger.release(key, released.request_id)
    for principal in (key, robot):
        away = await ledger.check(principal)
        ledger.sql(EXPIRE, away.request_id)
        assert await ledger.service.sweep_once() == 1
        await ledger.release(principal, away.request_id)
    await ledger.release(key, new_id())
    await ledger.deduct(key, new_id())
    await ledger.service.deduct(ledger.deduct_call(key, UUID(int=5)))
    two_models = (
        DeductItem(MODEL, "", Usage(input_tokens=5, output_tokens=6)),
        DeductItem(
            CHEAP, "", Usage(input_tokens=101, output_tokens=7, cache_read_tokens=50, reasoning_tokens=3)
        ),
        DeductItem("unheard-of", "", Usage(input_tokens=9)),
    )
    for principal in (key, robot):
        check = await ledger.check(principal)
        await ledger.deduct(principal, check.request_id, items=two_models)
    await ledger.deduct(key, new_id(), items=())
    await ledger.deduct(robot, new_id(), items=(DeductItem("unheard-of", "", Usage(input_tokens=9)),))


async def _reports(work: UnitOfWork) -> None:
    clock = SystemClock()
    audit = AuditService(clock=clock)
    tenants = TenantService(audit=audit, clock=clock)
    reports = ChargebackService(
        unit_of_work=work, tenants=tenants, usage=usage_service(tenants, audit, clock), audit=audit
    )
    now = clock.now()
    start, end = quarter_hour_of(now - timedelta(hours=1)), ceil_quarter_hour(now)
    for name in ("default", "acme", ""):
        await reports.generate(BILLING, name, start=start, end=end)
    await reports.generate(BILLING, "acme")


__all__ = ["CHEAP", "TENANT", "TINY", "Proof", "fill", "prove"]
