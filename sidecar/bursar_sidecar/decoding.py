"""Takes compression off: an answer's, piece by piece, should a provider compress although asked not to; a request's, whole.

What comes out is bounded whatever goes in, and an answer that cannot be read is passed on as it came.
"""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from bursar_sidecar.providers.base import BYTES_PER_TOKEN, HELD_MAX_BYTES, ApiCall, Metered, Outcome
from bursar_sidecar.providers.readers import PassReader
from bursar_sidecar.usage import CUT_ANSWER_TOKENS_MAX, Findings, settle

#: One piece of input becomes about this much at a time; the rest follows when this has been passed on.
PIECE_MAX_BYTES = 256 << 10
_CODINGS_MAX = 3
#: An answer that becomes larger than this and so many times larger than it came is taken for a bomb. Text that one
#: would read does not reach a tenth of it; a bomb passes it at once.
BOMB_MIN_BYTES = 16 << 20
BOMB_RATIO = 256
#: The largest window that zstd is given (RFC 9659 allows no larger one in HTTP): 8 MiB.
_ZSTD_WINDOW_LOG_MAX = 23
_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_WINDOW_BITS = 31


class DecodingError(ValueError):
    """The bytes are not what the answer's content-encoding says, or it names a coding that is not known."""


class UnknownCodingError(DecodingError):
    """A coding that is not known here, or too many of them."""


class Codec(Protocol):
    """Decodes one coding."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what `data` becomes, in pieces of about PIECE_MAX_BYTES. Raises DecodingError."""
        ...

    @property
    def ended(self) -> bool:
        """Whether the coding says that everything has come."""
        ...


class Decoder:
    """Decodes one answer, within bounds. `raw` is what has been fed so far, None once that is too much to keep."""

    __slots__ = ("_codec", "_decoded_bytes", "_fed_bytes", "raw")

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._fed_bytes = 0
        self._decoded_bytes = 0
        self.raw: bytes | None = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what `data` becomes, in pieces of about PIECE_MAX_BYTES.

        Raises DecodingError where that is nothing, or a bomb.
        """
        self._fed_bytes += len(data)
        if self.raw is not None:
            self.raw = self.raw + data if self._fed_bytes <= HELD_MAX_BYTES else None
        for piece in self._codec.feed(data):
            self._decoded_bytes += len(piece)
            if self._decoded_bytes > max(BOMB_MIN_BYTES, BOMB_RATIO * self._fed_bytes):
                raise DecodingError("the answer is a decompression bomb")
            yield piece


class OpaqueReader(PassReader):
    """An answer that cannot be decoded: passed on as it came, estimated by its size."""

    def __init__(self, call: ApiCall, status: int) -> None:
        super().__init__(call, status)
        self._size_bytes = 0

    def feed(self, data: bytes) -> bytes:
        """Return `data`."""
        self._size_bytes += len(data)
        return data

    def metered(self, outcome: Outcome | None = None) -> Metered:
        """Return an estimate: the answer's size as if it were text, and the request's input."""
        answered = 200 <= self._status < 300
        size = min(self._size_bytes, CUT_ANSWER_TOKENS_MAX * BYTES_PER_TOKEN) if answered else 0
        return settle(self._call, self._status, Findings(text_bytes=size), self._ended, outcome)


def decoder_for(content_encoding: str) -> Decoder | None:
    """Return what decodes the codings of the header, last applied first; None where there is none.

    Raises UnknownCodingError for a coding that is not known.
    """
    codec = _codec_for(content_encoding)
    return None if codec is None else Decoder(codec)


def decoded(body: bytes, content_encoding: str, max_bytes: int) -> bytes | None:
    """Return a request's body without its codings; None where it would be larger than `max_bytes`.

    Raises UnknownCodingError for a coding that is not known, DecodingError where the body is not what it says or not whole.
    """
    codec = _codec_for(content_encoding)
    if codec is None:
        return body
    pieces: list[bytes] = []
    size = 0
    for piece in codec.feed(body):
        size += len(piece)
        if size > max_bytes:
            return None
        pieces.append(piece)
    if body and not codec.ended:
        raise DecodingError("the body's compression is cut off")
    return b"".join(pieces)


def _codec_for(content_encoding: str) -> Codec | None:
    names = [name.strip().lower() for name in content_encoding.split(",")]
    names = [name for name in names if name not in ("", "identity")]
    if not names:
        return None
    if len(names) > _CODINGS_MAX:
        raise UnknownCodingError("too many content codings")
    steps = [_one(name) for name in reversed(names)]
    return steps[0] if len(steps) == 1 else _Chain(steps)


def _one(name: str) -> Codec:
    if name in ("gzip", "x-gzip"):
        return _Zlib(_GZIP_WINDOW_BITS)
    if name == "deflate":
        return _Deflate()
    if name == "br":
        return _Brotli()
    if name == "zstd":
        return _Zstd()
    raise UnknownCodingError(f"the content coding {name[:20]!r} is not known")


class _Chain:
    def __init__(self, steps: list[Codec]) -> None:
        self._steps = steps

    @property
    def ended(self) -> bool:
        return all(step.ended for step in self._steps)

    def feed(self, data: bytes) -> Iterator[bytes]:
        return self._through(data, 0)

    def _through(self, data: bytes, step: int) -> Iterator[bytes]:
        if step == len(self._steps):
            yield data
            return
        for piece in self._steps[step].feed(data):
            yield from self._through(piece, step + 1)


class _Zlib:
    """gzip and both kinds of deflate. What follows the end and is no further gzip member is ignored, as clients do."""

    def __init__(self, window_bits: int) -> None:
        self._window_bits = window_bits
        self._inner = zlib.decompressobj(window_bits)
        self._behind = b""  # the first byte behind the end, until it is known what it begins
        self._over = False

    @property
    def ended(self) -> bool:
        return self._over or self._inner.eof

    def feed(self, data: bytes) -> Iterator[bytes]:
        while data and not self._over:
            if self._inner.eof:
                data, self._behind = self._behind + data, b""
                if not data.startswith(_GZIP_MAGIC) or self._window_bits != _GZIP_WINDOW_BITS:
                    self._over = len(data) > 1 or data != _GZIP_MAGIC[:1]
                    self._behind = b"" if self._over else data
                    return
                self._inner = zlib.decompressobj(self._window_bits)  # a further member of the same stream
            try:
                piece = self._inner.decompress(data, PIECE_MAX_BYTES)
            except zlib.error as error:
                raise DecodingError(f"the compression is broken: {error}") from error
            data = self._inner.unused_data if self._inner.eof else self._inner.unconsumed_tail
            if piece:
                yield piece


class _Deflate:
    """deflate in its two spellings: with zlib's frame as RFC 9110 says, or without as some servers send it."""

    def __init__(self) -> None:
        self._first = b""
        self._inner: _Zlib | None = None

    @property
    def ended(self) -> bool:
        return self._inner is not None and self._inner.ended

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

    @property
    def ended(self) -> bool:
        return bool(self._inner.is_finished())

    def feed(self, data: bytes) -> Iterator[bytes]:
        while not self._inner.is_finished():
            try:
                piece = self._inner.process(data, output_buffer_limit=PIECE_MAX_BYTES)
            except self._error as error:
                raise DecodingError(f"the compression is broken: {error}") from error
            data = b""
            if not piece:  # it says that it can take more before it has given everything
                return
            yield piece


class _Zstd:
    def __init__(self) -> None:
        try:
            zstd = importlib.import_module("compression.zstd")  # Python 3.14 and newer
        except ImportError:
            zstd = importlib.import_module("backports.zstd")
        limits = {zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG_MAX}
        self._make: Callable[[], Any] = lambda: zstd.ZstdDecompressor(options=limits)
        self._error: type[Exception] = zstd.ZstdError
        self._inner = self._make()

    @property
    def ended(self) -> bool:
        return bool(self._inner.eof)

    def feed(self, data: bytes) -> Iterator[bytes]:
        while data or not (self._inner.needs_input or self._inner.eof):
            if self._inner.eof:
                self._inner = self._make()  # a further frame
            try:
                piece = self._inner.decompress(data, PIECE_MAX_BYTES)
            except self._error as error:
                raise DecodingError(f"the compression is broken: {error}") from error
            data = self._inner.unused_data if self._inner.eof else b""
            if piece:
                yield piece
