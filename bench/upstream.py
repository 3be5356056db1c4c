"""A provider that costs next to nothing: canned answers of OpenAI's chat completions, with usage.

The body's `"stream":true` asks for 34 events, each written by itself; the headers `x-first-ms` and `x-gap-ms` for how
long it thinks before the first byte, and between events.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import cast

import uvloop

MODEL = "gpt-4o-mini-2024-07-18"
EVENTS = 34
INPUT_TOKENS, OUTPUT_TOKENS = 250, 120
_WORDS = [
    "The",
    "answer",
    "is",
    "written",
    "in",
    "parts,",
    "and",
    "each",
    "of",
    "them",
    "travels",
    "as",
    "an",
    "event",
    "of",
    "its",
    "own.",
]
_USAGE = {
    "prompt_tokens": INPUT_TOKENS,
    "completion_tokens": OUTPUT_TOKENS,
    "total_tokens": INPUT_TOKENS + OUTPUT_TOKENS,
    "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
}


def _whole() -> bytes:
    message: dict[str, object] = {
        "role": "assistant",
        "content": " ".join(_WORDS * 5),
        "refusal": None,
        "annotations": [],
    }
    body = {
        "id": "chatcmpl-00000000000000000000000000000",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": MODEL,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": _USAGE,
        "service_tier": "default",
        "system_fingerprint": "fp_0000000000",
    }
    text = json.dumps(body).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-request-id: req_0\r\ncontent-length: {len(text)}\r\n\r\n"
    return head.encode() + text


def _event(delta: dict[str, str] | None, finish: str | None = None) -> bytes:
    choices = (
        [] if delta is None else [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]
    )
    body: dict[str, object] = {
        "id": "chatcmpl-00000000000000000000000000000",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": MODEL,
        "service_tier": "default",
        "system_fingerprint": "fp_0000000000",
        "choices": choices,
        "usage": _USAGE if delta is None else None,
    }
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _stream() -> list[bytes]:
    """Return what is written, one event a part: role, words, the end, usage, and the marker."""
    words = EVENTS - 4
    events = [_event({"role": "assistant", "content": ""})]
    events += [_event({"content": f"{_WORDS[index % len(_WORDS)]} "}) for index in range(words)]
    events += [_event({}, "stop"), _event(None), b"data: [DONE]\n\n"]
    parts = [_chunk(event) for event in events]
    parts[0] = (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\nx-request-id: req_0\r\n"
        b"transfer-encoding: chunked\r\n\r\n"
    ) + parts[0]
    parts[-1] += b"0\r\n\r\n"
    return parts


WHOLE = _whole()
STREAM = _stream()


class Provider(asyncio.Protocol):
    """One connection; a request at a time."""

    def __init__(self) -> None:
        self._buffer = b""
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but name

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[:end].lower() + b"\r\n"
        if len(self._buffer) < end + 4 + _number(head, b"\r\ncontent-length: "):
            return
        body, self._buffer = self._buffer[end + 4 :], b""
        first_s = _number(head, b"\r\nx-first-ms: ") / 1000
        gap_s = _number(head, b"\r\nx-gap-ms: ") / 1000
        streams = b'"stream":true' in body or b'"stream": true' in body
        if streams:
            self._later(first_s, self._send, 0, gap_s)
        else:
            self._later(first_s, self._write, WHOLE)

    def _later(self, seconds: float, step: Callable[..., None], *arguments: object) -> None:
        if seconds:
            self._loop.call_later(seconds, step, *arguments)
        else:
            self._loop.call_soon(step, *arguments)

    def _send(self, index: int, gap_s: float) -> None:
        self._write(STREAM[index])
        if index + 1 < len(STREAM) and not self._transport.is_closing():
            self._later(gap_s, self._send, index + 1, gap_s)

    def _write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)


def _number(head: bytes, name: bytes) -> int:
    start = head.find(name)
    return int(head[start + len(name) : head.find(b"\r\n", start + 2)]) if start >= 0 else 0


async def main() -> None:
    """Serve until killed."""
    server = await asyncio.get_running_loop().create_server(Provider, "127.0.0.1", 0, backlog=1024)
    host, port = server.sockets[0].getsockname()
    print(json.dumps({"event": "ready", "listen": f"{host}:{port}"}), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
