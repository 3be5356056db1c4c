"""Which headers travel: to the provider, and back to the app."""

from __future__ import annotations

from multidict import CIMultiDict, CIMultiDictProxy, istr

#: RFC 9110 (7.6.1) and its predecessors, and what each of the two connections says for itself.
_HOP_BY_HOP = tuple(
    istr(name)
    for name in (
        "Connection",
        "Keep-Alive",
        "Proxy-Connection",
        "Proxy-Authenticate",
        "Proxy-Authorization",
        "TE",
        "Trailer",
        "Transfer-Encoding",
        "Upgrade",
    )
)
_REQUEST_ONLY = tuple(
    istr(name)
    for name in ("Host", "Content-Length", "Content-Encoding", "Accept-Encoding", "Expect", "HTTP2-Settings")
)
_OWN_PREFIX = "x-bursar-"
_CONNECTION = istr("Connection")
_ACCEPT_ENCODING = istr("Accept-Encoding")
_IDENTITY = "identity"

REQUEST_ID = istr("x-bursar-request-id")
COST_USD = istr("x-bursar-cost-usd")
REMAINING_USD = istr("x-bursar-remaining-usd")
FIT_OUTPUT_TOKENS = istr("x-bursar-fit-output-tokens")
CONTENT_LENGTH = istr("Content-Length")
CONTENT_ENCODING = istr("Content-Encoding")
CONTENT_TYPE = istr("Content-Type")


def upstream_headers(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    """Return the request headers that go to the provider, credentials still among them; bodies go and come uncompressed."""
    kept = CIMultiDict(headers)
    _drop_hop_by_hop(kept)
    for name in _REQUEST_ONLY:
        kept.popall(name, None)
    _drop_own(kept)
    kept[_ACCEPT_ENCODING] = _IDENTITY
    return kept


def app_headers(
    headers: CIMultiDictProxy[str], request_id: str, *, keep_length: bool, decoded: bool
) -> CIMultiDict[str]:
    """Return the answer's headers for the app. `decoded`: its compression was taken off on the way."""
    kept = CIMultiDict(headers)
    _drop_hop_by_hop(kept)
    if not keep_length:
        kept.popall(CONTENT_LENGTH, None)
    if decoded:
        kept.popall(CONTENT_ENCODING, None)
    _drop_own(kept)
    kept[REQUEST_ID] = request_id
    return kept


def _drop_hop_by_hop(headers: CIMultiDict[str]) -> None:
    named = headers.getall(_CONNECTION, ())
    for value in named:
        for name in value.split(","):
            name = name.strip()
            if name and name.lower() not in ("keep-alive", "close"):
                headers.popall(name, None)
    for name in _HOP_BY_HOP:
        headers.popall(name, None)


def _drop_own(headers: CIMultiDict[str]) -> None:
    own = [name for name in headers if name[:9].lower() == _OWN_PREFIX]
    for name in own:
        headers.popall(name, None)
