"""Changes single members of a JSON text and leaves every other byte as it was.

An app's body is never serialised anew: number spellings, key order, duplicate keys, escapes and white space stay.
Positions come from a scan of the text, which must already be known to parse.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

_SPACE = re.compile(rb"[ \t\r\n]*+")
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_BRACKET = re.compile(rb'["{}\[\]]')
_SCALAR = re.compile(rb"[^,}\] \t\r\n]*+")


@dataclass(frozen=True, slots=True)
class Member:
    """One member of an object: its decoded key, and where key and value lie in the text (byte offsets)."""

    key: str
    start: int
    value_start: int
    end: int


@dataclass(frozen=True, slots=True)
class Edit:
    """Replace the bytes from `start` to `end` with `text`."""

    start: int
    end: int
    text: bytes = b""


class NotAnObjectError(ValueError):
    """The text has no JSON object where one was looked for."""


def members(body: bytes, start: int = 0) -> list[Member]:
    """Return the members of the object that begins at `start` (after white space); raises NotAnObjectError."""
    position = _skip(body, start)
    if body[position : position + 1] != b"{":
        raise NotAnObjectError("no object here")
    found: list[Member] = []
    position = _skip(body, position + 1)
    while body[position : position + 1] == b'"':
        key_end = _string_end(body, position)
        colon = _skip(body, key_end)
        value_start = _skip(body, colon + 1)
        end = value_end(body, value_start)
        found.append(Member(_key(body[position:key_end]), position, value_start, end))
        position = _skip(body, end)
        if body[position : position + 1] == b",":
            position = _skip(body, position + 1)
    return found


def value_end(body: bytes, start: int) -> int:
    """Return the offset behind the value that begins at `start`; raises NotAnObjectError where it never ends."""
    first = body[start : start + 1]
    if first == b'"':
        return _string_end(body, start)
    if first not in (b"{", b"["):
        scalar = _SCALAR.match(body, start)
        return scalar.end() if scalar else start
    depth, position = 0, start
    while True:
        token = _BRACKET.search(body, position)
        if token is None:
            raise NotAnObjectError("a value has no end")
        mark = token.group()
        if mark == b'"':
            position = _string_end(body, token.start())
            continue
        position = token.end()
        depth += 1 if mark in b"{[" else -1
        if depth == 0:
            return position


def removal(present: Sequence[Member], gone: Collection[int]) -> list[Edit]:
    """Return the edits that take the members with the indices `gone` out of their object, commas included."""
    kept = [index for index in range(len(present)) if index not in gone]
    if not kept:
        return [Edit(present[0].start, present[-1].end)] if present else []
    edits = [
        Edit(present[index].start, present[index + 1].start) for index in sorted(gone) if index < kept[-1]
    ]
    if kept[-1] < len(present) - 1:
        edits.append(Edit(present[kept[-1]].end, present[-1].end))
    return edits


def applied(body: bytes, edits: Iterable[Edit]) -> bytes:
    """Return `body` with the edits made; they do not overlap."""
    parts: list[bytes] = []
    position = 0
    for edit in sorted(edits, key=lambda one: (one.start, one.end)):
        parts += (body[position : edit.start], edit.text)
        position = edit.end
    parts.append(body[position:])
    return b"".join(parts)


def _key(quoted: bytes) -> str:
    decoded = json.loads(quoted) if b"\\" in quoted else quoted[1:-1].decode()
    return str(decoded)


def _skip(body: bytes, position: int) -> int:
    space = _SPACE.match(body, position)
    return space.end() if space else position


def _string_end(body: bytes, start: int) -> int:
    found = _STRING.match(body, start)
    if found is None:
        raise NotAnObjectError("a text has no end")
    return found.end()
