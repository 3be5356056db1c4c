"""Answers of OpenAI's Responses API."""

from __future__ import annotations

import re
from collections.abc import Mapping

from bursar_sidecar.providers.base import Usage
from bursar_sidecar.providers.openai_chat import provider_cost
from bursar_sidecar.providers.readers import Document, JsonShape, document
from bursar_sidecar.providers.sse import data_of
from bursar_sidecar.providers.streams import StreamReader
from bursar_sidecar.usage import Findings, clamped, count, part, parts, text

#: Events that end a stream; each carries the whole response.
_FINISHING = re.compile(rb'"response\.(?:completed|incomplete|failed|cancelled)"')
_FINISHING_TYPES = frozenset(
    {"response.completed", "response.incomplete", "response.failed", "response.cancelled"}
)

#: Depth of `type` in an element of the root's `output` array.
_ITEM_DEPTH = 3


def responses_usage(raw: Mapping[str, object], web_searches: int) -> Usage:
    """Return a Responses `usage` object as usage; its input includes cached, its output reasoning."""
    # Transcriptions spell the details in the singular.
    input_parts = part(raw.get("input_tokens_details")) or part(raw.get("input_token_details"))
    output_parts = part(raw.get("output_tokens_details")) or part(raw.get("output_token_details"))
    return clamped(
        Usage(
            input_tokens=count(raw.get("input_tokens")),
            output_tokens=count(raw.get("output_tokens")),
            cache_read_tokens=count(input_parts.get("cached_tokens")),
            cache_write_5m_tokens=count(input_parts.get("cache_write_tokens")),
            reasoning_tokens=count(output_parts.get("reasoning_tokens")),
            input_audio_tokens=count(input_parts.get("audio_tokens")),
            output_audio_tokens=count(output_parts.get("audio_tokens")),
            input_image_tokens=count(input_parts.get("image_tokens")),
            output_image_tokens=count(output_parts.get("image_tokens")),
            web_searches=web_searches,
            requests=1,
        )
    )


def read_response(response: Mapping[str, object], found: Findings) -> None:
    """Note what a response says. One that is queued or in progress is not billable yet."""
    found.model = text(response.get("model")) or found.model
    found.service_tier = text(response.get("service_tier")) or found.service_tier
    found.work_id = text(response.get("id")) or found.work_id
    status = response.get("status")
    found.deferred = status in ("queued", "in_progress")
    found.failed = status == "failed" or (status is None and bool(response.get("error")))
    found.cancelled = status == "cancelled"
    found.finished = status in ("completed", "incomplete")
    output = parts(response.get("output"))
    raw = response.get("usage")
    if isinstance(raw, dict):
        searches = sum(item.get("type") == "web_search_call" for item in output)
        found.usage = responses_usage(raw, searches)
        found.provider_cost_usd = provider_cost(raw)
    elif not found.text_bytes:
        found.say(*(said for item in output for said in _item_texts(item)))


def _place(found: Document, key: str, depth: int, value: object) -> None:
    """Put a picked member where `read_response` looks: an item's type becomes an item."""
    if key == "type":
        output = found.setdefault("output", [])
        if value == "web_search_call" and isinstance(output, list):
            output.append({"type": value})
    elif depth == 1:
        found[key] = value


RESPONSE = JsonShape(
    read=read_response,
    wanted={
        b"id": 1,
        b"model": 1,
        b"service_tier": 1,
        b"status": 1,
        b"error": 1,
        b"usage": 1,
        b"type": _ITEM_DEPTH,
    },
    place=_place,
)


class ResponseStream(StreamReader):
    """A stream of Responses events; the event that finishes the response is its terminal marker."""

    def _event(self, block: bytes) -> bytes:
        if _FINISHING.search(block):
            return self._finishing_event(block)
        if b"error" in block:
            self._read_error(block)
        return self._content(block)

    def _finishing_event(self, block: bytes) -> bytes:
        event = document(data_of(block)) or {}
        response = event.get("response")
        if event.get("type") not in _FINISHING_TYPES or not isinstance(response, dict):
            return self._content(block)
        if not isinstance(response.get("usage"), dict):
            self._read_pending()  # else what it repeats would count twice
        read_response(response, self._found)
        self._found.deferred = False
        self._found.final = self._found.usage is not None
        return self._hold(block)

    def _read_error(self, block: bytes) -> None:
        event = document(data_of(block))
        if event is not None and event.get("type") == "error":
            self._found.failed = True
        else:
            super()._read_error(block)

    def _read_content(self, event: Document) -> None:
        response = part(event.get("response"))
        self._found.work_id = self._found.work_id or text(response.get("id"))
        self._found.model = self._found.model or text(response.get("model"))
        delta = event.get("delta")
        if isinstance(delta, str) and text(event.get("type")).endswith(".delta"):
            self._found.say(delta)


def _item_texts(item: Mapping[str, object]) -> list[str]:
    spoken = [text(item.get("arguments")), text(item.get("name"))]
    for content in (*parts(item.get("content")), *parts(item.get("summary"))):
        spoken += [text(content.get("text")), text(content.get("refusal"))]
    return spoken
