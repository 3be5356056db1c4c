"""Cuts a server-sent event stream into its events without changing a byte.

The format is the WHATWG HTML standard's (9.2.6): lines end with CR LF, LF or CR, an empty line ends an event.
"""

from __future__ import annotations

import re

from bursar_sidecar.providers.base import EVENT_MAX_BYTES

#: Two line ends in a row; one CR LF never counts as two.
_BLANK = re.compile(rb"\r\n(?:\r\n?|\n)|\n(?:\r\n?|\n)|\r\r\n?")


class Raw(bytes):
    """Bytes that are no event of their own: a line feed that came late, or a piece of an event too large to keep."""


class Splitter:
    """Takes a stream in pieces cut anywhere, gives whole events, each with the blank line that ends it.

    Joined, the events and `rest` are the bytes that were fed. An event larger than `max_bytes` comes in pieces as
    `Raw`, so that no more than that is ever kept.
    """

    __slots__ = ("_after_cr", "_carry", "_kept", "_max_bytes", "_size", "_skipping")

    def __init__(self, max_bytes: int = EVENT_MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._kept: list[bytes] = []
        self._size = 0
        self._carry = b""  # the last bytes kept, as many as a blank line may begin with
        self._after_cr = False
        self._skipping = False

    def feed(self, data: bytes) -> list[bytes]:
        """Return the events that `data` completes."""
        blocks: list[bytes] = []
        if self._after_cr and data:
            self._after_cr = False
            if data[0] == 0x0A:
                blocks.append(Raw(b"\n"))
                data = data[1:]
        start = 0
        for stop in self._ends(data):
            blocks.append(self._block(data[start:stop]))
            start = stop
        rest = data[start:] if start else data
        if start and not rest and data.endswith(b"\r"):
            self._after_cr = True
        if rest:
            self._keep(rest, blocks)
        return blocks

    def rest(self) -> bytes:
        """Return what came after the last event, and forget it."""
        rest = b"".join(self._kept)
        self._kept, self._size, self._carry = [], 0, b""
        return Raw(rest) if self._skipping else rest

    def _ends(self, data: bytes) -> list[int]:
        """Return the offsets in `data` behind each blank line."""
        carry = self._carry
        window = carry + data if carry else data
        offset = len(carry)
        ends: list[int] = []
        if b"\r" in window:
            return [found.end() - offset for found in _BLANK.finditer(window)]
        position = window.find(b"\n\n")
        while position >= 0:
            position += 2
            ends.append(position - offset)
            position = window.find(b"\n\n", position)
        return ends

    def _block(self, piece: bytes) -> bytes:
        if self._kept:
            self._kept.append(piece)
            piece = b"".join(self._kept)
            self._kept = []
        self._size, self._carry = 0, b""
        if self._skipping:
            self._skipping = False
            return Raw(piece)
        return piece

    def _keep(self, rest: bytes, blocks: list[bytes]) -> None:
        self._carry = rest[-3:] if len(rest) >= 3 else (self._carry + rest)[-3:]
        self._kept.append(rest)
        self._size += len(rest)
        if self._size > self._max_bytes or self._skipping:
            self._skipping = True
            blocks.append(Raw(b"".join(self._kept)))
            self._kept, self._size = [], 0


def data_of(block: bytes) -> bytes:
    """Return the data of one event: its `data` lines joined with line feeds; empty where it has none."""
    lines = [line[5:].removeprefix(b" ") for line in block.splitlines() if line.startswith(b"data:")]
    return lines[0] if len(lines) == 1 else b"\n".join(lines)


def is_error_line(block: bytes) -> bool:
    """Return whether the event is an error outside the standard: a bare `error:` line, or `event: error`."""
    return any(line.startswith((b"error:", b"event: error", b"event:error")) for line in block.splitlines())
