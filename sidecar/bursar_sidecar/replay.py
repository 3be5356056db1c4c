"""Brings what the outbox owes to the control plane: in order, again and again, until it is acknowledged or dead."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Iterable

from bursar.v1.errors_pb2 import ErrorReason
from bursar.v1.metering_pb2 import ItemError
from bursar.v1.metering_service_pb2 import DeductRequest, ReleaseHoldRequest
from bursar_sidecar.control_plane import ControlPlane, RequestRefusedError
from bursar_sidecar.ids import unpacked
from bursar_sidecar.outbox import Outbox
from bursar_sidecar.outbox_log import Kind
from bursar_sidecar.telemetry import Counts

_BATCH_MAX_ITEMS = 128
_SHA256_BYTES = 32
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0
#: google.rpc codes of items that no repetition makes acceptable: INVALID_ARGUMENT, NOT_FOUND, ALREADY_EXISTS
#: (the id was reused), FAILED_PRECONDITION (too old, nobody's), OUT_OF_RANGE.
_FINAL_CODES = frozenset({3, 5, 6, 9, 11})
#: Connect's word for what is of no principal, or of months that are gone.
_NOBODYS = "failed_precondition"


class Replayer:
    """Takes calls whose Deduct or release is in the outbox; one task works them off while there are any."""

    def __init__(
        self, outbox: Outbox, control_plane: ControlPlane, counts: Counts, logger: logging.Logger
    ) -> None:
        self._outbox = outbox
        self._control_plane = control_plane
        self._counts = counts
        self._logger = logger
        self._queue: deque[bytes] = deque()
        self._task: asyncio.Task[None] | None = None
        self._pause_s = 0.0
        self._away = False
        self._wake = asyncio.Event()

    def add(self, calls: Iterable[bytes]) -> None:
        """Work off these calls after those that wait already."""
        self._queue.extend(calls)
        if self._queue and self._task is None:
            self._task = asyncio.ensure_future(self._run())

    def hurry(self) -> None:
        """Try again now: the control plane answers again."""
        self._wake.set()

    @property
    def stuck(self) -> bool:
        """Whether nobody could be asked at the last attempt, and calls wait for the next one."""
        return self._away and bool(self._queue)

    @property
    def busy(self) -> bool:
        """Whether anything waits for the control plane or is on its way there."""
        return self._task is not None

    async def drained(self) -> None:
        """Return when nothing waits or an attempt has failed: what is left stays in the outbox."""
        while self._task is not None and not self._pause_s:
            await asyncio.wait({self._task}, timeout=0.05)

    async def stop(self) -> None:
        """Stop; what is left stays in the outbox."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def settled(self, call: bytes, error: ItemError | None) -> bool:
        """Take the control plane's word on one item; return whether it is off the books, else it is worth a repeat."""
        if error is None:
            self._outbox.done(call)
            return True
        if error.code not in _FINAL_CODES:
            return False
        reason = ErrorReason.Name(error.reason).removeprefix("ERROR_REASON_")
        return self._bury(call, reason, error.message)

    async def _run(self) -> None:
        try:
            while self._queue:
                batch = [self._queue.popleft() for _ in range(min(len(self._queue), _BATCH_MAX_ITEMS))]
                try:
                    again = await self._attempt(batch)
                    self._away = False
                except asyncio.CancelledError:
                    self._queue.extendleft(reversed(batch))
                    raise
                except Exception as error:
                    if not isinstance(error, OSError):  # neither the control plane nor the disk
                        self._logger.exception("replaying the outbox failed")
                    self._queue.extendleft(reversed(batch))  # what is done already is passed over
                    self._away = True
                    await self._rest()
                    continue
                self._queue.extend(again)
                if len(again) == len(batch):
                    await self._rest()
                else:
                    self._pause_s = 0.0
        finally:
            self._task = None
            self._pause_s = self._pause_s if self._queue else 0.0

    async def _rest(self) -> None:
        """Wait a little longer each time, not all sidecars at once; less when the control plane is seen to answer."""
        self._pause_s = min(max(self._pause_s * 2, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
        self._wake.clear()
        try:
            async with asyncio.timeout(self._pause_s * random.uniform(0.75, 1.25)):  # noqa: S311  (no secret)
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _attempt(self, batch: list[bytes]) -> list[bytes]:
        """Send what is owed for these calls; return those worth a repeat."""
        deducts: list[tuple[bytes, bytes]] = []
        releases: list[tuple[bytes, bytes]] = []
        for call in batch:
            try:
                owed = self._outbox.owed(call)
            except OSError:
                self._logger.exception(
                    "a record of the outbox cannot be read; it stays there for the next start"
                )
                continue
            if owed is None:
                continue
            kind, payload = owed
            (deducts if kind is Kind.DEDUCT else releases).append((call, payload))
        again = await self._deduct(deducts)
        for call, payload in releases:
            if not await self._release(call, payload):
                again.append(call)
        return again

    async def _deduct(self, items: list[tuple[bytes, bytes]]) -> list[bytes]:
        if not items:
            return []
        try:
            results = await self._control_plane.deduct([payload for _, payload in items])
        except RequestRefusedError as error:
            if len(items) == 1:
                call = items[0][0]
                return [] if self._bury(call, "REQUEST_REFUSED", str(error)) else [call]
            middle = len(items) // 2
            return await self._deduct(items[:middle]) + await self._deduct(items[middle:])
        again: list[bytes] = []
        for (call, _), result in zip(items, results, strict=True):
            error_or_none = result.error if result.HasField("error") else None
            if not self.settled(call, error_or_none):
                again.append(call)
            elif error_or_none is None:
                self._counts.deducts += 1
                self._counts.deducts_replayed += 1
        return again

    async def _release(self, call: bytes, payload: bytes) -> bool:
        """Send a release: the key's hash, and after it what else the request says. Return whether it is off the books."""
        request = ReleaseHoldRequest.FromString(payload[_SHA256_BYTES:])
        request.request_id, request.api_key_sha256 = unpacked(call), payload[:_SHA256_BYTES].hex()
        try:
            await self._control_plane.release(request)
        except RequestRefusedError as error:
            # No money is in a report: the log has what was wrong with it. And what is nobody's has no hold.
            if request.HasField("refused") or error.code == _NOBODYS:
                self._outbox.done(call)
                return True
            await self._control_plane.renew(())  # raises where it is the token that is wrong, not this call
            return self._bury(call, "REQUEST_REFUSED", str(error))
        self._counts.releases += not request.HasField("refused")
        self._outbox.done(call)
        return True

    def _bury(self, call: bytes, reason: str, message: str) -> bool:
        """Put what will never be accepted aside for a person; return whether that could be written."""
        readable: object = None
        try:
            owed = self._outbox.owed(call)
            if owed is not None and owed[0] is Kind.DEDUCT:
                from google.protobuf.json_format import MessageToDict  # late: rarely needed, and not small

                readable = MessageToDict(DeductRequest.FromString(owed[1]), preserving_proto_field_name=True)
            self._outbox.dead_letter(call, reason, message, readable)
        except OSError:
            self._logger.exception("the outbox's dead-letter file cannot be written")
            return False
        self._counts.dead_letters += 1
        self._logger.error(
            "the control plane will never accept this; it is in the outbox's dead-letter file",
            extra={"fields": {"request_id": unpacked(call), "reason": reason, "detail": message}},
        )
        return True
