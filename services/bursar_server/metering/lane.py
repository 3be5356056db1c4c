"""A lane: a thread with a connection of its own that runs whatever waits as one batch, then the next (no timers)."""

import asyncio
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from bursar_server.db.lane import REPEATABLE_ERRORS, ConnectionLostError, DatabaseError, LaneConnection
from bursar_server.kit.clock import Clock
from bursar_server.kit.errors import BursarError, Reason
from bursar_server.metering.batch import BatchRunner, Outcome
from bursar_server.metering.directory import Directory
from bursar_server.metering.history import CostHistory
from bursar_server.metering.model import Answer, Call, CheckCall, Policy, Waiting

MAX_BATCH = 256
MAX_WAITING = 20_000
MAX_REPEATS = 8
# How long a batch goes on trying while the database does not answer; then its calls are told so.
PATIENCE_S = 4.0

logger = logging.getLogger(__name__)


# How often calls that wait for holds look again: holds of other processes are removed without a word (S10, S13).
LOOK_AGAIN_S = 0.05
# How many of those that wait for one budget are decided again at a time: the first of them stop the others.
MAX_LOOKS = 32


@dataclass(slots=True)
class Ticket:
    """A call that waits for its answer; `loop` is where the future belongs. `waiting` is what holds let it wait for."""

    call: Call
    future: "asyncio.Future[Answer]"
    loop: asyncio.AbstractEventLoop
    waiting: Waiting | None = None
    wait_ends: float = 0.0


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
        # Calls that wait for holds, by the budget they wait for first, in order of arrival.
        self._waiters: dict[UUID, deque[Ticket]] = {}
        self._look_at = 0.0
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

    async def submit(self, call: Call) -> Answer:
        """Queue a call and wait for its answer; cancelling the wait does not take the call back.

        Raises BursarError: the call's own, OVERLOADED, SHUTTING_DOWN or DATABASE_UNAVAILABLE.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self._put(Ticket(call, future, loop))
        return await future

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
            entries = self._collect(MAX_BATCH - len(again), wait=not again)
            running = None not in entries
            tickets = again + [entry for entry in entries if isinstance(entry, Ticket)]
            try:
                if tickets:
                    self._serve(tickets)
                for entry in entries:
                    if isinstance(entry, _Chore):
                        self._do(entry)
            except Exception:
                logger.exception("a lane's batch failed")
                self._drop_connection()
                self._answer_all(tickets, BursarError(Reason.INTERNAL, "the batch failed"))
        for waiters in self._waiters.values():
            _deliver([(ticket, ticket.waiting.answer) for ticket in waiters if ticket.waiting])
        self._drop_connection()

    def _collect(self, most: int, *, wait: bool) -> list[Ticket | _Chore | None]:
        """Return what is queued; with `wait`, block for the first one, but no longer than those who wait for holds can."""
        entries: list[Ticket | _Chore | None] = []
        with suppress(queue.Empty):
            if wait and not self._waiters:
                entries.append(self._waiting.get())
            elif wait and (seconds := self._look_at - self._clock.monotonic()) > 0:
                entries.append(self._waiting.get(timeout=seconds))
            while len(entries) < most:
                entries.append(self._waiting.get_nowait())
        return entries

    def _due_waiters(self) -> list[Ticket]:
        """Answer those that have waited long enough, and return those to decide again: the first of each budget."""
        now = self._clock.monotonic()
        due: list[Ticket] = []
        look = now >= self._look_at
        for budget_id, waiters in list(self._waiters.items()):
            over = [ticket for ticket in waiters if ticket.wait_ends <= now]
            _deliver([(ticket, ticket.waiting.answer) for ticket in over if ticket.waiting])
            left = deque(ticket for ticket in waiters if ticket.wait_ends > now)
            if look:
                due += [left.popleft() for _ in range(min(MAX_LOOKS, len(left), MAX_BATCH // 2 - len(due)))]
            if left:
                self._waiters[budget_id] = left
            else:
                del self._waiters[budget_id]
        if look:
            self._look_at = now + LOOK_AGAIN_S
        return due

    def _keep_waiting(
        self, tickets: Sequence[Ticket], results: Sequence[object]
    ) -> list[tuple[Ticket, object]]:
        """Put those that have to wait (again) into their places, and return the answers of the others."""
        answers: list[tuple[Ticket, object]] = []
        back: dict[UUID, list[Ticket]] = {}
        for ticket, result in zip(tickets, results, strict=True):
            if not isinstance(result, Waiting) or not isinstance(ticket.call, CheckCall):
                answers.append((ticket, result))
                continue
            if ticket.waiting is None:
                seconds = (result.until - result.wait_since).total_seconds()
                deadline = ticket.call.deadline
                ends = self._clock.monotonic() + seconds
                ticket.wait_ends = ends if deadline is None else min(ends, deadline)
            ticket.waiting = result
            ticket.call = replace(ticket.call, wait_since=result.wait_since)
            back.setdefault(result.budget_id, []).append(ticket)
        for budget_id, waiters in back.items():
            queued = self._waiters.get(budget_id, deque())
            # The same order as in `check_waits`: else the first there could be one that is never looked at here.
            self._waiters[budget_id] = deque(sorted([*waiters, *queued], key=_place))
        return answers

    def _serve(self, tickets: list[Ticket]) -> None:
        open_tickets = []
        for ticket in tickets:
            deadline = ticket.call.deadline if isinstance(ticket.call, CheckCall) else None
            if deadline is not None and deadline < self._clock.monotonic():
                # Nobody waits for this answer: the Check leaves no hold.
                _deliver(
                    [(ticket, BursarError(Reason.DEADLINE_EXCEEDED, "the deadline passed before the Check"))]
                )
            else:
                open_tickets.append(ticket)
        if open_tickets:
            self._run(open_tickets)

    def _run(self, tickets: list[Ticket], depth: int = 0) -> None:
        """Run some calls in one transaction; where the database refuses, halve them down to the one that is bad."""
        calls = [ticket.call for ticket in tickets]
        started = self._clock.monotonic()
        repeats = 0
        while True:
            try:
                outcome = self._runner_now().run(calls)
            except BursarError as error:
                self._answer_all(tickets, error)
                return
            except REPEATABLE_ERRORS as error:
                repeats += 1
                if repeats < MAX_REPEATS:
                    continue
                self._split(tickets, error, depth)
                return
            except ConnectionLostError as error:
                self._drop_connection()
                if self._clock.monotonic() - started > PATIENCE_S:
                    logger.warning("database unavailable: %s", type(error).__name__)
                    self._answer_all(
                        tickets,
                        BursarError(Reason.DATABASE_UNAVAILABLE, "the database does not answer; try again"),
                    )
                    return
                time.sleep(min(0.5, 0.05 * (1 + repeats)))
                repeats += 1
                continue
            except DatabaseError as error:
                self._split(tickets, error, depth)
                return
            self._on_batch(outcome, len(tickets))
            if outcome.freed:
                self._look_at = 0.0
            _deliver(self._keep_waiting(tickets, outcome.results))
            return

    def _split(self, tickets: list[Ticket], error: DatabaseError, depth: int) -> None:
        if len(tickets) > 1:
            middle = len(tickets) // 2
            self._run(tickets[:middle], depth + 1)
            self._run(tickets[middle:], depth + 1)
            return
        if isinstance(error, REPEATABLE_ERRORS):
            failure = BursarError(
                Reason.DATABASE_UNAVAILABLE, "the rows are locked by somebody else; try again"
            )
        else:
            logger.error("a call was refused by the database: %s", type(error).__name__)
            failure = BursarError(Reason.INTERNAL, "the database refused this call")
        self._answer_all(tickets, failure)

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
            failure = BursarError(Reason.DATABASE_UNAVAILABLE, "the database does not answer; try again")
            _settle(chore.loop, chore.future, failure)
        else:
            _settle(chore.loop, chore.future, result)

    def _answer_all(self, tickets: Sequence[Ticket], error: BursarError) -> None:
        _deliver([(ticket, error) for ticket in tickets])


def _place(ticket: Ticket) -> tuple[datetime, UUID]:
    """Return a waiting call's place: since when it waits, then its id."""
    assert ticket.waiting is not None  # noqa: S101  (only calls that wait have a place)
    return ticket.waiting.wait_since, ticket.waiting.answer.request_id


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
