"""Work in the background (OpenAI's Responses): charged once, when its end is first read."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from bursar.v1 import metering_pb2
from bursar_sidecar import background
from support.fake_control_plane import Served
from support.odd_upstream import OddUpstream, json_answer
from support.sidecars import AUTHORIZED, RunningSidecar, environment, running_sidecar, until

PATH = "/openai/v1/responses"
QUESTION = {"model": "gpt-5", "input": "Name every sea.", "background": True, "max_output_tokens": 300}
USAGE = {"input_tokens": 12, "output_tokens": 200, "output_tokens_details": {"reasoning_tokens": 150}}


def response(status: str, usage: object = None) -> bytes:
    body = {
        "id": "resp_1",
        "object": "response",
        "model": "gpt-5-2025-08-07",
        "background": True,
        "status": status,
        "service_tier": "default",
        "usage": usage,
        "output": [],
    }
    return json_answer(json.dumps(body).encode())


async def asked(sidecar: RunningSidecar, upstream: OddUpstream) -> str:
    """Ask for work in the background; return the id of the call."""
    upstream.answer = response("queued")
    async with await sidecar.post(PATH, json=QUESTION) as answer:
        assert (await answer.json())["status"] == "queued"
    return answer.headers["x-bursar-request-id"]


async def read(sidecar: RunningSidecar, query: str = "") -> tuple[str, bytes]:
    url = f"{sidecar.url}{PATH}/resp_1{query}"
    async with sidecar.client.get(url, headers=AUTHORIZED) as answer:
        return answer.headers["x-bursar-request-id"], await answer.read()


def usage_of(plane: Served, request_id: str) -> Any:
    items = plane.service.records[request_id].items
    return items[0].usage if items else None


async def test_the_call_that_asked_is_charged_when_its_end_is_read(
    sidecar: RunningSidecar, plane: Served, upstream: OddUpstream
) -> None:
    """F100, S20: nothing while it is queued, its hold standing; everything at the first end; nothing again."""
    request_id = await asked(sidecar, upstream)
    upstream.answer = response("in_progress")
    reading, _ = await read(sidecar)
    assert request_id not in plane.service.records
    assert request_id in plane.service.holds
    upstream.answer = response("completed", USAGE)
    for _ in range(2):
        again, body = await read(sidecar)
        assert json.loads(body)["status"] == "completed"
        assert usage_of(plane, again) is None
    assert usage_of(plane, reading) is None
    record = plane.service.records[request_id]
    assert (record.items[0].model, record.items[0].service_tier) == ("gpt-5-2025-08-07", "default")
    usage = record.items[0].usage
    assert (usage.input_tokens, usage.output_tokens, usage.reasoning_tokens) == (12, 200, 150)
    assert (record.estimated, record.outcome) == (False, metering_pb2.OUTCOME_SUCCESS)
    assert request_id not in plane.service.holds


async def test_the_end_can_be_read_as_a_stream(
    sidecar: RunningSidecar, plane: Served, upstream: OddUpstream
) -> None:
    request_id = await asked(sidecar, upstream)
    whole = json.loads(response("completed", USAGE).partition(b"\r\n\r\n")[2])
    event = (
        b"event: response.completed\ndata: "
        + json.dumps({"type": "response.completed", "response": whole}).encode()
    )
    event += b"\n\n"
    head = f"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {len(event)}\r\n\r\n"
    upstream.answer = head.encode() + event
    _, body = await read(sidecar, "?stream=true&starting_after=0")
    assert body == event
    assert usage_of(plane, request_id).output_tokens == 200


@pytest.mark.parametrize("status", ["failed", "cancelled"])
async def test_work_that_came_to_nothing(
    sidecar: RunningSidecar, plane: Served, upstream: OddUpstream, status: str
) -> None:
    """S17: what failed without usage costs nothing; what was stopped without saying is estimated."""
    request_id = await asked(sidecar, upstream)
    upstream.answer = response(status)
    await read(sidecar)
    record = plane.service.records[request_id]
    assert record.outcome == getattr(metering_pb2, f"OUTCOME_{status.upper()}")
    assert (len(record.items), record.estimated) == ((0, False) if status == "failed" else (1, True))


async def test_what_was_made_elsewhere_is_not_charged(
    sidecar: RunningSidecar, plane: Served, upstream: OddUpstream
) -> None:
    upstream.answer = response("completed", USAGE)
    request_id, _ = await read(sidecar)
    assert usage_of(plane, request_id) is None
    assert list(plane.service.records) == [request_id]


async def test_what_is_never_read_is_estimated(
    sidecar: RunningSidecar, plane: Served, upstream: OddUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F103: the provider is asked; where it does not know either, it is charged as one of which nothing was heard."""
    request_id = await asked(sidecar, upstream)
    await asyncio.sleep(0.6)
    assert request_id not in plane.service.records
    upstream.answer = json_answer(b"{}", "410 Gone")
    monkeypatch.setattr(background, "FIRST_ASK_S", 0.0)
    monkeypatch.setattr(background, "KEPT_MAX_S", 0.0)
    await until(lambda: request_id in plane.service.records)
    record = plane.service.records[request_id]
    assert (record.estimated, record.items[0].usage.output_tokens) == (True, 300)


async def test_the_provider_is_asked_about_what_is_never_read(
    sidecar: RunningSidecar, plane: Served, upstream: OddUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F100, F103: an app that was killed while it waited costs what its work cost."""
    request_id = await asked(sidecar, upstream)
    upstream.answer = response("completed", USAGE)
    await asyncio.sleep(0.6)
    assert (request_id in plane.service.records, len(upstream.heard)) == (False, 1)
    monkeypatch.setattr(background, "KEPT_MAX_S", 0.0)
    await until(lambda: request_id in plane.service.records)
    record = plane.service.records[request_id]
    assert (record.estimated, record.outcome) == (False, metering_pb2.OUTCOME_SUCCESS)
    assert record.items[0].usage.output_tokens == 200
    assert upstream.heard[-1].target == "/v1/responses/resp_1"


async def test_a_sidecar_that_stops_charges_what_it_kept(
    plane: Served, upstream: OddUpstream, tmp_path: Path
) -> None:
    async with running_sidecar(environment(plane.url, tmp_path, openai=upstream.url)) as sidecar:
        request_id = await asked(sidecar, upstream)
    record = plane.service.records[request_id]
    assert (record.estimated, record.items[0].usage.output_tokens) == (True, 300)
    assert plane.service.holds == {}


async def test_an_interaction_of_geminis_too(plane: Served, upstream: OddUpstream, tmp_path: Path) -> None:
    path = "/gemini/v1beta/interactions"
    state: dict[str, Any] = {
        "id": "v1_x",
        "object": "interaction",
        "status": "in_progress",
        "agent": "researcher",
    }
    async with running_sidecar(environment(plane.url, tmp_path, gemini=upstream.url)) as sidecar:
        upstream.answer = json_answer(json.dumps(state).encode())
        async with await sidecar.post(path, json={"agent": "researcher", "background": True}) as answer:
            request_id = answer.headers["x-bursar-request-id"]
        assert plane.service.records == {}
        state |= {"status": "completed", "usage": {"total_input_tokens": 9, "total_output_tokens": 30}}
        upstream.answer = json_answer(json.dumps(state).encode())
        for _ in range(2):
            async with sidecar.client.get(f"{sidecar.url}{path}/v1_x", headers=AUTHORIZED) as answer:
                assert answer.status == 200
    (item,) = plane.service.records[request_id].items
    assert (item.model, item.usage.input_tokens, item.usage.output_tokens) == ("researcher", 9, 30)
