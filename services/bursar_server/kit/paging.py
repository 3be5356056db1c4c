"""Page tokens: where the next page starts, opaque to callers and bound to what was asked."""

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TypeVar
from uuid import UUID

from bursar_server.kit.errors import invalid

Item = TypeVar("Item")

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000


def page_size_of(requested: int, field: str = "page_size") -> int:
    """Return the page size to use: default 50, at most 1000 (F123). Raises INVALID_FIELD for a negative one."""
    if requested < 0:
        raise invalid(field, "must not be negative")
    return min(requested, MAX_PAGE_SIZE) if requested else DEFAULT_PAGE_SIZE


def _digest(query: Sequence[object]) -> str:
    return hashlib.sha256(repr(list(query)).encode()).hexdigest()[:12]


def encode_page_token(position: Sequence[str], query: Sequence[object]) -> str:
    """Return the token that starts a page after `position`, valid for the same `query` only."""
    text = json.dumps([_digest(query), *position], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode_page_token(token: str, query: Sequence[object], length: int) -> list[str] | None:
    """Return the position in a token, or None for the first page.

    Raises INVALID_FIELD naming `page_token` if it is not one of ours, or was made for another query.
    """
    if not token:
        return None
    if len(token) > 2048:
        raise invalid("page_token", "is too long")
    try:
        decoded = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    except (binascii.Error, ValueError) as error:
        raise invalid("page_token", "is not a token that a list answered") from error
    if not (
        isinstance(decoded, list) and len(decoded) == length + 1 and all(isinstance(x, str) for x in decoded)
    ):
        raise invalid("page_token", "is not a token that a list answered")
    try:
        storable = b"\0" not in "".join(decoded).encode()
    except UnicodeEncodeError:
        storable = False
    if not storable:
        raise invalid("page_token", "is not a token that a list answered")
    if decoded[0] != _digest(query):
        raise invalid("page_token", "was made for a list with other filters")
    return decoded[1:]


def cut_page(
    found: Sequence[Item], size: int, query: Sequence[object], position: Callable[[Item], Sequence[str]]
) -> tuple[list[Item], str]:
    """Return the first `size` of what was found, and the token of the page after them; empty at the end.

    `found` has one more than `size` where there is a next page; `position` says where an item stands in the order.
    """
    page = list(found[:size])
    more = len(found) > size and bool(page)
    return page, encode_page_token(position(page[-1]), query) if more else ""


def position_uuid(text: str) -> UUID:
    """Return the id in a token's position; raises INVALID_FIELD naming `page_token` where it is none."""
    try:
        return UUID(text)
    except ValueError as error:
        raise invalid("page_token", "is not a token that a list answered") from error


def position_instant(text: str) -> datetime:
    """Return the instant in a token's position; raises INVALID_FIELD naming `page_token` where it is none."""
    try:
        instant = datetime.fromisoformat(text)
    except ValueError as error:
        raise invalid("page_token", "is not a token that a list answered") from error
    if instant.tzinfo is None:
        raise invalid("page_token", "is not a token that a list answered")
    return instant


def position_integer(text: str) -> int:
    """Return the number in a token's position; raises INVALID_FIELD naming `page_token` where it is none."""
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise invalid("page_token", "is not a token that a list answered")
    return int(text)
