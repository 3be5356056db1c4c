"""Streams that are ended because their budget is spent, with the SDKs of OpenAI, Anthropic and Google."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing

import anthropic
import openai
import pytest
from google import genai
from google.genai import errors as genai_errors
from google.genai import types as genai_types

from bursar_sidecar.providers.base import Usage
from support.costs import cost_nanos
from support.stack import Stack

PROMPT = "Tell me everything about the harbour, the hills behind it and the people who live there."
# A long answer that takes its time, as a provider's does.
SLOWLY = {"x-fake-pace-ms": "4", "x-fake-output-tokens": "400"}
ERRORS = (openai.APIError, anthropic.APIError, genai_errors.APIError)


def chat(url: str, key: str) -> Iterator[object]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key=key, default_headers=SLOWLY) as client:
        yield from client.chat.completions.create(
            model="gpt-4o", messages=[{"role": "user", "content": PROMPT}], stream=True
        )


def responses(url: str, key: str) -> Iterator[object]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key=key, default_headers=SLOWLY) as client:
        yield from client.responses.create(model="gpt-5", input=PROMPT, stream=True, store=False)


def messages(url: str, key: str) -> Iterator[object]:
    asked: anthropic.types.MessageParam = {"role": "user", "content": PROMPT}
    with anthropic.Anthropic(base_url=url, api_key=key, default_headers=SLOWLY) as client:
        yield from client.messages.create(
            model="claude-sonnet-5", max_tokens=900, messages=[asked], stream=True
        )


def content(url: str, key: str) -> Iterator[object]:
    options = genai_types.HttpOptions(base_url=url, headers=SLOWLY)
    with closing(genai.Client(api_key=key, http_options=options)) as client:
        yield from client.models.generate_content_stream(model="gemini-2.5-flash", contents=PROMPT)


APPS = {
    "openai chat": (chat, "openai", "gpt-4o"),
    "openai responses": (responses, "openai", "gpt-5"),
    "anthropic messages": (messages, "anthropic", "claude-sonnet-5"),
    "gemini content": (content, "gemini", "gemini-2.5-flash"),
}


def guarded_person(stack: Stack, limit_usd: float) -> tuple[str, str]:
    email, key = stack.person("guarded", limit_usd)
    budget = stack.rpc("UserService/GetBudget", {"user_id": email})["budget"]["budget"]
    stack.rpc("BudgetService/UpdateBudget", {"budget": {**budget, "guardStreams": True}})
    return email, key


@pytest.mark.parametrize(("ask", "provider", "model"), APPS.values(), ids=APPS)
def test_a_stream_ends_when_its_budget_is_spent(
    stack: Stack, ask: Callable[[str, str], Iterator[object]], provider: str, model: str
) -> None:
    """C03: the app's SDK raises its own error, what came is charged, and nothing is held."""
    email, key = guarded_person(stack, 1)
    whole = len(list(ask(stack.sidecar_url, key)))
    (record,) = stack.records(user_id=email)
    assert (record["outcome"], record["estimated"]) == ("OUTCOME_SUCCESS", False)
    usage = Usage(**stack.served()[-1]["usage"])
    price = stack.rpc("PricingService/LookupPrice", {"provider": provider, "model": model})["price"]
    limit_nanos = cost_nanos(
        price, usage._replace(output_tokens=usage.output_tokens // 4, reasoning_tokens=0)
    )

    email, key = guarded_person(stack, limit_nanos / 1e9)
    seen: list[object] = []
    with pytest.raises(ERRORS) as raised:
        seen.extend(ask(stack.sidecar_url, key))
    assert "budget exhausted" in str(raised.value)
    assert 0 < len(seen) < whole
    (record,) = stack.records(user_id=email)
    assert (record["outcome"], record["estimated"]) == ("OUTCOME_PARTIAL", True)
    left = stack.rpc("UserService/GetBudget", {"user_id": email})["budget"]
    assert int(left["heldNanos"]) == 0
    # What it came to is a few events above the limit at most.
    assert limit_nanos * 0.8 < int(left["spentNanos"]) == int(record["costNanos"]) < limit_nanos * 1.5
