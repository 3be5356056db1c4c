"""What ends a call, against the books of a batch: Deduct, release and the lease's expiry."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from bursar_server.audit.model import AuditEvent
from bursar_server.budgets.model import OnUnreachable, ScopeKind
from bursar_server.kit import ids
from bursar_server.kit.errors import BursarError, Reason, invalid
from bursar_server.kit.money import usd_text
from bursar_server.ledger.model import (
    Account,
    Attribution,
    BalanceKey,
    Charge,
    EntryKind,
    GrantState,
    Hold,
    PastRevision,
    PostingLine,
    PricedItem,
    Record,
    Source,
)
from bursar_server.metering import rules
from bursar_server.metering.context import BatchContext
from bursar_server.metering.model import (
    DeductAnswer,
    DeductCall,
    DeductItem,
    ExpireCall,
    PrincipalRef,
    Problem,
    RefusedCalls,
    ReleaseAnswer,
    ReleaseCall,
    Subject,
)
from bursar_server.pricing.model import CallCost, Price, Usage
from bursar_server.pricing.rules import PROVIDER_COST, call_cost

# What one call can cost, in nanos: a million US dollars. Sums of very many such calls still fit 64 bits.
MOST_NANOS = 10**15


def evaluate_deduct(call: DeductCall, request_id: UUID, context: BatchContext) -> DeductAnswer:
    """Charge a call and remove its hold (S14–S16); never refused for lack of money.

    Raises BursarError REQUEST_ID_REUSED, REQUEST_TOO_OLD or PRINCIPAL_UNKNOWN.
    """
    tenant_id, subject = _tenant_of(call, request_id, context)
    hold = context.hold_of(request_id, tenant_id)
    past = context.books.revisions((tenant_id, request_id))
    first = next(
        (past_one for past_one in past if past_one.source is Source.DEDUCT and not past_one.takes_back), None
    )
    if first is not None:
        if hold is not None and first.body_sha256 == call.body_sha256:
            # The Check and the Deduct crossed in two processes: the hold stands for a call that is settled.
            context.books.close(hold)
        return _repeat(call, request_id, past, first, context)
    fired_before = len(context.books.fired)
    if hold is not None:
        record = context.books.settle(
            hold, _charge(call, hold.check_time, tenant_id, hold.provider, hold.model, context)
        )
        postings = record.postings
        cost = record.cost
    elif past and (past[0].source is Source.EXPIRY or past[0].postings):
        ended = past[0].taken_back() if past[-1].takes_back else past[0]
        charge = _charge(call, ended.usage_time, tenant_id, ended.provider, ended.model, context)
        record, postings = context.books.adjust(request_id, ended, charge)
        cost = charge.cost
    else:
        record = _charge_unheld(call, request_id, tenant_id, subject, context)
        postings, cost = record.postings, record.cost
    fired = [threshold for _, threshold in context.books.fired[fired_before:]]
    _audit_soft_limits(context, fired_before)
    if call.degraded is not None:
        _audit_degraded(call.degraded, record, subject, context)
    return DeductAnswer(
        request_id,
        cost,
        postings,
        _remaining(postings, context),
        max(0, sum(revision.overage_nanos for revision in past) + record.overage_nanos),
        sum(revision.hold_shortfall_nanos for revision in past) + record.hold_shortfall_nanos,
        record.unpriced,
        record.unchecked,
        alerts=tuple(fired),
        record=record,
    )


def _tenant_of(
    call: DeductCall | ReleaseCall, request_id: UUID, context: BatchContext
) -> tuple[UUID, Subject]:
    """Return whose call it is: that of the principal named, else that of its hold or its record."""
    subject = context.subjects[call.principal]
    if call.principal.empty or subject.problem is Problem.KEY_UNKNOWN:
        owner = context.owner_of(request_id)
        if owner is not None:
            tenant_id = owner
            # Its tenant's budgets count it. One whose hold came to light just now has its legs instead.
            subject = context.subjects.get(PrincipalRef.of_tenant(owner), subject)
        elif call.principal.empty:
            tenant_id = subject.tenant_id
        else:
            raise BursarError(
                Reason.PRINCIPAL_UNKNOWN,
                "neither a hold nor api_key_sha256, user_id and tenant_id tell whose call this was",
            )
    else:
        tenant_id = subject.tenant_id
    if call.allowed_tenants is not None and tenant_id not in call.allowed_tenants:
        raise BursarError(Reason.PERMISSION_DENIED, "this token is not bound to the call's tenant")
    return tenant_id, subject


def _charge(
    call: DeductCall, at: datetime, tenant_id: UUID, provider: str, model: str, context: BatchContext
) -> Charge:
    """Price what a call consumed, at its start (S15)."""
    served_by = call.provider or provider
    priced = _priced(call, tenant_id, served_by, at, context)
    cost = call_cost([(item.usage, price) for item, price in priced], call.provider_cost_nanos)
    if cost.total_nanos > MOST_NANOS:
        raise invalid("items", "cost more than a ledger of 64 bits can add up")
    return Charge(
        Source.DEDUCT,
        EntryKind.CHARGE,
        call.body_sha256,
        served_by,
        call.outcome,
        model,
        tuple(
            PricedItem(item.model, item.service_tier, item.usage, price.price_id if price else None)
            for item, price in priced
        ),
        _item_costs([(item.usage, price) for item, price in priced], cost),
        cost,
        call.estimated,
        call.start_time,
        call.end_time,
        call.provider_cost_nanos,
    )


def _priced(
    call: DeductCall, tenant_id: UUID, provider: str, at: datetime, context: BatchContext
) -> list[tuple[DeductItem, Price | None]]:
    """Return each item with its price.

    A cost that the provider reports is the whole call's: the first item's price says whether it is what is charged.
    """

    def price_of(item: DeductItem, reported: bool) -> Price | None:
        return context.price_of(tenant_id, provider, item.model, item.service_tier, at, reported)

    if call.items and call.provider_cost_nanos is not None:
        whole = price_of(call.items[0], True)
        if whole is not None and PROVIDER_COST in whole.rates:
            return [(item, whole) for item in call.items]
    return [(item, price_of(item, False)) for item in call.items]


def _item_costs(priced: Sequence[tuple[Usage, Price | None]], cost: CallCost) -> tuple[CallCost, ...]:
    """Return the cost by item: the first bears what rounding leaves, so that the parts sum to the call's cost."""
    if not priced:
        return ()
    others = [call_cost([item]) for item in priced[1:]]
    first = CallCost(
        cost.input_nanos - sum(other.input_nanos for other in others),
        cost.output_nanos - sum(other.output_nanos for other in others),
        cost.other_nanos - sum(other.other_nanos for other in others),
    )
    return (first, *others)


def _charge_unheld(
    call: DeductCall, request_id: UUID, tenant_id: UUID, subject: Subject, context: BatchContext
) -> Record:
    """Charge a call that was denied, or never asked about, on what matches now; flagged unchecked (S14, S16)."""
    # An id is made when a call begins: where it does not say when it did, and where what it says cannot be (S4, S12).
    made = ids.time_of_uuid7(request_id) or context.now
    started = min(call.start_time or made, made + rules.OLDEST_CHECK)
    usage_time = min(context.now, max(started, context.months.start))
    tags = {**(subject.default_tags or {}), **call.tags}
    budgets = rules.applicable(subject, tags)
    legs = [
        (context.balance_key(budget, usage_time), budget.scope.kind is ScopeKind.USER) for budget in budgets
    ]
    context.books.require((key for key, _ in legs), ((tenant_id, grant_id) for grant_id in subject.grant_ids))
    model = call.items[0].model if call.items else ""
    charge = _charge(call, usage_time, tenant_id, call.provider, model, context)
    attribution = Attribution(
        tenant_id, subject.api_key_id, subject.user_id, subject.masked_key, subject.service_account,
        subject.group_ids, tags, call.session_id,
    )  # fmt: skip
    unchecked = charge._replace(unchecked=True)
    grants = context.active_grants(subject, usage_time)
    return context.books.charge_unheld(attribution, request_id, usage_time, unchecked, legs, grants)


def _repeat(
    call: DeductCall,
    request_id: UUID,
    past: Sequence[PastRevision],
    first: PastRevision,
    context: BatchContext,
) -> DeductAnswer:
    """Return the first answer again (S16): what all revisions of the call come to."""
    if first.body_sha256 != call.body_sha256:
        raise BursarError(
            Reason.REQUEST_ID_REUSED,
            "request_id: this call was deducted before with other content",
            field="request_id",
        )
    cost = CallCost(
        sum(revision.cost.input_nanos for revision in past),
        sum(revision.cost.output_nanos for revision in past),
        sum(revision.cost.other_nanos for revision in past),
    )
    totals: dict[tuple[Account, UUID, UUID, str], PostingLine] = {}
    for line in (line for revision in past for line in revision.postings):
        key = (line.account, line.tenant_id, line.account_id, line.period_key)
        was = totals.get(key)
        totals[key] = PostingLine(
            *key,
            line.user_scoped,
            line.nanos + (was.nanos if was else 0),
            line.tokens + (was.tokens if was else 0),
        )
    postings = tuple(totals.values())
    return DeductAnswer(
        request_id,
        cost,
        postings,
        _remaining(postings, context),
        max(0, sum(revision.overage_nanos for revision in past)),
        sum(revision.hold_shortfall_nanos for revision in past),
        first.unpriced,
        first.unchecked,
        duplicate=True,
    )


def _remaining(postings: Sequence[PostingLine], context: BatchContext) -> int | None:
    """Return what the tightest of the budgets that a call counted on leaves now."""
    states = []
    grants: list[GrantState] = []
    for line in postings:
        if line.account is Account.GRANT:
            grant = context.books.grants.get((line.tenant_id, line.account_id))
            if grant is not None and grant.active_at(context.now):
                grants.append(grant)
            continue
        key: BalanceKey = (line.tenant_id, line.account_id, line.period_key)
        budget = context.books.budget_of(line.account_id)
        balance = context.books.balances.get(key)
        if budget is not None and balance is not None:
            states.append((budget, balance))
    return rules.tightest_nanos(states, grants)


def _audit_soft_limits(context: BatchContext, start: int) -> None:
    """Note the soft limits that were reached: once in a period each (F083, F085)."""
    for budget, threshold in context.books.fired[start:]:
        if not threshold.soft_limit:
            continue
        spent = (
            f"{threshold.spent_tokens} tokens"
            if budget.counts_tokens
            else f"{usd_text(threshold.spent_nanos)} USD"
        )
        details = {
            "budget_id": str(budget.budget_id),
            "period_key": threshold.period_key,
            "soft_limit_pct": threshold.threshold_pct,
            "spent": spent,
        }
        event = AuditEvent(
            "BUDGET_CAP_SOFT",
            "system",
            f"budget/{budget.budget_id}",
            context.now,
            budget.scope.user_id,
            details,
        )
        context.audit.append((budget.tenant_id, event))


def _audit_degraded(policy: OnUnreachable, record: Record, subject: Subject, context: BatchContext) -> None:
    """Note a call that a sidecar let through by itself: one event for each such call."""
    tenant_id = record.attribution.tenant_id
    details = {
        "request_id": str(record.request_id),
        "policy": policy.value,
        "provider": record.provider,
        "model": record.model,
        "cost_usd": usd_text(record.cost.total_nanos),
    }
    user_id = record.attribution.user_id
    event = AuditEvent(
        "DEGRADED_ALLOW", subject.actor, f"call/{record.request_id}", context.now, user_id, details
    )
    context.audit.append((tenant_id, event))


def _audit_refused(call: ReleaseCall, refused: RefusedCalls, subject: Subject, context: BatchContext) -> None:
    """Note the calls of a principal that a sidecar refused by itself: one event for each outage of it."""
    times = {"first_time": refused.first_time, "last_time": refused.last_time}
    details = {
        "report_id": str(call.request_id),
        "policy": refused.policy.value,
        "calls": refused.calls,
        **{name: at.isoformat() for name, at in times.items() if at is not None},
    }
    resource = f"api_key/{subject.api_key_id}" if subject.api_key_id else f"user/{subject.user_id}"
    event = AuditEvent("DEGRADED_DENY", subject.actor, resource, context.now, subject.user_id, details)
    context.audit.append((subject.tenant_id, event))


def evaluate_release(call: ReleaseCall, context: BatchContext) -> ReleaseAnswer:
    """Remove the hold of a call that was never sent, and leave the mark that its late Check finds (S17).

    A report of refused calls leaves the mark of an id of its own, so that it is noted once however often it comes. What
    was refused to keys that nobody has, or of tenants that the sidecar's token is not for, is in no trail.
    """
    try:
        tenant_id, subject = _tenant_of(call, call.request_id, context)
    except BursarError:
        if call.refused is None:
            raise
        return ReleaseAnswer(False)
    hold = context.hold_of(call.request_id, tenant_id)
    known = hold is not None or bool(context.books.revisions((tenant_id, call.request_id)))
    made = ids.time_of_uuid7(call.request_id)
    if made is None or (made > context.now + rules.FARTHEST_AHEAD and not known):
        raise rules.misplaced(context.now)
    if made < context.months.start:
        raise BursarError(
            Reason.REQUEST_TOO_OLD, "request_id: older than the months that are kept", field="request_id"
        )
    if call.refused is not None and not known:
        _audit_refused(call, call.refused, subject, context)
    attribution = hold.attribution if hold else Attribution(
        tenant_id, subject.api_key_id, subject.user_id, subject.masked_key, subject.service_account,
        subject.group_ids, {}, "",
    )  # fmt: skip
    return ReleaseAnswer(context.books.release(attribution, call.request_id, hold.provider if hold else ""))


def evaluate_expiry(call: ExpireCall, context: BatchContext) -> ReleaseAnswer:
    """Charge the estimate of a call whose lease has ended, or release it where its budgets say so (S18)."""
    hold = context.hold_of(call.request_id, call.tenant_id)
    if hold is None or hold.lease_expire_time > context.now:
        return ReleaseAnswer(False)
    if context.books.revisions((call.tenant_id, call.request_id)):
        # The call was ended in another process while its Check was under way: only the hold is left of it.
        context.books.close(hold)
        return ReleaseAnswer(True)
    if hold.release_on_expiry:
        return ReleaseAnswer(
            context.books.release(hold.attribution, call.request_id, hold.provider, lease_expired=True)
        )
    start = len(context.books.fired)
    context.books.settle(hold, _estimate(hold, context))
    _audit_soft_limits(context, start)
    return ReleaseAnswer(True)


def _estimate(hold: Hold, context: BatchContext) -> Charge:
    usage = Usage(input_tokens=hold.estimate_input_tokens, output_tokens=hold.estimate_output_tokens)
    price = context.price_of(
        hold.attribution.tenant_id, hold.provider, hold.model, "", hold.check_time, False
    )
    cost = call_cost([(usage, price)])
    item = PricedItem(hold.model, "", usage, price.price_id if price else None)
    return Charge(
        Source.EXPIRY, EntryKind.EXPIRY, "", hold.provider, "PARTIAL", hold.model, (item,), (cost,), cost, estimated=True
    )  # fmt: skip
