"""Compressed answers and requests: read for what they cost, passed on with every byte of their content, within bounds."""

from __future__ import annotations

import asyncio
import gzip
import json
import tracemalloc
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import brotli
import pytest

from bursar.v1.metering_service_pb2 import DeductRequest
from support.codings import CODINGS, zstandard
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
from support.sidecars import AUTHORIZED, CHAT_PATH, RunningSidecar, environment, running_sidecar, until

WORD = b'data: {"id":"1","model":"gpt-4o-2024","choices":[{"index":0,"delta":{"content":"Hello "}}]}\n\n'
USAGE = b'data: {"id":"1","model":"gpt-4o-2024","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":5}}\n\n'
DONE = b"data: [DONE]\n\n"
STREAMED = {
    "model": "gpt-4o",
    "stream": True,
    "stream_options": {"include_usage": True},
    "messages": [{"role": "user", "content": "Hi"}],
}


@pytest.fixture
async def sidecar(plane: Served, upstream: OddUpstream, tmp_path: Path) -> AsyncIterator[RunningSidecar]:
    settings = environment(plane.url, tmp_path, openai=upstream.url)
    async with running_sidecar(settings | {"BURSAR_REQUEST_MAX_BYTES": "1048576"}) as running:
        yield running


async def called(
    sidecar: RunningSidecar, body: bytes | None = None, **headers: str
) -> tuple[aiohttp.ClientResponse, bytes]:
    """Call without taking any compression off; what came of an answer that broke off ends with `BROKEN`."""
    data = body if body is not None else json.dumps(STREAMED).encode()
    got = b""
    async with sidecar.client.post(
        sidecar.url + CHAT_PATH, headers={**AUTHORIZED, **headers}, data=data, auto_decompress=False
    ) as response:
        try:
            async for piece in response.content.iter_any():
                got += piece
        except aiohttp.ClientPayloadError:
            got += b"BROKEN"
    return response, got


async def record_of(plane: Served) -> DeductRequest:
    await until(lambda: len(plane.service.records) == 1)
    (record,) = plane.service.records.values()
    return record


def sent(data: bytes, coding: str, cut_at: int, *, media: str = "text/event-stream") -> Script:
    """Send a compressed body in pieces."""

    async def run(_: Heard, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD[:-2].replace(b"text/event-stream", media.encode()))
        writer.write(f"content-encoding: {coding}\r\n\r\n".encode())
        for start in range(0, len(data), cut_at):
            writer.write(chunk(data[start : start + cut_at]))
            await writer.drain()
        writer.write(LAST_CHUNK)

    return run


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("cut_at", [1, 100_000])
async def test_a_compressed_stream_is_read_and_passed_on(
    sidecar: RunningSidecar, plane: Served, upstream: OddUpstream, coding: str, cut_at: int
) -> None:
    """Wherever it is cut: exact usage, and the app gets the content of every byte, without the coding."""
    upstream.script = sent(CODINGS[coding](WORD * 20 + USAGE + DONE), coding, cut_at)
    response, got = await called(sidecar)
    assert "content-encoding" not in response.headers
    assert got == WORD * 20 + USAGE + DONE
    record = await record_of(plane)
    assert not record.estimated
    assert (record.items[0].usage.input_tokens, record.items[0].usage.output_tokens) == (7, 5)


@pytest.mark.parametrize("coding", CODINGS)
async def test_a_compressed_stream_that_breaks_off_owes_what_came(
    sidecar: RunningSidecar, plane: Served, upstream: OddUpstream, coding: str
) -> None:
    """F103: the text that could be read is charged, estimated, and the app has it."""
    words = b"".join(WORD.replace(b"Hello ", b"word %d " % number) for number in range(2000))
    squeezed = CODINGS[coding](words + USAGE + DONE)
    upstream.script = sent(squeezed[: len(squeezed) * 9 // 10], coding, 500)
    _, got = await called(sidecar)
    got = got.removesuffix(b"BROKEN")
    assert words.startswith(got[:-200])
    record = await record_of(plane)
    assert record.estimated
    assert record.items[0].usage.output_tokens >= got.count(b"word ") * 2 - 10


@pytest.mark.parametrize("coding", [*CODINGS, "lz4", "gzip, gzip, gzip, gzip, gzip"])
@pytest.mark.parametrize("media", ["application/json", "text/event-stream"])
async def test_an_answer_that_cannot_be_decoded_reaches_the_app_as_it_came(
    sidecar: RunningSidecar, plane: Served, upstream: OddUpstream, coding: str, media: str
) -> None:
    """F103: metering never fails an answer: the app may know what to do with it; the charge is an estimate."""
    junk = b"\xff\x00 no compression at all " * 20
    upstream.script = sent(junk, coding, 50, media=media)
    response, got = await called(sidecar)
    assert response.status == 200
    assert response.headers["content-encoding"] == coding
    assert got == junk
    record = await record_of(plane)
    assert record.estimated
    assert record.items[0].usage.output_tokens == len(junk) // 4


@pytest.mark.parametrize("coding", CODINGS)
async def test_a_json_answer_whose_compression_breaks_late(
    sidecar: RunningSidecar, plane: Served, upstream: OddUpstream, coding: str
) -> None:
    noise = "".join(f"{number * 7919 % 1000003:x}" for number in range(20_000))
    squeezed = bytearray(CODINGS[coding](CHAT.replace(b"Hello", noise.encode())))
    squeezed[len(squeezed) // 2 :] = b"\xff" * (len(squeezed) - len(squeezed) // 2)
    upstream.answer = json_answer(bytes(squeezed), "200 OK", f"content-encoding: {coding}")
    response, got = await called(sidecar)
    assert response.status == 200
    assert got == squeezed or (
        coding not in response.headers.get("content-encoding", "") and noise[:100].encode() in got
    )
    assert (await record_of(plane)).estimated


@pytest.mark.parametrize("coding", CODINGS)
async def test_a_bomb_is_stopped(
    sidecar: RunningSidecar, plane: Served, upstream: OddUpstream, coding: str
) -> None:
    """A provider cannot fill the sidecar's memory, nor the app's, out of a few kilobytes."""
    bomb = b'{"pad":"' + b"x" * (40 << 20) + b'",' + CHAT[1:]
    squeezed = CODINGS[coding](bomb)
    assert len(squeezed) < 64 << 10
    upstream.answer = json_answer(squeezed, "200 OK", f"content-encoding: {coding}")
    size = 0
    tracemalloc.start()
    async with await sidecar.post(auto_decompress=False) as response:
        with pytest.raises(aiohttp.ClientPayloadError):  # noqa: PT012
            async for piece in response.content.iter_any():
                size += len(piece)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size <= 16 << 20
    assert peak < 24 << 20
    assert (await record_of(plane)).estimated


async def test_a_compressed_answer_of_50_mb_takes_constant_memory(
    sidecar: RunningSidecar, plane: Served, upstream: OddUpstream
) -> None:
    squeezer = zlib.compressobj(1, wbits=31)
    numbered = [b"%x " % (number * 2654435761) ** 150 for number in range(1, 500)]
    block = b"".join(WORD.replace(b"Hello ", word) for word in numbered)
    repeats = (50 << 20) // len(block) + 1

    async def run(_: Heard, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD[:-2] + b"content-encoding: gzip\r\n\r\n")
        for data in (*[block] * repeats, USAGE + DONE):
            squeezed = squeezer.compress(data)
            if squeezed:
                writer.write(chunk(squeezed))
                await writer.drain()
        writer.write(chunk(squeezer.flush()) + LAST_CHUNK)

    upstream.script = run
    tracemalloc.start()
    size = 0
    async with await sidecar.post(json=STREAMED) as response:
        async for piece in response.content.iter_any():
            size += len(piece)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size == repeats * len(block) + len(USAGE + DONE)
    assert peak < 16 << 20
    assert not (await record_of(plane)).estimated


# -- requests ------------------------------------------------------------------------------------------

PLAIN = json.dumps({**STREAMED, "metadata": {"tags": {"team": "core"}}}, separators=(",", ":")).encode()


@pytest.mark.parametrize("coding", [*CODINGS, "gzip, zstd"])
async def test_a_compressed_request_is_metered_and_tagged_like_any_other(
    sidecar: RunningSidecar, plane: Served, upstream: OddUpstream, coding: str
) -> None:
    """S10: compression hides nothing from a Check: model, tags and size are read; the provider gets it plain."""
    body = PLAIN
    for name in coding.split(", "):
        body = CODINGS[name](body)
    response, _ = await called(sidecar, body, **{"content-encoding": coding})
    assert response.status == 200
    (check,) = plane.service.checks
    assert check.model == "gpt-4o"
    assert dict(check.tags) == {"team": "core"}
    (heard,) = upstream.heard
    assert heard.header("content-encoding") is None
    assert heard.body == PLAIN.replace(b',"metadata":{"tags":{"team":"core"}}', b"")


@pytest.mark.parametrize(
    ("coding", "body", "status", "code"),
    [
        ("lz4", b"x", 415, "CONTENT_ENCODING_UNSUPPORTED"),
        ("gzip,gzip,gzip,gzip", b"x", 415, "CONTENT_ENCODING_UNSUPPORTED"),
        ("gzip", PLAIN, 400, "INVALID_REQUEST"),
        ("gzip", gzip.compress(PLAIN)[:-20], 400, "INVALID_REQUEST"),
        ("zstd", zstandard(PLAIN)[:-4], 400, "INVALID_REQUEST"),
        ("br", brotli.compress(bytes(2 << 20)), 413, "REQUEST_TOO_LARGE"),
        ("gzip", gzip.compress(bytes(200 << 20)), 413, "REQUEST_TOO_LARGE"),
        ("zstd", zstandard(bytes(200 << 20)), 413, "REQUEST_TOO_LARGE"),
    ],
)
async def test_a_compressed_request_that_cannot_be_read_is_refused(
    sidecar: RunningSidecar,
    plane: Served,
    upstream: OddUpstream,
    coding: str,
    body: bytes,
    status: int,
    code: str,
) -> None:
    """What cannot be read cannot be metered; each refusal says why, in the words of the API."""
    response, got = await called(sidecar, body, **{"content-encoding": coding})
    assert response.status == status
    assert response.headers["x-should-retry"] == "false" or status == 400
    assert json.loads(got)["error"]["code"] == code
    assert plane.service.checks == []
    assert upstream.heard == []


async def test_the_head_of_an_answer_is_no_answer(sidecar: RunningSidecar, upstream: OddUpstream) -> None:
    upstream.answer = head(
        "200 OK", "content-type: application/json", "content-encoding: gzip", "content-length: 40"
    )
    async with sidecar.client.head(sidecar.url + "/openai/v1/models", headers=AUTHORIZED) as response:
        assert response.status == 200
