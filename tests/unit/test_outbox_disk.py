"""What the outbox makes of a disk that is full or broken, when it syncs, and what it leaves for a person."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from pathlib import Path

import pytest

from bursar_sidecar import outbox_log
from bursar_sidecar.ids import unpacked
from bursar_sidecar.outbox import DEAD_LETTER_NAME, OutboxWriteError
from bursar_sidecar.outbox_log import MAGIC, Kind
from support.outboxes import KEY, MIB, call, crashed, files, opened


def test_a_disk_that_is_full_when_a_file_begins_is_used_again_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = opened(tmp_path, MIB)
    real = os.write

    def no_beginning(fd: int, data: bytes) -> int:
        if data == MAGIC:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data)

    monkeypatch.setattr(os, "write", no_beginning)
    for number in range(200):
        outbox.deduct(call(number), b"x" * 1000)
    assert len(files(tmp_path)) == 1
    monkeypatch.undo()
    for number in range(200, 400):
        outbox.deduct(call(number), b"x" * 1000)
    assert len(files(tmp_path)) > 1
    for number in range(400):
        outbox.done(call(number))
    outbox.flush()
    assert outbox.size_bytes < MIB // 4
    outbox.close()


def test_a_full_disk_refuses_new_calls_and_keeps_charges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S17: what cannot be written is not forwarded; a Deduct is kept in memory and written when there is room."""
    outbox = opened(tmp_path)
    outbox.opened([call(1)], [KEY])
    real = os.write

    def short(fd: int, data: bytes) -> int:
        if len(data) > 10:
            return real(fd, data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", short)
    with pytest.raises(OutboxWriteError, match="No space left"):
        outbox.sent(call(1))
    outbox.deduct(call(2), b"two")
    assert outbox.full
    assert outbox.owed(call(2)) == (Kind.DEDUCT, b"two")
    outbox.flush()
    monkeypatch.undo()
    outbox.flush()
    assert not outbox.full
    crashed(outbox)
    again = opened(tmp_path)
    assert again.recovered.torn_bytes == again.recovered.damaged_bytes == 0
    assert again.recovered.owed == (call(1), call(2))
    again.close()


def test_what_was_written_after_all_is_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits in memory may be replaced by what finds room again: the file has the later one, whole."""
    outbox = opened(tmp_path)

    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    outbox.release(call(1), b"a first report")
    monkeypatch.undo()
    outbox.release(call(1), b"a report that has grown")
    outbox.flush()
    assert outbox.owed(call(1)) == (Kind.RELEASE, b"a report that has grown")
    assert outbox.depth == 1
    crashed(outbox)
    again = opened(tmp_path)
    assert again.owed(call(1)) == (Kind.RELEASE, b"a report that has grown")
    again.close()


def test_half_a_write_that_cannot_be_undone_harms_no_other_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = opened(tmp_path)
    outbox.deduct(call(1), b"one")
    real = os.write

    def short(fd: int, data: bytes) -> int:
        if len(data) > 10:
            return real(fd, data[:10])
        raise OSError(errno.EIO, "Input/output error")

    def broken(fd: int, size: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "write", short)
    monkeypatch.setattr(os, "ftruncate", broken)
    outbox.deduct(call(2), b"two")
    monkeypatch.undo()
    outbox.deduct(call(3), b"three")
    outbox.flush()
    payloads = {1: b"one", 2: b"two", 3: b"three"}
    assert {number: outbox.owed(call(number)) for number in payloads} == {
        number: (Kind.DEDUCT, payload) for number, payload in payloads.items()
    }
    crashed(outbox)
    again = opened(tmp_path)
    assert sorted(again.recovered.owed) == [call(1), call(2), call(3)]
    again.close()


def test_a_record_that_the_disk_has_changed_is_not_sent(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    outbox.deduct(call(1), b"costs 100")
    path = files(tmp_path)[0]
    path.write_bytes(path.read_bytes().replace(b"costs 100", b"costs 900"))
    with pytest.raises(OSError, match="cannot be read"):
        outbox.owed(call(1))
    outbox.close()


async def test_sync_ends_while_others_go_on_writing(tmp_path: Path) -> None:
    """An answer waits for what was written before it asked, not for what comes after."""
    outbox = opened(tmp_path)
    outbox.deduct(call(0), b"zero")
    stop = False

    async def write_on() -> None:
        number = 0
        while not stop:
            number += 1
            outbox.deduct(call(number), b"x")
            await asyncio.sleep(0)

    writing = asyncio.ensure_future(write_on())
    try:
        async with asyncio.timeout(2):
            await outbox.sync()
    finally:
        stop = True
        await writing
    outbox.close()


async def test_sync_brings_files_and_directory_to_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S17: nothing is synced on the way; when asked, everything appended so far is, once for all who wait."""
    synced: list[int] = []
    directories: list[Path] = []
    outbox = opened(tmp_path)
    monkeypatch.setattr(outbox_log, "sync_file", synced.append)
    monkeypatch.setattr(outbox_log, "sync_directory", directories.append)
    outbox.deduct(call(1), b"one")
    assert synced == []
    await asyncio.gather(outbox.sync(), outbox.sync(), outbox.sync())
    assert len(synced) == 1
    await outbox.sync()
    assert len(synced) == 1
    outbox.deducts([(call(number), b"x" * 4000) for number in range(1100)])  # a second segment begins
    await outbox.sync()
    assert len(synced) >= 2
    assert directories == [tmp_path]
    outbox.close()


async def test_a_disk_that_cannot_sync_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    outbox = opened(tmp_path)
    outbox.deduct(call(1), b"one")
    monkeypatch.setattr(outbox_log, "sync_file", broken)
    with pytest.raises(OSError, match="Input/output"):
        await outbox.sync()
    monkeypatch.undo()
    await outbox.sync()
    outbox.close()


def test_a_dead_letter_can_be_read_and_is_not_replayed(tmp_path: Path) -> None:
    """S16: what is never accepted is put aside for a person, with everything that is needed to book it by hand."""
    outbox = opened(tmp_path)
    outbox.deduct(call(7), b"seven")
    outbox.dead_letter(call(7), "REQUEST_TOO_OLD", "older than 13 months", {"model": "m"})
    outbox.close()
    line = json.loads((tmp_path / DEAD_LETTER_NAME).read_text())
    assert line["request_id"] == unpacked(call(7))
    assert line["reason"] == "REQUEST_TOO_OLD"
    assert bytes.fromhex(line["payload_hex"]) == b"seven"
    assert line["owed"] == {"model": "m"}
    again = opened(tmp_path)
    assert again.recovered.owed == ()
    again.close()


def test_others_cannot_read_it(tmp_path: Path) -> None:
    directory = tmp_path / "new"
    outbox = opened(directory)
    outbox.deduct(call(1), b"one")
    outbox.dead_letter(call(1), "R", "m", None)
    outbox.close()
    assert directory.stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in directory.iterdir())
