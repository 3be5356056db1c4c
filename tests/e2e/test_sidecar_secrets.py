"""Secrets come out nowhere, whatever goes wrong."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp

from support.fake_control_plane import KEY, Served
from support.odd_upstream import (
    CHAT,
    OddUpstream,
    Script,
    deaf_address,
    head,
    json_answer,
    once,
)
from support.sidecars import CHAT_PATH, environment, raw, sidecar_process

JSON, LENGTH = "content-type: application/json", f"content-length: {len(CHAT)}"


PROMPT, ANSWER = "zq-prompt-4711", "zq-answer-4712"
CREDENTIALS = {
    "BURSAR_UPSTREAM_OPENAI_API_KEY": "zq-provider-4713",
    "BURSAR_UPSTREAM_ANTHROPIC_API_KEY": "zq-other-4714",
}
OTHERS_KEY = "zq-app-credential-4715"
SPOKEN = CHAT.replace(b"Hello", ANSWER.encode())


async def _errors_of_all_kinds(
    url: str, client: aiohttp.ClientSession, plane: Served, upstream: OddUpstream, key: str
) -> AsyncIterator[bytes]:
    """Drive the sidecar through what can go wrong, and yield everything the app is told."""
    body = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": PROMPT}]}).encode()
    streamed = body[:-1] + b',"stream":true}'
    places = (
        {"authorization": f"Bearer {key}"},
        {"x-api-key": key, "authorization": f"Bearer {OTHERS_KEY}"},
        {"x-goog-api-key": key},
        {"api-key": key},
    )
    answers: list[bytes | Script] = [
        json_answer(SPOKEN),
        json_answer(SPOKEN, "500 Internal Server Error"),
        json_answer(SPOKEN[:-40] + b"\xff\xff", "200 OK", "content-encoding: gzip"),
        once(head("200 OK", JSON, LENGTH) + SPOKEN[:30]),
        once(b"zq " + SPOKEN),
        once(b""),
        once(head("200 OK", "content-type: text/event-stream") + b"data: {" + SPOKEN),
        once(head("200 OK", JSON, LENGTH, "x-a: 1\r2") + SPOKEN),
    ]
    for number, place in enumerate(places):
        for answer in answers if number == 1 else answers[:2]:
            upstream.script = answer if callable(answer) else None
            upstream.answer = answer if isinstance(answer, bytes) else b""
            for sent in (body, streamed, body[:-5]):
                async with client.post(url + CHAT_PATH, headers=place, data=sent) as response:
                    yield str(response.headers).encode()
                    try:
                        yield (await response.read()).replace(ANSWER.encode(), b"")
                    except aiohttp.ClientError as error:
                        yield str(error).encode()
    head_of = f"POST {CHAT_PATH}?key={key} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n".encode()
    for tail in (
        b"x-api-key : " + key.encode(),
        b"content-length: 5\r\ntransfer-encoding: chunked",
        b"content-encoding: lz4",
    ):
        yield await raw(url, head_of + tail + b"\r\n\r\n" + body)
    for path in (
        f"/nowhere?key={key}",
        f"/openai/../{key}",
        "/azure/x",
        f"/openai/v1/x?key={key}",
        f"/mistral/v1/{key}/x",
    ):
        async with client.post(url + path, headers=places[0], data=body) as response:
            yield str(response.headers).encode() + await response.read()
    for headers in ({"x-bursar-tags": "="}, {"x-bursar-user": "nobody"}, {"content-encoding": "gzip"}):
        async with client.post(url + CHAT_PATH, headers={**places[0], **headers}, data=body) as response:
            yield str(response.headers).encode() + await response.read()
    plane.service.down = True
    async with client.post(url + CHAT_PATH, headers=places[0], data=body) as response:
        yield str(response.headers).encode() + await response.read()
    plane.service.down = False
    for page in ("/metrics", "/healthz", "/readyz"):
        async with client.get(url + page) as response:
            yield str(response.headers).encode() + await response.read()


def files_under(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


async def test_secrets_come_out_nowhere(plane: Served, upstream: OddUpstream, tmp_path: Path) -> None:
    """Keys, credentials, prompts and answers: not in logs, errors, metrics, the outbox, or what the control plane gets."""
    settings = environment(
        plane.url, tmp_path, openai=upstream.url, anthropic=upstream.url, mistral=deaf_address()
    )
    settings |= CREDENTIALS | {"BURSAR_LOG_LEVEL": "DEBUG", "PYTHONASYNCIODEBUG": "1"}
    log = tmp_path / "log"
    heard_by_app = b""
    async with aiohttp.ClientSession() as client, sidecar_process(settings, log=log) as running:
        async for told in _errors_of_all_kinds(running.url, client, plane, upstream, KEY):
            heard_by_app += told
        await running.terminate()
    secrets = [KEY, OTHERS_KEY, PROMPT, *CREDENTIALS.values()]
    logged = log.read_bytes()
    assert logged.count(b"a provider failed") > 5
    kept = b"".join(path.read_bytes() for path in files_under(tmp_path))
    service = plane.service
    reported = str([service.checks, service.records, service.released, service.refused]).encode()
    assert len(service.records) > 20
    for secret in secrets:
        assert secret.encode() not in heard_by_app, secret
    for secret in [*secrets, ANSWER, settings["BURSAR_SIDECAR_TOKEN"]]:
        for place in (logged, kept, reported):
            assert secret.encode() not in place, secret
    for line in logged.splitlines():
        json.loads(line)
