"""Whose call it is: finds the app's Bursar key wherever SDKs put keys, and keeps it from going any further."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import unquote_plus

from multidict import CIMultiDict, CIMultiDictProxy, istr

from bursar_sidecar.ids import sha256_hex

_PREFIX = "bur_"
_KEY_MAX_CHARACTERS = 200
#: Headers that SDKs send keys in.
_AUTHORIZATION = istr("Authorization")
CREDENTIAL_HEADERS = (_AUTHORIZATION, istr("x-api-key"), istr("x-goog-api-key"), istr("api-key"))
#: What goes with a signature of AWS's. One made for the sidecar's address is no credential at the provider's.
_SIGNATURE_HEADERS = (istr("x-amz-date"), istr("x-amz-security-token"), istr("x-amz-content-sha256"))
_SIGNATURE = "AWS4-"
#: AWS's SDKs send a bearer token over TLS alone, but an access key id to any address: it may be a Bursar key.
_ACCESS_KEY = re.compile(r"AWS4-HMAC-SHA256 Credential=([^/,\s]+)/")


class Caller(NamedTuple):
    """The key of a request as its sha256. `own`: the app sent it itself, so its other credentials are taken away too."""

    key_sha256: str
    own: bool


def caller_of(headers: CIMultiDictProxy[str], query: str, carried_key_sha256: str | None) -> Caller | None:
    """Return whose request it is; None where neither the app sends a Bursar key nor the sidecar carries one."""
    for name in CREDENTIAL_HEADERS:
        for value in headers.getall(name, ()):
            key = _key_in(value, bearer=name is _AUTHORIZATION)
            if key:
                return Caller(sha256_hex(key), own=True)
    for parameter, value in _parameters(query):
        if parameter == "key" and _is_key(value):
            return Caller(sha256_hex(value), own=True)
    return None if carried_key_sha256 is None else Caller(carried_key_sha256, own=False)


def without_credentials(headers: CIMultiDict[str]) -> None:
    """Remove every header that a key or a signature can come in."""
    for name in (*CREDENTIAL_HEADERS, *_SIGNATURE_HEADERS):
        headers.popall(name, None)


def query_without_key(query: str, every_key: bool) -> str:
    """Return the query without `key` parameters: those with a Bursar key, or `every_key` one; the rest byte for byte."""
    if "key" not in query and "%" not in query:
        return query
    kept = []
    for part in query.split("&"):
        name, _, value = part.partition("=")
        if unquote_plus(name) != "key" or not (every_key or unquote_plus(value).startswith(_PREFIX)):
            kept.append(part)
    return "&".join(kept)


def provider_credential(given: Mapping[str, str], headers: CIMultiDict[str]) -> None:
    """Put the provider's own credential on a request; replaces what stands there under its name."""
    for name, value in given.items():
        headers[name] = value


def has_credentials(headers: CIMultiDict[str], query: str) -> bool:
    """Return whether the app brought a credential of the provider's."""
    brought = any(not headers[name].startswith(_SIGNATURE) for name in CREDENTIAL_HEADERS if name in headers)
    return brought or any(name == "key" for name, _ in _parameters(query))


def _key_in(value: str, *, bearer: bool) -> str | None:
    value = value.strip()
    signed = _ACCESS_KEY.match(value) if bearer else None
    if signed is not None:
        return signed.group(1) if _is_key(signed.group(1)) else None
    if bearer or value[:7].lower() == "bearer ":
        scheme, _, value = value.partition(" ")
        if scheme.lower() != "bearer":
            return None
        value = value.strip()
    return value if _is_key(value) else None


def _is_key(text: str) -> bool:
    return text.startswith(_PREFIX) and len(text) <= _KEY_MAX_CHARACTERS


def _parameters(query: str) -> list[tuple[str, str]]:
    if "key" not in query and "%" not in query:
        return []
    pairs = (part.partition("=") for part in query.split("&"))
    return [(unquote_plus(name), unquote_plus(value)) for name, _, value in pairs]
