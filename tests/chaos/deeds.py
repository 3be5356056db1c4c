"""Does what a plan says: kills at any instant or at an event, restarts, and faults."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable

import psycopg

from chaos.installation import Installation, note
from chaos.load import Load
from chaos.parts import Part, Parts
from chaos.plan import KILLS, Action, Do, Plan
from chaos.relay import Relay, Trap

_EVENT_S = 3.0
_LOOK_S = 0.03
_SERVING_LOOKS = 500


class Chaos:
    """Does what a plan says to an installation that has load on it.

    `kills` counts the processes killed; `aimed` the kills that met the event they waited for.
    """

    def __init__(self, installation: Installation, load: Load, plan: Plan) -> None:
        self._all = installation
        self._load = load
        self._plan = plan
        self._parts = Parts()
        self.kills = 0
        self.aimed: Counter[Do] = Counter()

    async def run(self) -> None:
        """Do everything in the plan; all parts are up afterwards."""
        began = time.monotonic()
        for number, action in enumerate(self._plan.actions, start=1):
            try:
                await self._answered(action.answered)
                await asyncio.sleep(action.pause_s)
                await self._do(action)
            except BaseException:
                await self._parts.dropped()
                raise
            note(
                f"chaos: {time.monotonic() - began:5.0f} s  {number}/{len(self._plan.actions)}"
                f"  kills {self.kills}  calls {len(self._load.calls)}  {action.what}"
            )
        await self._parts.all_started()

    async def _answered(self, enough: int) -> None:
        """Wait until everything is up and so many more calls are answered, or too much time has passed."""
        if not enough:
            return
        await self._parts.all_started()
        enough += self._load.ends["answered"]
        for _ in range(_SERVING_LOOKS):
            if self._load.ends["answered"] >= enough:
                return
            await asyncio.sleep(_LOOK_S)

    async def _do(self, action: Action) -> None:
        match action.what:
            case Do.SIDECAR | Do.SIDECAR_AND_OUTBOX | Do.SIDECAR_STARTING:
                await self._sidecar(action)
            case Do.SIDECAR_ON_ANSWER:
                await self._sidecar_on_answer(action)
            case Do.SIDECAR_ON_REPLY:
                await self._parts.started(self._all.sidecar)
                await self._trapped(action, *self._all.deduct_trap(self._all.kill_sidecar))
                self._restart_sidecar(action)
            case Do.PLANE | Do.PLANE_STARTING:
                await self._plane(action)
            case Do.PLANE_ON_COMMIT | Do.PLANE_ON_REPLY:
                await self._plane_on_event(action)
            case Do.DATABASE:
                await self._parts.started(self._all.database)
                self._all.database.kill()
                self._parts.start(self._all.database, action.down_s)
            case Do.DATABASE_ON_COMMIT:
                await self._parts.started(self._all.database)
                trap = self._all.commit_trap(action.which % 2, self._all.database.kill)
                await self._trapped(action, *trap)
                self._parts.start(self._all.database, action.down_s)
            case Do.BACKEND:
                await self._parts.started(self._all.database)
                if backends := self._all.database.backends():
                    self._all.database.kill_backend(backends[action.which % len(backends)])
            case Do.PROVIDER:
                await self._kill_part(self._all.provider, action)
            case Do.EVERYTHING:
                await self._everything(action)
            case _:
                await self._fault(action)
        self.kills += KILLS[action.what]

    # -- kills ---------------------------------------------------------------------------------------

    async def _kill_part(self, part: Part, action: Action) -> None:
        await self._parts.started(part)
        part.kill()
        self._parts.start(part, action.down_s)

    async def _sidecar(self, action: Action) -> None:
        sidecar = self._all.sidecar
        await self._parts.started(sidecar)
        self._all.kill_sidecar(lose_outbox=action.what is Do.SIDECAR_AND_OUTBOX)
        self._restart_sidecar(action)
        if action.what is Do.SIDECAR_STARTING:
            await asyncio.sleep(action.down_s + 0.05 + action.which / 2000)
            self._all.kill_sidecar()
            await self._parts.started(sidecar)
            if sidecar.pid is not None:  # it was started just after
                self._all.kill_sidecar()
            self._restart_sidecar(action)

    async def _sidecar_on_answer(self, action: Action) -> None:
        await self._parts.started(self._all.provider)
        await self._parts.started(self._all.sidecar)
        killed = asyncio.Event()

        def kill() -> None:
            self._all.kill_sidecar()
            killed.set()

        loop = asyncio.get_running_loop()

        def kill_soon() -> None:
            loop.call_later(action.delay_s, kill)

        self._all.on_answer(kill_soon if action.delay_s else kill)
        await self._or_now(action, killed, kill)
        self._restart_sidecar(action)

    def _restart_sidecar(self, action: Action) -> None:
        before = functools.partial(self._all.next_sidecar, open_gate=action.open_gate)
        self._parts.start(self._all.sidecar, action.down_s, before)

    async def _plane(self, action: Action) -> None:
        plane = self._all.planes[action.which % 2]
        await self._kill_part(plane, action)
        if action.what is Do.PLANE_STARTING:
            await asyncio.sleep(action.down_s + 0.1 + action.which / 1000)
            plane.kill()
            await self._parts.started(plane)
            if plane.pid is not None:  # it was started just after
                plane.kill()
            self._parts.start(plane, 0)

    async def _plane_on_event(self, action: Action) -> None:
        planes = self._all.planes
        await self._parts.started(self._all.sidecar)
        await self._parts.started(planes[action.which % 2])
        plane = planes[action.which % 2]
        if action.what is Do.PLANE_ON_COMMIT:
            await self._trapped(action, *self._all.commit_trap(action.which % 2, plane.kill))
            self._parts.start(plane, action.down_s)
            return
        for each in planes:  # whichever has the connection
            await self._parts.started(each)

        def kill_both() -> None:
            for each in planes:
                each.kill()

        await self._trapped(action, *self._all.deduct_trap(kill_both))
        for each in planes:
            self._parts.start(each, action.down_s)

    async def _trapped(self, action: Action, relay: Relay, trap: Trap) -> None:
        relay.trap = trap
        await self._or_now(action, trap.sprung, trap.spring, lambda: setattr(relay, "trap", None))

    async def _or_now(
        self,
        action: Action,
        happened: asyncio.Event,
        act: Callable[[], None],
        give_up: Callable[[], None] = lambda: None,
    ) -> None:
        """Wait for an event that kills; where it does not come, kill anyway."""
        try:
            await asyncio.wait_for(happened.wait(), _EVENT_S)
            self.aimed[action.what] += 1
        except TimeoutError:
            give_up()
            act()

    async def _everything(self, action: Action) -> None:
        await self._parts.all_started()
        for part in self._all.parts:
            if part is self._all.sidecar:
                self._all.kill_sidecar()
            else:
                part.kill()
        for part in self._all.parts:
            if part is self._all.sidecar:
                self._restart_sidecar(action)
            elif part in self._all.planes:
                self._parts.start(part, 0, None)
            else:
                self._parts.start(part, 0)

    # -- faults --------------------------------------------------------------------------------------

    async def _fault(self, action: Action) -> None:
        if action.what is Do.FREEZE:
            await self._freeze(action)
        elif action.what is Do.TERMINATE:
            await self._parts.started(self._all.database)
            await asyncio.to_thread(_terminate, self._all.database.url)
        elif action.what is Do.CUT:
            self._all.to_planes.cut(shut=True)
            await asyncio.sleep(2 * action.down_s)
            self._all.to_planes.shut = False
        elif action.what is Do.DISK_FULL:
            await self._disk_full(action)
        elif action.what is Do.CLOCK:
            self._all.set_clock(action.clock_s)

    async def _freeze(self, action: Action) -> None:
        await self._parts.started(self._all.database)
        self._all.database.signal_all(signal.SIGSTOP)
        await asyncio.sleep(max(action.down_s, 1.0))
        self._all.database.signal_all(signal.SIGCONT)

    async def _disk_full(self, action: Action) -> None:
        """Let no file of the sidecar grow beyond what the outbox has, for a while."""
        await self._parts.started(self._all.sidecar)
        pid = self._all.sidecar.pid
        if pid is None:
            return
        size_bytes = max((path.stat().st_size for path in self._all.outbox.glob("*.log")), default=0)
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size_bytes + action.which, hard))
        await asyncio.sleep(0.5 + action.down_s)
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))


def _terminate(url: str) -> None:
    with contextlib.suppress(psycopg.OperationalError), psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE usename = current_user AND pid <> pg_backend_pid()"
        )
