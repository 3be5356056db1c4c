"""Errors as the three providers write them."""

from __future__ import annotations

from collections.abc import Mapping

import orjson

_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}
_GEMINI_STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
}
_OPENAI_TYPES = {429: "requests", 500: "server_error", 503: "server_error"}


class BadRequestError(Exception):
    """The request gets an error with this status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def api_of(path: str, headers: Mapping[str, str]) -> str:
    """Return whose API a request is for: `openai`, `anthropic` or `gemini`."""
    if path.startswith("/v1beta") or ":" in path.rpartition("/")[2]:
        return "gemini"
    if "/messages" in path or "anthropic-version" in headers:
        return "anthropic"
    return "openai"


def error_body(api: str, status: int, message: str, request_id: str) -> bytes:
    """Return the provider's error shape."""
    if api == "anthropic":
        kind = _ANTHROPIC_TYPES.get(status, "api_error")
        error = {"type": kind, "message": message}
        return orjson.dumps({"type": "error", "error": error, "request_id": request_id})
    if api == "gemini":
        name = _GEMINI_STATUSES.get(status, "INTERNAL")
        return orjson.dumps({"error": {"code": status, "message": message, "status": name}})
    kind = _OPENAI_TYPES.get(status, "invalid_request_error")
    code = "invalid_api_key" if status == 401 else None
    return orjson.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})
