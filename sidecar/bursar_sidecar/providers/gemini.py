"""Google's Gemini API (`generativelanguage.googleapis.com`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from urllib.parse import unquote

import orjson

from bursar_sidecar.providers.base import NO_HEADERS, ApiCall, Later, Problem, Reader
from bursar_sidecar.providers.gemini_answers import ANSWER, ArrayStream, GeminiStream
from bursar_sidecar.providers.gemini_interactions import INTERACTION, InteractionStream
from bursar_sidecar.providers.output_limit import lowered
from bursar_sidecar.providers.readers import JsonReader, ReadAgain, UndecidedReader, document, reader_for
from bursar_sidecar.providers.request import Request, positive
from bursar_sidecar.usage import count, part, text

_PATH = re.compile(r"(?:^|/)(?:models|tunedModels|endpoints)/([^/:]+):(\w+)$")
_INTERACTIONS = re.compile(r"(?:^|/)interactions(?:/([^/]+)(/cancel)?)?$")

_EMBED = "gemini.embed_content"
INTERACTIONS = "gemini.interactions"
READ_AGAIN = "gemini.interactions_read"

#: Both spellings of proto3 JSON, the usual one first.
_CONFIGS = ("generationConfig", "generation_config")
_LIMITS = ("maxOutputTokens", "max_output_tokens")

#: Verbs of a model, each with the API's name here and whether an answer is metered.
_VERBS = {
    "generateContent": ("gemini.generate_content", True),
    "streamGenerateContent": ("gemini.stream_generate_content", True),
    "embedContent": (_EMBED, True),
    "batchEmbedContents": (_EMBED, True),
    "predict": (_EMBED, True),
    "countTokens": ("gemini.count_tokens", False),
}

#: google.rpc.Code names by HTTP status (google/rpc/code.proto; it has none for 402).
_STATUS_NAMES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    402: "RESOURCE_EXHAUSTED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    408: "DEADLINE_EXCEEDED",
    409: "ABORTED",
    413: "INVALID_ARGUMENT",
    415: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


class Gemini:
    """The dialect of Gemini: the model and the verb are in the path."""

    @property
    def name(self) -> str:
        """The name that the configuration uses."""
        return "gemini"

    def speaks(self, path: str) -> bool:
        """Return whether a path is one of Gemini's: a verb of a model, or an interaction."""
        path = unquote(path)
        return _PATH.search(path) is not None or _INTERACTIONS.search(path) is not None

    def open(self, method: str, path: str, query: str, headers: Mapping[str, str], body: bytes) -> ApiCall:  # noqa: ARG002
        """Read a request; generating and embedding are metered."""
        path = unquote(path)
        found = _PATH.search(path)
        request = Request(body)
        interaction = _INTERACTIONS.search(path)
        if interaction is not None and method in ("GET", "POST"):
            work_id, cancels = interaction.groups()
            if work_id is None and method == "POST":
                return _interaction(request)
            if work_id is not None and method == ("POST" if cancels else "GET"):
                stream = "stream=true" in query
                return ApiCall(READ_AGAIN, False, "", stream, 0, None, body=body, work_id=work_id)
        model, verb = (found.group(1), found.group(2)) if found is not None else ("", "")
        api, metered = _VERBS.get(verb, ("gemini.other", False))
        metered = metered and method == "POST"
        return ApiCall(
            api=api,
            metered=metered,
            model=model,
            stream=verb == "streamGenerateContent",
            input_tokens_estimate=request.input_tokens_estimate if metered else 0,
            max_output_tokens=_max_output_tokens(api, request.document) if metered else None,
            tags=request.tags,
            body=request.edited(),
            fits_output=metered and api != _EMBED and bool(request.document),
        )

    def with_output_limit(self, call: ApiCall, tokens: int) -> ApiCall | None:
        """Return `call` with a lower limit; it is per candidate, so that several candidates share `tokens`."""
        candidates = _candidates(_config(document(call.body) or {}))
        limit = tokens // candidates
        if limit < 1:
            return None
        body = lowered(call.body, _LIMITS, limit, _CONFIGS)
        return call._replace(body=body, max_output_tokens=limit * candidates)

    def reader(
        self,
        call: ApiCall,
        status: int,
        content_type: str,
        headers: Mapping[str, str] = NO_HEADERS,  # noqa: ARG002
    ) -> Reader:
        """Return a fresh reader; a stream that is not SSE is one JSON array."""
        if call.api == READ_AGAIN:
            return ReadAgain(call, status, content_type, INTERACTION, InteractionStream)
        if call.api == INTERACTIONS:
            return reader_for(call, status, content_type, INTERACTION, InteractionStream)
        if call.metered and call.stream and "json" in content_type and 200 <= status < 300:
            return UndecidedReader(
                lambda: JsonReader(call, status, ANSWER), lambda: ArrayStream(call, status), _is_array
            )
        return reader_for(call, status, content_type, ANSWER, GeminiStream)

    def credential_headers(self, api_key: str) -> dict[str, str]:
        """Return Google's own header."""
        return {"x-goog-api-key": api_key}

    def error_body(self, problem: Problem, stream: bool) -> bytes:  # noqa: ARG002
        """Return Google's error shape: `code` stays the number, the code for programs is the ErrorInfo's reason."""
        info = {
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": problem.code,
            "domain": "bursar.dev",
            "metadata": {name: _metadata_text(value) for name, value in problem.details.items()},
        }
        details: list[object] = [info]
        if problem.retry_after_seconds is not None and problem.should_retry is not False:
            delay = f"{problem.retry_after_seconds}s"
            details.append({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay})
        error = {
            "code": problem.status,
            "message": problem.message,
            "status": _STATUS_NAMES.get(problem.status, "UNKNOWN"),
            "details": details,
        }
        return orjson.dumps({"error": error})


#: The same interaction under its id, with its usage.
_STORED_INTERACTION = Later(partial(JsonReader, shape=INTERACTION), "/{id}")


def stored_interaction(call: ApiCall, path: str) -> Later | None:  # noqa: ARG001
    """Return how an interaction is read again, which is stored unless the request says `store: false`.

    Gemini API, "Interactions API": stored by default, `interactions.get`.
    """
    if call.api != INTERACTIONS:
        return None
    store = (document(call.body) or {}).get("store") if b'"store"' in call.body else None
    return None if store is False else _STORED_INTERACTION


def _is_array(first: bytes) -> bool | None:
    begins = first.lstrip()[:1]
    return None if not begins else begins == b"["


def _interaction(request: Request) -> ApiCall:
    """Return a call of the Interactions API, which names its model in the body (an agent where it has none)."""
    asked = request.document
    return ApiCall(
        api=INTERACTIONS,
        metered=True,
        model=text(asked.get("model")) or text(asked.get("agent")),
        stream=asked.get("stream") is True,
        input_tokens_estimate=request.input_tokens_estimate,
        max_output_tokens=positive(part(asked.get("generation_config")).get("max_output_tokens")),
        tags=request.tags,
        body=request.edited(),
    )


def _metadata_text(value: object) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _max_output_tokens(api: str, asked: Mapping[str, object]) -> int | None:
    """Return the most output tokens over all candidates; both spellings of proto3 JSON are read."""
    if api == _EMBED:
        return 0
    config = _config(asked)
    limit = positive(config.get("maxOutputTokens")) or positive(config.get("max_output_tokens"))
    return None if limit is None else limit * _candidates(config)


def _config(asked: Mapping[str, object]) -> Mapping[str, object]:
    return part(asked.get("generationConfig")) or part(asked.get("generation_config"))


def _candidates(config: Mapping[str, object]) -> int:
    return max(count(config.get("candidateCount")) or count(config.get("candidate_count")), 1)
