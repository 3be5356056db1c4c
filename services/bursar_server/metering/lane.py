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

from bursar_server.db.lane import REPEATABLE_ERRORS, ConnectionLostError, DatabaseError, LaneConnection
from bursar_server.kit.clock import Clock
from bursar_server.kit.errors import BursarError, Reason
from bursar_server.metering.batch import BatchRunner, Outcome
from bursar_server.metering.directory import Directory
from bursar_server.metering.model import Answer, Call, CheckCall, Policy

MAX_BATCH = 256
MAX_WAITING = 20_000
MAX_REPEATS = 8
# How long a batch goes on trying while the database does not answer; then its calls are told so.
PATIENCE_S = 4.0

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Ticket:
    """A call that waits for its answer; `loop` is where the future belongs."""

    call: Call
    future: "asyncio.Future[Answer]"
    loop: asyncio.AbstractEventLoop


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
        self._connection: LaneConnection | None = None
        self._runner: BatchRunner | None = None
        self._stopping = False
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
            entries = [self._waiting.get()]
            while len(entries) < MAX_BATCH:
                try:
                    entries.append(self._waiting.get_nowait())
                except queue.Empty:
                    break
            running = None not in entries
            tickets = [entry for entry in entries if isinstance(entry, Ticket)]
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
        self._drop_connection()

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
            _deliver(list(zip(tickets, outcome.results, strict=True)))
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
            self._runner = BatchRunner(self._connection, self._directory, self._policy, self._clock)
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
