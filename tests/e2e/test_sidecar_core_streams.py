"""Streams: passed on as they come, their end held back until the charge is committed, charged however they end."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from bursar.v1 import metering_pb2
from bursar.v1.metering_service_pb2 import DeductRequest
from support.fake_control_plane import Served
from support.odd_upstream import (
    CHAT,
    LAST_CHUNK,
    STREAM_HEAD,
    Heard,
    OddUpstream,
    Script,
    chunk,
    head,
    json_answer,
)
from support.sidecars import RunningSidecar, environment, running_sidecar, until

STREAMED = {"model": "gpt-4o-mini", "stream": True, "messages": [{"role": "user", "content": "Hi"}]}
WORD = b'data: {"id":"1","model":"gpt-4o-mini-2024","choices":[{"index":0,"delta":{"content":"Hello"}}],"usage":null}\n\n'
SEEN = WORD.replace(b',"usage":null', b"")
STOP = b'data: {"id":"1","model":"gpt-4o-mini-2024","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
USAGE = (
    b'data: {"id":"1","model":"gpt-4o-mini-2024","choices":[],'
    b'"usage":{"prompt_tokens":7,"completion_tokens":5,"total_tokens":12}}\n\n'
)
DONE = b"data: [DONE]\n\n"


@pytest.fixture
async def sidecar(plane: Served, upstream: OddUpstream, tmp_path: Path) -> AsyncIterator[RunningSidecar]:
    settings = environment(
        plane.url, tmp_path, openai=upstream.url, anthropic=upstream.url, gemini=upstream.url
    )
    async with running_sidecar(settings) as running:
        yield running


def script(*blocks: bytes | float, end: bool = True) -> Script:
    """Write a stream block by block, pausing where a number stands; `end` or reset the connection."""

    async def run(_: Heard, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        for block in blocks:
            if isinstance(block, bytes):
                writer.write(chunk(block))
                await writer.drain()
            else:
                await asyncio.sleep(block)
        if end:
            writer.write(LAST_CHUNK)
        else:
            writer.transport.abort()

    return run


def record_of(plane: Served) -> DeductRequest:
    (record,) = plane.service.records.values()
    return record


def output_tokens(plane: Served) -> int:
    return record_of(plane).items[0].usage.output_tokens


async def test_only_the_terminal_marker_waits_for_the_deduct(
    sidecar: RunningSidecar, plane: Served, upstream: OddUpstream
) -> None:
    """F059 F068: content comes as the provider sends it; `[DONE]` when the charge is committed."""
    upstream.script = script(WORD, STOP, USAGE, DONE)
    plane.service.deduct_delay_s = 0.4
    async with await sidecar.post(json=STREAMED) as response:
        assert response.headers["content-type"] == "text/event-stream"
        assert response.headers["x-bursar-request-id"]
        assert "x-bursar-cost-usd" not in response.headers
        seen = b""
        async with asyncio.timeout(0.3):
            while seen != SEEN + STOP:
                seen += await response.content.readany()
        assert plane.service.records == {}
        assert await response.content.read() == DONE
        assert record_of(plane).items[0].usage.input_tokens == 7


async def test_the_comment_stands_before_the_terminal_marker(
    sidecar: RunningSidecar, upstream: OddUpstream
) -> None:
    """The contract: with `x-bursar-comment: on` a stream tells what it cost, in a block of its own."""
    upstream.script = script(WORD, STOP, USAGE, DONE)
    async with await sidecar.post(json=STREAMED, headers={"x-bursar-comment": "on"}) as response:
        text = await response.read()
    assert text == SEEN + STOP + b": bursar cost_usd=0.000012 remaining_usd=999.999988\n\n" + DONE


async def test_other_dialects_never_get_a_comment(sidecar: RunningSidecar, upstream: OddUpstream) -> None:
    event = b'data: {"candidates":[{"content":{"parts":[{"text":"x"}]},"finishReason":"STOP"}],"usageMetadata":{"promptTokenCount":1}}\n\n'
    upstream.script = script(event)
    path = "/v1beta/models/g:streamGenerateContent?alt=sse"
    async with await sidecar.post(path, data=b"{}", headers={"x-bursar-comment": "on"}) as response:
        assert await response.read() == event


async def test_a_stream_that_ends_without_its_marker_is_passed_on_as_it_is(
    sidecar: RunningSidecar, plane: Served, upstream: OddUpstream
) -> None:
    upstream.script = script(WORD, WORD)
    async with await sidecar.post(json=STREAMED, headers={"x-bursar-comment": "on"}) as response:
        assert await response.read() == SEEN * 2
    record = record_of(plane)
    assert record.estimated
    assert record.outcome == metering_pb2.OUTCOME_PARTIAL


async def test_a_stream_that_is_reset_is_charged_for_what_came(
    sidecar: RunningSidecar, plane: Served, upstream: OddUpstream
) -> None:
    """F103 C18: the app sees the break; what was received is charged, flagged as estimated."""
    upstream.script = script(*[WORD] * 40, end=False)
    async with await sidecar.post(json=STREAMED) as response:
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
    await until(lambda: bool(plane.service.records))
    record = record_of(plane)
    assert record.estimated
    assert record.outcome == metering_pb2.OUTCOME_PARTIAL
    assert output_tokens(plane) >= 40
    assert await sidecar.metric("upstream_errors_total") == 1


async def test_a_reset_after_the_terminal_marker_is_no_break(
    sidecar: RunningSidecar, plane: Served, upstream: OddUpstream
) -> None:
    upstream.script = script(WORD, USAGE, DONE, 0.05, end=False)
    async with await sidecar.post(json=STREAMED) as response:
        assert await response.read() == SEEN + DONE
    assert record_of(plane).outcome == metering_pb2.OUTCOME_SUCCESS
    assert not record_of(plane).estimated


async def test_json_that_breaks_off_is_a_502_and_charged(
    sidecar: RunningSidecar, plane: Served, upstream: OddUpstream
) -> None:
    async def cut(_: Heard, writer: asyncio.StreamWriter) -> None:
        writer.write(json_answer(CHAT)[:-40])
        await writer.drain()
        writer.transport.abort()

    upstream.script = cut
    async with await sidecar.post() as response:
        assert response.status == 502
        assert (await response.json())["error"]["code"] == "UPSTREAM_UNREACHABLE"
    assert record_of(plane).estimated


@pytest.mark.parametrize("policy", ["READ_ON", "CANCEL"])
@pytest.mark.parametrize("streamed", [True, False])
async def test_an_app_that_goes_away_is_charged(
    plane: Served, upstream: OddUpstream, tmp_path: Path, policy: str, streamed: bool
) -> None:
    """S17 C18: READ_ON learns the true usage, CANCEL stops the provider and estimates; both charge."""
    words: list[bytes | float] = [WORD, 0.02] * 40

    async def slow_json(_: Heard, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.8)
        writer.write(json_answer(CHAT))
        await writer.drain()

    upstream.script = script(*words, STOP, USAGE, DONE) if streamed else slow_json
    settings = {**environment(plane.url, tmp_path, openai=upstream.url), "BURSAR_ON_DISCONNECT": policy}
    async with running_sidecar(settings) as sidecar:
        asked = asyncio.ensure_future(sidecar.post(json={**STREAMED, "stream": streamed}))
        await until(lambda: bool(upstream.heard))
        if streamed:
            response = await asked
            await response.content.readany()
            response.close()
        else:
            asked.cancel()
        await until(lambda: bool(plane.service.records), 3)
        assert await sidecar.metric("app_disconnects_total") == 1
        assert sidecar.sidecar.gate.open_calls == 0
    record = record_of(plane)
    assert record.outcome == metering_pb2.OUTCOME_CANCELLED
    assert record.estimated is (policy == "CANCEL")
    if policy == "READ_ON":
        assert (record.items[0].usage.input_tokens, output_tokens(plane)) == (7, 5)


@pytest.mark.parametrize("bound", [("BURSAR_READ_ON_MAX_MS", "300"), ("BURSAR_READ_ON_MAX_BYTES", "500")])
async def test_reading_on_is_bounded(
    plane: Served, upstream: OddUpstream, tmp_path: Path, bound: tuple[str, str]
) -> None:
    words: list[bytes | float] = [WORD, 0.02] * 1000
    upstream.script = script(*words)
    settings = {**environment(plane.url, tmp_path, openai=upstream.url), bound[0]: bound[1]}
    async with running_sidecar(settings) as sidecar:
        response = await sidecar.post(json=STREAMED)
        await response.content.readany()
        response.close()
        await until(lambda: bool(plane.service.records), 3)
        await until(lambda: upstream.broken == 1, 3)
    assert record_of(plane).estimated


async def test_an_app_that_goes_away_during_the_check_costs_nothing(
    sidecar: RunningSidecar, plane: Served, upstream: OddUpstream
) -> None:
    """S17: nothing was sent, so the hold is released."""
    plane.service.check_delay_s = 0.4
    asked = asyncio.ensure_future(sidecar.post())
    await until(lambda: plane.service.check_batches == [1])
    asked.cancel()
    await until(lambda: bool(plane.service.released))
    assert plane.service.holds == {}
    assert plane.service.records == {}
    assert upstream.heard == []


async def test_a_provider_that_falls_silent_is_given_up(
    plane: Served, upstream: OddUpstream, tmp_path: Path
) -> None:
    """F103: a pause that is too long ends the answer; what came is charged, of no answer the input."""
    settings = environment(plane.url, tmp_path, openai=upstream.url)
    settings |= {"BURSAR_UPSTREAM_IDLE_TIMEOUT_MS": "300", "BURSAR_UPSTREAM_ANSWER_TIMEOUT_MS": "300"}
    async with running_sidecar(settings) as sidecar:
        upstream.script = script(WORD, 30.0)
        async with await sidecar.post(json=STREAMED) as response:
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.read()
        await until(lambda: len(plane.service.records) == 1)
        assert record_of(plane).estimated
        plane.service.records.clear()

        async def silent(_: Heard, writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(30)

        upstream.script = silent
        async with await sidecar.post() as response:
            assert response.status == 504
            assert (await response.json())["error"]["code"] == "UPSTREAM_TIMEOUT"
        record = record_of(plane)
        assert record.estimated
        assert record.items[0].usage.input_tokens == 8  # the text's own tokens; the Check held more
        assert plane.service.checks[-1].input_tokens_estimate > 8


async def test_a_stream_whose_connection_stays_open_still_ends(
    sidecar: RunningSidecar, upstream: OddUpstream
) -> None:
    upstream.script = script(WORD, USAGE, DONE, 30.0)
    async with asyncio.timeout(5), await sidecar.post(json=STREAMED) as response:
        assert await response.read() == SEEN + DONE


async def test_a_large_answer_takes_constant_memory(sidecar: RunningSidecar, upstream: OddUpstream) -> None:
    """A slow app slows the provider down; nothing piles up in between."""
    size = 200 << 20
    sent = 0

    async def flood(_: Heard, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(head("200 OK", "content-type: audio/mpeg", f"content-length: {size}"))
        piece = bytes(1 << 20)
        while sent < size:
            writer.write(piece)
            sent += len(piece)
            await writer.drain()

    upstream.script = flood
    async with sidecar.client.get(
        sidecar.url + "/openai/v1/files/1/content", headers={"authorization": "Bearer bur_" + "k" * 43}
    ) as response:
        assert response.headers["content-length"] == str(size)
        await asyncio.sleep(0.3)
        assert sent < 32 << 20  # what the sockets take, and the rest waits
        tracemalloc.start()
        got = 0
        async for data in response.content.iter_any():
            got += len(data)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert got == size
    assert peak < 16 << 20


async def test_a_long_stream_takes_constant_memory(
    sidecar: RunningSidecar, plane: Served, upstream: OddUpstream
) -> None:
    block = WORD * 500
    upstream.script = script(*[block] * 300, STOP, USAGE, DONE)
    tracemalloc.start()
    size = 0
    async with await sidecar.post(json=STREAMED) as response:
        async for data in response.content.iter_any():
            size += len(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size == len(SEEN) * 150_000 + len(STOP) + len(DONE)
    assert peak < 12 << 20
    assert not record_of(plane).estimated


async def test_a_large_json_answer_keeps_its_last_piece_back(
    sidecar: RunningSidecar, plane: Served, upstream: OddUpstream
) -> None:
    """The contract: above 1 MiB only the last piece waits, and the headers say nothing of the cost."""
    padding = b'{"pad":"' + b"x" * (2 << 20) + b'",' + CHAT[1:]
    upstream.answer = json_answer(padding)
    plane.service.deduct_delay_s = 0.3
    async with await sidecar.post() as response:
        assert "x-bursar-cost-usd" not in response.headers
        seen = await response.content.readany()
        assert plane.service.records == {}
        assert seen + await response.read() == padding
    assert output_tokens(plane) == 5
