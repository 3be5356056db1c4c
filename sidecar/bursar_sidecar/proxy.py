"""Takes a request from an app, asks the gate, and lets an exchange do the rest."""

from __future__ import annotations

import asyncio

from aiohttp import web
from aiohttp.web_protocol import RequestPayloadError
from multidict import istr

from bursar_sidecar import denial
from bursar_sidecar.attribution import AttributionError, attribution_of, body_user_of
from bursar_sidecar.credentials import (
    Caller,
    caller_of,
    has_credentials,
    provider_credential,
    query_without_key,
    without_credentials,
)
from bursar_sidecar.decoding import DecodingError, UnknownCodingError, decoded
from bursar_sidecar.exchange import Exchange, Forward, Terms, refusal
from bursar_sidecar.gate import OpenCall
from bursar_sidecar.headers import CONTENT_ENCODING, upstream_headers
from bursar_sidecar.ids import RequestIds
from bursar_sidecar.messages import Ask
from bursar_sidecar.providers.base import ApiCall, Dialect, InvalidTags, Problem, dialect_named
from bursar_sidecar.routes import Route, RouteError, Router
from bursar_sidecar.signing import Signer, SigningError
from bursar_sidecar.watch import has_left

_COMMENT = istr("x-bursar-comment")
_EXPECT = istr("Expect")
_UPGRADE = istr("Upgrade")
#: Dialects whose SDKs pass over comments in a stream (contract: others never get one).
_COMMENTED = frozenset({"openai", "anthropic"})
#: What providers' APIs use. TRACE would show an app the provider's credential, CONNECT open a tunnel with it.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Proxy:
    """The reverse proxy: `handle` answers one request, `tick` looks after those that are under way."""

    def __init__(
        self,
        terms: Terms,
        router: Router,
        ids: RequestIds,
        *,
        carried_key_sha256: str | None,
        request_max_bytes: int,
        body_timeout_s: float,
    ) -> None:
        self._terms = terms
        self._router = router
        self._ids = ids
        self._carried_key_sha256 = carried_key_sha256
        self._request_max_bytes = request_max_bytes
        self._body_timeout_s = body_timeout_s
        self._fallback = dialect_named("openai")
        self._exchanges: set[Exchange] = set()
        # Who waits for a Check's answer, and for which app.
        self._asking: dict[asyncio.Task[object], web.BaseRequest] = {}

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; every answer has the call's id."""
        request_id = self._ids.new()
        try:
            exchange = await self._begun(request, request_id)
            if isinstance(exchange, web.Response):
                return exchange
            self._exchanges.add(exchange)
            try:
                return await exchange.run()
            finally:
                self._exchanges.discard(exchange)
        except Exception:
            self._terms.logger.exception(
                "a defect of the sidecar", extra={"fields": {"request_id": request_id}}
            )
            if request.writer.output_size > 0:
                raise ConnectionResetError("the answer cannot be continued") from None
            return self._refuse(self._fallback, _defect(request_id), request_id)

    async def _begun(self, request: web.BaseRequest, request_id: str) -> Exchange | web.Response:
        """Return the exchange of a request that may be forwarded, or what the app is told."""
        try:
            route = self._router.route(request.raw_path)
        except RouteError as error:
            problem = (denial.not_found if error.status == 404 else denial.invalid_request)(str(error))
            return self._refuse(self._fallback, problem, request_id)
        dialect = route.upstream.dialect
        if request.method not in _METHODS:
            return self._refuse(dialect, _no_such_method(), request_id)
        caller = caller_of(request.headers, route.query, self._carried_key_sha256)
        if caller is None:
            return self._refuse(dialect, denial.unauthenticated(), request_id)
        if "websocket" in request.headers.get(_UPGRADE, "").lower():
            return self._refuse(dialect, _no_websockets(), request_id)
        body = await self._body(request)
        coding = request.headers.get(CONTENT_ENCODING)
        if coding and isinstance(body, bytes):
            body = self._decoded(body, coding)
        if isinstance(body, Problem):
            return self._refuse(dialect, body, request_id)
        return await self._opened(request, request_id, route, caller, body)

    def tick(self) -> None:
        """Look after the exchanges that are under way."""
        now = self._terms.clock.monotonic()
        for exchange in tuple(self._exchanges):
            exchange.watch.tick(now)
        for task, request in tuple(self._asking.items()):
            if has_left(request):
                task.cancel()

    def unreadable(self) -> web.Response:
        """Return the answer to what is no HTTP request."""
        problem = denial.invalid_request("this is no HTTP request that can be read")
        return self._refuse(self._fallback, problem, self._ids.new())

    async def _asked(self, request: web.BaseRequest, ask: Ask, request_id: str) -> OpenCall | Problem | None:
        """Ask the gate about a call, which may take as long as it waits for others; None if the app leaves meanwhile."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  (every request has one)
        self._asking[task] = request
        try:
            return await self._terms.gate.open_call(ask, request_id)
        except asyncio.CancelledError:
            if not has_left(request) or task.uncancel():
                raise
            self._terms.counts.app_disconnects += 1
            return None
        finally:
            del self._asking[task]

    async def _opened(
        self, request: web.BaseRequest, request_id: str, route: Route, caller: Caller, body: bytes
    ) -> Exchange | web.Response:
        """Ask the gate about the call; return its exchange if it opens."""
        dialect = route.upstream.dialect
        query = route.query
        if caller.own and query:
            query = query_without_key(query, every_key=route.upstream.key_in_query)
        try:
            asked = dialect.open(request.method, route.decoded_path, query, request.headers, body)
            said = attribution_of(request.headers, asked.tags)
        except InvalidTags as error:
            return self._refuse(dialect, denial.invalid_tags(error), request_id)
        except AttributionError as error:
            return self._refuse(dialect, denial.invalid_request(str(error)), request_id)
        ask = Ask(
            key_sha256=caller.key_sha256,
            provider=route.upstream.provider,
            model=asked.model,
            input_tokens_estimate=asked.input_tokens_estimate,
            max_output_tokens=asked.max_output_tokens if asked.metered else 0,
            tags=said.tags,
            session_id=said.session_id,
            user_id=said.user_id,
            body_user=body_user_of(asked.user),
            can_fit_output=asked.fits_output,
        )
        opened = await self._asked(request, ask, request_id)
        if opened is None:
            return web.Response()
        if isinstance(opened, Problem):
            return self._refuse(dialect, opened, request_id, asked.stream)
        forward: Forward | Problem | None = None
        try:
            forward = await self._prepared(request, route, caller, query, asked, opened)
        finally:
            if not isinstance(forward, Forward):
                self._terms.gate.release(opened)
        if isinstance(forward, Problem):
            return self._refuse(dialect, forward, opened.request_id, asked.stream)
        return Exchange(self._terms, request, forward, opened)

    async def _prepared(
        self,
        request: web.BaseRequest,
        route: Route,
        caller: Caller,
        query: str,
        asked: ApiCall,
        call: OpenCall,
    ) -> Forward | Problem:
        """Return an open call's request as it goes to the provider, or what the app is told where it cannot."""
        if call.fit_output_tokens is not None:
            fitted = route.upstream.dialect.with_output_limit(asked, call.fit_output_tokens)
            if fitted is None:
                return denial.output_too_short()
            asked = fitted
        forward = self._forward(request, route, caller, query, asked)
        signer = route.upstream.signer
        if signer is not None and (caller.own or not has_credentials(forward.headers, query)):
            forward.signer = signer
            problem = await self._signed(signer, forward, call)
            if problem is not None:
                return problem
        return forward

    async def _signed(self, signer: Signer, forward: Forward, call: OpenCall) -> Problem | None:
        """Put a credential made for it on the request; return what the app is told where that cannot be."""
        try:
            made = await signer.headers(forward.method, forward.url, forward.headers, forward.asked.body)
        except SigningError as error:
            fields = {"upstream": forward.upstream, "reason": str(error), "request_id": call.request_id}
            self._terms.logger.warning("a provider's credential cannot be made", extra={"fields": fields})
            return _no_credential(forward.upstream, error)
        without_credentials(forward.headers)
        provider_credential(made, forward.headers)
        return None

    def _forward(
        self, request: web.BaseRequest, route: Route, caller: Caller, query: str, asked: ApiCall
    ) -> Forward:
        """Return the request as it goes to the provider, with the provider's credential on it."""
        upstream = route.upstream
        headers = upstream_headers(request.headers)
        if caller.own:
            without_credentials(headers)
        if caller.own or not has_credentials(headers, query):
            provider_credential(upstream.credential_headers, headers)
        url = f"{upstream.origin}{upstream.base_path}{route.path}{'?' if query else ''}{query}"
        comments = upstream.dialect.name in _COMMENTED
        comment = comments and request.headers.get(_COMMENT, "").lower() == "on"
        later = upstream.later and upstream.later(asked, route.decoded_path)
        return Forward(
            upstream.name,
            upstream.dialect,
            request.method,
            upstream.origin,
            url,
            headers,
            asked,
            comment,
            later,
        )

    async def _body(self, request: web.BaseRequest) -> bytes | Problem:
        """Return the whole body, or what the app is told instead."""
        content = request.content
        if content.is_eof():
            body = content.read_nowait()
            return body if len(body) <= self._request_max_bytes else denial.too_large(self._request_max_bytes)
        if (request.content_length or 0) > self._request_max_bytes:
            return denial.too_large(self._request_max_bytes)
        if request.headers.get(_EXPECT, "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0  # the answer's own head is still to come
        pieces: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._body_timeout_s):
                while piece := await content.readany():
                    size += len(piece)
                    if size > self._request_max_bytes:
                        return denial.too_large(self._request_max_bytes)
                    pieces.append(piece)
        except TimeoutError:
            return Problem(
                408, "REQUEST_TIMEOUT", "timeout_error", "The request's body did not come in time."
            )
        except (RequestPayloadError, ConnectionError):
            return denial.invalid_request("the request's body ended before it was whole")
        return b"".join(pieces)

    def _decoded(self, body: bytes, coding: str) -> bytes | Problem:
        """Return a compressed body as it was, for it must be read; or what the app is told instead."""
        try:
            plain = decoded(body, coding, self._request_max_bytes)
        except UnknownCodingError as error:
            return _unknown_coding(error)
        except DecodingError as error:
            return denial.invalid_request(str(error))
        return denial.too_large(self._request_max_bytes) if plain is None else plain

    def _refuse(
        self, dialect: Dialect, problem: Problem, request_id: str, stream: bool = False
    ) -> web.Response:
        self._terms.counts.refused[problem.code] += 1
        return refusal(dialect, problem, request_id, stream)


def _no_credential(upstream: str, error: SigningError) -> Problem:
    message = f"The sidecar has no credential for {upstream}: {error}."
    return Problem(500, "UPSTREAM_CREDENTIAL", "api_error", message, should_retry=False)


def _unknown_coding(error: UnknownCodingError) -> Problem:
    message = f"The request's body cannot be read: {error}. Send it plain, or in gzip, deflate, br or zstd."
    return Problem(415, "CONTENT_ENCODING_UNSUPPORTED", "invalid_request_error", message, should_retry=False)


def _no_such_method() -> Problem:
    message = f"Only {', '.join(sorted(_METHODS))} are forwarded."
    return Problem(405, "METHOD_NOT_ALLOWED", "invalid_request_error", message, should_retry=False)


def _no_websockets() -> Problem:
    message = "WebSockets are not forwarded: a call that cannot be measured would not be charged."
    return Problem(501, "WEBSOCKET_UNSUPPORTED", "invalid_request_error", message, should_retry=False)


def _defect(request_id: str) -> Problem:
    message = f"The sidecar has a defect; its log says more under {request_id}."
    return Problem(500, "INTERNAL", "api_error", message)
