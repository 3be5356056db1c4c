"""A provider that compresses although it was asked not to is still read, within bounds; so are apps that compress."""

from __future__ import annotations

import gzip
import zlib
from itertools import pairwise

import brotli
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bursar_sidecar.decoding import (
    BOMB_MIN_BYTES,
    PIECE_MAX_BYTES,
    DecodingError,
    OpaqueReader,
    UnknownCodingError,
    decoded,
    decoder_for,
)
from bursar_sidecar.providers.base import HELD_MAX_BYTES, ApiCall, Outcome
from support.codings import zstandard


def raw_deflate(data: bytes) -> bytes:
    squeezer = zlib.compressobj(wbits=-15)
    return squeezer.compress(data) + squeezer.flush()


CODINGS = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "Deflate": raw_deflate,
    "br": brotli.compress,
    "zstd": zstandard,
    "zstd, gzip": lambda data: gzip.compress(zstandard(data)),
    "gzip, br": lambda data: brotli.compress(gzip.compress(data)),
    "identity, GZIP": gzip.compress,
}


@pytest.mark.parametrize("coding", CODINGS)
@given(data=st.binary(max_size=300), cuts=st.lists(st.integers(0, 200), max_size=6))
def test_any_cut_gives_the_same_bytes(coding: str, data: bytes, cuts: list[int]) -> None:
    squeezed = CODINGS[coding](data)
    decoder = decoder_for(coding)
    assert decoder is not None
    edges = sorted({0, len(squeezed), *(cut for cut in cuts if cut < len(squeezed))})
    pieces = [squeezed[start:stop] for start, stop in pairwise(edges)]
    assert b"".join(out for piece in pieces for out in decoder.feed(piece)) == data


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
@pytest.mark.parametrize("size", [1, 2, 1000])
def test_several_members(coding: str, size: int) -> None:
    decoder = decoder_for(coding)
    assert decoder is not None
    squeeze = CODINGS[coding]
    data = squeeze(b"one") + squeeze(b"two") + squeeze(b"")
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    assert b"".join(out for piece in pieces for out in decoder.feed(piece)) == b"onetwo"


@pytest.mark.parametrize("coding", ["gzip", "deflate", "Deflate"])
@pytest.mark.parametrize("size", [1, 1000])
def test_what_follows_the_end_is_ignored(coding: str, size: int) -> None:
    """Padding behind the end is no reason to fail an answer that came whole."""
    decoder = decoder_for(coding)
    assert decoder is not None
    data = CODINGS[coding](b"hello") + bytes(20)
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    assert b"".join(out for piece in pieces for out in decoder.feed(piece)) == b"hello"


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
def test_a_bomb_is_stopped(coding: str) -> None:
    """A provider cannot make a few bytes into gigabytes: pieces are bounded, and so is what comes of them all."""
    squeezed = CODINGS[coding](bytes(20 << 20))
    assert len(squeezed) < 32 << 10
    decoder = decoder_for(coding)
    assert decoder is not None
    sizes: list[int] = []
    with pytest.raises(DecodingError, match="bomb"):
        sizes.extend(len(piece) for piece in decoder.feed(squeezed))
    assert sum(sizes) <= BOMB_MIN_BYTES
    assert max(sizes) <= 2 * PIECE_MAX_BYTES


def test_a_large_answer_of_ordinary_text_is_no_bomb() -> None:
    line = b'data: {"choices":[{"index":0,"delta":{"content":"%d"}}]}\n\n'
    text = b"".join(line % number for number in range(600_000))
    assert len(text) > 2 * BOMB_MIN_BYTES
    for coding in ("gzip", "zstd"):
        decoder = decoder_for(coding)
        assert decoder is not None
        assert sum(len(piece) for piece in decoder.feed(CODINGS[coding](text))) == len(text)


def test_a_window_too_large_for_http_is_refused() -> None:
    """RFC 9659: a frame may not ask for more than 8 MiB of memory."""
    frame = bytes.fromhex("28b52ffd") + b"\x00" + bytes([(27 - 10) << 3]) + b"\x01\x00\x00"
    decoder = decoder_for("zstd")
    assert decoder is not None
    with pytest.raises(DecodingError):
        list(decoder.feed(frame))


def test_what_came_is_kept_only_while_it_is_small() -> None:
    """Raw bytes are there to be passed on should decoding fail at once; never more than a held answer's size."""
    decoder = decoder_for("gzip")
    assert decoder is not None
    list(decoder.feed(gzip.compress(b"x")))
    assert decoder.raw == gzip.compress(b"x")
    squeezer = zlib.compressobj(0, wbits=31)
    list(decoder.feed(squeezer.compress(bytes(2 * HELD_MAX_BYTES)) + squeezer.flush()))
    assert decoder.raw is None


@pytest.mark.parametrize("coding", CODINGS)
@given(data=st.binary(max_size=300))
def test_a_compressed_request_is_read_whole(coding: str, data: bytes) -> None:
    assert decoded(CODINGS[coding](data), coding, 300) == data


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
def test_a_compressed_request_is_bounded_by_what_it_becomes(coding: str) -> None:
    squeezed = CODINGS[coding](bytes(1 << 20))
    assert decoded(squeezed, coding, (1 << 20) - 1) is None
    assert decoded(squeezed, coding, 1 << 20) == bytes(1 << 20)
    with pytest.raises(DecodingError):
        decoded(squeezed[: len(squeezed) // 2], coding, 1 << 21)


def test_a_request_of_another_coding_is_told_apart_from_a_broken_one() -> None:
    assert decoded(b"x", "identity", 10) == b"x"
    with pytest.raises(UnknownCodingError):
        decoded(b"x", "lz4", 10)


def test_an_answer_that_cannot_be_decoded_is_passed_on_and_estimated() -> None:
    call = ApiCall("openai.chat_completions", True, "gpt-4o", False, 7, None)
    reader = OpaqueReader(call, 200)
    assert reader.feed(bytes(401)) == bytes(401)
    assert reader.end() == b""
    metered = reader.metered()
    assert metered.estimated
    assert metered.outcome is Outcome.SUCCESS
    assert metered.items[0].usage.output_tokens == 101
    assert metered.items[0].usage.input_tokens == 7
    failed = OpaqueReader(call, 500)
    failed.feed(bytes(400))
    assert failed.metered().items == ()


@pytest.mark.parametrize("coding", ["", "identity", " Identity , "])
def test_nothing_to_decode(coding: str) -> None:
    assert decoder_for(coding) is None


@pytest.mark.parametrize("coding", ["compress", "gzip,gzip,gzip,gzip", "x"])
def test_a_coding_that_is_not_known(coding: str) -> None:
    with pytest.raises(DecodingError):
        decoder_for(coding)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
def test_broken_bytes_are_an_error(coding: str) -> None:
    decoder = decoder_for(coding)
    assert decoder is not None
    with pytest.raises(DecodingError):
        list(decoder.feed(b"\xff" * 2000))
