"""What the calls of one batch share while they are evaluated one after the other."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from bursar_server.audit.model import AuditEvent
from bursar_server.budgets.model import Budget
from bursar_server.db.partitions import Months
from bursar_server.kit import ids
from bursar_server.kit.errors import BursarError, Reason
from bursar_server.kit.periods import period_key
from bursar_server.ledger.model import BalanceKey, GrantState, Hold
from bursar_server.ledger.rules import in_waterfall_order
from bursar_server.ledger.service import Books
from bursar_server.metering.model import Policy, PrincipalRef, Subject
from bursar_server.metering.store import RateKey
from bursar_server.metering.waits import Waits
from bursar_server.pricing.model import Price

PriceOf = Callable[[UUID, str, str, str, datetime, bool], Price | None]
"""The price in effect for a tenant, provider, model and tier at an instant, and whether the provider reported a cost."""


@dataclass
class Rates:
    """The rate windows that the batch has locked, and which of them it counted in or has to make."""

    requests: dict[RateKey, int]
    stored: frozenset[RateKey]
    changed: set[RateKey] = field(default_factory=set)


@dataclass
class BatchContext:
    """The state of one batch. `periods` collects the balances that calls needed, with what it takes to make them."""

    now: datetime
    policy: Policy
    books: Books
    subjects: Mapping[PrincipalRef, Subject]
    rates: Rates
    price_of: PriceOf
    months: Months
    # The tenants of calls that name no principal, by request.
    owners: Mapping[UUID, UUID]
    usual_nanos: Callable[[UUID, UUID | None, str], int | None]
    waits: Waits = field(default_factory=Waits)
    periods: dict[BalanceKey, tuple[datetime, datetime]] = field(default_factory=dict)
    audit: list[tuple[UUID, AuditEvent]] = field(default_factory=list)

    def require_month(self, request_id: UUID) -> None:
        """Raise DATABASE_UNAVAILABLE where no partition could take the call's record; they are made every minute."""
        made = ids.time_of_uuid7(request_id)
        if made is None or not self.months.start <= made < self.months.end:
            raise BursarError(
                Reason.DATABASE_UNAVAILABLE,
                "nothing can be recorded in the month of this call yet; try again in a minute",
            )

    def balance_key(self, budget: Budget, instant: datetime) -> BalanceKey:
        """Return the key of the balance that an instant counts in; one that is not locked has its period remembered."""
        period = budget.period_at(instant)
        key = (budget.tenant_id, budget.budget_id, period_key(period.start, budget.definition_revision))
        if key not in self.books.balances:
            self.periods[key] = (period.start, period.end)
        return key

    def owner_of(self, request_id: UUID) -> UUID | None:
        """Return the tenant that has a call already, calls that this batch made included."""
        owner = self.owners.get(request_id)
        if owner is not None:
            return owner
        books = self.books
        known = (
            tenant_id
            for tenant_id, known in (*books.holds, *books.past, *books.records)
            if known == request_id
        )
        return next(known, None)

    def active_grants(self, subject: Subject, instant: datetime) -> list[GrantState]:
        """Return the user's grants that a call made then can draw on, in the order they are spent (S7)."""
        grants = [self.books.grant((subject.tenant_id, grant_id)) for grant_id in subject.grant_ids]
        return in_waterfall_order(
            [grant for grant in grants if grant.active_at(instant) and grant.spent_nanos < grant.amount_nanos]
        )

    def hold_of(self, request_id: UUID, tenant_id: UUID | None) -> Hold | None:
        """Return a call's open hold; where the tenant is not known, the only one of that id."""
        if tenant_id is not None:
            return self.books.holds.get((tenant_id, request_id))
        found = [hold for key, hold in self.books.holds.items() if key[1] == request_id]
        return found[0] if len(found) == 1 else None
