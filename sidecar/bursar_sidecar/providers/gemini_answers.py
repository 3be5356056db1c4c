"""Answers of Gemini: JSON, an event stream, or one JSON array that grows."""

from __future__ import annotations

from collections.abc import Mapping

import orjson

from bursar_sidecar.providers.base import ApiCall, Metered, Outcome, Usage
from bursar_sidecar.providers.json_scan import ANYWHERE, MemberScanner
from bursar_sidecar.providers.readers import Document, JsonShape, document, exact_value
from bursar_sidecar.providers.sse import data_of
from bursar_sidecar.providers.streams import StreamReader
from bursar_sidecar.usage import Findings, clamped, count, part, parts, settle, text

#: `Modality` by number, for clients that ask for enums as integers (the API's MediaModality).
_MODALITIES = {1: "TEXT", 2: "IMAGE", 3: "VIDEO", 4: "AUDIO", 5: "DOCUMENT"}


def gemini_usage(raw: Mapping[str, object], web_searches: int) -> Usage:
    """Return `usageMetadata` as usage: tool results count as input, thoughts as output, cached is part of the prompt."""
    details = (raw.get("promptTokensDetails"), raw.get("toolUsePromptTokensDetails"))
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
            found.text_bytes += _spoken_bytes(piece)
    if part(answer.get("promptFeedback")).get("blockReason"):
        found.finished = True
    raw = answer.get("usageMetadata")
    if isinstance(raw, dict):
        found.service_tier = (
            text(raw.get("serviceTier")) or text(raw.get("trafficType")) or found.service_tier
        )
        if any(name.endswith("TokenCount") for name in raw):  # the first pieces can have the tier alone
            found.usage = gemini_usage(raw, found.web_searches)
            found.input_unknown = "promptTokenCount" not in raw


def _place(found: Document, key: str, depth: int, value: object) -> None:
    """Put a picked member where `read_answer` looks."""
    candidates = found.setdefault("candidates", [])
    if not isinstance(candidates, list):
        return
    if key == "webSearchQueries":
        candidates.append({"groundingMetadata": {key: value}})
    elif key == "finishReason":
        candidates.append({key: value})
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
}

ANSWER = JsonShape(read=read_answer, wanted=_WANTED, place=_place)


class GeminiStream(StreamReader):
    """A stream of Gemini events. It has no terminal marker but its end.

    The event that carries a finish reason, or any after it, is held until the next one comes: what is held at the end
    is the last event. `complete` is therefore known only once the body has ended.
    """

    def __init__(self, call: ApiCall, status: int) -> None:
        super().__init__(call, status)
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
        event = document(data_of(block))
        if event is not None:
            read_answer(event, self._found)

    def _read_content(self, event: Document) -> None:
        read_answer(event, self._found)


class ArrayReader:
    """A stream that is one JSON array (`streamGenerateContent` without `alt=sse`).

    Every byte passes as it comes but the closing bracket, which is held, with whatever follows it.
    """

    def __init__(self, call: ApiCall, status: int) -> None:
        self._call = call
        self._status = status
        self._found = Findings()
        self._held = b""
        wanted = {key: depth and depth + 1 for key, depth in _WANTED.items()}
        self._scanner = MemberScanner(wanted, self._pick)

    def feed(self, data: bytes) -> bytes:
        """Return `data` up to the closing bracket."""
        if self._scanner.closed:
            self._held += data
            return b""
        closes_at = self._scanner.feed(data)
        if closes_at < 0:
            return data
        self._held = data[closes_at:]
        self._found.final = self._found.usage is not None
        return data[:closes_at]

    def end(self) -> bytes:
        """Return nothing: what is left is held."""
        return b""

    @property
    def complete(self) -> bool:
        """Whether the array has been closed."""
        return self._scanner.closed

    @property
    def held(self) -> bytes:
        """The closing bracket and what followed it."""
        return self._held

    def metered(self, outcome: Outcome | None = None) -> Metered:
        """Return the last usage reported, of an array cut off an estimate."""
        return settle(self._call, self._status, self._found, self.complete, outcome)

    def _pick(self, key: bytes, depth: int, value: bytes) -> None:
        picked: Document = {}
        _place(picked, key.decode(), depth - 1, exact_value(value))
        read_answer(picked, self._found)


def _modality(details: object, name: str) -> int:
    """Return the tokens of one modality in a `…TokensDetails` array."""
    found = 0
    for one in parts(details):
        modality = one.get("modality")
        if modality == name or (isinstance(modality, int) and _MODALITIES.get(modality) == name):
            found += count(one.get("tokenCount"))
    return found


def _spoken_bytes(piece: Mapping[str, object]) -> int:
    size = len(text(piece.get("text")).encode(errors="replace"))
    call = piece.get("functionCall")
    return size + len(orjson.dumps(call, default=str)) if isinstance(call, dict) else size
