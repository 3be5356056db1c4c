"""The arithmetic of the ledger: who bears what of a call. Pure functions over the locked state; amounts in nanos and tokens."""

from collections.abc import Sequence

from bursar_server.budgets.model import Budget
from bursar_server.ledger.model import (
    Account,
    BalanceKey,
    BalanceState,
    Charge,
    GrantKey,
    GrantLeg,
    GrantState,
    Leg,
    PostingLine,
    PricedItem,
)
from bursar_server.pricing.model import CallCost, Usage


def waterfall(amount_nanos: int, available_nanos: Sequence[int]) -> list[int]:
    """Return how much of an amount each source bears, in order, each up to what it has (S6, F076–F078)."""
    parts = []
    rest = amount_nanos
    for available in available_nanos:
        part = min(rest, max(0, available))
        parts.append(part)
        rest -= part
    return parts


def in_waterfall_order(grants: Sequence[GrantState]) -> list[GrantState]:
    """Return grants as they are spent: earliest expiry first, ties by creation (S6, C12)."""
    return sorted(grants, key=lambda grant: (grant.expires_at, grant.create_time, grant.key[1]))


def drawable_nanos(grant: GrantState, own_nanos: int) -> int:
    """Return what a call may draw on a grant: what is free, and the part that is its own already.

    `own_nanos` is held for the call, or was charged for it before. Of a revoked grant only that part is left (S7, S8).
    """
    free = grant.amount_nanos - grant.spent_nanos - grant.held_nanos + own_nanos
    return max(0, min(free, own_nanos) if grant.revoked else free)


def allocate(
    amounts: Sequence[tuple[Leg, int, int]], grants: Sequence[GrantState]
) -> tuple[tuple[Leg, ...], tuple[GrantLeg, ...]]:
    """Return the legs of a new hold: grants first, then what is left of each budget's amount (S6, S9).

    `amounts` are empty legs with the nanos and tokens to hold on each; `grants` are those active now, in waterfall
    order. Budgets of scope user share the grants: each holds only what its amount exceeds them by.
    """
    of_user = max((nanos for leg, nanos, _ in amounts if leg.user_scoped), default=0)
    parts = waterfall(of_user, [grant.free_nanos for grant in grants])
    on_grants = sum(parts)
    legs = tuple(
        Leg(leg.key, leg.user_scoped, max(0, nanos - on_grants) if leg.user_scoped else nanos, tokens)
        for leg, nanos, tokens in amounts
    )
    return legs, tuple(GrantLeg(grant.key, part) for grant, part in zip(grants, parts, strict=True))


def split_cost(
    cost_nanos: int,
    tokens: int,
    legs: Sequence[tuple[BalanceKey, bool]],
    drawable: Sequence[tuple[GrantKey, int]],
) -> tuple[PostingLine, ...]:
    """Return what each grant and budget bears of a call's cost (S6, S14).

    Grants come first, in the order given; each budget of scope user bears what they leave, every other budget the full
    cost. Lines of 0 are kept. Tokens count in full on every budget.
    """
    parts = waterfall(cost_nanos, [nanos for _, nanos in drawable])
    rest = cost_nanos - sum(parts)
    of_grants = [
        PostingLine(Account.GRANT, tenant_id, grant_id, "", True, part, 0)
        for ((tenant_id, grant_id), _), part in zip(drawable, parts, strict=True)
    ]
    of_budgets = [
        PostingLine(
            Account.BUDGET,
            tenant_id,
            budget_id,
            period_key,
            user_scoped,
            rest if user_scoped else cost_nanos,
            tokens,
        )
        for (tenant_id, budget_id, period_key), user_scoped in legs
    ]
    return (*of_grants, *of_budgets)


def difference(new: Sequence[PostingLine], old: Sequence[PostingLine]) -> tuple[PostingLine, ...]:
    """Return the signed lines that lead from one charge of a call to another; lines of 0 are kept."""
    before = {(line.account, line.tenant_id, line.account_id, line.period_key): line for line in old}
    lines = []
    for line in new:
        was = before.get((line.account, line.tenant_id, line.account_id, line.period_key))
        lines.append(
            PostingLine(
                line.account,
                line.tenant_id,
                line.account_id,
                line.period_key,
                line.user_scoped,
                line.nanos - (was.nanos if was else 0),
                line.tokens - (was.tokens if was else 0),
            )
        )
    return tuple(lines)


def overage_nanos(limit_nanos: int, spent_before: int, spent_after: int) -> int:
    """Return the part of a posting that lies above the limit (S14); negative where an adjustment takes it back."""
    return max(0, spent_after - limit_nanos) - max(0, spent_before - limit_nanos)


def shortfall_nanos(
    postings: Sequence[PostingLine], legs: Sequence[Leg], grant_legs: Sequence[GrantLeg]
) -> int:
    """Return by how much the cost exceeds what was held, the most of any leg that held an amount (S14)."""
    held_on_grants = sum(leg.nanos for leg in grant_legs)
    if not held_on_grants and not any(leg.nanos for leg in legs):
        return 0
    held = {leg.key: (leg.nanos, leg.user_scoped) for leg in legs}
    on_grants = sum(line.nanos for line in postings if line.account is Account.GRANT)
    worst = 0
    for line in postings:
        if line.account is not Account.BUDGET:
            continue
        nanos, user_scoped = held.get((line.tenant_id, line.account_id, line.period_key), (0, False))
        of_grants, borne = (held_on_grants, line.nanos + on_grants) if user_scoped else (0, line.nanos)
        if nanos + of_grants > 0:
            worst = max(worst, borne - nanos - of_grants)
    return worst


def reached_thresholds(budget: Budget, balance: BalanceState) -> list[int]:
    """Return the thresholds that spending has reached and that have not fired in this period, ascending (S21).

    The soft limit is one of them; where it coincides with a threshold it is there once.
    """
    spent = balance.spent_tokens if budget.counts_tokens else balance.spent_nanos
    if spent <= 0:
        return []
    thresholds = set(budget.alert_thresholds_pct)
    if budget.soft_limit_pct is not None:
        thresholds.add(budget.soft_limit_pct)
    return [
        pct for pct in sorted(thresholds) if pct > balance.alerted_pct and spent * 100 >= pct * budget.limit
    ]


def rearmed_pct(budget: Budget, spent: int, alerted_pct: int) -> int:
    """Return the highest threshold that stays fired once the limit is raised or spending falls (S21).

    `spent` is in the budget's own unit. What lies above the new utilisation fires again.
    """
    thresholds = {
        *budget.alert_thresholds_pct,
        *([budget.soft_limit_pct] if budget.soft_limit_pct is not None else []),
    }
    reached = [pct for pct in thresholds if spent > 0 and spent * 100 >= pct * budget.limit]
    return min(alerted_pct, max(reached, default=0))


def remaining(limit: int, spent: int, held: int) -> int:
    """Return limit − spent − held, which can be negative (S10)."""
    return limit - spent - held


def minus(new: CallCost, old: CallCost) -> CallCost:
    """Return the signed difference of two costs, part by part."""
    return CallCost(
        new.input_nanos - old.input_nanos,
        new.output_nanos - old.output_nanos,
        new.other_nanos - old.other_nanos,
    )


def negated(item: PricedItem) -> PricedItem:
    """Return an item with all its usage negative: what a correction takes back."""
    usage = Usage._make(-amount for amount in item.usage)
    return PricedItem(item.model, item.service_tier, usage, item.price_id)


def rollup_lines(charge: Charge) -> list[tuple[str, tuple[int, ...]]]:
    """Return what a call adds to the sums of each model, in the order of the rollup tables' counters (S25).

    Of a call that bills several models, the first carries the call itself and its flags.
    """
    empty = PricedItem(charge.model, "", Usage(), None)
    lines: list[tuple[str, tuple[int, ...]]] = []
    for index, (item, cost) in enumerate(
        zip(charge.items or (empty,), charge.item_costs or (charge.cost,), strict=True)
    ):
        usage = item.usage
        first = 1 if index == 0 else 0
        lines.append(
            (
                item.model,
                (
                    first,
                    first if charge.estimated else 0,
                    first if charge.unpriced else 0,
                    usage.input_tokens,
                    usage.output_tokens,
                    usage.cache_read_tokens,
                    usage.cache_write_5m_tokens + usage.cache_write_1h_tokens,
                    usage.reasoning_tokens,
                    cost.input_nanos,
                    cost.output_nanos,
                    cost.other_nanos,
                    cost.total_nanos,
                ),
            )
        )
    return lines
