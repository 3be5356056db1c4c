"""Metering for whoever asks: calls go to lanes; new users are made on the way; expired leases are settled."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import datetime
from uuid import UUID

from bursar_server.kit.clock import Clock
from bursar_server.kit.errors import BursarError
from bursar_server.metering import store
from bursar_server.metering.lane import Lane
from bursar_server.metering.model import (
    Answer,
    Call,
    CheckAnswer,
    CheckCall,
    DeductAnswer,
    DeductCall,
    ExpireCall,
    NewUser,
    Policy,
    ReleaseAnswer,
    ReleaseCall,
)
from bursar_server.metering.session import Session

SWEEP_INTERVAL_S = 1.0
SWEEP_LIMIT = 1_000
# No hold expires later than so many times its lease from now, another process's setting considered.
LEASES_LEFT = 10

EnsureUser = Callable[[UUID, str], Awaitable[object]]
"""Makes the user of an e-mail in a tenant, if it is not there yet."""

logger = logging.getLogger(__name__)


class MeteringService:
    """Check and Deduct on lanes. A caller that goes away takes back a Check that waits, and nothing else."""

    def __init__(self, lanes: Sequence[Lane], ensure_user: EnsureUser, policy: Policy, clock: Clock) -> None:
        self._lanes = lanes
        self._ensure_user = ensure_user
        self._policy = policy
        self._clock = clock

    def _lane_of(self, call: Call) -> Lane:
        if len(self._lanes) == 1:
            return self._lanes[0]
        name = (
            str(call.tenant_id)
            if isinstance(call, ExpireCall)
            else call.principal.tenant or call.principal.api_key_sha256
        )
        return self._lanes[hash(name) % len(self._lanes)]

    async def _submit(self, call: Call) -> Answer:
        # The lane owns the work; a handler that is cancelled only stops waiting for it.
        return await asyncio.shield(self._lane_of(call).submit(call))

    async def check(self, call: CheckCall) -> CheckAnswer:
        """Decide a call. Raises BursarError as `evaluate_check` does, or DATABASE_UNAVAILABLE.

        A caller that goes away while it waits takes its Check back: no hold is made for it.
        """
        answer = await self._lane_of(call).submit(call)
        if isinstance(answer, NewUser):
            answer = await self._check_new(call, answer)
        assert isinstance(answer, CheckAnswer)  # noqa: S101  (what a lane answers to a CheckCall)
        return answer

    async def check_each(self, calls: Sequence[CheckCall | BursarError]) -> list[CheckAnswer | BaseException]:
        """Decide calls that came together: a lane takes them as one batch. What is an error already stays one."""
        found: list[CheckAnswer | BaseException] = []
        for call, answer in zip(calls, await self._answers(calls), strict=True):
            if isinstance(answer, NewUser) and isinstance(call, CheckCall):
                # Rare enough to be one after the other.
                [answer] = await asyncio.gather(self._check_new(call, answer), return_exceptions=True)
            assert isinstance(answer, CheckAnswer | BaseException)  # noqa: S101
            found.append(answer)
        return found

    async def deduct_each(
        self, calls: Sequence[DeductCall | BursarError]
    ) -> list[DeductAnswer | BaseException]:
        """Charge calls that came together; what this returns is committed. What is an error already stays one."""
        found: list[DeductAnswer | BaseException] = []
        for answer in await self._answers(calls):
            assert isinstance(answer, DeductAnswer | BaseException)  # noqa: S101
            found.append(answer)
        return found

    async def _answers(self, calls: Sequence[Call | BursarError]) -> list[Answer | BaseException]:
        """Return what lanes say to each call. They are answered together, so that the first wait is mostly the only one."""
        waiting = [self._queued(call) for call in calls]
        answers: list[Answer | BaseException] = []
        try:
            for answer in waiting:
                try:
                    answers.append(answer if isinstance(answer, BursarError) else await answer)
                except Exception as error:
                    answers.append(error)
        except asyncio.CancelledError:
            # Takes back the Checks; Deducts are charged all the same.
            for answer in waiting:
                if not isinstance(answer, BursarError):
                    answer.cancel()
            raise
        return answers

    def _queued(self, call: Call | BursarError) -> "asyncio.Future[Answer] | BursarError":
        if isinstance(call, BursarError):
            return call
        try:
            return self._lane_of(call).submit(call)
        except BursarError as error:
            return error

    async def _check_new(self, call: CheckCall, user: NewUser) -> Answer:
        await self._ensure_user(user.tenant_id, user.email)
        return await self._lane_of(call).submit(call)

    async def deduct(self, call: DeductCall) -> DeductAnswer:
        """Charge a call; committed when this returns. Raises BursarError as `evaluate_deduct` does."""
        answer = await self._submit(call)
        assert isinstance(answer, DeductAnswer)  # noqa: S101  (what a lane answers to a DeductCall)
        return answer

    async def release(self, call: ReleaseCall) -> ReleaseAnswer:
        """Remove the hold of a call that was never sent."""
        answer = await self._submit(call)
        assert isinstance(answer, ReleaseAnswer)  # noqa: S101  (what a lane answers to a ReleaseCall)
        return answer

    async def renew(
        self, request_ids: Sequence[UUID], tenant_ids: frozenset[UUID] | None
    ) -> tuple[datetime, list[UUID]]:
        """Renew the leases of open calls; return when they end, and the calls that have no hold any more."""
        tenants = sorted(tenant_ids) if tenant_ids is not None else None
        lease_ms = self._policy.hold_lease_ms

        def task(session: Session) -> tuple[datetime, set[UUID]]:
            return store.renew_holds(session.connection, request_ids, tenants, lease_ms)

        expire_time, renewed = await self._lanes[0].perform(task)
        return expire_time, [request_id for request_id in request_ids if request_id not in renewed]

    async def sweep(self, delay_s: float) -> None:
        """Settle calls whose lease has ended, for ever; begins after `delay_s`, so that outboxes replay first (S18)."""
        await self._clock_sleep(delay_s)
        rounds = 0
        while True:
            with suppress(BursarError):
                await self.sweep_once()
                rounds += 1
                if rounds % 60 == 0:
                    await self.tidy_once()
            await self._clock_sleep(SWEEP_INTERVAL_S)

    async def sweep_once(self) -> int:
        """Settle the calls whose lease has ended by now; return how many there were."""
        expired = await self._lanes[0].perform(
            lambda session: store.expired_holds(session.connection, SWEEP_LIMIT)
        )
        calls = [ExpireCall(tenant_id, request_id) for tenant_id, request_id in expired]
        results = await asyncio.gather(*(self._submit(call) for call in calls), return_exceptions=True)
        failed = sum(isinstance(result, BaseException) for result in results)
        if failed:
            logger.warning("expired calls could not be settled and are tried again", extra={"calls": failed})
        return len(calls) - failed

    async def tidy_once(self) -> None:
        """Delete what is over, and have holds expire in time that a clock which was set back has left far ahead."""
        lease_ms = self._policy.hold_lease_ms

        def task(session: Session) -> None:
            store.purge_rate_windows(session.connection)
            store.purge_waits(session.connection)
            store.expire_in_time(session.connection, lease_ms, LEASES_LEFT * lease_ms)

        await self._lanes[0].perform(task)

    async def _clock_sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
