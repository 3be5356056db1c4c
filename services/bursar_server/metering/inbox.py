"""What has come in for a lane, and the bell that wakes it: it can wait for that and for its database at once."""

import asyncio
import socket
from collections import deque
from contextlib import suppress
from typing import Generic, TypeVar

from bursar_server.kit.errors import BursarError, Reason

MAX_WAITING = 20_000

Entry = TypeVar("Entry")


class Inbox(Generic[Entry]):
    """A bounded queue from event loops to one thread, whose `file` is readable when there is something in it."""

    def __init__(self) -> None:
        self._entries: deque[Entry | None] = deque()
        self._bell, self._alarm = socket.socketpair()
        self._bell.setblocking(False)
        self._alarm.setblocking(False)
        # Whether it rings already, or will at the end of a loop's turn.
        self._rung = False
        self._closed = False

    def __len__(self) -> int:
        """How many entries wait."""
        return len(self._entries)

    @property
    def file(self) -> int:
        """What is readable when something has come in."""
        return self._alarm.fileno()

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
            asyncio.get_running_loop().call_soon(self._ring)

    def close(self) -> None:
        """Take nothing any more; None comes last."""
        self._closed = True
        self._entries.append(None)
        self._ring()

    def free(self) -> None:
        """Give back what waking takes: nobody waits any more."""
        self._bell.close()
        self._alarm.close()

    def take(self, most: int) -> list[Entry | None]:
        """Return what has come in, first things first; more than `most` is left, and rings again."""
        with suppress(BlockingIOError):
            self._alarm.recv(64)
        # Before the entries are taken: one that comes now rings again, or is among them.
        self._rung = False
        taken: list[Entry | None] = []
        while self._entries and len(taken) < most:
            taken.append(self._entries.popleft())
        if self._entries:
            self._ring()
        return taken

    def _ring(self) -> None:
        with suppress(OSError):  # full: it rings already; or freed
            self._bell.send(b"!")
