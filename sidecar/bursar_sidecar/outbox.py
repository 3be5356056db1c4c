"""The sidecar's outbox: what a kill at any instant must not lose (S17, S18).

Every step of a call is appended before it is taken. A plain write survives the end of the process; `sync` makes what
was written survive the machine. What the control plane has acknowledged is forgotten, and its space given back.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bursar_sidecar import outbox_log
from bursar_sidecar.ids import unpacked
from bursar_sidecar.outbox_log import HEAD_BYTES, Kind, Record, Segment

SEGMENT_BYTES = 4 << 20
DEAD_LETTER_NAME = "dead-letter.jsonl"
_OWED = (Kind.DEDUCT, Kind.RELEASE)
_STOPPING = "stopping"


class OutboxInUseError(RuntimeError):
    """Another process writes to the same directory; `stopping` when it has said that it will soon let it go."""

    def __init__(self, directory: Path, holder: str) -> None:
        pid, _, state = holder.partition(" ")
        super().__init__(
            f"{directory} is in use by pid {pid or 'unknown'}: each sidecar needs an outbox of its own"
        )
        self.pid = pid
        self.stopping = state == _STOPPING


class OutboxWriteError(RuntimeError):
    """The outbox cannot be written: the disk is full or gone. Nothing that is not written may be forwarded."""


@dataclass(slots=True)
class _Entry:
    """Where the last record of a call lies; `segment` is None for a Deduct that could not be written yet."""

    kind: Kind
    segment: Segment | None
    offset: int
    size: int
    payload: bytes = b""


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a start found: calls to replay in order (Deducts and releases), and what was noticed on the way.

    `sent` calls were forwarded and nothing more was heard of them: their holds expire and charge the estimate (S18).
    """

    owed: tuple[bytes, ...]
    sent: int
    torn_bytes: int
    damaged_bytes: int


class Outbox:
    """The journal of one sidecar; every method but `sync` returns at once and is called from one thread.

    Raises OutboxInUseError where another process holds the directory, OSError where it cannot be used.
    """

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._segment_bytes = min(SEGMENT_BYTES, max_bytes // 8)
        self._entries: dict[bytes, _Entry] = {}
        self._pending = bytearray()  # DONE records: late ones are repeated work, never lost money
        self._unwritten: set[bytes] = set()
        self._closing_fds: list[int] = []
        self._syncing: asyncio.Future[None] | None = None
        self._directory_synced = False
        self._owed = 0
        self.failed = False
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock_fd = _lock(directory)
        self._segments: list[Segment] = []
        self.recovered = self._recover()

    # -- the steps of a call -------------------------------------------------------------------------

    def opened(self, calls: Iterable[bytes], payloads: Iterable[bytes]) -> None:
        """Note that Checks are about to be asked; `payloads` is what a release needs. Raises OutboxWriteError."""
        self._append(
            [Record(Kind.OPENED, call, payload) for call, payload in zip(calls, payloads, strict=True)]
        )

    def sent(self, call: bytes, settle: bytes = b"") -> None:
        """Note that a call is about to be forwarded; `settle` is charged should nothing more be heard of it.

        Raises OutboxWriteError: then it must not be forwarded.
        """
        self._append([Record(Kind.SENT, call, settle)])

    def deduct(self, call: bytes, payload: bytes) -> None:
        """Keep a Deduct until it is done. Where the disk fails it is kept in memory and written later."""
        self.deducts([(call, payload)])

    def deducts(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        """Keep Deducts with one write; as `deduct`."""
        self._owe([Record(Kind.DEDUCT, call, payload) for call, payload in items])

    def release(self, call: bytes, payload: bytes) -> None:
        """Keep a release until it is done; `payload` is what it needs."""
        self._owe([Record(Kind.RELEASE, call, payload)])

    def done(self, call: bytes) -> None:
        """Forget a call: nothing more is owed for it."""
        entry = self._entries.pop(call, None)
        if entry is None:
            return
        self._leave(entry)
        self._unwritten.discard(call)
        self._pending += outbox_log.encoded(Record(Kind.DONE, call))

    # -- what is kept --------------------------------------------------------------------------------

    def owed(self, call: bytes) -> tuple[Kind, bytes] | None:
        """Return the kind and payload of what is owed for a call; None where nothing is."""
        entry = self._entries.get(call)
        if entry is None or entry.kind not in _OWED:
            return None
        if entry.segment is None:
            return entry.kind, entry.payload
        return entry.kind, entry.segment.payload(entry.offset, entry.size)

    @property
    def depth(self) -> int:
        """How many Deducts and releases are not acknowledged."""
        return self._owed

    @property
    def size_bytes(self) -> int:
        """How much space the files take."""
        return sum(segment.size_bytes for segment in self._segments) + len(self._pending)

    @property
    def full(self) -> bool:
        """Whether new calls must be refused: no room is left, or the last write failed."""
        return self.failed or self.size_bytes >= self._max_bytes

    def flush(self) -> None:
        """Write what waits in memory and give back the space of what is done; called now and then."""
        with contextlib.suppress(OutboxWriteError):
            waiting = [
                Record(entry.kind, call, entry.payload)
                for call in self._unwritten
                if (entry := self._entries.get(call)) is not None
            ]
            if waiting or self._pending or self.failed:
                self._append(waiting)
        self._drop_done_segments()
        for _ in range(len(self._segments) - 1):
            live_bytes = sum(segment.live_bytes for segment in self._segments)
            if self.size_bytes < self._max_bytes or live_bytes * 2 > self._max_bytes:
                break
            self._move_oldest()  # it is full of what is done, behind a little that is not

    async def sync(self) -> None:
        """Bring everything appended so far to the disk. Raises OSError where the disk refuses."""
        with contextlib.suppress(OutboxWriteError):
            self._append([])
        wanted = {segment.number: segment.size_bytes for segment in self._segments}
        while any(segment.synced_bytes < wanted.get(segment.number, 0) for segment in self._segments):
            if self._syncing is None:
                self._syncing = asyncio.ensure_future(self._sync())
            await asyncio.shield(self._syncing)

    def dead_letter(self, call: bytes, reason: str, message: str, readable: object) -> None:
        """Put what the control plane will never accept aside for a person, on the disk, and forget it.

        Raises OSError where that cannot be written (or what is owed not be read): then it is still owed.
        """
        owed = self.owed(call)
        line = {"request_id": unpacked(call), "reason": reason, "message": message, "owed": readable}
        if owed is not None:
            line |= {"kind": owed[0].name, "payload_hex": owed[1].hex()}
        path = self._directory / DEAD_LETTER_NAME
        data = json.dumps(line).encode() + b"\n"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        start = os.fstat(fd).st_size
        try:
            while data:
                data = data[os.write(fd, data) :]
            os.fsync(fd)
        except OSError:
            os.ftruncate(fd, start)
            raise
        finally:
            os.close(fd)
        self.done(call)

    def stopping(self) -> None:
        """Tell whoever wants the directory that it is worth waiting for."""
        with contextlib.suppress(OSError):
            os.pwrite(self._lock_fd, f"{os.getpid()} {_STOPPING}\n".encode(), 0)

    def close(self) -> None:
        """Write and sync what is left, and let another process have the directory."""
        self.flush()
        for segment in self._segments:
            with contextlib.suppress(OSError):
                outbox_log.sync_file(segment.fd)
            os.close(segment.fd)
        for fd in (*self._closing_fds, self._lock_fd):
            os.close(fd)
        self._segments, self._closing_fds = [], []

    # -- inside --------------------------------------------------------------------------------------

    def _owe(self, records: Sequence[Record]) -> None:
        """Append what is owed; where that fails keep it in memory, since dropping it would lose a charge."""
        try:
            self._append(records)
        except OutboxWriteError:
            for record in records:
                self._place(record, _Entry(record.kind, None, 0, len(record.payload), record.payload))
                self._unwritten.add(record.call)

    def _append(self, records: Sequence[Record]) -> None:
        """Append records, and before them what waits, with one write."""
        segment = self._segments[-1]
        parts = [outbox_log.encoded(record) for record in records]
        data = b"".join((self._pending, *parts))
        if data:
            try:
                segment.append(data)
            except OSError as error:
                self.failed = True
                raise OutboxWriteError(f"the outbox cannot be written: {error.strerror}") from error
        self.failed = False
        place = segment.size_bytes - len(data) + len(self._pending)
        self._pending.clear()
        if self._unwritten:
            self._unwritten.difference_update(record.call for record in records)
        for record, part in zip(records, parts, strict=True):
            self._place(record, _Entry(record.kind, segment, place, len(record.payload)))
            place += len(part)
        if segment.size_bytes >= self._segment_bytes:
            self._rotate()

    def _place(self, record: Record, entry: _Entry) -> None:
        old = self._entries.get(record.call)
        if old is not None:
            self._leave(old)
        self._entries[record.call] = entry
        if entry.kind in _OWED:
            self._owed += 1
        if entry.segment is not None:
            entry.segment.live += 1
            entry.segment.live_bytes += HEAD_BYTES + entry.size

    def _leave(self, entry: _Entry) -> None:
        if entry.kind in _OWED:
            self._owed -= 1
        if entry.segment is not None:
            entry.segment.live -= 1
            entry.segment.live_bytes -= HEAD_BYTES + entry.size

    def _rotate(self) -> None:
        """Begin a new segment; move what little still counts out of the oldest one, so that its space comes back."""
        try:
            self._segments.append(Segment(self._directory, self._segments[-1].number + 1))
        except OSError:
            return  # the old one goes on growing; the next append tries again
        self._directory_synced = False
        self._drop_done_segments()
        oldest = self._segments[0]
        if len(self._segments) >= 3 and oldest.live_bytes * 2 <= oldest.size_bytes:
            self._move_oldest()

    def _move_oldest(self) -> None:
        """Append what still counts in the oldest segment to the newest, and remove it."""
        oldest = self._segments[0]
        moving = [(call, entry) for call, entry in self._entries.items() if entry.segment is oldest]
        with contextlib.suppress(OSError, OutboxWriteError):
            self._append(
                [Record(entry.kind, call, oldest.payload(entry.offset, entry.size)) for call, entry in moving]
            )
            if oldest.synced_bytes > len(outbox_log.MAGIC):
                outbox_log.sync_file(self._segments[-1].fd)
            self._drop_done_segments()

    def _drop_done_segments(self) -> None:
        """Remove segments, oldest first, in which nothing counts any more.

        Oldest first, since a DONE that went while the record it ends stayed would bring that record back.
        """
        while len(self._segments) > 1 and self._segments[0].live == 0:
            segment = self._segments.pop(0)
            segment.path.unlink(missing_ok=True)
            if self._syncing is None:
                os.close(segment.fd)
            else:
                self._closing_fds.append(segment.fd)  # a sync may be at it in its thread

    async def _sync(self) -> None:
        reached = [(segment, segment.size_bytes) for segment in self._segments]
        stale = [segment.fd for segment, size in reached if segment.synced_bytes < size]
        directory = None if self._directory_synced else self._directory
        try:
            await asyncio.get_running_loop().run_in_executor(None, _sync_files, stale, directory)
            for segment, size in reached:
                segment.synced_bytes = size
            self._directory_synced = self._directory_synced or self._segments[-1] is reached[-1][0]
        finally:
            self._syncing = None
            for fd in self._closing_fds:
                os.close(fd)
            self._closing_fds.clear()

    def _recover(self) -> Recovered:
        """Read what the last process left, carry over what counts into a new segment, and remove the old ones."""
        found = outbox_log.segments(self._directory)
        scans = [outbox_log.scan(path.read_bytes()) for _, path in found]
        self._segments.append(Segment(self._directory, found[-1][0] + 1 if found else 1))
        kept: list[Record] = []
        sent = 0
        for record in outbox_log.last_of_each(scans):
            if record.kind is Kind.SENT and not record.payload:
                sent += 1
            else:
                owed = Kind.DEDUCT if record.kind in (Kind.SENT, Kind.DEDUCT) else Kind.RELEASE
                kept.append(Record(owed, record.call, record.payload))
        for start in range(0, len(kept), 256):
            self._append(kept[start : start + 256])
        for segment in self._segments:
            outbox_log.sync_file(segment.fd)
            segment.synced_bytes = segment.size_bytes
        outbox_log.sync_directory(self._directory)
        self._directory_synced = True
        for (_, path), one in zip(found, scans, strict=True):
            if one.damaged_bytes:
                path.rename(path.with_name(f"damaged-{path.name}"))
            else:
                path.unlink()
        return Recovered(
            owed=tuple(record.call for record in kept),
            sent=sent,
            torn_bytes=sum(one.torn_bytes for one in scans),
            damaged_bytes=sum(one.damaged_bytes for one in scans),
        )


def _sync_files(fds: list[int], directory: Path | None) -> None:
    for fd in fds:
        outbox_log.sync_file(fd)
    if directory is not None:
        outbox_log.sync_directory(directory)


def _lock(directory: Path) -> int:
    """Take the directory for this process until it ends; the lock's file says by whom."""
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        holder = os.pread(fd, 40, 0).decode(errors="replace").strip()
        os.close(fd)
        raise OutboxInUseError(directory, holder) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd
