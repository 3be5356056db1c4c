"""Keeps the holds of open calls alive, and asks now and then whether the control plane is there (S9)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from bursar_sidecar.clock import Clock
from bursar_sidecar.control_plane import (
    ControlPlane,
    RequestRefusedError,
    TokenRefusedError,
    UnreachableError,
)
from bursar_sidecar.telemetry import Counts

_MAX_IDS = 1000
_EVERY_S = 20.0
_AT_LEAST_S = 0.2
#: With nothing else to ask, the control plane is asked this often whether it is there.
_PING_AFTER_S = 5.0
_PING_EVERY_S = 1.0

#: Returns the request ids of the held calls that were opened before an instant (the clock's monotonic seconds).
HeldBefore = Callable[[float], Sequence[str]]


class Renewals:
    """Renews in time, by the lease that the control plane gives."""

    def __init__(self, control_plane: ControlPlane, clock: Clock, counts: Counts) -> None:
        self._control_plane = control_plane
        self._clock = clock
        self._counts = counts
        self._every_s = _EVERY_S
        self._at = 0.0
        self._ping_at = 0.0

    @property
    def look_every_s(self) -> float:
        """How often `keep_up` wants to be called, in seconds."""
        return min(0.25, self._every_s / 2)

    def learn_lease(self, lease_s: float) -> None:
        """Renew every third of the lease that holds have, and often enough if the clocks disagree about it."""
        self._every_s = min(max(lease_s / 3, _AT_LEAST_S), _EVERY_S)
        self._at = min(self._at, self._clock.monotonic() + self._every_s)

    def soon(self) -> None:
        """Renew with the next turn: the control plane was away, and leases have gone on running."""
        self._at = 0.0

    async def keep_up(self, held_before: HeldBefore) -> None:
        """Renew every hold that is not fresh when it is time, and learn whether the control plane is there."""
        now = self._clock.monotonic()
        if now >= self._at:
            self._at = now + self._every_s
            await self._renew(now, held_before(now - self._every_s / 2))
        silent = self._control_plane.idle_s > _PING_AFTER_S or self._control_plane.failing
        if silent and now >= self._ping_at:
            self._ping_at = now + _PING_EVERY_S
            with contextlib.suppress(UnreachableError, TokenRefusedError, RequestRefusedError):
                await self._control_plane.renew(())

    async def _renew(self, now: float, due: Sequence[str]) -> None:
        """Renew these holds; those that cannot be renewed now are tried again soon."""
        for start in range(0, len(due), _MAX_IDS):
            ids = due[start : start + _MAX_IDS]
            try:
                response = await self._control_plane.renew(ids)
            except (UnreachableError, TokenRefusedError, RequestRefusedError):
                self._at = now + min(1.0, self._every_s)
                return
            missing = len(response.missing_request_ids)
            self._counts.renewals += len(ids) - missing
            self._counts.holds_missing += missing
