"""Natural batching: a batch is whatever is waiting when the previous one has come back; no timers, no fixed delay."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

#: The control plane takes no more in one request.
BATCH_MAX_ITEMS = 256
#: A batch that takes longer than this no longer keeps others from going.
PATIENCE_S = 0.05
_BATCHES_MAX = 32


class Batcher(Generic[T, R]):
    """Gathers items into batches and sends each with `send`, which returns one result for each item, in order.

    An item goes at once when fewer than `lanes` batches are out, else with all others that wait by then. `overdue` is
    called once for a batch that has not come back within PATIENCE_S.
    """

    def __init__(
        self,
        send: Callable[[Sequence[T]], Awaitable[Sequence[R]]],
        lanes: int = 1,
        overdue: Callable[[], None] | None = None,
    ) -> None:
        self._send = send
        self._lanes = lanes
        self._overdue = overdue
        self._waiting: deque[tuple[T, asyncio.Future[R]]] = deque()
        self._scheduled = False
        self._prompt = 0  # batches out that are not overdue
        self._count_out = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def submit(self, item: T) -> asyncio.Future[R]:
        """Return the future of the item's result; it gets the exception of `send` where its batch failed.

        The item travels whatever becomes of the caller or the future.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R] = loop.create_future()
        self._waiting.append((item, future))
        if not self._scheduled and self._may_go():
            self._scheduled = True
            loop.call_soon(self._go)  # items of the same turn of the loop travel together
        return future

    async def ask(self, item: T) -> R:
        """Return the item's result, with less ado than `submit` where nothing is out; a cancelled caller takes it along."""
        if self._waiting or not self._may_go():
            return await self.submit(item)
        return (await self._timed([item]))[0]

    async def drained(self) -> None:
        """Return when nothing that was submitted waits or is out."""
        while self._waiting or self._tasks:
            if self._tasks:
                await asyncio.wait(self._tasks)
            else:
                await asyncio.sleep(0)

    def _may_go(self) -> bool:
        return self._prompt < self._lanes and self._count_out < _BATCHES_MAX

    def _go(self) -> None:
        self._scheduled = False
        while self._waiting and self._may_go():
            size = min(len(self._waiting), BATCH_MAX_ITEMS)
            batch = [self._waiting.popleft() for _ in range(size)]
            task = asyncio.ensure_future(self._run(batch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            # The task has yet to start: it counts from now on, or one too many would go.
            self._prompt += 1
            self._count_out += 1

    async def _run(self, batch: list[tuple[T, asyncio.Future[R]]]) -> None:
        self._prompt -= 1
        self._count_out -= 1
        try:
            results = await self._timed([item for item, _ in batch])
        except Exception as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
        else:
            for (_, future), result in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(result)

    async def _timed(self, items: list[T]) -> Sequence[R]:
        """Send one batch; while it is prompt it takes a lane."""
        prompt = True

        def overdue() -> None:
            nonlocal prompt
            prompt = False
            self._prompt -= 1
            if self._overdue is not None:
                self._overdue()
            self._next()

        self._prompt += 1
        self._count_out += 1
        timer = asyncio.get_running_loop().call_later(PATIENCE_S, overdue)
        try:
            return await self._send(items)
        finally:
            timer.cancel()
            self._prompt -= prompt
            self._count_out -= 1
            self._next()

    def _next(self) -> None:
        if self._waiting and not self._scheduled:
            self._go()
