"""What was left when the control plane could be asked last, and what it lets through while it cannot.

Nothing in here does I/O; instants are the clock's monotonic seconds. Amounts are nanos, or tokens for budgets in tokens.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from bursar.v1 import budget_pb2
from bursar.v1.metering_pb2 import BudgetLeft
from bursar.v1.metering_service_pb2 import CheckResponse, DeductResponse
from bursar_sidecar import denial
from bursar_sidecar.messages import Ask, unheard
from bursar_sidecar.providers.base import Metered, Problem
from bursar_sidecar.rates import Rates, tokens_of
from bursar_sidecar.settings import OnUnreachable

K = TypeVar("K")
V = TypeVar("V")

PRINCIPALS_MAX = 10_000
BUDGETS_MAX = 20_000

#: Denials that are about the principal, whatever it asks for; of a spent budget too (until a Check says otherwise).
_LASTING = frozenset(
    {
        denial.BUDGET_CODE, "KEY_REVOKED", "USER_DEACTIVATED", "USER_UNKNOWN", "USER_NOT_ALLOWED", "TENANT_SUSPENDED",
        "NO_BUDGET",
    }
)  # fmt: skip
_POLICIES: Mapping[int, OnUnreachable] = {
    budget_pb2.ON_UNREACHABLE_CLOSED: OnUnreachable.CLOSED,
    budget_pb2.ON_UNREACHABLE_OPEN: OnUnreachable.OPEN,
    budget_pb2.ON_UNREACHABLE_LAST_KNOWN_GOOD: OnUnreachable.LAST_KNOWN_GOOD,
}


@dataclass(slots=True)
class _Left:
    """What a budget has left, less what this sidecar has spent since `said_at`."""

    amount: int
    in_tokens: bool
    said_at: float


@dataclass(frozen=True, slots=True)
class _Principal:
    """The last answer to a principal's Check: what its budgets say, which they are, and why it was denied."""

    policy: OnUnreachable | None
    budgets: tuple[str, ...]
    answered_at: float
    problem: Problem | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """What an open call has taken off its budgets' known remainders; nothing for one that a Check let through."""

    budgets: tuple[str, ...]
    nanos: int
    tokens: int
    made_at: float


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a call that nobody could be asked about: let through with a claim, or a problem."""

    policy: OnUnreachable
    problem: Problem | None = None
    claim: Claim | None = None


class LastKnown:
    """Remembers answers of the control plane, the latest of each principal; bounded, and gone with the process.

    `own` is the policy where budgets leave it to the sidecar; LAST_KNOWN_GOOD goes by nothing older than `max_age_s`.
    """

    def __init__(self, own: OnUnreachable, max_age_s: float) -> None:
        self._own = own
        self._max_age_s = max_age_s
        self._principals: OrderedDict[tuple[object, ...], _Principal] = OrderedDict()
        self._left: OrderedDict[str, _Left] = OrderedDict()
        self.rates = Rates()

    # -- while it answers ----------------------------------------------------------------------------

    def allowed(self, ask: Ask, said: CheckResponse, now: float, *, behind: bool) -> Claim | None:
        """Note that a call was let through, and what is left; return its claim where there is something to know.

        `behind`: charges of this sidecar still wait for the control plane, so what it says is left may be too much.
        """
        policy = _POLICIES.get(said.on_unreachable)
        if said.duplicate:
            return None
        if policy is None and self._own is not OnUnreachable.LAST_KNOWN_GOOD:
            if self._principals:
                self._forget(ask)
            return None
        self._learn(said.budgets, now, behind=behind)
        budgets = tuple(left.budget_id for left in said.budgets)
        self._remember(ask, said, _Principal(policy, budgets, now))
        return Claim(budgets, 0, 0, now)

    def denied(self, ask: Ask, said: CheckResponse, problem: Problem, now: float, *, behind: bool) -> None:
        """Note that a call was denied, where that is about its principal and not about this one call."""
        policy = _POLICIES.get(said.on_unreachable)
        if said.duplicate:
            return
        if policy is None and self._own is OnUnreachable.CLOSED and not self._principals:
            return  # closed is closed; but where a budget had opened it, that is over
        # Anybody can send keys that nobody knows: they push nobody else out.
        lost = problem.code == "KEY_UNKNOWN" and self._principal(ask) is not None
        if problem.code not in _LASTING and not lost:
            return
        self._learn(said.budgets, now, behind=behind)
        budgets = tuple(left.budget_id for left in said.budgets)
        self._remember(ask, said, _Principal(policy, budgets, now, problem))

    def settled(
        self, claim: Claim, ask: Ask, metered: Metered, charged: DeductResponse | None, now: float
    ) -> None:
        """Replace a call's claim by what it cost: what the control plane says, else what is known of prices."""
        input_tokens, output_tokens = tokens_of(metered.items)
        if charged is not None:
            nanos = charged.cost_nanos
            self.rates.learn(ask.provider, ask.model, metered.items, charged, now)
        elif metered.items:
            priced = self.rates.price(ask.provider, ask.model, input_tokens, output_tokens)
            nanos = claim.nanos if priced is None else priced
        else:
            nanos = 0
        self.dropped(claim)
        self._take(claim.budgets, nanos, input_tokens + output_tokens)

    def dropped(self, claim: Claim) -> None:
        """Give back what a call had claimed, where the control plane has not said since what is left."""
        for budget_id in claim.budgets:
            left = self._left.get(budget_id)
            if left is not None and left.said_at <= claim.made_at:
                left.amount += claim.tokens if left.in_tokens else claim.nanos

    # -- while it does not ---------------------------------------------------------------------------

    def decide(self, ask: Ask, now: float) -> Decision:
        """Decide a call by the policy of its budgets, or the sidecar's own where they have none."""
        principal = self._principal(ask)
        policy = principal.policy if principal is not None and principal.policy is not None else self._own
        if policy is OnUnreachable.CLOSED:
            return Decision(policy, denial.control_plane_unavailable())
        if policy is OnUnreachable.OPEN:
            if principal is None:
                return Decision(policy)
            return Decision(policy, principal.problem, Claim(principal.budgets, 0, 0, now))
        if principal is None or now - principal.answered_at > self._max_age_s:
            return Decision(policy, denial.control_plane_unavailable())
        return self._by_what_is_known(ask, principal, now)

    def _by_what_is_known(self, ask: Ask, principal: _Principal, now: float) -> Decision:
        policy = OnUnreachable.LAST_KNOWN_GOOD
        problem = principal.problem
        if problem is not None and (problem.code != denial.BUDGET_CODE or not principal.budgets):
            return Decision(policy, problem)
        nanos: int | None = 0
        tokens = 0
        if ask.model or ask.input_tokens_estimate:
            input_tokens, output_tokens = tokens_of(unheard(ask).items)
            nanos = self.rates.price(ask.provider, ask.model, input_tokens, output_tokens)
            tokens = input_tokens + output_tokens
        for budget_id in principal.budgets:
            left = self._left.get(budget_id)
            if left is None:
                return Decision(policy, denial.control_plane_unavailable())
            wanted = tokens if left.in_tokens else nanos
            # What costs nothing passes always (S10), what has no known price while nobody knows better never.
            if left.amount < (1 if wanted is None else wanted) and wanted != 0:
                return Decision(policy, problem or denial.spent_as_known())
            if wanted is None:
                return Decision(policy, denial.control_plane_unavailable())
        claim = Claim(principal.budgets, nanos or 0, tokens, now)
        self._take(claim.budgets, claim.nanos, claim.tokens)
        return Decision(policy, None, claim)

    # -- inside --------------------------------------------------------------------------------------

    def _take(self, budgets: Iterable[str], nanos: int, tokens: int) -> None:
        for budget_id in budgets:
            left = self._left.get(budget_id)
            if left is not None:
                left.amount -= tokens if left.in_tokens else nanos

    def _learn(self, budgets: Iterable[BudgetLeft], now: float, *, behind: bool) -> None:
        for said in budgets:
            in_tokens = said.HasField("remaining_tokens")
            amount = said.remaining_tokens if in_tokens else said.remaining_nanos
            known = self._left.get(said.budget_id)
            if behind and known is not None and known.in_tokens == in_tokens:
                amount = min(amount, known.amount)
            _put(self._left, said.budget_id, _Left(amount, in_tokens, now), BUDGETS_MAX)

    def _remember(self, ask: Ask, said: CheckResponse, principal: _Principal) -> None:
        self._forget(ask)
        key = _key(ask)
        _put(self._principals, (*key, _tags(ask)) if said.budgets_by_tags else key, principal, PRINCIPALS_MAX)

    def _forget(self, ask: Ask) -> None:
        key = _key(ask)
        self._principals.pop(key, None)
        self._principals.pop((*key, _tags(ask)), None)

    def _principal(self, ask: Ask) -> _Principal | None:
        key = _key(ask)
        return self._principals.get(key) or self._principals.get((*key, _tags(ask)))


def _key(ask: Ask) -> tuple[object, ...]:
    return ask.key_sha256, ask.user_id, ask.body_user


def _tags(ask: Ask) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(ask.tags.items()))


def _put(table: OrderedDict[K, V], key: K, value: V, most: int) -> None:
    """Put a value at the end of a table, which forgets those put longest ago."""
    table[key] = value
    table.move_to_end(key)
    while len(table) > most:
        table.popitem(last=False)
