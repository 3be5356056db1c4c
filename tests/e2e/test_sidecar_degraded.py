"""Calls while the control plane cannot be asked: what budgets and the sidecar's own setting make of them."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import aiohttp
import pytest

from bursar.v1 import budget_pb2, metering_pb2
from bursar.v1.metering_service_pb2 import DeductRequest
from bursar_sidecar.ids import sha256_hex
from support.fake_control_plane import (
    KEY,
    NANOS_PER_TOKEN,
    UNAVAILABLE,
    Account,
    Served,
)
from support.odd_upstream import CHAT, Heard, OddUpstream, json_answer
from support.sidecars import (
    CHAT_PATH,
    RunningSidecar,
    environment,
    running_sidecar,
    sidecar_process,
    until,
)

BODY = {"model": "gpt-4o-mini", "max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}]}
#: What the provider says each call used: 12 tokens.
CALL_NANOS = 12 * NANOS_PER_TOKEN
OPEN, CLOSED = budget_pb2.ON_UNREACHABLE_OPEN, budget_pb2.ON_UNREACHABLE_CLOSED
LAST_KNOWN_GOOD = budget_pb2.ON_UNREACHABLE_LAST_KNOWN_GOOD


def settings_of(plane: Served, upstream: OddUpstream, directory: Path, policy: str) -> dict[str, str]:
    return {
        **environment(plane.url, directory, openai=upstream.url),
        "BURSAR_ON_UNREACHABLE": policy,
    }


async def called(client: aiohttp.ClientSession, url: str, key: str = KEY) -> int:
    headers = {"authorization": f"Bearer {key}"}
    async with client.post(url + CHAT_PATH, json=BODY, headers=headers) as response:
        await response.read()
        return response.status


async def status_of(sidecar: RunningSidecar, key: str = KEY) -> int:
    return await called(sidecar.client, sidecar.url, key)


def degraded(plane: Served) -> list[DeductRequest]:
    return [record for record in plane.service.records.values() if record.degraded]


@pytest.mark.parametrize(
    ("own", "said", "status"),
    [
        ("CLOSED", OPEN, 200),
        ("CLOSED", LAST_KNOWN_GOOD, 200),
        ("LAST_KNOWN_GOOD", CLOSED, 503),
        ("OPEN", CLOSED, 503),
        ("OPEN", budget_pb2.ON_UNREACHABLE_UNSPECIFIED, 200),
    ],
)
async def test_a_budget_s_policy_wins_over_the_sidecar_s(
    plane: Served, upstream: OddUpstream, tmp_path: Path, own: str, said: int, status: int
) -> None:
    plane.service.account.on_unreachable = said
    async with running_sidecar(settings_of(plane, upstream, tmp_path, own)) as sidecar:
        assert await status_of(sidecar) == 200
        await plane.vanish()
        assert await status_of(sidecar) == status
        await plane.come_back()
        plane.service.account.on_unreachable = budget_pb2.ON_UNREACHABLE_UNSPECIFIED
        await until(lambda: sidecar.sidecar.control_plane.reachable)
        assert await status_of(sidecar) == 200
        await plane.vanish()
        assert await status_of(sidecar) == (503 if own == "CLOSED" else 200)


async def test_last_known_good_lets_through_what_was_left_and_then_says_402(
    plane: Served, upstream: OddUpstream, tmp_path: Path
) -> None:
    """S16, C04: as many calls as the known prices let the known remainder pay for; each is charged once, and marked."""
    account = plane.service.account
    async with running_sidecar(settings_of(plane, upstream, tmp_path, "LAST_KNOWN_GOOD")) as sidecar:
        assert await status_of(sidecar) == 200
        [check] = plane.service.checks
        wanted = (check.input_tokens_estimate + 5) * NANOS_PER_TOKEN
        account.limit_nanos = 11 * CALL_NANOS + wanted - 1
        assert await status_of(sidecar) == 200
        await plane.vanish()
        for _ in range(9):
            assert await status_of(sidecar) == 200
        for _ in range(3):
            async with await sidecar.post(json=BODY) as response:
                error = (await response.json())["error"]
                assert (response.status, error["code"]) == (402, "BUDGET_CAP_HARD")
                assert error["type"] == "insufficient_budget"
                assert response.headers["x-should-retry"] == "false"
        assert await sidecar.metric("degraded_decisions_total") == 12
        async with sidecar.client.get(sidecar.url + "/metrics") as page:
            text = await page.text()
        for decision, count in (("ALLOW", 9), ("DENY", 3)):
            labels = f'policy="LAST_KNOWN_GOOD",decision="{decision}"'
            assert f"bursar_sidecar_degraded_decisions_total{{{labels}}} {count}\n" in text
        await plane.come_back()
        await until(lambda: len(plane.service.records) == 11, 10)
        await until(lambda: bool(plane.service.refused), 10)
        await until(lambda: sidecar.sidecar.outbox.depth == 0)
    assert list(plane.service.charges.values()) == [CALL_NANOS] * 11
    assert [record.degraded for record in degraded(plane)] == [LAST_KNOWN_GOOD] * 9
    assert len(upstream.heard) == 11
    [report] = plane.service.refused
    assert report.api_key_sha256 == sha256_hex(KEY)
    assert (report.refused.calls, report.refused.policy) == (3, LAST_KNOWN_GOOD)
    assert report.refused.first_time.ToNanoseconds() <= report.refused.last_time.ToNanoseconds()


async def test_calls_under_way_together_do_not_pass_on_the_same_money(
    plane: Served, upstream: OddUpstream, tmp_path: Path
) -> None:
    async def slow(_: Heard, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.3)
        writer.write(json_answer(CHAT))

    account = plane.service.account
    async with running_sidecar(settings_of(plane, upstream, tmp_path, "LAST_KNOWN_GOOD")) as sidecar:
        assert await status_of(sidecar) == 200
        account.limit_nanos = 2 * CALL_NANOS + 5 * CALL_NANOS
        assert await status_of(sidecar) == 200
        upstream.script = slow
        await plane.vanish()
        statuses = await asyncio.gather(*(status_of(sidecar) for _ in range(20)))
    asked = (plane.service.checks[0].input_tokens_estimate + 5) * NANOS_PER_TOKEN
    assert statuses.count(200) == 5 * CALL_NANOS // asked
    assert statuses.count(402) == 20 - statuses.count(200)


async def test_nothing_known_is_503(plane: Served, upstream: OddUpstream, tmp_path: Path) -> None:
    """A key that was not seen, an answer that is too old, and everything after a restart."""
    settings = settings_of(plane, upstream, tmp_path, "LAST_KNOWN_GOOD")
    other = "bur_" + "o" * 43
    plane.service.accounts[sha256_hex(other)] = Account()
    async with running_sidecar(settings) as sidecar:
        assert await status_of(sidecar) == 200
        await plane.vanish()
        assert await status_of(sidecar, other) == 503
        assert await status_of(sidecar) == 200
    async with running_sidecar(settings) as sidecar:
        assert await status_of(sidecar) == 503
        await plane.come_back()
    async with running_sidecar({**settings, "BURSAR_LAST_KNOWN_MAX_AGE_MS": "0"}) as sidecar:
        assert await status_of(sidecar) == 200
        await plane.vanish()
        assert await status_of(sidecar) == 503


@pytest.mark.parametrize("own", ["OPEN", "LAST_KNOWN_GOOD"])
@pytest.mark.parametrize(("code", "status"), [("BUDGET_CAP_HARD", 402), ("KEY_REVOKED", 403)])
async def test_who_was_refused_stays_refused(
    plane: Served, upstream: OddUpstream, tmp_path: Path, own: str, code: str, status: int
) -> None:
    plane.service.account.denial = metering_pb2.Denial(code=code)
    plane.service.account.limit_nanos = 0
    async with running_sidecar(settings_of(plane, upstream, tmp_path, own)) as sidecar:
        assert await status_of(sidecar) == status
        await plane.vanish()
        assert await status_of(sidecar) == status
    assert upstream.heard == []


@pytest.mark.parametrize("own", ["CLOSED", "LAST_KNOWN_GOOD"])
async def test_calls_that_are_open_finish_and_are_charged(
    plane: Served, upstream: OddUpstream, tmp_path: Path, own: str
) -> None:
    """S17, F059: whatever the policy; what they cost is off what the next calls may spend."""
    answered = asyncio.Event()

    async def waits(_: Heard, writer: asyncio.StreamWriter) -> None:
        await answered.wait()
        writer.write(json_answer(CHAT))

    async with running_sidecar(settings_of(plane, upstream, tmp_path, own)) as sidecar:
        assert await status_of(sidecar) == 200
        plane.service.account.limit_nanos = 5 * CALL_NANOS
        upstream.script = waits
        calls = [asyncio.ensure_future(status_of(sidecar)) for _ in range(4)]
        await until(lambda: len(upstream.heard) == 5)
        await plane.vanish()
        answered.set()
        assert await asyncio.gather(*calls) == [200] * 4
        assert await status_of(sidecar) == (402 if own == "LAST_KNOWN_GOOD" else 503)
        await plane.come_back()
        await until(lambda: len(plane.service.records) == 5, 10)
        await until(lambda: sidecar.sidecar.outbox.depth == 0, 10)
    assert list(plane.service.charges.values()) == [CALL_NANOS] * 5
    assert degraded(plane) == []


async def test_a_database_that_is_away_counts_too(
    plane: Served, upstream: OddUpstream, tmp_path: Path
) -> None:
    """Also where only some Checks fail: the control plane answers all the time, and hears of it soon after."""
    async with running_sidecar(settings_of(plane, upstream, tmp_path, "LAST_KNOWN_GOOD")) as sidecar:
        assert await status_of(sidecar) == 200
        other = "bur_" + "o" * 43
        plane.service.accounts[sha256_hex(other)] = Account()
        plane.service.item_errors["gpt-4o-mini"] = metering_pb2.ItemError(code=UNAVAILABLE)
        assert await status_of(sidecar) == 200
        assert await status_of(sidecar, other) == 503
        await until(lambda: len(plane.service.records) == 2)
        await until(lambda: len(plane.service.refused) == 1)
    assert [record.degraded for record in plane.service.records.values()] == [0, LAST_KNOWN_GOOD]
    assert plane.service.refused[0].refused.calls == 1


async def test_a_control_plane_that_hangs_makes_nobody_wait_but_the_first(
    plane: Served, upstream: OddUpstream, tmp_path: Path
) -> None:
    """It takes connections and says nothing: one call finds out, those after it are decided and answered at once."""

    async def says_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        silent.append(writer)

    silent: list[asyncio.StreamWriter] = []
    settings = settings_of(plane, upstream, tmp_path, "LAST_KNOWN_GOOD")
    settings |= {"BURSAR_CHECK_TIMEOUT_MS": "1000"}
    async with running_sidecar(settings) as sidecar:
        assert await status_of(sidecar) == 200
        await plane.vanish()
        server = await asyncio.start_server(says_nothing, "127.0.0.1", plane.port)
        assert await status_of(sidecar) == 200
        for _ in range(5):
            await asyncio.sleep(0.3)
            started = time.monotonic()
            assert await status_of(sidecar) == 200
            assert time.monotonic() - started < 0.7
        server.close()
        for writer in silent:
            writer.transport.abort()
        await server.wait_closed()
        await plane.come_back()
        await until(lambda: len(plane.service.records) == 7, 10)
        await until(lambda: sidecar.sidecar.control_plane.reachable)
    assert len(degraded(plane)) == 6


async def test_what_was_decided_survives_a_kill(plane: Served, upstream: OddUpstream, tmp_path: Path) -> None:
    """Calls let through are charged with their mark, refused ones are reported, by the next process."""
    settings = settings_of(plane, upstream, tmp_path, "OPEN")
    other = "bur_" + "o" * 43
    plane.service.accounts[sha256_hex(other)] = Account(on_unreachable=CLOSED)

    async def never(_: Heard, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)

    async with sidecar_process(settings) as process, aiohttp.ClientSession() as client:
        assert await called(client, process.url, other) == 200
        await plane.vanish()
        assert await called(client, process.url) == 200
        assert [await called(client, process.url, other) for _ in range(4)] == [503] * 4
        upstream.script = never
        cut = asyncio.ensure_future(called(client, process.url))
        await until(lambda: len(upstream.heard) == 3)
        await asyncio.sleep(0.6)  # reports are written a few times a second
        await process.kill()
        with pytest.raises(aiohttp.ClientError):
            await cut
    await plane.come_back()
    async with sidecar_process(settings):
        await until(lambda: len(plane.service.records) == 3, 10)
        await until(lambda: bool(plane.service.refused), 10)
    assert [record.degraded for record in degraded(plane)] == [OPEN, OPEN]
    assert sum(record.estimated for record in degraded(plane)) == 1
    [report] = plane.service.refused
    assert (report.api_key_sha256, report.refused.policy) == (sha256_hex(other), CLOSED)
    assert 1 <= report.refused.calls <= 4


async def test_a_report_that_is_never_accepted_is_let_go(
    plane: Served, upstream: OddUpstream, tmp_path: Path
) -> None:
    """No money is in it: it is no dead letter that somebody has to look at, and it keeps nothing else waiting."""
    plane.service.unsound_users.add("nobody@example.com")
    async with running_sidecar(settings_of(plane, upstream, tmp_path, "CLOSED")) as sidecar:
        await until(lambda: sidecar.sidecar.control_plane.reachable)
        await plane.vanish()
        async with await sidecar.post(json=BODY, headers={"x-bursar-user": "nobody@example.com"}) as response:
            assert response.status == 503
        assert await status_of(sidecar) == 503
        await plane.come_back()
        await until(lambda: bool(plane.service.refused), 10)
        await until(lambda: sidecar.sidecar.outbox.depth == 0)
        assert await sidecar.metric("dead_letters_total") == 0
    assert [report.refused.user_id for report in plane.service.refused] == [""]
