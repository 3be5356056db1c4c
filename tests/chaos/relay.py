"""A TCP relay between two parts: it sees what passes, may kill before it passes, and may cut all that is open."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

#: Where to connect: the path of a Unix socket, or host:port.
Targets = Callable[[], Sequence[str]]

_CHUNK_BYTES = 64 << 10


@dataclass
class Trap:
    """Springs once, when an answer has `in_answer` in it and its request had `in_request`."""

    spring: Callable[[], None]
    in_answer: bytes = b""
    in_request: bytes = b""
    sprung: asyncio.Event = field(default_factory=asyncio.Event)


class Relay:
    """Passes connections on to one of several targets in turn, the first that takes it."""

    def __init__(self, targets: Targets) -> None:
        self._targets = targets
        self._turns = itertools.count()
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.trap: Trap | None = None
        self.address = ""
        self.shut = False

    async def start(self) -> None:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()[:2]
        self.address = f"{host}:{port}"

    async def stop(self) -> None:
        """Listen no more, and end what is open."""
        if self._server is not None:
            self._server.close()
        self.cut()
        while self._tasks:
            await asyncio.wait(self._tasks)

    def cut(self, *, shut: bool = False) -> None:
        """Reset all connections, and take no new ones while it is `shut`."""
        self.shut = shut
        for writer in list(self._open):
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._relay(reader, writer)
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far = await self._connected()
        if far is None:
            return
        far_reader, far_writer = far
        ends = (writer, far_writer)
        self._open.update(ends)
        asked: list[bytes] = [b""]  # the beginning of the last request
        there = asyncio.ensure_future(self._pump(reader, far_writer, asked, answers=False))
        back = asyncio.ensure_future(self._pump(far_reader, writer, asked, answers=True))
        try:
            await asyncio.wait((there, back), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.transport.abort()
            await asyncio.gather(there, back, return_exceptions=True)
            self._open.difference_update(ends)

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        targets = [] if self.shut else list(self._targets())
        turn = next(self._turns)
        for index in range(len(targets)):
            target = targets[(turn + index) % len(targets)]
            with contextlib.suppress(OSError):
                if target.startswith("/"):
                    return await asyncio.open_unix_connection(target)
                host, _, port = target.rpartition(":")
                return await asyncio.open_connection(host, int(port))
        return None

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, asked: list[bytes], *, answers: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(_CHUNK_BYTES):
                if not answers:
                    asked[0] = data
                elif self._springs(data, asked[0]):
                    return
                sink.write(data)
                await sink.drain()

    def _springs(self, answer: bytes, request: bytes) -> bool:
        """Whether the trap is sprung now: then the answer is not passed on."""
        trap = self.trap
        if trap is None or trap.in_answer not in answer or trap.in_request not in request:
            return False
        self.trap = None
        trap.spring()
        trap.sprung.set()
        return True
