"""The hop to the providers: aiohttp's connections, and a short way over them for what nearly every call is.

Connections, TLS, time limits, parsing and back-pressure are aiohttp's on both ways. A general client's own work for each
request (redirects, cookies, forms, middleware) is two thirds of what a request costs it, and of no use to one that is
passed on as it came.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import TypeAlias

import aiohttp
from aiohttp.http import HttpProcessingError, StreamWriter
from multidict import CIMultiDict, istr
from yarl import URL

from bursar_sidecar.headers import CONTENT_LENGTH

#: aiohttp sends a larger body in pieces only if it is given a file.
_WHOLE_BODY_MAX_BYTES = 1 << 20
_HOST = istr("Host")


class Connector(aiohttp.TCPConnector):
    """Makes and keeps connections; one on which something came that nobody had asked for is not used again.

    A provider that answers twice, or says 408 to a connection that waits, would answer the next request with it.
    """

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[aiohttp.tracing.Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109  (its own signature)
    ) -> aiohttp.connector.Connection:
        """Return a connection; raises as aiohttp's own."""
        while True:
            connection = await super().connect(req, traces, timeout)
            if connection.protocol is None or not connection.protocol.should_close:
                return connection
            connection.close()


def sending_noticed() -> aiohttp.TraceConfig:
    """Return what a session needs so that `UpstreamChannel.request` can say when a request goes out."""
    config = aiohttp.TraceConfig()
    config.on_request_headers_sent.append(_noticed)
    return config


async def _noticed(
    _session: aiohttp.ClientSession, context: SimpleNamespace, _sent: aiohttp.TraceRequestHeadersSentParams
) -> None:
    sending: Callable[[], None] | None = context.trace_request_ctx
    if sending is not None:
        sending()


class Answer:
    """What a provider answers: its head, and its body as it comes. Whoever does not read all of it closes it.

    The connection goes back to the others when the body has been received.
    """

    __slots__ = ("_connection", "content", "headers", "reason", "status")

    def __init__(
        self,
        connection: aiohttp.connector.Connection,
        message: aiohttp.http.RawResponseMessage,
        content: aiohttp.StreamReader,
    ) -> None:
        self.status: int = message.code
        self.reason: str | None = message.reason
        self.headers = message.headers
        self.content = content
        self._connection: aiohttp.connector.Connection | None = connection
        content.on_eof(self._release)

    def _release(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None or connection.transport is None:
            return
        # An answer that came before its request had gone out whole: what is left of the one would delay another.
        if connection.transport.get_write_buffer_size():
            connection.close()
        else:
            connection.release()

    def close(self) -> None:
        """Close the connection, unless the whole answer was received."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


UpstreamAnswer: TypeAlias = Answer | aiohttp.ClientResponse


class UpstreamChannel:
    """Sends requests over a session's connections; `proxies` are by the origin that is reached through them."""

    def __init__(
        self, session: aiohttp.ClientSession, proxies: Mapping[str, str], head_max_bytes: int
    ) -> None:
        self._session = session
        self._proxies = proxies
        self._head_max_bytes = head_max_bytes
        # Where an origin's connections are found: by a request to it. There are as many origins as the settings name.
        self._origins: dict[str, aiohttp.ClientRequest] = {}

    async def request(
        self,
        method: str,
        origin: str,
        url: str,
        headers: CIMultiDict[str],
        body: bytes,
        sending: Callable[[], None],
    ) -> UpstreamAnswer:
        """Send a request and return the answer as soon as its head is there; redirects are not followed.

        `sending` is called before the first byte goes out: where it was not, the provider has seen nothing. Raises
        aiohttp.ClientError, OSError or ValueError.
        """
        proxy = self._proxies.get(origin)
        if method == "POST" and proxy is None and len(body) <= _WHOLE_BODY_MAX_BYTES:
            target = url[len(origin) :].partition("#")[0]
            return await self._post(origin, target, headers, body, sending)
        return await self._session.request(
            method,
            URL(url, encoded=True),
            headers=headers,
            data=io.BytesIO(body) if len(body) > _WHOLE_BODY_MAX_BYTES else body or None,
            allow_redirects=False,
            proxy=proxy,
            trace_request_ctx=sending,
        )

    async def _post(
        self,
        origin: str,
        target: str,
        headers: CIMultiDict[str],
        body: bytes,
        sending: Callable[[], None],
    ) -> UpstreamAnswer:
        there = self._origins.get(origin) or self._origin(origin)
        lines = CIMultiDict(((_HOST, there.headers[_HOST]),))
        lines.extend(headers)
        lines[CONTENT_LENGTH] = str(len(body))
        connection = await self._connected(there)
        try:
            protocol = connection.protocol
            assert protocol is not None  # noqa: S101  (it was just connected)
            protocol.set_response_params(
                read_until_eof=True,
                auto_decompress=False,
                max_line_size=self._head_max_bytes,
                max_field_size=self._head_max_bytes,
            )
            writer = StreamWriter(protocol, there.loop)
            sending()
            await writer.write_headers(f"POST {target or '/'} HTTP/1.1", lines)
            # Not waited for: an answer may come before all of it has gone out.
            await writer.write(body, drain=False)
            writer.set_eof()
            message, content = await protocol.read()
            while 100 <= message.code < 200 and message.code != 101:
                message, content = await protocol.read()
        except HttpProcessingError as error:
            connection.close()
            raise aiohttp.ClientResponseError(
                there.request_info, (), status=error.code, message=error.message
            ) from error
        except BaseException:
            connection.close()
            raise
        return Answer(connection, message, content)

    async def _connected(self, there: aiohttp.ClientRequest) -> aiohttp.connector.Connection:
        connector = self._session.connector
        assert connector is not None  # noqa: S101  (the session is open as long as there are exchanges)
        try:
            return await connector.connect(there, traces=[], timeout=self._session.timeout)
        except TimeoutError as error:
            raise aiohttp.ConnectionTimeoutError(f"no connection to {there.url} in time") from error

    def _origin(self, origin: str) -> aiohttp.ClientRequest:
        there = aiohttp.ClientRequest(
            "POST", URL(origin, encoded=True), loop=asyncio.get_running_loop(), session=self._session
        )
        self._origins[origin] = there
        return there
