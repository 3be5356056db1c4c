"""The processes of the installation: each can be killed at any instant and started again at the same place."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from support.embedded import Owner, is_running, owner, servers_of
from support.stack import Child, ready_line, spawned

_STARTS = 60
_RESTART_S = 0.2
# What a control plane says that is started while the database is away, or goes away.
_NO_DATABASE = re.compile(r"^bursar: .*\bdatabase\b", re.MULTILINE)


class Part:
    """A process with a ready line. It is started by one task at a time; `kill` may come at any moment."""

    def __init__(
        self, name: str, arguments: Callable[[str], tuple[str, ...]], environ: Mapping[str, str], folder: Path
    ) -> None:
        self.name = name
        self._arguments = arguments
        self.environ = dict(environ)
        self._folder = folder
        self._child: Child | None = None
        self.address = "127.0.0.1:0"
        self.ready = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """The process's number, None where none runs."""
        child = self._child
        return child.pid if child is not None and child.process.poll() is None else None

    async def start(self) -> None:
        """Start it and return when it is ready, or has been killed meanwhile.

        Where there is no database yet, or its port is taken, it is started again, as whatever runs it would do; fails
        when it ends for any other reason.
        """
        for _ in range(_STARTS):
            child = self._child = spawned(self._arguments(self.address), self.environ, self._folder)
            try:
                child.ready = await asyncio.to_thread(ready_line, child)
            except AssertionError:
                _close(child)
                if child.process.poll() == -signal.SIGKILL:
                    return
                if not _passes_by(child.log):
                    raise
                await asyncio.sleep(_RESTART_S)
                continue
            self.address = child.ready["listen"]
            self.ready.set()
            return
        raise AssertionError(f"{self.name} does not start:\n{child.log}")

    def kill(self) -> None:
        """End it as `kill -9` does, and collect it."""
        self.ready.clear()
        if self._child is not None:
            self._child.kill()
            if self._child.ready:
                _close(self._child)

    async def stop(self) -> None:
        """Let it end in its own way."""
        self.ready.clear()
        if self._child is not None:
            await asyncio.to_thread(self._child.stop)
            _close(self._child)


class Database:
    """An embedded PostgreSQL with a process of its own that owns it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._owner: Owner | None = None
        self._exit: AbstractContextManager[Owner] | None = None
        self.ready = asyncio.Event()

    @property
    def url(self) -> str:
        """Where it is, by its socket."""
        assert self._owner is not None
        return self._owner.url

    async def start(self) -> None:
        """Start it, whatever an earlier one left, and return when it answers."""
        for _ in range(_STARTS):
            self._exit = owner(self._directory)
            self._owner = await asyncio.to_thread(self._exit.__enter__)
            if "url" in self._owner.answer:
                self.ready.set()
                return
            # It was killed while it started; anything else says what is wrong.
            assert not self._owner.error, self._owner.error
        raise AssertionError("the database does not start")

    def kill(self) -> None:
        """End the server and its owner as `kill -9` does."""
        self.ready.clear()
        if self._owner is not None and self._owner.answer:
            self._owner.process.kill()
            _send(self._owner.postgres_pid, signal.SIGKILL)
            self._owner.process.wait()

    def backends(self) -> list[int]:
        """Return the processes of the server but for the one that started them."""
        assert self._owner is not None
        found = [one.pid for one in servers_of(self._directory)]
        return sorted(pid for pid in found if pid != self._owner.postgres_pid)

    def signal_all(self, number: signal.Signals) -> None:
        """Send a signal to every process of the server."""
        for one in servers_of(self._directory):
            _send(one.pid, number)

    def kill_backend(self, pid: int) -> None:
        """End one process of the server: it ends all others and recovers by itself."""
        _send(pid, signal.SIGKILL)

    async def stop(self) -> None:
        """Let it end in its own way."""
        if self._exit is not None:
            await asyncio.to_thread(self._exit.__exit__, None, None, None)


class Parts:
    """Starts what was killed again, in the background, each part by one task at a time."""

    def __init__(self) -> None:
        self._starting: dict[Part | Database, asyncio.Task[None]] = {}

    def start(self, part: Part | Database, down_s: float, before: Callable[[], None] | None = None) -> None:
        """Start a part that is down, after `down_s`; `before` is called just before."""
        self._starting[part] = asyncio.ensure_future(self._start(part, down_s, before))

    async def _start(self, part: Part | Database, down_s: float, before: Callable[[], None] | None) -> None:
        await asyncio.sleep(down_s)
        if before is not None:
            before()
        await part.start()

    async def started(self, part: Part | Database) -> None:
        """Return when a part is up that was started before; raises what kept it from it."""
        task = self._starting.pop(part, None)
        if task is not None:
            await task

    async def all_started(self) -> None:
        """Return when everything is up again."""
        for part in list(self._starting):
            await self.started(part)

    async def dropped(self) -> None:
        """Wait for what is starting, whatever becomes of it."""
        with ExitStack():
            for task in self._starting.values():
                task.cancel()
            await asyncio.gather(*self._starting.values(), return_exceptions=True)


def _passes_by(log: str) -> bool:
    """Whether what kept a process from starting goes away: no database, or somebody's connection has the port."""
    if "address already in use" in log.lower():
        return True
    return "Traceback" not in log and _NO_DATABASE.search(log) is not None


def _close(child: Child) -> None:
    if child.process.stdout is not None:
        child.process.stdout.close()


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        if is_running(pid):
            os.kill(pid, number)
