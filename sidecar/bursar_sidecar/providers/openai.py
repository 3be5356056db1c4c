"""OpenAI's API, and the many that copy it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial

import orjson

from bursar_sidecar.providers.base import NO_HEADERS, ApiCall, Later, Problem, Reader
from bursar_sidecar.providers.openai_chat import CHAT, ChatStream
from bursar_sidecar.providers.openai_media import MEDIA, MediaStream
from bursar_sidecar.providers.openai_responses import RESPONSE, ResponseStream
from bursar_sidecar.providers.output_limit import lowered
from bursar_sidecar.providers.readers import JsonReader, ReadAgain, document, reader_for
from bursar_sidecar.providers.request import Request, positive
from bursar_sidecar.usage import count, text

CHAT_COMPLETIONS = "openai.chat_completions"
COMPLETIONS = "openai.completions"
RESPONSES = "openai.responses"
EMBEDDINGS = "openai.embeddings"
IMAGES = "openai.images"
TRANSCRIPTIONS = "openai.audio_transcriptions"
SPEECH = "openai.audio_speech"
READ_AGAIN = "openai.responses_read"
OTHER = "openai.other"

#: What a legacy completion is limited to when the request sets no `max_tokens` (API reference).
_COMPLETIONS_DEFAULT_TOKENS = 16

#: What each API calls its output limit; the first name is inserted where a request has none.
_LIMITS = {
    CHAT_COMPLETIONS: ("max_completion_tokens", "max_tokens"),
    COMPLETIONS: ("max_tokens",),
    RESPONSES: ("max_output_tokens",),
}

#: Paths by their ends. Moderations cost nothing (API reference), so they are not here.
_APIS = (
    ("/chat/completions", CHAT_COMPLETIONS),
    ("/v1/chat", CHAT_COMPLETIONS),
    ("/fim/completions", CHAT_COMPLETIONS),  # Mistral's, and so are agents: they answer as a chat does
    ("/agents/completions", CHAT_COMPLETIONS),
    ("/completions", COMPLETIONS),
    ("/responses", RESPONSES),
    ("/responses/compact", RESPONSES),
    ("/embeddings", EMBEDDINGS),
    ("/rerank", EMBEDDINGS),
    ("/images", IMAGES),
    ("/images/generations", IMAGES),
    ("/images/edits", IMAGES),
    ("/images/variations", IMAGES),
    ("/audio/transcriptions", TRANSCRIPTIONS),
    ("/audio/translations", TRANSCRIPTIONS),
    ("/audio/speech", SPEECH),
)

#: Reading a response by its id, and stopping it.
_RESPONSE = re.compile(r"/responses/([^/]+)(/cancel)?$")

_MEDIA = (IMAGES, TRANSCRIPTIONS, SPEECH)

#: What is stored can be read again under its id; the usage in it is the same (see `stored_responses`).
_STORED_RESPONSE = Later(partial(JsonReader, shape=RESPONSE), "/{id}")
_STORED_CHAT = Later(partial(JsonReader, shape=CHAT), "/{id}")

#: Azure's name of a model, where the request itself names none.
_DEPLOYMENT = re.compile(r"/deployments/([^/]+)/")


class OpenAI:
    """The dialect of `api.openai.com`.

    `inserts_usage`: whether the upstream reports a stream's usage only when `stream_options.include_usage` asks; None
    where that is found out: from the first whole stream that reports none it is asked.
    """

    def __init__(self, inserts_usage: bool | None = True) -> None:
        self._inserts_usage = bool(inserts_usage)
        self._finds_out = inserts_usage is None

    @property
    def name(self) -> str:
        """The name that the configuration uses."""
        return "openai"

    def speaks(self, path: str) -> bool:
        """Return whether a path is one of OpenAI's."""
        return _api("POST", path) is not OTHER

    def open(self, method: str, path: str, query: str, headers: Mapping[str, str], body: bytes) -> ApiCall:  # noqa: ARG002
        """Read a request. Only creating is metered: reading a response again repeats a usage already billed."""
        api = _api(method, path)
        work = _RESPONSE.search(path) if api is OTHER else None
        if work is not None and method == ("POST" if work.group(2) else "GET"):
            return ApiCall(
                READ_AGAIN, False, "", "stream=true" in query, 0, None, body=body, work_id=work.group(1)
            )
        metered = api is not OTHER
        request = Request(body)
        asked = request.document
        stream = asked.get("stream") is True
        inserted = (
            self._inserts_usage
            and stream
            and api in (CHAT_COMPLETIONS, COMPLETIONS)
            and request.include_usage()
        )
        return ApiCall(
            api=api,
            metered=metered,
            model=text(asked.get("model")) or request.form_field("model") or _deployment(path),
            stream=stream,
            input_tokens_estimate=request.input_tokens_estimate if metered else 0,
            max_output_tokens=_max_output_tokens(api, asked),
            tags=request.tags,
            user=text(asked.get("user")) or None,
            body=request.edited(),
            usage_inserted=inserted,
            fits_output=api in _LIMITS and bool(asked),
        )

    def with_output_limit(self, call: ApiCall, tokens: int) -> ApiCall | None:
        """Return `call` with a lower limit; it is per choice, so that several choices share `tokens`."""
        choices = 1 if call.api == RESPONSES else _choices(document(call.body) or {})
        limit = tokens // choices
        if limit < 1:
            return None
        body = lowered(call.body, _LIMITS[call.api], limit)
        return call._replace(body=body, max_output_tokens=limit * choices)

    def reader(
        self,
        call: ApiCall,
        status: int,
        content_type: str,
        headers: Mapping[str, str] = NO_HEADERS,  # noqa: ARG002
    ) -> Reader:
        """Return a fresh reader for the answer to `call`."""
        if call.api == READ_AGAIN:
            return ReadAgain(call, status, content_type, RESPONSE, ResponseStream)
        if call.api in _MEDIA:
            return reader_for(call, status, content_type, MEDIA, MediaStream)
        if call.api == RESPONSES:
            return reader_for(call, status, content_type, RESPONSE, ResponseStream)
        if self._finds_out and not self._inserts_usage and b'"include_usage"' not in call.body:
            return reader_for(
                call, status, content_type, CHAT, partial(ChatStream, silent=self._ask_from_now_on)
            )
        return reader_for(call, status, content_type, CHAT, ChatStream)

    def _ask_from_now_on(self) -> None:
        self._inserts_usage = True

    def credential_headers(self, api_key: str) -> dict[str, str]:
        """Return a bearer token."""
        return {"authorization": f"Bearer {api_key}"}

    def error_body(self, problem: Problem, stream: bool) -> bytes:  # noqa: ARG002
        """Return OpenAI's error shape; details stand beside its four members."""
        error = {"message": problem.message, "type": problem.type, "param": None, "code": problem.code}
        return orjson.dumps({"error": {**problem.details, **error}})


def stored_responses(call: ApiCall, path: str) -> Later | None:
    """Return how a response is read again, which is stored unless the request says `store: false`.

    So do OpenAI (API reference, "Get a model response"), Azure ("Use the Azure OpenAI Responses API", "Retrieve a
    response") and xAI ("Generate Text": stored for 30 days, on by default). One whose stream the app broke off is
    finished all the same, and then has its usage.
    """
    stored = call.api == RESPONSES and path.rstrip("/").endswith("/responses") and _store(call) is not False
    return _STORED_RESPONSE if stored else None


def stored(call: ApiCall, path: str) -> Later | None:
    """Return how OpenAI's own answers are read again: responses, and chat completions made with `store: true`.

    OpenAI's API reference: "Get a model response", "Get chat completion".
    """
    if call.api == CHAT_COMPLETIONS and _store(call) is True:
        return _STORED_CHAT
    return stored_responses(call, path)


def _store(call: ApiCall) -> object:
    return (document(call.body) or {}).get("store") if b'"store"' in call.body else None


def _api(method: str, path: str) -> str:
    if method != "POST":
        return OTHER
    path = path.rstrip("/")
    return next((api for ending, api in _APIS if path.endswith(ending)), OTHER)


def _deployment(path: str) -> str:
    found = _DEPLOYMENT.search(path)
    return found.group(1) if found is not None else ""


def _max_output_tokens(api: str, asked: Mapping[str, object]) -> int | None:
    """Return the most output tokens the answer can have, over all its choices."""
    if api == EMBEDDINGS:
        return 0
    if api == RESPONSES:
        return positive(asked.get("max_output_tokens"))
    limit = positive(asked.get("max_completion_tokens")) or positive(asked.get("max_tokens"))
    if api == COMPLETIONS:
        limit = limit or _COMPLETIONS_DEFAULT_TOKENS
    elif api != CHAT_COMPLETIONS or limit is None:
        return None
    return limit * _choices(asked)


def _choices(asked: Mapping[str, object]) -> int:
    return max(count(asked.get("n")), count(asked.get("best_of")), 1)
