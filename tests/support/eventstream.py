"""Writes Amazon's binary event stream (the AWS event stream encoding), for tests."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping

_TEXT = 7


def frame(
    headers: Mapping[str, str], payload: object = None, chunk: object = None, damaged: bool = False
) -> bytes:
    """Return one frame; `payload` is its JSON, or `chunk` a model's own JSON that travels inside it in base64."""
    if chunk is not None:
        payload = {"bytes": base64.b64encode(json.dumps(chunk).encode()).decode(), "p": "abc"}
    body = json.dumps(payload).encode()
    named = b"".join(_header(name, value) for name, value in headers.items())
    prelude = (16 + len(named) + len(body)).to_bytes(4, "big") + len(named).to_bytes(4, "big")
    message = prelude + zlib.crc32(prelude).to_bytes(4, "big") + named + body
    checksum = zlib.crc32(message) ^ int(damaged)
    return message + checksum.to_bytes(4, "big")


def event(kind: str, payload: object = None, chunk: object = None) -> bytes:
    """Return the frame of an event of that kind."""
    return frame(event_headers(kind), payload, chunk)


def event_headers(kind: str) -> dict[str, str]:
    """Return the headers of an event of that kind."""
    return {":event-type": kind, ":content-type": "application/json", ":message-type": "event"}


def _header(name: str, value: str) -> bytes:
    encoded = value.encode()
    return bytes([len(name)]) + name.encode() + bytes([_TEXT]) + len(encoded).to_bytes(2, "big") + encoded
