"""The hop to the control plane: short POSTs over a few kept HTTP/1.1 connections, at a fraction of a general client's cost.

Requests and answers are small and whole; one request at a time is on a connection. What it does not understand it
treats as a broken connection, which its callers may repeat: every request here is safe to repeat.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

_HEAD_MAX_BYTES = 64 << 10
_ANSWER_MAX_BYTES = 64 << 20
_KEPT_MAX = 8
_STATUS = re.compile(rb"HTTP/1\.([01]) ([0-9]{3})(?: |\r|$)")
#: The fields that matter here; what else an answer says is passed over.
_FIELD = re.compile(
    rb"\r\n(content-length|content-type|content-encoding|transfer-encoding|connection):[ \t]*([^\r\n]*?)[ \t]*(?=\r|$)",
    re.IGNORECASE,
)


class NotSentError(ConnectionError):
    """No connection could be made: the control plane has not seen the request."""


class BrokenError(ConnectionError):
    """No whole answer came: the control plane may have seen the request, or not."""


class LateError(BrokenError):
    """No whole answer came in the time that was given."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; `content_type` is in lower case and without parameters."""

    status: int
    content_type: str
    body: bytes


class _Connection(asyncio.Protocol):
    """One connection; `answer` is the future of the request that is on it."""

    __slots__ = ("_body_size", "_buffer", "_chunked", "_head", "answer", "keep", "transport")

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.answer: asyncio.Future[Answer] | None = None
        self.keep = True
        self._buffer = bytearray()
        self._head: tuple[int, str] | None = None
        self._body_size: int | None = None
        self._chunked = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but name

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self.answer is None or len(self._buffer) > _ANSWER_MAX_BYTES:
            self._fail("unexpected bytes")
            return
        try:
            answer = self._parsed()
        except ValueError as error:
            self._fail(f"not HTTP/1.1 as expected: {error}")
            return
        if answer is not None:
            self._deliver(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self.keep = False
        self.transport = None
        until_close = self._head is not None and self._body_size is None and not self._chunked
        if self.answer is not None and until_close and exc is None and self._head is not None:
            self._deliver(Answer(*self._head, bytes(self._buffer)))
        else:
            self._fail("the connection was closed")

    def send(self, data: bytes, answer: asyncio.Future[Answer]) -> None:
        """Write a whole request whose answer goes to the future."""
        self.answer = answer
        assert self.transport is not None  # noqa: S101  (only a connected one is handed out)
        self.transport.write(data)

    def close(self) -> None:
        """Close at once; a request that is on the connection is not answered any more."""
        self.keep = False
        self.answer = None
        if self.transport is not None:
            self.transport.abort()

    @property
    def open(self) -> bool:
        """Whether another request can go over it."""
        return self.keep and self.transport is not None and not self.transport.is_closing()

    def _deliver(self, answer: Answer) -> None:
        future, self.answer = self.answer, None
        self._head, self._body_size, self._chunked = None, None, False
        if self._buffer:
            self.keep = False
        if future is not None and not future.done():
            future.set_result(answer)

    def _fail(self, why: str) -> None:
        self.keep = False
        future, self.answer = self.answer, None
        if future is not None and not future.done():
            future.set_exception(BrokenError(why))
        if self.transport is not None:
            self.transport.abort()

    def _parsed(self) -> Answer | None:
        while self._head is None:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(self._buffer) > _HEAD_MAX_BYTES:
                    raise ValueError("the head has no end")
                return None
            self._read_head(bytes(self._buffer[:end]))
            del self._buffer[: end + 4]
        if self._chunked:
            body = _unchunked(self._buffer)
        elif self._body_size is None or len(self._buffer) < self._body_size:
            return None
        else:
            body = bytes(self._buffer[: self._body_size])
            del self._buffer[: self._body_size]
        return None if body is None else Answer(*self._head, body)

    def _read_head(self, head: bytes) -> None:
        first = _STATUS.match(head)
        if first is None:
            raise ValueError("no status line")
        status = int(first[2])
        if 100 <= status < 200:
            return  # an interim answer; the real one follows
        fields = {name.lower(): value for name, value in _FIELD.findall(head)}
        self.keep = first[1] == b"1" and b"close" not in fields.get(b"connection", b"").lower()
        coding = fields.get(b"transfer-encoding", b"").lower()
        if coding not in (b"", b"chunked"):
            raise ValueError("an unknown transfer coding")
        if fields.get(b"content-encoding", b"identity").lower() != b"identity":
            raise ValueError("compressed although it was not asked for")
        self._chunked = coding == b"chunked"
        length = b"0" if status in (204, 304) else fields.get(b"content-length")
        self._body_size = None if length is None or self._chunked else int(length)
        content_type = fields.get(b"content-type", b"").partition(b";")[0].strip().lower()
        self._head = (status, content_type.decode("latin-1"))


def _unchunked(buffer: bytearray) -> bytes | None:
    """Return the body of a whole chunked answer, taken out of the buffer; None while it is not whole."""
    parts: list[bytes] = []
    position = 0
    while True:
        end = buffer.find(b"\r\n", position)
        if end < 0:
            return None
        size = int(bytes(buffer[position:end]).partition(b";")[0], 16)
        start = end + 2
        if size == 0:
            stop = end if buffer[end : end + 4] == b"\r\n\r\n" else buffer.find(b"\r\n\r\n", start)
            if stop < 0:
                return None
            del buffer[: stop + 4]
            return b"".join(parts)
        if len(buffer) < start + size + 2:
            return None
        parts.append(bytes(buffer[start : start + size]))
        position = start + size + 2


class Channel:
    """Connections to one address, made when needed and kept; call from one event loop, close at the end."""

    def __init__(self, url: str, connect_timeout_s: float, ssl_context: ssl.SSLContext | None = None) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._ssl = (ssl_context or ssl.create_default_context()) if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._ssl else 80)
        self._prefix = parts.path.rstrip("/")
        self._authority = parts.netloc.rpartition("@")[2]
        self._connect_timeout_s = connect_timeout_s
        self._idle: list[_Connection] = []
        self._busy: set[_Connection] = set()

    async def post(self, path: str, headers: str, body: bytes, timeout_s: float) -> Answer:
        """Return the answer to a POST; `headers` are whole lines, each ended by CR LF.

        A kept connection that turns out to be closed is replaced once. Raises NotSentError, BrokenError (no whole
        answer within `timeout_s` seconds included).
        """
        head = (
            f"POST {self._prefix}{path} HTTP/1.1\r\nhost: {self._authority}\r\n{headers}"
            f"content-length: {len(body)}\r\n\r\n"
        )
        data = head.encode("latin-1") + body
        while self._idle:
            connection = self._idle.pop()
            if connection.open:
                try:
                    return await self._exchange(connection, data, timeout_s)
                except LateError:
                    raise
                except BrokenError:
                    break
        return await self._exchange(await self._connect(), data, timeout_s)

    async def close(self) -> None:
        """Close every connection."""
        for connection in (*self._idle, *self._busy):
            connection.close()
        self._idle.clear()

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, connection = await loop.create_connection(
                    _Connection, self._host, self._port, ssl=self._ssl
                )
        except (OSError, TimeoutError) as error:
            raise NotSentError(f"{type(error).__name__} connecting to {self._host}:{self._port}") from error
        return connection

    async def _exchange(self, connection: _Connection, data: bytes, timeout_s: float) -> Answer:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        timer = loop.call_later(timeout_s, _expire, future)
        self._busy.add(connection)
        try:
            connection.send(data, future)
            answer = await future
        except BaseException:
            connection.keep = False
            if not future.done() or future.cancelled() or connection.answer is not None:
                connection.close()
            raise
        finally:
            timer.cancel()
            self._busy.discard(connection)
        if connection.open and len(self._idle) < _KEPT_MAX:
            self._idle.append(connection)
        else:
            connection.close()
        return answer


def _expire(future: asyncio.Future[Answer]) -> None:
    if not future.done():
        future.set_exception(LateError("no answer in time"))
