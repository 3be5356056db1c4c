"""What happens around every RPC, in the same order on both doors.

Request id, telemetry and errors are outermost, so that nothing leaves unscrubbed or uncounted; then the deadline, then
who is calling. On the Connect door all of it runs before the body is read: a stranger's four megabytes are not parsed.
"""

import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from connectrpc.interceptor import Interceptor
from connectrpc.request import RequestContext

from bursar_server.kit.clock import Clock
from bursar_server.kit.ids import uuid7_at
from bursar_server.rpc.auth import Authenticator, Call, authorize
from bursar_server.rpc.status import CANCELLED, WireError, late, wire_error
from bursar_server.telemetry import Telemetry

if TYPE_CHECKING:
    from opentelemetry.trace import Span

Req = TypeVar("Req")
Res = TypeVar("Res")

REQUEST_ID = "x-request-id"

_SANE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+=-]{0,127}")


class Pipeline:
    """Begins a call, admits it, and finishes it; each door calls these three around its own way to a handler."""

    def __init__(self, authenticator: Authenticator, telemetry: Telemetry, clock: Clock) -> None:
        self._authenticator = authenticator
        self._telemetry = telemetry
        self._clock = clock
        # Ids of requests need not be beyond guessing. The system's own source gives other threads their turn at the
        # interpreter each time, which is longer than the rest takes.
        self._random_bits = random.Random().getrandbits  # noqa: S311
        self._open = 0
        metrics = telemetry.metrics
        labels = ("rpc.service", "rpc.method", "door", "code")
        self._requests = metrics.counter("bursar.rpc.requests", "RPCs that have ended.", labels=labels)
        self._duration = metrics.histogram(
            "bursar.rpc.duration", "How long RPCs took.", labels=("rpc.service", "rpc.method", "door")
        )
        metrics.gauge("bursar.rpc.open", "RPCs under way.", lambda: self._open)

    @property
    def open_calls(self) -> int:
        """How many calls have begun and not ended."""
        return self._open

    def begin(self, ctx: RequestContext[Any, Any], door: str) -> Call:
        """Return the call for a request: with the caller's request id, where it is a sane one, or a new one."""
        method = ctx.method
        given = ctx.request_headers.get(REQUEST_ID, "")
        request_id = (
            given if _SANE_ID.fullmatch(given) else str(uuid7_at(self._clock.now(), self._random_bits))
        )
        started = self._clock.monotonic()
        timeout_ms = ctx.timeout_ms
        call = Call(
            ctx,
            procedure=f"/{method.service_name}/{method.name}",
            request_id=request_id,
            door=door,
            started=started,
            deadline=None if timeout_ms is None else started + timeout_ms / 1000,
        )
        call.response_headers[REQUEST_ID] = request_id
        call.span = self._telemetry.start_span(call.procedure[1:], ctx.request_headers)
        self._open += 1
        return call

    async def admit(self, call: Call) -> None:
        """Set the call's caller.

        Raises DEADLINE_EXCEEDED where the deadline has passed already, UNAUTHENTICATED or PERMISSION_DENIED where the
        caller may not do this.
        """
        if call.deadline is not None and call.deadline <= self._clock.monotonic():
            raise late()
        authorization = call.request_headers.get("authorization")
        call.caller = await authorize(self._authenticator, call.procedure, authorization)

    def finish(self, call: Call, error: BaseException | None) -> WireError | None:
        """Count the call and return what its caller may know of the error, if there is one."""
        self._open -= 1
        failure = None
        if error is not None:
            failure = (
                wire_error(error, call.request_id) if isinstance(error, Exception) else self._cut_short(call)
            )
        method = call.method
        service = method.service_name.rpartition(".")[2]
        code = "ok" if failure is None else failure.code_name
        self._requests.add(service, method.name, call.door, code)
        self._duration.observe(self._clock.monotonic() - call.started, service, method.name, call.door)
        if call.span is not None:
            _end_span(call.span, call, failure)
        return failure

    def _cut_short(self, call: Call) -> WireError:
        """Say why a handler was cancelled: by its deadline, or because nobody waits for it any more."""
        if call.deadline is not None and call.deadline <= self._clock.monotonic():
            return wire_error(late(), call.request_id)
        return CANCELLED


def _end_span(span: "Span", call: Call, failure: WireError | None) -> None:
    from opentelemetry.trace import StatusCode

    method = call.method
    span.set_attributes(
        {
            "rpc.system": "grpc" if call.door == "grpc" else "connect_rpc",
            "rpc.service": method.service_name,
            "rpc.method": method.name,
            "bursar.request.id": call.request_id,
        }
    )
    if failure is not None:
        span.set_attribute("error.type", failure.code_name)
        span.set_status(StatusCode.ERROR, failure.code_name)
    span.end()


class ConnectFrame:
    """The pipeline as connectrpc's outermost interceptor: it runs before the body is read and sees every error."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self.calls: dict[RequestContext[Any, Any], Call] = {}

    async def on_start(self, ctx: RequestContext[Any, Any]) -> Call:
        """Begin and admit the call. A refusal is raised as what the caller sees of it."""
        call = self._pipeline.begin(ctx, "connect")
        try:
            await self._pipeline.admit(call)
        except BaseException as error:
            failure = self._pipeline.finish(call, error)
            if failure is None or not isinstance(error, Exception):
                raise
            # on_end is only called for what on_start let through.
            raise failure.connect_error() from error
        self.calls[ctx] = call
        return call

    async def on_end(self, call: Call, ctx: RequestContext[Any, Any], error: Exception | None, /) -> None:
        """End the call; what is raised here replaces the error."""
        self.calls.pop(ctx, None)
        failure = self._pipeline.finish(call, error)
        if failure is not None:
            raise failure.connect_error() from error


class ConnectContext:
    """Hands handlers the Call in place of connectrpc's own context."""

    def __init__(self, frame: ConnectFrame) -> None:
        self._frame = frame

    async def intercept_unary(
        self,
        call_next: Callable[[Req, RequestContext[Any, Any]], Awaitable[Res]],
        request: Req,
        ctx: RequestContext[Any, Any],
        /,
    ) -> Res:
        """Call a unary handler."""
        return await call_next(request, self._frame.calls[ctx])

    def intercept_server_stream(
        self,
        call_next: Callable[[Req, RequestContext[Any, Any]], AsyncIterator[Res]],
        request: Req,
        ctx: RequestContext[Any, Any],
        /,
    ) -> AsyncIterator[Res]:
        """Call a server-streaming handler."""
        return call_next(request, self._frame.calls[ctx])


def connect_interceptors(pipeline: Pipeline) -> list[Interceptor]:
    """Return the pipeline as the interceptors of one Connect application, the outermost first."""
    frame = ConnectFrame(pipeline)
    return [frame, ConnectContext(frame)]
