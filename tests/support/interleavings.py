"""A ledger kept with plain dictionaries: what the books must say after any sequence of calls and changes.

Written from the rules (S1–S19) alone and one call at a time, to be compared with what a database holds.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from math import ceil
from uuid import UUID
from zoneinfo import ZoneInfo

# Nanos a token, in and out. A model that is not here has no price.
PRICES: Mapping[str, tuple[Fraction, Fraction]] = {
    "test-model": (Fraction(1), Fraction(2)),
    "odd-model": (Fraction(35, 100), Fraction(115, 100)),
    "free-model": (Fraction(0), Fraction(0)),
}
UNPRICED = "unheard-of"
DEFAULT_OUTPUT_TOKENS, EXPECTED_OUTPUT_TOKENS = 16_384, 1_024


def cost_of(model: str, inputs: int, outputs: int) -> int:
    """S15: exact, rounded once, half to even; a model without a price costs nothing."""
    of_input, of_output = PRICES.get(model, (Fraction(0), Fraction(0)))
    return round(inputs * of_input + outputs * of_output)


@dataclass(frozen=True)
class Person:
    """Whom calls count for."""

    tenant_id: UUID
    user_id: UUID | None = None
    api_key_id: UUID | None = None
    tags: tuple[tuple[str, str], ...] = ()


@dataclass
class BudgetPlan:
    """A budget: its definition as it stands now."""

    budget_id: UUID
    tenant_id: UUID
    scope: str
    subject: object
    limit: int
    tokens: bool
    admission: str
    hard: bool
    shadow: bool
    period: str
    zone: str
    anchor: int
    releases: bool
    enabled: bool = True
    deleted: bool = False
    revision: int = 1
    version: int = 1

    def key_at(self, instant: datetime) -> str:
        """S23: the first instant of the period, and the definition's revision."""
        return f"{self.start_at(instant):%Y-%m-%dT%H:%M:%SZ}#{self.revision}"

    def start_at(self, instant: datetime) -> datetime:
        """Return the first instant of the period that `instant` lies in."""
        if self.period == "TOTAL":
            return datetime(1970, 1, 1, tzinfo=UTC)
        local = instant.astimezone(ZoneInfo(self.zone))
        midnight = local.replace(hour=0, minute=0, second=0, microsecond=0)
        if self.period == "MONTHLY":
            while midnight.day != self.anchor:
                midnight -= timedelta(days=1)
        return midnight.astimezone(UTC)


@dataclass
class GrantPlan:
    """A grant. Those of one user are spent in the order of `rank`."""

    grant_id: UUID
    user_id: UUID
    amount: int
    rank: tuple[int, int]
    starts_at: datetime
    spent: int = 0
    held: int = 0
    revoked: bool = False


@dataclass
class Leg:
    """A budget that a call counts on, and what it holds there; then what it bore."""

    budget_id: UUID
    key: str
    of_user: bool
    held: int = 0
    held_tokens: int = 0
    bore: int = 0


@dataclass
class CallPlan:
    """A call from its Check, or from the Deduct without one."""

    person: Person
    groups: frozenset[UUID]
    usage_time: datetime
    state: str
    check: tuple[object, ...] = ()
    estimate: tuple[str, int, int] = ("", 0, 0)
    releases: bool = False
    lease_ended: bool = False
    legs: list[Leg] = field(default_factory=list)
    grants: dict[UUID, int] = field(default_factory=dict)
    grants_held: dict[UUID, int] = field(default_factory=dict)
    cost: int = 0
    tokens: int = 0
    deduct: tuple[object, ...] | None = None
    unchecked: bool = False


@dataclass(frozen=True)
class Told:
    """What an answer has to say."""

    word: str
    codes: tuple[str, ...] = ()
    cost: int = 0
    postings: tuple[tuple[UUID, int], ...] = ()
    unchecked: bool = False
    overage: int | None = None


class Model:
    """The books of all tenants."""

    def __init__(self) -> None:
        self.budgets: dict[UUID, BudgetPlan] = {}
        self.grants: dict[UUID, GrantPlan] = {}
        self.calls: dict[tuple[UUID, UUID], CallPlan] = {}
        self.groups: dict[UUID, set[UUID]] = defaultdict(set)
        self.above: dict[UUID, UUID] = {}
        self.inactive: set[UUID] = set()
        # Spent and held in nanos, spent and held in tokens, by budget and period key.
        self.balances: dict[tuple[UUID, str], list[int]] = defaultdict(lambda: [0, 0, 0, 0])

    def groups_of(self, user_id: UUID | None) -> frozenset[UUID]:
        """S1: all of a user's groups, and those above them."""
        found = {group for group, members in self.groups.items() if user_id in members}
        while new := {self.above[group] for group in found if group in self.above} - found:
            found |= new
        return frozenset(found)

    def counts(self, budget: BudgetPlan, person: Person, groups: Iterable[UUID]) -> bool:
        """S2: whether a budget's scope matches a call."""
        if budget.scope == "GLOBAL":
            return True
        subjects: dict[str, tuple[object, ...]] = {
            "TENANT": (None,),
            "USER": (person.user_id,) if person.user_id else (),
            "KEY": (person.api_key_id,) if person.api_key_id else (),
            "GROUP": tuple(groups),
            "TAG": person.tags,
        }
        return budget.tenant_id == person.tenant_id and budget.subject in subjects[budget.scope]

    def matching(self, person: Person) -> list[BudgetPlan]:
        """Return the enabled budgets that count a call made now."""
        groups = self.groups_of(person.user_id)
        enabled = [budget for budget in self.budgets.values() if budget.enabled and not budget.deleted]
        return [budget for budget in enabled if self.counts(budget, person, groups)]

    def active_grants(self, person: Person, instant: datetime) -> list[GrantPlan]:
        """S6, S7: what a call made at an instant can draw on, in order; a grant that is wholly spent is none."""
        active = [
            grant
            for grant in self.grants.values()
            if grant.user_id == person.user_id
            and not grant.revoked
            and grant.starts_at <= instant
            and grant.spent < grant.amount
        ]
        return sorted(active, key=lambda grant: grant.rank)

    def check(
        self, person: Person, request_id: UUID, asked: tuple[str, int, int | None], now: datetime
    ) -> Told:
        """Decide a call (S2, S3, S7, S9–S11, S16, S17)."""
        known = self.calls.get((person.tenant_id, request_id))
        if known is not None:
            if known.state == "OPEN":
                return Told("ALLOW" if known.check == asked else "REUSED")
            return Told("DENY", ("REQUEST_RELEASED",)) if known.state == "RELEASED" else Told("ALLOW")
        if person.user_id in self.inactive:
            return Told("DENY", ("USER_DEACTIVATED",))
        budgets, grants = self.matching(person), self.active_grants(person, now)
        amounts, codes = [], []
        for budget in budgets:
            code, nanos, tokens = self._verdict(budget, asked, grants, now)
            amounts.append((budget, nanos, tokens))
            if code and budget.hard and not budget.shadow:
                codes.append(code)
        if codes:
            return Told("DENY", tuple(sorted(codes)))
        model, inputs, most = asked
        expected = min(DEFAULT_OUTPUT_TOKENS if most is None else most, EXPECTED_OUTPUT_TOKENS)
        call = CallPlan(person, self.groups_of(person.user_id), now, "OPEN", asked, (model, inputs, expected))
        call.releases = bool(budgets) and all(budget.releases for budget in budgets)
        self._hold(call, amounts, grants, now)
        self.calls[person.tenant_id, request_id] = call
        return Told("ALLOW")

    def _verdict(
        self,
        budget: BudgetPlan,
        asked: tuple[str, int, int | None],
        grants: list[GrantPlan],
        now: datetime,
    ) -> tuple[str, int, int]:
        """Return what a budget says against a call, and what the call holds there in nanos and tokens."""
        model, inputs, given = asked
        most = DEFAULT_OUTPUT_TOKENS if given is None else given
        outputs = most if budget.admission == "UPPER_BOUND" else min(most, EXPECTED_OUTPUT_TOKENS)
        holds = budget.admission != "ANY_REMAINING"
        spent, held, spent_tokens, held_tokens = self.balances[budget.budget_id, budget.key_at(now)]
        free, of_others = 0, 0
        if budget.tokens:
            spent, held, amount = spent_tokens, held_tokens, inputs + outputs if holds else 0
        else:
            if holds and model not in PRICES:
                return "MODEL_UNPRICED", 0, 0
            rates = PRICES.get(model, (Fraction(0), Fraction(0)))
            amount = ceil(inputs * rates[0] + outputs * rates[1]) if holds else 0
            if budget.scope == "USER":
                free = sum(max(0, grant.amount - grant.spent - grant.held) for grant in grants)
                of_others = sum(grant.held for grant in grants)
        remaining = max(0, budget.limit - spent - held) + free
        if budget.admission == "EXPECTED" and held + of_others == 0 and remaining > 0:
            amount = min(amount, remaining)
        code = ""
        if remaining < max(1, amount) and not (model == "free-model" and not budget.tokens):
            alone = max(0, budget.limit - spent) + free + of_others
            fits = alone >= (1 if budget.admission == "EXPECTED" else max(1, amount))
            code = "BUDGET_HELD" if fits and held + of_others > 0 else "BUDGET_CAP_HARD"
        return (code, 0, amount) if budget.tokens else (code, amount, 0)

    def _hold(
        self,
        call: CallPlan,
        amounts: list[tuple[BudgetPlan, int, int]],
        grants: list[GrantPlan],
        now: datetime,
    ) -> None:
        """S6, S9: grants hold first; each budget of the user holds what its amount exceeds them by."""
        rest = max((nanos for budget, nanos, _ in amounts if budget.scope == "USER"), default=0)
        on_grants = 0
        for grant in grants:
            part = min(rest - on_grants, max(0, grant.amount - grant.spent - grant.held))
            call.grants_held[grant.grant_id], call.grants[grant.grant_id] = part, 0
            grant.held += part
            on_grants += part
        for budget, nanos, tokens in amounts:
            of_user = budget.scope == "USER"
            held = max(0, nanos - on_grants) if of_user else nanos
            leg = Leg(budget.budget_id, budget.key_at(now), of_user, held, tokens)
            call.legs.append(leg)
            balance = self.balances[leg.budget_id, leg.key]
            balance[1] += held
            balance[3] += tokens

    def _unhold(self, call: CallPlan) -> None:
        for leg in call.legs:
            balance = self.balances[leg.budget_id, leg.key]
            balance[1] -= leg.held
            balance[3] -= leg.held_tokens
        for grant_id, part in call.grants_held.items():
            self.grants[grant_id].held -= part

    def _charge(self, call: CallPlan, cost: int, tokens: int, own: Mapping[UUID, int]) -> int:
        """S14: take back what the call was charged, then let grants bear it, then budgets. Returns the overage."""
        rest = cost
        for grant_id, bore in call.grants.items():
            grant = self.grants[grant_id]
            grant.spent -= bore
            left = grant.amount - grant.spent - grant.held
            part = min(rest, max(0, min(left, own.get(grant_id, 0)) if grant.revoked else left))
            grant.spent += part
            call.grants[grant_id] = part
            rest -= part
        overage = 0
        for leg in call.legs:
            balance, budget = self.balances[leg.budget_id, leg.key], self.budgets[leg.budget_id]
            before, bears = balance[0], rest if leg.of_user else cost
            balance[0] += bears - leg.bore
            balance[2] += tokens - call.tokens
            leg.bore = bears
            if not budget.tokens:
                above = max(0, balance[0] - budget.limit) - max(0, before - budget.limit)
                overage = max(overage, above)
        call.cost, call.tokens = cost, tokens
        return overage

    def _told(self, call: CallPlan, word: str, overage: int | None = None) -> Told:
        postings = [*call.grants.items(), *((leg.budget_id, leg.bore) for leg in call.legs)]
        return Told(word, (), call.cost, tuple(postings), call.unchecked, overage)

    def deduct(
        self,
        person: Person,
        request_id: UUID,
        used: tuple[str, int, int],
        body: tuple[object, ...],
        at: datetime,
    ) -> Told:
        """Charge a call (S1, S6–S8, S12, S14–S16). `at` is when it counts where it has no hold."""
        call = self.calls.get((person.tenant_id, request_id))
        if call is not None and call.deduct is not None:
            return self._told(call, "DUPLICATE") if call.deduct == body else Told("REUSED")
        own: dict[UUID, int] = {}
        overage_known = True
        if call is None or (call.state == "RELEASED" and not call.legs and not call.grants):
            call = CallPlan(person, self.groups_of(person.user_id), at, "NEW", unchecked=True)
            call.legs = [
                Leg(budget.budget_id, budget.key_at(at), budget.scope == "USER")
                for budget in self.matching(person)
            ]
            call.grants = {grant.grant_id: 0 for grant in self.active_grants(person, at)}
            self.calls[person.tenant_id, request_id] = call
        elif call.state == "OPEN":
            self._unhold(call)
            own = call.grants_held
        else:
            own = dict(call.grants)
            overage_known = False
        overage = self._charge(call, cost_of(*used), used[1] + used[2], own)
        call.state, call.deduct = "DEDUCTED", body
        return self._told(call, "CHARGED", overage if overage_known else None)

    def release(self, person: Person, request_id: UUID, now: datetime) -> bool:
        """S17: take the hold away, or leave the mark that the Check finds; take back what its lease's end charged."""
        call = self.calls.get((person.tenant_id, request_id))
        if call is None:
            self.calls[person.tenant_id, request_id] = CallPlan(person, frozenset(), now, "RELEASED")
            return False
        if call.state == "EXPIRED":
            self._charge(call, 0, 0, dict(call.grants))
            call.state, call.deduct = "DEDUCTED", ("nothing was sent",)
        if call.state != "OPEN":
            return False
        self._unhold(call)
        call.state = "RELEASED"
        return True

    def expire(self, tenant_id: UUID, request_id: UUID, now: datetime) -> bool:
        """S18: charge the estimate of a call whose lease has ended, or release it."""
        call = self.calls.get((tenant_id, request_id))
        if call is None or call.state != "OPEN" or not call.lease_ended:
            return False
        if call.releases:
            return self.release(call.person, request_id, now)
        self._unhold(call)
        model, inputs, outputs = call.estimate
        self._charge(call, cost_of(model, inputs, outputs), inputs + outputs, call.grants_held)
        call.state = "EXPIRED"
        return True

    def open_balance(self, budget: BudgetPlan, now: datetime) -> None:
        """S4: a new definition begins with what its scope spent in the period so far."""
        start = budget.start_at(now)
        nanos = tokens = 0
        for call in self.calls.values():
            if call.usage_time >= start and self.counts(budget, call.person, call.groups):
                nanos += call.cost - (sum(call.grants.values()) if budget.scope == "USER" else 0)
                tokens += call.tokens
        self.balances[budget.budget_id, budget.key_at(now)] = [nanos, 0, tokens, 0]

    def reset(self, user_id: UUID, now: datetime) -> None:
        """S19: bring what the user's budgets spent in the current period to 0."""
        for budget in self.budgets.values():
            if budget.enabled and not budget.deleted and budget.subject == user_id:
                balance = self.balances[budget.budget_id, budget.key_at(now)]
                balance[0] = balance[2] = 0
