"""Who a user may be, and what a user has left over every layer."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bursar_server.budgets import rules as budget_rules
from bursar_server.budgets.model import (
    Balance,
    BudgetDraft,
    Enforcement,
    ManagedBy,
    Scope,
    ScopeKind,
    Standing,
)
from bursar_server.grants.model import Grant
from bursar_server.kit.caller import Caller, Role
from bursar_server.kit.errors import BursarError, Reason
from bursar_server.kit.periods import PeriodKind
from bursar_server.users import rules
from bursar_server.users.model import User, UserStatus
from bursar_server.users.rules import Outlook, Reader, outlook

NOW = datetime(2026, 5, 20, 12, 0, tzinfo=UTC)
TENANT, ALICE, GROUP = UUID(int=1), UUID(int=2), UUID(int=3)
USER = User(TENANT, ALICE, "alice@example.com", "", Role.MEMBER, UserStatus.ACTIVE, False, 60, NOW, NOW)
MYSELF = Reader(Role.MEMBER, ALICE)
OPERATOR = Reader(Role.PLATFORM_ADMIN, None)
OWN, OF_GROUP, OF_TENANT, OF_ALL = (
    Scope(ScopeKind.USER, user_id=ALICE),
    Scope(ScopeKind.GROUP, group_id=GROUP),
    Scope(ScopeKind.TENANT),
    Scope(ScopeKind.GLOBAL),
)


def stands(number: int, scope: Scope, limit: int, spent: int = 0, held: int = 0, **more: Any) -> Standing:
    tokens = more.pop("tokens", False)
    draft = BudgetDraft(
        scope=scope,
        name=f"budget {number}",
        limit_tokens=limit if tokens else None,
        limit_nanos=None if tokens else limit,
        **more,
    )
    budget = budget_rules.new_budget(draft, TENANT, UUID(int=number), ManagedBy.PLATFORM, NOW)
    period = budget.period_at(NOW)
    amounts = (0, 0, spent, held) if tokens else (spent, held, 0, 0)
    return Standing(
        budget, Balance(budget.budget_id, budget.period_key_at(NOW), period.start, period.end, *amounts)
    )


def grant(amount: int, spent: int = 0, held: int = 0) -> Grant:
    return Grant(
        TENANT, UUID(int=9), ALICE, amount, spent, held, "", NOW, NOW + timedelta(days=1), NOW, "operator"
    )


def amounts(found: Outlook) -> tuple[int | None, int, int | None, int | None]:
    return (
        found.budget_remaining_nanos,
        found.grants_remaining_nanos,
        found.total_remaining_nanos,
        found.effective_remaining_nanos,
    )


@pytest.mark.parametrize("text", [" Alice@Example.COM ", "alice@example.com"])
def test_an_e_mail_is_compared_without_case_and_space(text: str) -> None:
    """F192."""
    assert rules.normalized_email(text) == "alice@example.com"


@pytest.mark.parametrize(
    "text", ["", " ", "alice", "a@b@c", "a b@c", "@x", "x@", "a@b\n", "é" * 250 + "@x.de"]
)
def test_what_is_no_e_mail(text: str) -> None:
    if text == "a@b\n":
        assert rules.normalized_email(text) == "a@b"
        return
    with pytest.raises(BursarError) as caught:
        rules.normalized_email(text, "user_id")
    assert caught.value.field == "user_id"


@pytest.mark.parametrize("role", [Role.TENANT_ADMIN, Role.TENANT_DEVELOPER, Role.BILLING_ADMIN])
def test_only_the_operator_makes_operators(role: Role) -> None:
    """C11: nobody gives a role above the own side's."""
    for given_role in (Role.PLATFORM_ADMIN, Role.BILLING_ADMIN):
        with pytest.raises(BursarError) as caught:
            rules.check_may_give(Caller(role, "x"), given_role)
        assert caught.value.reason is Reason.PERMISSION_DENIED
        with pytest.raises(BursarError):
            rules.check_may_change(Caller(role, "x"), replace(USER, role=given_role))
    rules.check_may_give(Caller(role, "x"), Role.TENANT_ADMIN)
    rules.check_may_give(Caller(Role.PLATFORM_ADMIN, "x"), Role.PLATFORM_ADMIN)
    with pytest.raises(BursarError):
        rules.check_may_give(Caller(Role.PLATFORM_ADMIN, "x"), Role.SIDECAR)


def test_who_gets_the_configured_daily_budget() -> None:
    """F043, F061: every new person for whom no daily budget is being set."""
    assert rules.default_daily_nanos(USER, 5, sets=None) == 5
    assert rules.default_daily_nanos(USER, 5, sets=PeriodKind.MONTHLY) == 5
    assert rules.default_daily_nanos(USER, 5, sets=PeriodKind.DAILY) is None
    assert rules.default_daily_nanos(replace(USER, service_account=True), 5, sets=None) is None
    assert rules.default_daily_nanos(USER, None, sets=None) is None


def test_grants_and_the_own_budget_together() -> None:
    """F072, S10: what grants and the user's own budget leave; held amounts are not left."""
    found = outlook(USER, [stands(1, OWN, 100, 30, 20)], [grant(50, 10, 5), grant(7)], MYSELF)
    assert amounts(found) == (50, 42, 92, 92)


def test_nothing_limits_without_a_budget() -> None:
    """C10: grants alone are no limit."""
    assert amounts(outlook(USER, [], [grant(50)], MYSELF)) == (None, 50, None, None)


def test_the_own_budget_that_leaves_the_least_is_shown() -> None:
    """S2: tightest wins, over all periods of the user."""
    month = stands(1, OWN, 100, 95, period=PeriodKind.MONTHLY)
    found = outlook(USER, [stands(2, OWN, 10), month], [], MYSELF)
    assert found.budget == month
    assert amounts(found) == (5, 0, 5, 5)


def test_overspending_leaves_nothing_and_not_less() -> None:
    """S7, S22: remaining is never below 0, and what was overspent takes nothing from the grants."""
    found = outlook(USER, [stands(1, OWN, 10, 15)], [grant(20)], MYSELF)
    assert amounts(found) == (0, 20, 20, 20)
    assert not found.binding[0].exhausted
    assert outlook(USER, [stands(1, OWN, 10, 15)], [], MYSELF).binding[0].exhausted


def test_every_layer_counts() -> None:
    """F049, F050: the smallest of user (with grants), group, tenant and operator."""
    layers = [
        stands(1, OWN, 10),
        stands(2, OF_GROUP, 25),
        stands(3, OF_TENANT, 40),
        stands(4, OF_ALL, 100, 78),
    ]
    assert amounts(outlook(USER, layers, [grant(90)], MYSELF)) == (10, 90, 100, 22)
    assert amounts(outlook(USER, layers, [], MYSELF))[3] == 10


def test_what_denies_nothing_binds_nothing() -> None:
    """S3: SOFT and shadow budgets; the own SOFT budget is shown all the same."""
    soft = stands(1, OWN, 10, 10, enforcement=Enforcement.SOFT)
    shadow = stands(2, OF_TENANT, 0, shadow=True)
    found = outlook(USER, [soft, shadow], [], MYSELF)
    assert (found.budget, found.binding, found.effective_remaining_nanos) == (soft, (), None)


def test_strictest_first_and_exhausted_ones_before_all() -> None:
    """S2: smallest remaining amount, then longest time to reset; tokens do not compare with money."""
    layers = [
        stands(1, OF_TENANT, 100, 80),
        stands(2, OF_GROUP, 100, 80, period=PeriodKind.YEARLY),
        stands(3, OF_TENANT, 1000, 1000, tokens=True),
        stands(4, OF_TENANT, 1000, 1, tokens=True),
        stands(5, OWN, 10),
    ]
    found = outlook(USER, layers, [grant(15)], OPERATOR)
    assert [one.standing.budget.budget_id.int for one in found.binding] == [3, 2, 1, 5, 4]
    assert [one.exhausted for one in found.binding] == [True, False, False, False, False]
    # What is spent in tokens lets no call through, however much money is left.
    assert found.effective_remaining_nanos == 0


def test_a_budget_in_tokens_has_no_amount_in_money() -> None:
    """C13: it can be the one shown where there is no other."""
    tokens = stands(1, OWN, 1000, 10, tokens=True)
    found = outlook(USER, [tokens], [grant(5)], MYSELF)
    assert found.budget == tokens
    assert amounts(found) == (None, 5, None, None)


def test_a_member_reads_its_own_figures_only() -> None:
    """S2, C08, F013."""
    layers = [stands(1, OWN, 10), stands(2, OF_GROUP, 25), stands(3, OF_TENANT, 40), stands(4, OF_ALL, 100)]

    def read(reader: Reader) -> list[bool]:
        return [one.readable for one in outlook(USER, layers, [], reader).binding]

    assert read(MYSELF) == [True, False, False, False]
    assert read(Reader(Role.GROUP_LEAD, ALICE, {GROUP})) == [True, True, False, False]
    assert read(Reader(Role.TENANT_ADMIN, None)) == [True, True, True, False]
    assert read(OPERATOR) == [True, True, True, True]


def test_a_service_account_skips_the_user_layer() -> None:
    """S5, F061, C09."""
    account = replace(USER, service_account=True)
    found = outlook(account, [stands(1, OWN, 10), stands(2, OF_TENANT, 40)], [grant(5)], MYSELF)
    assert found.budget is None
    assert found.active_grants == ()
    assert amounts(found) == (None, 0, None, 40)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([OWN, OF_GROUP, OF_TENANT, OF_ALL]), st.integers(0, 100), st.integers(0, 150)
        )
    ),
    st.lists(st.tuples(st.integers(1, 50), st.integers(0, 50))),
)
def test_what_is_left_is_what_the_tightest_layer_leaves(
    layers: list[tuple[Scope, int, int]], given_grants: list[tuple[int, int]]
) -> None:
    """F049: never below 0, exhausted layers first, and the smallest of all."""
    standings = [stands(index + 1, *layer) for index, layer in enumerate(layers)]
    grants = [grant(*one) for one in given_grants]
    of_grants = sum(one.remaining_nanos for one in grants)
    found = outlook(USER, standings, grants, MYSELF)
    left = [
        one.remaining + (of_grants if one.budget.scope.kind is ScopeKind.USER else 0) for one in standings
    ]
    assert found.effective_remaining_nanos == min(left, default=None)
    assert [one.exhausted for one in found.binding] == sorted((amount == 0 for amount in left), reverse=True)
