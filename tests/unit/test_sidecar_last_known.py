"""What a sidecar knows when it cannot ask: prices, what was left, and what it lets through on them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bursar.v1 import budget_pb2
from bursar.v1.metering_pb2 import BudgetLeft
from bursar.v1.metering_service_pb2 import CheckResponse, DeductResponse
from bursar_sidecar import denial
from bursar_sidecar.last_known import Claim, LastKnown
from bursar_sidecar.messages import Ask
from bursar_sidecar.providers.base import Metered, Outcome, Problem, Usage, UsageItem
from bursar_sidecar.rates import Rates
from bursar_sidecar.settings import OnUnreachable

CLOSED, OPEN, LAST = OnUnreachable.CLOSED, OnUnreachable.OPEN, OnUnreachable.LAST_KNOWN_GOOD
ASK = Ask("k" * 64, "openai", "gpt-4o", input_tokens_estimate=10, max_output_tokens=10)
SPENT = Problem(402, denial.BUDGET_CODE, "insufficient_budget", "spent")
REVOKED = Problem(403, "KEY_REVOKED", "permission_error", "revoked")


def metered(input_tokens: int, output_tokens: int, model: str = "gpt-4o") -> Metered:
    usage = Usage(input_tokens=input_tokens, output_tokens=output_tokens)
    return Metered((UsageItem(model, "", usage),), False, None, Outcome.SUCCESS)


def charged(
    input_nanos: int, output_nanos: int, other_nanos: int = 0, *, unpriced: bool = False
) -> DeductResponse:
    return DeductResponse(
        cost_nanos=input_nanos + output_nanos + other_nanos,
        input_cost_nanos=input_nanos,
        output_cost_nanos=output_nanos,
        other_cost_nanos=other_nanos,
        unpriced=unpriced,
    )


def answer(nanos: int | None = None, policy: int = 0, **fields: object) -> CheckResponse:
    """An answer that names one budget, "b", where an amount is given."""
    budgets = [] if nanos is None else [BudgetLeft(budget_id="b", remaining_nanos=nanos)]
    return CheckResponse(on_unreachable=policy, budgets=budgets, **fields)  # type: ignore[arg-type]


def known(nanos: int, max_age_s: float = 3600.0) -> LastKnown:
    """Let through one call that cost 1 nano a token, which left `nanos`."""
    last_known = LastKnown(LAST, max_age_s)
    claim = last_known.allowed(ASK, answer(nanos + 20), 0.0, behind=False)
    assert claim is not None
    last_known.settled(claim, ASK, metered(10, 10), charged(10, 10), 0.0)
    return last_known


def passed(last_known: LastKnown, ask: Ask = ASK, now: float = 1.0) -> Claim | None:
    return last_known.decide(ask, now).claim


def refusal(last_known: LastKnown, ask: Ask = ASK, now: float = 1.0) -> int:
    decision = last_known.decide(ask, now)
    assert decision.problem is not None
    return decision.problem.status


# -- prices ----------------------------------------------------------------------------------------


def test_a_call_is_priced_as_such_calls_were() -> None:
    """S15: input and output each at its own price; what comes beside tokens is added as it was."""
    rates = Rates()
    rates.learn("openai", "gpt-4o", metered(1000, 100).items, charged(2_500_000, 1_000_000, 7), 0.0)
    assert rates.price("openai", "gpt-4o", 2000, 10) == 5_000_000 + 100_000 + 7


def test_the_highest_recent_price_counts() -> None:
    rates = Rates()
    rates.learn("openai", "m", metered(10, 0).items, charged(100, 0), 0.0)
    rates.learn("openai", "m", metered(10, 0).items, charged(50, 0), 60.0)
    assert rates.price("openai", "m", 1, 0) == 10
    rates.learn("openai", "m", metered(10, 0).items, charged(50, 0), 4000.0)
    assert rates.price("openai", "m", 1, 0) == 5


def test_a_model_that_was_not_seen_costs_as_much_as_the_dearest() -> None:
    rates = Rates()
    assert rates.price("openai", "new", 1, 1) is None
    rates.learn("openai", "cheap", metered(10, 10).items, charged(10, 20), 0.0)
    rates.learn("anthropic", "dear", metered(10, 10).items, charged(300, 20), 0.0)
    assert rates.price("openai", "new", 1, 1) == 32
    rates.learn("gemini", "embed", metered(10, 0).items, charged(10, 0), 0.0)
    assert rates.price("gemini", "embed", 1, 1) == 1 + 2


def test_what_has_no_price_is_not_free() -> None:
    """S10: unpriced says nothing of what a call costs."""
    rates = Rates()
    rates.learn("openai", "m", metered(10, 10).items, charged(0, 0, unpriced=True), 0.0)
    assert rates.price("openai", "m", 1, 1) is None


def test_the_table_of_prices_is_bounded() -> None:
    rates = Rates()
    for number in range(1100):
        rates.learn("openai", f"m{number}", metered(1, 1).items, charged(1, 1), float(number))
    assert len(rates._rates) == 1000


@settings(derandomize=True, max_examples=100)
@given(st.integers(1, 10**6), st.integers(0, 10**12), st.integers(0, 10**6))
def test_a_price_is_never_too_low(seen_tokens: int, nanos: int, tokens: int) -> None:
    """Rounding is against the call: what was exact at the control plane is not less here."""
    rates = Rates()
    rates.learn("p", "m", metered(seen_tokens, 0).items, charged(nanos, 0), 0.0)
    price = rates.price("p", "m", tokens, 0)
    assert price is not None
    assert price * seen_tokens >= nanos * tokens
    assert rates.price("p", "m", seen_tokens, 0) in range(nanos, nanos + 2)


# -- policies --------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [CLOSED, OPEN, LAST])
def test_a_budget_s_policy_goes_before_the_sidecar_s(own: OnUnreachable) -> None:
    for said, policy in (
        (budget_pb2.ON_UNREACHABLE_CLOSED, CLOSED),
        (budget_pb2.ON_UNREACHABLE_OPEN, OPEN),
        (budget_pb2.ON_UNREACHABLE_LAST_KNOWN_GOOD, LAST),
        (budget_pb2.ON_UNREACHABLE_UNSPECIFIED, own),
    ):
        last_known = LastKnown(own, 3600.0)
        last_known.allowed(ASK, answer(policy=said), 0.0, behind=False)
        assert last_known.decide(ASK, 1.0).policy is policy


def test_a_policy_that_is_taken_back_is_the_sidecar_s_again() -> None:
    last_known = LastKnown(CLOSED, 3600.0)
    last_known.allowed(ASK, answer(policy=budget_pb2.ON_UNREACHABLE_OPEN), 0.0, behind=False)
    assert last_known.decide(ASK, 1.0).problem is None
    last_known.allowed(ASK, answer(), 2.0, behind=False)
    assert refusal(last_known) == 503
    assert not last_known._principals


def test_a_sidecar_that_is_closed_remembers_nothing_that_it_need_not() -> None:
    last_known = LastKnown(CLOSED, 3600.0)
    assert last_known.allowed(ASK, answer(), 0.0, behind=False) is None
    last_known.denied(ASK, answer(), SPENT, 0.0, behind=False)
    assert not last_known._principals


def test_who_was_refused_stays_refused() -> None:
    """Also where the policy is OPEN: what was known to be spent or revoked is not let through."""
    for own, problem in ((OPEN, SPENT), (OPEN, REVOKED), (LAST, REVOKED)):
        last_known = LastKnown(own, 3600.0)
        last_known.denied(ASK, answer(), problem, 0.0, behind=False)
        assert last_known.decide(ASK, 1.0).problem == problem
        assert (last_known.decide(ASK._replace(key_sha256="o" * 64), 1.0).problem is None) == (own is OPEN)
        last_known.allowed(ASK, answer(10**9), 2.0, behind=False)
        assert last_known.decide(ASK, 3.0).problem != problem


@pytest.mark.parametrize("own", [CLOSED, OPEN, LAST])
def test_a_revoked_key_is_shut_out_whatever_its_budgets_said(own: OnUnreachable) -> None:
    """With any tags: the answer that denies it names no budgets."""
    last_known = LastKnown(own, 3600.0)
    for tags in ({"team": "red"}, {"team": "blue"}):
        said = answer(10**9, budget_pb2.ON_UNREACHABLE_OPEN, budgets_by_tags=True)
        last_known.allowed(ASK._replace(tags=tags), said, 0.0, behind=False)
        assert last_known.decide(ASK._replace(tags=tags), 1.0).problem is None
    last_known.denied(ASK._replace(tags={"team": "red"}), answer(), REVOKED, 2.0, behind=False)
    for tags in ({"team": "red"}, {"team": "blue"}):
        assert refusal(last_known, ASK._replace(tags=tags)) == (503 if own is CLOSED else 403)


def test_what_is_about_one_call_is_not_remembered() -> None:
    """A rate limit, a held budget, a model without a price: the next call may pass. Nor are keys that nobody knows."""
    last_known = LastKnown(OPEN, 3600.0)
    for code in ("RATE_LIMITED", "BUDGET_HELD", "MODEL_UNPRICED", "REQUEST_RELEASED", "KEY_UNKNOWN"):
        last_known.denied(ASK, answer(), Problem(403, code, "", ""), 0.0, behind=False)
    assert not last_known._principals


def test_a_key_that_is_not_known_any_more_is_refused() -> None:
    last_known = known(1000)
    unknown = Problem(401, "KEY_UNKNOWN", "authentication_error", "")
    last_known.denied(ASK, answer(), unknown, 0.0, behind=False)
    assert refusal(last_known) == 401


# -- what was left ---------------------------------------------------------------------------------


def test_what_was_left_is_let_through_and_no_more() -> None:
    """402 when the known remainder is used up: a hundred nanos are five calls of twenty."""
    last_known = known(100)
    for _ in range(5):
        claim = passed(last_known)
        assert claim is not None
        last_known.settled(claim, ASK, metered(10, 10), None, 1.0)
    decision = last_known.decide(ASK, 1.0)
    assert decision.problem is not None
    assert (decision.problem.status, decision.problem.code) == (402, "BUDGET_CAP_HARD")


def test_calls_under_way_count_at_their_estimate() -> None:
    last_known = known(100)
    claims = [passed(last_known) for _ in range(6)]
    assert [claim is not None for claim in claims] == [True] * 5 + [False]
    assert claims[0] is not None
    last_known.dropped(claims[0])  # it was not sent
    assert passed(last_known) is not None


def test_a_call_that_costs_less_gives_the_rest_back() -> None:
    last_known = known(20)
    claim = passed(last_known)
    assert claim is not None
    assert passed(last_known) is None
    last_known.settled(claim, ASK, Metered((), False, None, Outcome.FAILED), None, 1.0)
    assert passed(last_known) is not None


def test_a_call_that_was_checked_is_taken_off_when_it_ends() -> None:
    """Calls that were open when the outage began are charged, and count."""
    last_known = known(100)
    open_before = last_known.allowed(ASK, answer(100), 0.5, behind=False)
    assert open_before is not None
    last_known.settled(open_before, ASK, metered(40, 50), None, 1.0)
    assert refusal(last_known) == 402


def test_nothing_known_is_closed() -> None:
    """503: a principal never seen, a price never seen, an answer too old; a restart forgets everything."""
    assert refusal(LastKnown(LAST, 3600.0)) == 503
    priceless = LastKnown(LAST, 3600.0)
    priceless.allowed(ASK, answer(10**9), 0.0, behind=False)
    assert refusal(priceless) == 503
    old = known(10**9, max_age_s=60.0)
    assert passed(old, now=60.0) is not None
    assert refusal(old, now=61.0) == 503


def test_no_budget_is_no_limit_and_no_model_costs_nothing() -> None:
    last_known = LastKnown(LAST, 3600.0)
    last_known.allowed(ASK, answer(), 0.0, behind=False)
    assert passed(last_known) is not None
    spent = known(0)
    assert passed(spent, ASK._replace(model="", input_tokens_estimate=0)) is not None
    assert refusal(spent) == 402


def test_every_budget_of_a_call_must_have_it() -> None:
    """S2: each is evaluated alone; one that others share is spent by them too, one in tokens counts tokens."""
    last_known = known(10**9)
    other = ASK._replace(key_sha256="o" * 64)
    own = BudgetLeft(budget_id="own", remaining_nanos=10**9)
    for ask in (ASK, other):
        said = CheckResponse(budgets=[own, BudgetLeft(budget_id="shared", remaining_tokens=50)])
        last_known.allowed(ask, said, 0.5, behind=False)
    assert passed(last_known) is not None
    assert passed(last_known, other) is not None
    assert refusal(last_known) == refusal(last_known, other) == 402


def test_tags_count_where_budgets_do() -> None:
    last_known = known(10**9)
    red, blue = ASK._replace(tags={"team": "red"}), ASK._replace(tags={"team": "blue"})
    assert passed(last_known, red) is not None
    last_known.allowed(red, answer(10**9, budgets_by_tags=True), 1.0, behind=False)
    last_known.allowed(ASK, answer(10**9, budgets_by_tags=True), 1.0, behind=False)
    assert passed(last_known, red) is not None
    assert refusal(last_known, blue) == 503


def test_while_charges_wait_an_answer_only_lowers_what_is_known() -> None:
    last_known = known(20)
    assert passed(last_known) is not None
    last_known.allowed(ASK, answer(20), 2.0, behind=True)
    assert refusal(last_known) == 402
    last_known.allowed(ASK, answer(20), 3.0, behind=False)
    assert passed(last_known) is not None


def test_a_claim_is_not_given_back_to_an_amount_that_was_said_since() -> None:
    last_known = known(20)
    claim = passed(last_known)
    assert claim is not None
    last_known.allowed(ASK, answer(15), 2.0, behind=False)
    last_known.settled(claim, ASK, Metered((), False, None, Outcome.FAILED), None, 3.0)
    assert refusal(last_known) == 402


def test_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bursar_sidecar.last_known.PRINCIPALS_MAX", 10)
    monkeypatch.setattr("bursar_sidecar.last_known.BUDGETS_MAX", 10)
    last_known = known(10**9)
    for number in range(20):
        said = CheckResponse(budgets=[BudgetLeft(budget_id=f"b{number}", remaining_nanos=10**9)])
        last_known.allowed(ASK._replace(user_id=f"u{number}"), said, 0.5, behind=False)
    assert (len(last_known._principals), len(last_known._left)) == (10, 10)
    assert passed(last_known, ASK._replace(user_id="u19")) is not None
    assert refusal(last_known) == 503


@settings(derandomize=True, max_examples=200)
@given(
    st.integers(0, 500),
    st.lists(st.tuples(st.booleans(), st.integers(0, 15), st.integers(0, 15)), max_size=40),
)
def test_what_passes_never_exceeds_what_was_left(left: int, calls: list[tuple[bool, int, int]]) -> None:
    """Whatever calls come and end: as long as none uses more than it said, no more is spent than was left."""
    last_known = known(left)
    ask = ASK._replace(input_tokens_estimate=15, max_output_tokens=15)
    spent = 0
    under_way: list[Claim] = []
    for ends, input_tokens, output_tokens in calls:
        if ends and under_way:
            last_known.settled(under_way.pop(0), ask, metered(input_tokens, output_tokens), None, 1.0)
            spent += input_tokens + output_tokens
        elif (claim := passed(last_known, ask)) is not None:
            under_way.append(claim)
        else:
            assert spent + 30 * len(under_way) > left - 30
        assert spent + 30 * len(under_way) <= left
