"""What a batch has to lock before it can be evaluated."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from bursar_server.budgets.model import Admission
from bursar_server.ledger.model import BalanceKey, CallKey, GrantKey
from bursar_server.ledger.service import Books
from bursar_server.metering import store
from bursar_server.metering.model import Call, CheckCall, PrincipalRef, Subject

MAX_OPEN_LEGS = 50_000


@dataclass(slots=True)
class Needs:
    """What a batch locks: grows where a round finds that something is missing."""

    subjects: dict[PrincipalRef, Subject]
    request_ids: dict[int, UUID]
    balances: set[BalanceKey] = field(default_factory=set)
    grants: set[GrantKey] = field(default_factory=set)
    calls: set[CallKey] = field(default_factory=set)
    held: set[UUID] = field(default_factory=set)
    # Calls to end whose holds' balances only the database can name.
    unknown_legs: set[UUID] = field(default_factory=set)
    tenants: set[UUID] = field(default_factory=set)
    owners: dict[UUID, UUID] = field(default_factory=dict)


class OpenLegs:
    """The balances that the holds of this lane's open calls are on, so that ending a call can name them. Bounded.

    A hold's legs never change, and what is not remembered is read: holds of other processes, and of before a restart.
    """

    def __init__(self) -> None:
        self._legs: OrderedDict[CallKey, tuple[BalanceKey, ...]] = OrderedDict()

    def need(self, needs: Needs, call: CallKey) -> None:
        """Add what ending a call needs."""
        legs = self._legs.get(call)
        if legs is None:
            needs.unknown_legs.add(call[1])
        else:
            needs.balances.update(legs)

    def learn(self, books: Books) -> None:
        """Remember the holds that a committed batch opened, and forget those that it closed."""
        for key, hold in books.holds.items():
            if key not in books.stored_holds:
                self._legs[key] = tuple([leg.key for leg in hold.legs])
        for key in books.gone_holds:
            self._legs.pop(key, None)
        while len(self._legs) > MAX_OPEN_LEGS:
            self._legs.popitem(last=False)


def times(rate_keys: Sequence[store.RateKey]) -> str:
    """Return the windows of rate keys as the text of a `timestamptz[]`."""
    return "{" + ",".join([key[2].isoformat() for key in rate_keys]) + "}"


def holding_budgets(calls: Sequence[Call], needs: Needs) -> list[tuple[UUID, UUID]]:
    """Return the budgets of a batch's Checks that hold amounts: others may be waiting for them."""
    principals = {call.principal for call in calls if isinstance(call, CheckCall)}
    return sorted(
        {
            (budget.tenant_id, budget.budget_id)
            for principal in principals
            for budget in needs.subjects[principal].budgets
            if budget.admission is not Admission.ANY_REMAINING
        }
    )
