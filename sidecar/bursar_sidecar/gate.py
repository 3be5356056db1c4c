"""Check before a call, Deduct after it: the gate through which every call goes, and the journal of its steps."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial

from bursar.v1.errors_pb2 import ERROR_REASON_REQUEST_ID_MISPLACED
from bursar.v1.metering_pb2 import DECISION_ALLOW, ItemError
from bursar.v1.metering_service_pb2 import BatchCheckResult, CheckResponse, DeductResponse
from bursar_sidecar import denial
from bursar_sidecar.batcher import Batcher
from bursar_sidecar.clock import Clock
from bursar_sidecar.control_plane import (
    ControlPlane,
    RequestRefusedError,
    TokenRefusedError,
    UnreachableError,
)
from bursar_sidecar.degraded import Degraded, Report
from bursar_sidecar.ids import RequestIds, packed
from bursar_sidecar.last_known import Claim
from bursar_sidecar.messages import Ask, check_payload, deduct_payload, unheard
from bursar_sidecar.outbox import Outbox, OutboxWriteError
from bursar_sidecar.providers.base import Metered, Problem
from bursar_sidecar.renewals import Renewals
from bursar_sidecar.replay import Replayer
from bursar_sidecar.settings import OnUnreachable
from bursar_sidecar.telemetry import Counts

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_INVALID_ARGUMENT = 3
_PERMISSION_DENIED = 7
#: The request header that a field of the Check came from.
_HEADER_OF_FIELD = {"tags": "x-bursar-tags", "session_id": "x-bursar-session", "user_id": "x-bursar-user"}


class OpenCall:
    """One call that was let through, until it is settled or released.

    `held` says that a hold stands for it; none does where nobody could be asked: `degraded` is then the policy that let
    it through. `claim` is what it has taken of what is known to be left. `fit_output_tokens` is the most that it may
    generate where that is less than it asked for, `guard_output_tokens` what a stream may bring before it is ended.
    """

    __slots__ = (
        "ask",
        "claim",
        "closed",
        "degraded",
        "fit_output_tokens",
        "guard_output_tokens",
        "held",
        "opened_at",
        "raw_id",
        "request_id",
        "start_ns",
    )

    def __init__(self, request_id: str, ask: Ask, opened_at: float) -> None:
        self.request_id = request_id
        self.raw_id = packed(request_id)
        self.ask = ask
        self.opened_at = opened_at
        self.held = False
        self.closed = False
        self.claim: Claim | None = None
        self.degraded: OnUnreachable | None = None
        self.fit_output_tokens: int | None = None
        self.guard_output_tokens: int | None = None
        self.start_ns = 0


class Gate:
    """Opens and closes calls; never loses one that was sent, never keeps the hold of one that was not (S17, S18)."""

    def __init__(
        self,
        control_plane: ControlPlane,
        outbox: Outbox,
        replayer: Replayer,
        ids: RequestIds,
        clock: Clock,
        counts: Counts,
        logger: logging.Logger,
        degraded: Degraded,
        *,
        open_calls_max: int,
        deduct_wait_s: float,
    ) -> None:
        self._control_plane = control_plane
        self._outbox = outbox
        self._replayer = replayer
        self._ids = ids
        self._clock = clock
        self._counts = counts
        self._logger = logger
        self._degraded = degraded
        self._open_calls_max = open_calls_max
        self._deduct_wait_s = deduct_wait_s
        self._open: dict[bytes, OpenCall] = {}
        self._checks = Batcher[tuple[OpenCall, bytes], BatchCheckResult](self._send_checks)
        self._deducts = Batcher[tuple[bytes, bytes], DeductResponse | None](
            self._send_deducts, overdue=self._sync_soon
        )
        self._waiting: dict[asyncio.Future[DeductResponse | None], float] = {}
        self._syncs: set[asyncio.Task[None]] = set()
        self._renewals = Renewals(control_plane, clock, counts)
        self._closed = asyncio.Event()
        self.stopping = False

    @property
    def open_calls(self) -> int:
        """How many calls are open now."""
        return len(self._open)

    # -- opening -------------------------------------------------------------------------------------

    async def open_call(self, ask: Ask, request_id: str) -> OpenCall | Problem:
        """Ask whether a call may be made; return it, open, or what the app is told.

        An id whose time the control plane does not accept is replaced once, with the clock corrected (S16); the
        returned call has the id that counts.
        """
        if self.stopping:
            return denial.shutting_down()
        if self._outbox.full or len(self._open) >= self._open_calls_max:
            return denial.control_plane_unavailable()
        call = self._begun(request_id, ask)
        result = await self._checked(call)
        if isinstance(result, ItemError) and result.reason == ERROR_REASON_REQUEST_ID_MISPLACED:
            self._forget(call)
            self._ids.correct(result.server_time.ToNanoseconds())
            self._counts.ids_corrected += 1
            call = self._begun(self._ids.new(), ask)
            result = await self._checked(call)
        if isinstance(result, CheckResponse):
            return self._decided(call, result)
        if isinstance(result, ItemError):
            return self._failed(call, result)
        return result

    def _begun(self, request_id: str, ask: Ask) -> OpenCall:
        call = OpenCall(request_id, ask, self._clock.monotonic())
        self._open[call.raw_id] = call
        return call

    def _forget(self, call: OpenCall) -> None:
        """Drop a call that leaves nothing behind."""
        self._close(call)
        self._outbox.done(call.raw_id)

    async def _checked(self, call: OpenCall) -> CheckResponse | ItemError | Problem | OpenCall:
        try:
            payload = check_payload(call.request_id, call.ask) + self._degraded.check_mark
        except ValueError:  # what cannot be said in UTF-8
            self._forget(call)
            return denial.invalid_request("the model, a tag or the session is not sound text")
        try:
            result = await self._checks.ask((call, payload))
            if result.HasField("check") and _waits(result.check):
                # Only other calls' holds are in the way: this Check waits for them, and no batch waits with it.
                return await self._control_plane.wait(payload)
        except UnreachableError as error:
            return self._unasked(call, seen=error.seen)
        except (TokenRefusedError, RequestRefusedError, OutboxWriteError):
            self._forget(call)
            return denial.control_plane_unavailable()
        except (
            BaseException
        ):  # the sidecar stops, or has a defect: a Check that was asked may have left a hold
            self.release(call)
            raise
        return result.check if result.HasField("check") else result.error

    async def _send_checks(self, items: Sequence[tuple[OpenCall, bytes]]) -> Sequence[BatchCheckResult]:
        self._outbox.opened(
            [call.raw_id for call, _ in items], [bytes.fromhex(call.ask.key_sha256) for call, _ in items]
        )
        return await self._control_plane.check([payload for _, payload in items])

    def _decided(self, call: OpenCall, response: CheckResponse) -> OpenCall | Problem:
        if response.decision != DECISION_ALLOW:
            self._forget(call)
            problem = denial.denied(response.denials, self._now())
            self._degraded.denied(call.ask, response, problem, behind=self._replayer.busy)
            return problem
        if response.HasField("hold_expire_time"):
            left_ns = response.hold_expire_time.ToNanoseconds() - self._ids.now_ns()
            self._renewals.learn_lease(left_ns / 1e9)
        if response.HasField("fit_output_tokens"):
            call.fit_output_tokens = response.fit_output_tokens
        if response.HasField("guard_output_tokens"):
            call.guard_output_tokens = response.guard_output_tokens
        call.claim = self._degraded.allowed(call.ask, response, behind=self._replayer.busy)
        call.held = True
        return call

    def _failed(self, call: OpenCall, error: ItemError) -> OpenCall | Problem:
        """Return what becomes of a call whose Check could not be decided."""
        if error.code == _INVALID_ARGUMENT:
            self._forget(call)
            header = _HEADER_OF_FIELD.get(error.field.partition(".")[0].partition("[")[0], error.field)
            return denial.invalid_request(f"{header}: {error.message}" if header else error.message)
        if error.code == _PERMISSION_DENIED:
            self._forget(call)
            return denial.forbidden("PERMISSION_DENIED", error.message)
        return self._unasked(call, seen=True)

    def _unasked(self, call: OpenCall, *, seen: bool) -> OpenCall | Problem:
        """Apply the policy for a call that nobody could be asked about."""
        decision = self._degraded.decide(call.ask)
        if decision.problem is None:
            call.degraded, call.claim = decision.policy, decision.claim
            return call
        if seen:
            self.release(call)
        else:
            self._forget(call)
        return decision.problem

    # -- in between ----------------------------------------------------------------------------------

    def sent(self, call: OpenCall) -> None:
        """Note that the call is about to be forwarded. Raises OutboxWriteError: then it must not be, and is released."""
        call.start_ns = self._ids.now_ns()
        settle = b""
        if not call.held:
            settle = self._deduct_payload(call, unheard(call.ask), call.start_ns)
        try:
            self._outbox.sent(call.raw_id, settle)
        except OutboxWriteError:
            self.release(call)
            raise

    def release(self, call: OpenCall) -> None:
        """Give back the hold of a call that was not sent; returns at once, the outbox sees to it."""
        if call.closed:
            return
        self._close(call)
        if call.claim is not None:
            self._degraded.dropped(call.claim)
        self._outbox.release(call.raw_id, bytes.fromhex(call.ask.key_sha256))
        self._replayer.add((call.raw_id,))

    # -- closing -------------------------------------------------------------------------------------

    async def close_call(self, call: OpenCall, metered: Metered) -> DeductResponse | None:
        """Charge a call and return what it cost, committed; None where that takes too long or cannot be said.

        When it returns, the charge is committed or on the sidecar's disk. A cancelled caller changes nothing: the
        Deduct goes its way.
        """
        future = self.settle(call, metered)
        if future is None:
            return None
        self._waiting[future] = self._clock.monotonic() + self._deduct_wait_s
        try:
            response = await future
        finally:
            self._waiting.pop(future, None)
        if response is None:
            self._counts.deducts_late += 1
            await self._sync()
        return response

    def settle(self, call: OpenCall, metered: Metered) -> asyncio.Future[DeductResponse | None] | None:
        """Charge a call without waiting for it; the future's result is as `close_call`'s. None if it is closed already."""
        if call.closed:
            return None
        payload = self._deduct_payload(call, metered, self._ids.now_ns())
        self._close(call)
        self._counts.outcomes[metered.outcome.value] += 1
        if metered.estimated:
            self._counts.estimated += 1
        future = self._deducts.submit((call.raw_id, payload))
        if call.claim is not None:
            future.add_done_callback(partial(self._learn_cost, call.claim, call.ask, metered))
        return future

    def _deduct_payload(self, call: OpenCall, metered: Metered, end_ns: int) -> bytes:
        payload = deduct_payload(call.request_id, call.ask, metered, call.start_ns, end_ns)
        return payload if call.degraded is None else payload + self._degraded.mark(call.degraded)

    def _learn_cost(
        self, claim: Claim, ask: Ask, metered: Metered, future: asyncio.Future[DeductResponse | None]
    ) -> None:
        charged = None if future.cancelled() or future.exception() is not None else future.result()
        self._degraded.settled(claim, ask, metered, charged)

    def _close(self, call: OpenCall) -> None:
        call.closed = True
        self._open.pop(call.raw_id, None)
        if self.stopping and not self._open:
            self._closed.set()

    async def _send_deducts(self, items: Sequence[tuple[bytes, bytes]]) -> Sequence[DeductResponse | None]:
        self._outbox.deducts(items)
        if self._replayer.stuck or self._control_plane.hangs:
            self._replayer.add(raw_id for raw_id, _ in items)
            return [None] * len(items)
        try:
            results = await self._control_plane.deduct([payload for _, payload in items])
        except Exception as error:
            if not isinstance(error, UnreachableError | TokenRefusedError | RequestRefusedError):
                self._logger.exception("a defect of the sidecar")
            self._replayer.add(raw_id for raw_id, _ in items)
            return [None] * len(items)
        responses: list[DeductResponse | None] = []
        for (raw_id, _), result in zip(items, results, strict=True):
            committed = result.HasField("deduct")
            if committed:
                self._outbox.done(raw_id)
                self._counts.deducts += 1
            elif not self._replayer.settled(raw_id, result.error):
                self._replayer.add((raw_id,))
            responses.append(result.deduct if committed else None)
        return responses

    # -- durability ----------------------------------------------------------------------------------

    async def _sync(self) -> None:
        try:
            await self._outbox.sync()
        except OSError:
            self._logger.exception("the outbox cannot be synced")

    def _sync_soon(self) -> None:
        """Make a Deduct that is not answered at once survive the machine too."""
        task = asyncio.ensure_future(self._sync())
        self._syncs.add(task)
        task.add_done_callback(self._syncs.discard)

    # -- now and then --------------------------------------------------------------------------------

    def tick(self) -> None:
        """Let answers go whose Deduct has taken too long; called a few times a second."""
        now = self._clock.monotonic()
        for future, deadline in list(self._waiting.items()):
            if deadline > now:
                break  # they wait in the order in which they came
            if not future.done():
                future.set_result(None)

    async def keep_up(self) -> None:
        """Renew holds when it is time, and report what was refused while nobody could be asked."""
        if not self._outbox.full:  # what room is left is for charges
            self._report(self._degraded.reports(away=self._control_plane.failing))
        await self._renewals.keep_up(self._held_before)

    @property
    def keep_up_every_s(self) -> float:
        """How often `keep_up` wants to be called, in seconds."""
        return self._renewals.look_every_s

    def renew_now(self) -> None:
        """Renew with the next turn: the control plane was away, and leases have gone on running."""
        self._renewals.soon()

    def _held_before(self, instant: float) -> list[str]:
        return [call.request_id for call in self._open.values() if call.held and call.opened_at < instant]

    def _report(self, reports: Iterable[Report]) -> None:
        """Write down what was refused; send it where the outage is over."""
        for report in reports:
            self._outbox.release(report.call, report.payload)
            if report.ended:
                self._replayer.add((report.call,))

    def _now(self) -> datetime:
        return _EPOCH + timedelta(microseconds=self._ids.now_ns() // 1000)

    async def all_closed(self) -> None:
        """Return when no call is open."""
        while self._open:
            self._closed.clear()
            await self._closed.wait()

    async def drained(self) -> None:
        """Return when every Deduct is committed or in the outbox."""
        await self._deducts.drained()
        self._report(self._degraded.end())
        await self._replayer.drained()
        await self._sync()


def _waits(response: CheckResponse) -> bool:
    """Return whether the answer of a batch leaves a call to wait (contract: BatchCheck never does)."""
    denials = response.denials
    return bool(denials) and denials[0].code == denial.HELD_CODE and denials[0].retryable
