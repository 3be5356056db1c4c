"""A client that costs little: so many callers, each with a connection of its own and one call after the other."""

from __future__ import annotations

import asyncio
import functools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

_PROMPT = (
    "Explain in a few sentences how a budget that is shared by many callers is kept, and what it costs. " * 8
)


@dataclass
class Load:
    """What a load measured; times in seconds, one for each call. `seconds` is from the first call to the last's end."""

    seconds: float = 0.0
    first_byte_s: list[float] = field(default_factory=list)
    whole_s: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def calls(self) -> int:
        """How many calls were answered well."""
        return len(self.whole_s)

    @property
    def per_s(self) -> float:
        """Calls a second."""
        return self.calls / self.seconds


def chat_body(*, stream: bool) -> bytes:
    """Return a chat completion as apps send it, about a kilobyte."""
    body: dict[str, object] = {
        "model": "gpt-4o-mini",
        "messages": [{"role": "system", "content": "You are brief."}, {"role": "user", "content": _PROMPT}],
        "max_tokens": 256,
    }
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return json.dumps(body).encode()


def request_bytes(url: str, path: str, key: str, body: bytes, headers: dict[str, str] | None = None) -> bytes:
    """Return a whole POST as it goes over the wire."""
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: {urlsplit(url).netloc}",
        "User-Agent: bench",
        "Accept: application/json",
        "Content-Type: application/json",
        f"Authorization: Bearer {key}",
        *(f"{name}: {value}" for name, value in (headers or {}).items()),
        f"Content-Length: {len(body)}",
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


class _Caller(asyncio.Protocol):
    """One caller; `requests` are sent in turns until the deadline, or until `calls` of them are over."""

    def __init__(self, requests: Sequence[bytes], load: Load, deadline: float, calls: list[int]) -> None:
        self._requests = requests
        self._load = load
        self._deadline = deadline
        self._calls = calls  # how many may still be sent, shared by all callers
        self._next = 0
        self._answer = bytearray()
        self._body_at = 0
        self._size: int | None = None
        self._began = self._first = 0.0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but name
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self._load.failures.append(f"connection lost: {exc}")
            self.done.set_result(None)

    def _send(self) -> None:
        if self._calls[0] <= 0 or time.perf_counter() >= self._deadline:
            self.done.set_result(None)
            self._transport.close()
            return
        self._calls[0] -= 1
        self._answer.clear()
        self._body_at = 0
        self._first = 0.0
        request = self._requests[self._next % len(self._requests)]
        self._next += 1
        self._began = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        answer = self._answer
        answer += data
        if not self._body_at:
            end = answer.find(b"\r\n\r\n")
            if end < 0:
                return
            self._body_at = end + 4
            self._size = _length(bytes(answer[:end]).lower())
        if not self._first and len(answer) > self._body_at:
            self._first = time.perf_counter()
        if self._size is None:
            whole = answer.endswith(b"\r\n0\r\n\r\n")
        else:
            whole = len(answer) >= self._body_at + self._size
        if whole:
            self._over()

    def _over(self) -> None:
        now = time.perf_counter()
        if self._answer.startswith(b"HTTP/1.1 200"):
            self._load.whole_s.append(now - self._began)
            self._load.first_byte_s.append((self._first or now) - self._began)
        else:
            self._load.failures.append(bytes(self._answer[:300]).decode(errors="replace"))
        self._send()


def _length(head: bytes) -> int | None:
    start = head.find(b"\r\ncontent-length:")
    if start < 0:
        return None
    end = head.find(b"\r\n", start + 2)
    return int(head[start + 17 : end if end >= 0 else None])


async def drive(
    url: str, requests: Sequence[bytes], in_flight: int, seconds: float = 3600.0, calls: int = 1 << 60
) -> Load:
    """Keep so many calls in flight for so long, or until so many were made; open ones finish. Fails where one failed."""
    load = Load()
    parts = urlsplit(url)
    loop = asyncio.get_running_loop()
    left = [calls]
    began = time.perf_counter()
    callers = []
    for number in range(in_flight):
        # Each begins with another of the requests: the load is spread over their keys.
        turned = [*requests[number % len(requests) :], *requests[: number % len(requests)]]
        make = functools.partial(_Caller, turned, load, began + seconds, left)
        _, caller = await loop.create_connection(make, parts.hostname or "", parts.port or 80)
        callers.append(caller)
    await asyncio.gather(*(caller.done for caller in callers))
    load.seconds = time.perf_counter() - began
    if load.failures:
        raise RuntimeError(
            f"{len(load.failures)} of {load.calls} calls failed, one with:\n{load.failures[0]}"
        )
    return load
