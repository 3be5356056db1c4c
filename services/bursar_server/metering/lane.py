"""A lane: a thread with a connection of its own that runs whatever waits as one batch, then the next (no timers)."""

import asyncio
import logging
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

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
from bursar_server.metering.inbox import Inbox
from bursar_server.metering.model import Answer, Call, CheckCall, ExpireCall, Policy
from bursar_server.metering.session import Session
from bursar_server.metering.tickets import LockedOut, Ticket, WaitingRoom, answer_all, deliver, settle

MAX_BATCH = 256
MAX_REPEATS = 8
# How many batches are sent before the first is committed, and how many calls each has at most: the larger they are, the
# less of one is evaluated while the database writes the other. Fewer are not worth a batch of their own.
MAX_UNDER_WAY = 2
MAX_AHEAD = 32
FEWEST_AHEAD = 16
# How long a batch goes on trying while the database does not answer; then its calls are told so.
PATIENCE_S = 4.0
# How long calls whose rows were found locked wait for them each time that they are tried again.
LOCKED_TIMEOUT_MS = 50

logger = logging.getLogger(__name__)

Task = Callable[[Session], Any]
"""Something small that a lane does between batches, on its own connection."""


@dataclass(slots=True)
class _Chore:
    task: Task
    future: "asyncio.Future[Any]"
    loop: asyncio.AbstractEventLoop


class Lane:
    """Runs batches until it is stopped. What it has accepted it finishes."""

    def __init__(
        self,
        name: str,
        connect: Callable[[], LaneConnection],
        policy: Policy,
        clock: Clock,
        on_batch: Callable[[Outcome, int], None],
    ) -> None:
        self._connect = connect
        self._policy = policy
        self._clock = clock
        self._on_batch = on_batch
        self._inbox: Inbox[Ticket | _Chore] = Inbox()
        self._directory = Directory()
        self._history = CostHistory()
        self._runner: BatchRunner | None = None
        self._ahead: AheadRunner | None = None
        # Batches that are sent and not committed yet, in the order they were sent.
        self._under_way: deque[list[Ticket]] = deque()
        # Whether the last batch was one of them: calls that have to be run by themselves are not kept apart.
        self._launching = False
        self._room = WaitingRoom()
        self._locked = LockedOut()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)

    @property
    def depth(self) -> int:
        """How many calls wait."""
        return len(self._inbox)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start the thread; it connects with its first batch."""
        self._thread.start()

    def submit(self, call: Call) -> "asyncio.Future[Answer]":
        """Queue a call, behind those queued before it, and return its answer to come.

        Cancelling the future takes back a Check that is not decided yet, and nothing else. Raises BursarError OVERLOADED
        or SHUTTING_DOWN; the future raises the call's own, or DATABASE_UNAVAILABLE.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self._inbox.put(Ticket(call, future, loop))
        return future

    async def perform(self, task: Task) -> Any:
        """Do something small on the lane's connection, between batches."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._inbox.put(_Chore(task, future, loop))
        return await future

    def stop(self) -> None:
        """Finish what was accepted, then end the thread and close the connection."""
        self._inbox.close()
        self._thread.join(timeout=30)
        if not self._thread.is_alive():
            self._inbox.free()

    def _work(self) -> None:
        running = True
        while running:
            if self._room or self._locked:
                self._land()
            again = self._due_waiters()
            locked = self._locked.take_due(self._clock.monotonic(), MAX_BATCH)
            calls, answered = self._sleep(wait=not (again or locked))
            if answered:
                self._land(but=len(self._under_way) - 1)
            entries = self._collect(MAX_BATCH - len(again)) if calls else []
            running = None not in entries
            tickets = again + [entry for entry in entries if isinstance(entry, Ticket)]
            if tickets:
                self._serve(tickets)
            if locked:
                self._run(locked, aside=True)
            for entry in entries:
                if isinstance(entry, _Chore):
                    self._land()
                    self._do(entry)
        self._land()
        deliver([(ticket, ticket.waiting.answer) for ticket in self._room.take_all() if ticket.waiting])
        answer_all(self._locked.take_all(), _unavailable("the rows are locked by somebody else; try again"))
        self._drop_connection()

    def _sleep(self, *, wait: bool) -> tuple[bool, bool]:
        """Return whether calls have come in, and whether a batch that is under way is answered.

        With `wait` it sleeps until one of them is so, but no longer than those set aside can wait.
        """
        poll = select.poll()
        if len(self._under_way) < MAX_UNDER_WAY:
            poll.register(self._inbox.file, select.POLLIN)
        if self._ahead is not None and self._under_way:
            if self._ahead.due():
                return False, True
            poll.register(self._ahead.file, select.POLLIN)
        now = self._clock.monotonic()
        ends = [self._room.seconds_to_look(now)] if self._room else []
        ends += [self._locked.seconds_to_try(now)] if self._locked else []
        timeout_s = (min(ends) if ends else None) if wait else 0.0
        files = {file for file, _ in poll.poll(None if timeout_s is None else max(0.0, timeout_s) * 1_000)}
        return self._inbox.file in files, bool(files - {self._inbox.file})

    def _collect(self, most: int) -> list[Ticket | _Chore | None]:
        """Return what has come in; where batches can be under way together, no more than keeps them apart."""
        if self._launching and self._ahead is not None and self._ahead.usable:
            # All at once, everybody would wait for one batch, and nothing be evaluated meanwhile.
            half = -(-len(self._inbox) // 2)
            most = min(most, MAX_AHEAD if self._under_way else min(MAX_AHEAD, max(FEWEST_AHEAD, half)))
        return self._inbox.take(most)

    def _due_waiters(self) -> list[Ticket]:
        """Answer those that have waited long enough, and return those to decide again."""
        now = self._clock.monotonic()
        over = self._room.take_over(now)
        if over:
            self._leave_waits(over)
            deliver([(ticket, ticket.waiting.answer) for ticket in over if ticket.waiting])
        renew = self._room.take_renewals(now)
        if renew:
            with suppress(DatabaseError, BursarError):
                self._runner_now().renew_waits(renew)
        return self._room.take_due(now)

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
        return self._directory.tenant_of(call.principal) or call.principal

    def _serve(self, tickets: list[Ticket]) -> None:
        """Run the calls that have come in, but those of tenants whose rows are locked: they join the ones set aside."""
        if self._locked:
            free = []
            for ticket in tickets:
                tenant = self._tenant_of(ticket.call)
                if tenant in self._locked:
                    self._locked.put(tenant, [ticket], self._clock.monotonic())
                else:
                    free.append(ticket)
            tickets = free
        if not self._launch(tickets):
            self._land()
            self._run(tickets)

    def _launch(self, tickets: list[Ticket]) -> bool:
        """Send a batch before the one that was sent last is committed; False where it has to be run by itself."""
        self._launching = False
        if self._locked or self._ahead is None or self._late(tickets):
            return False
        try:
            if not self._ahead.launch([ticket.call for ticket in tickets]):
                return False
        except Exception:
            # Whatever it is, it comes again where it can be told apart.
            self._land()
            self._drop_connection()
            return False
        self._under_way.append(tickets)
        self._launching = True
        return True

    def _land(self, but: int = 0) -> None:
        """Wait until the batches that are under way are committed, all but so many; what failed is run again."""
        again: list[list[Ticket]] = []
        while len(self._under_way) > (0 if again else but):
            tickets = self._under_way.popleft()
            try:
                outcome = self._ahead.land() if self._ahead else None
            except Exception:
                self._drop_connection()
                outcome = None
            if outcome is None:
                again.append(tickets)
            else:
                self._finish(tickets, outcome)
        for tickets in again:
            self._run(tickets)

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
        answer_all(late, BursarError(Reason.DEADLINE_EXCEEDED, "the deadline passed before the Check"))
        gone = {id(ticket) for ticket in late}
        return [ticket for ticket in tickets if id(ticket) not in gone]

    def _run(self, tickets: list[Ticket], *, aside: bool = False) -> None:
        """Run some calls in one transaction; where the database refuses, halve them down to the one that is bad.

        While somebody's rows are locked (`aside`: perhaps theirs) they are hardly waited for: others have their turn.
        """
        started = self._clock.monotonic()
        repeats = 0
        while tickets := self._in_time(tickets):
            calls = [ticket.call for ticket in tickets]
            lock_timeout_ms = LOCKED_TIMEOUT_MS if aside or self._locked else None
            try:
                outcome = self._runner_now().run(calls, lock_timeout_ms)
            except BursarError as error:
                answer_all(tickets, error)
                return
            except LOCKED_ERROR:
                self._drop_connection()
                self._set_aside(tickets)
                return
            except REPEATABLE_ERRORS as error:
                # What was prepared in a pipeline that broke is not there: a new connection knows nothing of it.
                self._drop_connection()
                repeats += 1
                if repeats < MAX_REPEATS:
                    continue
                self._split(tickets, error)
                return
            except ConnectionLostError as error:
                self._drop_connection()
                if self._clock.monotonic() - started > PATIENCE_S:
                    logger.warning("database unavailable: %s", type(error).__name__)
                    answer_all(tickets, _unavailable("the database does not answer; try again"))
                    return
                time.sleep(min(0.5, 0.05 * (1 + repeats)))
                repeats += 1
                continue
            except Exception as error:
                self._drop_connection()
                self._split(tickets, error)
                return
            self._finish(tickets, outcome)
            return

    def _finish(self, tickets: list[Ticket], outcome: Outcome) -> None:
        """Answer the calls of a committed batch; those that have to wait are kept."""
        self._tell(outcome, len(tickets))
        if outcome.freed:
            self._room.look_now()
        deliver(self._room.keep(tickets, outcome.results, self._clock.monotonic()))

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
            given_up = self._locked.put(tenant, tickets, self._clock.monotonic())
            answer_all(given_up, _unavailable("the rows are locked by somebody else; try again"))
            return
        for of_one in tenants.values():
            self._run(of_one, aside=True)

    def _split(self, tickets: list[Ticket], error: Exception) -> None:
        if len(tickets) > 1:
            middle = len(tickets) // 2
            self._run(tickets[:middle])
            self._run(tickets[middle:])
            return
        if isinstance(error, REPEATABLE_ERRORS):
            failure = _unavailable("other transactions come first again and again; try again")
        else:
            logger.error("a call could not be recorded", exc_info=error)
            failure = BursarError(Reason.INTERNAL, "this call could not be recorded")
        answer_all(tickets, failure)

    def _runner_now(self) -> BatchRunner:
        if self._runner is None:
            session = Session(self._connect(), self._directory, self._history, self._policy, self._clock)
            self._runner = BatchRunner(session)
            self._ahead = AheadRunner(session)
        return self._runner

    def _drop_connection(self) -> None:
        runner, self._runner, self._ahead = self._runner, None, None
        if runner is not None:
            with suppress(DatabaseError):
                runner.session.connection.close()

    def _do(self, chore: _Chore) -> None:
        try:
            result = chore.task(self._runner_now().session)
        except BursarError as error:
            settle(chore.loop, chore.future, error)
        except DatabaseError:
            self._drop_connection()
            settle(chore.loop, chore.future, _unavailable("the database does not answer; try again"))
        except Exception as error:
            logger.exception("a lane's chore failed")
            settle(chore.loop, chore.future, BursarError(Reason.INTERNAL, type(error).__name__))
        else:
            settle(chore.loop, chore.future, result)


def _unavailable(message: str) -> BursarError:
    return BursarError(Reason.DATABASE_UNAVAILABLE, message)
