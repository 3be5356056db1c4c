"""Calls that stay open after their answer: what they consumed is known later.

Work that the provider has only queued stays open until somebody reads that it is over (OpenAI: `GET /responses/{id}`);
what nobody reads for KEPT_MAX_S the provider is asked about. A call whose answer broke off, so that it would be charged
with an estimate, stays open while the provider is asked what it came to (`providers.base.Later`), with growing pauses:
after 1, 3, 7, 15, 30 and 45 seconds, for a minute in all unless BURSAR_TRUE_UP_MS says otherwise.

Each is charged once, by whoever says first what it consumed; with its estimate when the time is over, when there are too
many, and when the sidecar stops. Until then its hold stands and is renewed; a killed sidecar leaves it to the lease.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bursar.v1.metering_service_pb2 import DeductResponse
from bursar_sidecar.clock import Clock
from bursar_sidecar.gate import Gate, OpenCall
from bursar_sidecar.inquiry import Inquirer, Inquiry, inquiry_about
from bursar_sidecar.messages import unheard
from bursar_sidecar.providers.base import Metered
from bursar_sidecar.telemetry import Counts

if TYPE_CHECKING:
    from bursar_sidecar.exchange import Forward

KEPT_MAX_S = 3600.0
#: With more, the one that would be charged first is: an open call takes the place of one that could be made.
KEPT_MAX_CALLS = 1000
#: How long after its end a call is first asked about; each pause is twice the one before, up to the longest.
FIRST_ASK_S = 1.0
ASK_PAUSE_MAX_S = 15.0
#: A call under a budget that ends streams is asked about no longer than this: until it is charged, the budget does not
#: know that it is spent.
GUARDED_MAX_S = 20.0
#: So many providers are asked at the same time; others wait.
ASKS_AT_ONCE = 16


@dataclass(slots=True)
class _Kept:
    """An open call, and what it is charged unless more is heard. `broken`: its answer broke off, else it is work queued."""

    call: OpenCall
    estimate: Metered
    broken: bool
    inquiry: Inquiry | None
    since: float
    pause_s: float
    next_ask_at: float | None = None
    asks: int = 0
    asking: asyncio.Task[None] | None = None

    @property
    def asked_from(self) -> float:
        """When the asking begins; without anybody to ask, when it is given up."""
        return self.since if self.broken else self.since + KEPT_MAX_S

    @property
    def due_at(self) -> float:
        """When it is to be asked next."""
        return self.asked_from + self.pause_s if self.next_ask_at is None else self.next_ask_at

    def charged(self, ended: Metered) -> Metered:
        """Return what the call is charged when it ended so: the estimate where that says nothing of usage.

        An answer that broke off did so, whatever became of it at the provider.
        """
        known = self.estimate
        outcome = known.outcome if self.broken else ended.outcome
        if ended.estimated or (self.broken and not ended.items):
            cost = ended.provider_cost_usd or known.provider_cost_usd
            return known._replace(outcome=outcome, provider_cost_usd=cost)
        main = known.items[0]
        items = tuple(
            item._replace(model=item.model or main.model, service_tier=item.service_tier or main.service_tier)
            for item in ended.items
        )
        return ended._replace(items=items, outcome=outcome)


class Background:
    """The calls that are open after their answer, by the provider's id of it."""

    def __init__(
        self,
        gate: Gate,
        inquirer: Inquirer,
        clock: Clock,
        counts: Counts,
        logger: logging.Logger,
        true_up_s: float,
    ) -> None:
        self._gate = gate
        self._inquirer = inquirer
        self._clock = clock
        self._counts = counts
        self._logger = logger
        self._true_up_s = true_up_s
        self._kept: dict[str, _Kept] = {}
        self._asking: set[asyncio.Task[None]] = set()
        self._stopped = False

    async def charge(
        self, forward: Forward, call: OpenCall, metered: Metered, headers: Mapping[str, str]
    ) -> DeductResponse | None:
        """Charge `call` and the one whose work `metered` says is over; or keep `call` open, where more will be known.

        `headers` are the answer's. As `Gate.close_call`: it returns when the charges are safe; at once where it is kept.
        """
        if metered.ended is not None:
            await self._finish(f"{forward.upstream}/{metered.work_id}", metered.ended)
        elif metered.estimated or metered.work_id:
            return await self._keep(forward, call, metered, headers)
        return await self._gate.close_call(call, metered)

    def keeps(self, call: OpenCall) -> bool:
        """Return whether `call` is open because more will be known of it."""
        return any(kept.call is call for kept in self._kept.values())

    async def _keep(
        self, forward: Forward, call: OpenCall, metered: Metered, headers: Mapping[str, str]
    ) -> DeductResponse | None:
        """Keep a call open; charge it at once where that leads nowhere, or its answer has another's name."""
        broken = metered.estimated
        inquiry = inquiry_about(forward, metered, headers) if self._true_up_s else None
        answer_id = inquiry.answer_id if inquiry is not None else metered.work_id
        key = f"{forward.upstream}/{answer_id}"
        if key in self._kept or (broken and inquiry is None):
            return await self._gate.close_call(call, metered)
        estimate = metered if broken else unheard(call.ask)
        if self._stopped:
            return await self._gate.close_call(call, estimate)
        if len(self._kept) >= KEPT_MAX_CALLS:
            self._give_up(min(self._kept, key=lambda one: self._kept[one].asked_from))
        self._kept[key] = _Kept(call, estimate, broken, inquiry, self._clock.monotonic(), FIRST_ASK_S)
        return None

    async def _finish(self, key: str, ended: Metered) -> None:
        """Charge the call whose work an app has read to be over, if it is kept here."""
        if key in self._kept:
            kept = self._take(key)
            metered = kept.charged(ended)
            self._count(kept, metered)
            await self._gate.close_call(kept.call, metered)

    def tick(self) -> None:
        """Ask about the calls that are due, and charge those whose time is over; called a few times a second."""
        now = self._clock.monotonic()
        for key, kept in tuple(self._kept.items()):
            waited_s = now - kept.asked_from
            if waited_s < 0:
                continue
            guarded = kept.call.guard_output_tokens is not None
            longest_s = min(self._true_up_s, GUARDED_MAX_S) if guarded else self._true_up_s
            if kept.inquiry is None or waited_s >= longest_s:
                self._give_up(key)
            elif kept.asking is None and now >= kept.due_at and len(self._asking) < ASKS_AT_ONCE:
                kept.asking = asyncio.create_task(self._ask(key, kept, kept.inquiry))
                self._asking.add(kept.asking)
                kept.asking.add_done_callback(self._asking.discard)

    async def _ask(self, key: str, kept: _Kept, inquiry: Inquiry) -> None:
        kept.asks += 1
        ended = None
        try:
            ended = await self._inquirer.ask(inquiry)
        except Exception:
            self._logger.exception("a defect of the sidecar")
        kept.asking = None
        if self._kept.get(key) is not kept:
            return
        if ended is not None:
            self._settle(self._take(key), kept.charged(ended))
            return
        kept.pause_s = min(2 * kept.pause_s, ASK_PAUSE_MAX_S)
        kept.next_ask_at = self._clock.monotonic() + kept.pause_s

    def stop(self) -> None:
        """Charge every call that is kept, and keep none from now on."""
        self._stopped = True
        for key in tuple(self._kept):
            self._give_up(key)

    def _give_up(self, key: str) -> None:
        kept = self._take(key)
        self._settle(kept, kept.estimate)

    def _take(self, key: str) -> _Kept:
        kept = self._kept.pop(key)
        if kept.asking is not None:
            kept.asking.cancel()
        return kept

    def _settle(self, kept: _Kept, metered: Metered) -> None:
        self._count(kept, metered)
        self._gate.settle(kept.call, metered)

    def _count(self, kept: _Kept, metered: Metered) -> None:
        """Count what became of a call that was to be asked about; log it where the provider did not say."""
        if not kept.broken and not kept.asks:
            return
        self._counts.true_ups["estimate" if metered.estimated else "settled"] += 1
        if metered.estimated:
            heard = kept.inquiry.heard if kept.inquiry is not None else ""
            fields = {"request_id": kept.call.request_id, "asks": kept.asks, "heard": heard}
            self._logger.info("a provider did not say what a call consumed", extra={"fields": fields})
