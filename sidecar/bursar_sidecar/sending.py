"""How a request goes out to a provider: as the app made it, and at once where it is small."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import aiohttp
from multidict import CIMultiDict

from bursar_sidecar.headers import CONTENT_LENGTH

if TYPE_CHECKING:
    from aiohttp.connector import Connection

#: Headers that aiohttp would add where the app sent none.
AUTO_HEADERS = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
_SKIPPED = CIMultiDict[None]((name, None) for name in AUTO_HEADERS)
#: A larger body waits for the connection to take it.
_AT_ONCE_MAX_BYTES = 64 << 10


class OutgoingRequest(aiohttp.ClientRequest):
    """A request to a provider. A small body is written with its head: aiohttp makes a task for every body that it writes."""

    _small = b""

    def update_auto_headers(self, skip_auto_headers: Iterable[str] | None) -> None:  # noqa: ARG002
        """Add nothing to what the app said."""
        self._skip_auto_headers = _SKIPPED

    def update_body_from_data(self, body: Any, _stacklevel: int = 3) -> None:
        """Keep a small body to be written at once; aiohttp sees to any other."""
        if isinstance(body, bytes) and len(body) <= _AT_ONCE_MAX_BYTES:
            self._small, body = body, None
            self.headers[CONTENT_LENGTH] = str(len(self._small))
        super().update_body_from_data(body, _stacklevel + 1)

    async def send(self, conn: Connection) -> aiohttp.ClientResponse:
        """Write head and body; the answer is read with what is returned. Raises aiohttp.ClientError, OSError."""
        small = self._small
        if small and conn.protocol is not None and conn.protocol.writing_paused:
            super().update_body_from_data(small)  # the head will have to wait, and the body behind it
            small = b""
        response = await super().send(conn)
        if small and conn.transport is not None:
            conn.transport.write(small)  # both go out when the loop's turn ends
        return response
