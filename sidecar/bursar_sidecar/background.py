"""Calls that the provider has only queued: they stay open until somebody reads that their work is over.

What such a call consumed is known when its result is first read (OpenAI: `GET /responses/{id}`); reading it again
changes nothing. Until then its hold stands. A call of which nothing is read for KEPT_MAX_S is charged as one of which
nothing was heard, and so is every one that is open when the sidecar stops; a killed sidecar leaves it to the lease.
"""

from __future__ import annotations

from dataclasses import replace

from bursar.v1.metering_service_pb2 import DeductResponse
from bursar_sidecar.clock import Clock
from bursar_sidecar.gate import Gate, OpenCall
from bursar_sidecar.messages import unheard
from bursar_sidecar.providers.base import Metered

KEPT_MAX_S = 3600.0
#: With more the oldest are charged: an open call takes the place of one that could be made.
KEPT_MAX_CALLS = 1000


class Background:
    """The open calls of work in the background, by the provider's id of that work."""

    def __init__(self, gate: Gate, clock: Clock) -> None:
        self._gate = gate
        self._clock = clock
        self._kept: dict[str, tuple[OpenCall, float]] = {}  # in the order in which they came

    async def charge(self, upstream: str, call: OpenCall, metered: Metered) -> DeductResponse | None:
        """Charge `call` and the one whose work `metered` says is over; keep `call` open where its own work goes on.

        As `Gate.close_call`: it returns when the charges are safe.
        """
        work_id = f"{upstream}/{metered.work_id}"
        if metered.ended is not None:
            await self._finish(work_id, metered.ended)
        elif metered.work_id and work_id not in self._kept:
            self._keep(work_id, call)
            return None
        return await self._gate.close_call(call, metered)

    def keeps(self, call: OpenCall) -> bool:
        """Return whether `call` is open because its work goes on."""
        return any(kept is call for kept, _ in self._kept.values())

    def _keep(self, work_id: str, call: OpenCall) -> None:
        if len(self._kept) >= KEPT_MAX_CALLS:
            self._give_up(next(iter(self._kept)))
        self._kept[work_id] = (call, self._clock.monotonic())

    async def _finish(self, work_id: str, metered: Metered) -> None:
        """Charge the call whose work is over, if it is kept here."""
        kept = self._kept.pop(work_id, None)
        if kept is None:
            return
        call = kept[0]
        if metered.estimated:  # it ended without usage
            metered = replace(unheard(call.ask), outcome=metered.outcome)
        items = tuple(replace(item, model=item.model or call.ask.model) for item in metered.items)
        metered = replace(metered, items=items)
        await self._gate.close_call(call, metered)

    def tick(self) -> None:
        """Charge the calls of which nothing has been read for too long; called a few times a second."""
        while self._kept:
            work_id, (_, since) = next(iter(self._kept.items()))
            if self._clock.monotonic() - since < KEPT_MAX_S:
                return
            self._give_up(work_id)

    def stop(self) -> None:
        """Charge every call that is kept."""
        for work_id in tuple(self._kept):
            self._give_up(work_id)

    def _give_up(self, work_id: str) -> None:
        call, _ = self._kept.pop(work_id)
        self._gate.settle(call, unheard(call.ask))
