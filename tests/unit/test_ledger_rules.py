"""The arithmetic of the ledger, for any numbers."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bursar_server.ledger import rules
from bursar_server.ledger.model import Account, GrantLeg, GrantState, Leg, PostingLine

NOW = datetime(2026, 5, 1, tzinfo=UTC)
TENANT = UUID(int=1)
nanos = st.integers(0, 2**62)
small = st.integers(0, 1_000)


def grant(
    number: int, amount: int, spent: int = 0, held: int = 0, *, days: int = 1, revoked: bool = False
) -> GrantState:
    return GrantState(
        (TENANT, UUID(int=number)),
        amount,
        spent,
        held,
        NOW - timedelta(days=1),
        NOW + timedelta(days=days),
        NOW,
        revoked,
    )


def leg(number: int, *, user_scoped: bool) -> Leg:
    return Leg((TENANT, UUID(int=number), "p"), user_scoped)


@given(nanos, st.lists(nanos, max_size=8))
def test_a_waterfall_loses_nothing(amount: int, available: list[int]) -> None:
    """S6, F077: each source bears at most what it has; a later one bears something only when the earlier are dry."""
    parts = rules.waterfall(amount, available)
    assert sum(parts) == min(amount, sum(available))
    for index, part in enumerate(parts):
        assert 0 <= part <= available[index]
        if part:
            assert parts[:index] == available[:index]


def test_the_worked_example() -> None:
    """F078, F200: $0.50 on A ($0.30) and B ($2.00) is $0.30 + $0.20 + $0.00 of the budget."""
    grants = rules.in_waterfall_order([grant(2, 2_000_000_000, days=9), grant(1, 300_000_000, days=4)])
    lines = rules.split_cost(
        500_000_000,
        0,
        [((TENANT, UUID(int=3), "p"), True)],
        [(found.key, rules.drawable_nanos(found, 0)) for found in grants],
    )
    assert [line.nanos for line in lines] == [300_000_000, 200_000_000, 0]


@given(nanos, small, st.lists(nanos, max_size=4), st.lists(st.booleans(), max_size=6))
def test_every_layer_bears_the_cost(cost: int, tokens: int, available: list[int], scopes: list[bool]) -> None:
    """S14: grants + each user budget = cost; every other budget bears the full cost; tokens count in full."""
    legs = [((TENANT, UUID(int=100 + index), "p"), scoped) for index, scoped in enumerate(scopes)]
    drawable = [((TENANT, UUID(int=index)), free) for index, free in enumerate(available)]
    lines = rules.split_cost(cost, tokens, legs, drawable)
    on_grants = sum(line.nanos for line in lines if line.account is Account.GRANT)
    for line in lines:
        if line.account is Account.BUDGET:
            assert line.nanos + (on_grants if line.user_scoped else 0) == cost
            assert line.tokens == tokens


@given(nanos, nanos, st.lists(nanos, max_size=3))
def test_a_correction_leads_to_the_real_charge(first: int, second: int, available: list[int]) -> None:
    """S16: what an expiry charged plus the difference is what the real usage charges."""
    legs = [((TENANT, UUID(int=100), "p"), True), ((TENANT, UUID(int=101), "p"), False)]
    drawable = [((TENANT, UUID(int=index)), free) for index, free in enumerate(available)]
    old = rules.split_cost(first, 3, legs, drawable)
    new = rules.split_cost(second, 5, legs, drawable)
    change = rules.difference(new, old)
    assert [a.nanos + b.nanos for a, b in zip(old, change, strict=True)] == [line.nanos for line in new]
    assert [a.tokens + b.tokens for a, b in zip(old, change, strict=True)] == [line.tokens for line in new]


@given(small, small, small, small, st.booleans())
def test_a_grant_gives_what_is_free_and_the_calls_own(
    amount: int, spent: int, others: int, own: int, revoked: bool
) -> None:
    """S7, S8: never more than the grant has; of a revoked one only what was held for the call."""
    state = grant(1, amount, min(spent, amount), others + own, revoked=revoked)
    drawable = rules.drawable_nanos(state, own)
    assert 0 <= drawable <= max(0, amount - state.spent_nanos - others)
    if revoked:
        assert drawable <= own


@given(small, small, st.lists(small, max_size=3))
def test_a_hold_takes_grants_first(of_one: int, of_other: int, free: list[int]) -> None:
    """S6, S9: a hold's legs with the grants' parts cover each user budget's amount, and no more."""
    grants = [grant(index, amount) for index, amount in enumerate(free)]
    one, other, tenant = leg(10, user_scoped=True), leg(11, user_scoped=True), leg(12, user_scoped=False)
    legs, parts = rules.allocate([(one, of_one, 1), (other, of_other, 0), (tenant, of_one, 0)], grants)
    on_grants = sum(part.nanos for part in parts)
    assert on_grants == min(max(of_one, of_other), sum(free))
    assert legs[0].nanos == max(0, of_one - on_grants)
    assert legs[1].nanos == max(0, of_other - on_grants)
    assert legs[2].nanos == of_one


@given(small, small, small)
def test_overage_adds_up(limit: int, first: int, second: int) -> None:
    """S14: the overage of postings sums to what lies above the limit in the end."""
    total = rules.overage_nanos(limit, 0, first) + rules.overage_nanos(limit, first, first + second)
    assert total == max(0, first + second - limit)


@pytest.mark.parametrize(("cost", "expected"), [(50, 0), (100, 0), (130, 30)])
def test_a_shortfall_is_what_the_hold_lacked(cost: int, expected: int) -> None:
    """S14: only legs that held an amount count; grants and budget of the user layer hold together."""
    legs = (Leg((TENANT, UUID(int=10), "p"), True, 60), Leg((TENANT, UUID(int=11), "p"), False, 0))
    parts = (GrantLeg((TENANT, UUID(int=1)), 40),)
    lines = (
        PostingLine(Account.GRANT, TENANT, UUID(int=1), "", True, min(cost, 40), 0),
        PostingLine(Account.BUDGET, TENANT, UUID(int=10), "p", True, cost - min(cost, 40), 0),
        PostingLine(Account.BUDGET, TENANT, UUID(int=11), "p", False, cost, 0),
    )
    assert rules.shortfall_nanos(lines, legs, parts) == expected
