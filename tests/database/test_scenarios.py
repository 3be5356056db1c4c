"""The situations that people buy a budget for, from end to end of metering. A call of the tests costs 100 nanos."""

from support.metering import Ledger


def blocked_events(ledger: Ledger) -> int:
    [(count,)] = ledger.sql("SELECT count(*) FROM audit_events WHERE action = 'BUDGET_CAP_HARD'")
    return int(count)


async def test_a_business_unit_stays_under_its_ceiling(ledger: Ledger) -> None:
    """F193, F197, F065, F055: a HARD group budget stops every member once the group has spent it."""
    alice, bob = ledger.user("alice@example.com"), ledger.user("bob@example.com")
    ledger.budget("GROUP", 250, group_id=ledger.group("data science", alice, bob), period="MONTHLY")
    keys = [ledger.key(alice, secret="bur_a"), ledger.key(bob, secret="bur_b")]
    for number in range(3):
        assert (await ledger.call(keys[number % 2])).cost.total_nanos == 100
    for key in keys:
        assert (await ledger.check(key)).denials[0].code == "BUDGET_CAP_HARD"


async def test_an_owner_is_warned_not_blocked(ledger: Ledger) -> None:
    """F196, F090, F056, F091: a SOFT group budget alerts on the way and at the ceiling, and serves on."""
    alice = ledger.user("alice@example.com")
    key = ledger.key(alice)
    ledger.budget("GROUP", 1_000, group_id=ledger.group("support", alice), enforcement="SOFT")
    fired = []
    for _ in range(12):
        answer = await ledger.call(key)
        fired += [alert.threshold_pct for alert in answer.alerts]
    assert fired == [80, 90, 100]
    assert (await ledger.check(key)).allowed


async def test_a_person_is_bounded_over_all_keys(ledger: Ledger) -> None:
    """F194, F066, F033, F064: a budget of a person counts whatever key the person calls with."""
    alice = ledger.user("alice@example.com")
    ledger.budget("USER", 250, user_id=alice)
    keys = [ledger.key(alice, secret=f"bur_{number}") for number in range(3)]
    for key in keys:
        assert (await ledger.call(key)).cost.total_nanos == 100
    assert not (await ledger.check(keys[0])).allowed


async def test_one_event_for_each_blocked_request_and_one_alert_a_period(ledger: Ledger) -> None:
    """F084, F170, C06, C07, F083: each blocked request is audited; the alert of 100 % comes once in the period."""
    key = ledger.key()
    ledger.budget("TENANT", 100)
    fired = [alert.threshold_pct for alert in (await ledger.call(key)).alerts]
    assert fired == [80, 90, 100]
    for expected in (1, 2, 3):
        assert not (await ledger.check(key)).allowed
        assert blocked_events(ledger) == expected
    assert ledger.sql("SELECT count(*) FROM audit_events WHERE action = 'BUDGET_CAP_SOFT'") == [(1,)]


async def test_a_gate_not_a_metric(ledger: Ledger) -> None:
    """F052, F060, F062, F063: the gate asks whether anything is left, does not estimate, and the Deduct counts it all."""
    alice = ledger.user("alice@example.com")
    key = ledger.key(alice)
    ledger.budget("USER", 1, user_id=alice)
    ledger.grant(alice, 50)
    answer = await ledger.call(key)
    assert [line.nanos for line in answer.postings] == [50, 50]
    assert answer.overage_nanos == 49
    assert not (await ledger.check(key)).allowed


async def test_members_have_tighter_ceilings_under_the_groups(ledger: Ledger) -> None:
    """F036, F035, F198: a group's ceiling and its members' own ones hold together; the tighter one stops first."""
    alice, bob = ledger.user("alice@example.com"), ledger.user("bob@example.com")
    cost_centre = ledger.group("cost centre 7", alice, bob)
    ledger.budget("GROUP", 10_000, group_id=cost_centre)
    ledger.budget("USER", 150, user_id=alice)
    of_alice, of_bob = ledger.key(alice, secret="bur_a"), ledger.key(bob, secret="bur_b")
    await ledger.call(of_alice)
    await ledger.call(of_alice)
    assert [denial.scope for denial in (await ledger.check(of_alice)).denials] == ["user"]
    assert (await ledger.call(of_bob)).cost.total_nanos == 100
    assert ledger.sql("SELECT spent_nanos FROM balances ORDER BY 1") == [(200,), (300,)]
