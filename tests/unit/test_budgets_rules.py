"""What a budget may be, who may change and read it, and how far it is spent."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bursar_server.budgets import rules
from bursar_server.budgets.model import (
    Admission,
    Balance,
    Budget,
    BudgetDraft,
    Color,
    Enforcement,
    LeaseExpiry,
    ManagedBy,
    Scope,
    ScopeKind,
    Standing,
)
from bursar_server.kit.caller import Caller, Role
from bursar_server.kit.errors import BursarError, Reason
from bursar_server.kit.ids import PLATFORM_TENANT_ID
from bursar_server.kit.periods import PeriodKind

TENANT, BUDGET, ALICE, KEY, GROUP = (UUID(int=number) for number in range(1, 6))
NOW = datetime(2026, 5, 20, 12, 0, tzinfo=UTC)
WHOLE_TENANT = Scope(ScopeKind.TENANT)
SCOPES = {
    ScopeKind.GLOBAL: Scope(ScopeKind.GLOBAL),
    ScopeKind.TENANT: WHOLE_TENANT,
    ScopeKind.GROUP: Scope(ScopeKind.GROUP, group_id=GROUP),
    ScopeKind.USER: Scope(ScopeKind.USER, user_id=ALICE),
    ScopeKind.KEY: Scope(ScopeKind.KEY, api_key_id=KEY),
    ScopeKind.TAG: Scope(ScopeKind.TAG, tag_key="team", tag_value="core"),
}


def budget(managed_by: ManagedBy = ManagedBy.TENANT, **given: Any) -> Budget:
    fields = {"scope": WHOLE_TENANT} | given
    if "limit_tokens" not in fields:
        fields.setdefault("limit_nanos", 10_000_000_000)
    return rules.new_budget(BudgetDraft(**fields), TENANT, BUDGET, managed_by, NOW)


def standing(of: Budget, spent: int = 0, held: int = 0) -> Standing:
    period = of.period_at(NOW)
    amounts = (0, 0, spent, held) if of.counts_tokens else (spent, held, 0, 0)
    return Standing(of, Balance(of.budget_id, of.period_key_at(NOW), period.start, period.end, *amounts))


def test_a_new_budget_has_the_defaults() -> None:
    """F018, F021, F024, F038, C01, C02, C03, C05: what a budget is unless said otherwise."""
    made = budget()
    assert (made.period, made.anchor_day, made.timezone) == (PeriodKind.DAILY, 0, "UTC")
    assert (made.soft_limit_pct, made.alert_thresholds_pct) == (80, (80, 90, 100))
    assert (made.enforcement, made.admission) == (Enforcement.HARD, Admission.ANY_REMAINING)
    assert (made.max_wait_ms, made.fit_output, made.shadow) == (2_000, False, False)
    assert (made.on_lease_expiry, made.enabled) == (LeaseExpiry.CHARGE_ESTIMATE, True)
    assert (made.version, made.definition_revision) == (1, 1)
    assert made.name == "tenant daily"


def test_a_budget_keeps_what_it_is_given() -> None:
    """F014, F022, F037, F039, F040, F041, C13: every field, each admission, tokens as well as money."""
    for admission in Admission:
        made = budget(
            name=" evaluation ",
            period=PeriodKind.MONTHLY,
            anchor_day=31,
            timezone="Europe/Berlin",
            limit_tokens=1_000_000,
            soft_limit_pct=50,
            alert_thresholds_pct=(100, 50, 100, 150),
            enforcement=Enforcement.SOFT,
            admission=admission,
            max_wait_ms=0,
            fit_output=True,
            shadow=True,
            on_lease_expiry=LeaseExpiry.RELEASE,
            enabled=False,
            owners=("Bob@Example.com ", "bob@example.com", "a@b.c"),
            reason="agreed with finance",
        )
        assert (made.name, made.admission, made.counts_tokens) == ("evaluation", admission, True)
        assert made.alert_thresholds_pct == (50, 100, 150)
        assert made.owners == ("bob@example.com", "a@b.c")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"limit_nanos": None}, "budget.limit_usd"),
        ({"limit_nanos": 1, "limit_tokens": 1}, "budget.limit_tokens"),
        ({"limit_nanos": -1}, "budget.limit_usd"),
        ({"limit_tokens": -1}, "budget.limit_tokens"),
        ({"limit_tokens": 2**63}, "budget.limit_tokens"),
        ({"soft_limit_pct": 0}, "budget.soft_limit_pct"),
        ({"soft_limit_pct": 101}, "budget.soft_limit_pct"),
        ({"alert_thresholds_pct": (0,)}, "budget.alert_thresholds_pct"),
        ({"alert_thresholds_pct": (1001,)}, "budget.alert_thresholds_pct"),
        ({"alert_thresholds_pct": tuple(range(1, 12))}, "budget.alert_thresholds_pct"),
        ({"timezone": "Mars/Olympus"}, "budget.timezone"),
        ({"timezone": "../../etc/passwd"}, "budget.timezone"),
        ({"anchor_day": 1}, "budget.anchor_day"),
        ({"period": PeriodKind.TOTAL, "anchor_day": 1}, "budget.anchor_day"),
        ({"period": PeriodKind.WEEKLY, "anchor_day": 8}, "budget.anchor_day"),
        ({"period": PeriodKind.MONTHLY, "anchor_day": 32}, "budget.anchor_day"),
        ({"max_wait_ms": -1}, "budget.max_wait_ms"),
        ({"max_wait_ms": 60_001}, "budget.max_wait_ms"),
        ({"name": "x" * 201}, "budget.name"),
        ({"name": "  "}, "budget.name"),
        ({"reason": "x" * 1001}, "budget.reason"),
        ({"owners": tuple(f"{number}@x.y" for number in range(21))}, "budget.owners"),
        ({"scope": None}, "budget.scope"),
        ({"scope": Scope(ScopeKind.TAG, tag_key="team", tag_value="")}, "budget.scope.tag_value"),
    ],
)
def test_what_a_budget_cannot_be_is_refused_by_name(fields: dict[str, Any], field: str) -> None:
    """F015: the error names the field that is wrong."""
    with pytest.raises(BursarError) as caught:
        budget(**fields)
    assert (caught.value.reason, caught.value.field) == (Reason.INVALID_FIELD, field)


def test_who_manages_a_budget_follows_from_who_made_it() -> None:
    """F026: a request may repeat it, and cannot choose it."""
    draft = BudgetDraft(scope=WHOLE_TENANT, limit_nanos=1, managed_by=ManagedBy.TENANT)
    assert rules.new_budget(draft, TENANT, BUDGET, ManagedBy.TENANT, NOW).managed_by is ManagedBy.TENANT
    with pytest.raises(BursarError, match=r"budget\.managed_by"):
        rules.new_budget(draft, TENANT, BUDGET, ManagedBy.PLATFORM, NOW)


def test_a_limit_of_nothing_is_a_limit() -> None:
    """C10: 0 is a real limit; absent is none, and a budget has one."""
    assert budget(limit_nanos=0).limit == 0


def test_a_change_leaves_what_it_does_not_say() -> None:
    """F024: the version goes up with every change, and nothing else moves."""
    before = budget(period=PeriodKind.MONTHLY, anchor_day=15, reason="why", owners=("a@b.c",))
    after = rules.changed(before, BudgetDraft(name="renamed"), NOW)
    assert after == replace(before, name="renamed", version=2, update_time=NOW)
    assert rules.changed(after, BudgetDraft(limit_tokens=5), NOW).limit_nanos is None


@pytest.mark.parametrize(
    ("change", "revision"),
    [
        ({"limit_nanos": 5}, 1),
        ({"enforcement": Enforcement.SOFT}, 1),
        ({"enabled": False}, 1),
        ({"timezone": "Europe/Berlin"}, 2),
        ({"period": PeriodKind.WEEKLY}, 2),
        ({"anchor_day": 2}, 2),
        ({"anchor_day": 1}, 1),
        ({"scope": Scope(ScopeKind.USER, user_id=ALICE)}, 2),
    ],
)
def test_what_starts_a_new_definition(change: dict[str, Any], revision: int) -> None:
    """S4: scope, period, anchor and zone; the first day is the anchor where none was given."""
    before = budget(period=PeriodKind.MONTHLY)
    assert rules.changed(before, BudgetDraft(**change), NOW).definition_revision == revision


def test_enabling_starts_a_new_definition() -> None:
    """S4: what was spent while a budget was disabled is counted when it is enabled."""
    disabled = budget(enabled=False)
    assert rules.changed(disabled, BudgetDraft(enabled=True), NOW).definition_revision == 2
    assert rules.changed(disabled, BudgetDraft(timezone="Asia/Tokyo"), NOW).definition_revision == 2


def test_another_period_forgets_the_anchor() -> None:
    """C01: the 31st of a month is no weekday."""
    monthly = budget(period=PeriodKind.MONTHLY, anchor_day=31)
    assert rules.changed(monthly, BudgetDraft(period=PeriodKind.WEEKLY), NOW).anchor_day == 1
    assert rules.changed(monthly, BudgetDraft(period=PeriodKind.DAILY), NOW).anchor_day == 0


def operator(**given: Any) -> Budget:
    return budget(ManagedBy.PLATFORM, **given)


@pytest.mark.parametrize(("limit", "refused"), [(9, False), (10, False), (11, True)])
def test_a_tenant_can_only_tighten(limit: int, refused: bool) -> None:
    """F028, F199: at or below the operator's ceiling is accepted, above is refused."""
    ceilings = [operator(limit_nanos=10), operator(limit_nanos=50)]
    if not refused:
        rules.check_ceiling(budget(limit_nanos=limit), ceilings)
        return
    with pytest.raises(BursarError) as caught:
        rules.check_ceiling(budget(limit_nanos=limit), ceilings)
    assert (caught.value.reason, caught.value.field) == (Reason.ABOVE_CEILING, "budget.limit_usd")


@pytest.mark.parametrize(
    "ceiling",
    [
        operator(limit_nanos=1, enabled=False),
        operator(limit_nanos=1, shadow=True),
        operator(limit_tokens=1),
        operator(limit_nanos=1, scope=Scope(ScopeKind.GLOBAL)),
        operator(limit_nanos=1, scope=Scope(ScopeKind.USER, user_id=ALICE)),
        budget(limit_nanos=1),
        operator(limit_nanos=1, period=PeriodKind.DAILY),
    ],
)
def test_what_is_no_ceiling(ceiling: Budget) -> None:
    """F029, F030, F031, C08: only an enabled PLATFORM budget for the tenant, in the same unit and no shorter."""
    rules.check_ceiling(budget(limit_nanos=100, period=PeriodKind.WEEKLY), [ceiling])


def test_what_a_month_may_cost_bounds_what_a_day_may() -> None:
    """F029: a ceiling of a longer period governs too."""
    with pytest.raises(BursarError, match="monthly ceiling of 5 US dollars"):
        rules.check_ceiling(
            budget(limit_nanos=6_000_000_000),
            [operator(limit_nanos=5_000_000_000, period=PeriodKind.MONTHLY)],
        )


def test_the_operator_has_no_ceiling() -> None:
    """F025: ceilings bind what tenants set."""
    rules.check_ceiling(operator(limit_nanos=100), [operator(limit_nanos=1)])


@pytest.mark.parametrize(
    ("role", "managed_by", "allowed"),
    [
        (Role.PLATFORM_ADMIN, ManagedBy.PLATFORM, True),
        (Role.BILLING_ADMIN, ManagedBy.PLATFORM, True),
        (Role.PLATFORM_ADMIN, ManagedBy.TENANT, False),
        (Role.TENANT_ADMIN, ManagedBy.TENANT, True),
        (Role.TENANT_DEVELOPER, ManagedBy.TENANT, True),
        (Role.TENANT_ADMIN, ManagedBy.PLATFORM, False),
    ],
)
def test_each_side_changes_what_it_made(role: Role, managed_by: ManagedBy, allowed: bool) -> None:
    """F025, F026, F027: what the other side made is read-only."""
    made = budget(managed_by)
    caller = Caller(role, "x")
    if allowed:
        assert rules.managed_by_of(role) is managed_by
        rules.check_may_change(caller, made)
        return
    with pytest.raises(BursarError) as caught:
        rules.check_may_change(caller, made)
    assert caught.value.reason is Reason.MANAGED_ELSEWHERE
    assert caught.value.metadata["managed_by"] == managed_by


EVERYONE_ELSES = {ScopeKind.TENANT, ScopeKind.GROUP, ScopeKind.USER, ScopeKind.KEY, ScopeKind.TAG}


@pytest.mark.parametrize(
    ("role", "reads"),
    [
        (None, {ScopeKind.USER, ScopeKind.KEY}),
        (Role.MEMBER, {ScopeKind.USER, ScopeKind.KEY}),
        (Role.GROUP_LEAD, {ScopeKind.USER, ScopeKind.KEY, ScopeKind.GROUP}),
        (Role.TENANT_DEVELOPER, EVERYONE_ELSES),
        (Role.TENANT_ADMIN, EVERYONE_ELSES),
        (Role.BILLING_ADMIN, set(ScopeKind)),
        (Role.PLATFORM_ADMIN, set(ScopeKind)),
    ],
)
def test_whose_figures_a_reader_sees(role: Role | None, reads: set[ScopeKind]) -> None:
    """S2, C08, F013: a member its own, a lead its groups', the tenant's roles the tenant's, the operator all."""
    seen = {
        kind
        for kind, scope in SCOPES.items()
        if rules.readable(
            budget(ManagedBy.PLATFORM, scope=scope),
            user_id=ALICE,
            api_key_id=KEY,
            role=role,
            group_ids={GROUP},
        )
    }
    assert seen == reads


def test_a_member_reads_nobody_elses_budgets() -> None:
    """F013: not another user's, key's or group's, and nothing without an identity."""
    for scope in SCOPES.values():
        for role in (None, Role.MEMBER, Role.GROUP_LEAD):
            for identity in (None, UUID(int=99)):
                assert not rules.readable(
                    budget(scope=scope), user_id=identity, api_key_id=identity, role=role, group_ids=()
                )


def test_which_budgets_a_caller_lists() -> None:
    """C08, C11, F030: tenants never see global budgets, a lead sees its groups'."""
    of_tenant = {kind: budget(scope=scope) for kind, scope in SCOPES.items()}
    of_tenant[ScopeKind.GLOBAL] = replace(of_tenant[ScopeKind.GLOBAL], tenant_id=PLATFORM_TENANT_ID)

    def listed(role: Role, tenants: frozenset[UUID] | None) -> set[ScopeKind]:
        caller = Caller(role, "x", tenants, group_ids=frozenset({GROUP}))
        return {kind for kind, one in of_tenant.items() if rules.may_list(caller, one)}

    here = frozenset({TENANT})
    assert listed(Role.PLATFORM_ADMIN, None) == set(ScopeKind)
    assert listed(Role.BILLING_ADMIN, here) == EVERYONE_ELSES
    assert listed(Role.TENANT_ADMIN, here) == EVERYONE_ELSES
    assert listed(Role.TENANT_ADMIN, None) == EVERYONE_ELSES
    assert listed(Role.TENANT_ADMIN, frozenset({UUID(int=99)})) == set()
    assert listed(Role.GROUP_LEAD, here) == {ScopeKind.GROUP}


@pytest.mark.parametrize(
    ("spent", "pct", "color"),
    [
        (0, 0.0, Color.GREEN),
        (799, 79.9, Color.GREEN),
        (800, 80.0, Color.AMBER),
        (999, 99.9, Color.AMBER),
        (1000, 100.0, Color.RED),
        (1500, 150.0, Color.RED),
    ],
)
def test_how_far_a_budget_is_spent(spent: int, pct: float, color: Color) -> None:
    """F069, F070, F071, S22: green, amber from the soft limit, red from the limit; utilisation may pass 100."""
    for of in (budget(limit_nanos=1000), budget(limit_tokens=1000)):
        stands = standing(of, spent)
        assert (rules.utilization_pct(stands), rules.color(stands)) == (pct, color)
        assert stands.remaining == max(0, 1000 - spent)


def test_a_hundred_percent_is_not_shown_too_soon() -> None:
    """F071: one nano short of a large limit is below 100."""
    limit = 10**18
    assert rules.utilization_pct(standing(budget(limit_nanos=limit), limit - 1)) == 99.9999


def test_a_limit_of_nothing_is_red() -> None:
    """F069, C10: nothing can be spent; used in full once something was."""
    nothing = budget(limit_nanos=0)
    assert (rules.color(standing(nothing)), rules.utilization_pct(standing(nothing))) == (Color.RED, 0.0)
    assert rules.utilization_pct(standing(nothing, 1)) == 100.0


def test_without_a_soft_limit_a_row_is_green_until_it_is_red() -> None:
    """F022: the soft limit is optional."""
    none = replace(budget(limit_nanos=1000), soft_limit_pct=None)
    assert [rules.color(standing(none, spent)) for spent in (0, 999, 1000)] == [
        Color.GREEN,
        Color.GREEN,
        Color.RED,
    ]


@given(st.integers(0, 10**18), st.integers(-(10**6), 10**18), st.integers(0, 10**18))
def test_remaining_is_never_shown_below_nothing(limit: int, spent: int, held: int) -> None:
    """S10, S22: limit − spent − held, cut at 0."""
    stands = standing(budget(limit_nanos=limit), spent, held)
    assert stands.left == limit - spent - held
    assert stands.remaining == max(0, stands.left)
    assert rules.utilization_pct(stands) >= 0
    assert (rules.color(stands) is Color.RED) == (spent >= limit)


def test_audit_details_are_exact_and_hold_no_float() -> None:
    """F177: money as decimal text."""
    details = rules.details(budget(limit_nanos=100_000_001))
    assert details["limit_usd"] == "0.100000001"
    assert not any(isinstance(value, float) for value in details.values())
