"""Takes the compression off an answer, piece by piece, should a provider compress although it was asked not to."""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Iterator
from typing import Protocol

#: One piece of input becomes about this much at a time; the rest follows when this has been passed on.
PIECE_MAX_BYTES = 256 << 10
_CODINGS_MAX = 3


class DecodingError(ValueError):
    """The bytes are not what the answer's content-encoding says, or it names a coding that is not known."""


class Decoder(Protocol):
    """Decodes one answer."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what `data` becomes, in pieces of about PIECE_MAX_BYTES. Raises DecodingError."""
        ...


def decoder_for(content_encoding: str) -> Decoder | None:
    """Return what decodes the codings of the header, last applied first; None where there is none.

    Raises DecodingError for a coding that is not known.
    """
    names = [name.strip().lower() for name in content_encoding.split(",")]
    names = [name for name in names if name not in ("", "identity")]
    if not names:
        return None
    if len(names) > _CODINGS_MAX:
        raise DecodingError("too many content codings")
    steps = [_one(name) for name in reversed(names)]
    return steps[0] if len(steps) == 1 else _Chain(steps)


def _one(name: str) -> Decoder:
    if name in ("gzip", "x-gzip"):
        return _Zlib(31)
    if name == "deflate":
        return _Deflate()
    if name == "br":
        return _Brotli()
    if name == "zstd":
        return _Zstd()
    raise DecodingError(f"the content coding {name[:20]!r} is not known")


class _Chain:
    def __init__(self, steps: list[Decoder]) -> None:
        self._steps = steps

    def feed(self, data: bytes) -> Iterator[bytes]:
        return self._through(data, 0)

    def _through(self, data: bytes, step: int) -> Iterator[bytes]:
        if step == len(self._steps):
            yield data
            return
        for piece in self._steps[step].feed(data):
            yield from self._through(piece, step + 1)


class _Zlib:
    def __init__(self, window_bits: int) -> None:
        self._window_bits = window_bits
        self._inner = zlib.decompressobj(window_bits)

    def feed(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._inner.eof:
                self._inner = zlib.decompressobj(self._window_bits)  # a further member of the same stream
            try:
                piece = self._inner.decompress(data, PIECE_MAX_BYTES)
            except zlib.error as error:
                raise DecodingError(f"the answer's compression is broken: {error}") from error
            data = self._inner.unused_data if self._inner.eof else self._inner.unconsumed_tail
            if piece:
                yield piece


class _Deflate:
    """deflate in its two spellings: with zlib's frame as RFC 9110 says, or without as some servers send it."""

    def __init__(self) -> None:
        self._first = b""
        self._inner: _Zlib | None = None

    def feed(self, data: bytes) -> Iterator[bytes]:
        if self._inner is None:
            self._first += data
            if len(self._first) < 2:
                return
            framed = self._first[0] & 0x0F == 8 and int.from_bytes(self._first[:2], "big") % 31 == 0
            self._inner = _Zlib(15 if framed else -15)
            data = self._first
        yield from self._inner.feed(data)


class _Brotli:
    def __init__(self) -> None:
        brotli = importlib.import_module("brotli")  # late: hardly any provider needs it
        self._inner = brotli.Decompressor()
        self._error: type[Exception] = brotli.error

    def feed(self, data: bytes) -> Iterator[bytes]:
        while True:
            try:
                piece = self._inner.process(data, output_buffer_limit=PIECE_MAX_BYTES)
            except self._error as error:
                raise DecodingError(f"the answer's compression is broken: {error}") from error
            data = b""
            if not piece:  # it says that it can take more before it has given everything
                return
            yield piece


class _Zstd:
    def __init__(self) -> None:
        try:
            zstd = importlib.import_module("compression.zstd")  # Python 3.14 and newer
        except ImportError:
            raise DecodingError("the content coding 'zstd' needs Python 3.14") from None
        self._make = zstd.ZstdDecompressor
        self._error: type[Exception] = zstd.ZstdError
        self._inner = self._make()

    def feed(self, data: bytes) -> Iterator[bytes]:
        while data or not self._inner.needs_input:
            if self._inner.eof:
                data, self._inner = self._inner.unused_data + data, self._make()
                if not data:
                    return
            try:
                piece = self._inner.decompress(data, PIECE_MAX_BYTES)
            except self._error as error:
                raise DecodingError(f"the answer's compression is broken: {error}") from error
            data = b""
            if piece:
                yield piece
