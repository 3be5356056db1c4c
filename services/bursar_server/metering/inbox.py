"""What has come in for a lane, and the bell that wakes its thread."""

import asyncio
import select
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

from bursar_server.kit.errors import BursarError, Reason

MAX_WAITING = 20_000

Entry = TypeVar("Entry")


class Inbox(Generic[Entry]):
    """A bounded queue from an event loop to one thread, or to the loop itself while it listens."""

    def __init__(self) -> None:
        self._entries: deque[Entry | None] = deque()
        self._bell, self._alarm = socket.socketpair()
        self._bell.setblocking(False)
        self._alarm.setblocking(False)
        self._listener: Callable[[], None] | None = None
        # Whether it rings already, or will at the end of the loop's turn.
        self._rung = False
        self._closed = False

    def __len__(self) -> int:
        """How many entries wait."""
        return len(self._entries)

    def put(self, entry: Entry) -> None:
        """Add an entry, from a coroutine. Raises BursarError OVERLOADED or SHUTTING_DOWN.

        The bell rings when all have asked that ask in the same turn of the event loop, so that they are taken together.
        """
        if self._closed:
            raise BursarError(Reason.SHUTTING_DOWN, "the control plane is stopping")
        if len(self._entries) >= MAX_WAITING:
            raise BursarError(Reason.OVERLOADED, "too many calls are waiting")
        self._entries.append(entry)
        if not self._rung:
            self._rung = True
            asyncio.get_running_loop().call_soon(self._tell)

    def close(self) -> None:
        """Take nothing any more; None comes last."""
        self._closed = True
        self._entries.append(None)
        self._tell()

    def free(self) -> None:
        """Give back what waking takes: nobody waits any more."""
        self._bell.close()
        self._alarm.close()

    def listen(self, listener: Callable[[], None] | None) -> None:
        """Call this in the event loop in place of waking the thread; None: no more."""
        self._listener = listener
        self._rung = False

    def ring(self) -> None:
        """Wake the thread."""
        with suppress(OSError):  # full: it rings already; or freed
            self._bell.send(b"!")

    def wait(self, seconds: float | None) -> None:
        """Wait, in the thread, until it rings, or for so long; what came before may ring no more."""
        poll = select.poll()
        poll.register(self._alarm.fileno(), select.POLLIN)
        if poll.poll(None if seconds is None else max(0.0, seconds) * 1_000):
            with suppress(BlockingIOError):
                self._alarm.recv(64)

    def take(self, most: int) -> list[Entry | None]:
        """Return what has come in, first things first, and no more than so much."""
        # Before the entries are taken: one that comes now rings again, or is among them.
        self._rung = False
        taken: list[Entry | None] = []
        while self._entries and len(taken) < most:
            taken.append(self._entries.popleft())
        return taken

    def _tell(self) -> None:
        if self._listener is None:
            self.ring()
            return
        self._rung = False
        self._listener()
