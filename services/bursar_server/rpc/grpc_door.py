"""The native gRPC door: the same implementations and the same pipeline behind grpc.aio, with health and reflection."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Any

import grpc
import grpc.aio
from connectrpc.method import MethodInfo, StreamType
from connectrpc.request import Headers, RequestContext
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from bursar_server.rpc.app import Readiness
from bursar_server.rpc.auth import Call
from bursar_server.rpc.codec import MAX_MESSAGE_BYTES, parse_binary
from bursar_server.rpc.listen import Address, AddressInUseError, Tls, bind
from bursar_server.rpc.pipeline import Pipeline
from bursar_server.rpc.reflection import NAMES
from bursar_server.rpc.services import Rpc, Services, rpcs
from bursar_server.rpc.status import WireError, too_large

_CODES = {code.value[0]: code for code in grpc.StatusCode}
_WATCH_SECONDS = 1.0

_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", -1),
    # Two processes on one port would share its connections without a word.
    ("grpc.so_reuseport", 0),
)


class GrpcDoor:
    """The gRPC door while it listens; `address` is where."""

    def __init__(self, server: grpc.aio.Server, address: Address) -> None:
        self.address = address
        self._server = server

    async def close(self, grace_seconds: float) -> None:
        """Stop accepting at once, finish what was accepted, at most for `grace_seconds`, then cut off the rest."""
        await self._server.stop(grace_seconds)


async def serve_grpc(
    services: Services, pipeline: Pipeline, readiness: Readiness, address: Address, *, tls: Tls | None = None
) -> GrpcDoor:
    """Listen on `address` (port 0: any free one) and return once calls are accepted.

    Raises AddressInUseError where nothing can listen there, OSError for an unreadable certificate.
    """
    server = grpc.aio.server(options=_OPTIONS)
    found = list(rpcs(services))
    server.add_generic_rpc_handlers(tuple(_generic_handlers(found, pipeline)))
    health_pb2_grpc.add_HealthServicer_to_server(_Health(readiness, found), server)
    server.add_generic_rpc_handlers(tuple(_reflection_handlers(found)))
    if address.port:
        # gRPC says little about a port that is taken: try it before gRPC does.
        bind(address).close()
    target = str(address if address.host else Address("0.0.0.0", address.port))  # noqa: S104
    try:
        if tls is None:
            port = server.add_insecure_port(target)
        else:
            pair = (tls.key.read_bytes(), tls.certificate.read_bytes())
            port = server.add_secure_port(target, grpc.ssl_server_credentials([pair]))
    except RuntimeError as error:
        raise AddressInUseError(address, "gRPC cannot listen there") from error
    await server.start()
    return GrpcDoor(server, Address(address.host, port))


def _generic_handlers(found: Iterable[Rpc], pipeline: Pipeline) -> Iterator[grpc.GenericRpcHandler]:
    by_service: dict[str, dict[str, grpc.RpcMethodHandler]] = {}
    for rpc in found:
        handlers = by_service.setdefault(rpc.info.service_name, {})
        # Bytes pass through untouched: what cannot be decoded is refused inside the pipeline, in our words.
        if rpc.info.stream_type is StreamType.SERVER_STREAM:
            handlers[rpc.info.name] = grpc.unary_stream_rpc_method_handler(_stream(rpc, pipeline))
        else:
            handlers[rpc.info.name] = grpc.unary_unary_rpc_method_handler(_unary(rpc, pipeline))
    for service, handlers in by_service.items():
        yield grpc.method_handlers_generic_handler(service, handlers)


def _unary(rpc: Rpc, pipeline: Pipeline) -> Callable[[bytes, grpc.aio.ServicerContext], Awaitable[bytes]]:
    async def handle(data: bytes, context: grpc.aio.ServicerContext) -> bytes:
        call = pipeline.begin(_context(rpc.info, context), "grpc")
        answer = b""
        error: BaseException | None = None
        try:
            await pipeline.admit(call)
            response: Any = await rpc.handler(_read(data, rpc.info), call)  # type: ignore[misc]
            answer = response.SerializeToString()
        except asyncio.CancelledError as cancelled:
            pipeline.finish(call, cancelled)
            raise
        except Exception as raised:
            error = raised
        await _end(call, pipeline.finish(call, error), context)
        return answer

    return handle


def _stream(
    rpc: Rpc, pipeline: Pipeline
) -> Callable[[bytes, grpc.aio.ServicerContext], AsyncIterator[bytes]]:
    async def handle(data: bytes, context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        call = pipeline.begin(_context(rpc.info, context), "grpc")
        error: BaseException | None = None
        try:
            await pipeline.admit(call)
            async for message in rpc.handler(_read(data, rpc.info), call):  # type: ignore[union-attr]
                yield message.SerializeToString()
        except (asyncio.CancelledError, GeneratorExit) as cancelled:
            pipeline.finish(call, cancelled)
            raise
        except Exception as raised:
            error = raised
        await _end(call, pipeline.finish(call, error), context)

    return handle


def _context(info: MethodInfo[Any, Any], context: grpc.aio.ServicerContext) -> RequestContext[Any, Any]:
    """Return what a handler knows of a request, from gRPC's metadata."""
    headers = Headers()
    for key, value in context.invocation_metadata() or ():
        if isinstance(value, str):
            headers.add(key, value)
    remaining = context.time_remaining()
    return RequestContext(
        method=info,
        http_method="POST",
        request_headers=headers,
        timeout_ms=None if remaining is None else max(0, int(remaining * 1000)),
        client_address=context.peer(),
    )


def _read(data: bytes, info: MethodInfo[Any, Any]) -> Any:
    if len(data) > MAX_MESSAGE_BYTES:
        raise too_large()
    return parse_binary(data, info.input)


async def _end(call: Call, failure: WireError | None, context: grpc.aio.ServicerContext) -> None:
    """Send the status; what a Connect answer has as headers goes into the trailers, without a message of its own."""
    trailers: list[tuple[str, str | bytes]] = [
        *call.response_headers.allitems(),
        *call.response_trailers.allitems(),
    ]
    if failure is None:
        context.set_trailing_metadata(tuple(trailers))
        return
    trailers.append(("grpc-status-details-bin", failure.grpc_status()))
    await context.abort(_CODES[failure.code], failure.message, tuple(trailers))


class _Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """grpc.health.v1: the process as a whole (the empty name) and each service, all as ready as `/readyz` says."""

    def __init__(self, readiness: Readiness, found: Iterable[Rpc]) -> None:
        self._readiness = readiness
        self._names = {"", *(rpc.info.service_name for rpc in found)}

    async def Check(self, request: Any, context: grpc.aio.ServicerContext) -> Any:  # noqa: N802
        """Answer once."""
        if request.service not in self._names:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return health_pb2.HealthCheckResponse(status=await self._status(request.service))

    async def Watch(self, request: Any, _context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:  # noqa: N802
        """Answer now, and again whenever the answer changes."""
        last = None
        while True:
            status = await self._status(request.service)
            if status != last:
                yield health_pb2.HealthCheckResponse(status=status)
                last = status
            await asyncio.sleep(_WATCH_SECONDS)

    async def _status(self, service: str) -> int:
        known = health_pb2.HealthCheckResponse
        if service not in self._names:
            return int(known.SERVICE_UNKNOWN)
        report = await self._readiness()
        return int(known.SERVING if report.ready else known.NOT_SERVING)


def _reflection_handlers(found: Iterable[Rpc]) -> Iterator[grpc.GenericRpcHandler]:
    """Serve reflection under both of its names: the messages of v1 and v1alpha are the same on the wire."""
    names = {rpc.info.service_name for rpc in found} | {reflection.SERVICE_NAME, "grpc.health.v1.Health"}
    servicer = reflection.aio.ReflectionServicer(names)
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    for name in NAMES:
        yield grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": handler})
