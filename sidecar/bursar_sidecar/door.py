"""Where apps' connections come in; says no to what is no HTTP request without repeating any of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Door(web.Server):
    """An HTTP server: `handler` answers requests, `unreadable` what cannot be read as one."""

    def __init__(self, handler: Handler, unreadable: Callable[[], web.Response], **settings: Any) -> None:
        super().__init__(handler, **settings)
        self._settings = settings
        self._unreadable = unreadable

    def __call__(self) -> web.RequestHandler:
        """Return the protocol of a new connection."""
        return _Connection(self, self._unreadable, loop=self._loop, **self._settings)


class _Connection(web.RequestHandler):
    __slots__ = ("_unreadable",)

    def __init__(self, server: web.Server, unreadable: Callable[[], web.Response], **settings: Any) -> None:
        super().__init__(server, **settings)
        self._unreadable = unreadable

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Log that it happened, and answer. The parser's own message quotes the bytes, and they could be a credential."""
        answer = super().handle_error(request, status, exc, None if message is None else "")
        if status >= 500:
            return answer
        answer = self._unreadable()
        answer.force_close()
        return answer
