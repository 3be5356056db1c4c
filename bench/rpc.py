"""How long a Deduct takes that a client of the control plane sends by itself, while others do the same."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime

import aiohttp

from bench.figures import Figure, Pace, percentile, side_by_side
from bench.stack import Stack, sidecar_token
from bench.upstream import INPUT_TOKENS, MODEL, OUTPUT_TOKENS
from bursar.v1 import metering_service_pb2 as pb
from bursar.v1.metering_pb2 import DECISION_ALLOW, OUTCOME_SUCCESS, Usage, UsageItem
from bursar_server.kit import ids

CALLERS = 32
_SERVICE = "/bursar.v1.MeteringService/"


class _Client:
    """Asks and deducts over one connection a caller: Connect over HTTP/1.1, binary."""

    def __init__(self, stack: Stack, session: aiohttp.ClientSession) -> None:
        self._url = stack.plane.url + _SERVICE
        self._session = session
        self._digests = [ids.sha256_hex(key) for key in stack.keys]
        self._headers = {
            "content-type": "application/proto",
            "accept-encoding": "identity",
            "connect-protocol-version": "1",
            "authorization": f"Bearer {sidecar_token(stack.folder / 'bursar')}",
        }

    async def run(self, seconds: float) -> list[float]:
        """Return how long each Deduct took, in ms."""
        deadline = time.perf_counter() + seconds
        found = await asyncio.gather(*(self._call(number, deadline) for number in range(CALLERS)))
        return [took for of_caller in found for took in of_caller]

    async def _call(self, number: int, deadline: float) -> list[float]:
        took: list[float] = []
        item = UsageItem(model=MODEL, usage=Usage(input_tokens=INPUT_TOKENS, output_tokens=OUTPUT_TOKENS))
        while time.perf_counter() < deadline:
            request_id = str(ids.uuid7_at(datetime.now(UTC)))
            digest = self._digests[number % len(self._digests)]
            number += CALLERS
            asked = pb.CheckRequest(
                request_id=request_id, api_key_sha256=digest, provider="openai", model="gpt-4o-mini",
                input_tokens_estimate=INPUT_TOKENS, max_output_tokens=256,
            )  # fmt: skip
            allowed = pb.CheckResponse.FromString(await self._post("Check", asked.SerializeToString()))
            if allowed.decision != DECISION_ALLOW:
                raise RuntimeError(f"denied: {allowed}")
            deduct = pb.DeductRequest(
                request_id=request_id,
                api_key_sha256=digest,
                provider="openai",
                items=[item],
                outcome=OUTCOME_SUCCESS,
            ).SerializeToString()
            began = time.perf_counter()
            await self._post("Deduct", deduct)
            took.append((time.perf_counter() - began) * 1000)
        return took

    async def _post(self, method: str, body: bytes) -> bytes:
        async with self._session.post(self._url + method, data=body, headers=self._headers) as answer:
            data = await answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{method}: {answer.status} {data!r}")
        return data


async def deduct(stack: Stack, pace: Pace) -> list[Figure]:
    """The slowest of a hundred Deducts, against the slowest of a hundred transactions of pgbench."""

    async def transactions() -> float:
        return (await stack.server.pgbench(CALLERS, pace.seconds, percentiles=True)).p99_ms

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        client = _Client(stack, session)
        await client.run(min(1.0, pace.seconds))
        rates: list[float] = []
        medians: list[float] = []

        async def deducts() -> float:
            took = await client.run(pace.seconds)
            rates.append(len(took) / pace.seconds)
            medians.append(percentile(took, 50))
            return percentile(took, 99)

        found = await side_by_side(pace, deducts, transactions)
    mine, theirs = [ours for ours, _ in found], [against for _, against in found]
    note = (
        f"{percentile(rates, 50):.0f} pairs/s meanwhile, the Deduct's median {percentile(medians, 50):.1f} ms"
    )
    return [
        Figure("p99 of a Deduct RPC, 32 callers", "TPC-B, 32 clients", "ms", mine, theirs, 1.0, notes=[note])
    ]
