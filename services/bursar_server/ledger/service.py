"""The books of one batch: the locked state, and what the batch changes of it. Nothing is written until the end."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from bursar_server.budgets.model import Budget
from bursar_server.db.lane import Send
from bursar_server.kit.periods import quarter_hour_of
from bursar_server.ledger import rules, store
from bursar_server.ledger.model import (
    Account,
    Attribution,
    BalanceKey,
    BalanceState,
    CallKey,
    Charge,
    Entry,
    EntryKind,
    FiredThreshold,
    GrantKey,
    GrantState,
    Hold,
    PastRevision,
    PostingLine,
    Record,
    Source,
)
from bursar_server.pricing.model import CallCost

NO_ID = UUID(int=0)

RollupKey = tuple[UUID, UUID, UUID, str, str]
"""Tenant, user, key, provider and model; all zeros where there is no user or key."""


class MissingRowsError(Exception):
    """The batch needs rows that it has not locked: it is repeated with them."""

    def __init__(self, balances: Iterable[BalanceKey] = (), grants: Iterable[GrantKey] = ()) -> None:
        super().__init__("rows are needed that the batch has not locked")
        self.balances = set(balances)
        self.grants = set(grants)
        # What it takes to make those balances that are of new periods: key, first instant, first instant after.
        self.periods: list[tuple[BalanceKey, datetime, datetime]] = []


Recall = Callable[[BalanceKey], BalanceState | None]
"""Gives a balance as it is remembered; None where it is not."""


@dataclass
class Books:
    """The state that one batch works on, by key, and its changes.

    The batch has locked it, but where `recall` is given: then balances are taken as they are remembered, and confirmed
    by what writes the changes.
    """

    now: datetime
    balances: dict[BalanceKey, BalanceState]
    grants: dict[GrantKey, GrantState]
    holds: dict[CallKey, Hold]
    past: dict[CallKey, list[PastRevision]]
    budget_of: Callable[[UUID], Budget | None]
    stored_holds: frozenset[CallKey]
    records: dict[CallKey, list[Record]] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    quarters: dict[tuple[RollupKey, datetime], list[int]] = field(default_factory=dict)
    fired: list[tuple[Budget, FiredThreshold]] = field(default_factory=list)
    gone_holds: set[CallKey] = field(default_factory=set)
    recall: Recall | None = None
    taken: dict[BalanceKey, BalanceState] = field(default_factory=dict)

    def send_writes(self, send: Send) -> None:
        """Queue the statements that write what has changed, in lock order; they take effect with the commit."""
        store.send_writes(
            send,
            self.now,
            balances=self.balances.values(),
            taken=self.taken if self.recall else None,
            grants=self.grants.values(),
            new_holds=[hold for key, hold in self.holds.items() if key not in self.stored_holds],
            gone_holds=self.gone_holds & self.stored_holds,
            records=[record for records in self.records.values() for record in records],
            entries=self.entries,
            quarters=self.quarters,
            fired=[threshold for _, threshold in self.fired],
        )

    def revisions(self, key: CallKey) -> list[PastRevision]:
        """Return the revisions of a call that exist already, those of this batch included."""
        past = self.past.get(key, [])
        records = self.records.get(key)
        return past + [_as_past(record) for record in records] if records else past

    def open(self, hold: Hold) -> None:
        """Add a hold: what its legs hold is held on their balances and grants."""
        self._shift_holds(hold, 1)
        self.holds[hold.attribution.tenant_id, hold.request_id] = hold

    def close(self, hold: Hold) -> None:
        """Take a hold away, and what it holds."""
        key = (hold.attribution.tenant_id, hold.request_id)
        self._shift_holds(hold, -1)
        del self.holds[key]
        self.gone_holds.add(key)

    def balance(self, key: BalanceKey) -> BalanceState:
        """Return a locked balance; raises MissingRowsError where the batch has not locked it."""
        state = self.balances.get(key)
        if state is None:
            raise MissingRowsError(balances=[key])
        return state

    def grant(self, key: GrantKey) -> GrantState:
        """Return a locked grant; raises MissingRowsError where the batch has not locked it."""
        state = self.grants.get(key)
        if state is None:
            raise MissingRowsError(grants=[key])
        return state

    def _shift_holds(self, hold: Hold, sign: int) -> None:
        for leg in hold.legs:
            if leg.nanos or leg.tokens:
                balance = self.balance(leg.key)
                balance.held_nanos += sign * leg.nanos
                balance.held_tokens += sign * leg.tokens
                balance.changed = True
        for part in hold.grant_legs:
            if part.nanos:
                grant = self.grant(part.key)
                grant.held_nanos += sign * part.nanos
                grant.changed = True

    def require(self, legs: Iterable[BalanceKey], grants: Iterable[GrantKey]) -> None:
        """Raise MissingRowsError unless all of these are there; called before anything is changed."""
        missing_balances = [key for key in legs if key not in self.balances and not self._recalled(key)]
        missing_grants = [key for key in grants if key not in self.grants]
        if missing_balances or missing_grants:
            raise MissingRowsError(missing_balances, missing_grants)

    def _recalled(self, key: BalanceKey) -> bool:
        """Take a balance as it is remembered, if it is."""
        state = self.recall(key) if self.recall else None
        if state is None:
            return False
        self.taken[key] = state
        self.balances[key] = state.copy()
        return True

    def settle(self, hold: Hold, charge: Charge) -> Record:
        """Charge a call that has a hold, and take the hold away (S14). Returns its record's next revision.

        That is revision 0, but for a call whose release crossed its Check.
        """
        self.require((leg.key for leg in hold.legs), (leg.key for leg in hold.grant_legs))
        drawable = [
            (leg.key, rules.drawable_nanos(self.grants[leg.key], leg.nanos)) for leg in hold.grant_legs
        ]
        postings = rules.split_cost(
            charge.cost.total_nanos,
            charge.tokens,
            [(leg.key, leg.user_scoped) for leg in hold.legs],
            drawable,
        )
        shortfall = rules.shortfall_nanos(postings, hold.legs, hold.grant_legs)
        self.close(hold)
        past = self.revisions((hold.attribution.tenant_id, hold.request_id))
        return self._post(
            (hold.attribution, hold.request_id, hold.check_time),
            charge,
            postings,
            revision=len(past),
            shortfall=shortfall,
        )

    def charge_unheld(
        self,
        attribution: Attribution,
        request_id: UUID,
        usage_time: datetime,
        charge: Charge,
        legs: Sequence[tuple[BalanceKey, bool]],
        grants: Sequence[GrantState],
    ) -> Record:
        """Charge a call that has no hold on what matches now (S14, S16). Returns its record."""
        self.require((key for key, _ in legs), (grant.key for grant in grants))
        drawable = [(grant.key, rules.drawable_nanos(grant, 0)) for grant in grants]
        postings = rules.split_cost(charge.cost.total_nanos, charge.tokens, legs, drawable)
        past = self.revisions((attribution.tenant_id, request_id))
        return self._post((attribution, request_id, usage_time), charge, postings, revision=len(past))

    def adjust(
        self, request_id: UUID, before: PastRevision, charge: Charge
    ) -> tuple[Record, tuple[PostingLine, ...]]:
        """Post the difference between what a lease's expiry charged (or left of it) and the real usage, in its period (S16).

        Returns the new revision, and the postings that the call has in all.
        """
        tenant_id = before.attribution.tenant_id
        of_grants = [line for line in before.postings if line.account is Account.GRANT]
        of_budgets = [line for line in before.postings if line.account is Account.BUDGET]
        legs = [((line.tenant_id, line.account_id, line.period_key), line.user_scoped) for line in of_budgets]
        self.require((key for key, _ in legs), ((line.tenant_id, line.account_id) for line in of_grants))
        drawable = [
            (
                (line.tenant_id, line.account_id),
                rules.drawable_nanos(self.grants[line.tenant_id, line.account_id], line.nanos),
            )
            for line in of_grants
        ]
        full = rules.split_cost(charge.cost.total_nanos, charge.tokens, legs, drawable)
        signed = charge._replace(
            kind=EntryKind.ADJUSTMENT,
            items=(*charge.items, *(rules.negated(item) for item in before.items)),
            cost=rules.minus(charge.cost, before.cost),
        )
        self._count(before.attribution, before.usage_time, charge, 1)
        if before.source is not Source.RELEASE:  # a release counts as no call
            self._count(before.attribution, before.usage_time, before.as_charge(), -1)
        record = self._post(
            (before.attribution, request_id, before.usage_time),
            signed,
            rules.difference(full, before.postings),
            revision=len(self.revisions((tenant_id, request_id))),
            count=False,
        )
        record.unpriced, record.unchecked = charge.unpriced, before.unchecked
        return record, full

    def release(
        self, attribution: Attribution, request_id: UUID, provider: str, *, lease_expired: bool = False
    ) -> bool:
        """Take a call's hold away, if it has one, and leave the mark that a later Check of the id finds (S17).

        The mark remembers the hold's legs, so that a Deduct that comes after all counts where its Check did. What a
        lease's expiry charged meanwhile is taken back: nothing was sent. Returns whether a hold was removed.
        """
        key = (attribution.tenant_id, request_id)
        hold = self.holds.get(key)
        past = self.revisions(key)
        if past and past[-1].source is Source.EXPIRY:
            expired = past[-1]
            nothing = Charge(
                Source.DEDUCT, EntryKind.CHARGE, "", expired.provider, "CANCELLED", expired.model, (), (), CallCost(0, 0, 0)
            )  # fmt: skip
            self.adjust(request_id, expired, nothing)
        legs: tuple[PostingLine, ...] = ()
        usage_time = self.now
        if hold is not None:
            legs = rules.split_cost(
                0,
                0,
                [(leg.key, leg.user_scoped) for leg in hold.legs],
                [(leg.key, 0) for leg in hold.grant_legs],
            )
            usage_time = hold.check_time
            self.close(hold)
        if not past:
            model = hold.model if hold else ""
            charge = Charge(
                Source.RELEASE, EntryKind.CHARGE, "", provider, "CANCELLED", model, (), (), CallCost(0, 0, 0)
            )
            record = self._remember(attribution, request_id, usage_time, charge, legs, 0, 0, 0)
            record.lease_expired = lease_expired
        return hold is not None

    def _post(
        self,
        call: tuple[Attribution, UUID, datetime],
        charge: Charge,
        postings: tuple[PostingLine, ...],
        *,
        revision: int,
        shortfall: int = 0,
        count: bool = True,
    ) -> Record:
        attribution, request_id, usage_time = call
        tenant_id = attribution.tenant_id
        overage = 0
        entries = [(Account.TENANT, tenant_id, tenant_id, "", charge.cost.total_nanos, charge.tokens)]
        for line in postings:
            if not line.nanos and not line.tokens:
                continue
            entries.append(
                (line.account, line.tenant_id, line.account_id, line.period_key, line.nanos, line.tokens)
            )
            if line.account is Account.GRANT:
                grant = self.grants[line.tenant_id, line.account_id]
                grant.spent_nanos += line.nanos
                grant.changed = True
            else:
                overage = max(overage, self._spend(line))
        for leg, (account, account_tenant_id, account_id, period_key, nanos, count_tokens) in enumerate(
            entries
        ):
            self.entries.append(
                Entry(
                    tenant_id, request_id, revision, leg, charge.kind, account, account_tenant_id, account_id,
                    period_key, nanos, count_tokens, usage_time,
                )
            )  # fmt: skip
        if count:
            self._count(attribution, usage_time, charge, 1)
        return self._remember(
            attribution, request_id, usage_time, charge, postings, revision, overage, shortfall
        )

    def _spend(self, line: PostingLine) -> int:
        """Post a line to its balance, note the thresholds it reaches, and return what lies above the limit."""
        balance = self.balances[line.tenant_id, line.account_id, line.period_key]
        before = balance.spent_nanos
        balance.spent_nanos += line.nanos
        balance.spent_tokens += line.tokens
        balance.changed = True
        budget = self.budget_of(line.account_id)
        if budget is None:
            return 0
        for pct in rules.reached_thresholds(budget, balance):
            balance.alerted_pct = pct
            self.fired.append(
                (
                    budget,
                    FiredThreshold(
                        budget.budget_id,
                        budget.tenant_id,
                        line.period_key,
                        pct,
                        pct == budget.soft_limit_pct,
                        balance.spent_nanos,
                        balance.spent_tokens,
                    ),
                )
            )
        if budget.limit_nanos is None:
            return 0
        return rules.overage_nanos(budget.limit_nanos, before, balance.spent_nanos)

    def _remember(
        self,
        attribution: Attribution,
        request_id: UUID,
        usage_time: datetime,
        charge: Charge,
        postings: tuple[PostingLine, ...],
        revision: int,
        overage: int,
        shortfall: int,
    ) -> Record:
        record = Record(
            request_id, revision, charge.source, charge.body_sha256, usage_time, attribution, charge.provider,
            charge.outcome, charge.model, charge.items, charge.cost, postings, charge.start_time, charge.end_time,
            charge.provider_cost_nanos, overage, shortfall, charge.estimated, charge.unpriced,
            charge.source is Source.EXPIRY, charge.unchecked,
        )  # fmt: skip
        self.records.setdefault((attribution.tenant_id, request_id), []).append(record)
        return record

    def _count(self, attribution: Attribution, usage_time: datetime, charge: Charge, sign: int) -> None:
        """Add a call to its sums, or take it out again."""
        user_id, api_key_id = attribution.user_id or NO_ID, attribution.api_key_id or NO_ID
        bucket = quarter_hour_of(usage_time)
        for model, line in rules.rollup_lines(charge):
            key = ((attribution.tenant_id, user_id, api_key_id, charge.provider, model), bucket)
            counters = self.quarters.setdefault(key, [0] * len(line))
            for index, amount in enumerate(line):
                counters[index] += sign * amount


def _as_past(record: Record) -> PastRevision:
    return PastRevision(
        record.revision, record.source, record.body_sha256, record.usage_time, record.provider, record.model, record.cost,
        record.items, record.postings, record.overage_nanos, record.hold_shortfall_nanos, record.unpriced,
        record.unchecked, record.attribution,
    )  # fmt: skip


ROW_TYPES: Mapping[str, str] = store.ROW_TYPES
send_locks = store.send_locks
make_balances = store.missing_balances
confirm_new = store.confirm_new


def books_of(locked: store.LockedRows, now: datetime, budget_of: Callable[[UUID], Budget | None]) -> Books:
    """Return the books of a batch over what it has locked. `budget_of` gives the definition behind a balance."""
    return Books(
        now, locked.balances, locked.grants, locked.holds, locked.past, budget_of, frozenset(locked.holds)
    )


def books_ahead(
    holds: dict[CallKey, Hold], now: datetime, budget_of: Callable[[UUID], Budget | None], recall: Recall
) -> Books:
    """Return the books of a batch that has locked nothing, over what is remembered; see Books."""
    return Books(now, {}, {}, holds, {}, budget_of, frozenset(holds), recall=recall)
