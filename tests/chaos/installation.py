"""The installation: a database, two control planes on it, a sidecar, a provider, and the relays between them."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from chaos.books import Doubts
from chaos.parts import Database, Part
from chaos.relay import Relay, Trap
from chaos.sidecar import CLOCK_FILE, set_clock
from support.stack import ROOT, SERVE, ControlPlane, environment

HOLD_LEASE_MS = 2_000
_COMMIT = b"C\x00\x00\x00\x0bCOMMIT\x00"
_DEDUCT = b"/BatchDeduct"
_UPSTREAMS = ("OPENAI", "ANTHROPIC", "GEMINI")
_GLOBAL_BUDGET = {
    "name": "everything",
    "scope": {},
    "period": "BUDGET_PERIOD_MONTHLY",
    "limit_usd": 1_000_000,
}
_ADMISSIONS = ("ANY_REMAINING", "EXPECTED", "UPPER_BOUND")


class Installation:
    """Everything that is killed, and where it is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.outbox = folder / "outbox"
        self.log = folder / "provider.log"
        self.clock = folder / "clock"
        self.doubts = Doubts()
        self.clock_s = 0
        self.open_gate = False
        self.database = Database(folder / "database")
        self.to_database = [Relay(self._database_socket), Relay(self._database_socket)]
        self.to_planes = Relay(lambda: [plane.address for plane in self.planes if plane.ready.is_set()])
        self.planes: list[Part] = []
        self._heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._waiting: list[Callable[[], None]] = []
        set_clock(self.clock, 0)

    @property
    def parts(self) -> list[Part | Database]:
        """Everything that can be killed."""
        return [self.sidecar, *self.planes, self.database, self.provider]

    async def start(self) -> None:
        """Start everything for the first time."""
        told = str(self.folder / "told")
        self._heard.setblocking(False)
        self._heard.bind(told)
        asyncio.get_running_loop().add_reader(self._heard, self._answered)
        found = os.pathsep.join(filter(None, (str(ROOT / "tests"), os.environ.get("PYTHONPATH"))))
        environ = environment(PYTHONPATH=found, NO_PROXY="*")
        self.provider = Part(
            "provider",
            lambda listen: ("-m", "chaos.provider", listen, str(self.log), told),
            environ,
            self.folder,
        )
        for relay in (*self.to_database, self.to_planes):
            await relay.start()
        await asyncio.gather(self.database.start(), self.provider.start())
        for number, relay in enumerate(self.to_database):
            environ_of = self._for_plane(number, relay)
            self.planes.append(Part(f"plane {number}", lambda _: SERVE, environ_of, self.folder))
        self.sidecar = Part(
            "sidecar", lambda _: ("-m", "chaos.sidecar"), {**environ, **self._for_sidecar()}, self.folder
        )
        first, *others = self.planes
        await first.start()  # it makes the tables, and the sidecar's token
        await asyncio.gather(self.sidecar.start(), *(plane.start() for plane in others))
        self.sidecar.environ["BURSAR_SIDECAR_LISTEN"] = self.sidecar.address

    async def stop(self) -> None:
        """Stop everything in the order of its dependence."""
        started = [part for part in (getattr(self, "sidecar", None), *self.planes) if part is not None]
        try:
            for part in started:
                await part.stop()
        finally:
            asyncio.get_running_loop().remove_reader(self._heard)
            self._heard.close()
            for relay in (self.to_planes, *self.to_database):
                await relay.stop()
            await self.database.stop()
            await self.provider.stop()

    def _for_plane(self, number: int, relay: Relay) -> dict[str, str]:
        credentials = urlsplit(self.database.url).netloc.rpartition("@")[0]
        return environment(
            BURSAR_DATABASE_URL=f"postgresql://{credentials}@{relay.address}/bursar?sslmode=disable",
            BURSAR_DATA_DIR=str(self.folder / f"plane-{number}"),
            BURSAR_HOLD_LEASE_MS=str(HOLD_LEASE_MS),
            BURSAR_SWEEP_DELAY_MS=str(HOLD_LEASE_MS),
        )

    def _for_sidecar(self) -> dict[str, str]:
        upstreams = {f"BURSAR_UPSTREAM_{name}_URL": f"http://{self.provider.address}" for name in _UPSTREAMS}
        keys = {f"BURSAR_UPSTREAM_{name}_API_KEY": "sk-its-own" for name in _UPSTREAMS}
        return {
            **upstreams,
            **keys,
            "BURSAR_CONTROL_PLANE_URL": f"http://{self.to_planes.address}",
            "BURSAR_DATA_DIR": str(self.folder / "plane-0"),
            "BURSAR_OUTBOX_DIR": str(self.outbox),
            CLOCK_FILE: str(self.clock),
        }

    def _database_socket(self) -> list[str]:
        folder = parse_qs(urlsplit(self.database.url).query)["host"][0]
        return [f"{folder}/.s.PGSQL.5432"]

    def control_plane(self) -> ControlPlane:
        """Return how to talk to a control plane that runs."""
        plane = next(plane for plane in self.planes if plane.ready.is_set())
        token = (self.folder / "plane-0" / "admin-token").read_text().strip()
        return ControlPlane(f"http://{plane.address}", "", token)

    def people(self) -> list[str]:
        """Make users with budgets of each admission, one of them soon spent, and one for all; return their keys."""
        plane = self.control_plane()
        plane.rpc("BudgetService/CreateBudget", {"budget": _GLOBAL_BUDGET})
        keys = []
        for limit_usd, admission in [*((1000, name) for name in _ADMISSIONS), (0.5, "ANY_REMAINING")]:
            email, key = plane.person("app", limit_usd, admission=f"ADMISSION_{admission}")
            plane.rpc("UserService/UpdateUser", {"id": email, "rate_limit": 0})
            keys.append(key)
        return keys

    # -- the events that are waited for --------------------------------------------------------------

    def on_answer(self, then: Callable[[], None]) -> None:
        """Call `then` when the provider has sent its next answer."""
        self._waiting.append(then)

    def _answered(self) -> None:
        try:
            while True:
                self._heard.recv(64)
                waiting, self._waiting = self._waiting, []
                for then in waiting:
                    then()
        except BlockingIOError:
            return

    def commit_trap(self, which: int, spring: Callable[[], None]) -> tuple[Relay, Trap]:
        """Return a trap for the next commit of a control plane: done, and not yet told."""
        return self.to_database[which], Trap(spring, in_answer=_COMMIT)

    def deduct_trap(self, spring: Callable[[], None]) -> tuple[Relay, Trap]:
        """Return a trap for the next reply to a Deduct: committed, and not yet told to the sidecar."""
        return self.to_planes, Trap(spring, in_request=_DEDUCT)

    # -- the sidecar ---------------------------------------------------------------------------------

    def kill_sidecar(self, *, lose_outbox: bool = False) -> None:
        """Kill the sidecar and note what its outbox says; with an open gate the outbox is all there is, and stays."""
        self.sidecar.kill()
        lost = lose_outbox and not self.open_gate
        if self.outbox.exists():
            self.doubts.note(self.outbox, lost=lost)
            if lost:
                shutil.rmtree(self.outbox)

    def next_sidecar(self, *, open_gate: bool) -> None:
        """Say how the next sidecar decides while nobody can be asked."""
        self.open_gate = open_gate
        self.sidecar.environ["BURSAR_ON_UNREACHABLE"] = "OPEN" if open_gate else "CLOSED"

    def set_clock(self, offset_s: int) -> None:
        """Let the sidecar's clock jump."""
        self.clock_s = offset_s
        set_clock(self.clock, offset_s)


def note(text: str) -> None:
    """Show what happens, on stderr."""
    print(text, file=sys.stderr, flush=True)
