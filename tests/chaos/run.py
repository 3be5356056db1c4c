"""One run: load, everything in the plan, recovery, and the comparison."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from bursar_sidecar.outbox import DEAD_LETTER_NAME
from chaos import books
from chaos.books import Verdict
from chaos.deeds import Chaos
from chaos.installation import Installation, note
from chaos.load import Load
from chaos.plan import Do, Plan
from support.stack import bursar, environment, sidecar_count

_RECOVERY_S = 120.0


@dataclass
class Result:
    """What a run did and found."""

    plan: Plan
    kills: int = 0
    aimed: Counter[Do] = field(default_factory=Counter)
    owed: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    verdict: Verdict = field(default_factory=Verdict)
    trouble: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether nothing was lost, doubled or wrong, and the books were clean."""
        found = self.verdict
        return not (found.lost or found.doubled or found.wrong or self.trouble)

    def line(self) -> str:
        """Return the summary."""
        found = self.verdict
        return (
            f"chaos: kills={self.kills} requests={found.requests} served={found.served} exact={found.exact} "
            f"estimated={found.estimated} corrected={found.corrected} lost={len(found.lost)} "
            f"doubled={len(found.doubled)} wrong={len(found.wrong) + len(self.trouble)} seed={self.plan.seed}"
        )


async def run(folder: Path, plan: Plan, *, apps: int, rest_s: float) -> Result:
    """Run a plan in an empty folder and return what came of it."""
    result = Result(plan)
    async with _installed(folder) as installation:
        keys = await asyncio.to_thread(installation.people)
        load = Load(lambda: f"http://{installation.sidecar.address}", keys, plan.seed, apps, rest_s)
        load.start()
        chaos = Chaos(installation, load, plan)
        try:
            await chaos.run()
        finally:
            note("chaos: no more calls; waiting for what is open, the outbox and the holds")
            await load.stop()
        result.kills, result.aimed, result.ends = chaos.kills, chaos.aimed, load.ends
        await _recovered(installation, result)
        await asyncio.to_thread(_compared, installation, load, result)
    return result


@contextlib.asynccontextmanager
async def _installed(folder: Path) -> AsyncIterator[Installation]:
    installation = Installation(folder)
    try:
        await installation.start()
        yield installation
    finally:
        await installation.stop()


async def _recovered(installation: Installation, result: Result) -> None:
    """Wait until the outbox is empty and no hold is left."""
    end = time.monotonic() + _RECOVERY_S
    while True:
        left = await asyncio.to_thread(_left, installation)
        if not any(left.values()):
            return
        if time.monotonic() > end:
            result.trouble.append(f"not recovered within {_RECOVERY_S:.0f} s: {left}")
            return
        await asyncio.sleep(0.3)


def _left(installation: Installation) -> dict[str, int]:
    """Return what is still to be done: Deducts and releases in the outbox, holds, and money that is held."""
    queries = {
        "holds": "SELECT count(*) FROM holds",
        "held": "SELECT coalesce(sum(held_nanos), 0)::bigint FROM balances",
    }
    found = {"outbox": sidecar_count(f"http://{installation.sidecar.address}", "outbox_depth")}
    with psycopg.connect(installation.database.url) as connection:
        for name, query in queries.items():
            row = connection.execute(query).fetchone()
            found[name] = int(row[0]) if row is not None else 0
    return found


def _compared(installation: Installation, load: Load, result: Result) -> None:
    plane = installation.control_plane()

    @functools.cache
    def price(provider: str, model: str) -> dict[str, Any]:
        asked = {"provider": provider, "model": model}
        return dict(plane.rpc("PricingService/LookupPrice", asked)["price"])

    doubts = installation.doubts
    result.owed = doubts.owed
    result.verdict = books.compare(
        installation.database.url, installation.log, load.calls, doubts.calls, price
    )
    buried = installation.outbox / DEAD_LETTER_NAME
    if buried.exists():
        result.trouble.append(f"dead letters: {buried.read_text()}")
    result.trouble += [f"damaged: {path.name}" for path in installation.outbox.glob("damaged-*")]
    verified = bursar("verify", environ=environment(**_where(installation)), timeout=600)
    if verified.returncode:
        result.trouble.append(f"bursar verify: {verified.returncode}\n{verified.stdout}{verified.stderr}")


def _where(installation: Installation) -> dict[str, str]:
    return {
        "BURSAR_DATABASE_URL": installation.planes[0].environ["BURSAR_DATABASE_URL"],
        "BURSAR_DATA_DIR": os.fspath(installation.folder / "plane-0"),
    }
