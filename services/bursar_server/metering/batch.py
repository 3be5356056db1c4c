"""One transaction for whatever waits: lock and read in one round trip, evaluate, write and commit in another."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from bursar_server.budgets.model import Budget
from bursar_server.db.connection import tenant_lock_key
from bursar_server.db.lane import DatabaseError, LaneConnection, Pipeline, array_of, columns_of
from bursar_server.kit import ids
from bursar_server.kit.clock import Clock
from bursar_server.kit.errors import BursarError, Reason
from bursar_server.ledger import service as ledger
from bursar_server.ledger.model import BalanceKey, FiredThreshold, Record, Source
from bursar_server.ledger.service import MissingRowsError
from bursar_server.metering import rules, store
from bursar_server.metering.checks import evaluate_check
from bursar_server.metering.context import BatchContext, Rates
from bursar_server.metering.deducts import evaluate_deduct, evaluate_expiry, evaluate_release
from bursar_server.metering.directory import Directory
from bursar_server.metering.history import CostHistory
from bursar_server.metering.model import (
    Answer,
    Call,
    CheckCall,
    DeductCall,
    ExpireCall,
    Policy,
    PrincipalRef,
    Problem,
    ReleaseCall,
    Subject,
)
from bursar_server.metering.needs import Needs, OpenLegs, holding_budgets, times
from bursar_server.metering.waits import PLACE_LASTS, WaitKey, Waits
from bursar_server.metering.writes import write
from bursar_server.pricing.model import Price

MAX_ROUNDS = 12
# How many of a tenant's calls are read to begin with, to know what calls usually cost.
RECENT_CALLS = 2_000
MAX_KNOWN_BALANCES = 200_000

Result = Answer | BursarError


class StaleDirectoryError(Exception):
    """The configuration changed since it was read: the batch is repeated with what is new."""


@dataclass(slots=True)
class Outcome:
    """What a committed batch answered, the thresholds that it reached, and the calls whose lease it charged."""

    results: list[Result]
    fired: list[tuple[Budget, FiredThreshold]] = field(default_factory=list)
    expired: list[Record] = field(default_factory=list)
    # Whether holds were removed, so that calls that wait can be decided again.
    freed: bool = False


class BatchRunner:
    """Runs batches on one connection. Belongs to one lane; not shared between threads."""

    def __init__(
        self,
        connection: LaneConnection,
        directory: Directory,
        history: CostHistory,
        policy: Policy,
        clock: Clock,
    ) -> None:
        self._connection = connection
        self._pipeline = Pipeline(connection)
        self._directory = directory
        self._policy = policy
        self._clock = clock
        self._history = history
        self._known_balances: set[BalanceKey] = set()
        self._open_legs = OpenLegs()
        self._oldest_record: datetime | None = None
        self._database_time: tuple[datetime, float] | None = None

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
                self._rollback()
                self._insert_balances(missing.periods)
                needs.balances |= missing.balances
                needs.grants |= missing.grants
            except StaleDirectoryError:
                self._rollback()
                needs = self._needs_of(calls, reload=True)
            except BaseException:
                with suppress(DatabaseError):
                    self._rollback()
                raise
        raise BursarError(
            Reason.DATABASE_UNAVAILABLE, "the configuration changes faster than it can be read; try again"
        )

    def _rollback(self) -> None:
        # Not through psycopg, which forgets every prepared statement of the connection with it, the pipeline's too.
        self._pipeline.send("ROLLBACK")
        self._pipeline.run()

    def database_now(self) -> datetime:
        """Return about what the database's clock says; the batch itself asks it."""
        if self._database_time is None:
            row = self._connection.execute("SELECT clock_timestamp()").fetchone()
            assert row is not None  # noqa: S101  (a SELECT without FROM has one row)
            self._database_time = (row[0], self._clock.monotonic())
        at, monotonic = self._database_time
        return at + timedelta(seconds=self._clock.monotonic() - monotonic)

    def oldest_record(self) -> datetime:
        """Return the first instant whose records are kept."""
        if self._oldest_record is None:
            name = store.oldest_partition_name(self._connection)
            if name is None:
                raise BursarError(
                    Reason.DATABASE_UNAVAILABLE, "the database has no partitions; run `bursar migrate`"
                )
            year, month = name.removeprefix("usage_records_").split("_")
            self._oldest_record = self.database_now().replace(
                year=int(year), month=int(month), day=1, hour=0, minute=0, second=0, microsecond=0
            )
        return self._oldest_record

    def leave_waits(self, keys: Sequence[WaitKey]) -> None:
        """Take calls out of the queues of their budgets: they have their answer."""
        store.leave_waits(self._connection, keys)

    def renew_waits(self, keys: Sequence[WaitKey]) -> None:
        """Let calls keep their places in the queues of their budgets: they still wait."""
        store.renew_waits(self._connection, keys, PLACE_LASTS)

    def forget_partitions(self) -> None:
        """Look for the oldest partition again: months were made or dropped."""
        self._oldest_record = None

    def _needs_of(self, calls: Sequence[Call], *, reload: bool = False) -> Needs:
        refs = [call.principal for call in calls if not isinstance(call, ExpireCall)]
        subjects = self._directory.subjects(self._connection, refs, reload=reload)
        needs = Needs(subjects, {})
        now = self.database_now()
        unnamed = [
            call.request_id
            for call in calls
            if isinstance(call, DeductCall | ReleaseCall)
            and (call.principal.empty or subjects[call.principal].problem is Problem.KEY_UNKNOWN)
        ]
        if unnamed:
            asked = [request_id for request_id in unnamed if request_id is not None]
            needs.owners.update(store.tenants_of_calls(self._connection, asked))
            # Where it is this batch that makes the call, the others of the same id tell whose it can be.
            likely = {
                subjects[call.principal].tenant_id
                for call in calls
                if not isinstance(call, ExpireCall) and call.request_id in asked and not call.principal.empty
            }
            owners = {PrincipalRef.of_tenant(tenant_id) for tenant_id in (*needs.owners.values(), *likely)}
            subjects.update(self._directory.subjects(self._connection, owners, reload=reload))
        for index, call in enumerate(calls):
            if isinstance(call, ExpireCall):
                tenant_id, request_id = call.tenant_id, call.request_id
            else:
                tenant_id = subjects[call.principal].tenant_id
                request_id = self._request_id(call, tenant_id, now)
                tenant_id = needs.owners.get(request_id, tenant_id)
            needs.request_ids[index] = request_id
            needs.tenants.add(tenant_id)
            needs.held.add(request_id)
            if not isinstance(call, CheckCall):
                self._open_legs.need(needs, (tenant_id, request_id))
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
        ledger.make_balances(self._connection, rows)
        if len(self._known_balances) > MAX_KNOWN_BALANCES:
            self._known_balances.clear()
        self._known_balances.update(key for key, _, _ in rows)

    def _request_id(self, call: CheckCall | DeductCall | ReleaseCall, tenant_id: UUID, now: datetime) -> UUID:
        """Return the id that a call is recorded under: its own, unless no partition can take it (S16)."""
        if isinstance(call, DeductCall):
            made = ids.time_of_uuid7(call.request_id) if call.request_id else None
            if call.request_id is None or made is None or made > now + rules.FARTHEST_AHEAD:
                return store.odd_request_id(
                    self._connection, tenant_id, call.given_id, ids.uuid7_at(now), now
                )
            return call.request_id
        return call.request_id

    def _round(self, calls: Sequence[Call], needs: Needs, lock_timeout_ms: int | None) -> Outcome:
        context = self._locked(calls, needs, lock_timeout_ms)
        results: list[Result] = []
        missing = MissingRowsError()
        for index, call in enumerate(calls):
            try:
                results.append(self._evaluate(call, needs.request_ids[index], context))
            except MissingRowsError as error:
                # The others say too what they miss: one more round is enough for all of them.
                missing.balances |= error.balances
                missing.grants |= error.grants
        if missing.balances or missing.grants:
            missing.periods = [
                (key, *context.periods[key]) for key in missing.balances if key in context.periods
            ]
            raise missing
        write(self._pipeline, context)
        self._open_legs.learn(context.books)
        self._history.add(
            (tenant_id, record.attribution.api_key_id, record.model, record.cost.total_nanos)
            for (tenant_id, _), records in context.books.records.items()
            for record in records
            if record.source is Source.DEDUCT and record.revision == 0 and record.items
        )
        expired = [
            record
            for records in context.books.records.values()
            for record in records
            if record.source is Source.EXPIRY
        ]
        return Outcome(results, context.books.fired, expired, bool(context.books.gone_holds))

    def _evaluate(self, call: Call, request_id: UUID, context: BatchContext) -> Result:
        """Evaluate one call; a BursarError of its own is its answer. Nothing is changed before one is raised."""
        try:
            if isinstance(call, CheckCall):
                return evaluate_check(call, context)
            if isinstance(call, DeductCall):
                self._check_age(request_id, context)
                return evaluate_deduct(call, request_id, context)
            if isinstance(call, ReleaseCall):
                return evaluate_release(call, context)
            return evaluate_expiry(call, context)
        except BursarError as error:
            return error

    def _check_age(self, request_id: UUID, context: BatchContext) -> None:
        made = ids.time_of_uuid7(request_id)
        if made is None or made < context.oldest_record:
            raise BursarError(
                Reason.REQUEST_TOO_OLD, "request_id: older than the months that are kept", field="request_id"
            )

    def _locked(self, calls: Sequence[Call], needs: Needs, lock_timeout_ms: int | None) -> BatchContext:
        """Lock and read everything that the batch needs, in one round trip."""
        connection = self._connection
        oldest = self.oldest_record()
        tenants = [*needs.tenants, ids.PLATFORM_TENANT_ID]
        rate_keys = self._rate_keys(calls, needs)
        queued = holding_budgets(calls, needs)
        send = self._pipeline.send
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
        self._pipeline.run()
        version_rows = of_versions.rows()
        locked = fetch()
        rate_rows = of_rates.rows() if of_rates else []
        waits = Waits()
        for budget_id, since, request_id in of_waits.rows() if of_waits else []:
            waits.queues.setdefault(budget_id, []).append((since, request_id))
        versions = {row[0]: row[1] for row in version_rows}
        now: datetime = version_rows[0][2]
        self._database_time = (now, self._clock.monotonic())
        self._refuse_stale(needs, versions)
        budget_of = self._directory.budgets(connection, {key[:2] for key in locked.balances}, versions)
        stored = {(row[0], row[1], row[2]): row[3] for row in rate_rows}

        found: dict[tuple[UUID, str, str, str, datetime, bool], Price | None] = {}

        def price_of(
            tenant_id: UUID, provider: str, model: str, tier: str, at: datetime, reported: bool
        ) -> Price | None:
            # The calls of a batch were checked in a few batches before: most of them ask for the same.
            asked = (tenant_id, provider, model, tier, at, reported)
            if asked not in found:
                found[asked] = self._directory.price(connection, versions, *asked)
            return found[asked]

        return BatchContext(
            now,
            self._policy,
            ledger.books_of(locked, now, budget_of),
            needs.subjects,
            Rates(dict(stored), frozenset(stored)),
            price_of,
            oldest,
            needs.owners,
            self._usual_nanos,
            waits,
        )

    def _usual_nanos(self, tenant_id: UUID, api_key_id: UUID | None, model: str) -> int | None:
        """Return what such calls usually cost; a tenant's recent ones are read when it is first asked about."""
        if not self._history.knows(tenant_id):
            self._history.add(store.recent_costs(self._connection, tenant_id, RECENT_CALLS))
        return self._history.expected_nanos(tenant_id, api_key_id, model)

    def _rate_keys(self, calls: Sequence[Call], needs: Needs) -> list[store.RateKey]:
        window = rules.minute_of(self.database_now())
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
