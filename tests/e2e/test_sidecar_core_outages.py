"""What happens when the control plane, the provider or the disk is not there."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path

import aiohttp
import pytest

from bursar.v1 import errors_pb2, metering_pb2
from bursar_sidecar.clock import SystemClock
from bursar_sidecar.outbox import DEAD_LETTER_NAME
from support.fake_control_plane import (
    ALREADY_EXISTS,
    UNAVAILABLE,
    FakeControlPlane,
    Served,
    fake_control_plane,
)
from support.odd_upstream import CHAT, Heard, OddUpstream, deaf_address, json_answer
from support.sidecars import RunningSidecar, environment, running_sidecar, until


async def status_of(sidecar: RunningSidecar) -> int:
    async with await sidecar.post() as response:
        await response.read()
        return response.status


async def ready(sidecar: RunningSidecar) -> tuple[int, str]:
    async with sidecar.client.get(sidecar.url + "/readyz") as response:
        return response.status, await response.text()


async def test_a_closed_gate_says_503_and_nothing_is_sent(
    sidecar: RunningSidecar, plane: Served, upstream: OddUpstream
) -> None:
    """S17: CLOSED answers 503 with Retry-After: 1, at once while it is known to be away; then it opens again."""
    await until(lambda: sidecar.sidecar.control_plane.reachable)
    await plane.vanish()
    for _ in range(20):
        started = time.monotonic()
        async with await sidecar.post() as response:
            error = (await response.json())["error"]
            assert (response.status, response.headers["retry-after"]) == (503, "1")
            assert error["code"] == "CONTROL_PLANE_UNAVAILABLE"
            assert response.headers["x-bursar-request-id"]
        assert time.monotonic() - started < 0.5
    assert (await ready(sidecar))[0] == 503
    assert upstream.heard == []
    # It cannot have seen them, so nothing is owed but the report of them.
    assert sidecar.sidecar.outbox.depth <= 1
    await plane.come_back()
    await until(lambda: sidecar.sidecar.control_plane.reachable)
    assert await status_of(sidecar) == 200
    assert (await ready(sidecar))[0] == 200


async def test_it_starts_before_the_control_plane_and_its_token(
    upstream: OddUpstream, tmp_path: Path
) -> None:
    """The token's file is read when it is there; until then calls get 503."""
    service = FakeControlPlane()
    async with fake_control_plane(service) as plane:
        settings = environment(plane.url, tmp_path, openai=upstream.url)
        del settings["BURSAR_SIDECAR_TOKEN"]
        await plane.vanish()
        async with running_sidecar(settings) as sidecar:
            assert await status_of(sidecar) == 503
            await plane.come_back()
            await until(lambda: sidecar.sidecar.control_plane.token_refused)
            assert await status_of(sidecar) == 503
            assert "token" in (await ready(sidecar))[1]
            (tmp_path / "sidecar-token").write_text("bat_sidecar\n")
            assert await status_of(sidecar) == 200
            service.token = "bat_rotated"
            assert await status_of(sidecar) == 503
            (tmp_path / "sidecar-token").write_text("bat_rotated\n")
            assert await status_of(sidecar) == 200


async def test_a_release_that_is_none_of_the_tokens_stops_nothing(
    plane: Served, upstream: OddUpstream, tmp_path: Path
) -> None:
    """S17: a call of another tenant whose Check was not answered is put aside; the token is as good as before."""
    settings = environment(plane.url, tmp_path, openai=upstream.url) | {"BURSAR_CHECK_TIMEOUT_MS": "300"}
    async with running_sidecar(settings) as sidecar:
        plane.service.releases_denied = True
        plane.service.check_delay_s = 1.0
        assert await status_of(sidecar) == 503
        plane.service.check_delay_s = 0.0
        await until(lambda: sidecar.sidecar.control_plane.reachable)
        await until(lambda: sidecar.sidecar.counts.dead_letters == 1)
        assert (await ready(sidecar))[0] == 200
        async with await sidecar.post() as response:
            assert response.headers["x-bursar-cost-usd"]
        assert sidecar.sidecar.outbox.depth == 0


async def test_an_open_gate_lets_calls_through_and_charges_them_later(
    plane: Served, upstream: OddUpstream, tmp_path: Path
) -> None:
    """S16: a Deduct without a Check is charged, flagged `unchecked`; the principal travels with it."""
    settings = {**environment(plane.url, tmp_path, openai=upstream.url), "BURSAR_ON_UNREACHABLE": "OPEN"}
    async with running_sidecar(settings) as sidecar:
        await plane.vanish()
        for _ in range(3):
            async with await sidecar.post(headers={"x-bursar-tags": "a=b"}) as response:
                assert await response.read() == CHAT
                assert "x-bursar-cost-usd" not in response.headers
        assert await sidecar.metric("degraded_decisions_total") == 3
        assert await sidecar.metric("outbox_depth") == 3
        await plane.come_back()
        await until(lambda: len(plane.service.records) == 3)
        await until(lambda: sidecar.sidecar.outbox.depth == 0)
        assert await sidecar.metric("deducts_replayed_total") == 3
    assert all(dict(record.tags) == {"a": "b"} for record in plane.service.records.values())
    assert list(plane.service.charges.values()) == [12_000] * 3


async def test_an_open_gate_stays_shut_for_a_token_that_is_refused(
    plane: Served, upstream: OddUpstream, tmp_path: Path
) -> None:
    settings = {**environment(plane.url, tmp_path, openai=upstream.url), "BURSAR_ON_UNREACHABLE": "OPEN"}
    plane.service.token = "another"
    async with running_sidecar(settings) as sidecar:
        assert await status_of(sidecar) == 503
    assert upstream.heard == []


async def test_a_deduct_that_finds_nobody_is_synced_and_replayed(
    sidecar: RunningSidecar, plane: Served, upstream: OddUpstream
) -> None:
    """F059 S17: the answer goes out when the charge is on the disk; it is charged once when the control plane is back."""

    async def then_away(_: Heard, writer: asyncio.StreamWriter) -> None:
        await plane.vanish()
        writer.write(json_answer(CHAT))

    upstream.script = then_away
    async with await sidecar.post() as response:
        assert await response.read() == CHAT
        assert "x-bursar-cost-usd" not in response.headers
    segments = sidecar.sidecar.outbox._segments
    assert all(segment.synced_bytes == segment.size_bytes for segment in segments)
    assert plane.service.records == {}
    await plane.come_back()
    await until(lambda: len(plane.service.records) == 1)
    await until(lambda: sidecar.sidecar.outbox.depth == 0)
    assert list(plane.service.charges.values()) == [12_000]
    assert plane.service.holds == {}


async def test_a_slow_deduct_does_not_keep_the_app_waiting_for_ever(
    plane: Served, upstream: OddUpstream, tmp_path: Path
) -> None:
    plane.service.deduct_delay_s = 1.5
    settings = {**environment(plane.url, tmp_path, openai=upstream.url), "BURSAR_DEDUCT_WAIT_MS": "300"}
    async with running_sidecar(settings) as sidecar:
        started = time.monotonic()
        assert await status_of(sidecar) == 200
        assert 0.25 < time.monotonic() - started < 1.2
        assert await sidecar.metric("deducts_late_total") == 1
        segments = sidecar.sidecar.outbox._segments
        assert all(segment.synced_bytes == segment.size_bytes for segment in segments)
        await until(lambda: sidecar.sidecar.outbox.depth == 0)
    assert len(plane.service.records) == 1
    assert plane.service.duplicates == []


async def test_a_database_that_is_away_counts_as_unreachable(sidecar: RunningSidecar, plane: Served) -> None:
    plane.service.down = True
    assert await status_of(sidecar) == 503
    plane.service.down = False
    await until(lambda: sidecar.sidecar.control_plane.reachable)
    assert await status_of(sidecar) == 200


async def test_a_check_whose_answer_was_never_seen_leaves_nothing_behind(
    plane: Served, upstream: OddUpstream, tmp_path: Path
) -> None:
    """S17: it is released, and the release wins over the Check should that arrive later."""
    plane.service.check_delay_s = 0.6
    settings = {**environment(plane.url, tmp_path, openai=upstream.url), "BURSAR_CHECK_TIMEOUT_MS": "200"}
    async with running_sidecar(settings) as sidecar:
        assert await status_of(sidecar) == 503
        await until(lambda: bool(plane.service.released))
        await asyncio.sleep(0.6)
    assert plane.service.holds == {}
    assert upstream.heard == []


async def test_a_provider_that_cannot_be_reached_costs_nothing(plane: Served, tmp_path: Path) -> None:
    """S17: nothing was sent, so the hold is released and no record is written."""
    async with running_sidecar(environment(plane.url, tmp_path, openai=deaf_address())) as sidecar:
        async with await sidecar.post() as response:
            assert response.status == 502
            assert (await response.json())["error"]["code"] == "UPSTREAM_UNREACHABLE"
        await until(lambda: len(plane.service.released) == 1)
        await until(lambda: sidecar.sidecar.outbox.depth == 0)
    assert plane.service.holds == {}
    assert plane.service.records == {}


async def test_a_provider_that_hangs_up_without_a_word_is_a_failed_call(
    sidecar: RunningSidecar, plane: Served, upstream: OddUpstream
) -> None:
    """S17 C18: it was sent, so it is a record with cost 0 and its outcome."""

    async def hang_up(_: Heard, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    upstream.script = hang_up
    assert await status_of(sidecar) == 502
    (record,) = plane.service.records.values()
    assert record.outcome == metering_pb2.OUTCOME_FAILED
    assert list(record.items) == []


async def test_open_calls_keep_their_holds(plane: Served, upstream: OddUpstream, tmp_path: Path) -> None:
    """S9: the lease of an open call's hold is renewed, all of them in one request."""
    plane.service.lease_s = 0.9

    async def slow(_: Heard, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(1.5)
        writer.write(json_answer(CHAT))

    upstream.script = slow
    async with running_sidecar(environment(plane.url, tmp_path, openai=upstream.url)) as sidecar:
        assert await asyncio.gather(*(status_of(sidecar) for _ in range(5))) == [200] * 5
        assert await sidecar.metric("hold_renewals_total") >= 15
        assert await sidecar.metric("holds_missing_total") == 0
    assert 3 <= len(plane.service.renewed) <= 8
    assert max(len(ids) for ids in plane.service.renewed) == 5


async def test_a_wrong_clock_is_corrected(plane: Served, upstream: OddUpstream, tmp_path: Path) -> None:
    """S16: the server says its time, the sidecar corrects its offset and makes a new id, once."""
    plane.service.clock_ahead_s = 3 * 86400.0
    async with running_sidecar(
        environment(plane.url, tmp_path, openai=upstream.url), SystemClock()
    ) as sidecar:
        for _ in range(3):
            async with await sidecar.post() as response:
                assert response.status == 200
        assert await sidecar.metric("request_id_corrections_total") == 1
        assert await sidecar.metric("clock_offset_ms") == pytest.approx(3 * 86400_000, abs=5000)
    assert response.headers["x-bursar-request-id"] in plane.service.records
    assert len(plane.service.checks) == 4
    started = plane.service.records[response.headers["x-bursar-request-id"]].start_time
    assert started.seconds == pytest.approx(time.time() + 3 * 86400, abs=10)


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (metering_pb2.ItemError(code=3, field="tags", message="a key is too long"), 400, "x-bursar-tags"),
        (metering_pb2.ItemError(code=7, message="not this tenant"), 403, "not this tenant"),
        (metering_pb2.ItemError(code=UNAVAILABLE, message="busy"), 503, "cannot be asked"),
        (metering_pb2.ItemError(code=13, message="defect"), 503, "cannot be asked"),
    ],
)
async def test_a_check_that_fails_alone_is_told_alone(
    sidecar: RunningSidecar, plane: Served, error: metering_pb2.ItemError, status: int, says: str
) -> None:
    plane.service.item_errors["bad"] = error
    good, bad = await asyncio.gather(sidecar.post(), sidecar.post(json={"model": "bad", "messages": []}))
    assert good.status == 200
    assert bad.status == status
    assert says in (await bad.json())["error"]["message"]
    assert sidecar.sidecar.gate.open_calls == 0


async def test_what_is_never_accepted_goes_to_the_dead_letters(
    sidecar: RunningSidecar, plane: Served, upstream: OddUpstream, tmp_path: Path
) -> None:
    """S16: a reused id is put aside and counted; the app has its answer, and others go on."""
    dead = metering_pb2.ItemError(
        code=ALREADY_EXISTS, reason=errors_pb2.ERROR_REASON_REQUEST_ID_REUSED, message="other content"
    )
    plane.service.item_errors["gpt-4o-mini-2024-07-18"] = dead
    assert await status_of(sidecar) == 200
    assert await sidecar.metric("dead_letters_total") == 1
    assert sidecar.sidecar.outbox.depth == 0
    line = json.loads((tmp_path / "outbox" / DEAD_LETTER_NAME).read_text())
    assert line["reason"] == "REQUEST_ID_REUSED"
    assert line["owed"]["items"][0]["usage"]["input_tokens"] == "7"
    plane.service.item_errors.clear()
    assert await status_of(sidecar) == 200


async def test_a_deduct_that_fails_for_now_is_tried_again(sidecar: RunningSidecar, plane: Served) -> None:
    plane.service.item_errors["gpt-4o-mini-2024-07-18"] = metering_pb2.ItemError(code=UNAVAILABLE)
    async with await sidecar.post() as response:
        assert response.status == 200
        assert "x-bursar-cost-usd" not in response.headers
    plane.service.item_errors.clear()
    await until(lambda: len(plane.service.records) == 1)
    await until(lambda: sidecar.sidecar.outbox.depth == 0)


async def test_a_full_outbox_refuses_new_calls_and_loses_none(
    plane: Served, upstream: OddUpstream, tmp_path: Path
) -> None:
    """S17: full means 503 for new calls; what waits is kept, and when it is gone calls go on."""
    settings = {
        **environment(plane.url, tmp_path, openai=upstream.url),
        "BURSAR_OUTBOX_MAX_BYTES": str(1 << 20),
    }
    settings["BURSAR_ON_UNREACHABLE"] = "OPEN"
    tags = ",".join(f"k{number}={'v' * 200}" for number in range(32))
    async with running_sidecar(settings) as sidecar:
        await until(lambda: sidecar.sidecar.control_plane.reachable)
        await plane.vanish()
        passed = 0
        while True:
            async with await sidecar.post(headers={"x-bursar-tags": tags}) as response:
                if response.status == 503:
                    break
                passed += 1
        assert passed > 30
        assert "outbox" in (await ready(sidecar))[1]
        assert len(upstream.heard) == passed
        await plane.come_back()
        await until(lambda: len(plane.service.records) == passed, 10)
        await until(lambda: not sidecar.sidecar.outbox.full)
        assert await status_of(sidecar) == 200
    assert plane.service.duplicates == []


async def test_a_disk_that_fails_refuses_before_anything_is_sent(
    sidecar: RunningSidecar, plane: Served, upstream: OddUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", broken)
        assert await status_of(sidecar) == 503
    assert upstream.heard == []
    await until(lambda: not sidecar.sidecar.outbox.failed)
    assert await status_of(sidecar) == 200
    assert plane.service.holds == {}


async def test_too_many_open_calls_are_refused(plane: Served, upstream: OddUpstream, tmp_path: Path) -> None:
    plane.service.check_delay_s = 0.2
    settings = {**environment(plane.url, tmp_path, openai=upstream.url), "BURSAR_OPEN_CALLS_MAX": "3"}
    async with running_sidecar(settings) as sidecar:
        statuses = await asyncio.gather(*(status_of(sidecar) for _ in range(8)))
    assert sorted(statuses) == [200] * 3 + [503] * 5


async def test_a_stop_charges_what_is_open(plane: Served, upstream: OddUpstream, tmp_path: Path) -> None:
    """S17: a call that does not end in time is charged as far as it came."""

    async def endless(_: Heard, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)

    upstream.script = endless
    settings = {**environment(plane.url, tmp_path, openai=upstream.url), "BURSAR_SHUTDOWN_TIMEOUT_MS": "100"}
    async with running_sidecar(settings) as sidecar:
        asked = asyncio.ensure_future(status_of(sidecar))
        await until(lambda: bool(upstream.heard))
    with pytest.raises(aiohttp.ClientError):
        await asked
    (record,) = plane.service.records.values()
    assert record.estimated
    assert record.outcome == metering_pb2.OUTCOME_PARTIAL
    assert plane.service.holds == {}
