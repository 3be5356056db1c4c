"""The ids of calls: UUIDv7 (RFC 9562), made here and the same for ever (S16), and the hash that stands for a key."""

from __future__ import annotations

import hashlib
import os

from bursar_sidecar.clock import Clock

_LOW_BITS = 62
_LOW_MASK = (1 << _LOW_BITS) - 1
_MS_MASK = (1 << 48) - 1
_RANDOM_BYTES = 10  # of their 80 bits 74 are used
_POOL_BYTES = 100 * _RANDOM_BYTES


class RequestIds:
    """Makes request ids whose time is the control plane's, as far as it has been told how wrong this clock is.

    The server refuses ids whose time is too far from its own and says what time it has (S16): `correct` notes the
    difference, and every later id and timestamp carries it.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._offset_ns = 0
        self._pool = b""
        self._taken = 0

    @property
    def offset_ms(self) -> int:
        """How far the control plane's clock is ahead of this machine's, in milliseconds; 0 until it is known."""
        return self._offset_ns // 1_000_000

    def now_ns(self) -> int:
        """Return the instant by the control plane's clock, in nanoseconds since 1970."""
        return self._clock.now_ns() + self._offset_ns

    def correct(self, server_now_ns: int) -> None:
        """Take `server_now_ns` for the present instant from now on."""
        self._offset_ns = server_now_ns - self._clock.now_ns()

    def new(self) -> str:
        """Return a new UUIDv7 in its usual 36 characters."""
        if self._taken >= len(self._pool):  # one system call for a hundred ids
            self._pool, self._taken = os.urandom(_POOL_BYTES), 0
        random = int.from_bytes(self._pool[self._taken : self._taken + _RANDOM_BYTES], "big") >> 6
        self._taken += _RANDOM_BYTES
        milliseconds = self.now_ns() // 1_000_000
        value = (milliseconds & _MS_MASK) << 80 | 0x7 << 76 | (random >> _LOW_BITS) << 64
        digits = f"{value | 0b10 << _LOW_BITS | random & _LOW_MASK:032x}"
        return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def packed(request_id: str) -> bytes:
    """Return the 16 bytes of a request id."""
    return bytes.fromhex(request_id.replace("-", ""))


def unpacked(raw: bytes) -> str:
    """Return the usual 36 characters of a request id given as 16 bytes."""
    digits = raw.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def sha256_hex(secret: str) -> str:
    """Return the sha256 of a key's text in lower-case hexadecimal: all that is kept of it, from its first sight on."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()
