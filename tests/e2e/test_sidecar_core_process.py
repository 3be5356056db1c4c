"""The sidecar as a process: killed at any instant, stopped, started wrongly, and what it weighs."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
import pytest

from support.fake_control_plane import KEY, TOKEN, Served
from support.odd_upstream import CHAT, Heard, OddUpstream, json_answer
from support.sidecars import AUTHORIZED, CHAT_PATH, SidecarProcess, environment, sidecar_process, until

BODY = b'{"model":"gpt-4o-mini","messages":[{"role":"user","content":"a secret prompt"}]}'


async def call(client: aiohttp.ClientSession, sidecar: SidecarProcess) -> str | None:
    """Make one call; return its id if its answer came whole."""
    try:
        async with client.post(sidecar.url + CHAT_PATH, headers=AUTHORIZED, data=BODY) as response:
            whole = await response.read() == CHAT
            return response.headers["x-bursar-request-id"] if whole else None
    except aiohttp.ClientError:
        return None


@pytest.mark.parametrize("seed", range(4))
async def test_a_kill_at_any_instant_loses_no_charge_and_no_call_is_charged_twice(
    plane: Served, upstream: OddUpstream, tmp_path: Path, seed: int
) -> None:
    """S17 S18: after a restart every answered call is charged once, and what was never sent holds nothing."""
    dice = random.Random(seed)
    plane.service.check_delay_s = plane.service.deduct_delay_s = 0.01
    settings = environment(plane.url, tmp_path, openai=upstream.url)

    async def answer(_: Heard, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(dice.random() * 0.02)
        writer.write(json_answer(CHAT))

    upstream.script = answer
    answered: set[str] = set()
    async with aiohttp.ClientSession() as client:

        async def keep_calling(sidecar: SidecarProcess) -> None:
            while (request_id := await call(client, sidecar)) is not None:
                answered.add(request_id)

        for _ in range(2):
            async with sidecar_process(settings) as sidecar:
                callers = [asyncio.ensure_future(keep_calling(sidecar)) for _ in range(20)]
                await asyncio.sleep(0.3 + dice.random() * 0.4)
                await sidecar.kill()
                await asyncio.gather(*callers)
        service = plane.service
        assert len(answered) > 20
        async with sidecar_process(settings):
            await until(lambda: answered <= service.records.keys())
            sent = len(upstream.heard)
            # Of a call that was sent and not deducted the hold is left to its lease, which charges the estimate.
            # So is that of a call that was journaled as sent and killed before it reached the provider.
            await until(lambda: sent <= len(service.records) + len(service.holds) <= sent + 2 * 20, 10)
    assert service.accounts[next(iter(service.accounts))].spent_nanos == 12_000 * len(service.records)
    assert not set(service.released) & service.records.keys()


async def test_a_charge_of_an_outage_survives_a_kill(
    plane: Served, upstream: OddUpstream, tmp_path: Path
) -> None:
    """S17: the control plane is away, the sidecar is killed, both come back: charged once."""
    settings = environment(plane.url, tmp_path, openai=upstream.url)

    async def then_away(_: Heard, writer: asyncio.StreamWriter) -> None:
        await plane.vanish()
        writer.write(json_answer(CHAT))

    upstream.script = then_away
    async with aiohttp.ClientSession() as client, sidecar_process(settings) as sidecar:
        request_id = await call(client, sidecar)
        assert request_id is not None
        await sidecar.kill()
    assert plane.service.records == {}
    await plane.come_back()
    async with sidecar_process(settings) as sidecar:
        await until(lambda: request_id in plane.service.records)
        assert await sidecar.terminate() == 0
    assert list(plane.service.charges.values()) == [12_000]
    async with sidecar_process(settings):
        await asyncio.sleep(0.3)
    assert plane.service.duplicates == []


async def test_sigterm_lets_open_calls_end(plane: Served, upstream: OddUpstream, tmp_path: Path) -> None:
    started = asyncio.Event()

    async def slow(_: Heard, writer: asyncio.StreamWriter) -> None:
        started.set()
        await asyncio.sleep(0.6)
        writer.write(json_answer(CHAT))

    upstream.script = slow
    settings = environment(plane.url, tmp_path, openai=upstream.url)
    async with aiohttp.ClientSession() as client, sidecar_process(settings) as sidecar:
        asked = asyncio.ensure_future(call(client, sidecar))
        await started.wait()
        ended = asyncio.ensure_future(sidecar.terminate())
        assert await asked is not None
        assert await ended == 0
    assert len(plane.service.records) == 1


async def test_two_sidecars_never_share_an_outbox(plane: Served, tmp_path: Path) -> None:
    settings = environment(plane.url, tmp_path)
    async with sidecar_process(settings) as sidecar:
        done = await asyncio.to_thread(run, settings)
        assert done.returncode == 1
        assert f"in use by pid {sidecar.process.pid}" in done.stderr
        assert done.stdout == ""


def run(settings: dict[str, str], *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bursar_sidecar", *flags]
    return subprocess.run(command, env=settings, capture_output=True, text=True, timeout=20, check=False)


def test_a_wrong_setting_ends_it_with_a_clear_word(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("on_unreachable: AJAR\n")
    for flags in (["--config", str(file)], ["--on-unreachable", "AJAR"]):
        done = run({}, *flags)
        assert done.returncode == 2
        assert done.stderr.startswith(
            "bursar-sidecar: BURSAR_ON_UNREACHABLE (--on-unreachable): must be one of"
        )
        assert "Traceback" not in done.stderr


def test_help_teaches() -> None:
    done = run({}, "--help")
    assert done.returncode == 0
    for word in ("OPENAI_BASE_URL", "BURSAR_ON_UNREACHABLE", "--outbox-dir", "/readyz", "Flags win over"):
        assert word in done.stdout


async def test_flags_and_file_are_read(plane: Served, upstream: OddUpstream, tmp_path: Path) -> None:
    file = tmp_path / "sidecar.yaml"
    file.write_text(
        f"control_plane_url: {plane.url}\nsidecar_token: {TOKEN}\nsidecar_listen: 127.0.0.1:0\n"
        f"upstreams:\n  mine:\n    url: {upstream.url}/base\n    dialect: openai\n    api_key: sk-mine\n"
    )
    flags = ("--config", str(file), "--data-dir", str(tmp_path), "--upstream", "mine.provider=vllm")
    async with aiohttp.ClientSession() as client, sidecar_process({}, *flags) as sidecar:
        url = sidecar.url + "/mine/v1/chat/completions"
        async with client.post(url, headers=AUTHORIZED, data=BODY) as response:
            assert response.status == 200
    assert upstream.heard[0].target == "/base/v1/chat/completions"
    assert upstream.heard[0].header("authorization") == "Bearer sk-mine"
    assert plane.service.checks[0].provider == "vllm"


async def test_no_secret_and_no_prompt_reaches_log_metrics_or_disk(
    plane: Served, upstream: OddUpstream, tmp_path: Path
) -> None:
    """F098: the key is hashed at once; neither it, nor the provider's, nor the prompt is written anywhere."""
    settings = environment(plane.url, tmp_path, openai=upstream.url) | {"BURSAR_LOG_LEVEL": "DEBUG"}
    log = tmp_path / "stderr"
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "bursar_sidecar",
            env=settings,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
        )
        assert process.stdout is not None
        url = "http://" + json.loads(await process.stdout.readline())["listen"]
        async with aiohttp.ClientSession() as client:
            await client.post(url + CHAT_PATH, headers=AUTHORIZED, data=BODY)
            await client.post(url + f"/gemini/x?key={KEY}", data=BODY)
            upstream.answer = b"SSH-2.0\r\n\r\n"
            await client.post(url + CHAT_PATH, headers=AUTHORIZED, data=BODY)
            async with client.get(url + "/metrics") as response:
                metrics = await response.read()
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"POST /x HTTP/1.1\r\nauthorization: Bearer {KEY}\x01\r\n\r\n".encode())
        await reader.read()
        writer.close()
        process.terminate()
        await process.wait()
        process._transport.close()  # type: ignore[attr-defined]
    assert log.stat().st_size > 0
    written = everything_in(tmp_path) + metrics
    for secret in (KEY, TOKEN, "sk-openai", "a secret prompt"):
        assert secret.encode() not in written


def everything_in(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())


def rss_kib(pid: int) -> int:
    done = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=True)
    return int(done.stdout)


def bare_aiohttp() -> tuple[float, int]:
    """Return in what time a process has loaded its HTTP library, in seconds, and what that takes, in KiB."""
    script = "import aiohttp.web, uvloop; print(flush=True); input()"
    started = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as bare:
        assert bare.stdout is not None
        bare.stdout.readline()
        took = time.monotonic() - started
        taken = rss_kib(bare.pid)
        bare.communicate("\n")
    return took, taken


async def test_it_is_light(plane: Served, tmp_path: Path) -> None:
    """It starts, and idles, at little more than its HTTP library takes.

    Times are compared with the library's own in turns: on a busy machine both take longer.
    """
    times: list[float] = []
    bare_times: list[float] = []
    for _ in range(3):
        bare_s, bare_kib = await asyncio.to_thread(bare_aiohttp)
        started = time.monotonic()
        async with sidecar_process(environment(plane.url, tmp_path)) as sidecar:
            times.append(time.monotonic() - started)
            taken_kib = await asyncio.to_thread(rss_kib, sidecar.process.pid)
        bare_times.append(bare_s)
    assert min(times) < 2.5 * min(bare_times)
    assert taken_kib < 1.7 * bare_kib
