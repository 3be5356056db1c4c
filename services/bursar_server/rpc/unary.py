"""The short way through the Connect door: binary unary calls as sidecars send them, in plain HTTP.

connectrpc answers everything else, and would answer these alike, only with more work. A request is plain where nothing
in it needs more than is here: no compression, no query, no other version of the protocol.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, cast

from connectrpc.code import Code
from connectrpc.errors import ConnectError
from connectrpc.method import MethodInfo, StreamType
from connectrpc.request import Headers, RequestContext
from google.protobuf.message import Message

from bursar_server.rpc.auth import Call
from bursar_server.rpc.codec import MAX_MESSAGE_BYTES, parse_binary
from bursar_server.rpc.pipeline import Pipeline
from bursar_server.rpc.services import Services, rpcs
from bursar_server.rpc.status import WireError, late, too_large

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

_PROTO = b"application/proto"
_DISCONNECT = "http.disconnect"
# Ten digits of milliseconds are a third of a year; longer ones are an error that connectrpc words.
_MAX_TIMEOUT_DIGITS = 10
# A task for each request, to see whether its caller goes away, costs as much as reading it.
_WATCH_AFTER_S = 0.05


def unary_calls(services: Services, pipeline: Pipeline) -> dict[str, "UnaryCall"]:
    """Return the short way to every unary RPC, by path."""
    return {
        f"/{rpc.info.service_name}/{rpc.info.name}": UnaryCall(
            rpc.info, cast("Callable[[Any, Any], Awaitable[Message]]", rpc.handler), pipeline
        )
        for rpc in rpcs(services)
        if rpc.info.stream_type is StreamType.UNARY
    }


def plain_headers(scope: Scope) -> Headers | None:
    """Return the headers of a plain request, or None where connectrpc has to look at it."""
    if scope["method"] != "POST" or scope["query_string"]:
        return None
    given: dict[bytes, bytes] = dict(scope["headers"])
    timeout = given.get(b"connect-timeout-ms", b"0")
    plain = (
        len(given) == len(scope["headers"])
        and given.get(b"content-type") == _PROTO
        and b"content-encoding" not in given
        and given.get(b"accept-encoding", b"identity") == b"identity"
        and given.get(b"connect-protocol-version", b"1") == b"1"
        and timeout.isdigit()
        and len(timeout) <= _MAX_TIMEOUT_DIGITS
        and all(map(bytes.isascii, given.values()))
    )
    return Headers({name.decode(): value.decode() for name, value in given.items()}) if plain else None


class UnaryCall:
    """One RPC: what stands between a plain request and its handler, and its answer."""

    def __init__(
        self,
        info: MethodInfo[Any, Any],
        handler: Callable[[Any, Any], Awaitable[Message]],
        pipeline: Pipeline,
    ) -> None:
        self._info = info
        self._handler = handler
        self._pipeline = pipeline

    async def __call__(self, headers: Headers, receive: Receive, send: Send) -> None:
        """Answer one plain request."""
        timeout = headers.get("connect-timeout-ms")
        timeout_ms = None if timeout is None else int(timeout)
        ctx: RequestContext[Any, Any] = RequestContext(
            method=self._info, http_method="POST", request_headers=headers, timeout_ms=timeout_ms
        )
        call = self._pipeline.begin(ctx, "connect")
        body = b""
        error: Exception | None = None
        try:
            answer = await self._answer(call, None if timeout_ms is None else timeout_ms / 1000, receive)
            body = answer.SerializeToString()
        except asyncio.CancelledError:
            # The server stops: whoever waits is told, if that is possible still.
            failure = self._pipeline.finish(call, ConnectError(Code.CANCELED, "Request was cancelled"))
            with suppress(Exception):
                await _send(send, call, failure, b"")
            raise
        except Exception as raised:
            error = raised
        await _send(send, call, self._pipeline.finish(call, error), body)

    async def _answer(self, call: Call, timeout_s: float | None, receive: Receive) -> Message:
        """Return the handler's answer; it is cut short by the deadline, and when the caller goes away."""
        left = _Left()
        try:
            async with asyncio.timeout(timeout_s) as limit:
                await self._pipeline.admit(call)
                request = parse_binary(await _body(receive), self._info.input)
                left.watch(receive, limit)
                try:
                    return await self._handler(request, call)
                finally:
                    left.stop()
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise (ConnectError(Code.CANCELED, "Client disconnected") if left.gone else late()) from error


class _Left:
    """Whether the caller has gone away while its request was worked on."""

    __slots__ = ("_start", "_task", "gone")

    def __init__(self) -> None:
        self.gone = False
        self._start: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def watch(self, receive: Receive, limit: asyncio.Timeout) -> None:
        """Cut the request short once nobody waits for it any more; most are answered before anybody has to look."""

        def start() -> None:
            self._task = asyncio.create_task(self._wait(receive, limit))

        self._start = asyncio.get_running_loop().call_later(_WATCH_AFTER_S, start)

    def stop(self) -> None:
        """Stop watching."""
        if self._start is not None:
            self._start.cancel()
        if self._task is not None:
            self._task.cancel()

    async def _wait(self, receive: Receive, limit: asyncio.Timeout) -> None:
        while (await receive())["type"] != _DISCONNECT:
            pass
        if not limit.expired():
            self.gone = True
            limit.reschedule(asyncio.get_running_loop().time())


async def _body(receive: Receive) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == _DISCONNECT:
            raise ConnectError(Code.CANCELED, "Client disconnected before request completion")
        part = message.get("body", b"")
        size += len(part)
        if size > MAX_MESSAGE_BYTES:
            raise too_large()
        if not message.get("more_body", False):
            return b"".join((*parts, part)) if parts else part
        parts.append(part)


async def _send(send: Send, call: Call, failure: WireError | None, body: bytes) -> None:
    """Send an answer's body, or what is said of the failure."""
    status, content_type = 200, _PROTO
    if failure is not None:
        status, content_type, body = failure.http_status, b"application/json", failure.connect_json()
    headers = [(b"content-type", content_type), (b"content-length", b"%d" % len(body))]
    for name, value in call.response_headers.allitems():
        headers.append((name.encode(), value.encode()))
    for name, value in call.response_trailers.allitems():
        headers.append((b"trailer-" + name.encode(), value.encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
