"""The codings that answers and requests come compressed in, by their names in HTTP."""

from __future__ import annotations

import gzip
import importlib
import zlib
from collections.abc import Callable

import brotli


def zstandard(data: bytes) -> bytes:
    try:
        module = importlib.import_module("compression.zstd")
    except ImportError:
        module = importlib.import_module("backports.zstd")
    return bytes(module.compress(data))


CODINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "br": brotli.compress,
    "deflate": zlib.compress,
    "zstd": zstandard,
}
