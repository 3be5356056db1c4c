"""Cohere's API, both versions: what it bills is in `billed_units`."""

from __future__ import annotations

import re
from collections.abc import Mapping

import orjson

from bursar_sidecar.providers.base import NO_HEADERS, ApiCall, Problem, Reader, Usage
from bursar_sidecar.providers.frames import LineSplitter
from bursar_sidecar.providers.json_scan import ANYWHERE
from bursar_sidecar.providers.output_limit import lowered
from bursar_sidecar.providers.readers import Document, JsonShape, UndecidedReader, document, reader_for
from bursar_sidecar.providers.request import Request, positive
from bursar_sidecar.providers.streams import Splits, StreamReader
from bursar_sidecar.usage import Findings, clamped, count, part, parts, text

_PATH = re.compile(r"(?:^|/)v[12]/(chat|generate|embed|rerank|classify|summarize)/?$")
_WRITES = frozenset({"chat", "generate", "summarize"})
_OTHER = "cohere.other"


def cohere_usage(meta: Mapping[str, object]) -> Usage | None:
    """Return the `billed_units` of a `meta` or `usage` object as usage, else its `tokens`; None where it has neither.

    Searches and classifications are billed by the piece: they count as requests.
    """
    tokens = part(meta.get("tokens"))
    billed = part(meta.get("billed_units")) or tokens
    if not billed:
        return None
    images = count(billed.get("image_tokens"))
    pieces = count(billed.get("search_units")) or count(billed.get("classifications"))
    return clamped(
        Usage(
            input_tokens=count(billed.get("input_tokens")) + images,
            output_tokens=count(billed.get("output_tokens")),
            reasoning_tokens=count(tokens.get("reasoning_tokens")),
            input_image_tokens=images,
            requests=pieces or 1,
        )
    )


def read_answer(answer: Document, found: Findings) -> None:
    """Note what an answer says. It never names its model."""
    meta = part(answer.get("usage")) or part(answer.get("meta"))
    usage = cohere_usage(meta)
    if usage is not None:
        found.usage = usage
        return
    found.say(*_spoken(answer))


def _place(found: Document, key: str, depth: int, value: object) -> None:
    if depth == 1 and key != "text":
        found[key] = value
    elif key == "text":
        found["text"] = text(found.get("text")) + text(value)


ANSWER = JsonShape(read=read_answer, wanted={b"usage": 1, b"meta": 1, b"text": ANYWHERE}, place=_place)


class CohereStream(StreamReader):
    """A stream of version 2 (events) or of version 1 (one object a line, or events); its last object has the bill."""

    def __init__(self, call: ApiCall, status: int, splitter: Splits | None = None) -> None:
        super().__init__(call, status, splitter)
        self._lines = splitter is not None

    def _event(self, block: bytes) -> bytes:
        if b'"message-end"' in block or b'"is_finished"' in block:
            event = self._document(block) or {}
            if event.get("type") == "message-end":
                return self._finish(block, part(event.get("delta")))
            if event.get("is_finished") is True:
                return self._finish(block, {**event, **part(event.get("response"))})
        if b"error" in block and not self._lines:
            self._read_error(block)
        return self._content(block)

    def _finish(self, block: bytes, last: Mapping[str, object]) -> bytes:
        usage = cohere_usage(part(last.get("usage")) or part(last.get("meta")))
        if usage is not None:
            self._found.usage, self._found.final = usage, True
        reason = text(last.get("finish_reason")).upper()
        self._found.failed = reason.startswith("ERROR")
        self._found.finished = True
        return self._hold(block)

    def _document(self, block: bytes) -> Document | None:
        return document(block) if self._lines else super()._document(block)

    def _read_content(self, event: Document) -> None:
        self._found.say(*_spoken(event), *_spoken(part(part(event.get("delta")).get("message"))))


class Cohere:
    """The dialect of `api.cohere.com`."""

    @property
    def name(self) -> str:
        """The name that the configuration uses."""
        return "cohere"

    def speaks(self, path: str) -> bool:
        """Return whether a path is one of Cohere's."""
        return _PATH.search(path) is not None

    def open(self, method: str, path: str, query: str, headers: Mapping[str, str], body: bytes) -> ApiCall:  # noqa: ARG002
        """Read a request; writing, embedding, ranking and classifying are metered."""
        found = _PATH.search(path)
        verb = found.group(1) if found is not None and method == "POST" else ""
        request = Request(body)
        asked = request.document
        writes = verb in _WRITES
        return ApiCall(
            api=f"cohere.{verb}" if verb else _OTHER,
            metered=bool(verb),
            model=text(asked.get("model")),
            stream=asked.get("stream") is True,
            input_tokens_estimate=request.input_tokens_estimate if verb else 0,
            max_output_tokens=positive(asked.get("max_tokens")) if writes else 0,
            tags=request.tags,
            body=request.edited(),
            fits_output=writes and bool(asked),
        )

    def with_output_limit(self, call: ApiCall, tokens: int) -> ApiCall | None:
        """Return `call` with a lower limit, which must stay above the thinking that was asked for."""
        thinking = part((document(call.body) or {}).get("thinking"))
        if tokens <= count(thinking.get("token_budget")):
            return None
        return call._replace(body=lowered(call.body, ("max_tokens",), tokens), max_output_tokens=tokens)

    def reader(
        self,
        call: ApiCall,
        status: int,
        content_type: str,
        headers: Mapping[str, str] = NO_HEADERS,  # noqa: ARG002
    ) -> Reader:
        """Return a fresh reader for the answer to `call`; a stream is of events or of lines."""
        if call.metered and call.stream and 200 <= status < 300:
            if "event-stream" in content_type:
                return CohereStream(call, status)
            return UndecidedReader(
                lambda: CohereStream(call, status, LineSplitter()), lambda: CohereStream(call, status)
            )
        return reader_for(call, status, content_type, ANSWER, CohereStream)

    def credential_headers(self, api_key: str) -> dict[str, str]:
        """Return a bearer token."""
        return {"authorization": f"Bearer {api_key}"}

    def error_body(self, problem: Problem, stream: bool) -> bytes:  # noqa: ARG002
        """Return Cohere's error shape, a message; the code and the details stand beside it."""
        return orjson.dumps(
            {**problem.details, "message": problem.message, "code": problem.code, "type": problem.type}
        )


def _spoken(said: Mapping[str, object]) -> list[str]:
    """Return the text in one message or piece of it, of either version."""
    content = said.get("content")
    spoken = [text(said.get(name)) for name in ("text", "tool_plan")]
    for one in (part(content), *parts(content), *parts(said.get("generations"))):
        spoken += [text(one.get("text")), text(one.get("thinking"))]
    calls = said.get("tool_calls")
    for call in (part(calls), *parts(calls)):
        function = part(call.get("function"))
        spoken += [text(function.get("name")), text(function.get("arguments"))]
    message = said.get("message")
    return spoken + (_spoken(message) if isinstance(message, dict) else [])
