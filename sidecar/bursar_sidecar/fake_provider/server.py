"""The fake provider's HTTP side."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import orjson
from aiohttp import web

from bursar_sidecar.fake_provider import anthropic_messages, gemini_content, openai_chat, openai_responses
from bursar_sidecar.fake_provider.errors import BadRequestError, api_of, error_body
from bursar_sidecar.fake_provider.knobs import Knobs, bent
from bursar_sidecar.fake_provider.plan import Document, Plan, plan, wish_of
from bursar_sidecar.fake_provider.served import Call, Served
from bursar_sidecar.fake_provider.wire import Answer, json_answer

MODELS = {
    "openai": ("gpt-4o", "gpt-4o-mini", "gpt-5", "o4-mini", "text-embedding-3-small"),
    "anthropic": ("claude-opus-4-8", "claude-sonnet-5", "claude-haiku-4-5"),
    "gemini": ("gemini-2.5-pro", "gemini-2.5-flash", "gemini-2.0-flash", "gemini-embedding-001"),
}

_BODY_MAX_BYTES = 64 << 20

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Settings:
    """How the fake provider behaves where a request asks for nothing else."""

    latency_ms: int = 0
    seed: int = 0


def application(settings: Settings, served: Served) -> web.Application:
    """Return the application; `served` remembers its calls."""
    app = web.Application(client_max_size=_BODY_MAX_BYTES)

    async def provide(request: web.Request) -> web.StreamResponse:
        return await _provide(request, settings, served)

    async def show(_request: web.Request) -> web.Response:
        return _json([call.shown() for call in served.calls])

    async def reset(_request: web.Request) -> web.Response:
        served.calls.clear()
        return web.Response(status=204)

    async def health(_request: web.Request) -> web.Response:
        return web.Response(text="ok")

    app.router.add_get("/__served", show)
    app.router.add_post("/__reset", reset)
    app.router.add_get("/healthz", health)
    app.router.add_route("*", "/{path:.*}", provide)
    return app


async def _provide(request: web.Request, settings: Settings, served: Served) -> web.StreamResponse:
    api = api_of(request.path, request.headers)
    call = served.begin(request.method, request.path, request.query, request.headers)
    call.body = await request.read()
    try:
        knobs = Knobs.of(request.headers)
        latency_ms = settings.latency_ms if knobs.latency_ms is None else knobs.latency_ms
        if latency_ms:
            await asyncio.sleep(latency_ms / 1000)
        _admit(call, knobs)
        answer = _answer(api, request, call, knobs, settings)
        answer = bent(answer, knobs, error_body(api, 500, "The model broke off.", call.request_id))
        return await _send(request, call, answer, knobs)
    except (BadRequestError, ValueError) as error:
        status = error.status if isinstance(error, BadRequestError) else 400
        return _refuse(api, call, status, str(error), request.headers.get("x-fake-retry-after"))
    finally:
        served.end(call)


def _admit(call: Call, knobs: Knobs) -> None:
    if not call.credential_sha256:
        raise BadRequestError(401, "No API key was provided.")
    if knobs.status is not None and knobs.status >= 400:
        raise BadRequestError(knobs.status, f"This is the error {knobs.status} that was asked for.")


def _answer(api: str, request: web.Request, call: Call, knobs: Knobs, settings: Settings) -> Answer:
    path = request.path.rstrip("/")
    if request.method == "GET":
        return _models(api, path)
    body = _document(call.body)
    wish = wish_of(path, body)
    if not wish.model:
        raise BadRequestError(400, "model: you must name a model.")
    call.model = knobs.model or wish.model
    planned = plan(wish, settings.seed, knobs.output_tokens)
    if path.endswith("/messages") and wish.max_output_tokens is None:
        raise BadRequestError(400, "max_tokens: Field required")
    answer, billed = _generated(request, path, call.model, body, planned, not knobs.no_usage)
    call.usage = planned.usage() if billed else None
    call.stream = answer.stream
    return answer


def _generated(
    request: web.Request, path: str, model: str, body: Document, planned: Plan, reports_usage: bool
) -> tuple[Answer, bool]:
    """Return the answer of the path, and whether the provider would bill it."""
    verb = path.rpartition(":")[2]
    if verb == "generateContent":
        return gemini_content.content_answer(model, planned), True
    if verb == "streamGenerateContent":
        return gemini_content.stream_answer(model, planned, request.query.get("alt") == "sse"), True
    if verb in ("embedContent", "batchEmbedContents"):
        return gemini_content.embed_answer(body, planned, verb == "batchEmbedContents"), True
    if verb == "countTokens":
        return gemini_content.count_answer(planned), False
    if path.endswith("/chat/completions"):
        return openai_chat.chat_answer(model, body, planned, reports_usage), True
    if path.endswith("/completions"):
        return openai_chat.completion_answer(model, body, planned, reports_usage), True
    if path.endswith("/responses"):
        return openai_responses.response_answer(model, body, planned), True
    if path.endswith("/embeddings"):
        return openai_chat.embeddings_answer(model, body, planned), True
    if path.endswith("/messages/count_tokens"):
        return anthropic_messages.count_answer(planned), False
    if path.endswith("/messages"):
        return anthropic_messages.message_answer(model, body, planned), True
    raise BadRequestError(404, f"There is nothing at {path}.")


def _models(api: str, path: str) -> Answer:
    names = MODELS[api]
    if not path.endswith("/models"):
        name = path.rpartition("/models/")[2]
        if name not in names:
            raise BadRequestError(404, f"There is nothing at {path}.")
        return json_answer({"id": name, "object": "model", "created": 1_767_225_600, "owned_by": "system"})
    if api == "gemini":
        return gemini_content.models_answer(names)
    return anthropic_messages.models_answer(names) if api == "anthropic" else openai_chat.models_answer(names)


def _document(body: bytes) -> Document:
    try:
        found = orjson.loads(body)
    except ValueError:
        raise BadRequestError(400, "The body is not valid JSON.") from None
    if not isinstance(found, dict):
        raise BadRequestError(400, "The body is not a JSON object.")
    return found


async def _send(request: web.Request, call: Call, answer: Answer, knobs: Knobs) -> web.StreamResponse:
    call.status = 200
    headers = {"content-type": answer.content_type, "x-request-id": call.request_id}
    headers["request-id"] = call.request_id
    if knobs.gzip:
        headers["content-encoding"] = "gzip"
    response = web.StreamResponse(headers=headers)
    if not answer.stream:
        response.content_length = sum(map(len, answer.pieces))
    await response.prepare(request)
    left = knobs.abort_after_bytes
    for number, piece in enumerate(answer.pieces):
        if number and knobs.pace_ms:
            await asyncio.sleep(knobs.pace_ms / 1000)
        if left is not None:
            piece, left = piece[:left], left - len(piece[:left])
        await response.write(piece)
        call.sent_bytes += len(piece)
        if left == 0:
            return await _abort(request, response)
    await response.write_eof()
    call.completed = True
    return response


async def _abort(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    """Break the connection so that everything written so far still arrives."""
    if request.transport is not None:
        await asyncio.sleep(0.01)  # let the kernel take what was written; a reset would discard it
        request.transport.close()
    return response


def _refuse(api: str, call: Call, status: int, message: str, retry_after: str | None) -> web.Response:
    call.status, call.completed = status, True
    body = error_body(api, status, message, call.request_id)
    headers = {"x-request-id": call.request_id, "request-id": call.request_id}
    if retry_after is not None:
        headers["retry-after"] = retry_after
    call.sent_bytes = len(body)
    return web.Response(body=body, status=status, content_type="application/json", headers=headers)


def _json(value: object) -> web.Response:
    return web.Response(body=orjson.dumps(value), content_type="application/json")
