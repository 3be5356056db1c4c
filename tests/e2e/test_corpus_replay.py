"""Recorded provider traffic through a real sidecar, every case: what is charged, and the bytes that the app gets."""

from __future__ import annotations

import asyncio
import gzip
import random
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import brotli
import pytest
from yarl import URL

from bursar.v1 import metering_pb2
from bursar.v1.metering_service_pb2 import DeductRequest
from bursar_sidecar.providers.base import Metered, Outcome, Usage, UsageItem
from bursar_sidecar.upstreams import KNOWN
from support.corpus import DIALECTS, NAMES, READ_OTHERWISE, body_of, cases, differences, needs_corpus, pieces
from support.corpus_costs import Priced
from support.fake_control_plane import Served, fake_control_plane
from support.odd_upstream import Heard, OddUpstream, chunk, odd_upstream
from support.sidecars import AUTHORIZED, RunningSidecar, environment, running_sidecar, until

CASE = "x-case-id"
AT_ONCE = 24
#: What the app's side puts on a request by itself, and what it must not repeat.
NOT_REPLAYED = {
    "accept-encoding",
    "api-key",
    "authorization",
    "connection",
    "content-encoding",
    "content-length",
    "host",
    "transfer-encoding",
    "x-api-key",
    "x-goog-api-key",
}
NOT_ANSWERED = {"connection", "content-encoding", "content-length", "keep-alive", "transfer-encoding"}
CODINGS = {
    "gzip": gzip.compress,
    "br": brotli.compress,
    "deflate": zlib.compress,
}


def upstream_of(case: dict[str, Any]) -> str:
    name: str = case["provider"]
    return NAMES.get(name, name)


def fit(headers: dict[str, str], unwanted: Iterable[str]) -> dict[str, str]:
    """Return the headers of a recording that can be sent again (some have been redacted into what cannot)."""
    return {
        name: value
        for name, value in headers.items()
        if name.lower() not in unwanted and value.isascii() and value.isprintable()
    }


class Replay:
    """Answers as the recordings do, cut anywhere and compressed in turn, whoever asked for that."""

    def __init__(self, upstream: OddUpstream, way: str) -> None:
        self.cases = {case["id"]: case for case in cases()}
        self._way = way
        upstream.script = self._answer

    async def _answer(self, heard: Heard, writer: asyncio.StreamWriter) -> None:
        case = self.cases[heard.header(CASE) or ""]
        rng = random.Random(case["id"])
        body = body_of(case, "response_body")
        headers = fit(case["response_headers"], NOT_ANSWERED)
        if self._way == "compressed" and body:
            coding = rng.choice(sorted(CODINGS))
            body, headers["content-encoding"] = CODINGS[coding](body), coding
        lines = [f"HTTP/1.1 {case['response_status']} Recorded", "transfer-encoding: chunked"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode())
        for piece in pieces(body, None if self._way == "whole" else rng):
            writer.write(chunk(piece))
            if rng.random() < 0.05:
                await writer.drain()
        writer.write(b"0\r\n\r\n")
        await writer.drain()


def metered_of(record: DeductRequest) -> Metered:
    """Return what a Deduct says, as the readers say it."""
    items = [
        UsageItem(
            item.model,
            item.service_tier,
            Usage(**{name: getattr(item.usage, name) for name in Usage._fields}),
        )
        for item in record.items
    ]
    outcome = Outcome[metering_pb2.Outcome.Name(record.outcome).removeprefix("OUTCOME_")]
    cost = repr(record.provider_cost_usd) if record.HasField("provider_cost_usd") else None
    return Metered(tuple(items), record.estimated, cost, outcome)


def wrong(case: dict[str, Any], record: DeductRequest | None, answer: bytes, priced: Priced) -> list[str]:
    """Return what is not as it was recorded; what it cost is added to `priced`."""
    found = [] if answer == body_of(case, "response_body") else ["the bytes are others"]
    if case["id"] in READ_OTHERWISE:
        return found
    if record is None:  # work in the background is recorded when its end is read
        return found + (["not recorded"] if case["expected"]["billable"] else [])
    stated = case["expected"].get("provider_cost_usd")
    if stated is not None:  # it is kept to the nano
        case = {**case, "expected": {**case["expected"], "provider_cost_usd": round(stated, 9)}}
    metered = metered_of(record)
    different = differences(case, metered)
    if not different:
        priced.add(case, metered)
    return found + different


async def replayed(sidecar: RunningSidecar, plane: Served, case: dict[str, Any], priced: Priced) -> list[str]:
    headers = {**fit(case["request_headers"], NOT_REPLAYED), **AUTHORIZED, CASE: case["id"]}
    path = case["path"].replace(" ", "%20")
    url = URL(f"{sidecar.url}/{upstream_of(case)}{path}", encoded=True)
    body = body_of(case, "request_body") or None
    asked = sidecar.client.request(
        case["method"], url, data=body, headers=headers, skip_auto_headers=["content-type"]
    )
    async with asked as response:
        answer = await response.read()
    if response.status != case["response_status"]:
        return [f"status {response.status}: {answer[:200]!r}"]
    return wrong(case, plane.service.records.get(response.headers["x-bursar-request-id"]), answer, priced)


@pytest.mark.parametrize("way", ["whole", "in pieces", "compressed"])
async def test_every_recording_comes_through_and_is_charged_right(way: str, tmp_path: Path) -> None:
    """F099, F100, F102, F111: byte for byte, once, and model, tier, every count and the cost as the provider billed them."""
    needs_corpus()
    async with fake_control_plane() as plane, odd_upstream() as upstream:
        plane.service.account.limit_nanos = 10**15
        replay = Replay(upstream, way)
        names = {upstream_of(case) for case in replay.cases.values()}
        settings = environment(
            plane.url, tmp_path, **{name.replace("-", "_"): upstream.url for name in names}
        )
        for name in names - KNOWN.keys():
            prefix = f"BURSAR_UPSTREAM_{name.upper().replace('-', '_')}"
            settings |= {f"{prefix}_INCLUDE_USAGE": "off", f"{prefix}_DIALECT": DIALECTS.get(name, "openai")}
        found: dict[str, list[str]] = {}
        priced = Priced()
        async with running_sidecar(settings) as sidecar:
            waiting = iter(replay.cases.values())

            async def worker() -> None:
                for case in waiting:
                    problems = await replayed(sidecar, plane, case, priced)
                    if problems:
                        found[case["id"]] = problems

            await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
            await until(lambda: sidecar.sidecar.outbox.depth == 0)
        assert found == {}
        assert plane.service.duplicates == []
        assert priced.wrong == []
        assert priced.priced > 500
