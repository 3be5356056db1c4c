"""Anthropic's Messages API."""

from __future__ import annotations

import operator
from collections.abc import Mapping

import orjson

from bursar_sidecar.providers.base import NO_HEADERS, ApiCall, Problem, Reader, Usage, UsageItem
from bursar_sidecar.providers.json_scan import ANYWHERE
from bursar_sidecar.providers.output_limit import lowered
from bursar_sidecar.providers.readers import (
    Document,
    JsonShape,
    document,
    reader_for,
)
from bursar_sidecar.providers.request import Request, positive
from bursar_sidecar.providers.streams import StreamReader
from bursar_sidecar.tokens import json_text
from bursar_sidecar.usage import Findings, clamped, count, part, parts, text

_EVENT_BYTES = (b'"message_start"', b'"message_delta"')


def message_usage(raw: Mapping[str, object]) -> Usage:
    """Return one Anthropic usage object as usage; its `input_tokens` leaves out what was read from or written to cache.

    Cache writes that are not split by lifetime count as five-minute ones (the API's default).
    """
    read, written = count(raw.get("cache_read_input_tokens")), count(raw.get("cache_creation_input_tokens"))
    split = part(raw.get("cache_creation"))
    write_5m, write_1h = (
        count(split.get("ephemeral_5m_input_tokens")),
        count(split.get("ephemeral_1h_input_tokens")),
    )
    write_5m += max(written - write_5m - write_1h, 0)
    return clamped(
        Usage(
            input_tokens=count(raw.get("input_tokens")) + read + write_5m + write_1h,
            output_tokens=count(raw.get("output_tokens")),
            cache_read_tokens=read,
            cache_write_5m_tokens=write_5m,
            cache_write_1h_tokens=write_1h,
            reasoning_tokens=count(part(raw.get("output_tokens_details")).get("thinking_tokens")),
        )
    )


def read_usage(raw: Mapping[str, object], found: Findings) -> None:
    """Note a whole answer's usage object.

    With `iterations` the bill is their sum (the top level leaves compaction out); those that name a model, as the
    advisor's do, are that model's.
    """
    top = message_usage(raw)
    found.service_tier = text(raw.get("service_tier")) or found.service_tier
    searches = count(part(raw.get("server_tool_use")).get("web_search_requests"))
    main, others = top, dict[str, Usage]()
    iterations = parts(raw.get("iterations"))
    if iterations:
        main = Usage()
        for iteration in iterations:
            model = text(iteration.get("model"))
            if model and model != found.model:
                others[model] = added(others.get(model, Usage()), message_usage(iteration))
            else:
                main = added(main, message_usage(iteration))
        main = main._replace(reasoning_tokens=max(main.reasoning_tokens, top.reasoning_tokens))
    found.usage = clamped(main._replace(web_searches=searches, requests=1))
    found.others = tuple(UsageItem(model, found.service_tier, usage) for model, usage in others.items())


def added(one: Usage, other: Usage) -> Usage:
    """Return the sum of two usages, unit by unit."""
    return Usage(*map(operator.add, one, other))


def read_message(answer: Document, found: Findings) -> None:
    """Note what a JSON answer says."""
    found.model = text(answer.get("model")) or found.model
    found.failed = answer.get("type") == "error" or bool(answer.get("error"))
    raw = answer.get("usage")
    if isinstance(raw, dict):
        read_usage(raw, found)
    else:
        for block in (*parts(answer.get("content")), answer):  # the legacy `completion` is the answer's own
            found.say(*_spoken(block))


def _place(found: Document, key: str, depth: int, value: object) -> None:
    content = found.setdefault("content", [])
    if depth == 1 and key != "text":
        found[key] = value
    elif key == "text" and isinstance(content, list):
        content.append({"text": value})


MESSAGE = JsonShape(
    read=read_message,
    wanted={b"model": 1, b"type": 1, b"usage": 1, b"error": 1, b"text": ANYWHERE},
    place=_place,
)


class MessageEvents:
    """Puts the usage of a Messages stream together, whatever carries its events.

    `message_delta` is cumulative and can raise what `message_start` said, so its members replace those.
    """

    def __init__(self, found: Findings) -> None:
        self._found = found
        self._raw: dict[str, object] = {}

    def read(self, event: Document) -> None:
        """Note what one event says."""
        kind = event.get("type")
        if kind == "message_start":
            message = part(event.get("message"))
            self._found.model = text(message.get("model")) or self._found.model
            raw = part(message.get("usage"))
        elif kind == "message_delta":
            raw = part(event.get("usage"))
            self._found.finished = bool(part(event.get("delta")).get("stop_reason"))
            self._found.final = bool(raw) and self._found.finished
        else:
            if kind in ("content_block_delta", "content_block_start"):
                block = part(event.get("delta")) or part(event.get("content_block"))
                self._found.say(*_spoken(block))
            return
        self._raw.update((name, value) for name, value in raw.items() if value is not None)
        if self._raw:
            read_usage(self._raw, self._found)


class MessageStream(StreamReader):
    """A stream of Messages events; `message_stop` is its terminal marker."""

    def __init__(self, call: ApiCall, status: int) -> None:
        super().__init__(call, status)
        self._events = MessageEvents(self._found)

    def _event(self, block: bytes) -> bytes:
        if b'"content_block_' in block:
            return self._content(block)
        if any(name in block for name in _EVENT_BYTES):
            self._events.read(self._document(block) or {})
        elif b'"message_stop"' in block:
            event = self._document(block)
            if event is not None and event.get("type") == "message_stop":
                return self._hold(block)
        elif b"error" in block:
            self._read_error(block)
        return block

    def _read_content(self, event: Document) -> None:
        self._events.read(event)


def _spoken(block: Mapping[str, object]) -> list[str]:
    spoken = [text(block.get(name)) for name in ("text", "thinking", "partial_json", "name", "completion")]
    given = block.get("input")
    return [*spoken, json_text(given)] if isinstance(given, dict) and given else spoken


def messages_call(request: Request, metered: bool, model: str, stream: bool | None) -> ApiCall:
    """Return a call of the Messages API; `stream` where something else than the body says it."""
    asked = request.document
    limit = positive(asked.get("max_tokens")) or positive(asked.get("max_tokens_to_sample"))
    return ApiCall(
        api="anthropic.messages" if metered else "anthropic.other",
        metered=metered,
        model=model,
        stream=asked.get("stream") is True if stream is None else stream,
        input_tokens_estimate=request.input_tokens_estimate if metered else 0,
        max_output_tokens=limit if metered else None,
        tags=request.tags,
        body=request.edited(),
        fits_output=metered and positive(asked.get("max_tokens")) is not None,
    )


class Anthropic:
    """The dialect of `api.anthropic.com`."""

    @property
    def name(self) -> str:
        """The name that the configuration uses."""
        return "anthropic"

    def speaks(self, path: str) -> bool:
        """Return whether a path is one of Anthropic's."""
        return path.rstrip("/").endswith(("/messages", "/messages/count_tokens", "/v1/complete"))

    def open(self, method: str, path: str, query: str, headers: Mapping[str, str], body: bytes) -> ApiCall:  # noqa: ARG002
        """Read a request; `POST …/messages` is metered (and the legacy `complete`), counting tokens and the rest are not."""
        metered = method == "POST" and path.rstrip("/").endswith(("/messages", "/v1/complete"))
        request = Request(body)
        return messages_call(request, metered, text(request.document.get("model")), None)

    def with_output_limit(self, call: ApiCall, tokens: int) -> ApiCall | None:
        """Return `call` with a lower `max_tokens`, which must stay above the thinking that was asked for."""
        thinking = part((document(call.body) or {}).get("thinking"))
        if tokens <= count(thinking.get("budget_tokens")):
            return None
        return call._replace(body=lowered(call.body, ("max_tokens",), tokens), max_output_tokens=tokens)

    def reader(
        self,
        call: ApiCall,
        status: int,
        content_type: str,
        headers: Mapping[str, str] = NO_HEADERS,  # noqa: ARG002
    ) -> Reader:
        """Return a fresh reader for the answer to `call`."""
        return reader_for(call, status, content_type, MESSAGE, MessageStream)

    def credential_headers(self, api_key: str) -> dict[str, str]:
        """Return Anthropic's own header."""
        return {"x-api-key": api_key}

    def error_body(self, problem: Problem, stream: bool) -> bytes:  # noqa: ARG002
        """Return Anthropic's error shape; the code is also where its SDK looks for it (`error.details.error_code`)."""
        details = {"error_code": problem.code, **problem.details}
        error = {"type": problem.type, "message": problem.message, "code": problem.code, "details": details}
        return orjson.dumps({"type": "error", "error": error})
