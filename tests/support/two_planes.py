"""Two control planes on one database, each with a sidecar of its own in front of one provider: all of them processes."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import aiohttp
import psycopg

from support.database import DatabaseServer
from support.door_clients import request
from support.stack import (
    PROVIDER,
    SERVE,
    SIDECAR,
    ControlPlane,
    bursar,
    control_plane,
    environment,
    scratch_folder,
    sidecar_count,
    started,
)

CHAT = "/v1/chat/completions"
# Only output is paid for, so that what a call may cost at most, by its limit of output, is what it does cost.
MODEL, OUTPUT_TOKENS = "hundred-calls", 20
OUTPUT_USD_PER_MILLION = 50
CALL_NANOS = OUTPUT_TOKENS * OUTPUT_USD_PER_MILLION * 1_000


@dataclass(frozen=True)
class Told:
    """What an app is told: status, and the code of an error."""

    status: int
    code: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class TwoPlanes:
    """Where everything listens, and what the database says."""

    planes: tuple[ControlPlane, ControlPlane]
    sidecars: tuple[str, str]
    provider_url: str
    database_url: str

    def sql(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Run a statement on the planes' database."""
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            cursor = connection.execute(statement, values)
            return cursor.fetchall() if cursor.description else []

    def person(self, name: str) -> tuple[str, str]:
        """Make a user that may make as many calls a minute as it likes; return e-mail and key."""
        email, key = self.planes[0].person(name)
        self.planes[0].rpc("UserService/UpdateUser", {"id": email, "rate_limit": 1_000_000})
        return email, key

    def budget(self, scope: Mapping[str, str], limit_nanos: int, **fields: object) -> UUID:
        """Make a budget of a day; return its id."""
        budget = {"scope": scope, "limit_usd": limit_nanos / 1e9, **fields}
        made = self.planes[0].rpc("BudgetService/CreateBudget", {"budget": budget})
        return UUID(made["budget"]["budgetId"])

    def balances(self, budget_id: UUID) -> list[tuple[int, int]]:
        """Return what is spent and held of a budget in each of its periods that has a row, the newest last."""
        statement = "SELECT spent_nanos, held_nanos FROM balances WHERE budget_id = %s ORDER BY period_start, period_key"
        return [(spent, held) for spent, held in self.sql(statement, budget_id)]

    def overshoot_nanos(self) -> int:
        """Return what the planes' `bursar_overshoot_usd` come to."""
        found = 0
        for plane in self.planes:
            text = request(plane.url, "/metrics", method="GET").body.decode()
            values = (line.rpartition(" ") for line in text.splitlines())
            found += next(
                (round(float(value) * 1e9) for name, _, value in values if name == "bursar_overshoot_usd"), 0
            )
        return found

    async def settled(self, budget_id: UUID) -> list[tuple[int, int]]:
        """Return the balances of a budget once the sidecars have nothing more to tell."""
        async with asyncio.timeout(20):
            while any(sidecar_count(url, "outbox_depth") for url in self.sidecars):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        return self.balances(budget_id)

    def assert_books(self) -> None:
        """Prove the whole ledger with `bursar verify`."""
        proof = bursar("verify", environ=environment(BURSAR_DATABASE_URL=self.database_url))
        assert proof.returncode == 0, proof.stdout + proof.stderr


def asks(**more: object) -> dict[str, object]:
    """Return the body of a small chat completion."""
    return {"model": MODEL, "messages": [{"role": "user", "content": "Count to ten."}], **more}


async def post(
    client: aiohttp.ClientSession,
    sidecar: str,
    key: str,
    body: object,
    *,
    latency_ms: int = 0,
    headers: Mapping[str, str] | None = None,
) -> Told:
    """Call through a sidecar and read the answer to its end. The provider generates what a call is paid for."""
    sent = {
        "authorization": f"Bearer {key}",
        "content-type": "application/json",
        "x-fake-output-tokens": str(OUTPUT_TOKENS),
        "x-fake-latency-ms": str(latency_ms),
        **(headers or {}),
    }
    async with client.post(sidecar + CHAT, data=json.dumps(body), headers=sent) as response:
        read = await response.read()
        code = "" if response.status == 200 else str(json.loads(read)["error"]["code"])
        return Told(response.status, code, dict(response.headers), read)


async def post_many(
    sidecars: Sequence[str], key: str, body: object, calls: int, at_once: int, latency_ms: int
) -> Counter[tuple[int, str]]:
    """Make so many calls, so many at a time, through the sidecars in turn; return how often was told what."""
    numbers = iter(range(calls))
    found: Counter[tuple[int, str]] = Counter()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:

        async def caller() -> None:
            for number in numbers:
                told = await post(client, sidecars[number % len(sidecars)], key, body, latency_ms=latency_ms)
                found[told.status, told.code] += 1

        await asyncio.gather(*(caller() for _ in range(at_once)))
    return found


@contextmanager
def two_planes(server: DatabaseServer, template: str) -> Iterator[TwoPlanes]:
    """Run all of it for as long as the block lasts."""
    name = server.create(template=template)
    url = server.url(name)
    with ExitStack() as stack:
        stack.callback(server.drop, name)
        folder = stack.enter_context(scratch_folder())
        provider = stack.enter_context(started(PROVIDER, environment(), folder)).url
        planes, sidecars = [], []
        for place in ("one", "other"):
            data_dir: Path = folder / place
            environ = environment(
                BURSAR_DATABASE_URL=url,
                BURSAR_DATA_DIR=str(data_dir),
                BURSAR_DEFAULT_DAILY_BUDGET_USD="1000",
            )
            child = stack.enter_context(started(SERVE, environ, folder))
            planes.append(control_plane(child, data_dir))
            settings = {
                "BURSAR_DATA_DIR": str(data_dir),
                "BURSAR_CONTROL_PLANE_URL": planes[-1].url,
                "BURSAR_UPSTREAM_OPENAI_URL": provider,
                "BURSAR_UPSTREAM_OPENAI_API_KEY": "sk-its-own",
            }
            sidecars.append(stack.enter_context(started(SIDECAR, environment(**settings), folder)).url)
        price = {
            "model_pattern": f"{MODEL}*",
            "input_usd_per_million": 0,
            "output_usd_per_million": OUTPUT_USD_PER_MILLION,
        }
        planes[0].rpc("PricingService/CreatePrice", {"price": price})
        yield TwoPlanes((planes[0], planes[1]), (sidecars[0], sidecars[1]), provider, url)
