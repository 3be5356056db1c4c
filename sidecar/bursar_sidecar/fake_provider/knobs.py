"""The trouble that a request asks for with its `x-fake-…` headers (the package's docstring lists them)."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from bursar_sidecar.fake_provider.wire import Answer


@dataclass(frozen=True, slots=True)
class Knobs:
    """One request's wishes; None where it has none."""

    latency_ms: int | None = None
    pace_ms: int | None = None
    chunk_bytes: int | None = None
    abort_after_bytes: int | None = None
    status: int | None = None
    retry_after: str | None = None
    output_tokens: int | None = None
    model: str | None = None
    no_usage: bool = False
    no_marker: bool = False
    error_after_events: int | None = None
    pad_bytes: int | None = None
    gzip: bool = False

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> Knobs:
        """Return what `headers` ask for; raises ValueError for a number that is none."""

        def number(name: str) -> int | None:
            value = headers.get(f"x-fake-{name}")
            return None if value is None else int(value)

        return cls(
            latency_ms=number("latency-ms"),
            pace_ms=number("pace-ms"),
            chunk_bytes=number("chunk-bytes"),
            abort_after_bytes=number("abort-after-bytes"),
            status=number("status"),
            retry_after=headers.get("x-fake-retry-after"),
            output_tokens=number("output-tokens"),
            model=headers.get("x-fake-model"),
            no_usage=headers.get("x-fake-no-usage") == "1",
            no_marker=headers.get("x-fake-no-marker") == "1",
            error_after_events=number("error-after-events"),
            pad_bytes=number("pad-bytes"),
            gzip=headers.get("x-fake-gzip") == "1" and "gzip" in headers.get("accept-encoding", ""),
        )


def bent(answer: Answer, knobs: Knobs, error: bytes) -> Answer:
    """Return `answer` as the knobs want it; `error` is the API's error body, for an error inside a stream."""
    pieces = list(answer.pieces)
    if answer.stream and knobs.no_marker:
        pieces = pieces[:-1]
    if answer.stream and knobs.error_after_events is not None:
        pieces = [*pieces[: knobs.error_after_events], b"event: error\ndata: %b\n\n" % error]
    if not answer.stream and knobs.pad_bytes:
        pieces = [pieces[0][:1] + b" " * knobs.pad_bytes + pieces[0][1:], *pieces[1:]]
    if knobs.gzip:
        pieces = _compressed(pieces)
    if knobs.chunk_bytes:
        whole = b"".join(pieces)
        pieces = [
            whole[start : start + knobs.chunk_bytes] for start in range(0, len(whole), knobs.chunk_bytes)
        ]
    return replace(answer, pieces=tuple(pieces))


def _compressed(pieces: list[bytes]) -> list[bytes]:
    """Return the pieces compressed so that each can be read when it has come."""
    gzip = zlib.compressobj(6, zlib.DEFLATED, 31)
    packed = [gzip.compress(piece) + gzip.flush(zlib.Z_SYNC_FLUSH) for piece in pieces]
    return [*packed, gzip.flush()]
