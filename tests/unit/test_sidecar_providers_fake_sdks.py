"""The fake provider is read by the providers' own SDKs as the real ones are, with the token counts it announces."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import anthropic
import openai
import pytest
from anthropic.types import Message, TextBlock
from google import genai
from google.genai import types as genai_types
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response

from bursar_sidecar.fake_provider.plan import expected_usage
from bursar_sidecar.providers.base import Usage
from support.fake_provider import FakeProvider, fake_provider

# google-genai subclasses aiohttp's session, which aiohttp discourages: between the two of them.
pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")

LONG = "Tell me about the harbour. " * 200


@pytest.fixture
async def provider() -> AsyncIterator[FakeProvider]:
    async with fake_provider(seed=3) as running:
        yield running


@pytest.fixture
async def openai_client(provider: FakeProvider) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{provider.url}/v1", api_key="k", max_retries=0) as client:
        yield client


@pytest.fixture
async def anthropic_client(provider: FakeProvider) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=provider.url, api_key="k", max_retries=0) as client:
        yield client


@pytest.fixture
async def gemini_client(provider: FakeProvider) -> AsyncIterator[genai.client.AsyncClient]:
    client = genai.Client(api_key="k", http_options=genai_types.HttpOptions(base_url=provider.url)).aio
    yield client
    await client.aclose()


def announced(provider: FakeProvider) -> Usage:
    """Return the usage that the fake provider says the last call had; a test can compute the same."""
    call = provider.calls[-1]
    assert call.completed
    assert call.usage == expected_usage(call.path, call.body, seed=3)
    return call.usage


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hello there"}], **fields}


async def test_openai_chat(provider: FakeProvider, openai_client: openai.AsyncOpenAI) -> None:
    raw = await openai_client.chat.completions.with_raw_response.create(**chat())
    answer = ChatCompletion.model_validate_json(raw.content)
    usage = announced(provider)
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.choices[0].message.content or "").endswith(".")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (
        usage.input_tokens,
        usage.output_tokens,
    )
    assert answer.usage.total_tokens == usage.input_tokens + usage.output_tokens


async def test_openai_chat_counts_cache_reasoning_and_choices(
    provider: FakeProvider, openai_client: openai.AsyncOpenAI
) -> None:
    messages = [{"role": "user", "content": LONG}]
    answer = await openai_client.chat.completions.create(**chat(model="o4-mini", messages=messages, n=2))
    usage = announced(provider)
    assert usage.cache_read_tokens > 0
    assert usage.reasoning_tokens > 0
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == usage.cache_read_tokens
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens == usage.reasoning_tokens
    assert answer.usage.completion_tokens == usage.output_tokens
    assert len(answer.choices) == 2


@pytest.mark.parametrize("asks", [True, False])
async def test_openai_chat_streamed(
    provider: FakeProvider, openai_client: openai.AsyncOpenAI, asks: bool
) -> None:
    """Usage comes only when asked for: then in an event of its own, and as null in all the others."""
    fields: dict[str, Any] = {"stream_options": {"include_usage": True}} if asks else {}
    whole = await openai_client.chat.completions.create(**chat())
    stream = await openai_client.chat.completions.create(**chat(stream=True, **fields))
    chunks = [ChatCompletionChunk.model_validate(chunk.model_dump()) async for chunk in stream]
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == whole.choices[0].message.content
    usage = announced(provider)
    if asks:
        last = chunks[-1]
        assert last.choices == []
        assert last.usage is not None
        assert last.usage.completion_tokens == usage.output_tokens
        chunks = chunks[:-1]
    assert {chunk.usage for chunk in chunks} == {None}
    assert chunks[-1].choices[0].finish_reason == "stop"


async def test_openai_chat_events_have_no_usage_unless_asked(provider: FakeProvider) -> None:
    headers = {"authorization": "Bearer k"}
    async with aiohttp.ClientSession(headers=headers) as session:
        body = chat(stream=True)
        async with session.post(f"{provider.url}/v1/chat/completions", json=body) as answer:
            plain = await answer.read()
        body["stream_options"] = {"include_usage": True}
        async with session.post(f"{provider.url}/v1/chat/completions", json=body) as answer:
            asked = await answer.read()
    assert b'"usage"' not in plain
    *events, usage, done, _ = asked.split(b"\n\n")
    assert done == b"data: [DONE]"
    assert json.loads(usage[6:])["choices"] == []
    assert b"\n\n".join([*events, done, b""]).replace(b',"usage":null', b"") == plain


async def test_openai_chat_honours_the_limit(
    provider: FakeProvider, openai_client: openai.AsyncOpenAI
) -> None:
    answer = await openai_client.chat.completions.create(**chat(max_completion_tokens=3))
    assert answer.choices[0].finish_reason == "length"
    assert announced(provider).output_tokens == 3


async def test_openai_completions(provider: FakeProvider, openai_client: openai.AsyncOpenAI) -> None:
    asked: dict[str, Any] = {"model": "gpt-3.5-turbo-instruct", "prompt": "Once"}
    raw = await openai_client.completions.with_raw_response.create(**asked)
    answer = Completion.model_validate_json(raw.content)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == announced(provider).output_tokens == 16
    stream = await openai_client.completions.create(**asked, stream=True)
    assert "".join([part.choices[0].text async for part in stream]) == answer.choices[0].text


@pytest.mark.parametrize("model", ["gpt-4o", "gpt-5"])
@pytest.mark.parametrize("limit", [None, 70, 5])
async def test_openai_responses(
    provider: FakeProvider, openai_client: openai.AsyncOpenAI, model: str, limit: int | None
) -> None:
    fields: dict[str, Any] = {"model": model, "input": "Hello there", "max_output_tokens": limit}
    raw = await openai_client.responses.with_raw_response.create(**fields)
    answer = Response.model_validate_json(raw.content)
    usage = announced(provider)
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (
        usage.input_tokens,
        usage.output_tokens,
    )
    assert answer.usage.output_tokens_details.reasoning_tokens == usage.reasoning_tokens
    assert (usage.reasoning_tokens > 0) is (model == "gpt-5")
    assert answer.status == ("incomplete" if limit == 5 else answer.status)
    last = None
    said = ""
    async for event in await openai_client.responses.create(**fields, stream=True):
        if event.type == "response.output_text.delta":
            said += event.delta
        last = event
    assert last is not None
    assert last.type == f"response.{answer.status}"
    assert Response.model_validate(last.response.model_dump()) == answer
    assert said == answer.output_text


async def test_openai_embeddings_and_models(
    provider: FakeProvider, openai_client: openai.AsyncOpenAI
) -> None:
    raw = await openai_client.embeddings.with_raw_response.create(
        model="text-embedding-3-small", input=["a", "b"], encoding_format="float", dimensions=8
    )
    floats = CreateEmbeddingResponse.model_validate_json(raw.content)
    packed = await openai_client.embeddings.create(
        model="text-embedding-3-small", input=["a", "b"], dimensions=8
    )
    assert [one.embedding for one in packed.data] == [pytest.approx(one.embedding) for one in floats.data]
    assert packed.usage.prompt_tokens == announced(provider).input_tokens
    assert "gpt-4o" in [model.id async for model in openai_client.models.list()]


def message(**fields: Any) -> dict[str, Any]:
    return {
        "model": "claude-sonnet-5",
        "max_tokens": 500,
        "messages": [{"role": "user", "content": "Hello there"}],
        **fields,
    }


async def test_anthropic_message(provider: FakeProvider, anthropic_client: anthropic.AsyncAnthropic) -> None:
    raw = await anthropic_client.messages.with_raw_response.create(**message())
    answer = Message.model_validate_json(await raw.read())
    usage = announced(provider)
    assert answer.stop_reason == "end_turn"
    assert isinstance(answer.content[0], TextBlock)
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (
        usage.input_tokens,
        usage.output_tokens,
    )


@pytest.mark.parametrize("thinks", [True, False])
async def test_anthropic_message_streamed(
    provider: FakeProvider, anthropic_client: anthropic.AsyncAnthropic, thinks: bool
) -> None:
    """Cache writes and reads are outside `input_tokens`, thinking is inside `output_tokens`."""
    content = [{"type": "text", "text": LONG, "cache_control": {"type": "ephemeral"}}]
    fields = message(messages=[{"role": "user", "content": content}])
    if thinks:
        fields["thinking"] = {"type": "enabled", "budget_tokens": 1024}
    whole = await anthropic_client.messages.create(**fields)
    async with anthropic_client.messages.stream(**fields) as stream:
        answer = await stream.get_final_message()
    usage = announced(provider)
    assert [block.type for block in answer.content] == (["thinking", "text"] if thinks else ["text"])
    assert [block.text for block in answer.content if block.type == "text"] == [
        block.text for block in whole.content if block.type == "text"
    ]
    found = answer.usage
    assert found.cache_creation_input_tokens == usage.cache_write_5m_tokens > 0
    assert found.cache_read_input_tokens == usage.cache_read_tokens > 0
    assert found.input_tokens == usage.input_tokens - usage.cache_read_tokens - usage.cache_write_5m_tokens
    assert found.output_tokens == usage.output_tokens


async def test_anthropic_counts_and_lists(
    provider: FakeProvider, anthropic_client: anthropic.AsyncAnthropic
) -> None:
    asked = message()
    counted = await anthropic_client.messages.count_tokens(model=asked["model"], messages=asked["messages"])
    assert provider.calls[-1].usage is None
    await anthropic_client.messages.create(**asked)
    assert counted.input_tokens == announced(provider).input_tokens
    assert "claude-sonnet-5" in [model.id async for model in anthropic_client.models.list()]


def usage_of(answer: genai_types.GenerateContentResponse) -> tuple[int, int]:
    found = answer.usage_metadata
    assert found is not None
    output = (found.candidates_token_count or 0) + (found.thoughts_token_count or 0)
    return found.prompt_token_count or 0, output


@pytest.mark.parametrize("model", ["gemini-2.0-flash", "gemini-2.5-flash"])
async def test_gemini_content(
    provider: FakeProvider, gemini_client: genai.client.AsyncClient, model: str
) -> None:
    answer = await gemini_client.models.generate_content(model=model, contents="Hello there")
    usage = announced(provider)
    assert usage_of(answer) == (usage.input_tokens, usage.output_tokens)
    assert (usage.reasoning_tokens > 0) is (model == "gemini-2.5-flash")
    pieces = [
        piece
        async for piece in await gemini_client.models.generate_content_stream(
            model=model, contents="Hello there"
        )
    ]
    assert "".join(piece.text or "" for piece in pieces) == answer.text
    assert usage_of(pieces[-1]) == usage_of(answer)
    assert pieces[-1].candidates is not None
    assert pieces[-1].candidates[0].finish_reason is genai_types.FinishReason.STOP


async def test_gemini_honours_the_limit_and_counts(
    provider: FakeProvider, gemini_client: genai.client.AsyncClient
) -> None:
    config = genai_types.GenerateContentConfig(max_output_tokens=4)
    answer = await gemini_client.models.generate_content(
        model="gemini-2.0-flash", contents="Hi", config=config
    )
    assert announced(provider).output_tokens == 4
    assert answer.candidates is not None
    assert answer.candidates[0].finish_reason is genai_types.FinishReason.MAX_TOKENS
    counted = await gemini_client.models.count_tokens(model="gemini-2.0-flash", contents="Hi")
    assert counted.total_tokens == usage_of(answer)[0]
    embedded = await gemini_client.models.embed_content(model="gemini-embedding-001", contents="Hi")
    assert embedded.embeddings is not None
    assert len(embedded.embeddings[0].values or []) == 768
