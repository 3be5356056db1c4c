"""Answers of Amazon Bedrock: JSON, or a binary stream of frames, with usage in the body, beside it, or in the headers."""

from __future__ import annotations

import binascii
from collections.abc import Mapping
from functools import partial

from bursar_sidecar.providers.anthropic import MessageEvents, read_message
from bursar_sidecar.providers.base import ApiCall, Usage
from bursar_sidecar.providers.frames import FrameSplitter, frame_of
from bursar_sidecar.providers.json_scan import ANYWHERE
from bursar_sidecar.providers.openai_chat import chat_usage, read_chat
from bursar_sidecar.providers.readers import Document, JsonShape, document
from bursar_sidecar.providers.streams import StreamReader
from bursar_sidecar.usage import Findings, clamped, count, part, parts, text

_METRICS = "amazon-bedrock-invocationMetrics"
_METRICS_BYTES = _METRICS.encode()
#: Members that only the last event of a model has (Titan's, which a guardrail can leave without a reason; Meta's; Cohere's).
_LAST = ("completionReason", "totalOutputTextTokenCount", "stop_reason", "is_finished")
_TIER_HEADER = "x-amzn-bedrock-service-tier"
#: What a count is called in the metrics, and in the headers of an answer.
_COUNTS = (
    ("inputTokenCount", "x-amzn-bedrock-input-token-count"),
    ("outputTokenCount", "x-amzn-bedrock-output-token-count"),
    ("cacheReadInputTokenCount", "x-amzn-bedrock-cache-read-input-token-count"),
    ("cacheWriteInputTokenCount", "x-amzn-bedrock-cache-write-input-token-count"),
)


def converse_usage(raw: Mapping[str, object]) -> Usage:
    """Return a Converse `usage` object (or Nova's) as usage; its `inputTokens` leaves out what the cache has to do with."""
    read = count(raw.get("cacheReadInputTokens")) or count(raw.get("cacheReadInputTokenCount"))
    written = count(raw.get("cacheWriteInputTokens")) or count(raw.get("cacheWriteInputTokenCount"))
    details = parts(raw.get("cacheDetails"))
    write_1h = min(sum(count(one.get("inputTokens")) for one in details if one.get("ttl") == "1h"), written)
    return _usage(
        count(raw.get("inputTokens")), count(raw.get("outputTokens")), read, written - write_1h, write_1h
    )


def metrics_usage(raw: Mapping[str, object]) -> Usage:
    """Return invocation metrics as usage; they count like Converse."""
    given, generated, read, written = (count(raw.get(name)) for name, _ in _COUNTS)
    return _usage(given, generated, read, written, 0)


def headers_usage(headers: Mapping[str, str]) -> Usage | None:
    """Return what the headers of an answer count; None where they count nothing."""
    found = {name: headers.get(header, "") for name, header in _COUNTS}
    if not any(found.values()):
        return None
    return metrics_usage({name: int(value) for name, value in found.items() if _is_number(value)})


def _is_number(value: str) -> bool:
    return value.isascii() and value.isdigit() and len(value) < 16


def _usage(given: int, generated: int, read: int, write_5m: int, write_1h: int) -> Usage:
    return clamped(
        Usage(
            input_tokens=given + read + write_5m + write_1h,
            output_tokens=generated,
            cache_read_tokens=read,
            cache_write_5m_tokens=write_5m,
            cache_write_1h_tokens=write_1h,
            requests=1,
        )
    )


def read_converse(answer: Document, found: Findings) -> None:
    """Note what a Converse answer says. It never names its model."""
    raw = answer.get("usage")
    found.service_tier = text(part(answer.get("serviceTier")).get("type")) or found.service_tier
    if isinstance(raw, dict):
        found.usage = converse_usage(raw)
    else:
        message = part(part(answer.get("output")).get("message"))
        found.say(*(said for one in parts(message.get("content")) for said in _spoken(one)))


def read_invoke(answer: Document, found: Findings, headers: Mapping[str, str]) -> None:
    """Note what a model's own answer says: its usage, else the invocation metrics, else the headers."""
    found.service_tier = headers.get(_TIER_HEADER, "") or found.service_tier
    found.usage = _body_usage(answer)
    raw = part(answer.get("usage"))
    if found.usage is None and answer.get("type") == "message":
        read_message(answer, found)
    elif "prompt_tokens" in raw or "choices" in answer:
        read_chat(answer, found)
    if found.usage is None and _METRICS in answer:
        found.usage = metrics_usage(part(answer.get(_METRICS)))
    if found.usage is None:
        found.usage = headers_usage(headers)
    if found.usage is None and not found.text_bytes:
        found.say(*_spoken(answer))


def _body_usage(answer: Mapping[str, object]) -> Usage | None:
    """Return the usage that a model of Amazon's, Meta's or an embedding model puts into its answer."""
    raw = part(answer.get("usage"))
    if "inputTokens" in raw:
        return converse_usage(raw)
    if "prompt_token_count" in answer or "generation_token_count" in answer:
        given, generated = answer.get("prompt_token_count"), answer.get("generation_token_count")
        return Usage(input_tokens=count(given), output_tokens=count(generated), requests=1)
    if "inputTextTokenCount" in answer:
        generated = sum(count(one.get("tokenCount")) for one in parts(answer.get("results")))
        generated = generated or count(answer.get("totalOutputTextTokenCount"))
        return Usage(
            input_tokens=count(answer.get("inputTextTokenCount")), output_tokens=generated, requests=1
        )
    return None


def _place(found: Document, key: str, depth: int, value: object) -> None:
    if key in ("text", "generation", "outputText"):
        found["generation"] = text(found.get("generation")) + text(value)
    elif key == "tokenCount":
        results = found.setdefault("results", [])
        if isinstance(results, list):
            results.append({key: value})
    elif depth == 1:
        found[key] = value


_WANTED = {
    b"model": 1,
    b"type": 1,
    b"usage": 1,
    b"serviceTier": 1,
    b"prompt_token_count": 1,
    b"generation_token_count": 1,
    b"inputTextTokenCount": 1,
    b"tokenCount": ANYWHERE,
    b"text": ANYWHERE,
    b"generation": ANYWHERE,
    b"outputText": ANYWHERE,
    _METRICS_BYTES: 1,
}

CONVERSE = JsonShape(read=read_converse, wanted=_WANTED, place=_place)


def invoke_shape(headers: Mapping[str, str]) -> JsonShape:
    """Return how an answer with these headers is read."""
    return JsonShape(read=partial(read_invoke, headers=headers), wanted=_WANTED, place=_place)


class _FrameStream(StreamReader):
    """A stream of frames. One whose checksum is wrong passes unread; an exception is an error inside the stream."""

    def __init__(self, call: ApiCall, status: int) -> None:
        super().__init__(call, status, FrameSplitter())

    def _document(self, block: bytes) -> Document | None:
        frame = frame_of(block)
        return None if frame is None else document(frame.payload)


class ConverseStream(_FrameStream):
    """A `converse-stream`; its last event, `metadata`, has the usage and is what is held."""

    def _event(self, block: bytes) -> bytes:
        frame = frame_of(block)
        if frame is None:
            return block
        kind = frame.headers.get(":event-type")
        if kind == "metadata":
            read_converse(document(frame.payload) or {}, self._found)
            self._found.final = self._found.usage is not None
            return self._hold(block)
        if kind == "messageStop":
            self._found.finished = True
        elif frame.headers.get(":message-type") != "event":
            self._found.failed = True
        else:
            return self._content(block)
        return block

    def _read_content(self, event: Document) -> None:
        self._found.say(*_spoken(part(event.get("delta"))), *_spoken(part(event.get("start"))))


class InvokeStream(_FrameStream):
    """An `invoke-with-response-stream`: frames that carry the model's own events in base64.

    The last one carries the invocation metrics, where there are any, and is what is held.
    """

    def __init__(self, call: ApiCall, status: int, headers: Mapping[str, str]) -> None:
        super().__init__(call, status)
        self._messages = MessageEvents(self._found)
        self._running = False  # usage is of counters that run along: the metrics know better
        self._found.service_tier = headers.get(_TIER_HEADER, "")

    def _event(self, block: bytes) -> bytes:
        frame = frame_of(block)
        if frame is None:
            return block
        if frame.headers.get(":message-type") != "event":
            self._found.failed = True
            return block
        event = _chunk(frame.payload)
        if event is None:
            return block
        self._read_chunk(event)
        if _METRICS not in event:
            return block
        if self._found.usage is None or self._running:
            self._found.usage = metrics_usage(part(event.get(_METRICS)))
        self._found.finished = self._found.final = True
        return self._hold(block)

    def end(self) -> bytes:
        """Return what came behind the last whole frame, unless it is held."""
        passed = super().end()
        if self._found.finished and self._found.usage is not None:
            self._found.final = True
        return passed

    def _read_chunk(self, event: Document) -> None:
        found = self._found
        self._messages.read(event)
        usage = _body_usage(event)
        self._running = self._running or usage is not None
        usage = usage or _body_usage(part(event.get("metadata")))
        raw = part(event.get("usage"))
        if usage is None and "prompt_tokens" in raw:
            usage = chat_usage(raw)
        if usage is not None:
            # Meta's first event alone counts the prompt, its last all that was generated.
            given = found.usage.input_tokens if found.usage is not None else 0
            found.usage = usage._replace(input_tokens=max(usage.input_tokens, given))
        if "messageStop" in event or any(event.get(name) for name in _LAST):
            found.finished = True
        if usage is None and "type" not in event:
            delta = part(part(event.get("contentBlockDelta")).get("delta"))
            found.say(*_spoken(event), *_spoken(delta))


def _chunk(payload: bytes) -> Document | None:
    """Return the model's own event in a frame's payload."""
    try:
        return document(binascii.a2b_base64(text((document(payload) or {}).get("bytes"))))
    except ValueError:
        return None


def _spoken(said: Mapping[str, object]) -> list[str]:
    """Return the text in a block, a piece of one, or an answer of one of the older models."""
    spoken = [text(said.get(name)) for name in ("text", "generation", "outputText", "completion", "name")]
    spoken.append(text(part(said.get("reasoningContent")).get("text")))
    use = part(said.get("toolUse"))
    spoken += [text(use.get("name")), text(use.get("input"))]
    return spoken
