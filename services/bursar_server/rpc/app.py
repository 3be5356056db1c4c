"""The Connect door as an ASGI application: the services in every protocol of connectrpc, reflection, health and metrics."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from bursar_server.rpc.codec import MAX_MESSAGE_BYTES, codecs
from bursar_server.rpc.pipeline import Pipeline, connect_interceptors
from bursar_server.rpc.reflection import reflection_applications
from bursar_server.rpc.services import Services, applications, files
from bursar_server.rpc.unary import plain_headers, unary_calls
from bursar_server.telemetry import Telemetry

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
Asgi = Callable[[Any, Any, Any], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class ReadinessReport:
    """Whether the process can answer, and what each thing that it needs says: `ok`, or what is wrong."""

    checks: Mapping[str, str] = field(default_factory=dict)

    @property
    def ready(self) -> bool:
        """True when everything is ok."""
        return all(state == "ok" for state in self.checks.values())


Readiness = Callable[[], Awaitable[ReadinessReport]]

_JSON = b"application/json"
_PROMETHEUS = b"text/plain; version=0.0.4; charset=utf-8"
# What each protocol of connectrpc calls the two codecs.
_CONTENT_TYPES = frozenset(
    f"application/{prefix}{codec}"
    for prefix in ("", "connect+", "grpc+", "grpc-web+")
    for codec in ("proto", "json")
) | {"application/grpc", "application/grpc-web"}


class ConnectDoor:
    """Routes requests by their exact path."""

    def __init__(
        self, services: Services, pipeline: Pipeline, telemetry: Telemetry, readiness: Readiness
    ) -> None:
        self._telemetry = telemetry
        self._readiness = readiness
        self._rpcs: dict[str, Asgi] = {}
        for paths, application in applications(
            services,
            interceptors=connect_interceptors(pipeline),
            codecs=codecs(),
            read_max_bytes=MAX_MESSAGE_BYTES,
        ):
            self._rpcs.update(dict.fromkeys(paths, application))
        for paths, application in reflection_applications(files(), read_max_bytes=MAX_MESSAGE_BYTES):
            self._rpcs.update(dict.fromkeys(paths, application))
        self._unary = unary_calls(services, pipeline)
        self._pages: dict[str, Callable[[], Awaitable[tuple[int, bytes, bytes]]]] = {
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/metrics": self._metrics,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        path = scope["path"]
        rpc = self._rpcs.get(path)
        if rpc is not None:
            headers = plain_headers(scope)
            if headers is not None and (unary := self._unary.get(path)) is not None:
                await unary(headers, receive, send)
                return
            refusal = _unreadable(scope)
            if refusal is None:
                await rpc(scope, receive, send)
            else:
                await _respond(scope, send, *refusal)
        elif path not in self._pages:
            await _respond(scope, send, 404, _JSON, _no_such_path(path))
        elif scope["method"] in ("GET", "HEAD"):
            await _respond(scope, send, *await self._pages[path]())
        else:
            await _respond(scope, send, 405, _JSON, _error("unimplemented", f"{path} is read with GET"))

    async def _healthz(self) -> tuple[int, bytes, bytes]:
        return 200, _JSON, b'{"status":"ok"}'

    async def _readyz(self) -> tuple[int, bytes, bytes]:
        report = await self._readiness()
        status = "ready" if report.ready else "unavailable"
        body = orjson.dumps({"status": status, "checks": dict(report.checks)})
        return 200 if report.ready else 503, _JSON, body

    async def _metrics(self) -> tuple[int, bytes, bytes]:
        return 200, _PROMETHEUS, self._telemetry.prometheus().encode()


def _unreadable(scope: Scope) -> tuple[int, bytes, bytes] | None:
    """Say why connectrpc could not answer a request sensibly, or None where it can."""
    content_type = b""
    for name, value in scope["headers"]:
        if name == b"content-type":
            content_type = value
        if not value.isascii():
            return (
                400,
                _JSON,
                _error("invalid_argument", f"the header {name.decode('latin-1')} must be ASCII"),
            )
    if not scope["query_string"].isascii():
        return 400, _JSON, _error("invalid_argument", "the query must be percent-encoded")
    if scope["method"] != "POST":
        return None
    kind = content_type.decode("ascii").partition(";")[0].strip().lower()
    if kind not in _CONTENT_TYPES:
        told = f"not {kind}" if kind else "but there is none"
        return 415, _JSON, _error("unknown", f"the header Content-Type must be application/json, {told}")
    grpc = kind.startswith("application/grpc") and not kind.startswith("application/grpc-web")
    if grpc and "http.response.trailers" not in (scope.get("extensions") or {}):
        return 505, _JSON, _error("unimplemented", "the gRPC protocol needs HTTP/2")
    return None


def _no_such_path(path: str) -> bytes:
    shown = path[:200].encode("unicode_escape").decode()
    hint = "RPCs are POST /bursar.v1.<Service>/<Method>, such as /bursar.v1.UserService/SetBudget"
    return _error(
        "unimplemented", f"there is nothing at {shown}: {hint}; /healthz, /readyz and /metrics are here too"
    )


def _error(code: str, message: str) -> bytes:
    # The shape of a Connect error, so that its clients show the message.
    return orjson.dumps({"code": code, "message": message})


async def _respond(scope: Scope, send: Send, status: int, content_type: bytes, body: bytes) -> None:
    headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
