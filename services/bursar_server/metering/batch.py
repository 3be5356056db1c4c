"""One transaction for whatever waits: lock and read in one round trip, evaluate, write and commit in another.

Where its lane remembers all that a batch needs, there is only the second round trip, which confirms it.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from uuid import UUID

from bursar_server.db.binary import array_of, columns_of
from bursar_server.db.connection import tenant_lock_key
from bursar_server.db.lane import (
    DatabaseError,
)
from bursar_server.kit import ids
from bursar_server.kit.errors import BursarError, Reason
from bursar_server.ledger import service as ledger
from bursar_server.ledger.model import BalanceKey, CallKey
from bursar_server.ledger.service import MissingRowsError
from bursar_server.metering import rules, store
from bursar_server.metering.context import BatchContext, Rates
from bursar_server.metering.evaluation import Outcome, Result, evaluate
from bursar_server.metering.model import (
    Call,
    CheckCall,
    DeductCall,
    ExpireCall,
    PrincipalRef,
    Problem,
    ReleaseCall,
    Subject,
)
from bursar_server.metering.needs import Needs, holding_budgets, times
from bursar_server.metering.session import Session
from bursar_server.metering.waits import PLACE_LASTS, WaitKey, Waits
from bursar_server.metering.writes import write
from bursar_server.pricing.model import Price

MAX_ROUNDS = 12
# How many of a tenant's calls are read to begin with, to know what calls usually cost.
RECENT_CALLS = 2_000
MAX_KNOWN_BALANCES = 200_000


class StaleDirectoryError(Exception):
    """The configuration changed since it was read: the batch is repeated with what is new."""


class MappedIdsError(Exception):
    """Other ids stand for some that were given (S16): the batch is repeated with these."""

    def __init__(self, mapped: dict[tuple[UUID, str], UUID]) -> None:
        super().__init__("other ids stand for some that were given")
        self.mapped = mapped


class BatchRunner:
    """Runs batches on one connection. Belongs to one lane; not shared between threads."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._known_balances: set[BalanceKey] = set()

    def run(self, calls: Sequence[Call], lock_timeout_ms: int | None = None) -> Outcome:
        """Evaluate calls one after the other in one transaction; their effects are committed when this returns.

        `lock_timeout_ms` is for calls whose rows somebody else holds: how long to wait for them, instead of the lane's.

        A call that fails by itself answers its BursarError and changes nothing. Database errors are raised, with
        nothing committed, except where the connection broke during the commit.
        """
        needs = self._needs_of(calls)
        for _ in range(MAX_ROUNDS):
            try:
                return self._round(calls, needs, lock_timeout_ms)
            except MissingRowsError as missing:
                self.session.rollback()
                self._insert_balances(missing.periods)
                needs.balances |= missing.balances
                needs.grants |= missing.grants
            except StaleDirectoryError:
                self.session.rollback()
                needs = self._needs_of(calls, reload=True, mapped=needs.mapped)
            except MappedIdsError as found:
                self.session.rollback()
                needs = self._needs_of(calls, mapped=found.mapped)
            except BaseException:
                with suppress(DatabaseError):
                    self.session.rollback()
                raise
        raise BursarError(
            Reason.DATABASE_UNAVAILABLE, "the configuration changes faster than it can be read; try again"
        )

    def leave_waits(self, keys: Sequence[WaitKey]) -> None:
        """Take calls out of the queues of their budgets: they have their answer."""
        store.leave_waits(self.session.connection, keys)

    def renew_waits(self, keys: Sequence[WaitKey]) -> None:
        """Let calls keep their places in the queues of their budgets: they still wait."""
        store.renew_waits(self.session.connection, keys, PLACE_LASTS)

    def _needs_of(
        self,
        calls: Sequence[Call],
        *,
        reload: bool = False,
        mapped: dict[tuple[UUID, str], UUID] | None = None,
    ) -> Needs:
        refs = [call.principal for call in calls if not isinstance(call, ExpireCall)]
        subjects = self.session.directory.subjects(self.session.connection, refs, reload=reload)
        needs = Needs(subjects, {}, mapped=mapped or {})
        now = self.session.database_now()
        unnamed = [
            call.request_id
            for call in calls
            if isinstance(call, DeductCall | ReleaseCall)
            and (call.principal.empty or subjects[call.principal].problem is Problem.KEY_UNKNOWN)
        ]
        if unnamed:
            asked = [request_id for request_id in unnamed if request_id is not None]
            needs.owners.update(store.tenants_of_calls(self.session.connection, asked))
            # Where it is this batch that makes the call, the others of the same id tell whose it can be.
            likely = {
                subjects[call.principal].tenant_id
                for call in calls
                if not isinstance(call, ExpireCall) and call.request_id in asked and not call.principal.empty
            }
            owners = {PrincipalRef.of_tenant(tenant_id) for tenant_id in (*needs.owners.values(), *likely)}
            subjects.update(self.session.directory.subjects(self.session.connection, owners, reload=reload))
        for index, call in enumerate(calls):
            if isinstance(call, ExpireCall):
                tenant_id, request_id = call.tenant_id, call.request_id
            else:
                tenant_id = subjects[call.principal].tenant_id
                request_id = self._request_id(call, tenant_id, now, needs)
                tenant_id = needs.owners.get(request_id, tenant_id)
            needs.request_ids[index] = request_id
            needs.tenants.add(tenant_id)
            needs.held.add(request_id)
            if not isinstance(call, CheckCall):
                hold = self.session.memory.hold((tenant_id, request_id))
                if hold is None:
                    needs.unknown_legs.add(request_id)
                else:
                    needs.balances.update(leg.key for leg in hold.legs)
            needs.calls.add((tenant_id, request_id))
            if isinstance(call, CheckCall):
                self._needs_of_check(call, subjects[call.principal], now, needs)
            elif isinstance(call, DeductCall):
                grant_ids = subjects[call.principal].grant_ids
                needs.grants.update((tenant_id, grant_id) for grant_id in grant_ids)
        self._make_balances(now, needs)
        return needs

    def _needs_of_check(self, call: CheckCall, subject: Subject, now: datetime, needs: Needs) -> None:
        tags = {**(subject.default_tags or {}), **call.tags}
        for budget in rules.applicable(subject, tags)[: rules.MAX_BUDGETS_PER_CALL]:
            needs.balances.add((budget.tenant_id, budget.budget_id, budget.period_key_at(now)))
        needs.grants.update((subject.tenant_id, grant_id) for grant_id in subject.grant_ids)

    def _make_balances(self, now: datetime, needs: Needs) -> None:
        """Make and commit the balances of periods that are new to this process."""
        unknown = needs.balances - self._known_balances
        if not unknown:
            return
        budgets = {
            budget.budget_id: budget for subject in needs.subjects.values() for budget in subject.budgets
        }
        periods = {key: budgets[key[1]].period_at(now) for key in unknown if key[1] in budgets}
        self._insert_balances((key, period.start, period.end) for key, period in periods.items())

    def _insert_balances(self, periods: Iterable[tuple[BalanceKey, datetime, datetime]]) -> None:
        rows = list(periods)
        if not rows:
            return
        ledger.make_balances(self.session.connection, rows)
        if len(self._known_balances) > MAX_KNOWN_BALANCES:
            self._known_balances.clear()
        self._known_balances.update(key for key, _, _ in rows)

    def _request_id(
        self, call: CheckCall | DeductCall | ReleaseCall, tenant_id: UUID, now: datetime, needs: Needs
    ) -> UUID:
        """Return the id that a call is recorded under: its own, unless that cannot be placed or another stands for it (S16)."""
        if not isinstance(call, DeductCall):
            return call.request_id
        given = call.request_id
        mapped = needs.mapped.get((tenant_id, call.said_id))
        if mapped is not None:
            return mapped
        if given is not None and _can_be_placed(given, now):
            return given
        # What this process takes for now may be wrong: it slept, or the database's clock was set. And a call that is in
        # the books has its place in them, wherever the clock was when it came there.
        connection, now = self.session.connection, self.session.asked_now()
        if given is not None and (
            _can_be_placed(given, now)
            or given in needs.owners
            or store.is_known(connection, tenant_id, given)
        ):
            return given
        return store.odd_request_id(connection, tenant_id, call.said_id, ids.uuid7_at(now), now)

    def _round(self, calls: Sequence[Call], needs: Needs, lock_timeout_ms: int | None) -> Outcome:
        context = self._locked(calls, needs, lock_timeout_ms)
        results: list[Result] = []
        missing = MissingRowsError()
        for index, call in enumerate(calls):
            try:
                results.append(evaluate(call, needs.request_ids[index], context))
            except MissingRowsError as error:
                # The others say too what they miss: one more round is enough for all of them.
                missing.balances |= error.balances
                missing.grants |= error.grants
        if missing.balances or missing.grants:
            missing.periods = [
                (key, *context.periods[key]) for key in missing.balances if key in context.periods
            ]
            raise missing
        write(self.session.pipeline, context)
        self.session.memory.learn(context.books)
        return self.session.committed(results, context)

    def _locked(self, calls: Sequence[Call], needs: Needs, lock_timeout_ms: int | None) -> BatchContext:
        """Lock and read everything that the batch needs, in one round trip."""
        connection = self.session.connection
        months = self.session.fresh_months()
        tenants = [*needs.tenants, ids.PLATFORM_TENANT_ID]
        rate_keys = self._rate_keys(calls, needs)
        queued = holding_budgets(calls, needs.subjects)
        send = self.session.pipeline.send
        send("BEGIN")
        if lock_timeout_ms is not None:
            send(store.SET_LOCK_TIMEOUT, f"{lock_timeout_ms}ms")
        send(
            store.LOCK_TENANTS, "{" + ",".join(str(tenant_lock_key(tenant_id)) for tenant_id in tenants) + "}"
        )
        of_versions = send(store.READ_VERSIONS, array_of(tenants))
        fetch = ledger.send_locks(
            send, needs.balances, needs.grants, needs.held, needs.calls, needs.unknown_legs
        )
        of_rates = send(store.LOCK_RATES, *columns_of(rate_keys, 2), times(rate_keys)) if rate_keys else None
        of_waits = send(store.READ_WAITS, *columns_of(queued, 2)) if queued else None
        late = self._placed_late(calls, needs)
        of_mapped = send(store.READ_MAPPED_IDS, *columns_of(late, 2)) if late else None
        self.session.pipeline.run()
        version_rows = of_versions.rows()
        locked = fetch()
        rate_rows = of_rates.rows() if of_rates else []
        waits = Waits()
        for budget_id, since, request_id in of_waits.rows() if of_waits else []:
            waits.queues.setdefault(budget_id, []).append((since, request_id))
        versions = {row[0]: row[1] for row in version_rows}
        now: datetime = version_rows[0][2]
        self.session.note_time(now)
        self._refuse_stale(needs, versions)
        mapped = {(row[0], row[1]): row[2] for row in of_mapped.rows()} if of_mapped else {}
        if mapped:
            raise MappedIdsError(needs.mapped | mapped)
        budget_of = self.session.directory.budgets(connection, {key[:2] for key in locked.balances}, versions)
        stored = {(row[0], row[1], row[2]): row[3] for row in rate_rows}

        found: dict[tuple[UUID, str, str, str, datetime, bool], Price | None] = {}

        def price_of(
            tenant_id: UUID, provider: str, model: str, tier: str, at: datetime, reported: bool
        ) -> Price | None:
            # The calls of a batch were checked in a few batches before: most of them ask for the same.
            asked = (tenant_id, provider, model, tier, at, reported)
            if asked not in found:
                found[asked] = self.session.directory.price(connection, versions, *asked)
            return found[asked]

        return BatchContext(
            now,
            self.session.policy,
            ledger.books_of(locked, now, budget_of),
            needs.subjects,
            Rates(dict(stored), frozenset(stored)),
            price_of,
            months,
            needs.owners,
            self._usual_nanos,
            waits,
        )

    def _usual_nanos(self, tenant_id: UUID, api_key_id: UUID | None, model: str) -> int | None:
        """Return what such calls usually cost; a tenant's recent ones are read when it is first asked about."""
        history = self.session.history
        if not history.has_read(tenant_id):
            history.add(store.recent_costs(self.session.connection, tenant_id, RECENT_CALLS))
            history.note_read(tenant_id)
        return history.expected_nanos(tenant_id, api_key_id, model)

    def _placed_late(self, calls: Sequence[Call], needs: Needs) -> list[CallKey]:
        """Return the calls of Deducts whose ids can be placed now, but perhaps could not when they came first."""
        late = []
        for index, call in enumerate(calls):
            request_id = needs.request_ids[index]
            if (
                isinstance(call, DeductCall)
                and call.request_id == request_id
                and request_id in needs.unknown_legs
            ):
                tenant_id = needs.subjects[call.principal].tenant_id
                late.append((needs.owners.get(request_id, tenant_id), request_id))
        return late

    def _rate_keys(self, calls: Sequence[Call], needs: Needs) -> list[store.RateKey]:
        window = rules.minute_of(self.session.database_now())
        limited = {
            (subject.tenant_id, subject.user_id, minute)
            for call in calls
            if isinstance(call, CheckCall)
            and (subject := needs.subjects[call.principal]).user_id is not None
            and subject.rate_limit > 0
            # The minute can turn between this guess and the database's decision.
            for minute in (window, window + timedelta(minutes=1))
        }
        return sorted(key for key in limited if key[1] is not None)

    def _refuse_stale(self, needs: Needs, versions: dict[UUID, int]) -> None:
        platform = versions[ids.PLATFORM_TENANT_ID]
        for subject in needs.subjects.values():
            known = versions.get(subject.tenant_id)
            if known is None:
                continue
            if subject.tenant_version != known or subject.platform_version != platform:
                raise StaleDirectoryError


def _can_be_placed(request_id: UUID, now: datetime) -> bool:
    made = ids.time_of_uuid7(request_id)
    return made is not None and made <= now + rules.FARTHEST_AHEAD
