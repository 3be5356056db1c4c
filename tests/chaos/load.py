"""The apps: calls of several dialects and keys, streamed and not, some given up by the app, some failing upstream."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from bursar_sidecar.fake_provider.plan import expected_usage
from bursar_sidecar.providers.base import Usage
from chaos.provider import CALL_HEADER

#: The session that a call names begins so; its number follows.
SESSION_PREFIX = "chaos-"

_PATIENCE_S = 90.0
_STUCK = frozenset({429, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Way:
    """One way to call a provider."""

    provider: str
    model: str
    path: str
    stream_path: str

    def body(self, prompt: str, stream: bool) -> dict[str, Any]:
        """Return the request in the API's words."""
        if self.provider == "gemini":
            return {"contents": [{"role": "user", "parts": [{"text": prompt}]}]}
        body: dict[str, Any] = {"model": self.model, "stream": stream}
        if self.path.endswith("/responses"):
            return {**body, "input": prompt, "store": False}  # what is not stored is not asked about again
        body["messages"] = [{"role": "user", "content": prompt}]
        if self.provider == "anthropic":
            body["max_tokens"] = 200
        return body


_GEMINI = "/gemini/v1beta/models/gemini-2.5-flash"
WAYS = (
    Way("openai", "gpt-4o", "/openai/v1/chat/completions", "/openai/v1/chat/completions"),
    Way("openai", "gpt-5", "/openai/v1/responses", "/openai/v1/responses"),
    Way("anthropic", "claude-sonnet-5", "/anthropic/v1/messages", "/anthropic/v1/messages"),
    Way(
        "gemini",
        "gemini-2.5-flash",
        f"{_GEMINI}:generateContent",
        f"{_GEMINI}:streamGenerateContent?alt=sse",
    ),
)


@dataclass(slots=True)
class Call:
    """One call of the load: what it asked, and how it ended for the app."""

    number: int
    way: Way
    stream: bool
    trouble: str
    end: str = ""

    @property
    def path(self) -> str:
        """Where it goes, at the sidecar."""
        return self.way.stream_path if self.stream else self.way.path

    @property
    def body(self) -> bytes:
        """What it asks."""
        return json.dumps(
            self.way.body(f"Call {self.number}: why should spending be governed?", self.stream)
        ).encode()

    def usage(self) -> Usage:
        """Return what the provider's answer to it says, if it comes to its end."""
        return expected_usage(self.path.partition("?")[0], self.body)


@dataclass
class Load:
    """Apps that call all the time."""

    url: Callable[[], str]
    keys: Sequence[str]
    seed: int
    apps: int
    rest_s: float
    calls: dict[int, Call] = field(default_factory=dict)
    ends: Counter[str] = field(default_factory=Counter)
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def start(self) -> None:
        """Begin to call."""
        self._tasks = [
            asyncio.ensure_future(self._app(random.Random(f"{self.seed}.{n}"))) for n in range(self.apps)
        ]

    async def stop(self) -> None:
        """Make no new calls, and return when those that are open have ended."""
        self._stopping.set()
        await asyncio.gather(*self._tasks)

    async def _app(self, rng: random.Random) -> None:
        timeout = aiohttp.ClientTimeout(total=_PATIENCE_S)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while not self._stopping.is_set():
                way, stream = rng.choice(WAYS), rng.random() < 0.5
                call = Call(next(self._numbers), way, stream, _trouble(rng))
                self.calls[call.number] = call
                call.end = await self._made(session, call, rng)
                self.ends[call.end] += 1
                await asyncio.sleep(rng.uniform(0, 2 * self.rest_s))

    async def _made(self, session: aiohttp.ClientSession, call: Call, rng: random.Random) -> str:
        latency_ms, pace_ms, gives_up_s = (
            rng.choice((0, 20, 60, 150)),
            rng.choice((0, 2, 8)),
            rng.uniform(0, 0.2),
        )
        headers = {
            "authorization": f"Bearer {rng.choice(self.keys)}",
            "content-type": "application/json",
            "x-bursar-session": f"{SESSION_PREFIX}{call.number}",
            CALL_HEADER: str(call.number),
            "x-fake-latency-ms": str(latency_ms),
            "x-fake-pace-ms": str(pace_ms),
        }
        if call.trouble == "fails":
            headers["x-fake-status"] = str(rng.choice((400, 429, 500, 529)))
        elif call.trouble == "breaks off":
            headers["x-fake-abort-after-bytes"] = str(rng.randrange(400))
        try:
            async with asyncio.timeout(gives_up_s if call.trouble == "gives up" else None):
                async with session.post(self.url() + call.path, data=call.body, headers=headers) as answer:
                    await answer.read()
                    status = answer.status
        except TimeoutError:
            return "given up"
        except (aiohttp.ClientError, OSError):
            await asyncio.sleep(self.rest_s)
            return "broken"
        if status in _STUCK:
            await asyncio.sleep(self.rest_s)
        return {200: "answered", 402: "denied"}.get(status, "refused" if status == 503 else "failed")


def _trouble(rng: random.Random) -> str:
    return rng.choices(("", "gives up", "fails", "breaks off"), (80, 9, 7, 4))[0]
