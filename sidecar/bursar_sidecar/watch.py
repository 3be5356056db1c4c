"""Watches one exchange: whether the app is still there, and whether the provider takes too long.

One loop looks at all open exchanges a few times a second; there are no timers for single calls.
"""

from __future__ import annotations

import asyncio
import enum
from dataclasses import dataclass

from aiohttp import web

from bursar_sidecar.clock import Clock
from bursar_sidecar.settings import OnDisconnect
from bursar_sidecar.telemetry import Counts


class Stop(enum.Enum):
    """Why an exchange is cut short from outside."""

    GONE = "the app went away"
    LATE = "the provider took too long"


@dataclass(frozen=True, slots=True)
class Limits:
    """How patient the sidecar is; times in seconds."""

    on_disconnect: OnDisconnect
    read_on_max_s: float
    read_on_max_bytes: int
    answer_timeout_s: float
    idle_timeout_s: float


def has_left(request: web.BaseRequest) -> bool:
    """Whether the app's connection is closed now."""
    transport = request.transport
    return transport is None or transport.is_closing()


class Watch:
    """The state of one exchange that `tick` looks at. Between `begin` and `end` it may cancel the task that began.

    `gone`: the app has gone away. `writing`: it is the app that is waited for.
    """

    __slots__ = (
        "_clock",
        "_counts",
        "_gone_at",
        "_limit_s",
        "_limits",
        "_read_on_bytes",
        "_request",
        "_since",
        "_stoppable",
        "_task",
        "stop",
        "writing",
    )

    def __init__(self, request: web.BaseRequest, limits: Limits, clock: Clock, counts: Counts) -> None:
        self._request = request
        self._limits = limits
        self._clock = clock
        self._counts = counts
        self._task: asyncio.Task[object] | None = None
        self._since = 0.0
        self._limit_s = 0.0
        self._gone_at: float | None = None
        self._read_on_bytes = 0
        self._stoppable = False
        self.stop: Stop | None = None
        self.writing = False

    @property
    def gone(self) -> bool:
        """Whether the app is known to have gone."""
        return self._gone_at is not None

    @property
    def app_left(self) -> bool:
        """Whether the app's connection is closed now."""
        return has_left(self._request)

    def went_away(self) -> None:
        """Note that the app has gone."""
        if self._gone_at is None:
            self._gone_at = self._clock.monotonic()
            self._counts.app_disconnects += 1

    def read_on(self, size_bytes: int) -> bool:
        """Note that so much came after the app had gone; return whether reading on is still worth it."""
        self._read_on_bytes += size_bytes
        limits = self._limits
        return (
            limits.on_disconnect is OnDisconnect.READ_ON and self._read_on_bytes <= limits.read_on_max_bytes
        )

    def begin(self) -> None:
        """From now on the running task may be cancelled: it waits for the provider's answer."""
        self._task = asyncio.current_task()
        self._limit_s = self._limits.answer_timeout_s
        self._since = self._clock.monotonic()
        self._stoppable = True

    def progress(self, limit_s: float | None = None) -> None:
        """Something came: the patience begins anew, for `limit_s` seconds instead of the idle timeout if given."""
        self._since = self._clock.monotonic()
        self._limit_s = self._limits.idle_timeout_s if limit_s is None else limit_s

    def end(self) -> None:
        """From now on the task is not cancelled any more."""
        self._stoppable = False

    def tick(self, now: float) -> None:
        """Look whether the app has gone or time is up, and cut the exchange short if so."""
        if self._gone_at is None and self.app_left:
            self.went_away()
        if not self._stoppable:
            return
        if self._gone_at is not None:
            cancels = self._limits.on_disconnect is OnDisconnect.CANCEL
            if cancels or now - self._gone_at > self._limits.read_on_max_s:
                self._cut(Stop.GONE)
                return
        if now - self._since > self._limit_s:
            self._cut(Stop.GONE if self.writing else Stop.LATE)

    def interrupted(self) -> bool:
        """Take back our own cancellation; False where somebody else cancelled: the sidecar stops."""
        self._stoppable = False
        self.writing = False
        if self.stop is None or self._task is None:
            return False
        return self._task.uncancel() == 0

    def _cut(self, why: Stop) -> None:
        self.stop = why
        self._stoppable = False
        if why is Stop.GONE:
            self.went_away()
        if self._task is not None:
            self._task.cancel()
