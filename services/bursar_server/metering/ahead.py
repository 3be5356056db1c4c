"""A batch evaluated on what its lane remembers: no round trip before, and one to confirm, write and commit.

What it takes for granted: the configuration at the versions remembered, balances and holds as the lane left them, that
its Checks are new, and that nobody waits. Each is confirmed in the transaction that writes what follows from it.
"""

from collections import deque
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from bursar_server.budgets.model import Budget
from bursar_server.db.binary import array_of, columns_of
from bursar_server.db.connection import tenant_lock_key
from bursar_server.db.lane import (
    FOLLOWS_ERROR,
    REPEATABLE_ERRORS,
    UNCONFIRMED_ERROR,
    Answer,
    Send,
)
from bursar_server.kit import ids
from bursar_server.ledger import service as ledger
from bursar_server.ledger.model import CallKey, Hold
from bursar_server.ledger.service import MissingRowsError
from bursar_server.metering import store
from bursar_server.metering.context import BatchContext, Rates
from bursar_server.metering.evaluation import Outcome, Result, evaluate
from bursar_server.metering.memory import NotRememberedError
from bursar_server.metering.model import Call, CheckCall, DeductCall, PrincipalRef, Subject
from bursar_server.metering.needs import holding_budgets
from bursar_server.metering.session import Session
from bursar_server.pricing.model import Price


class Ahead(NamedTuple):
    """A batch's context from memory, the calls' ids, and what has to be confirmed beside the rows."""

    context: BatchContext
    request_ids: list[UUID]
    versions: dict[UUID, int]
    new_calls: list[CallKey]

    def send_confirmations(self, send: Send, calls: Sequence[Call]) -> Answer:
        """Queue the transaction's beginning; the answer returned has the database's clock."""
        send("BEGIN")
        tenants = sorted(self.versions)
        send(store.LOCK_TENANTS, "{" + ",".join(str(tenant_lock_key(tenant)) for tenant in tenants) + "}")
        of_clock = send(
            store.CONFIRM_VERSIONS,
            str(len(tenants)),
            self.context.now.isoformat(),
            array_of(tenants),
            "{" + ",".join(str(self.versions[tenant]) for tenant in tenants) + "}",
        )
        if self.new_calls:
            ledger.confirm_new(send, self.new_calls, self.context.books.holds)
        queued = holding_budgets(calls, self.context.subjects)
        if queued:
            send(store.CONFIRM_NO_WAITS, *columns_of(queued, 2))
        return of_clock


class _Sent(NamedTuple):
    """A batch that is sent: its answers once it is committed."""

    results: list[Result]
    context: BatchContext
    of_clock: Answer


def ahead(calls: Sequence[Call], session: Session) -> Ahead:
    """Return what a batch is evaluated on, from memory alone; raises NotRememberedError, also later from its context.

    Grants, limits of requests, calls that nothing but their id is known of and whatever is not a Check or a Deduct are
    left to a batch that reads.
    """
    memory, directory, history = session.memory, session.directory, session.history
    now = session.database_now()
    asked: list[CheckCall | DeductCall] = []
    for call in calls:
        if not isinstance(call, CheckCall | DeductCall) or call.principal.empty:
            raise NotRememberedError
        asked.append(call)
    subjects = directory.remembered({call.principal for call in asked})
    versions = _versions(subjects)
    request_ids: list[UUID] = []
    new_calls: list[CallKey] = []
    holds: dict[CallKey, Hold] = {}
    for call in asked:
        subject = subjects[call.principal]
        if call.request_id is None:
            raise NotRememberedError
        key = (subject.tenant_id, call.request_id)
        hold = memory.hold(key)
        if isinstance(call, CheckCall):
            if hold is not None or subject.grant_ids or subject.rate_limit or subject.new_email:
                raise NotRememberedError
            new_calls.append(key)
        elif hold is None or hold.grant_legs:
            raise NotRememberedError
        else:
            holds[key] = hold
        request_ids.append(call.request_id)

    prices: dict[tuple[UUID, str, str, str, datetime, bool], Price | None] = {}

    def price_of(
        tenant_id: UUID, provider: str, model: str, tier: str, at: datetime, reported: bool
    ) -> Price | None:
        wanted = (tenant_id, provider, model, tier, at, reported)
        if wanted not in prices:
            prices[wanted] = directory.price(None, versions, *wanted)
        return prices[wanted]

    def budget_of(budget_id: UUID) -> Budget:
        return directory.remembered_budget(budget_id, versions)

    def usual_nanos(tenant_id: UUID, api_key_id: UUID | None, model: str) -> int | None:
        if not history.has_read(tenant_id):
            raise NotRememberedError
        return history.expected_nanos(tenant_id, api_key_id, model)

    books = ledger.books_ahead(holds, now, budget_of, memory.balance)
    context = BatchContext(
        now,
        session.policy,
        books,
        subjects,
        Rates({}, frozenset()),
        price_of,
        session.months(),
        {},
        usual_nanos,
    )
    return Ahead(context, request_ids, versions, new_calls)


def needs_reading(context: BatchContext) -> bool:
    """Whether what came of an evaluation depends on rows that are not remembered: queues, windows, the trail's end."""
    return bool(context.audit or context.waits.joined or context.waits.left or context.rates.changed)


def _versions(subjects: dict[PrincipalRef, Subject]) -> dict[UUID, int]:
    """Return the versions that the subjects were read at, by tenant; there is one of each, or they are read again."""
    versions: dict[UUID, int] = {}
    for subject in subjects.values():
        of_tenant = versions.setdefault(subject.tenant_id, subject.tenant_version)
        of_platform = versions.setdefault(ids.PLATFORM_TENANT_ID, subject.platform_version)
        if of_tenant != subject.tenant_version or of_platform != subject.platform_version:
            raise NotRememberedError
    return versions


class AheadRunner:
    """Runs batches on what is remembered. Up to MAX_UNDER_WAY are sent before the first is committed."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._under_way: deque[_Sent] = deque()

    def launch(self, calls: Sequence[Call]) -> bool:
        """Evaluate a batch and send it; False, and nothing is sent, where it takes more than is remembered.

        The next one is evaluated on what this one leaves, before it is committed: if it is not, that one fails too.
        """
        session = self._session
        if not self.usable:
            return False
        try:
            batch = ahead(calls, session)
            results = [
                evaluate(call, request_id, batch.context)
                for call, request_id in zip(calls, batch.request_ids, strict=True)
            ]
        except (NotRememberedError, MissingRowsError):
            return False
        if needs_reading(batch.context):
            return False
        send = session.pipeline.send
        of_clock = batch.send_confirmations(send, calls)
        batch.context.books.send_writes(send)
        send("COMMIT")
        session.pipeline.launch()
        session.memory.learn(batch.context.books)
        self._under_way.append(_Sent(results, batch.context, of_clock))
        return True

    @property
    def file(self) -> int:
        """The file that is readable when the server answers; what came with an earlier answer has `arrived` already."""
        return self._session.connection.fileno()

    @property
    def usable(self) -> bool:
        """Whether a batch can be launched, as far as that does not depend on its calls."""
        session = self._session
        return session.ready and session.memory.usable(session.clock.monotonic())

    def flushed(self) -> bool:
        """Whether all that was launched has gone out; does not wait."""
        return self._session.pipeline.flushed()

    def arrived(self) -> bool:
        """Take in what the server says, without waiting; whether the answer to what was launched first is here."""
        return self._session.pipeline.arrived()

    @property
    def refused(self) -> bool:
        """Whether the batch whose answer has arrived was not committed."""
        return self._session.pipeline.failed

    def land(self) -> Outcome | None:
        """Wait for the batch that was launched first; None where something was not as remembered: nothing is committed.

        Other database errors are raised; then, too, nothing is committed, except where the connection broke.
        """
        session = self._session
        sent = self._under_way.popleft()
        try:
            session.pipeline.land()
        except (UNCONFIRMED_ERROR, FOLLOWS_ERROR, *REPEATABLE_ERRORS):
            session.memory.refuted(sent.context.books, session.clock.monotonic())
            if not self._under_way:
                session.rollback()
            return None
        [(now, _)] = sent.of_clock.rows()
        session.note_time(now)
        session.memory.confirmed()
        return session.committed(sent.results, sent.context)
