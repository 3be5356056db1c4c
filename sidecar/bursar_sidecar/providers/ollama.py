"""Ollama's own API: JSON, or one JSON object a line."""

from __future__ import annotations

from collections.abc import Mapping

import orjson

from bursar_sidecar.providers.base import NO_HEADERS, ApiCall, Problem, Reader, Usage
from bursar_sidecar.providers.frames import LineSplitter
from bursar_sidecar.providers.json_scan import ANYWHERE
from bursar_sidecar.providers.output_limit import lowered
from bursar_sidecar.providers.readers import Document, JsonReader, JsonShape, document, reader_for
from bursar_sidecar.providers.request import Request, positive
from bursar_sidecar.providers.streams import StreamReader
from bursar_sidecar.tokens import json_text
from bursar_sidecar.usage import Findings, count, part, parts, text

_CHAT = "ollama.chat"
_GENERATE = "ollama.generate"
_EMBED = "ollama.embed"
_APIS = {
    "/api/chat": _CHAT,
    "/api/generate": _GENERATE,
    "/api/embed": _EMBED,
    "/api/embeddings": _EMBED,
}
_OTHER = "ollama.other"


def read_answer(answer: Document, found: Findings) -> None:
    """Note what an object says: the last one counts, and can leave the prompt's count out (it was cached)."""
    found.model = text(answer.get("model")) or found.model
    found.failed = found.failed or bool(answer.get("error"))
    found.finished = found.finished or answer.get("done") is True
    if "eval_count" in answer or "prompt_eval_count" in answer:
        found.usage = Usage(
            input_tokens=count(answer.get("prompt_eval_count")),
            output_tokens=count(answer.get("eval_count")),
            requests=1,
        )
        found.input_unknown = "prompt_eval_count" not in answer
    else:
        message = part(answer.get("message"))
        spoken = [text(answer.get("response")), text(answer.get("thinking"))]
        spoken += [text(message.get("content")), text(message.get("thinking"))]
        calls = [part(one.get("function")) for one in parts(message.get("tool_calls"))]
        spoken += [json_text(one) for one in calls]
        found.say(*spoken)


def _place(found: Document, key: str, depth: int, value: object) -> None:
    if key in ("content", "thinking"):
        found["message"] = {key: value}
    elif depth == 1:
        found[key] = value


ANSWER = JsonShape(
    read=read_answer,
    wanted={
        b"model": 1,
        b"error": 1,
        b"done": 1,
        b"prompt_eval_count": 1,
        b"eval_count": 1,
        b"response": 1,
        b"content": ANYWHERE,
    },
    place=_place,
)


class LineStream(StreamReader):
    """One object a line; the one that says `"done": true` ends the stream and has the counts."""

    def __init__(self, call: ApiCall, status: int) -> None:
        super().__init__(call, status, LineSplitter())

    def _event(self, block: bytes) -> bytes:
        if b'"done"' in block or b'"error"' in block:
            event = self._document(block)
            if event is not None and event.get("done") is True:
                read_answer(event, self._found)
                self._found.final = self._found.usage is not None
                return self._hold(block)
            if event is not None and event.get("error"):
                self._found.failed = True
        return self._content(block)

    def _document(self, block: bytes) -> Document | None:
        return document(block)

    def _read_content(self, event: Document) -> None:
        read_answer(event, self._found)


class Ollama:
    """The dialect of Ollama; a request that does not say otherwise asks for a stream."""

    @property
    def name(self) -> str:
        """The name that the configuration uses."""
        return "ollama"

    def speaks(self, path: str) -> bool:
        """Return whether a path is one of Ollama's."""
        return _api("POST", path) is not _OTHER

    def open(self, method: str, path: str, query: str, headers: Mapping[str, str], body: bytes) -> ApiCall:  # noqa: ARG002
        """Read a request; chatting, generating and embedding are metered."""
        api = _api(method, path)
        request = Request(body)
        asked = request.document
        metered = api is not _OTHER
        limit = positive(part(asked.get("options")).get("num_predict"))
        return ApiCall(
            api=api,
            metered=metered,
            model=text(asked.get("model")),
            stream=api in (_CHAT, _GENERATE) and asked.get("stream") is not False,
            input_tokens_estimate=request.input_tokens_estimate if metered else 0,
            max_output_tokens=0 if api == _EMBED else limit,
            tags=request.tags,
            body=request.edited(),
            fits_output=api in (_CHAT, _GENERATE) and bool(asked),
        )

    def with_output_limit(self, call: ApiCall, tokens: int) -> ApiCall | None:
        """Return `call` with a lower limit."""
        body = lowered(call.body, ("num_predict",), tokens, ("options",))
        return call._replace(body=body, max_output_tokens=tokens)

    def reader(
        self,
        call: ApiCall,
        status: int,
        content_type: str,
        headers: Mapping[str, str] = NO_HEADERS,  # noqa: ARG002
    ) -> Reader:
        """Return a fresh reader for the answer to `call`; what asked for a stream and worked is one."""
        if call.metered and call.stream and 200 <= status < 300:
            return LineStream(call, status)
        if call.metered:
            return JsonReader(call, status, ANSWER)
        return reader_for(call, status, content_type, ANSWER, LineStream)

    def credential_headers(self, api_key: str) -> dict[str, str]:
        """Return a bearer token (Ollama's cloud; a server of one's own asks for none)."""
        return {"authorization": f"Bearer {api_key}"}

    def error_body(self, problem: Problem, stream: bool) -> bytes:  # noqa: ARG002
        """Return Ollama's error shape, a text; the code and the details stand beside it."""
        return orjson.dumps(
            {**problem.details, "error": problem.message, "code": problem.code, "type": problem.type}
        )


def _api(method: str, path: str) -> str:
    found = next((api for ending, api in _APIS.items() if path.rstrip("/").endswith(ending)), _OTHER)
    return found if method == "POST" else _OTHER
