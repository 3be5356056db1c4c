"""A provider that compresses although it was asked not to is still read."""

from __future__ import annotations

import gzip
import zlib
from itertools import pairwise

import brotli
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bursar_sidecar.decoding import PIECE_MAX_BYTES, DecodingError, decoder_for


def raw_deflate(data: bytes) -> bytes:
    squeezer = zlib.compressobj(wbits=-15)
    return squeezer.compress(data) + squeezer.flush()


CODINGS = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "Deflate": raw_deflate,
    "br": brotli.compress,
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


def test_several_gzip_members() -> None:
    decoder = decoder_for("gzip")
    assert decoder is not None
    assert b"".join(decoder.feed(gzip.compress(b"one") + gzip.compress(b"two"))) == b"onetwo"


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br"])
def test_a_bomb_comes_in_bounded_pieces(coding: str) -> None:
    squeezed = CODINGS[coding](bytes(64 << 20))
    assert len(squeezed) < 128 << 10
    decoder = decoder_for(coding)
    assert decoder is not None
    sizes = [len(piece) for piece in decoder.feed(squeezed)]
    assert sum(sizes) == 64 << 20
    assert max(sizes) <= 2 * PIECE_MAX_BYTES


@pytest.mark.parametrize("coding", ["", "identity", " Identity , "])
def test_nothing_to_decode(coding: str) -> None:
    assert decoder_for(coding) is None


@pytest.mark.parametrize("coding", ["compress", "gzip,gzip,gzip,gzip", "x"])
def test_a_coding_that_is_not_known(coding: str) -> None:
    with pytest.raises(DecodingError):
        decoder_for(coding)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br"])
def test_broken_bytes_are_an_error(coding: str) -> None:
    decoder = decoder_for(coding)
    assert decoder is not None
    with pytest.raises(DecodingError):
        list(decoder.feed(b"\xff" * 2000))
