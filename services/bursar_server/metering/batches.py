"""The batches of a lane: ahead of their rows where they can be, else in turn; what fails is repeated, halved or set aside."""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

from bursar_server.db.lane import (
    LOCKED_ERROR,
    REPEATABLE_ERRORS,
    ConnectionLostError,
    DatabaseError,
    LaneConnection,
)
from bursar_server.kit.clock import Clock
from bursar_server.kit.errors import BursarError, Reason
from bursar_server.metering.ahead import AheadRunner
from bursar_server.metering.batch import BatchRunner
from bursar_server.metering.directory import Directory
from bursar_server.metering.evaluation import Outcome
from bursar_server.metering.history import CostHistory
from bursar_server.metering.model import Call, CheckCall, ExpireCall, Policy
from bursar_server.metering.session import Session
from bursar_server.metering.tickets import Deliver, LockedOut, Ticket, WaitingRoom

MAX_REPEATS = 8
# How many batches are sent before the first is committed.
MAX_UNDER_WAY = 2
# How long a batch goes on trying while the database does not answer; then its calls are told so.
PATIENCE_S = 4.0
# How long calls whose rows were found locked wait for them each time that they are tried again.
LOCKED_TIMEOUT_MS = 50

logger = logging.getLogger(__name__)


class Batches:
    """Runs tickets on a lane's connection. `launch`, `arrived` and `land` of what has arrived never wait; the rest does."""

    def __init__(
        self,
        connect: Callable[[], LaneConnection],
        policy: Policy,
        clock: Clock,
        on_batch: Callable[[Outcome, int], None],
        deliver: Deliver,
    ) -> None:
        self._connect = connect
        self._policy = policy
        self._clock = clock
        self._on_batch = on_batch
        self._deliver = deliver
        self.directory = Directory()
        self._history = CostHistory()
        self.runner: BatchRunner | None = None
        self._ahead: AheadRunner | None = None
        # Whether the connection is to be dropped once what is under way has landed.
        self._broken = False
        # Batches that are sent and not committed yet, in the order they were sent.
        self._under_way: deque[list[Ticket]] = deque()
        self.room = WaitingRoom()
        self.locked = LockedOut()

    @property
    def under_way(self) -> int:
        """How many batches are sent and not committed yet."""
        return len(self._under_way)

    @property
    def full(self) -> bool:
        """Whether one has to be committed before the next is sent."""
        return len(self._under_way) >= MAX_UNDER_WAY

    @property
    def usable_ahead(self) -> bool:
        """Whether batches can be launched, as far as that does not depend on their calls."""
        return self._ahead is not None and not self._broken and self._ahead.usable

    @property
    def nobody_aside(self) -> bool:
        """Whether nobody waits for holds or for locked rows."""
        return not self.room and not self.locked

    def file(self) -> int | None:
        """Return the file that is readable when the server answers; None where there is no connection, or none any more."""
        if self._ahead is None:
            return None
        try:
            return self._ahead.file
        except DatabaseError:
            self._broken = True
            return None

    def give_up_connection(self) -> None:
        """Have the connection dropped once what is under way has landed."""
        self._broken = True

    def flushed(self) -> bool:
        """Whether all that was launched has gone out; does not wait."""
        if self._ahead is None:
            return True
        try:
            return self._ahead.flushed()
        except DatabaseError:
            self._broken = True
            return False

    def arrived(self) -> bool:
        """Take in what the server says; whether the batch that was sent first is committed: it lands without waiting."""
        if self._ahead is None:
            return False
        try:
            return self._ahead.arrived() and not self._ahead.refused
        except DatabaseError:
            self._broken = True
            return False

    @property
    def stuck(self) -> bool:
        """Whether a batch was refused or the connection is lost: whoever may wait lands what is under way."""
        return self._broken or (self._ahead is not None and self._ahead.refused)

    def launch(self, tickets: list[Ticket]) -> bool:
        """Send a batch before the one that was sent last is committed; False where it has to be run by itself."""
        if self.locked or self._ahead is None or self._broken or self._late(tickets):
            return False
        try:
            if not self._ahead.launch([ticket.call for ticket in tickets]):
                return False
        except Exception:
            # Whatever it is, it comes again where it can be told apart.
            self._broken = True
            return False
        self._under_way.append(tickets)
        return True

    def land(self, but: int = 0) -> None:
        """Wait until the batches that are under way are committed, all but so many; what failed is run again."""
        again: list[list[Ticket]] = []
        while len(self._under_way) > (0 if again or self._broken else but):
            tickets = self._under_way.popleft()
            try:
                outcome = self._ahead.land() if self._ahead else None
            except Exception:
                self.drop_connection()
                outcome = None
            if outcome is None:
                again.append(tickets)
            else:
                self._finish(tickets, outcome)
        if self._broken:
            self.drop_connection()
        for tickets in again:
            self.run(tickets)

    def serve(self, tickets: list[Ticket]) -> None:
        """Run calls that have to be run by themselves, but those of tenants whose rows are locked: they join the others."""
        if self.locked:
            free = []
            for ticket in tickets:
                tenant = self._tenant_of(ticket.call)
                if tenant in self.locked:
                    self._put_aside(tenant, [ticket])
                else:
                    free.append(ticket)
            tickets = free
        self.run(tickets)

    def due_waiters(self) -> list[Ticket]:
        """Answer those that have waited long enough, and return those to decide again."""
        now = self._clock.monotonic()
        over = self.room.take_over(now)
        if over:
            self._leave_waits(over)
            self._deliver([(ticket, ticket.waiting.answer) for ticket in over if ticket.waiting])
        renew = self.room.take_renewals(now)
        if renew:
            with suppress(DatabaseError, BursarError):
                self._runner_now().renew_waits(renew)
        return self.room.take_due(now)

    def run(self, tickets: list[Ticket], *, aside: bool = False) -> None:
        """Run some calls in one transaction, after what is under way; where the database refuses, halve them down to the bad one.

        While somebody's rows are locked (`aside`: perhaps theirs) they are hardly waited for: others have their turn.
        """
        self.land()
        started = self._clock.monotonic()
        repeats = 0
        while tickets := self._in_time(tickets):
            calls = [ticket.call for ticket in tickets]
            lock_timeout_ms = LOCKED_TIMEOUT_MS if aside or self.locked else None
            try:
                outcome = self._runner_now().run(calls, lock_timeout_ms)
            except BursarError as error:
                self._answer_all(tickets, error)
                return
            except LOCKED_ERROR:
                self.drop_connection()
                self._set_aside(tickets)
                return
            except REPEATABLE_ERRORS as error:
                # What was prepared in a pipeline that broke is not there: a new connection knows nothing of it.
                self.drop_connection()
                repeats += 1
                if repeats < MAX_REPEATS:
                    continue
                self._split(tickets, error)
                return
            except ConnectionLostError as error:
                self.drop_connection()
                if self._clock.monotonic() - started > PATIENCE_S:
                    logger.warning("database unavailable: %s", type(error).__name__)
                    self._answer_all(tickets, unavailable("the database does not answer; try again"))
                    return
                time.sleep(min(0.5, 0.05 * (1 + repeats)))
                repeats += 1
                continue
            except Exception as error:
                self.drop_connection()
                self._split(tickets, error)
                return
            self._finish(tickets, outcome)
            return

    def session(self) -> Session:
        """Return what batches share; connects where that is to be done."""
        return self._runner_now().session

    def drop_connection(self) -> None:
        """Close the connection; the next batch makes a new one. What was launched on it may be committed or not."""
        runner, self.runner, self._ahead = self.runner, None, None
        self._broken = False
        if runner is not None:
            with suppress(DatabaseError):
                runner.session.connection.close()

    def close(self) -> None:
        """Land what is under way, answer those who wait still, and close the connection."""
        self.land()
        self._deliver([(ticket, ticket.waiting.answer) for ticket in self.room.take_all() if ticket.waiting])
        self._answer_all(
            self.locked.take_all(), unavailable("the rows are locked by somebody else; try again")
        )
        self.drop_connection()

    def _leave_waits(self, tickets: Sequence[Ticket]) -> None:
        """Take calls out of the queues they stand in: they are in nobody's way once they have their answer."""
        keys = [key for ticket in tickets for key in ticket.keys]
        if keys:
            with suppress(DatabaseError, BursarError):
                self._runner_now().leave_waits(keys)

    def _tenant_of(self, call: Call) -> object:
        """Return the tenant that a call is of, or what names it (or the call) as long as that is not known."""
        if isinstance(call, ExpireCall):
            return call.tenant_id
        if call.principal.empty:
            return call.request_id
        return self.directory.tenant_of(call.principal) or call.principal

    def _late(self, tickets: Sequence[Ticket]) -> list[Ticket]:
        """Return the Checks that come too late for their callers."""
        now = self._clock.monotonic()
        return [
            ticket
            for ticket in tickets
            if isinstance(ticket.call, CheckCall)
            and (
                (ticket.call.deadline is not None and ticket.call.deadline < now) or ticket.future.cancelled()
            )
        ]

    def _in_time(self, tickets: list[Ticket]) -> list[Ticket]:
        """Return the calls whose answer is of use; a Check that comes too late for its caller leaves no hold."""
        late = self._late(tickets)
        if not late:
            return tickets
        self._leave_waits(late)
        self._answer_all(late, BursarError(Reason.DEADLINE_EXCEEDED, "the deadline passed before the Check"))
        gone = {id(ticket) for ticket in late}
        return [ticket for ticket in tickets if id(ticket) not in gone]

    def _finish(self, tickets: list[Ticket], outcome: Outcome) -> None:
        """Answer the calls of a committed batch; those that have to wait are kept."""
        self._tell(outcome, len(tickets))
        if outcome.freed:
            self.room.look_now()
        self._deliver(self.room.keep(tickets, outcome.results, self._clock.monotonic()))

    def _tell(self, outcome: Outcome, size: int) -> None:
        """Tell who watches what was committed; that it fails changes nothing for the calls."""
        try:
            self._on_batch(outcome, size)
        except Exception:
            logger.exception("what follows a batch failed")

    def _set_aside(self, tickets: list[Ticket]) -> None:
        """Find out which tenant's rows are locked; its calls are tried again later, the others run now."""
        tenants: dict[object, list[Ticket]] = {}
        for ticket in tickets:
            tenants.setdefault(self._tenant_of(ticket.call), []).append(ticket)
        if len(tenants) == 1:
            [tenant] = tenants
            self._put_aside(tenant, tickets)
            return
        for of_one in tenants.values():
            self.run(of_one, aside=True)

    def _put_aside(self, tenant: object, tickets: Sequence[Ticket]) -> None:
        """Keep calls until their rows may be free; those that have been tried for long enough are told so."""
        given_up = self.locked.put(tenant, tickets, self._clock.monotonic())
        if given_up:
            self._leave_waits(given_up)
            self._answer_all(given_up, unavailable("the rows are locked by somebody else; try again"))

    def _split(self, tickets: list[Ticket], error: Exception) -> None:
        if len(tickets) > 1:
            middle = len(tickets) // 2
            self.run(tickets[:middle])
            self.run(tickets[middle:])
            return
        if isinstance(error, REPEATABLE_ERRORS):
            failure = unavailable("other transactions come first again and again; try again")
        else:
            logger.error("a call could not be recorded", exc_info=error)
            failure = BursarError(Reason.INTERNAL, "this call could not be recorded")
        self._answer_all(tickets, failure)

    def _answer_all(self, tickets: Sequence[Ticket], error: BursarError) -> None:
        if tickets:
            self._deliver([(ticket, error) for ticket in tickets])

    def _runner_now(self) -> BatchRunner:
        if self.runner is None:
            session = Session(self._connect(), self.directory, self._history, self._policy, self._clock)
            self.runner = BatchRunner(session)
            self._ahead = AheadRunner(session)
        return self.runner


def unavailable(message: str) -> BursarError:
    """Return the error that says that the database is not to be had."""
    return BursarError(Reason.DATABASE_UNAVAILABLE, message)
