"""What a Deduct, a release and an expiry do to the books, on a real database. A call of the tests costs 100 nanos."""

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from bursar_server.kit.errors import BursarError, Reason
from bursar_server.metering.model import ExpireCall
from support.metering import PLATFORM, TENANT, Ledger, new_id


async def test_a_call_is_checked_and_deducted(ledger: Ledger) -> None:
    """S9, S14, S15, F100: an allowed call holds; its Deduct charges, records and removes the hold."""
    alice = ledger.user("alice@example.com")
    key = ledger.key(alice)
    budget = ledger.budget("USER", 1_000, user_id=alice)
    check = await ledger.check(key)
    assert check.allowed
    assert check.remaining_nanos == 1_000
    assert check.subject.user_id == alice
    assert len(ledger.sql("SELECT 1 FROM holds")) == 1
    deduct = await ledger.deduct(key, check.request_id)
    assert (deduct.cost.input_nanos, deduct.cost.output_nanos, deduct.cost.total_nanos) == (10, 90, 100)
    assert [(line.account_id, line.nanos) for line in deduct.postings] == [(budget, 100)]
    assert deduct.remaining_nanos == 900
    assert ledger.sql("SELECT count(*) FROM holds") == [(0,)]
    [(cost, model, estimated, price)] = ledger.sql(
        "SELECT cost_nanos, model, estimated, price_id FROM usage_records"
    )
    assert (cost, model, estimated) == (100, "test-model", False)
    assert isinstance(price, UUID)


async def test_grants_are_spent_first_earliest_expiry_first(ledger: Ledger) -> None:
    """F074–F078, F200: a call spans grants in order of their expiry, then the budget, to the nano."""
    alice = ledger.user("alice@example.com")
    key = ledger.key(alice)
    budget = ledger.budget("USER", 0, user_id=alice)
    second = ledger.grant(alice, 2_000_000_000, expires_in=timedelta(days=10))
    first = ledger.grant(alice, 300_000_000, expires_in=timedelta(days=5))
    check = await ledger.check(key)
    assert check.allowed
    answer = await ledger.deduct(key, check.request_id, 0, 250_000_000)
    assert [(line.account_id, line.nanos) for line in answer.postings] == [
        (first, 300_000_000),
        (second, 200_000_000),
        (budget, 0),
    ]


async def test_other_budgets_count_the_full_cost(ledger: Ledger) -> None:
    """S6, F033–F036: grants spare the user's budgets only; group, tenant, key and global budgets count everything."""
    alice = ledger.user("alice@example.com")
    key = ledger.key(alice)
    outer = ledger.group("company")
    ledger.group("team", alice, parent=outer)
    [(key_id,)] = ledger.sql("SELECT api_key_id FROM api_keys")
    of_user = ledger.budget("USER", 1_000, user_id=alice)
    of_key = ledger.budget("KEY", 1_000, api_key_id=key_id)
    of_group = ledger.budget("GROUP", 1_000, group_id=outer)
    of_tenant = ledger.budget("TENANT", 1_000)
    of_all = ledger.budget("GLOBAL", 1_000, tenant_id=PLATFORM)
    ledger.grant(alice, 60)
    await ledger.call(key)
    spent = dict(ledger.sql("SELECT budget_id, spent_nanos FROM balances"))
    assert spent == {of_user: 40, of_key: 100, of_group: 100, of_tenant: 100, of_all: 100}


async def test_a_repeat_answers_the_same(ledger: Ledger) -> None:
    """S16: the same id is the same call for ever; with other content it is refused and nothing changes."""
    key = ledger.key()
    ledger.budget("TENANT", 1_000)
    request_id = new_id()
    assert not (await ledger.check(key, request_id)).duplicate
    assert (await ledger.check(key, request_id)).duplicate
    with pytest.raises(BursarError) as reused:
        await ledger.check(key, request_id, model="other")
    assert reused.value.reason is Reason.REQUEST_ID_REUSED
    first = await ledger.deduct(key, request_id)
    again = await ledger.deduct(key, request_id)
    assert again.duplicate
    assert (again.cost, again.postings, again.overage_nanos) == (
        first.cost,
        first.postings,
        first.overage_nanos,
    )
    with pytest.raises(BursarError) as reused:
        await ledger.deduct(key, request_id, 11)
    assert reused.value.reason is Reason.REQUEST_ID_REUSED
    assert ledger.sql("SELECT count(*), sum(cost_nanos) FROM usage_records") == [(1, 100)]


async def test_a_deduct_that_cannot_be_placed_is_charged_once(ledger: Ledger) -> None:
    """S16: an odd id is charged under a server-made id, the same for ever; one too old is refused."""
    key = ledger.key()
    ledger.budget("TENANT", 1_000)
    odd = ledger.deduct_call(key, new_id(), given_id="not-a-uuid")._replace(request_id=None)
    first = await ledger.service.deduct(odd)
    again = await ledger.service.deduct(odd)
    assert (first.unchecked, again.duplicate, again.request_id) == (True, True, first.request_id)
    with pytest.raises(BursarError) as old:
        await ledger.deduct(key, new_id(datetime.now(UTC) - timedelta(days=200)))
    assert old.value.reason is Reason.REQUEST_TOO_OLD
    assert ledger.sql("SELECT sum(spent_nanos) FROM balances") == [(100,)]


async def test_a_deduct_without_a_check_is_charged_and_flagged(ledger: Ledger) -> None:
    """S14, S16: an unknown or denied call is charged on what matches, flagged unchecked."""
    alice = ledger.user("alice@example.com")
    key = ledger.key(alice)
    ledger.budget("USER", 100, user_id=alice)
    ledger.grant(alice, 30)
    answer = await ledger.deduct(key, new_id())
    assert answer.unchecked
    assert [line.nanos for line in answer.postings] == [30, 70]
    await ledger.call(key)
    denied = await ledger.check(key)
    assert not denied.allowed
    late = await ledger.deduct(key, denied.request_id)
    assert (late.unchecked, late.overage_nanos) == (True, 100)


async def test_a_release_leaves_nothing_and_wins(ledger: Ledger) -> None:
    """S17: a released call charges nothing, and a Check of the same id that arrives later leaves no hold."""
    key = ledger.key()
    ledger.budget("TENANT", 1_000, admission="UPPER_BOUND")
    check = await ledger.check(key)
    assert (await ledger.release(key, check.request_id)).released
    assert not (await ledger.release(key, check.request_id)).released
    early = new_id()
    assert not (await ledger.release(key, early)).released
    late = await ledger.check(key, early)
    assert late.denials[0].code == "REQUEST_RELEASED"
    assert ledger.sql("SELECT held_nanos, spent_nanos FROM balances") == [(0, 0)]
    assert ledger.sql("SELECT count(*) FROM holds") == [(0,)]


async def test_an_expired_lease_is_charged_at_its_estimate_then_corrected(ledger: Ledger) -> None:
    """S18, S16: expiry charges the estimate, flagged; the real usage posts the difference in the original period."""
    alice = ledger.user("alice@example.com")
    key = ledger.key(alice)
    ledger.budget("USER", 1_000, user_id=alice)
    ledger.grant(alice, 40)
    check = await ledger.check(key)
    ledger.sql("UPDATE holds SET lease_expire_time = now() - interval '1 second'")
    assert await ledger.service.sweep_once() == 1
    assert ledger.sql("SELECT cost_nanos, estimated, lease_expired FROM usage_records") == [(100, True, True)]
    ledger.assert_books()
    answer = await ledger.deduct(key, check.request_id, 10, 5)
    assert answer.cost.total_nanos == 20
    assert [line.nanos for line in answer.postings] == [20, 0]
    assert ledger.sql("SELECT spent_nanos FROM grants") == [(20,)]
    assert ledger.sql("SELECT revision, cost_nanos FROM usage_records ORDER BY revision") == [
        (0, 100),
        (1, -80),
    ]
    assert ledger.sql(
        "SELECT sum(requests), sum(estimated_requests), sum(output_tokens) FROM rollup_days"
    ) == [(1, 0, 5)]
    again = await ledger.deduct(key, check.request_id, 10, 5)
    assert (again.duplicate, again.cost.total_nanos) == (True, 20)
    assert [line.nanos for line in again.postings] == [20, 0]


async def test_a_release_after_the_lease_ended_takes_the_estimate_back(ledger: Ledger) -> None:
    """S17, S18: a sidecar that was away for longer than its holds lived says late that nothing was sent: nothing is charged."""
    alice = ledger.user("alice@example.com")
    key = ledger.key(alice)
    ledger.budget("USER", 1_000, user_id=alice)
    ledger.grant(alice, 40)
    check = await ledger.check(key)
    ledger.sql("UPDATE holds SET lease_expire_time = now() - interval '1 second'")
    assert await ledger.service.sweep_once() == 1
    for _ in range(2):
        assert not (await ledger.release(key, check.request_id)).released
        assert ledger.sql("SELECT sum(cost_nanos), count(*) FROM usage_records") == [(0, 2)]
        assert ledger.sql("SELECT spent_nanos, held_nanos FROM balances") == [(0, 0)]
        assert ledger.sql("SELECT spent_nanos, held_nanos FROM grants") == [(0, 0)]
        assert ledger.sql(
            "SELECT sum(cost_nanos), sum(estimated_requests), sum(input_tokens + output_tokens) FROM rollup_days"
        ) == [(0, 0, 0)]
        ledger.assert_books()


async def test_a_call_that_was_charged_released_and_sent_after_all_is_charged_once(ledger: Ledger) -> None:
    """S14, S16, S17: no Deduct is refused because its estimate was charged and taken back before; a Check of it is."""
    alice = ledger.user("alice@example.com")
    key = ledger.key(alice)
    ledger.budget("USER", 1_000, user_id=alice)
    ledger.grant(alice, 40)
    check = await ledger.check(key)
    ledger.sql("UPDATE holds SET lease_expire_time = now() - interval '1 second'")
    assert await ledger.service.sweep_once() == 1
    await ledger.release(key, check.request_id)
    late = await ledger.check(key, check.request_id)
    assert (late.allowed, late.duplicate) == (False, True)
    for duplicate in (False, True):
        answer = await ledger.deduct(key, check.request_id, 10, 5)
        assert (answer.duplicate, answer.cost.total_nanos) == (duplicate, 20)
    assert ledger.sql("SELECT spent_nanos, held_nanos FROM balances") == [(0, 0)]
    assert ledger.sql("SELECT spent_nanos, held_nanos FROM grants") == [(20, 0)]
    assert ledger.sql(
        "SELECT sum(requests), sum(estimated_requests), sum(cost_nanos), sum(input_tokens), sum(output_tokens) FROM rollup_days"
    ) == [(1, 0, 20, 10, 5)]


async def test_a_lease_is_renewed_or_released(ledger: Ledger) -> None:
    """S9, S18: a renewed call is not expired; on_lease_expiry RELEASE charges nothing."""
    key = ledger.key()
    ledger.budget("TENANT", 1_000, on_lease_expiry="RELEASE")
    check = await ledger.check(key)
    ledger.sql("UPDATE holds SET lease_expire_time = now() - interval '1 second'")
    expire_time, missing = await ledger.service.renew([check.request_id, new_id()], None)
    assert expire_time > datetime.now(UTC)
    assert len(missing) == 1
    assert await ledger.service.sweep_once() == 0
    ledger.sql("UPDATE holds SET lease_expire_time = now() - interval '1 second'")
    assert await ledger.service.sweep_once() == 1
    assert ledger.sql("SELECT spent_nanos FROM balances") == [(0,)]


async def test_alerts_fire_once_in_a_period(ledger: Ledger) -> None:
    """F081, F082, S21: each threshold fires once; one Deduct can fire several; the soft limit is audited once."""
    key = ledger.key()
    ledger.budget("TENANT", 1_000)
    first = await ledger.call(key, 0, 425)
    assert [alert.threshold_pct for alert in first.alerts] == [80]
    second = await ledger.call(key, 0, 100)
    assert [alert.threshold_pct for alert in second.alerts] == [90, 100]
    ledger.sql("UPDATE budgets SET limit_nanos = 2000")
    ledger.bump()
    assert [alert.threshold_pct for alert in (await ledger.call(key)).alerts] == []
    assert ledger.sql("SELECT count(*) FROM audit_events WHERE action = 'BUDGET_CAP_SOFT'") == [(1,)]
    assert ledger.sql("SELECT threshold_pct FROM alert_states ORDER BY 1") == [(80,), (90,), (100,)]


async def test_a_batch_with_everything_in_it(ledger: Ledger) -> None:
    """S20: calls that wait together are one batch, and each is charged alone."""
    alice = ledger.user("alice@example.com")
    key = ledger.key(alice)
    ledger.budget("USER", 100 * 50, user_id=alice, admission="UPPER_BOUND")
    ledger.budget("TENANT", 10**9)
    checks = await asyncio.gather(*(ledger.check(key) for _ in range(120)))
    allowed = [check for check in checks if check.allowed]
    assert len(allowed) == 50
    answers = await asyncio.gather(
        *(ledger.deduct(key, check.request_id) for check in allowed),
        *(ledger.deduct(key, allowed[0].request_id) for _ in range(5)),
        ledger.release(key, new_id()),
    )
    assert sum(not answer.duplicate for answer in answers[:-1]) == 50
    assert max(ledger.batches) > 10
    assert ledger.sql("SELECT spent_nanos, held_nanos FROM balances ORDER BY 1") == [(5_000, 0), (5_000, 0)]
    assert await ledger.service.sweep_once() == 0
    assert ExpireCall(TENANT, new_id()).tenant_id == TENANT
