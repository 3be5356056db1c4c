"""Answers of Gemini: JSON, an event stream, or one JSON array that grows."""

from __future__ import annotations

from collections.abc import Mapping

from bursar_sidecar.providers.base import ApiCall, Usage
from bursar_sidecar.providers.frames import ElementSplitter
from bursar_sidecar.providers.json_scan import ANYWHERE
from bursar_sidecar.providers.readers import Document, JsonShape, document
from bursar_sidecar.providers.streams import Splits, StreamReader
from bursar_sidecar.tokens import json_text
from bursar_sidecar.usage import Findings, clamped, count, part, parts, text

#: `Modality` by number, for clients that ask for enums as integers (the API's MediaModality).
_MODALITIES = {1: "TEXT", 2: "IMAGE", 3: "VIDEO", 4: "AUDIO", 5: "DOCUMENT"}

#: Vertex's `TrafficType` by number (the values that the public API definition names).
_TRAFFIC_TYPES = {1: "ON_DEMAND", 2: "PROVISIONED_THROUGHPUT"}


def gemini_usage(raw: Mapping[str, object], web_searches: int) -> Usage:
    """Return `usageMetadata` as usage: tool results count as input, thoughts as output, cached is part of the prompt."""
    details = (
        raw.get("promptTokensDetails") or raw.get("promptTokenDetails"),  # embeddings spell it so
        raw.get("toolUsePromptTokensDetails"),
    )
    thoughts = count(raw.get("thoughtsTokenCount"))
    return clamped(
        Usage(
            input_tokens=count(raw.get("promptTokenCount")) + count(raw.get("toolUsePromptTokenCount")),
            output_tokens=count(raw.get("candidatesTokenCount")) + thoughts,
            cache_read_tokens=count(raw.get("cachedContentTokenCount")),
            reasoning_tokens=thoughts,
            input_audio_tokens=sum(_modality(one, "AUDIO") for one in details),
            output_audio_tokens=_modality(raw.get("candidatesTokensDetails"), "AUDIO"),
            input_image_tokens=sum(_modality(one, "IMAGE") for one in details),
            output_image_tokens=_modality(raw.get("candidatesTokensDetails"), "IMAGE"),
            web_searches=web_searches,
            requests=1,
        )
    )


def read_answer(answer: Document, found: Findings) -> None:
    """Note what a JSON answer, or one piece of a stream, says. Usage is cumulative: a later piece replaces it."""
    found.model = text(answer.get("modelVersion")) or found.model
    found.failed = found.failed or bool(answer.get("error"))
    for candidate in parts(answer.get("candidates")):
        queries = part(candidate.get("groundingMetadata")).get("webSearchQueries")
        found.web_searches = len(queries) if isinstance(queries, list) else found.web_searches
        found.finished = found.finished or bool(candidate.get("finishReason"))
        for piece in parts(part(candidate.get("content")).get("parts")):
            found.say(*_spoken(piece))
    if part(answer.get("promptFeedback")).get("blockReason"):
        found.finished = True
    raw = answer.get("usageMetadata")
    if raw is None and "predictions" in answer:
        _read_predictions(answer, found)
    if isinstance(raw, dict):
        found.service_tier = (
            text(raw.get("serviceTier")) or _traffic_type(raw.get("trafficType")) or found.service_tier
        )
        if any(name.endswith("TokenCount") for name in raw):  # the first pieces can have the tier alone
            found.usage = gemini_usage(raw, found.web_searches)
            found.input_unknown = "promptTokenCount" not in raw


def _read_predictions(answer: Document, found: Findings) -> None:
    """Note what Vertex's `predict` says: each embedding counts its own tokens."""
    statistics = [
        part(part(one.get("embeddings")).get("statistics")) for one in parts(answer.get("predictions"))
    ]
    counted = [count(one.get("token_count")) for one in statistics if "token_count" in one]
    if counted:
        found.usage = Usage(input_tokens=sum(counted), requests=1)


def _place(found: Document, key: str, depth: int, value: object) -> None:
    """Put a picked member where `read_answer` looks."""
    candidates = found.setdefault("candidates", [])
    if not isinstance(candidates, list):
        return
    if key == "webSearchQueries":
        candidates.append({"groundingMetadata": {key: value}})
    elif key == "finishReason":
        candidates.append({key: value})
    elif key == "token_count":
        predictions = found.setdefault("predictions", [])
        if isinstance(predictions, list):
            predictions.append({"embeddings": {"statistics": {key: value}}})
    elif key == "text":
        candidates.append({"content": {"parts": [{key: value}]}})
    elif depth == 1:
        found[key] = value


_WANTED = {
    b"usageMetadata": 1,
    b"modelVersion": 1,
    b"error": 1,
    b"promptFeedback": 1,
    b"webSearchQueries": ANYWHERE,
    b"finishReason": ANYWHERE,
    b"text": ANYWHERE,
    b"token_count": ANYWHERE,
}

ANSWER = JsonShape(read=read_answer, wanted=_WANTED, place=_place)


class GeminiStream(StreamReader):
    """A stream of Gemini events. It has no terminal marker but its end.

    The event that carries a finish reason, or any after it, is held until the next one comes: what is held at the end
    is the last event. `complete` is therefore known only once the body has ended.
    """

    def __init__(self, call: ApiCall, status: int, splitter: Splits | None = None) -> None:
        super().__init__(call, status, splitter)
        self._finishing = False
        self._latest = b""  # the last event that reported usage; it says everything the earlier ones said

    def _event(self, block: bytes) -> bytes:
        if b'"usageMetadata"' in block:
            self._latest = block
        if b'"webSearchQueries"' in block:
            self._read_block(block)
        else:
            self._content(block)
        if not self._finishing and b'"finishReason"' not in block and b'"blockReason"' not in block:
            return block
        self._finishing = True
        passed, self._held = self._held, block
        return passed

    def end(self) -> bytes:
        """Return nothing but what an unfinished last event held."""
        passed = super().end()
        if self._finishing:
            self._found.finished = True
            self._read_block(self._latest)
            self._found.final = self._found.usage is not None
        return passed

    @property
    def complete(self) -> bool:
        """Whether the body has ended behind a finish reason."""
        return self._ended and self._finishing

    def _read_block(self, block: bytes) -> None:
        event = self._document(block)
        if event is not None:
            read_answer(event, self._found)

    def _read_content(self, event: Document) -> None:
        read_answer(event, self._found)


class ArrayStream(GeminiStream):
    """A stream that is one JSON array (`streamGenerateContent` without `alt=sse`).

    As of events, the element that finishes the answer is held until another follows it, and so is what comes behind it.
    """

    def __init__(self, call: ApiCall, status: int) -> None:
        super().__init__(call, status, ElementSplitter())

    def _document(self, block: bytes) -> Document | None:
        return document(block.lstrip(b"[, \t\r\n"))


def _traffic_type(value: object) -> str:
    return _TRAFFIC_TYPES.get(value, "") if isinstance(value, int) else text(value)


def _modality(details: object, name: str) -> int:
    """Return the tokens of one modality in a `…TokensDetails` array."""
    found = 0
    for one in parts(details):
        modality = one.get("modality")
        if modality == name or (isinstance(modality, int) and _MODALITIES.get(modality) == name):
            found += count(one.get("tokenCount"))
    return found


def _spoken(piece: Mapping[str, object]) -> list[str]:
    call = piece.get("functionCall")
    return [
        text(piece.get("text")),
        json_text(call) if isinstance(call, dict) else "",
    ]
