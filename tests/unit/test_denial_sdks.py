"""The providers' own SDKs raise what their users catch, after one request (F099, C04)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import anthropic
import openai
import pytest
from google import genai
from google.genai import errors as genai_errors
from google.genai import types as genai_types

from bursar.v1.metering_pb2 import Denial
from bursar_sidecar import denial
from bursar_sidecar.providers.base import Problem, dialect_named
from support.canned import Canned, canned

# google-genai subclasses aiohttp's session, which aiohttp discourages: between the two of them.
pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")

NOW = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)
SPENT = denial.denied(
    [
        Denial(
            code="BUDGET_CAP_HARD",
            reason="insufficient_budget",
            budget_id="bud_1",
            scope="user",
            period_reset_time=NOW + timedelta(hours=12),
        )
    ],
    NOW,
)
LIMITED_LONG = denial.denied([Denial(code="RATE_LIMITED", period_reset_time=NOW + timedelta(minutes=5))], NOW)
LIMITED = denial.denied([Denial(code="RATE_LIMITED", period_reset_time=NOW + timedelta(seconds=1))], NOW)
REVOKED = denial.denied([Denial(code="KEY_REVOKED", message="This key was revoked.")], NOW)
UNKNOWN = denial.denied([Denial(code="KEY_UNKNOWN", message="This key is unknown.")], NOW)


@asynccontextmanager
async def refusing(dialect: str, problem: Problem) -> AsyncIterator[Canned]:
    async with canned(*denial.answer(dialect_named(dialect), problem)) as server:
        yield server


async def ask_openai(url: str, stream: bool) -> None:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="bur_x") as client:
        await client.chat.completions.create(
            model="gpt-4o", messages=[{"role": "user", "content": "hi"}], stream=stream
        )


async def ask_anthropic(url: str, stream: bool) -> None:
    async with anthropic.AsyncAnthropic(base_url=url, api_key="bur_x") as client:
        await client.messages.create(
            model="claude-sonnet-5",
            max_tokens=9,
            messages=[{"role": "user", "content": "hi"}],
            stream=stream,
        )


async def ask_gemini(url: str, stream: bool) -> None:
    client = genai.Client(api_key="bur_x", http_options=genai_types.HttpOptions(base_url=url)).aio
    try:
        if stream:
            async for _ in await client.models.generate_content_stream(
                model="gemini-2.5-flash", contents="hi"
            ):
                pass
        else:
            await client.models.generate_content(model="gemini-2.5-flash", contents="hi")
    finally:
        await client.aclose()


@pytest.mark.parametrize("stream", [False, True])
async def test_openai_raises_a_status_error_with_the_code(stream: bool) -> None:
    """C04: `except openai.APIStatusError as error: error.code == "BUDGET_CAP_HARD"`."""
    async with refusing("openai", SPENT) as server:
        with pytest.raises(openai.APIStatusError) as raised:
            await ask_openai(server.url, stream)
    error = raised.value
    assert (error.status_code, error.code, error.type) == (402, "BUDGET_CAP_HARD", "insufficient_budget")
    assert "budget exhausted" in error.message
    assert server.requests == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_anthropic_raises_payment_required(stream: bool) -> None:
    """C04: `except anthropic.PaymentRequiredError`."""
    async with refusing("anthropic", SPENT) as server:
        with pytest.raises(anthropic.PaymentRequiredError) as raised:
            await ask_anthropic(server.url, stream)
    error = raised.value
    assert (error.status_code, error.error_code, error.type) == (
        402,
        "BUDGET_CAP_HARD",
        "insufficient_budget",
    )
    assert (error.api_message or "").startswith("budget exhausted")
    assert isinstance(error.body, dict)
    assert error.body["error"]["code"] == "BUDGET_CAP_HARD"
    assert server.requests == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_gemini_raises_a_client_error(stream: bool) -> None:
    """C04: `except errors.ClientError as error: error.code == 402`."""
    async with refusing("gemini", SPENT) as server:
        with pytest.raises(genai_errors.ClientError) as raised:
            await ask_gemini(server.url, stream)
    error = raised.value
    assert (error.code, error.status) == (402, "RESOURCE_EXHAUSTED")
    assert (error.message or "").startswith("budget exhausted")
    assert error.details["error"]["details"][0]["reason"] == "BUDGET_CAP_HARD"
    assert server.requests == 1


@pytest.mark.parametrize(
    ("problem", "raises"),
    [
        (LIMITED_LONG, openai.RateLimitError),
        (REVOKED, openai.PermissionDeniedError),
        (UNKNOWN, openai.AuthenticationError),
        (denial.too_large(1), openai.APIStatusError),
    ],
)
async def test_openai_does_not_repeat_what_cannot_help(
    problem: Problem, raises: type[openai.APIStatusError]
) -> None:
    async with refusing("openai", problem) as server:
        with pytest.raises(raises) as raised:
            await ask_openai(server.url, stream=False)
    assert raised.value.code == problem.code
    assert server.requests == 1


@pytest.mark.parametrize(
    ("problem", "raises"),
    [
        (LIMITED_LONG, anthropic.RateLimitError),
        (REVOKED, anthropic.PermissionDeniedError),
        (UNKNOWN, anthropic.AuthenticationError),
        (denial.too_large(1), anthropic.ContentTooLargeError),
    ],
)
async def test_anthropic_does_not_repeat_what_cannot_help(
    problem: Problem, raises: type[anthropic.APIStatusError]
) -> None:
    async with refusing("anthropic", problem) as server:
        with pytest.raises(raises) as raised:
            await ask_anthropic(server.url, stream=False)
    assert raised.value.error_code == problem.code
    assert server.requests == 1


async def test_a_short_wait_is_waited_out() -> None:
    """A rate limit of a second is the SDK's to sit out: it asks again by itself (twice, its default)."""
    async with refusing("openai", LIMITED) as server:
        with pytest.raises(openai.RateLimitError):
            await ask_openai(server.url, stream=False)
    assert server.requests == 3
