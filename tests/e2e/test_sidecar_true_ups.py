"""Calls whose answer broke off: the provider is asked what they came to, and each is charged once."""

from __future__ import annotations

import asyncio
import gzip
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from bursar.v1 import metering_pb2
from bursar_sidecar import background, inquiry, signing
from bursar_sidecar.providers.base import Usage
from support.costs import cost_nanos
from support.fake_control_plane import KEY, NANOS_PER_TOKEN, Served
from support.later_answers import (
    ASKED,
    CHAT,
    NOT_READY,
    Provider,
    cancelling,
    charged,
    chat_event,
    event,
    generation,
    left,
    response,
    response_events,
)
from support.odd_upstream import LAST_CHUNK, Heard, chunk, head, json_answer, odd_upstream
from support.sidecars import AUTHORIZED, environment, running_sidecar, until
from support.stack import Stack


@pytest.fixture
async def provider(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Provider]:
    monkeypatch.setattr(background, "FIRST_ASK_S", 0.05)
    monkeypatch.setattr(background, "ASK_PAUSE_MAX_S", 0.3)
    async with odd_upstream() as upstream:
        provider = Provider(upstream)
        upstream.script = provider.script
        yield provider
        provider.over.set()


#: Upstream's path, request, the stream's beginning, headers of its answer, what it says later, where it is asked.
ASKABLE = {
    "openrouter chat": (
        "/openrouter/api/v1/chat/completions", CHAT, chat_event("gen-1"), (), generation(), "/api/v1/generation?id=gen-1",
    ),
    "openrouter messages": (
        "/openrouter/api/v1/messages",
        {"model": "anthropic/claude-haiku-4.5", "max_tokens": 300, "stream": True, "messages": CHAT["messages"]},
        event({"type": "message_start", "message": {"model": "anthropic/claude-haiku-4.5", "usage": {"input_tokens": 9}}}),
        ("x-generation-id: gen-2",),
        generation(model="anthropic/claude-4.5-haiku-20251001"),
        "/api/v1/generation?id=gen-2",
    ),
    "openai responses": (
        "/openai/v1/responses", ASKED, response_events("resp_1"), (), response("resp_1"), "/v1/responses/resp_1",
    ),
    "openai chat": (
        "/openai/v1/chat/completions",
        {**CHAT, "store": True},
        chat_event("chatcmpl-1", "gpt-4o-mini-2024-07-18"),
        (),
        json_answer(
            b'{"id":"chatcmpl-1","model":"gpt-4o-mini-2024-07-18","choices":[],"usage":{"prompt_tokens":12,'
            b'"completion_tokens":200,"total_tokens":212,"completion_tokens_details":{"reasoning_tokens":150}}}'
        ),
        "/v1/chat/completions/chatcmpl-1",
    ),
    "azure responses": (
        "/azure/openai/responses?api-version=preview", ASKED, response_events("resp_1"), (), response("resp_1"),
        "/openai/responses/resp_1?api-version=preview",
    ),
    "xai responses": (
        "/xai/v1/responses", ASKED, response_events("0f3c-1"), (), response("0f3c-1"), "/v1/responses/0f3c-1",
    ),
    "gemini interactions": (
        "/gemini/v1beta/interactions",
        {"model": "gemini-2.5-flash", "input": "Name a sea.", "stream": True},
        event({
            "event_type": "interaction.created",
            "interaction": {"id": "v1_x", "status": "in_progress", "model": "gemini-2.5-flash"},
        }),
        (),
        json_answer(
            b'{"id":"v1_x","status":"completed","model":"gemini-2.5-flash","usage":{"total_input_tokens":12,'
            b'"total_output_tokens":50,"total_thought_tokens":150}}'
        ),
        "/v1beta/interactions/v1_x",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ASKABLE.values(), ids=ASKABLE)
async def test_an_aborted_stream_is_charged_what_the_provider_says(
    plane: Served, provider: Provider, tmp_path: Path, case: tuple[Any, ...]
) -> None:
    """F103, S20: first it does not know; its hold stands until it does; then the real usage, once, and cancelled all the same."""
    path, body, provider.begins, provider.lines, told, target = case
    provider.says = [NOT_READY, told]
    async with cancelling(plane, provider, tmp_path) as sidecar:
        request_id = await left(sidecar, path, body)
        await until(lambda: len(provider.asked) == 1)
        assert (request_id in plane.service.records, request_id in plane.service.holds) == (False, True)
        record = await charged(plane, request_id)
        assert await sidecar.metric('true_ups_total{result="settled"}') == 1
        assert await sidecar.metric("estimated_calls_total") == 0
        assert await sidecar.metric("calls_total") == 1
    usage = record.items[0].usage
    assert (usage.input_tokens, usage.output_tokens, usage.reasoning_tokens) == (12, 200, 150)
    assert (record.estimated, record.outcome) == (False, metering_pb2.OUTCOME_CANCELLED)
    assert plane.service.charges == {request_id: 212 * NANOS_PER_TOKEN}
    assert len(provider.asked) == 2
    called = provider.upstream.heard[0]
    for heard in provider.asked:
        assert (heard.target, heard.body) == (target, b"")
        for name in ("authorization", "api-key", "x-api-key", "x-goog-api-key", "x-cell"):
            assert heard.header(name) == called.header(name), name
        assert KEY not in str(heard.headers)


async def test_the_books_have_the_real_cost(stack: Stack, provider: Provider, tmp_path: Path) -> None:
    """F103, S14, S20, with the real control plane: one record, exact, with the cost of its units; nothing held, all spent."""
    email, key = await asyncio.to_thread(stack.person, "trued-up", 5)
    budget = ("UserService/GetBudget", {"user_id": email})
    provider.begins, provider.says = chat_event("gen-1"), [NOT_READY]
    settings = environment(stack.url, tmp_path, openrouter=provider.upstream.url)
    token = (stack.data_dir / "sidecar-token").read_text().strip()
    settings |= {"BURSAR_SIDECAR_TOKEN": token, "BURSAR_ON_DISCONNECT": "CANCEL"}
    async with running_sidecar(settings) as sidecar:
        await left(sidecar, "/openrouter/api/v1/chat/completions", CHAT, key)
        await until(lambda: provider.asked != [])
        assert await asyncio.to_thread(stack.records, user_id=email) == []
        provider.says = [generation()]
        await until(lambda: sidecar.sidecar.counts.deducts == 1)
    (record,) = await asyncio.to_thread(stack.records, user_id=email)
    assert (record["outcome"], record["estimated"]) == ("OUTCOME_CANCELLED", False)
    asked = {"provider": "openrouter", "model": "openai/gpt-4o-mini"}
    price = (await asyncio.to_thread(stack.rpc, "PricingService/LookupPrice", asked))["price"]
    usage = Usage(input_tokens=12, output_tokens=200, cache_read_tokens=4, reasoning_tokens=150, requests=1)
    cost = cost_nanos(price, usage)
    assert int(record["costNanos"]) == cost > 0
    now = (await asyncio.to_thread(stack.rpc, *budget))["budget"]
    assert (int(now["spentNanos"]), int(now.get("heldNanos", 0))) == (cost, 0)


async def test_openrouters_own_cost_and_what_it_calls_the_model(
    plane: Served, provider: Provider, tmp_path: Path
) -> None:
    provider.begins, provider.says = chat_event("gen-1"), [generation(service_tier="default")]
    async with cancelling(plane, provider, tmp_path) as sidecar:
        record = await charged(plane, await left(sidecar, "/openrouter/api/v1/chat/completions", CHAT))
    (item,) = record.items
    assert (item.model, item.service_tier) == ("openai/gpt-4o-mini", "default")
    assert (item.usage.cache_read_tokens, record.provider_cost_usd) == (4, 0.000123)


@pytest.mark.parametrize(
    ("says", "asks"),
    [
        (response("resp_1", "failed", usage=False), 1),
        (response("resp_1", "completed", usage=False), 1),
        (json_answer(b'{"error":{}}', "401 Unauthorized"), 1),
        (head("302 Found", "location: /elsewhere", "content-length: 0"), 1),
        (response("resp_1", "in_progress", usage=False), 2),
        (json_answer(b'{"id":"resp_1","usa'), 2),
        (json_answer(b"{}", "503 Service Unavailable"), 2),
        (b"", 1),
    ],
    ids=["failed", "without usage", "refused", "redirect", "in progress", "cut", "unavailable", "silent"],
)
async def test_the_estimate_stands_where_the_provider_does_not_say(
    plane: Served, provider: Provider, tmp_path: Path, says: bytes, asks: int
) -> None:
    """F103: at once where it never will, else when the time is over."""
    provider.begins, provider.says = response_events("resp_1"), [says]
    async with cancelling(plane, provider, tmp_path, BURSAR_TRUE_UP_MS="1200") as sidecar:
        record = await charged(plane, await left(sidecar, "/openai/v1/responses", ASKED))
        assert sidecar.sidecar.counts.true_ups == {"estimate": 1}
    assert (record.estimated, record.outcome) == (True, metering_pb2.OUTCOME_CANCELLED)
    assert 0 < record.items[0].usage.output_tokens < 20
    assert len(provider.asked) == 1 if asks == 1 else len(provider.asked) >= asks
    assert all(heard.target == "/v1/responses/resp_1" for heard in provider.asked)


@pytest.mark.parametrize(
    ("path", "body", "begins", "settings"),
    [
        ("/openai/v1/responses", {**ASKED, "store": False}, response_events("resp_1"), {}),
        ("/openai/v1/chat/completions", CHAT, chat_event("chatcmpl-1"), {}),
        ("/lab/v1/responses", ASKED, response_events("resp_1"), {}),
        ("/openai/v1/responses", ASKED, response_events("../../../v1/files"), {}),
        ("/openai/v1/responses", ASKED, response_events("resp_1"), {"BURSAR_TRUE_UP_MS": "0"}),
    ],
    ids=["not stored", "not stored either", "another server", "no id", "never"],
)
async def test_nobody_is_asked_who_does_not_know(
    plane: Served, provider: Provider, tmp_path: Path, path: str, body: dict[str, Any], begins: bytes,
    settings: dict[str, str],
) -> None:  # fmt: skip
    provider.begins = begins
    async with cancelling(plane, provider, tmp_path, **settings) as sidecar:
        record = await charged(plane, await left(sidecar, path, body))
        await asyncio.sleep(0.4)
        assert sidecar.sidecar.counts.true_ups == {}
    assert (record.estimated, provider.asked) == (True, [])


async def test_what_the_upstream_broke_off_and_what_a_budget_ended(
    plane: Served, provider: Provider, tmp_path: Path
) -> None:
    """F103: the app is told at once, the charge comes when the provider says; neither is a success because of it."""
    provider.begins, provider.says, provider.breaks = response_events("resp_1"), [response("resp_1")], True
    async with cancelling(plane, provider, tmp_path) as sidecar:
        async with await sidecar.post("/openai/v1/responses", json=ASKED) as answer:
            with pytest.raises(aiohttp.ClientPayloadError):
                await answer.read()
        broken = await charged(plane, answer.headers["x-bursar-request-id"])
        provider.begins, provider.breaks, plane.service.guard_output_tokens = (
            response_events("resp_2"),
            False,
            1,
        )
        provider.says = [response("resp_2")]
        async with await sidecar.post("/openai/v1/responses", json=ASKED) as answer:
            assert b"budget exhausted" in await answer.read()
        ended = await charged(plane, answer.headers["x-bursar-request-id"])
    for record in (broken, ended):
        assert (record.estimated, record.outcome) == (False, metering_pb2.OUTCOME_PARTIAL)
        assert record.items[0].usage.output_tokens == 200


async def test_an_answer_without_usage_comes_without_waiting(
    plane: Served, provider: Provider, tmp_path: Path
) -> None:
    async def whole(heard: Heard, writer: asyncio.StreamWriter) -> None:
        if heard.method == "GET":
            return await provider.script(heard, writer)
        said = chat_event("gen-1") + b"data: [DONE]\n\n"
        kind = ("content-type: text/event-stream", "transfer-encoding: chunked")
        writer.write(head("200 OK", *kind) + chunk(said) + LAST_CHUNK)
        return None

    provider.upstream.script, provider.says = whole, [NOT_READY, NOT_READY, generation()]
    async with cancelling(plane, provider, tmp_path) as sidecar:
        async with await sidecar.post("/openrouter/api/v1/chat/completions", json=CHAT) as answer:
            assert (await answer.read()).endswith(b"[DONE]\n\n")
        assert plane.service.records == {}
        record = await charged(plane, answer.headers["x-bursar-request-id"])
    assert (record.estimated, record.outcome) == (False, metering_pb2.OUTCOME_SUCCESS)


async def test_a_stop_charges_estimates_at_once(plane: Served, provider: Provider, tmp_path: Path) -> None:
    """Also while the provider is being asked; and what ends after that is not kept any more."""
    provider.begins, provider.says = response_events("resp_1"), [b""]
    async with cancelling(plane, provider, tmp_path) as sidecar:
        request_id = await left(sidecar, "/openai/v1/responses", ASKED)
        await until(lambda: len(provider.asked) == 1)
        stopped_at = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - stopped_at < 5
    record = await charged(plane, request_id)
    assert (record.estimated, record.outcome) == (True, metering_pb2.OUTCOME_CANCELLED)


async def test_holds_are_renewed_while_they_wait(plane: Served, provider: Provider, tmp_path: Path) -> None:
    """S9: as for every open call."""
    plane.service.lease_s = 0.9
    provider.begins = chat_event("gen-1")
    async with cancelling(plane, provider, tmp_path) as sidecar:
        request_id = await left(sidecar, "/openrouter/api/v1/chat/completions", CHAT)
        asked = len(provider.asked)
        plane.service.renewed.clear()
        await until(lambda: sum(request_id in ids for ids in plane.service.renewed) >= 2)
        await until(lambda: len(provider.asked) > asked)
        assert await sidecar.metric("holds_missing_total") == 0
        provider.says = [generation()]
        assert not (await charged(plane, request_id)).estimated


async def test_an_app_that_reads_the_answer_itself_ends_the_asking(
    plane: Served, provider: Provider, tmp_path: Path
) -> None:
    """S20: background work whose stream broke off, too; charged once, by whoever hears first."""
    provider.begins = response_events("resp_1")
    async with cancelling(plane, provider, tmp_path) as sidecar:
        request_id = await left(sidecar, "/openai/v1/responses", {**ASKED, "background": True})
        provider.says = [response("resp_1")]
        url = f"{sidecar.url}/openai/v1/responses/resp_1"
        async with sidecar.client.get(url, headers=AUTHORIZED) as answer:
            assert (await answer.json())["status"] == "completed"
        record = await charged(plane, request_id)
        asked = len(provider.asked)
        await asyncio.sleep(0.6)
        assert len(provider.asked) == asked
    assert (record.estimated, record.items[0].usage.output_tokens) == (False, 200)
    assert sum(plane.service.charges.values()) == 212 * NANOS_PER_TOKEN


async def test_the_oldest_is_charged_where_too_many_wait(
    plane: Served, provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "KEPT_MAX_CALLS", 2)
    calls = []
    async with cancelling(plane, provider, tmp_path) as sidecar:
        for id_ in ("gen-1", "gen-2", "gen-2", "gen-3"):
            provider.begins = chat_event(id_)
            calls.append(await left(sidecar, "/openrouter/api/v1/chat/completions", CHAT))
        await until(lambda: len(plane.service.records) == 2)
        # The second of a name is charged at once, for nobody could say which of them is meant.
        assert set(plane.service.records) == {calls[0], calls[2]}
        assert sidecar.sidecar.gate.open_calls == 2
    assert plane.service.holds == {}
    assert len(plane.service.records) == 4


async def test_long_and_compressed_answers_are_read_within_bounds(
    plane: Served, provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {"type": "message", "content": [{"type": "output_text", "text": "sea " * (1 << 20)}]}
    long = response("resp_1", output=[said])
    squeezed = gzip.compress(long.partition(b"\r\n\r\n")[2])
    async with cancelling(plane, provider, tmp_path) as sidecar:
        for number, told in enumerate((long, json_answer(squeezed, "200 OK", "content-encoding: gzip"))):
            provider.begins, provider.says = response_events(f"resp_{number}"), [told]
            record = await charged(plane, await left(sidecar, "/openai/v1/responses", ASKED))
            assert (record.estimated, record.items[0].usage.output_tokens) == (False, 200)
        monkeypatch.setattr(inquiry, "ANSWER_MAX_BYTES", 1 << 20)
        for number, told in enumerate((long, json_answer(squeezed, "200 OK", "content-encoding: gzip"))):
            provider.begins, provider.says = response_events(f"resp_x{number}"), [told]
            assert (await charged(plane, await left(sidecar, "/openai/v1/responses", ASKED))).estimated


async def test_credentials_are_made_for_the_asking_too_and_nothing_is_logged(
    plane: Served,
    provider: Provider,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """F183: a token that is renewed meanwhile is the new one; neither it nor an id or an answer is in the log."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(signing, "_SPARE_S", 10.0)
    provider.begins, provider.says = response_events("resp_4711"), [NOT_READY]
    async with odd_upstream() as entra:
        monkeypatch.setattr(signing, "_ENTRA", entra.url)
        entra.answer = json_answer(b'{"access_token":"ey.first","expires_in":1}')
        known = environment(plane.url, tmp_path, azure=provider.upstream.url)
        del known["BURSAR_UPSTREAM_AZURE_API_KEY"]
        known |= {f"AZURE_{name}": "hush" for name in ("TENANT_ID", "CLIENT_ID", "CLIENT_SECRET")}
        known |= {"BURSAR_ON_DISCONNECT": "CANCEL", "BURSAR_TRUE_UP_MS": "1000"}
        async with running_sidecar(known) as sidecar:
            request_id = await left(sidecar, "/azure/openai/v1/responses", ASKED)
            entra.answer = json_answer(b'{"access_token":"ey.second","expires_in":1}')
            assert (await charged(plane, request_id)).estimated
    assert provider.upstream.heard[0].header("authorization") == "Bearer ey.first"
    assert provider.asked[-1].header("authorization") == "Bearer ey.second"
    logged = "\n".join(f"{record.getMessage()} {getattr(record, 'fields', '')}" for record in caplog.records)
    assert request_id in logged
    for secret in ("ey.", "hush", KEY, "resp_4711", "not found", "Sargasso"):
        assert secret not in logged, secret


async def test_asking_is_bounded(
    plane: Served, provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So many at a time, each for so long; a call whose budget waits for its charge for a shorter time."""
    monkeypatch.setattr(background, "ASKS_AT_ONCE", 1)
    monkeypatch.setattr(inquiry, "ASK_TIMEOUT_S", 1.0)
    monkeypatch.setattr(background, "GUARDED_MAX_S", 2.5)
    provider.says = [b""]
    async with cancelling(plane, provider, tmp_path) as sidecar:
        provider.begins = response_events("resp_1")
        first = await left(sidecar, "/openai/v1/responses", ASKED)
        await until(lambda: len(provider.asked) == 1)
        provider.begins, plane.service.guard_output_tokens = response_events("resp_2"), 10**6
        second = await left(sidecar, "/openai/v1/responses", ASKED)
        await asyncio.sleep(0.4)
        assert len(provider.asked) == 1
        await until(lambda: len({heard.target for heard in provider.asked}) == 2)
        await until(lambda: second in plane.service.records)
        assert plane.service.records[second].estimated
        assert first not in plane.service.records
        provider.says = [response("resp_1")]
        assert not (await charged(plane, first)).estimated
