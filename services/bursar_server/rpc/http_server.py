"""Serves the Connect door: uvicorn, with HTTP/1.1 by httptools and HTTP/2 by zttp on the same port."""

import asyncio
import contextlib
import ssl
from collections.abc import Iterator
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.auto_zttp_impl import AutoZttpProtocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.http.zttp_h2_impl import ZttpH2Protocol

from bursar_server.rpc.app import Asgi
from bursar_server.rpc.listen import Address, Tls, bind, bound_address

# Longer than clients keep an idle connection: whoever closes first must not be the server, or a request is lost on its way.
KEEP_ALIVE_SECONDS = 120


class _Gathered:
    """A transport that writes once in a turn of the event loop: the head of an answer goes out with its body.

    Each write is a system call, and a packet that wakes the caller.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._parts: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Write at the end of this turn."""
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)

    def close(self) -> None:
        """Write what is gathered, then close."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._parts:
            parts, self._parts = self._parts, []
            self._transport.write(b"".join(parts))


class _Http1(HttpToolsProtocol):
    """uvicorn's HTTP/1.1, on a transport that gathers."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast("asyncio.Transport", _Gathered(transport, self.loop)))


class DoorProtocol(AutoZttpProtocol):
    """Looks at how a connection opens: HTTP/2 (preface or ALPN) goes to zttp, everything else to httptools.

    uvicorn's own would give HTTP/1.1 to zttp too; the sidecars' hop stays on the parser that is proven.
    """

    def _switch(self, http2: bool, initial_data: bytes = b"") -> None:
        kind = ZttpH2Protocol if http2 else _Http1
        protocol = kind(
            config=self.config, server_state=self.server_state, app_state=self.app_state, _loop=self.loop
        )
        self.transport.set_protocol(protocol)
        protocol.connection_made(self.transport)
        if initial_data:
            protocol.data_received(initial_data)


class _Server(uvicorn.Server):
    """uvicorn's server, without its own signal handlers: the process decides when to stop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpDoor:
    """The Connect door while it listens; `address` is where."""

    def __init__(self, server: _Server, serving: asyncio.Task[None], address: Address) -> None:
        self.address = address
        self._server = server
        self._serving = serving

    async def close(self, grace_seconds: float) -> None:
        """Stop accepting at once, finish what was accepted, at most for `grace_seconds`, then cut off the rest."""
        # uvicorn takes whole seconds and would wait for ever on 0.
        self._server.config.timeout_graceful_shutdown = max(1, round(grace_seconds))
        self._server.should_exit = True
        await self._serving


async def serve_http(app: Asgi, address: Address, *, tls: Tls | None = None, http2: bool = True) -> HttpDoor:
    """Listen on `address` (port 0: any free one) and return once requests are accepted.

    Raises AddressInUseError where nothing can listen there, OSError or ssl.SSLError for an unusable certificate.
    """
    config = uvicorn.Config(
        app,
        http=DoorProtocol if http2 else _Http1,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        # It announces every start and stop; what matters of that the process says itself.
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        ssl_context_factory=None if tls is None else lambda _config, _default: ssl_context(tls, http2=http2),
    )
    config.load()
    bound = bind(address)
    server = _Server(config)
    bound_to = bound_address(address, bound)
    serving = asyncio.create_task(server.serve(sockets=[bound]), name="bursar-http")
    while not server.started:
        if serving.done():
            bound.close()
            await serving
            raise RuntimeError("the HTTP server ended before it began")
        await asyncio.sleep(0.001)
    return HttpDoor(server, serving, bound_to)


def ssl_context(tls: Tls, *, http2: bool) -> ssl.SSLContext:
    """Return the context of a server that shows a certificate. Raises OSError (ssl.SSLError) for one it cannot use."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(tls.certificate, tls.key)
    context.set_alpn_protocols(["h2", "http/1.1"] if http2 else ["http/1.1"])
    return context
