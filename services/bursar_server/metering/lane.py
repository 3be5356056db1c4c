"""A lane: a thread with a connection of its own that runs whatever waits as one batch, then the next (no timers)."""

import asyncio
import logging
import queue
import threading
import time
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
from bursar_server.metering.batch import BatchRunner, Outcome
from bursar_server.metering.directory import Directory
from bursar_server.metering.history import CostHistory
from bursar_server.metering.model import Answer, Call, CheckCall, ExpireCall, Policy
from bursar_server.metering.tickets import LockedOut, Ticket, WaitingRoom

MAX_BATCH = 256
MAX_WAITING = 20_000
MAX_REPEATS = 8
# How long a batch goes on trying while the database does not answer; then its calls are told so.
PATIENCE_S = 4.0
# How long calls whose rows were found locked wait for them each time that they are tried again.
LOCKED_TIMEOUT_MS = 50

logger = logging.getLogger(__name__)

Task = Callable[[LaneConnection, BatchRunner], Any]
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
        self._waiting: queue.SimpleQueue[Ticket | _Chore | None] = queue.SimpleQueue()
        self._directory = Directory()
        self._history = CostHistory()
        self._connection: LaneConnection | None = None
        self._runner: BatchRunner | None = None
        self._stopping = False
        self._room = WaitingRoom()
        self._locked = LockedOut()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)

    @property
    def depth(self) -> int:
        """How many calls wait."""
        return self._waiting.qsize()

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
        self._put(Ticket(call, future, loop))
        return future

    async def perform(self, task: Task) -> Any:
        """Do something small on the lane's connection, between batches."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._put(_Chore(task, future, loop))
        return await future

    def _put(self, entry: Ticket | _Chore) -> None:
        if self._stopping:
            raise BursarError(Reason.SHUTTING_DOWN, "the control plane is stopping")
        if self._waiting.qsize() >= MAX_WAITING:
            raise BursarError(Reason.OVERLOADED, "too many calls are waiting")
        self._waiting.put(entry)

    def stop(self) -> None:
        """Finish what was accepted, then end the thread and close the connection."""
        self._stopping = True
        self._waiting.put(None)
        self._thread.join(timeout=30)

    def _work(self) -> None:
        running = True
        while running:
            again = self._due_waiters()
            locked = self._locked.take_due(self._clock.monotonic(), MAX_BATCH)
            entries = self._collect(MAX_BATCH - len(again), wait=not (again or locked))
            running = None not in entries
            self._serve(again + [entry for entry in entries if isinstance(entry, Ticket)])
            if locked:
                self._run(locked, aside=True)
            for entry in entries:
                if isinstance(entry, _Chore):
                    self._do(entry)
        _deliver([(ticket, ticket.waiting.answer) for ticket in self._room.take_all() if ticket.waiting])
        _answer_all(self._locked.take_all(), _unavailable("the rows are locked by somebody else; try again"))
        self._drop_connection()

    def _collect(self, most: int, *, wait: bool) -> list[Ticket | _Chore | None]:
        """Return what is queued; with `wait`, block for the first one, but no longer than those set aside can wait."""
        entries: list[Ticket | _Chore | None] = []
        now = self._clock.monotonic()
        ends = [self._room.seconds_to_look(now)] if self._room else []
        ends += [self._locked.seconds_to_try(now)] if self._locked else []
        with suppress(queue.Empty):
            if wait and not ends:
                entries.append(self._waiting.get())
            elif wait and min(ends) > 0:
                entries.append(self._waiting.get(timeout=min(ends)))
            while len(entries) < most:
                entries.append(self._waiting.get_nowait())
        return entries

    def _due_waiters(self) -> list[Ticket]:
        """Answer those that have waited long enough, and return those to decide again."""
        now = self._clock.monotonic()
        over = self._room.take_over(now)
        if over:
            self._leave_waits(over)
            _deliver([(ticket, ticket.waiting.answer) for ticket in over if ticket.waiting])
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
        self._run(tickets)

    def _in_time(self, tickets: list[Ticket]) -> list[Ticket]:
        """Return the calls whose answer is of use; a Check that comes too late for its caller leaves no hold."""
        now = self._clock.monotonic()
        useful: list[Ticket] = []
        late: list[Ticket] = []
        for ticket in tickets:
            call = ticket.call
            too_late = isinstance(call, CheckCall) and (
                (call.deadline is not None and call.deadline < now) or ticket.future.cancelled()
            )
            (late if too_late else useful).append(ticket)
        if late:
            self._leave_waits(late)
            _answer_all(late, BursarError(Reason.DEADLINE_EXCEEDED, "the deadline passed before the Check"))
        return useful

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
                _answer_all(tickets, error)
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
                    _answer_all(tickets, _unavailable("the database does not answer; try again"))
                    return
                time.sleep(min(0.5, 0.05 * (1 + repeats)))
                repeats += 1
                continue
            except Exception as error:
                self._drop_connection()
                self._split(tickets, error)
                return
            self._tell(outcome, len(tickets))
            if outcome.freed:
                self._room.look_now()
            _deliver(self._room.keep(tickets, outcome.results, self._clock.monotonic()))
            return

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
            _answer_all(given_up, _unavailable("the rows are locked by somebody else; try again"))
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
        _answer_all(tickets, failure)

    def _runner_now(self) -> BatchRunner:
        if self._runner is None:
            self._connection = self._connect()
            self._runner = BatchRunner(
                self._connection, self._directory, self._history, self._policy, self._clock
            )
        return self._runner

    def _drop_connection(self) -> None:
        connection, self._connection, self._runner = self._connection, None, None
        if connection is not None:
            with suppress(DatabaseError):
                connection.close()

    def _do(self, chore: _Chore) -> None:
        try:
            runner = self._runner_now()
            assert self._connection is not None  # noqa: S101  (made together with the runner)
            result = chore.task(self._connection, runner)
        except BursarError as error:
            _settle(chore.loop, chore.future, error)
        except DatabaseError:
            self._drop_connection()
            _settle(chore.loop, chore.future, _unavailable("the database does not answer; try again"))
        except Exception as error:
            logger.exception("a lane's chore failed")
            _settle(chore.loop, chore.future, BursarError(Reason.INTERNAL, type(error).__name__))
        else:
            _settle(chore.loop, chore.future, result)


def _unavailable(message: str) -> BursarError:
    return BursarError(Reason.DATABASE_UNAVAILABLE, message)


def _answer_all(tickets: Sequence[Ticket], error: BursarError) -> None:
    _deliver([(ticket, error) for ticket in tickets])


def _settle(loop: asyncio.AbstractEventLoop, future: "asyncio.Future[Any]", result: object) -> None:
    with suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(_set, [(future, result)])


def _deliver(answers: list[tuple[Ticket, object]]) -> None:
    """Hand answers to the loops that wait for them, with one wake-up for each loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], object]]] = {}
    for ticket, answer in answers:
        by_loop.setdefault(ticket.loop, []).append((ticket.future, answer))
    for loop, pairs in by_loop.items():
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_set, pairs)


def _set(pairs: list[tuple["asyncio.Future[Any]", object]]) -> None:
    for future, answer in pairs:
        if future.done():
            continue
        if isinstance(answer, BaseException):
            future.set_exception(answer)
        else:
            future.set_result(answer)
