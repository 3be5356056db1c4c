"""The outbox loses nothing that was appended, whatever instant the process or the machine stops at."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bursar_sidecar.outbox import OutboxInUseError
from bursar_sidecar.outbox_log import MAGIC, Kind, Record, encoded, last_of_each, scan
from support.outboxes import KEY, MIB, call, crashed, files, opened


def test_what_was_owed_is_owed_after_a_crash(tmp_path: Path) -> None:
    """S18: Deducts are replayed in order, what was never sent is released, what was sent is left to its lease's expiry."""
    outbox = opened(tmp_path)
    outbox.opened([call(1), call(2), call(3), call(4), call(5)], [KEY] * 5)
    for number in (2, 3, 4, 5):
        outbox.sent(call(number))
    outbox.deduct(call(4), b"four")
    outbox.deduct(call(3), b"three")
    outbox.deduct(call(5), b"five")
    outbox.done(call(5))
    outbox.flush()
    crashed(outbox)
    again = opened(tmp_path)
    assert again.recovered.sent == 1
    assert again.recovered.owed == (call(1), call(4), call(3))
    assert again.owed(call(1)) == (Kind.RELEASE, KEY)
    assert again.owed(call(4)) == (Kind.DEDUCT, b"four")
    assert again.owed(call(2)) is None
    assert again.depth == 3
    again.close()


def test_a_call_sent_without_a_check_is_charged_after_a_crash(tmp_path: Path) -> None:
    """S18: no hold stands for it that could expire, so what was written before it went is deducted."""
    outbox = opened(tmp_path)
    outbox.opened([call(1)], [KEY])
    outbox.sent(call(1), b"the estimate")
    crashed(outbox)
    again = opened(tmp_path)
    assert again.owed(call(1)) == (Kind.DEDUCT, b"the estimate")
    again.close()


def test_what_is_done_is_gone_at_the_next_start(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    outbox.deducts([(call(number), b"x" * 100) for number in range(50)])
    for number in range(50):
        outbox.done(call(number))
    assert outbox.depth == 0
    outbox.close()
    again = opened(tmp_path)
    assert again.recovered.owed == ()
    assert again.size_bytes == len(MAGIC)
    again.close()


RECORDS = st.lists(
    st.builds(
        Record,
        st.sampled_from(list(Kind)),
        st.integers(0, 5).map(call),
        st.binary(max_size=40),
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(RECORDS)
def test_a_torn_tail_costs_only_the_record_that_was_torn(records: list[Record]) -> None:
    """S18: cut anywhere, a segment gives every record that was whole."""
    data = MAGIC + b"".join(encoded(record) for record in records)
    ends = [len(MAGIC)]
    for record in records:
        ends.append(ends[-1] + len(encoded(record)))
    for cut in range(len(data) + 1):
        found = scan(data[:cut])
        whole = sum(end <= cut for end in ends[1:])
        assert found.records == records[:whole]
        assert found.damaged_bytes == 0
        assert found.torn_bytes == (cut - ends[whole] if cut >= len(MAGIC) else cut)


@settings(max_examples=60, deadline=None)
@given(RECORDS.filter(lambda records: len(records) > 1), st.data())
def test_damage_in_the_middle_costs_only_the_record_it_hit(
    records: list[Record], data: st.DataObject
) -> None:
    """S18: a flipped bit is noticed, counted, and the records behind it are still read."""
    parts = [encoded(record) for record in records]
    hit = data.draw(st.integers(0, len(parts) - 2))
    bit = data.draw(st.integers(0, len(parts[hit]) * 8 - 1))
    broken = bytearray(parts[hit])
    broken[bit // 8] ^= 1 << bit % 8
    found = scan(MAGIC + b"".join((*parts[:hit], bytes(broken), *parts[hit + 1 :])))
    assert found.records == records[:hit] + records[hit + 1 :]
    assert found.damaged_bytes == len(parts[hit])


@settings(max_examples=100, deadline=None)
@given(RECORDS)
def test_the_last_record_of_a_call_counts(records: list[Record]) -> None:
    expected: dict[bytes, Record] = {}
    for record in records:
        expected.pop(record.call, None)
        if record.kind is not Kind.DONE:
            expected[record.call] = record
    found = list(last_of_each([scan(MAGIC + b"".join(map(encoded, records)))]))
    assert found == list(expected.values())


def test_every_cut_of_a_real_file_keeps_what_was_whole(tmp_path: Path) -> None:
    """S17: for each length a crash of the machine can leave, the Deducts whose bytes are whole are replayed."""
    outbox = opened(tmp_path / "first")
    for number in range(4):
        outbox.deduct(call(number), b"payload %d" % number)
    outbox.close()
    data = files(tmp_path / "first")[0].read_bytes()
    size = len(encoded(Record(Kind.DEDUCT, call(0), b"payload 0")))
    for cut in range(len(data) + 1):
        directory = tmp_path / f"cut{cut}"
        directory.mkdir()
        (directory / "outbox-0000000001.log").write_bytes(data[:cut])
        again = opened(directory)
        whole = max(cut - len(MAGIC), 0) // size
        assert again.recovered.owed == tuple(call(number) for number in range(whole))
        again.close()


def test_a_damaged_file_is_kept_for_a_person(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    for number in range(3):
        outbox.deduct(call(number), b"x" * 50)
    outbox.close()
    path = files(tmp_path)[0]
    data = bytearray(path.read_bytes())
    data[len(MAGIC) + 80] ^= 1
    path.write_bytes(data)
    again = opened(tmp_path)
    assert again.recovered.damaged_bytes > 0
    assert again.recovered.owed == (call(0), call(2))
    assert (tmp_path / f"damaged-{path.name}").read_bytes() == bytes(data)
    again.close()


def test_a_crash_during_recovery_is_harmless(tmp_path: Path) -> None:
    """S17: old and new segments together say the same as the old ones alone."""
    outbox = opened(tmp_path)
    outbox.opened([call(1)], [KEY])
    outbox.deduct(call(2), b"two")
    outbox.close()
    old = files(tmp_path)[0]
    data = old.read_bytes()
    opened(tmp_path).close()
    old.write_bytes(data)  # the old one was not removed yet
    again = opened(tmp_path)
    assert again.recovered.owed == (call(1), call(2))
    again.close()


def test_space_comes_back(tmp_path: Path) -> None:
    """Calls that come and go leave no more than two segments behind, and a call that stays open moves along."""
    outbox = opened(tmp_path, 8 * MIB)
    outbox.opened([call(0)], [KEY])
    outbox.deduct(call(1), b"waits")
    for number in range(2, 12_000):
        outbox.opened([call(number)], [KEY])
        outbox.sent(call(number))
        outbox.deduct(call(number), b"x" * 300)
        outbox.done(call(number))
        assert outbox.size_bytes < 4 * MIB
    outbox.flush()
    crashed(outbox)
    again = opened(tmp_path)
    assert again.recovered.owed == (call(0), call(1))
    again.close()


async def test_a_full_outbox_says_so_and_drops_nothing(tmp_path: Path) -> None:
    outbox = opened(tmp_path, MIB)
    number = 0
    while not outbox.full:
        outbox.deduct(call(number), b"x" * 1000)
        number += 1
    assert 900 < number < 1100
    outbox.deduct(call(number), b"one that was open already")
    await outbox.sync()
    crashed(outbox)
    again = opened(tmp_path, MIB)
    assert len(again.recovered.owed) == number + 1
    assert again.full
    for one in again.recovered.owed:
        again.done(one)
    again.flush()
    assert not again.full
    again.close()


def test_one_call_that_lasts_does_not_keep_the_space_of_all_others(tmp_path: Path) -> None:
    """After an outage that filled it, the outbox takes calls again although the oldest one is still open."""
    outbox = opened(tmp_path, MIB)
    outbox.opened([call(0)], [KEY])
    outbox.sent(call(0))
    number = 0
    while not outbox.full or outbox._segments[-1].size_bytes > 5000:  # a new file has just begun
        number += 1
        outbox.deduct(call(number), b"x" * 1000)
    outbox.opened([call(number + 1)], [KEY])  # another one, in the newest file
    for done in range(1, number + 1):
        outbox.done(call(done))
    outbox.flush()
    assert not outbox.full
    assert outbox.size_bytes < MIB // 2
    crashed(outbox)
    again = opened(tmp_path, MIB)
    assert again.recovered.sent == 1
    assert again.recovered.owed == (call(number + 1),)
    again.close()


def test_a_full_outbox_moves_nothing_in_vain(tmp_path: Path) -> None:
    outbox = opened(tmp_path, MIB)
    number = 0
    while not outbox.full:
        outbox.deduct(call(number), b"x" * 1000)
        number += 1
    before = [path.stat().st_size for path in files(tmp_path)]
    outbox.flush()
    assert [path.stat().st_size for path in files(tmp_path)] == before
    outbox.close()


def test_two_sidecars_never_share_an_outbox(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    with pytest.raises(OutboxInUseError, match=f"in use by pid {os.getpid()}") as caught:
        opened(tmp_path)
    assert not caught.value.stopping
    outbox.stopping()
    with pytest.raises(OutboxInUseError, match=f"in use by pid {os.getpid()}:") as caught:
        opened(tmp_path)
    assert caught.value.stopping
    outbox.close()
    opened(tmp_path).close()
