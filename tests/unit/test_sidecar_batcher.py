"""A batch is whatever waits when the one before has come back; nothing waits for a timer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from bursar_sidecar.batcher import BATCH_MAX_ITEMS, PATIENCE_S, Batcher


class Far:
    """The other side: remembers batches, and answers when it is told to."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gates: list[asyncio.Event] = []

    async def __call__(self, items: Sequence[int]) -> Sequence[int]:
        gate = asyncio.Event()
        self.batches.append(list(items))
        self.gates.append(gate)
        await gate.wait()
        if -1 in items:
            raise ValueError("a bad batch")
        return [item * 10 for item in items]


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("way", ["submit", "ask"])
async def test_what_waits_travels_together(way: str) -> None:
    far = Far()
    batcher: Batcher[int, int] = Batcher(far, lanes=1)
    first = asyncio.ensure_future(getattr(batcher, way)(1))
    await turns()
    rest = [asyncio.ensure_future(getattr(batcher, way)(number)) for number in range(2, 300)]
    await turns()
    assert far.batches == [[1]]
    far.gates[0].set()
    await turns()
    assert [len(batch) for batch in far.batches] == [1, BATCH_MAX_ITEMS]
    far.gates[1].set()
    await turns()
    assert [len(batch) for batch in far.batches] == [1, BATCH_MAX_ITEMS, 298 - BATCH_MAX_ITEMS]
    far.gates[2].set()
    assert await asyncio.gather(first, *rest) == [number * 10 for number in range(1, 300)]
    await batcher.drained()


async def test_items_of_one_turn_travel_together_at_once() -> None:
    far = Far()
    batcher: Batcher[int, int] = Batcher(far, lanes=1)
    futures = [batcher.submit(number) for number in range(5)]
    await turns(3)
    assert far.batches == [[0, 1, 2, 3, 4]]
    far.gates[0].set()
    await asyncio.gather(*futures)


async def test_no_more_lanes_than_allowed() -> None:
    far = Far()
    batcher: Batcher[int, int] = Batcher(far, lanes=2)
    asks = [asyncio.ensure_future(batcher.ask(number)) for number in range(6)]
    await turns()
    assert far.batches == [[0], [1]]
    far.gates[1].set()
    await turns()
    assert far.batches == [[0], [1], [2, 3, 4, 5]]
    for gate in far.gates:
        gate.set()
    assert await asyncio.gather(*asks) == [0, 10, 20, 30, 40, 50]


async def test_a_failed_batch_fails_its_items_only() -> None:
    far = Far()
    batcher: Batcher[int, int] = Batcher(far, lanes=1)
    bad = [batcher.submit(-1), batcher.submit(2)]
    await turns()
    good = batcher.submit(3)
    far.gates[0].set()
    await turns()
    far.gates[1].set()
    for future in bad:
        with pytest.raises(ValueError, match="bad batch"):
            await future
    assert await good == 30


async def test_a_slow_batch_does_not_keep_the_others_from_going() -> None:
    """S10: a Check may wait for other calls' holds; Checks behind it do not wait with it."""
    far = Far()
    late: list[bool] = []
    batcher: Batcher[int, int] = Batcher(far, lanes=1, overdue=lambda: late.append(True))
    slow = batcher.submit(1)
    await turns()
    quick = batcher.submit(2)
    await turns()
    assert far.batches == [[1]]
    await asyncio.sleep(PATIENCE_S * 2)
    assert far.batches == [[1], [2]]
    assert late
    far.gates[1].set()
    assert await quick == 20
    far.gates[0].set()
    assert await slow == 10
    assert (batcher._prompt, batcher._count_out) == (0, 0)


async def test_a_caller_that_leaves_does_not_take_the_item_along() -> None:
    """S17: a submitted Deduct goes its way whatever becomes of the app."""
    far = Far()
    batcher: Batcher[int, int] = Batcher(far, lanes=1)
    gone = batcher.submit(1)
    await turns()
    waits = batcher.submit(2)
    gone.cancel()
    waits.cancel()
    far.gates[0].set()
    await turns()
    assert far.batches == [[1], [2]]
    far.gates[1].set()
    await batcher.drained()


async def test_a_caller_that_asked_alone_can_leave() -> None:
    far = Far()
    batcher: Batcher[int, int] = Batcher(far, lanes=1)
    alone = asyncio.ensure_future(batcher.ask(1))
    await turns()
    waits = batcher.submit(2)
    alone.cancel()
    await turns()
    assert far.batches == [[1], [2]]
    far.gates[1].set()
    assert await waits == 20
    assert (batcher._prompt, batcher._count_out) == (0, 0)
