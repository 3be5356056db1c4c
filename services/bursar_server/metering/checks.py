"""A Check against the books of a batch: the decision, and the hold of what is allowed."""

from collections.abc import Sequence
from datetime import timedelta

from bursar_server.audit.model import AuditEvent
from bursar_server.budgets.model import Admission, Budget, LeaseExpiry, OnUnreachable, ScopeKind
from bursar_server.budgets.rules import readable
from bursar_server.kit.errors import BursarError, Reason
from bursar_server.kit.money import usd_text
from bursar_server.ledger.model import Attribution, BalanceKey, BalanceState, GrantState, Hold, Leg, Source
from bursar_server.ledger.rules import allocate
from bursar_server.metering import rules
from bursar_server.metering.context import BatchContext
from bursar_server.metering.model import (
    BudgetLeft,
    CheckAnswer,
    CheckCall,
    Denial,
    NewUser,
    Outlook,
    Problem,
    Subject,
    Waiting,
)
from bursar_server.metering.rules import Estimate, Verdict
from bursar_server.metering.waits import PLACE_LASTS

# How long a caller that cannot wait is told to stay away.
RETRY_AFTER_MS = 1_000


def evaluate_check(call: CheckCall, context: BatchContext) -> CheckAnswer | NewUser | Waiting:
    """Decide a call (S1–S11), and open its hold if it is allowed.

    Raises BursarError REQUEST_ID_MISPLACED or REQUEST_ID_REUSED (S16), WRONG_STATE where too many budgets match.
    """
    answer: CheckAnswer | NewUser | Waiting | None = None
    try:
        answer = _evaluate(call, context)
    finally:
        # Whatever became of it, but for another wait: it is in nobody's way any more.
        if not isinstance(answer, Waiting):
            context.waits.leave([(*budget, call.request_id) for budget in call.waits_for])
    return answer


def _evaluate(call: CheckCall, context: BatchContext) -> CheckAnswer | NewUser | Waiting:
    subject = context.subjects[call.principal]
    rules.check_request_id(call.request_id, context.now)
    context.require_month(call.request_id)
    if call.allowed_tenants is not None and subject.tenant_id not in call.allowed_tenants:
        return _denied(call, [rules.problem_denial(Problem.KEY_UNKNOWN)], None)
    known = _known(call, subject, context)
    if known is not None:
        return known
    if subject.problem is not None:
        return _denied(call, [rules.problem_denial(subject.problem)], subject)
    if subject.new_email:
        return NewUser(subject.tenant_id, subject.new_email)
    tags = {**(subject.default_tags or {}), **call.tags}
    budgets = rules.applicable(subject, tags)
    rules.refuse_too_many(budgets)
    keys = [context.balance_key(budget, context.now) for budget in budgets]
    context.books.require(keys, ((subject.tenant_id, grant_id) for grant_id in subject.grant_ids))
    if call.wait_since is None:
        limited = _count_request(subject, context)
        if limited is not None:
            return _denied(call, [limited], subject)
    return _decide(call, subject, context, tags, budgets, keys)


def _known(call: CheckCall, subject: Subject, context: BatchContext) -> CheckAnswer | None:
    """Return the first answer to a call that was asked about before (S16), or that was released (S17)."""
    key = (subject.tenant_id, call.request_id)
    hold = context.books.holds.get(key)
    if hold is not None and hold.check_sha256 != call.body_sha256:
        raise BursarError(
            Reason.REQUEST_ID_REUSED, "request_id: this id came before with other content", field="request_id"
        )
    revisions = context.books.revisions(key)
    if hold is not None and revisions:
        # The call was ended in another process while its Check was under way: only the hold is left of it.
        context.books.close(hold)
    elif hold is not None:
        legs = [(context.books.budget_of(leg.key[1]), context.books.balance(leg.key)) for leg in hold.legs]
        states = [(budget, balance) for budget, balance in legs if budget is not None]
        grants = [context.books.grant(leg.key) for leg in hold.grant_legs]
        return CheckAnswer(
            call.request_id,
            (),
            rules.tightest_nanos(states, grants),
            hold.held_nanos,
            hold.lease_expire_time,
            subject,
            duplicate=True,
            fit_output_tokens=_fitted_again(call, subject, context, hold),
        )
    if not revisions:
        return None
    if revisions[-1].source is Source.RELEASE or revisions[-1].takes_back:
        return _denied(call, [rules.released_denial()], subject, duplicate=True)
    return CheckAnswer(call.request_id, (), None, 0, None, subject, duplicate=True)


def _fitted_again(call: CheckCall, subject: Subject, context: BatchContext, hold: Hold) -> int | None:
    """Return the most output tokens that the first answer said, from what is held; None where it said none."""
    if not call.can_fit_output:
        return None
    price = context.price_of(subject.tenant_id, call.provider, call.model, "", hold.check_time, False)
    if price is None:
        return None
    of_grants = sum(leg.nanos for leg in hold.grant_legs)
    legs = [
        (budget, leg.nanos + (of_grants if leg.user_scoped else 0), leg.tokens)
        for leg in hold.legs
        if (budget := context.books.budget_of(leg.key[1])) is not None
    ]
    estimate = rules.estimate_of(price, context.policy, call.input_tokens_estimate, call.max_output_tokens)
    return rules.fitted_output_tokens(price, estimate, legs)


def _count_request(subject: Subject, context: BatchContext) -> Denial | None:
    """Count a request in its user's minute, or return the denial of one too many (F092, F093)."""
    if subject.user_id is None or subject.rate_limit <= 0:
        return None
    window = rules.minute_of(context.now)
    key = (subject.tenant_id, subject.user_id, window)
    requests = context.rates.requests.get(key, 0)
    if requests >= subject.rate_limit:
        return rules.rate_denial(subject.rate_limit, window)
    context.rates.requests[key] = requests + 1
    context.rates.changed.add(key)
    return None


def _usual_nanos(
    call: CheckCall, subject: Subject, context: BatchContext, budgets: Sequence[Budget]
) -> int | None:
    """Return what such calls usually cost, where a budget asks for it (S11)."""
    if all(budget.admission is not Admission.EXPECTED for budget in budgets):
        return None
    return context.usual_nanos(subject.tenant_id, subject.api_key_id, call.model)


def _uncount_request(call: CheckCall, subject: Subject, context: BatchContext) -> None:
    """Take a request out of its user's minute: it will be asked again, and counts then."""
    key = (subject.tenant_id, subject.user_id, rules.minute_of(context.now))
    if call.wait_since is None and subject.user_id is not None and key in context.rates.changed:
        context.rates.requests[key[0], subject.user_id, key[2]] -= 1


def _decide(
    call: CheckCall,
    subject: Subject,
    context: BatchContext,
    tags: dict[str, str],
    budgets: Sequence[Budget],
    keys: Sequence[BalanceKey],
) -> CheckAnswer | Waiting:
    price = context.price_of(subject.tenant_id, call.provider, call.model, "", context.now, False)
    plain = not call.model and not call.input_tokens_estimate
    holding = any(budget.admission is not Admission.ANY_REMAINING for budget in budgets)
    estimate = (
        rules.NOTHING
        if plain
        else rules.estimate_of(
            price,
            context.policy,
            call.input_tokens_estimate,
            call.max_output_tokens,
            _usual_nanos(call, subject, context, budgets) if holding else None,
            amounts=holding,
        )
    )
    grants = context.active_grants(subject, context.now)
    verdicts = _verdicts(budgets, keys, subject, context, estimate, grants)
    fitted = None
    if call.can_fit_output and price is not None and any(verdict.denial for verdict in verdicts):
        standing = [_standing(verdict, context, grants) for verdict in verdicts]
        fitted = rules.fitting_output_tokens(price, estimate, verdicts, standing)
        if fitted is not None:
            estimate = rules.estimate_of(price, context.policy, call.input_tokens_estimate, fitted)
            verdicts = _verdicts(budgets, keys, subject, context, estimate, grants)
    denials = rules.general_denials(budgets, context.policy, priced=plain or price is not None)
    denials += [verdict.denial for verdict in verdicts if verdict.denial and rules.binds(verdict.budget)]
    in_the_way = [v for v in verdicts if v.denial and rules.binds(v.budget)] + _queued(
        call, context, verdicts
    )
    if denials or in_the_way:
        if all(denial.code == "BUDGET_HELD" for denial in denials):
            return _held(call, subject, context, in_the_way)
        _audit_block(call, subject, context, verdicts)
        outlook = _outlook(call, subject, context, verdicts, grants)
        return _denied(call, denials, subject)._replace(outlook=outlook)
    for verdict in verdicts:
        if verdict.denial and verdict.budget.shadow:
            balance = context.books.balances[verdict.key]
            balance.shadow_denials += 1
            balance.changed = True
    guard = None
    if any(budget.guard_streams for budget in budgets):
        states = [(verdict.budget, context.books.balances[verdict.key]) for verdict in verdicts]
        guard = rules.guard_output_tokens(
            price, call.input_tokens_estimate, call.max_output_tokens, states, grants
        )
    hold = _hold(call, subject, context, estimate, verdicts, grants, tags)
    context.books.open(hold)
    states = [(verdict.budget, context.books.balances[verdict.key]) for verdict in verdicts]
    return CheckAnswer(
        call.request_id,
        (),
        rules.tightest_nanos(states, grants),
        hold.held_nanos,
        hold.lease_expire_time,
        subject,
        fit_output_tokens=fitted,
        guard_output_tokens=guard,
        outlook=_outlook(call, subject, context, verdicts, grants),
    )


def _outlook(
    call: CheckCall,
    subject: Subject,
    context: BatchContext,
    verdicts: Sequence[Verdict],
    grants: Sequence[GrantState],
) -> Outlook | None:
    """Return what the sidecar goes by while it cannot ask; None where there is nothing to say."""
    word = rules.strictest_word(verdict.budget for verdict in verdicts)
    if word is None and not call.with_budgets:
        return None
    left: tuple[BudgetLeft, ...] = ()
    if call.with_budgets or word is OnUnreachable.LAST_KNOWN_GOOD:
        left = tuple(
            rules.left_of(verdict.budget, context.books.balances[verdict.key], grants)
            for verdict in verdicts
            if rules.binds(verdict.budget)
        )
    by_tags = any(budget.scope.kind is ScopeKind.TAG for budget in subject.budgets)
    return Outlook(word, left, by_tags)


def _verdicts(
    budgets: Sequence[Budget],
    keys: Sequence[BalanceKey],
    subject: Subject,
    context: BatchContext,
    estimate: Estimate,
    grants: Sequence[GrantState],
) -> list[Verdict]:
    return [
        rules.verdict_of(
            budget,
            context.books.balances[key],
            estimate,
            grants,
            readable=readable(
                budget, user_id=subject.user_id, api_key_id=subject.api_key_id, role=None, group_ids=()
            ),
        )
        for budget, key in zip(budgets, keys, strict=True)
    ]


def _standing(
    verdict: Verdict, context: BatchContext, grants: Sequence[GrantState]
) -> tuple[BalanceState, int]:
    """Return a budget's balance, and what the user's grants leave and hold beside it."""
    of_user = verdict.budget.scope.kind is ScopeKind.USER
    of_grants = sum(grant.free_nanos + grant.held_nanos for grant in grants) if of_user else 0
    return context.books.balances[verdict.key], of_grants


def _queued(call: CheckCall, context: BatchContext, verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Return the verdicts that allow a call for which others have waited longer; one that holds nothing passes them by."""
    since = call.wait_since or context.now
    return [
        verdict
        for verdict in verdicts
        if verdict.denial is None
        and (verdict.hold_nanos or verdict.hold_tokens)
        and rules.binds(verdict.budget)
        and context.waits.is_behind(verdict.budget.budget_id, since, call.request_id)
    ]


def _held(
    call: CheckCall, subject: Subject, context: BatchContext, in_the_way: Sequence[Verdict]
) -> CheckAnswer | Waiting:
    """Let a call wait for other calls' holds where it may, else say that they are in the way (S10).

    It queues for the budgets that are in its way now, and for no other: it leaves the queues of those that were.
    """
    denials = [
        verdict.denial or rules.queued_denial(verdict.budget, context.books.balances[verdict.key])
        for verdict in in_the_way
    ]
    answer = _denied(call, denials, subject)._replace(retry_after_ms=RETRY_AFTER_MS)
    since = call.wait_since or context.now
    until = since + timedelta(milliseconds=min(verdict.budget.max_wait_ms for verdict in in_the_way))
    if not call.may_wait or until <= context.now:
        _uncount_request(call, subject, context)
        return answer
    keys = [(verdict.budget.tenant_id, verdict.budget.budget_id) for verdict in in_the_way]
    for key in keys:
        context.waits.join((*key, call.request_id), since, context.now + PLACE_LASTS)
    context.waits.leave([(*key, call.request_id) for key in call.waits_for if key not in keys])
    return Waiting(answer, since, until, tuple(keys), keys[0][1])


def _hold(
    call: CheckCall,
    subject: Subject,
    context: BatchContext,
    estimate: Estimate,
    verdicts: Sequence[Verdict],
    grants: Sequence[GrantState],
    tags: dict[str, str],
) -> Hold:
    amounts = [
        (
            Leg(verdict.key, verdict.budget.scope.kind is ScopeKind.USER),
            verdict.hold_nanos,
            verdict.hold_tokens,
        )
        for verdict in verdicts
    ]
    legs, grant_legs = allocate(amounts, grants)
    attribution = Attribution(
        subject.tenant_id, subject.api_key_id, subject.user_id, subject.masked_key, subject.service_account,
        subject.group_ids, tags, call.session_id,
    )  # fmt: skip
    # A call is released without charge only where every budget that counts it says so (S18).
    release = bool(verdicts) and all(v.budget.on_lease_expiry is LeaseExpiry.RELEASE for v in verdicts)
    return Hold(
        call.request_id,
        call.body_sha256,
        context.now,
        context.now + timedelta(milliseconds=context.policy.hold_lease_ms),
        attribution,
        call.provider,
        call.model,
        estimate.input_tokens,
        estimate.expected_output_tokens,
        release,
        legs,
        grant_legs,
    )


def _denied(
    call: CheckCall, denials: Sequence[Denial], subject: Subject | None, *, duplicate: bool = False
) -> CheckAnswer:
    ordered = rules.strictest_first(denials)
    remaining = 0 if any(denial.code == "BUDGET_CAP_HARD" for denial in ordered) else None
    return CheckAnswer(call.request_id, ordered, remaining, 0, None, subject, duplicate=duplicate)


def _audit_block(
    call: CheckCall, subject: Subject, context: BatchContext, verdicts: Sequence[Verdict]
) -> None:
    """Note a request that a spent budget blocked: one event for each such request (F084, C07)."""
    spent = [
        verdict.budget
        for verdict in verdicts
        if verdict.denial and verdict.denial.code == "BUDGET_CAP_HARD" and rules.binds(verdict.budget)
    ]
    if not spent:
        return
    details = {
        "request_id": str(call.request_id),
        "provider": call.provider,
        "model": call.model,
        "budgets": [
            {"scope": budget.scope.kind.value.lower()}
            | (
                {}
                if budget.scope.kind is ScopeKind.GLOBAL
                else {"budget_id": str(budget.budget_id), "limit": _limit_text(budget)}
            )
            for budget in spent
        ],
    }
    first = next((b for b in spent if b.scope.kind is not ScopeKind.GLOBAL), None)
    resource = f"budget/{first.budget_id}" if first else "budget/operator"
    context.audit.append(
        (
            subject.tenant_id,
            AuditEvent("BUDGET_CAP_HARD", subject.actor, resource, context.now, subject.user_id, details),
        )
    )


def _limit_text(budget: Budget) -> str:
    return f"{budget.limit} tokens" if budget.counts_tokens else f"{usd_text(budget.limit)} USD"
