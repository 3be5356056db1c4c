"""Calls that are refused, alone and among others: they take nothing with them. A call of the tests costs 100 nanos."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from bursar_server.kit.errors import BursarError, Reason
from bursar_server.metering.model import DeductItem, PrincipalRef
from bursar_server.pricing.model import Usage
from support.metering import Ledger, new_id

# Everything that a call can change.
TABLES = (
    "balances", "grants", "holds", "usage_records", "ledger_entries", "rollup_quarters", "rollup_days", "alert_states",
    "rate_windows", "check_waits", "audit_events", "audit_heads", "odd_request_ids",
)  # fmt: skip


async def poisoned(ledger: Ledger, key: PrincipalRef, *poison: Any) -> list[Any]:
    """Ask for fifty calls with something bad among them; return what became of the bad ones."""
    bad = [asyncio.ensure_future(ask) for ask in poison]
    good = [ledger.deduct(key, new_id()) for _ in range(50)]
    middle = len(good) // 2
    answers = await asyncio.gather(*good[:middle], *bad, *good[middle:], return_exceptions=True)
    found = answers[middle : middle + len(bad)]
    others = answers[:middle] + answers[middle + len(bad) :]
    assert [answer for answer in others if isinstance(answer, BaseException)] == []
    assert ledger.sql("SELECT spent_nanos FROM balances") == [(5_000,)]
    return found


async def test_what_the_database_refuses_fails_alone(ledger: Ledger) -> None:
    """S20: a call that the database cannot store, or nobody can write down, takes no other call with it."""
    key = ledger.key()
    ledger.budget("TENANT", 10**9, admission="UPPER_BOUND")
    strange: Any = object()
    found = await poisoned(
        ledger, key, ledger.deduct(key, new_id(), session_id="\x00"), ledger.deduct(key, new_id(), tags={"a": strange}),
        ledger.check(key, session_id="\x00"), ledger.deduct(key, new_id(), provider="\udc00"),
    )  # fmt: skip
    assert [getattr(answer, "reason", answer) for answer in found] == [Reason.INTERNAL] * 4
    assert ledger.sql("SELECT count(*) FROM holds") == [(0,)]


async def test_what_is_refused_by_a_rule_fails_alone(ledger: Ledger) -> None:
    """S16: calls with an invalid id, a reused one, a foreign tenant or an old date fail by themselves."""
    key = ledger.key()
    ledger.budget("TENANT", 10**9, admission="UPPER_BOUND")
    found = await poisoned(ledger, key, *(ask for _, ask in await refused(ledger, key)))
    assert {type(answer) for answer in found} == {BursarError}


async def refused(ledger: Ledger, key: PrincipalRef) -> list[tuple[Reason, Any]]:
    """Return requests that are refused, each with its reason; the calls that they refer to are made and released."""
    now = datetime.now(UTC)
    open_call, settled = new_id(), new_id()
    dear = (DeductItem("dear", "", Usage(images=10**6)),)
    ledger.price("dear", {"image": 10**18})
    await ledger.check(key, open_call)
    await ledger.deduct(key, settled, 0, 0)
    stranger = frozenset({new_id()})
    unknown = PrincipalRef(api_key_sha256="9" * 64)
    return [
        (Reason.REQUEST_ID_MISPLACED, ledger.check(key, UUID(int=4))),
        (Reason.REQUEST_ID_MISPLACED, ledger.check(key, new_id(now - timedelta(days=2)))),
        (Reason.REQUEST_ID_MISPLACED, ledger.release(key, new_id(now + timedelta(days=100)))),
        (Reason.REQUEST_ID_REUSED, ledger.check(key, open_call, model="another")),
        (Reason.REQUEST_ID_REUSED, ledger.deduct(key, settled, 1, 1)),
        (Reason.REQUEST_TOO_OLD, ledger.deduct(key, new_id(now - timedelta(days=400)))),
        (Reason.REQUEST_TOO_OLD, ledger.release(key, new_id(now - timedelta(days=400)))),
        (Reason.PERMISSION_DENIED, ledger.deduct(key, open_call, allowed_tenants=stranger)),
        (Reason.PRINCIPAL_UNKNOWN, ledger.deduct(unknown, new_id())),
        (Reason.INVALID_FIELD, ledger.deduct(key, open_call, items=dear)),
        (Reason.INVALID_FIELD, ledger.deduct(key, new_id(), items=dear)),
    ]


async def test_what_is_refused_changes_nothing(ledger: Ledger) -> None:
    """S16, S20: whatever is refused, nothing in any table is other than it was."""
    alice = ledger.user("alice@example.com", rate_limit=1_000)
    key = ledger.key(alice)
    ledger.budget("USER", 10_000, user_id=alice, admission="UPPER_BOUND")
    ledger.grant(alice, 50)

    def everything() -> list[Any]:
        rows = {table: ledger.sql(f"SELECT t::text FROM {table} t ORDER BY 1") for table in TABLES}
        return list(rows.items())

    asks = await refused(ledger, key)
    before = everything()
    for reason, ask in asks:
        with pytest.raises(BursarError) as refusal:
            await ask
        assert refusal.value.reason is reason
        assert everything() == before
    for _ in range(33):
        ledger.budget("TENANT", 10_000)
    with pytest.raises(BursarError) as too_many:
        await ledger.check(key)
    assert too_many.value.reason is Reason.WRONG_STATE
    assert dict(everything())["rate_windows"] == dict(before)["rate_windows"]


async def test_two_tenants_may_use_the_same_id(ledger: Ledger) -> None:
    """S16: ids are a tenant's own; and a token of one tenant cannot end a call of another."""
    acme = ledger.tenant("acme")
    keys = [ledger.key(secret="bur_1"), ledger.key(secret="bur_2", tenant_id=acme)]
    ledger.budget("TENANT", 1_000, admission="UPPER_BOUND")
    ledger.budget("TENANT", 1_000, tenant_id=acme, admission="UPPER_BOUND")
    request_id = new_id()
    checks = await asyncio.gather(*(ledger.check(key, request_id) for key in keys))
    assert [check.held_nanos for check in checks] == [100, 100]
    with pytest.raises(BursarError):
        await ledger.deduct(PrincipalRef(), request_id, allowed_tenants=frozenset({new_id()}))
    assert (await ledger.service.renew([request_id], frozenset({new_id()})))[1] == [request_id]
    answers = await asyncio.gather(
        ledger.deduct(keys[0], request_id), ledger.deduct(keys[1], request_id, 10, 5)
    )
    assert [answer.cost.total_nanos for answer in answers] == [100, 20]
    assert not any(answer.duplicate or answer.unchecked for answer in answers)
    assert sorted(ledger.sql("SELECT spent_nanos, held_nanos FROM balances")) == [(20, 0), (100, 0)]
