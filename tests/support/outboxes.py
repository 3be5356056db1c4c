"""Outboxes for tests, and how a process leaves one that ends without a word."""

from __future__ import annotations

import os
from pathlib import Path

from bursar_sidecar import outbox_log
from bursar_sidecar.outbox import Outbox

MIB = 1 << 20
KEY = bytes(range(32))


def call(number: int) -> bytes:
    return number.to_bytes(16, "big")


def opened(directory: Path, max_bytes: int = 64 * MIB) -> Outbox:
    return Outbox(directory, max_bytes)


def files(directory: Path) -> list[Path]:
    return [path for _, path in outbox_log.segments(directory)]


def crashed(outbox: Outbox) -> None:
    """Let go of the directory as the end of a process does: nothing more is written."""
    for segment in outbox._segments:
        os.close(segment.fd)
    os.close(outbox._lock_fd)
