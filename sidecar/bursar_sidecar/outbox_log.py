"""The outbox's files: records appended to numbered segments, each with its checksum, the last one allowed to be torn.

A record is `crc32, payload length, kind, request id, payload`; the checksum covers all that follows it. A segment
begins with MAGIC, so that a file of another kind is never read as one.
"""

from __future__ import annotations

import contextlib
import enum
import os
import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

MAGIC = b"BUROUT1\n"
_HEAD = struct.Struct("<IIB16s")
_CHECKED = struct.Struct("<IB16s")
HEAD_BYTES = _HEAD.size
#: No record carries more; a larger length is damage.
PAYLOAD_MAX_BYTES = 4 << 20

_SEGMENT_NAME = re.compile(r"outbox-(\d{10})\.log")


class Kind(enum.IntEnum):
    """How far a call has come; of each call the last record counts.

    OPENED: its Check is about to be asked. SENT: it is about to be forwarded (with a payload: the Deduct to charge
    should nothing more be heard). DEDUCT, RELEASE: what the control plane is owed. DONE: nothing more is owed.
    """

    OPENED = 1
    SENT = 2
    DEDUCT = 3
    RELEASE = 4
    DONE = 5


class Record(NamedTuple):
    """One record: the kind, the request id's 16 bytes, and what belongs to it."""

    kind: Kind
    call: bytes
    payload: bytes = b""


@dataclass(slots=True)
class Scan:
    """What reading a segment found: its records, and the bytes in it that are none.

    `torn` bytes lie at the end, where a crash leaves an unfinished write; `damaged` ones lie before a sound record,
    which no crash explains.
    """

    records: list[Record]
    torn_bytes: int = 0
    damaged_bytes: int = 0


def encoded(record: Record) -> bytes:
    """Return the record's bytes."""
    kind, call, payload = record
    rest = _CHECKED.pack(len(payload), kind, call) + payload
    return zlib.crc32(rest).to_bytes(4, "little") + rest


def scan(data: bytes) -> Scan:
    """Read a whole segment, passing over what is no record."""
    found = Scan([])
    position = len(MAGIC) if data.startswith(MAGIC) else 0
    while position < len(data):
        record = _record_at(data, position)
        if record is not None:
            found.records.append(record)
            position += HEAD_BYTES + len(record.payload)
            continue
        sound = _next_record(data, position + 1)
        if sound < 0:
            found.torn_bytes = len(data) - position
            break
        found.damaged_bytes += sound - position
        position = sound
    return found


_KINDS = frozenset(int(kind) for kind in Kind)


def _record_at(data: bytes, position: int) -> Record | None:
    if len(data) - position < HEAD_BYTES:
        return None
    checksum, length, kind, call = _HEAD.unpack_from(data, position)
    end = position + HEAD_BYTES + length
    if kind not in _KINDS or length > PAYLOAD_MAX_BYTES or end > len(data):
        return None
    if zlib.crc32(data[position + 4 : end]) != checksum:
        return None
    return Record(Kind(kind), call, data[position + HEAD_BYTES : end])


def _next_record(data: bytes, position: int) -> int:
    """Return where the next sound record begins, -1 where none follows."""
    for start in range(position, len(data) - HEAD_BYTES + 1):
        if data[start + 8] in _KINDS and _record_at(data, start) is not None:
            return start
    return -1


class Segment:
    """One file that is being written, or that was and still has records that count.

    `live` and `live_bytes` count the records in it that are the last of their call; `synced_bytes` of `size_bytes` are
    known to be on the disk.
    """

    __slots__ = ("fd", "live", "live_bytes", "number", "path", "size_bytes", "synced_bytes")

    def __init__(self, directory: Path, number: int) -> None:
        self.number = number
        self.path = directory / f"outbox-{number:010d}.log"
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self.size_bytes = 0
        self.synced_bytes = 0
        self.live = 0
        self.live_bytes = 0
        try:
            self.append(MAGIC)
        except OSError:
            os.close(self.fd)
            self.path.unlink()
            raise

    def append(self, data: bytes | bytearray) -> None:
        """Append `data` whole or not at all; raises OSError (a full disk) having undone what was written.

        Where even that fails, what was written stays, as damage that readers pass over.
        """
        start = self.size_bytes
        written = 0
        try:
            while written < len(data):
                written += os.write(self.fd, data[written:] if written else data)
        except OSError:
            self.size_bytes = start + written
            with contextlib.suppress(OSError):
                os.ftruncate(self.fd, start)
                self.size_bytes = start
            raise
        self.size_bytes = start + written

    def payload(self, offset: int, size: int) -> bytes:
        """Return the payload of the record that lies at `offset`; raises OSError where it cannot be read as it was written."""
        record = _record_at(os.pread(self.fd, HEAD_BYTES + size, offset), 0)
        if record is None or len(record.payload) != size:
            raise OSError(f"a record of {self.path.name} cannot be read")
        return record.payload


def segments(directory: Path) -> list[tuple[int, Path]]:
    """Return the segments that lie in the directory, oldest first."""
    found = [(match, path) for path in directory.iterdir() if (match := _SEGMENT_NAME.fullmatch(path.name))]
    return sorted((int(match[1]), path) for match, path in found)


def last_of_each(scans: Iterable[Scan]) -> Iterator[Record]:
    """Yield of every call that is still owed something its last record, in the order of these records."""
    last: dict[bytes, Record] = {}
    for one in scans:
        for record in one.records:
            if record.kind is Kind.DONE:
                last.pop(record.call, None)
            else:
                last.pop(record.call, None)
                last[record.call] = record
    yield from last.values()


def sync_file(fd: int) -> None:
    """Bring a file's content to the disk."""
    getattr(os, "fdatasync", os.fsync)(fd)


def sync_directory(directory: Path) -> None:
    """Bring a directory's names to the disk."""
    fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
