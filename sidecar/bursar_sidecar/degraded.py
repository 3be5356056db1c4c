"""What the sidecar decides by itself while the control plane cannot be asked, and what it tells about that later."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import NamedTuple

from bursar.v1 import budget_pb2
from bursar.v1.metering_service_pb2 import (
    CheckRequest,
    CheckResponse,
    DeductRequest,
    DeductResponse,
    RefusedCalls,
    ReleaseHoldRequest,
)
from bursar_sidecar.clock import Clock
from bursar_sidecar.ids import RequestIds, packed
from bursar_sidecar.last_known import Claim, Decision, LastKnown
from bursar_sidecar.messages import Ask
from bursar_sidecar.providers.base import Metered, Problem
from bursar_sidecar.settings import OnUnreachable
from bursar_sidecar.telemetry import Counts

#: So many principals of one outage are named in reports; the calls of more are only counted.
REPORTS_MAX = 1_000
#: A report that grows is written again this often: a killed sidecar forgets at most so much of it.
_REWRITE_S = 30.0
#: Where single Checks fail while others do not, a report ends when none has failed for so long.
_QUIET_S = 2.0

_NUMBERS = {policy: getattr(budget_pb2, f"ON_UNREACHABLE_{policy.value}") for policy in OnUnreachable}
# What is appended to a message in wire format adds fields to it.
_WITH_BUDGETS = CheckRequest(with_budgets=True).SerializeToString()
_MARKS = {policy: DeductRequest(degraded=number).SerializeToString() for policy, number in _NUMBERS.items()}


class Report(NamedTuple):
    """Calls of one principal that were refused: its id and what a release of that id carries. `ended`: send it now."""

    call: bytes
    payload: bytes
    ended: bool


class _Refused:
    """The calls of one principal that one policy has refused in one outage."""

    __slots__ = ("calls", "first_ns", "last_ns", "raw_id", "written_at", "written_calls")

    def __init__(self, raw_id: bytes, now_ns: int) -> None:
        self.raw_id = raw_id
        self.calls = 0
        self.first_ns = self.last_ns = now_ns
        self.written_calls = 0
        self.written_at = float("-inf")


class Degraded:
    """Decides calls that nobody could be asked about, counts each decision, and keeps the books of the refused ones.

    Calls that are let through tell of it with their own Deduct (`mark`).
    """

    def __init__(
        self,
        own: OnUnreachable,
        max_age_s: float,
        ids: RequestIds,
        clock: Clock,
        counts: Counts,
        logger: logging.Logger,
    ) -> None:
        self._known = LastKnown(own, max_age_s)
        self._ids = ids
        self._clock = clock
        self._counts = counts
        self._logger = logger
        self._refused: dict[tuple[str, str, str, OnUnreachable], _Refused] = {}
        self._refused_at = float("-inf")
        self._unnamed = 0
        #: What is appended to every Check.
        self.check_mark = _WITH_BUDGETS if own is OnUnreachable.LAST_KNOWN_GOOD else b""

    # -- while the control plane answers -------------------------------------------------------------

    def allowed(self, ask: Ask, said: CheckResponse, *, behind: bool) -> Claim | None:
        """Note that a call was let through; see LastKnown."""
        return self._known.allowed(ask, said, self._clock.monotonic(), behind=behind)

    def denied(self, ask: Ask, said: CheckResponse, problem: Problem, *, behind: bool) -> None:
        """Note that a call was denied; see LastKnown."""
        self._known.denied(ask, said, problem, self._clock.monotonic(), behind=behind)

    def settled(self, claim: Claim, ask: Ask, metered: Metered, charged: DeductResponse | None) -> None:
        """Note what a call cost, or consumed where the control plane has not said what that costs."""
        self._known.settled(claim, ask, metered, charged, self._clock.monotonic())

    def dropped(self, claim: Claim) -> None:
        """Note that a call was not made."""
        self._known.dropped(claim)

    # -- while it does not ---------------------------------------------------------------------------

    def decide(self, ask: Ask) -> Decision:
        """Decide a call; a refusal is in the next reports."""
        decision = self._known.decide(ask, self._clock.monotonic())
        word = "ALLOW" if decision.problem is None else "DENY"
        self._counts.degraded[decision.policy.value, word] += 1
        if decision.problem is not None:
            self._note_refused(ask, decision.policy)
        return decision

    def mark(self, policy: OnUnreachable) -> bytes:
        """Return what is appended to the Deduct of a call that was let through by `policy`."""
        return _MARKS[policy]

    def _note_refused(self, ask: Ask, policy: OnUnreachable) -> None:
        key = (ask.key_sha256, ask.user_id, ask.body_user, policy)
        now_ns = self._ids.now_ns()
        refused = self._refused.get(key)
        if refused is None:
            if len(self._refused) >= REPORTS_MAX:
                self._unnamed += 1
                return
            refused = self._refused[key] = _Refused(packed(self._ids.new()), now_ns)
        refused.calls += 1
        refused.last_ns = now_ns
        self._refused_at = self._clock.monotonic()

    def reports(self, *, away: bool) -> Iterator[Report]:
        """Yield the reports that are to be written to the outbox now; all of them, for the last time, once it is over.

        `away`: the control plane does not answer.
        """
        if not self._refused:
            return
        now = self._clock.monotonic()
        if away or now - self._refused_at < _QUIET_S:
            for key, refused in self._refused.items():
                grown = refused.calls > refused.written_calls
                if grown and now - refused.written_at >= _REWRITE_S:
                    refused.written_calls, refused.written_at = refused.calls, now
                    yield Report(refused.raw_id, _payload(key, refused), ended=False)
            return
        yield from self.end()

    def end(self) -> Iterator[Report]:
        """Yield every report, and begin anew."""
        reports, self._refused = self._refused, {}
        if self._unnamed:
            self._logger.warning(
                "more principals were refused during an outage than reports name",
                extra={"fields": {"calls": self._unnamed}},
            )
            self._unnamed = 0
        for key, refused in reports.items():
            yield Report(refused.raw_id, _payload(key, refused), ended=True)


def _payload(key: tuple[str, str, str, OnUnreachable], refused: _Refused) -> bytes:
    """Return what the outbox keeps of a release: the key's hash, and what the request says beside it."""
    key_sha256, user_id, body_user, policy = key
    said = RefusedCalls(calls=refused.calls, policy=_NUMBERS[policy], user_id=user_id, body_user=body_user)
    said.first_time.FromNanoseconds(refused.first_ns // 1000 * 1000)
    said.last_time.FromNanoseconds(refused.last_ns // 1000 * 1000)
    return bytes.fromhex(key_sha256) + ReleaseHoldRequest(refused=said).SerializeToString()
