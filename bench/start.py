"""From the command to the first answer of a process: a metered call, a decided Check."""

from __future__ import annotations

import itertools
import time

from bench.figures import Figure, Pace
from bench.load import drive
from bench.stack import Stack, running, sidecar_settings
from support.stack import SERVE, SIDECAR, control_plane

_counter = itertools.count(1)


async def cold_start(stack: Stack, pace: Pace) -> list[Figure]:
    """Start each several times beside what runs already; the first start, which compiles the modules, does not count."""
    sidecars, planes = [], []
    for number in range(pace.rounds + 1):
        took = await _sidecar_s(stack), _plane_s(stack)
        if number:
            sidecars.append(took[0])
            planes.append(took[1])
    return [
        Figure("cold start to the first answer: sidecar", "", "s", sidecars, [], 0.6),
        Figure("cold start to the first answer: control plane", "", "s", planes, [], 2.0),
    ]


async def _sidecar_s(stack: Stack) -> float:
    """Return how long it takes from the command to the end of the first metered call."""
    settings = sidecar_settings(stack.folder / "bursar", stack.plane, stack.provider)
    settings["BURSAR_OUTBOX_DIR"] = str(stack.folder / f"outbox-start-{next(_counter)}")
    began = time.perf_counter()
    with running(stack.folder, *SIDECAR, **settings) as child:
        await drive(child.url, stack.metered(), 1, calls=1)
        return time.perf_counter() - began


def _plane_s(stack: Stack) -> float:
    """Return how long it takes, on a database that is migrated already, to the answer of an RPC that reads it."""
    data = stack.folder / "bursar"
    settings = {"BURSAR_DATABASE_URL": stack.database_url, "BURSAR_DATA_DIR": str(data)}
    began = time.perf_counter()
    with running(stack.folder, *SERVE, **settings) as child:
        control_plane(child, data).rpc("UserService/GetBudget", {"user_id": "user-0@example.com"})
        return time.perf_counter() - began
