"""Which upstream a request is for, from its target alone: nothing in it can name another host."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import unquote

from bursar_sidecar.upstreams import Upstream

#: Paths of provider APIs that need no prefix.
_UNPREFIXED: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"/v1/(?:chat/completions|responses|embeddings)(?:/.*)?"), "openai"),
    (re.compile(r"/v1/messages(?:/.*)?"), "anthropic"),
    (re.compile(r"/v1(?:beta)?/models/[^/]*:[^/]*"), "gemini"),
)
#: Percent-encoded characters that need no encoding (RFC 3986, 2.3): with them one path has many spellings.
_NEEDLESS = re.compile(r"%(?:2[dDeE]|3[0-9]|4[1-9a-fA-F]|5[0-9aAfF]|6[1-9a-fA-F]|7[0-9aAeE])")
#: An app whose base URL ends with a slash puts a second one between the upstream and the path.
_SLASHES = re.compile(r"^(/[^/]+)//+")
_PLAIN = re.compile(r"(?:/[A-Za-z0-9_~:.@!$&'()*+,;=-]+)+")
_KNOWN_PATHS_MAX = 256
_SEPARATORS = re.compile(r"[/\\]")


class RouteError(ValueError):
    """A target that is not forwarded; `status` is 400 or 404, the message is for the app."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Route(NamedTuple):
    """Where a request goes: the upstream, the path there as it is sent, and as it is understood (decoded)."""

    upstream: Upstream
    path: str
    decoded_path: str
    query: str


class Router:
    """Finds routes among the configured upstreams; `missing` says why a known one cannot be reached."""

    def __init__(self, upstreams: Mapping[str, Upstream], missing: Mapping[str, str]) -> None:
        self._upstreams = upstreams
        self._missing = missing
        self._known: dict[str, tuple[Upstream, str, str]] = {}  # most apps use a handful of paths

    def route(self, target: str) -> Route:
        """Return the route of a request target (path and query as on the wire). Raises RouteError."""
        if not target.startswith("/") or target.startswith("//"):
            raise RouteError(400, "the request target must be a path, not an address")
        path, _, query = target.partition("?")
        if query and not (query.isascii() and query.isprintable() and " " not in query):
            raise RouteError(400, "the query has characters that must be percent-encoded")
        known = self._known.get(path)
        if known is None:
            known = self._found(path.partition("#")[0])
            if len(self._known) < _KNOWN_PATHS_MAX:
                self._known[path] = known
        return Route(*known, query)

    def _found(self, path: str) -> tuple[Upstream, str, str]:
        """Return the upstream of a path, and the path there as it is sent and decoded."""
        path = _SLASHES.sub(r"\1/", path)
        if _PLAIN.fullmatch(path) is None or "/." in path:
            path = _checked(path)
        first, slash, rest = path[1:].partition("/")
        name = first.lower()
        upstream = self._upstreams.get(name)
        if upstream is not None:
            return _there(upstream, slash + rest or "/")
        decoded = unquote(path)
        for pattern, standard in _UNPREFIXED:
            if pattern.fullmatch(decoded):
                upstream, name = self._upstreams.get(standard), standard
                break
        if upstream is not None:
            return _there(upstream, path)
        if name in self._missing:
            raise RouteError(404, self._missing[name])
        raise RouteError(
            404,
            "no provider has this path: begin it with the provider's name, for example /openai/v1/chat/completions "
            f"(here: {', '.join(sorted(self._upstreams))})",
        )


def _there(upstream: Upstream, path: str) -> tuple[Upstream, str, str]:
    decoded = unquote(path) if "%" in path else path
    return upstream.at(decoded), path, decoded


def _checked(path: str) -> str:
    """Return the one spelling of a path that is forwarded. Raises RouteError where it steps out of its place."""
    if any(not "!" <= character <= "~" or character == "\\" for character in path):
        raise RouteError(400, "the path has characters that must be percent-encoded")
    path = _NEEDLESS.sub(lambda found: chr(int(found[0][1:], 16)), path)
    decoded = path
    for _ in range(3):  # as often as a server behind a server might
        segments = _SEPARATORS.split(decoded)
        # Some servers take a segment's parameters off before they follow it.
        if any(segment.partition(";")[0] in (".", "..") for segment in segments):
            raise RouteError(400, "the path must not have . or .. in it")
        if "" in segments[1:-1]:
            raise RouteError(400, "the path must not have empty segments")
        if "\x00" in decoded:
            raise RouteError(400, "the path must not have a NUL in it")
        further = unquote(decoded)
        if further == decoded:
            return path
        decoded = further
    raise RouteError(400, "the path is encoded too often")
