"""What a Check decides, on a real database. A call of the tests costs 100 nanos."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from bursar_server.kit.errors import BursarError, Reason
from bursar_server.metering.model import (
    DeductItem,
    NoBudgetPolicy,
    Policy,
    PricingOnMissing,
    PrincipalRef,
)
from bursar_server.pricing.model import Usage
from support.metering import PLATFORM, Ledger, ledger_on, new_id


async def test_a_spent_budget_denies_and_says_so(ledger: Ledger) -> None:
    """F053, F054, C04, S2: a spent HARD budget denies with BUDGET_CAP_HARD, its figures and its reset time."""
    alice = ledger.user("alice@example.com")
    key = ledger.key(alice)
    budget = ledger.budget("USER", 150, user_id=alice)
    await ledger.call(key)
    await ledger.call(key)
    denied = await ledger.check(key)
    [denial] = denied.denials
    assert (denial.code, denial.budget_id, denial.limit_nanos, denial.spent_nanos) == (
        "BUDGET_CAP_HARD",
        budget,
        150,
        200,
    )
    assert denial.message.startswith("budget exhausted")
    assert not denial.retryable
    assert denial.reset_time is not None
    assert denial.reset_time > datetime.now(UTC)
    assert ledger.sql(
        "SELECT action, details->'budgets'->0->>'budget_id' FROM audit_events WHERE action = 'BUDGET_CAP_HARD'"
    ) == [("BUDGET_CAP_HARD", str(budget))]


async def test_the_tightest_budget_wins(ledger: Ledger) -> None:
    """F049, S2: every budget that denies is listed, strictest first; a global one shows no figures (C08)."""
    alice = ledger.user("alice@example.com")
    key = ledger.key(alice)
    ledger.budget("TENANT", 50, period="MONTHLY")
    ledger.budget("GLOBAL", 50, tenant_id=PLATFORM, period="YEARLY")
    ledger.budget("USER", 1_000, user_id=alice)
    await ledger.call(key)
    denied = await ledger.check(key)
    assert [denial.scope for denial in denied.denials] == ["global", "tenant"]
    assert all(denial.limit_nanos is None and denial.budget_id is None for denial in denied.denials)
    assert "operator limit" in denied.denials[0].message


async def test_soft_and_shadow_budgets_never_deny(ledger: Ledger) -> None:
    """F057, S3: SOFT serves on; a shadow counts what it would have denied."""
    key = ledger.key()
    ledger.budget("TENANT", 50, enforcement="SOFT")
    ledger.budget("TENANT", 50, shadow=True)
    for _ in range(3):
        assert (await ledger.call(key)).cost.total_nanos == 100
    assert sorted(ledger.sql("SELECT spent_nanos, shadow_denials FROM balances")) == [(300, 0), (300, 2)]


async def test_upper_bound_holds_the_most_a_call_can_cost(ledger: Ledger) -> None:
    """C03, S10, S11: with UPPER_BOUND a budget worth one call lets one through; the next one is told it is held."""
    key = ledger.key()
    ledger.budget("TENANT", 150, admission="UPPER_BOUND")
    first = await ledger.check(key)
    assert first.held_nanos == 100
    [denial] = (await ledger.check(key)).denials
    assert (denial.code, denial.retryable) == ("BUDGET_HELD", True)
    await ledger.deduct(key, first.request_id, 10, 20)
    assert ledger.sql("SELECT spent_nanos, held_nanos FROM balances") == [(50, 0)]
    assert (await ledger.call(key)).cost.total_nanos == 100
    [denial] = (await ledger.check(key)).denials
    assert denial.code == "BUDGET_CAP_HARD"


async def test_upper_bound_holds_on_grants_first(ledger: Ledger) -> None:
    """S6, S7, S8: what is held of a grant stays the call's when the grant is revoked."""
    alice = ledger.user("alice@example.com")
    key = ledger.key(alice)
    budget = ledger.budget("USER", 100, user_id=alice, admission="UPPER_BOUND")
    grant = ledger.grant(alice, 70)
    check = await ledger.check(key)
    assert ledger.sql("SELECT held_nanos FROM grants") == [(70,)]
    assert ledger.sql("SELECT held_nanos FROM balances") == [(30,)]
    ledger.sql("UPDATE grants SET revoke_time = now()")
    ledger.bump()
    answer = await ledger.deduct(key, check.request_id)
    assert [(line.account_id, line.nanos) for line in answer.postings] == [(grant, 70), (budget, 30)]


async def test_a_check_needs_a_recent_uuid7(ledger: Ledger) -> None:
    """S16: an id of another kind, or too old, or too far ahead, is INVALID_ARGUMENT with the server's time."""
    key = ledger.key()
    now = datetime.now(UTC)
    for request_id in (UUID(int=4), new_id(now - timedelta(hours=25)), new_id(now + timedelta(minutes=6))):
        with pytest.raises(BursarError) as misplaced:
            await ledger.check(key, request_id)
        assert misplaced.value.reason is Reason.REQUEST_ID_MISPLACED
        assert misplaced.value.metadata["server_time"].startswith(str(now.year))


async def test_requests_per_minute_are_limited_per_user(ledger: Ledger) -> None:
    """F092, F096: the rate limit counts a user's requests of the minute over all its keys; 0 is off."""
    alice = ledger.user("alice@example.com", rate_limit=3)
    keys = [ledger.key(alice, secret="bur_1"), ledger.key(alice, secret="bur_2")]
    while datetime.now(UTC).second > 57:
        pass
    answers = [await ledger.check(keys[n % 2]) for n in range(5)]
    assert [answer.allowed for answer in answers] == [True, True, True, False, False]
    denial = answers[-1].denials[0]
    assert (denial.code, denial.retryable) == ("RATE_LIMITED", True)
    ledger.sql("UPDATE users SET rate_limit = 0")
    ledger.bump()
    assert (await ledger.check(keys[0])).allowed


async def test_service_accounts_skip_the_user_layer(ledger: Ledger) -> None:
    """F061, S5, C09: a service account skips budgets of scope user and the rate limit; other budgets hold."""
    robot = ledger.user("robot@example.com", service_account=True, rate_limit=1)
    key = ledger.key(robot)
    ledger.budget("USER", 0, user_id=robot)
    ledger.budget("TENANT", 250)
    assert [(await ledger.call(key)).cost.total_nanos for _ in range(3)] == [100, 100, 100]
    assert not (await ledger.check(key)).allowed


async def test_unknown_and_revoked_principals_are_denied(ledger: Ledger) -> None:
    """F098, S1: an unknown key, a revoked key, a deactivated user, a suspended tenant and a stranger's tenant."""
    alice = ledger.user("alice@example.com")
    key = ledger.key(alice)

    async def code(ref: PrincipalRef, **given: Any) -> str:
        denial = (await ledger.check(ref, **given)).denials[0]
        return str(denial.code)

    assert await code(PrincipalRef(api_key_sha256="0" * 64)) == "KEY_UNKNOWN"
    assert await code(key, allowed_tenants=frozenset({new_id()})) == "KEY_UNKNOWN"
    assert await code(PrincipalRef(key.api_key_sha256, "bob@example.com")) == "USER_NOT_ALLOWED"
    ledger.sql("UPDATE users SET status = 'DEACTIVATED'")
    ledger.bump()
    assert await code(key) == "USER_DEACTIVATED"
    ledger.sql("UPDATE api_keys SET revoke_time = now()")
    ledger.bump()
    assert await code(key) == "KEY_REVOKED"
    ledger.sql("UPDATE tenants SET status = 'SUSPENDED'")
    ledger.bump()
    assert await code(key) == "TENANT_SUSPENDED"


async def test_a_new_email_becomes_a_user(ledger: Ledger) -> None:
    """F043: an e-mail not seen before is made a user on its first call, where the key may act for users."""
    key = ledger.key(act_for_users=True)
    answer = await ledger.check(PrincipalRef(key.api_key_sha256, "new@example.com"))
    assert answer.allowed
    assert ledger.sql("SELECT email FROM users") == [("new@example.com",)]


async def test_the_bodys_user_counts_only_where_the_key_says_so(ledger: Ledger) -> None:
    """F158: the user that a body names is believed for keys made so; for others it is nobody's business."""
    alice = ledger.user("alice@example.com")
    trusting = ledger.key(secret="bur_1", act_for_users=True, trust_user_field=True)
    other = ledger.key(secret="bur_2", act_for_users=True)
    for key, user in ((trusting, alice), (other, None)):
        answer = await ledger.check(PrincipalRef(key.api_key_sha256, body_user="alice@example.com"))
        assert answer.allowed
        assert answer.subject.user_id == user


async def test_a_call_of_no_model_is_never_unpriced(ledger: Ledger) -> None:
    """S10: a call without a model or usage passes while something remains, whatever the admission."""
    key = ledger.key()
    ledger.budget("TENANT", 150, admission="UPPER_BOUND")
    plain: dict[str, Any] = {"model": "", "input_tokens_estimate": 0, "max_output_tokens": None}
    check = await ledger.check(key, **plain)
    assert (check.allowed, check.held_nanos) == (True, 0)
    await ledger.deduct(key, check.request_id, 10, 80)
    assert (await ledger.check(key, **plain)).denials[0].code == "BUDGET_CAP_HARD"


async def test_a_principal_without_a_budget_follows_the_policy(database_url: str) -> None:
    """C10: DENY refuses a principal that no budget of its own matches; a global budget is not one."""
    async with ledger_on(database_url, policy=Policy(no_budget=NoBudgetPolicy.DENY)) as ledger:
        key = ledger.key()
        ledger.budget("GLOBAL", 1_000, tenant_id=PLATFORM)
        assert (await ledger.check(key)).denials[0].code == "NO_BUDGET"
        ledger.budget("TENANT", 1_000)
        assert (await ledger.check(key)).allowed


async def test_unpriced_is_not_free(ledger: Ledger) -> None:
    """F106, C19, S10: an unpriced model passes ANY_REMAINING, is recorded at zero and flagged; UPPER_BOUND denies it."""
    key = ledger.key()
    ledger.budget("TENANT", 1_000)
    check = await ledger.check(key, model="unheard-of")
    assert check.allowed
    answer = await ledger.deduct(key, check.request_id, items=(_item("unheard-of"),))
    assert (answer.cost.total_nanos, answer.unpriced) == (0, True)
    ledger.budget("TENANT", 1_000, admission="UPPER_BOUND")
    assert (await ledger.check(key, model="unheard-of")).denials[0].code == "MODEL_UNPRICED"


def _item(model: str) -> DeductItem:
    return DeductItem(model, "", Usage(input_tokens=7, output_tokens=9))


async def test_a_blocked_unpriced_model(database_url: str) -> None:
    """C19: `BLOCK` refuses a model without a price."""
    async with ledger_on(database_url, policy=Policy(on_missing=PricingOnMissing.BLOCK)) as ledger:
        key = ledger.key()
        assert (await ledger.check(key, model="unheard-of")).denials[0].code == "MODEL_UNPRICED"


async def test_a_free_model_always_passes(ledger: Ledger) -> None:
    """S10: a model priced at 0 passes a budget of nothing; a priced one does not."""
    key = ledger.key()
    ledger.price("free-*", {"input": 0, "output": 0})
    ledger.budget("TENANT", 0)
    assert (await ledger.check(key, model="free-1")).allowed
    assert not (await ledger.check(key)).allowed


async def test_budgets_in_tokens(ledger: Ledger) -> None:
    """F037, C13: a limit in tokens counts inputs and outputs, also of a free model."""
    key = ledger.key()
    ledger.price("free-*", {"input": 0, "output": 0})
    ledger.budget("TENANT", None, limit_tokens=100)
    await ledger.call(key)
    assert ledger.sql("SELECT spent_tokens FROM balances") == [(55,)]
    await ledger.call(key)
    denial = (await ledger.check(key, model="free-1")).denials[0]
    assert (denial.code, denial.scope) == ("BUDGET_CAP_HARD", "tenant")


async def test_a_change_binds_with_the_next_call(ledger: Ledger) -> None:
    """S13: a limit that was changed elsewhere counts for the very next Check."""
    key = ledger.key()
    ledger.budget("TENANT", 1_000)
    assert (await ledger.check(key)).allowed
    ledger.sql("UPDATE budgets SET limit_nanos = 0")
    ledger.bump()
    assert not (await ledger.check(key)).allowed
    ledger.sql("UPDATE budgets SET limit_nanos = 5")
    ledger.bump()
    assert (await ledger.check(key)).allowed
