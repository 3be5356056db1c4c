"""Cuts streams that are not server-sent events into their parts without changing a byte: lines, elements, frames.

Each splitter does what `sse.Splitter` does: joined, the parts and `rest` are the bytes that were fed, and what is no
part of its own, or too large to keep, comes as `Raw`.
"""

from __future__ import annotations

import re
import zlib
from typing import NamedTuple

from bursar_sidecar.providers.base import EVENT_MAX_BYTES
from bursar_sidecar.providers.sse import Raw

_LINE = re.compile(rb"[^\n]*\n|[^\n]+")
_MARK = re.compile(rb'["{}\[\]]')
_TEXT_END = re.compile(rb'["\\]')

_PRELUDE_BYTES = 12
_FRAME_MIN_BYTES = 16
_CRC_BYTES = 4
_TEXT_TYPE = 7
#: Bytes of a header's value by its type; those with a length of their own are not in it (AWS event stream encoding).
_FIXED_VALUE_BYTES = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}


class LineSplitter:
    """Newline-delimited JSON: gives whole lines, each with its line feed; blank ones come as `Raw`."""

    __slots__ = ("_kept", "_size", "_skipping")

    def __init__(self) -> None:
        self._kept: list[bytes] = []
        self._size = 0
        self._skipping = False

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that `data` completes."""
        lines: list[bytes] = []
        for piece in _LINE.findall(data):
            self._kept.append(piece)
            self._size += len(piece)
            if piece.endswith(b"\n"):
                lines.append(self._taken())
                self._skipping = False
            elif self._size > EVENT_MAX_BYTES:
                self._skipping = True
                lines.append(self._taken())
        return lines

    def rest(self) -> bytes:
        """Return what came after the last line feed (a whole line, where the last has none), and forget it."""
        return self._taken()

    def _taken(self) -> bytes:
        line = b"".join(self._kept)
        self._kept, self._size = [], 0
        return Raw(line) if self._skipping or not line.strip() else line


class ElementSplitter:
    """One JSON array: gives its elements, each with what stands before it; the closing bracket and the rest are `Raw`."""

    __slots__ = ("_closed", "_depth", "_escaped", "_in_text", "_kept", "_size", "_skipping")

    def __init__(self) -> None:
        self._kept: list[bytes] = []
        self._size = 0
        self._depth = 0
        self._in_text = False
        self._escaped = False
        self._closed = False
        self._skipping = False

    @property
    def closed(self) -> bool:
        """Whether the array has ended."""
        return self._closed

    def feed(self, data: bytes) -> list[bytes]:
        """Return the elements that `data` completes."""
        if self._closed:
            return [Raw(data)] if data else []
        parts: list[bytes] = []
        start = position = 0
        while position < len(data):
            if self._in_text:
                position = self._past_text(data, position)
                continue
            mark = _MARK.search(data, position)
            if mark is None:
                break
            position = mark.end()
            if mark.group() == b'"':
                self._in_text = True
            elif mark.group() in b"{[":
                self._depth += 1
            else:
                self._depth -= 1
                if self._depth == 1:
                    parts.append(self._taken(data[start:position]))
                    start = position
                elif self._depth <= 0:
                    self._closed = True
                    parts.append(Raw(self._taken(data[start:])))
                    return parts
        self._keep(data[start:], parts)
        return parts

    def rest(self) -> bytes:
        """Return what came after the last element, and forget it."""
        return Raw(self._taken(b""))

    def _past_text(self, data: bytes, position: int) -> int:
        if self._escaped:
            self._escaped = False
            return position + 1
        stop = _TEXT_END.search(data, position)
        if stop is None:
            return len(data)
        if stop.group() == b'"':
            self._in_text = False
        else:
            self._escaped = True
        return stop.end()

    def _keep(self, piece: bytes, parts: list[bytes]) -> None:
        if not piece:
            return
        self._kept.append(piece)
        self._size += len(piece)
        if self._size > EVENT_MAX_BYTES or self._skipping:
            self._skipping = True
            parts.append(Raw(b"".join(self._kept)))
            self._kept, self._size = [], 0

    def _taken(self, last: bytes) -> bytes:
        element = b"".join((*self._kept, last))
        skipped, self._skipping = self._skipping, False
        self._kept, self._size = [], 0
        return Raw(element) if skipped else element


class FrameSplitter:
    """Amazon's binary event stream: gives whole frames. Behind a broken prelude nothing can be told apart any more."""

    __slots__ = ("_buffer", "_lost", "_skip")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._skip = 0  # so much of a frame too large to keep is still to come
        self._lost = False

    def feed(self, data: bytes) -> list[bytes]:
        """Return the frames that `data` completes."""
        self._buffer += data
        parts: list[bytes] = []
        while self._buffer:
            size = self._part_size()
            if size == 0:
                break
            part = bytes(self._buffer[:size])
            del self._buffer[:size]
            if self._lost or self._skip:
                self._skip = max(self._skip - size, 0)
                part = Raw(part)
            parts.append(part)
        return parts

    def rest(self) -> bytes:
        """Return the beginning of a frame that never ended, and forget it."""
        rest = Raw(self._buffer)
        self._buffer = bytearray()
        return rest

    def _part_size(self) -> int:
        """Return the size of the next part in the buffer, 0 while it is not all there."""
        buffer = self._buffer
        if self._lost:
            return len(buffer)
        if self._skip:
            return min(self._skip, len(buffer))
        if len(buffer) < _PRELUDE_BYTES:
            return 0
        total, headers = int.from_bytes(buffer[:4], "big"), int.from_bytes(buffer[4:8], "big")
        sound = zlib.crc32(buffer[:8]) == int.from_bytes(buffer[8:_PRELUDE_BYTES], "big")
        if not sound or total < _FRAME_MIN_BYTES or headers > total - _FRAME_MIN_BYTES:
            self._lost = True
            return len(buffer)
        if total > EVENT_MAX_BYTES:
            self._skip = total
            return min(total, len(buffer))
        return total if len(buffer) >= total else 0


class Frame(NamedTuple):
    """One frame: its text headers by name, and its payload."""

    headers: dict[str, str]
    payload: bytes


def frame_of(block: bytes) -> Frame | None:
    """Return the frame in `block`; None where its checksum or its headers are wrong."""
    if len(block) < _FRAME_MIN_BYTES:
        return None
    if zlib.crc32(block[:-_CRC_BYTES]) != int.from_bytes(block[-_CRC_BYTES:], "big"):
        return None
    payload_start = _PRELUDE_BYTES + int.from_bytes(block[4:8], "big")
    headers = _headers(block[_PRELUDE_BYTES:payload_start])
    return None if headers is None else Frame(headers, block[payload_start:-_CRC_BYTES])


def _headers(data: bytes) -> dict[str, str] | None:
    found: dict[str, str] = {}
    at = 0
    while at < len(data):
        name_end = at + 1 + data[at]
        if name_end >= len(data):
            return None
        name, kind = data[at + 1 : name_end], data[name_end]
        at = name_end + 1
        size = _FIXED_VALUE_BYTES.get(kind)
        if size is None:
            size = int.from_bytes(data[at : at + 2], "big")
            at += 2
        if kind == _TEXT_TYPE:
            found[name.decode(errors="replace")] = data[at : at + size].decode(errors="replace")
        at += size
    return found
