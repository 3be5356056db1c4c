"""Calls that meet in unlucky ways, on a real database. A call of the tests costs 100 nanos."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from bursar_server.kit.errors import BursarError
from bursar_server.metering.model import DeductItem, PrincipalRef
from bursar_server.pricing.model import Usage
from support.metering import MODEL, TENANT, Ledger, ledger_on, new_id

NOBODY = PrincipalRef()
EXPIRE = "UPDATE holds SET lease_expire_time = now() - interval '1 second'"


def acme_key(ledger: Ledger) -> PrincipalRef:
    acme = ledger.tenant("acme")
    ledger.budget("TENANT", 1_000, tenant_id=acme)
    return ledger.key(tenant_id=acme, secret="bur_acme")


async def test_a_deduct_that_names_only_its_call_is_charged_once(ledger: Ledger) -> None:
    """S16: a repeat of a Deduct that names nothing but its request_id is a duplicate in any tenant."""
    key = acme_key(ledger)
    check = await ledger.check(key)
    first = await ledger.deduct(NOBODY, check.request_id)
    again = await ledger.deduct(NOBODY, check.request_id)
    assert (first.cost.total_nanos, again.cost.total_nanos) == (100, 100)
    assert ledger.sql("SELECT count(*), sum(cost_nanos) FROM usage_records") == [(1, 100)]
    assert again.duplicate


async def test_a_late_deduct_that_names_only_its_call_corrects_it(ledger: Ledger) -> None:
    """S16: after the lease's expiry the real usage corrects the call, whatever tenant it is of."""
    key = acme_key(ledger)
    check = await ledger.check(key)
    ledger.sql(EXPIRE)
    assert await ledger.service.sweep_once() == 1
    await ledger.deduct(NOBODY, check.request_id, 10, 5)
    assert ledger.sql("SELECT sum(cost_nanos) FROM usage_records") == [(20,)]
    assert ledger.sql("SELECT sum(spent_nanos) FROM balances") == [(20,)]


async def test_a_repeat_with_an_unknown_key_answers_the_same(ledger: Ledger) -> None:
    """S16: a Deduct whose key is unknown is charged by its hold; its repeat answers the same."""
    key = acme_key(ledger)
    stranger = PrincipalRef(api_key_sha256="0" * 64)
    check = await ledger.check(key)
    first = await ledger.deduct(stranger, check.request_id)
    again = await ledger.deduct(stranger, check.request_id)
    assert (again.cost, again.duplicate) == (first.cost, True)


async def _check_overtaken_by(ledger: Ledger, url: str, key: PrincipalRef, what: str) -> Any:
    """Let a Check and what ends its call overlap in two processes: each begins before the other is committed."""
    request_id = new_id()
    async with ledger_on(url) as other:
        with psycopg.connect(url) as gate:
            gate.execute("LOCK TABLE holds IN SHARE MODE")
            check = asyncio.create_task(other.check(key, request_id))
            await asyncio.sleep(0.25)
            assert not check.done()
            await getattr(ledger, what)(key, request_id)
        await check
    return request_id


@pytest.mark.parametrize("what", ["release", "deduct"])
async def test_a_check_that_is_overtaken_leaves_nothing_behind(
    ledger: Ledger, database_url: str, what: str
) -> None:
    """S17, S26: what a Check holds while its call is ended elsewhere is free again after its lease, and costs nothing."""
    key = ledger.key()
    ledger.budget("TENANT", 1_000, admission="UPPER_BOUND")
    await _check_overtaken_by(ledger, database_url, key, what)
    ledger.sql(EXPIRE)
    await ledger.service.sweep_once()
    spent = 100 if what == "deduct" else 0
    assert ledger.sql("SELECT spent_nanos, held_nanos FROM balances") == [(spent, 0)]
    assert ledger.sql("SELECT count(*) FROM holds") == [(0,)]


async def test_a_call_that_was_released_too_early_is_charged(ledger: Ledger, database_url: str) -> None:
    """S14: a Deduct is never refused, also where a release crossed its Check."""
    key = ledger.key()
    ledger.budget("TENANT", 1_000, admission="UPPER_BOUND")
    request_id = await _check_overtaken_by(ledger, database_url, key, "release")
    answer = await ledger.deduct(key, request_id)
    assert answer.cost.total_nanos == 100
    assert ledger.sql("SELECT spent_nanos, held_nanos FROM balances") == [(100, 0)]


async def test_one_full_budget_holds_up_nobody_else(ledger: Ledger) -> None:
    """S10: who waits for its own budget is in nobody's way on a budget that has room."""
    alice, bob = ledger.user("alice@example.com"), ledger.user("bob@example.com")
    of_alice, of_bob = ledger.key(alice, secret="bur_a"), ledger.key(bob, secret="bur_b")
    ledger.budget("TENANT", 1_000_000, admission="UPPER_BOUND", max_wait_ms=20_000)
    ledger.budget("USER", 150, user_id=alice, admission="UPPER_BOUND", max_wait_ms=20_000)
    first = await ledger.check(of_alice)
    waiting = asyncio.create_task(ledger.check(of_alice, may_wait=True))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    other = await ledger.check(of_bob)
    await ledger.release(of_alice, first.request_id)
    served = await asyncio.wait_for(waiting, 2)
    await ledger.release(of_alice, served.request_id)
    assert other.allowed
    await ledger.release(of_bob, other.request_id)


async def test_a_call_that_was_released_while_it_waits_is_out_of_the_queue(ledger: Ledger) -> None:
    """S10, S17: a call that waits and is released is in nobody's way any more."""
    key = ledger.key()
    ledger.budget("TENANT", 150, admission="UPPER_BOUND", max_wait_ms=20_000)
    first = await ledger.check(key)
    gone = new_id()
    waiting = asyncio.create_task(ledger.check(key, gone, may_wait=True))
    await asyncio.sleep(0.1)
    await ledger.release(key, gone)
    answer = await asyncio.wait_for(waiting, 2)
    assert answer.denials[0].code == "REQUEST_RELEASED"
    await ledger.release(key, first.request_id)
    assert (await ledger.check(key)).allowed
    await ledger.release(key, (await ledger.check(key)).request_id)


async def test_a_call_whose_deadline_passed_is_out_of_the_queue(ledger: Ledger) -> None:
    """S10: a call that cannot wait as long as the budget would let it is in nobody's way once it has gone."""
    key = ledger.key()
    ledger.budget("TENANT", 150, admission="UPPER_BOUND", max_wait_ms=20_000)
    first = await ledger.check(key)
    deadline = time.monotonic() + 0.2
    call = ledger.check_call(key, may_wait=True, deadline=deadline)
    assert not (await ledger.service.check(call)).allowed
    await ledger.release(key, first.request_id)
    second = await ledger.check(key)
    assert second.allowed
    await ledger.release(key, second.request_id)


async def test_many_full_budgets_starve_no_other(ledger: Ledger) -> None:
    """S10: however many wait for other budgets, the one whose budget is free again is served at once."""
    budgets = 5
    keys = []
    for number in range(budgets):
        keys.append(ledger.key(secret=f"bur_{number}"))
        [(key_id,)] = ledger.sql("SELECT api_key_id FROM api_keys ORDER BY create_time DESC LIMIT 1")
        ledger.budget("KEY", 150, api_key_id=key_id, admission="UPPER_BOUND", max_wait_ms=6_000)
    first = [await ledger.check(key) for key in keys]
    waiting = []
    for key in keys[:-1]:
        waiting += [asyncio.create_task(ledger.check(key, may_wait=True)) for _ in range(40)]
        await asyncio.sleep(0.2)
    last = asyncio.create_task(ledger.check(keys[-1], may_wait=True))
    await asyncio.sleep(0.2)
    assert not last.done()
    await ledger.release(keys[-1], first[-1].request_id)
    started = time.monotonic()
    assert (await last).allowed
    seconds = time.monotonic() - started
    await asyncio.gather(*waiting)
    assert seconds < 2


async def test_a_batch_of_late_deducts_of_many_users(ledger: Ledger) -> None:
    """S16, S18: what an outbox replays after its holds have expired is taken, however many budgets it counts on."""
    keys = []
    for number in range(40):
        user = ledger.user(f"u{number}@example.com")
        ledger.budget("USER", 1_000, user_id=user)
        keys.append(ledger.key(user, secret=f"bur_{number}"))
    checks = await asyncio.gather(*(ledger.check(key) for key in keys))
    ledger.sql(EXPIRE)
    assert await ledger.service.sweep_once() == 40
    answers = await asyncio.gather(
        *(ledger.deduct(key, check.request_id, 10, 5) for key, check in zip(keys, checks, strict=True)),
        return_exceptions=True,
    )
    assert [answer for answer in answers if isinstance(answer, BaseException)] == []
    assert ledger.sql("SELECT DISTINCT spent_nanos FROM balances") == [(20,)]


async def test_a_batch_of_unchecked_deducts_of_many_users(ledger: Ledger) -> None:
    """S14, S16: the same for calls that were made while nobody could be asked."""
    keys = []
    for number in range(40):
        user = ledger.user(f"u{number}@example.com")
        ledger.budget("USER", 1_000, user_id=user)
        keys.append(ledger.key(user, secret=f"bur_{number}"))
    answers = await asyncio.gather(*(ledger.deduct(key, new_id()) for key in keys), return_exceptions=True)
    assert [answer for answer in answers if isinstance(answer, BaseException)] == []


async def test_a_tenant_that_is_made_later_is_known_at_once(ledger: Ledger) -> None:
    """S13: a principal that was asked about before its tenant was made is known with the next Check."""
    ref = PrincipalRef(user="alice@example.com", tenant="acme")
    assert (await ledger.check(ref)).denials[0].code == "KEY_UNKNOWN"
    acme = ledger.tenant("acme")
    ledger.user("alice@example.com", tenant_id=acme)
    assert (await ledger.check(ref)).allowed


async def test_a_key_that_is_made_later_is_known_at_once(ledger: Ledger) -> None:
    """S13: the same for a key of another tenant than the default one."""
    acme = ledger.tenant("acme")
    ref = PrincipalRef(api_key_sha256="77" * 32)
    assert (await ledger.check(ref)).denials[0].code == "KEY_UNKNOWN"
    ledger.key(tenant_id=acme, secret="bur_later")
    ledger.sql("UPDATE api_keys SET key_sha256 = %s", "77" * 32)
    ledger.bump(acme)
    assert (await ledger.check(ref)).allowed


async def test_a_grant_that_gets_money_back_can_be_spent_again(ledger: Ledger) -> None:
    """S7, S16: what a correction gives back to a grant is there for the next Check."""
    alice = ledger.user("alice@example.com")
    key = ledger.key(alice)
    ledger.budget("USER", 0, user_id=alice)
    ledger.grant(alice, 100)
    check = await ledger.check(key)
    ledger.sql(EXPIRE)
    await ledger.service.sweep_once()
    ledger.bump()
    assert not (await ledger.check(key)).allowed
    await ledger.deduct(key, check.request_id, 10, 5)
    assert ledger.sql("SELECT spent_nanos FROM grants") == [(20,)]
    assert (await ledger.check(key)).allowed


async def test_a_late_deduct_of_a_released_call_counts_where_its_check_did(ledger: Ledger) -> None:
    """S1, S12, S14: with on_lease_expiry RELEASE too, a late Deduct counts on what matched at its Check."""
    alice = ledger.user("alice@example.com")
    key = ledger.key(alice)
    old = ledger.budget("USER", 1_000, user_id=alice, on_lease_expiry="RELEASE")
    check = await ledger.check(key)
    ledger.sql(EXPIRE)
    assert await ledger.service.sweep_once() == 1
    ledger.sql("UPDATE budgets SET enabled = false")
    ledger.budget("TENANT", 1_000)
    answer = await ledger.deduct(key, check.request_id)
    assert [(line.account_id, line.nanos) for line in answer.postings] == [(old, 100)]
    assert not answer.unchecked


async def test_a_deduct_is_taken_however_many_budgets_match(ledger: Ledger) -> None:
    """S14: 33 budgets are too many for a Check, but a Deduct is never refused."""
    key = ledger.key()
    for _ in range(33):
        ledger.budget("TENANT", 1_000)
    assert (await ledger.deduct(key, new_id())).cost.total_nanos == 100


async def test_a_call_beyond_all_bounds_fails_alone(ledger: Ledger) -> None:
    """S20: a call whose cost does not fit 64 bits, within what a request and a price may say, fails by itself."""
    key = ledger.key()
    ledger.budget("TENANT", 10**15)
    ledger.price("dear", {"image": 10**18, "web_search": 10**18, "request": 10**18})
    usage = Usage(images=10**6, web_searches=10**6, requests=10**6)
    poison = ledger.deduct(key, new_id(), items=(DeductItem("dear", "", usage),) * 16)
    answers = await asyncio.gather(
        *(ledger.deduct(key, new_id()) for _ in range(25)),
        poison,
        *(ledger.deduct(key, new_id()) for _ in range(24)),
        return_exceptions=True,
    )
    assert sum(isinstance(answer, BursarError) for answer in answers) == 1
    assert ledger.sql("SELECT spent_nanos FROM balances") == [(4_900,)]


async def test_a_renewal_is_answered_whatever_fails_beside_it(ledger: Ledger) -> None:
    """S9: leases are renewed also while a call is refused."""
    key = ledger.key()
    ledger.price("dear", {"image": 10**18, "web_search": 10**18, "request": 10**18})
    usage = Usage(images=10**6, web_searches=10**6, requests=10**6)
    check = await ledger.check(key)
    tasks: list[asyncio.Task[Any]] = []
    for _ in range(30):
        poison = ledger.deduct(key, new_id(), items=(DeductItem("dear", "", usage),) * 16)
        tasks.append(asyncio.ensure_future(poison))
        tasks.append(asyncio.ensure_future(ledger.service.renew([check.request_id], None)))
    _, late = await asyncio.wait(tasks, timeout=5)
    for task in late:
        task.cancel()
    assert not late
    assert all(task.exception() or True for task in tasks)


async def test_a_corrected_call_is_repeated_with_all_its_overage(ledger: Ledger) -> None:
    """S16: a repeat has the same overage and shortfall as the first answer, also after an expiry."""
    key = ledger.key()
    ledger.budget("TENANT", 30, admission="UPPER_BOUND", enforcement="SOFT")
    check = await ledger.check(key)
    ledger.sql(EXPIRE)
    await ledger.service.sweep_once()
    first = await ledger.deduct(key, check.request_id, 10, 60)
    again = await ledger.deduct(key, check.request_id, 10, 60)
    assert first.overage_nanos == 100
    assert (first.overage_nanos, first.hold_shortfall_nanos) == (
        again.overage_nanos,
        again.hold_shortfall_nanos,
    )


async def test_a_release_far_ahead_is_refused_by_its_reason(ledger: Ledger) -> None:
    """S16: an id that no partition can take is the caller's mistake, not the database's."""
    key = ledger.key()
    with pytest.raises(BursarError) as misplaced:
        await ledger.release(key, new_id(datetime.now(UTC) + timedelta(days=200)))
    assert misplaced.value.reason.value != "INTERNAL"


async def test_a_locked_tenant_freezes_no_other(ledger: Ledger, database_url: str) -> None:
    """S20: while somebody else's transaction locks one tenant's balance, calls of other tenants are answered."""
    key, other = ledger.key(), acme_key(ledger)
    ledger.budget("TENANT", 1_000)
    await ledger.call(key)
    await ledger.call(other)
    with psycopg.connect(database_url) as somebody:
        somebody.execute("SELECT 1 FROM balances WHERE tenant_id = %s FOR UPDATE", (TENANT,))
        blocked = asyncio.create_task(ledger.check(key))
        await asyncio.sleep(0.05)
        started = time.monotonic()
        assert (await ledger.call(other)).cost.total_nanos == 100
        seconds = time.monotonic() - started
        await asyncio.sleep(max(0.0, 3 - seconds))
    assert (await blocked).allowed
    assert seconds < 1.5


def test_the_model_of_these_tests() -> None:
    assert MODEL
