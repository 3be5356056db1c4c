"""Whether a call may be made: pure decisions over the locked state (S2, S3, S7, S10, S11)."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from bursar_server.budgets.model import Admission, Budget, Enforcement, OnUnreachable, ScopeKind
from bursar_server.kit import ids
from bursar_server.kit.errors import BursarError, Reason
from bursar_server.kit.money import usd_text
from bursar_server.ledger.model import BalanceKey, BalanceState, GrantState
from bursar_server.metering.model import (
    BudgetLeft,
    Denial,
    NoBudgetPolicy,
    Policy,
    PricingOnMissing,
    Problem,
    Subject,
)
from bursar_server.pricing import rules as pricing
from bursar_server.pricing.model import Price

MAX_BUDGETS_PER_CALL = 32
# What an answer is expected to have where nothing is known of such calls (S11).
EXPECTED_OUTPUT_TOKENS = 1_024
# An answer that is cut shorter than this is not worth asking for; some providers refuse lower limits.
FEWEST_OUTPUT_TOKENS = 16
# No answer has more; a budget that can bear as much guards nothing.
MOST_GUARDED_TOKENS = 1_000_000
# A Deduct's id may be ahead of the database's clock; what is further ahead is in the books already, or gets another id.
FARTHEST_AHEAD = timedelta(days=1)
OLDEST_CHECK = timedelta(hours=24)
NEWEST_CHECK = timedelta(minutes=5)

# What budgets can say to calls while a sidecar cannot ask, the strictest first.
_WORDS = (OnUnreachable.CLOSED, OnUnreachable.LAST_KNOWN_GOOD, OnUnreachable.OPEN)

_PROBLEMS = {
    Problem.KEY_UNKNOWN: ("authentication", "unknown API key"),
    Problem.KEY_REVOKED: ("permission", "this API key was revoked"),
    Problem.USER_UNKNOWN: ("permission", "no such user in this tenant"),
    Problem.USER_NOT_ALLOWED: ("permission", "this API key may not act for users"),
    Problem.USER_DEACTIVATED: ("permission", "this user is deactivated"),
    Problem.TENANT_SUSPENDED: ("permission", "this tenant is suspended"),
}


class Estimate(NamedTuple):
    """What a call may consume and cost. Amounts in nanos and tokens; None is unpriced."""

    input_tokens: int
    most_output_tokens: int
    expected_output_tokens: int
    most_nanos: int | None
    expected_nanos: int | None
    free: bool

    def nanos(self, admission: Admission) -> int | None:
        """Return what to hold in nanos; None where the price is not known."""
        if admission is Admission.ANY_REMAINING or self.free:
            return 0
        return self.most_nanos if admission is Admission.UPPER_BOUND else self.expected_nanos

    def tokens(self, admission: Admission) -> int:
        """Return what to hold in tokens."""
        if admission is Admission.ANY_REMAINING:
            return 0
        upper = admission is Admission.UPPER_BOUND
        return self.input_tokens + (self.most_output_tokens if upper else self.expected_output_tokens)


class Verdict(NamedTuple):
    """What one budget says to a call, and what the call holds on it if it is allowed."""

    budget: Budget
    key: BalanceKey
    denial: Denial | None
    hold_nanos: int
    hold_tokens: int


def check_request_id(request_id: UUID, now: datetime) -> None:
    """Raise REQUEST_ID_MISPLACED unless a Check's id is a UUIDv7 of the last 24 hours or the next 5 minutes (S16)."""
    made = ids.time_of_uuid7(request_id)
    if made is None or not now - OLDEST_CHECK <= made <= now + NEWEST_CHECK:
        raise misplaced(now)


def misplaced(now: datetime) -> BursarError:
    """Return the error of an id whose time is out of range, with the server's time."""
    return BursarError(
        Reason.REQUEST_ID_MISPLACED,
        "request_id: must be a UUIDv7 whose time is at most 24 hours ago and 5 minutes ahead",
        field="request_id",
        metadata={"server_time": f"{now.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"},
    )


def problem_denial(problem: Problem) -> Denial:
    """Return the denial of a principal that may not call at all."""
    reason, message = _PROBLEMS[problem]
    return Denial(problem.value, reason, message)


def released_denial() -> Denial:
    """Return the denial of a call that was released before its Check arrived (S17)."""
    return Denial(
        "REQUEST_RELEASED", "permission", "this call was released; make a new request_id for a new call"
    )


def rate_denial(limit: int, window_start: datetime) -> Denial:
    """Return the denial of a user that has made its requests of this minute (F092)."""
    return Denial(
        "RATE_LIMITED",
        "rate_limit",
        f"rate limit of {limit} requests per minute reached",
        scope="user",
        reset_time=window_start + timedelta(minutes=1),
        retryable=True,
    )


def estimate_of(
    price: Price | None,
    policy: Policy,
    input_tokens: int,
    max_output_tokens: int | None,
    usual_nanos: int | None = None,
    *,
    amounts: bool = True,
) -> Estimate:
    """Return what a call may consume and cost (S11).

    The most is the input estimate and `max_output_tokens`, else the model's own maximum, else the policy's. What is
    expected is what such calls usually cost, else the input estimate and at most 1,024 outputs; never above the most. Without `amounts` the costs are left out: no budget holds any.
    """
    own_most = price.max_output_tokens if price else None
    most = max_output_tokens if max_output_tokens is not None else own_most
    if most is None:
        most = policy.default_max_output_tokens
    elif own_most is not None:
        most = min(most, own_most)
    expected = min(most, EXPECTED_OUTPUT_TOKENS)
    if price is not None and not amounts:
        return Estimate(input_tokens, most, expected, None, None, pricing.is_free(price))
    if price is not None:
        most_nanos = pricing.upper_bound_nanos(price, input_tokens, most)
        if usual_nanos is None:
            usual_nanos = pricing.upper_bound_nanos(price, input_tokens, expected)
        return Estimate(
            input_tokens, most, expected, most_nanos, min(usual_nanos, most_nanos), pricing.is_free(price)
        )
    return Estimate(input_tokens, most, expected, None, None, False)


# A call of no model: it passes while something remains, and holds nothing.
NOTHING = Estimate(0, 0, 0, 0, 0, False)


def applicable(subject: Subject, tags: Mapping[str, str]) -> list[Budget]:
    """Return the budgets that count a call: those of its principal, and those of its tags (S1, S2)."""
    return [
        budget
        for budget in subject.budgets
        if budget.scope.kind is not ScopeKind.TAG
        or tags.get(budget.scope.tag_key or "") == budget.scope.tag_value
    ]


def refuse_too_many(budgets: Sequence[Budget]) -> None:
    """Raise WRONG_STATE for a Check that more than 32 budgets match; a Deduct is never refused."""
    if len(budgets) > MAX_BUDGETS_PER_CALL:
        raise BursarError(
            Reason.WRONG_STATE, f"{len(budgets)} budgets match this call; at most {MAX_BUDGETS_PER_CALL} can"
        )


def general_denials(budgets: Sequence[Budget], policy: Policy, *, priced: bool) -> list[Denial]:
    """Return what speaks against a call before any amount is compared: no budget (C10), or no price (C19)."""
    denials = []
    if policy.no_budget is NoBudgetPolicy.DENY and not any(
        budget.scope.kind not in (ScopeKind.GLOBAL, ScopeKind.TAG) for budget in budgets
    ):
        denials.append(
            Denial("NO_BUDGET", "permission", "no budget applies to this principal, and one is required")
        )
    if not priced and policy.on_missing is PricingOnMissing.BLOCK:
        denials.append(
            Denial("MODEL_UNPRICED", "permission", "this model has no price, and unpriced models are blocked")
        )
    return denials


def verdict_of(
    budget: Budget,
    balance: BalanceState,
    estimate: Estimate,
    grants: Sequence[GrantState],
    *,
    readable: bool,
) -> Verdict:
    """Return what a budget says to a call (S10), before SOFT and shadow are considered (S3).

    `grants` are the user's active ones; they count for budgets of scope user in US dollars only (S6, S7).
    """
    if budget.counts_tokens:
        amount, spent, held = estimate.tokens(budget.admission), balance.spent_tokens, balance.held_tokens
        extra_free, extra_held, free = 0, 0, False
    else:
        nanos = estimate.nanos(budget.admission)
        if nanos is None:
            denial = Denial(
                "MODEL_UNPRICED", "permission", "this model has no price, so its cost cannot be held"
            )
            return Verdict(budget, balance.key, denial, 0, 0)
        with_grants = budget.scope.kind is ScopeKind.USER
        amount, spent, held, free = nanos, balance.spent_nanos, balance.held_nanos, estimate.free
        extra_free = sum(grant.free_nanos for grant in grants) if with_grants else 0
        extra_held = sum(grant.held_nanos for grant in grants) if with_grants else 0
    remaining = max(0, budget.limit - spent - held) + extra_free
    without_holds = max(0, budget.limit - spent) + extra_free + extra_held
    others = held + extra_held
    alone = min(amount, without_holds) if budget.admission is Admission.EXPECTED else amount
    if others == 0 and remaining > 0:
        amount = alone
    hold = (0, amount) if budget.counts_tokens else (amount, 0)
    if free or remaining >= max(1, amount):
        return Verdict(budget, balance.key, None, *hold)
    waits = others > 0 and without_holds >= max(1, alone)
    return Verdict(
        budget, balance.key, _budget_denial(budget, balance, remaining, readable=readable, held=waits), *hold
    )


def fitting_output_tokens(
    price: Price,
    estimate: Estimate,
    verdicts: Sequence[Verdict],
    standing: Sequence[tuple[BalanceState, int]],
) -> int | None:
    """Return the most output tokens that every budget with `fit_output` can bear once other calls' holds are gone.

    `standing` are the verdicts' balances, and what grants leave and hold beside each. None where the call fits as it
    is, where no such budget is in its way, or where what fits is not worth an answer.
    """
    fitting = estimate.most_output_tokens
    for verdict, (balance, of_grants) in zip(verdicts, standing, strict=True):
        budget = verdict.budget
        if not (budget.fit_output and budget.admission is Admission.UPPER_BOUND and binds(budget)):
            continue
        if budget.counts_tokens:
            fitting = min(fitting, budget.limit - balance.spent_tokens - estimate.input_tokens)
            continue
        room = max(0, budget.limit - balance.spent_nanos) + of_grants
        fitting = min(fitting, pricing.affordable_output_tokens(price, estimate.input_tokens, fitting, room))
    if fitting >= estimate.most_output_tokens or fitting < FEWEST_OUTPUT_TOKENS:
        return None
    return fitting


def fitted_output_tokens(
    price: Price, estimate: Estimate, legs: Iterable[tuple[Budget, int, int]]
) -> int | None:
    """Return how many output tokens a hold's legs (budget, nanos, tokens) pay for; None where that is all it asked for."""
    fitted = estimate.most_output_tokens
    for budget, nanos, tokens in legs:
        if budget.admission is not Admission.UPPER_BOUND:
            continue
        if tokens:
            fitted = min(fitted, tokens - estimate.input_tokens)
        elif nanos:
            fitted = min(
                fitted, pricing.affordable_output_tokens(price, estimate.input_tokens, fitted, nanos)
            )
    return fitted if FEWEST_OUTPUT_TOKENS <= fitted < estimate.most_output_tokens else None


def guard_output_tokens(
    price: Price | None,
    input_tokens: int,
    max_output_tokens: int | None,
    states: Iterable[tuple[Budget, BalanceState]],
    grants: Sequence[GrantState],
) -> int | None:
    """Return the most output tokens that the budgets which guard streams can bear, next to what other calls hold.

    `states` are the call's budgets before its own hold, `grants` the user's active ones. None where none of them is in
    the way of what the call may generate; a model without a price cannot be guarded in US dollars.
    """
    least = MOST_GUARDED_TOKENS if max_output_tokens is None else max_output_tokens
    guarded = None
    for budget, balance in states:
        if not (budget.guard_streams and binds(budget)):
            continue
        if budget.counts_tokens:
            bearable = budget.limit - balance.spent_tokens - balance.held_tokens - input_tokens
        elif price is None:
            continue
        else:
            room = max(0, budget.limit - balance.spent_nanos - balance.held_nanos)
            if budget.scope.kind is ScopeKind.USER:
                room += sum(grant.free_nanos for grant in grants)
            bearable = pricing.affordable_output_tokens(price, input_tokens, least, room)
        if bearable < least:
            guarded = least = max(0, bearable)
    return guarded


def _budget_denial(
    budget: Budget, balance: BalanceState, remaining: int, *, readable: bool, held: bool
) -> Denial:
    scope = budget.scope.kind.value.lower()
    reset = balance.period_end if balance.period_end.year < 9999 else None
    whose = "operator limit" if budget.scope.kind is ScopeKind.GLOBAL else f"{scope} budget"
    figures = ""
    if readable:
        if budget.counts_tokens:
            figures = f": {balance.spent_tokens} of {budget.limit} tokens spent"
        else:
            figures = f": ${usd_text(balance.spent_nanos)} of ${usd_text(budget.limit)} spent"
    until = f"; resets at {reset.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}" if reset else ""
    shown = readable and not budget.counts_tokens
    shown_tokens = readable and budget.counts_tokens
    return Denial(
        "BUDGET_HELD" if held else "BUDGET_CAP_HARD",
        "rate_limit" if held else "insufficient_budget",
        f"budget held by calls in flight ({whose}{figures})"
        if held
        else f"budget exhausted ({whose}{figures}){until}",
        scope=scope,
        budget_id=budget.budget_id if readable else None,
        limit_nanos=budget.limit if shown else None,
        spent_nanos=balance.spent_nanos if shown else None,
        limit_tokens=budget.limit if shown_tokens else None,
        spent_tokens=balance.spent_tokens if shown_tokens else None,
        reset_time=reset,
        retryable=held,
        remaining=remaining,
    )


def queued_denial(budget: Budget, balance: BalanceState) -> Denial:
    """Return the denial of a call that others have to be served before."""
    return _budget_denial(budget, balance, 0, readable=False, held=True)


def binds(budget: Budget) -> bool:
    """Whether a budget can deny: HARD, and not a shadow (S3)."""
    return budget.enforcement is Enforcement.HARD and not budget.shadow


def strictest_first(denials: Iterable[Denial]) -> tuple[Denial, ...]:
    """Return denials in order: smallest remaining amount, then longest time to reset (S2)."""
    never = datetime.max.replace(tzinfo=UTC)
    return tuple(
        sorted(
            denials,
            key=lambda denial: (denial.remaining, -(denial.reset_time or never).timestamp(), denial.scope),
        )
    )


def tightest_nanos(states: Iterable[tuple[Budget, BalanceState]], grants: Sequence[GrantState]) -> int | None:
    """Return what the tightest budget leaves, never below 0 (S22); None where no budget in US dollars applies.

    Global budgets are left out: they are the operator's, and not shown to tenants (C08).
    """
    of_grants = sum(grant.free_nanos for grant in grants)
    amounts = [
        max(0, budget.limit - balance.spent_nanos - balance.held_nanos)
        + (of_grants if budget.scope.kind is ScopeKind.USER else 0)
        for budget, balance in states
        if budget.limit_nanos is not None and not budget.shadow and budget.scope.kind is not ScopeKind.GLOBAL
    ]
    return min(amounts) if amounts else None


def strictest_word(budgets: Iterable[Budget]) -> OnUnreachable | None:
    """Return what the budgets of a call say to it while a sidecar cannot ask; None leaves it to the sidecar."""
    said = {budget.on_unreachable for budget in budgets if binds(budget)}
    return next((word for word in _WORDS if word in said), None)


def left_of(budget: Budget, balance: BalanceState, grants: Sequence[GrantState]) -> BudgetLeft:
    """Return what a budget leaves for a call, with the grants beside a budget of scope user."""
    if budget.counts_tokens:
        tokens = max(0, budget.limit - balance.spent_tokens - balance.held_tokens)
        return BudgetLeft(budget.budget_id, tokens, in_tokens=True)
    of_grants = sum(grant.free_nanos for grant in grants) if budget.scope.kind is ScopeKind.USER else 0
    nanos = max(0, budget.limit - balance.spent_nanos - balance.held_nanos) + of_grants
    return BudgetLeft(budget.budget_id, nanos, in_tokens=False)


def minute_of(instant: datetime) -> datetime:
    """Return the start of a rate window (F093)."""
    return instant.replace(second=0, microsecond=0)
