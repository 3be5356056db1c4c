"""Finds named members in a JSON text too large to keep, fed in pieces cut anywhere.

Keeps the member being read (bounded) and nothing else. Skips over texts and numbers at the speed of the regular
expression engine, so that 50 MB of base64 cost about what reading them costs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

#: Members larger than this are given as if they were empty (usage objects take some hundred bytes).
VALUE_MAX_BYTES = 256 << 10
_KEY_MAX_BYTES = 64

_STRUCTURE = re.compile(rb'["{}\[\]:]')
_STRUCTURE_OR_COMMA = re.compile(rb'["{}\[\]:,]')
_TEXT_END = re.compile(rb'["\\]')

#: Where a wanted member may stand: the depth of the object that has it (the root is 1), or anywhere.
ANYWHERE = 0


class MemberScanner:
    """Calls `found(key, depth, value)` for every member whose key is wanted at its depth.

    Keys written with escapes are not recognised (no provider writes them). Text that is not JSON finds nothing and
    harms nothing.
    """

    def __init__(self, wanted: Mapping[bytes, int], found: Callable[[bytes, int, bytes], None]) -> None:
        self._wanted = wanted
        self._found = found
        self._depth = 0
        self._in_text = False
        self._escaped = False
        self._text: bytearray | None = None  # the text being read where it may be a key; None when too long
        self._last_text = b""
        self._capture: bytearray | None = None
        self._capture_key = b""
        self._capture_depth = 0
        self._capture_begun = False
        self._capture_lost = False
        self.closed = False  # the root value has ended

    def feed(self, data: bytes) -> int:
        """Read on; return the offset in `data` of the byte that closes the root value, -1 while it is open."""
        position, taken, closes_at = 0, 0, -1
        size = len(data)
        while position < size:
            if self._in_text:
                position = self._read_text(data, position)
                if not self._in_text and self._capture is not None and self._ends_with_text():
                    taken = self._finish(data, taken, position)
                continue
            pattern = _STRUCTURE if self._capture is None else _STRUCTURE_OR_COMMA
            token = pattern.search(data, position)
            if token is None:
                break
            mark = token.group()
            position = token.end()
            if self._capture is not None and self._ends_before(mark):
                taken = self._finish(data, taken, token.start())
            if mark == b":":
                if self._capture is None and self._is_wanted():
                    self._begin_capture()
                    taken = position
            elif mark == b'"':
                self._begin_text()
            elif mark != b",":
                closes_at = self._bracket(mark, token.start(), closes_at)
                if self._capture is not None and self._ends_with(mark):
                    taken = self._finish(data, taken, position)
        if self._capture is not None:
            self._take(data[taken:])
        return closes_at

    def _begin_text(self) -> None:
        self._in_text, self._escaped, self._text = True, False, bytearray()
        self._capture_begun = True

    def _read_text(self, data: bytes, position: int) -> int:
        start = position
        while position < len(data):
            if self._escaped:
                self._escaped = False
                position += 1
                continue
            stop = _TEXT_END.search(data, position)
            if stop is None:
                position = len(data)
                break
            position = stop.end()
            if stop.group() == b'"':
                self._in_text = False
                self._note(data, start, position - 1)
                self._last_text = bytes(self._text) if self._text is not None else b""
                return position
            self._escaped = True
        self._note(data, start, position)
        return position

    def _note(self, data: bytes, start: int, stop: int) -> None:
        if self._text is None:
            return
        if len(self._text) + stop - start > _KEY_MAX_BYTES:
            self._text = None
        else:
            self._text += data[start:stop]

    def _bracket(self, mark: bytes, at: int, closes_at: int) -> int:
        if mark in b"{[":
            self._depth += 1
            self._capture_begun = True
        elif self._depth:
            self._depth -= 1
            if self._depth == 0 and not self.closed:
                self.closed = True
                return at
        return closes_at

    def _is_wanted(self) -> bool:
        depth = self._wanted.get(self._last_text)
        return depth is not None and depth in (ANYWHERE, self._depth)

    def _begin_capture(self) -> None:
        self._capture = bytearray()
        self._capture_key, self._capture_depth = self._last_text, self._depth
        self._capture_begun = self._capture_lost = False

    def _ends_before(self, mark: bytes) -> bool:
        """Return whether `mark` follows a captured number or word."""
        return mark in b",}]" and self._depth == self._capture_depth and not self._capture_begun

    def _ends_with(self, mark: bytes) -> bool:
        return mark in b"}]" and self._depth == self._capture_depth

    def _ends_with_text(self) -> bool:
        return self._depth == self._capture_depth

    def _finish(self, data: bytes, taken: int, stop: int) -> int:
        self._take(data[taken:stop])
        capture, self._capture = self._capture, None
        if capture is not None:
            self._found(self._capture_key, self._capture_depth, bytes(capture).strip())
        return stop

    def _take(self, piece: bytes) -> None:
        if self._capture is None or self._capture_lost:
            return
        if len(self._capture) + len(piece) > VALUE_MAX_BYTES:
            self._capture_lost = True
            self._capture.clear()
        else:
            self._capture += piece
