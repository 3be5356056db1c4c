"""A provider that begins an answer, and says afterwards what it came to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bursar.v1.metering_service_pb2 import DeductRequest
from support.fake_control_plane import KEY, Served
from support.odd_upstream import Heard, OddUpstream, chunk, head, json_answer
from support.sidecars import RunningSidecar, environment, running_sidecar, until

CHAT = {
    "model": "openai/gpt-4o-mini",
    "stream": True,
    "messages": [{"role": "user", "content": "Name a sea."}],
}
ASKED = {"model": "gpt-5", "stream": True, "input": "Name every sea."}
NOT_READY = json_answer(b'{"error":{"message":"not found","code":404}}', "404 Not Found")


def event(data: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def chat_event(id_: str, model: str = "openai/gpt-4o-mini") -> bytes:
    delta = {"index": 0, "delta": {"content": "The Sargasso"}, "finish_reason": None}
    return event({"id": id_, "object": "chat.completion.chunk", "model": model, "choices": [delta]})


def response_events(id_: str, model: str = "gpt-5-2025-08-07") -> bytes:
    response = {"id": id_, "status": "in_progress", "model": model, "usage": None}
    begun = event({"type": "response.created", "response": response})
    return begun + event({"type": "response.output_text.delta", "delta": "The Sargasso"})


def response(id_: str, status: str = "completed", usage: bool = True, **more: Any) -> bytes:
    figures = {"input_tokens": 12, "output_tokens": 200, "output_tokens_details": {"reasoning_tokens": 150}}
    body = {"id": id_, "object": "response", "status": status, "model": "gpt-5-2025-08-07", **more}
    return json_answer(json.dumps({**body, "usage": figures if usage else None}).encode())


def generation(**figures: Any) -> bytes:
    said = {
        "id": "gen-1",
        "model": "openai/gpt-4o-mini-2024-07-18",
        "cancelled": True,
        "total_cost": 0.000123,
        "native_tokens_prompt": 12,
        "native_tokens_completion": 200,
        "native_tokens_reasoning": 150,
        "native_tokens_cached": 4,
        **figures,
    }
    return json_answer(json.dumps({"data": said}).encode())


@dataclass
class Provider:
    """A provider that begins a stream and says no more, and what it says when it is asked: one after another, then the last."""

    upstream: OddUpstream
    begins: bytes = b""
    lines: tuple[str, ...] = ()
    says: list[bytes] = field(default_factory=lambda: [NOT_READY])
    breaks: bool = False
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def script(self, heard: Heard, writer: asyncio.StreamWriter) -> None:
        if heard.method == "GET":
            writer.write(self.says.pop(0) if len(self.says) > 1 else self.says[0])
            await writer.drain()
            return
        kind = ("content-type: text/event-stream", "transfer-encoding: chunked")
        writer.write(head("200 OK", *kind, *self.lines) + chunk(self.begins))
        await writer.drain()
        if self.breaks:
            await asyncio.sleep(0.1)
            writer.transport.abort()
        await asyncio.wait_for(self.over.wait(), 60)

    @property
    def asked(self) -> list[Heard]:
        return [heard for heard in self.upstream.heard if heard.method == "GET"]


NAMES = ("openai", "azure", "xai", "openrouter", "gemini", "lab")


@asynccontextmanager
async def cancelling(
    plane: Served, provider: Provider, directory: Path, **settings: str
) -> AsyncIterator[RunningSidecar]:
    """Run a sidecar that stops the provider when the app leaves."""
    known = environment(plane.url, directory, **dict.fromkeys(NAMES, provider.upstream.url))
    async with running_sidecar({**known, "BURSAR_ON_DISCONNECT": "CANCEL", **settings}) as sidecar:
        yield sidecar


async def left(sidecar: RunningSidecar, path: str, body: Mapping[str, Any], key: str = KEY) -> str:
    """Call, and leave half way; return the call's id once the sidecar knows."""
    gone = sidecar.sidecar.counts.app_disconnects
    async with await sidecar.post(
        path, json=body, headers={"x-cell": "mine", "authorization": f"Bearer {key}"}
    ) as answer:
        assert answer.status == 200
        await answer.content.readany()
    await until(lambda: sidecar.sidecar.counts.app_disconnects > gone)
    return answer.headers["x-bursar-request-id"]


async def charged(plane: Served, request_id: str, within_s: float = 5.0) -> DeductRequest:
    """Return the call's Deduct when it has come: the only one, its hold gone."""
    service = plane.service
    await until(lambda: request_id in service.records, within_s)
    await asyncio.sleep(0.05)
    assert (service.duplicates, service.holds) == ([], {})
    return service.records[request_id]
