"""What a batch has to lock before it can be evaluated."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from bursar_server.budgets.model import Admission
from bursar_server.ledger.model import BalanceKey, CallKey, GrantKey
from bursar_server.metering import store
from bursar_server.metering.model import Call, CheckCall, PrincipalRef, Subject


@dataclass
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
    # Ids that stand for those that could not be placed, by the tenant and the id that was given.
    mapped: dict[tuple[UUID, str], UUID] = field(default_factory=dict)


def times(rate_keys: Sequence[store.RateKey]) -> str:
    """Return the windows of rate keys as the text of a `timestamptz[]`."""
    return "{" + ",".join([key[2].isoformat() for key in rate_keys]) + "}"


def holding_budgets(
    calls: Sequence[Call], subjects: Mapping[PrincipalRef, Subject]
) -> list[tuple[UUID, UUID]]:
    """Return the budgets of a batch's Checks that hold amounts: others may be waiting for them."""
    principals = {call.principal for call in calls if isinstance(call, CheckCall)}
    return sorted(
        {
            (budget.tenant_id, budget.budget_id)
            for principal in principals
            for budget in subjects[principal].budgets
            if budget.admission is not Admission.ANY_REMAINING
        }
    )
