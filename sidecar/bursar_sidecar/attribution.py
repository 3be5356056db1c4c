"""Who and what a call is for, as the app says it: tags, session, user.

Tags come from three places; where two name the same key the nearer to the call wins: `metadata.tags` in the body over
the header `x-bursar-tags` over W3C `baggage`. They are checked as the contract bounds them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import unquote

from multidict import CIMultiDictProxy, istr

TAGS_MAX = 32
TAG_KEY_MAX_CHARACTERS = 64
TAG_VALUE_MAX_CHARACTERS = 256
SESSION_MAX_CHARACTERS = 128
USER_MAX_CHARACTERS = 320

_TAGS = istr("x-bursar-tags")
_SESSION = istr("x-bursar-session")
_USER = istr("x-bursar-user")
_BAGGAGE = istr("baggage")
_BAGGAGE_PREFIX = "bursar.tag."


class AttributionError(ValueError):
    """What the app says cannot be recorded; the message begins with the header or field that is wrong."""


class Attribution(NamedTuple):
    """Tags, session and user of a call; empty where the app says nothing."""

    tags: Mapping[str, str]
    session_id: str
    user_id: str


def attribution_of(headers: CIMultiDictProxy[str], body_tags: Mapping[str, str]) -> Attribution:
    """Return what headers and body say. Raises AttributionError naming the header or field."""
    tags: dict[str, str] = {}
    for value in headers.getall(_BAGGAGE, ()):
        if _BAGGAGE_PREFIX in value:
            tags |= _checked("baggage", _baggage(value))
    for value in headers.getall(_TAGS, ()):
        tags |= _checked(_TAGS, _pairs(value))
    if body_tags:
        tags |= _checked("metadata.tags", list(body_tags.items()))
    if len(tags) > TAGS_MAX:
        raise AttributionError(f"{_TAGS}: at most {TAGS_MAX} tags are allowed, {len(tags)} were sent")
    return Attribution(
        tags,
        _text(headers, _SESSION, SESSION_MAX_CHARACTERS),
        _text(headers, _USER, USER_MAX_CHARACTERS),
    )


def body_user_of(user: str | None) -> str:
    """Return the user that a body names, as it can be sent; empty where it cannot be any user of ours.

    The field is the provider's: what apps put there is never a reason to refuse a call.
    """
    return user if user and len(user) <= USER_MAX_CHARACTERS and _sound(user) else ""


def _pairs(value: str) -> list[tuple[str, str]]:
    """Read `team=core,project=x`; commas, equal signs and the like inside are percent-encoded."""
    pairs: list[tuple[str, str]] = []
    for part in value.split(","):
        if not part.strip():
            continue
        key, equals, text = part.partition("=")
        if not equals:
            raise AttributionError(f"{_TAGS}: must be key=value pairs with commas between them")
        pairs.append((unquote(key.strip()), unquote(text.strip())))
    return pairs


def _baggage(value: str) -> list[tuple[str, str]]:
    """Read the entries `bursar.tag.*` of a baggage header (W3C Baggage 3.2); properties after a semicolon are not ours."""
    pairs: list[tuple[str, str]] = []
    for part in value.split(","):
        key, equals, text = part.partition(";")[0].partition("=")
        key = key.strip()
        if equals and key.startswith(_BAGGAGE_PREFIX):
            pairs.append((key.removeprefix(_BAGGAGE_PREFIX), unquote(text.strip())))
    return pairs


def _checked(source: str, pairs: list[tuple[str, str]]) -> dict[str, str]:
    tags: dict[str, str] = {}
    for key, value in pairs:
        if key in tags:
            raise AttributionError(f"{source}: the tag {key[:TAG_KEY_MAX_CHARACTERS]!r} is there twice")
        if not 1 <= len(key) <= TAG_KEY_MAX_CHARACTERS or not _sound(key):
            raise AttributionError(
                f"{source}: a tag's key has 1 to {TAG_KEY_MAX_CHARACTERS} printable characters"
            )
        if len(value) > TAG_VALUE_MAX_CHARACTERS or not _sound(value):
            raise AttributionError(
                f"{source}: the value of {key!r} must have at most {TAG_VALUE_MAX_CHARACTERS} printable characters"
            )
        tags[key] = value
    return tags


def _text(headers: CIMultiDictProxy[str], name: str, most: int) -> str:
    values = headers.getall(name, ())
    if not values:
        return ""
    value = values[0].strip()
    if len(values) > 1 or len(value) > most or not _sound(value):
        raise AttributionError(f"{name}: must be one text of at most {most} printable characters")
    return value


def _sound(text: str) -> bool:
    """Return whether a text has no control characters and no halves of characters (lone surrogates)."""
    return text.isprintable() and not any("\ud800" <= character <= "\udfff" for character in text)
