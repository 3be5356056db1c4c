"""A lane: runs whatever waits as one batch, then the next (no timers), on a connection of its own."""

import asyncio
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from bursar_server.db.lane import DatabaseError, LaneConnection
from bursar_server.kit.clock import Clock
from bursar_server.kit.errors import BursarError, Reason
from bursar_server.metering.batches import Batches, unavailable
from bursar_server.metering.evaluation import Outcome
from bursar_server.metering.inbox import Inbox
from bursar_server.metering.model import Answer, Call, Policy
from bursar_server.metering.session import Session
from bursar_server.metering.tickets import Ticket, deliver, settle

MAX_BATCH = 256
# How many calls a batch has that is sent ahead: the larger it is, the less of one is evaluated while the database writes
# the other. Fewer are not worth a batch of their own.
MAX_AHEAD = 32
FEWEST_AHEAD = 16

logger = logging.getLogger(__name__)

Task = Callable[[Session], Any]
"""Something small that a lane does between batches, on its own connection."""


@dataclass(slots=True)
class _Chore:
    task: Task
    future: "asyncio.Future[Any]"


class Lane:
    """Runs batches until it is stopped. What it has accepted it finishes.

    Batches that are sent ahead of their rows wait for nothing: the event loop that started the lane runs them itself.
    Whatever has to wait is done by the lane's thread: to read and lock rows, to run again what was refused, chores. The
    batches belong to one of the two at a time, and are handed over whole: there is no lock.
    """

    def __init__(
        self,
        name: str,
        connect: Callable[[], LaneConnection],
        policy: Policy,
        clock: Clock,
        on_batch: Callable[[Outcome, int], None],
    ) -> None:
        self._clock = clock
        self._inbox: Inbox[Ticket | _Chore] = Inbox()
        self._batches = Batches(connect, policy, clock, on_batch, self._deliver)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        # Whether the batches are the event loop's, the file it watches then, and what it gives back with them.
        self._lent = False
        self._watched: int | None = None
        self._given_back: list[Ticket | _Chore | None] = []

    @property
    def depth(self) -> int:
        """How many calls wait."""
        return len(self._inbox)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start the thread, from the event loop whose calls it takes; it connects with its first batch."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def submit(self, call: Call) -> "asyncio.Future[Answer]":
        """Queue a call, behind those queued before it, and return its answer to come.

        Cancelling the future takes back a Check that is not decided yet, and nothing else. Raises BursarError OVERLOADED
        or SHUTTING_DOWN; the future raises the call's own, or DATABASE_UNAVAILABLE.
        """
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._inbox.put(Ticket(call, future))
        return future

    async def perform(self, task: Task) -> Any:
        """Do something small on the lane's connection, between batches."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._inbox.put(_Chore(task, future))
        return await future

    async def stop(self) -> None:
        """Finish what was accepted, then end the thread and close the connection."""
        self._inbox.close()
        await asyncio.to_thread(self._thread.join, 30)
        if not self._thread.is_alive():
            self._inbox.free()

    def _deliver(self, answers: list[tuple[Ticket, object]]) -> None:
        deliver(answers, None if self._lent else self._loop)

    # The thread

    def _work(self) -> None:
        batches = self._batches
        running = True
        while running:
            again: list[Ticket] = []
            locked: list[Ticket] = []
            tried = False
            # What has not gone out whole waits for the server to read: the loop watches only what it says.
            if batches.usable_ahead and batches.nobody_aside and batches.flushed():
                entries = self._lend()
                batches.land()
                tried = any(isinstance(entry, Ticket) for entry in entries)
                if tried:
                    # They cannot go ahead: no use in keeping them apart from the others.
                    entries += self._inbox.take(MAX_BATCH - len(entries))
            else:
                batches.land()
                again = batches.due_waiters()
                locked = batches.locked.take_due(self._clock.monotonic(), MAX_BATCH)
                self._inbox.wait(0.0 if again or locked or self._inbox else self._timeout_s())
                entries = self._inbox.take(MAX_BATCH - len(again))
            running = None not in entries
            tickets = again + [entry for entry in entries if isinstance(entry, Ticket)]
            if tickets and (tried or not batches.launch(tickets)):
                batches.serve(tickets)
            if locked:
                batches.run(locked, aside=True)
            for entry in entries:
                if isinstance(entry, _Chore):
                    batches.land()
                    self._do(entry)
        batches.close()

    def _timeout_s(self) -> float | None:
        """Return how long those set aside can wait; None where there is nobody."""
        batches, now = self._batches, self._clock.monotonic()
        ends = [batches.room.seconds_to_look(now)] if batches.room else []
        ends += [batches.locked.seconds_to_try(now)] if batches.locked else []
        return min(ends) if ends else None

    def _lend(self) -> "list[Ticket | _Chore | None]":
        """Leave the batches to the event loop until something has to wait; return what it gives back."""
        assert self._loop is not None  # noqa: S101  (`start` comes before the thread)
        self._lent = True
        try:
            self._loop.call_soon_threadsafe(self._borrow)
        except RuntimeError:  # the loop is closed: nobody asks any more
            self._lent = False
            return [None]
        while self._lent:
            self._inbox.wait(None)
        entries, self._given_back = self._given_back, []
        return entries

    def _do(self, chore: _Chore) -> None:
        result: object
        try:
            result = chore.task(self._batches.session())
        except BursarError as error:
            result = error
        except DatabaseError:
            self._batches.drop_connection()
            result = unavailable("the database does not answer; try again")
        except Exception as error:
            logger.exception("a lane's chore failed")
            result = BursarError(Reason.INTERNAL, type(error).__name__)
        settle(chore.future, result, self._loop)

    # The event loop, while the batches are lent to it

    def _borrow(self) -> None:
        assert self._loop is not None  # noqa: S101  (it runs this)
        self._watched = self._batches.file()
        if self._watched is not None:
            self._loop.add_reader(self._watched, self._step, self._answered)
        self._inbox.listen(partial(self._step, self._launch))
        self._step(self._answered)

    def _step(self, step: Callable[[], None]) -> None:
        """Do something with the batches; a failure that nobody thought of is the thread's to clear up."""
        try:
            step()
        except Exception:
            logger.exception("batches could not be gone on with")
            self._batches.give_up_connection()
            self._give_back([])

    def _give_back(self, entries: "list[Ticket | _Chore | None]") -> None:
        if self._watched is not None and self._loop is not None:
            self._loop.remove_reader(self._watched)
        self._inbox.listen(None)
        self._given_back = entries
        self._lent = False
        self._inbox.ring()

    def _launch(self) -> None:
        """Send what has come in; what cannot be sent ahead is given back."""
        batches, inbox = self._batches, self._inbox
        while inbox and not batches.full:
            # All at once, everybody would wait for one batch, and nothing be evaluated meanwhile.
            half = -(-len(inbox) // 2)
            most = MAX_AHEAD if batches.under_way else min(MAX_AHEAD, max(FEWEST_AHEAD, half))
            entries = inbox.take(most)
            tickets = [entry for entry in entries if isinstance(entry, Ticket)]
            if tickets and batches.launch(tickets):
                entries = [entry for entry in entries if not isinstance(entry, Ticket)]
            if entries or not batches.flushed():
                self._give_back(entries)
                return

    def _answered(self) -> None:
        """Answer the calls of the batches that are committed, and send the next."""
        batches = self._batches
        arrived = batches.arrived()
        while arrived:
            batches.land(but=batches.under_way - 1)
            arrived = batches.under_way > 0 and batches.arrived()
        if batches.stuck:
            self._give_back([])
            return
        self._launch()
