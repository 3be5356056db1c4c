"""The SDKs of OpenAI, Anthropic and Google, unchanged but for base URL and key, through the sidecar."""

from __future__ import annotations

from typing import Any

import anthropic
import openai
import pytest
from google.genai import errors as genai_errors

from bursar_sidecar.fake_provider.plan import expected_usage
from bursar_sidecar.providers.base import Usage
from support.costs import cost_nanos
from support.sdks import SDKS, Sdk
from support.stack import Stack, call

SHORT = "Why should spending be governed?"
# Long enough for a part of it to be read from the provider's cache.
LONG = "Tell me about the harbour, and about the hills behind it. " * 120

WAYS = [
    pytest.param(sdk, stream, id=f"{name}{' streamed' if stream else ''}")
    for name, sdk in SDKS.items()
    for stream in (False, True)
    if not (stream and "embeddings" in name)
]


def price_of(stack: Stack, provider: str, model: str) -> dict[str, Any]:
    answer = stack.rpc("PricingService/LookupPrice", {"provider": provider, "model": model})
    return dict(answer["price"])


def the_record(stack: Stack, **filters: object) -> dict[str, Any]:
    (record,) = stack.records(**filters)
    return record


@pytest.mark.parametrize("prompt", [SHORT, LONG], ids=["short", "long"])
@pytest.mark.parametrize(("sdk", "stream"), WAYS)
def test_an_app_hears_its_provider_and_the_record_is_right_to_the_nano(
    stack: Stack, sdk: Sdk, stream: bool, prompt: str
) -> None:
    """F099, F100, F101, S15: the text is the provider's, the cost is what the price and the tokens say."""
    email, key = stack.person("app", 1)
    said = sdk.through(stack.sidecar_url, key, prompt, stream)
    seen = stack.served()[-1]
    record = the_record(stack, user_id=email)
    assert said == sdk.directly(stack.provider_url, prompt, stream)

    usage = expected_usage(seen["path"], seen["body"].encode())
    assert Usage(**seen["usage"]) == usage
    recorded = {name: int(value) for name, value in record["usage"].items()}
    assert recorded["inputTokens"] == usage.input_tokens
    assert recorded.get("outputTokens", 0) == usage.output_tokens
    assert recorded.get("cacheReadTokens", 0) == usage.cache_read_tokens
    assert recorded.get("cacheWrite5mTokens", 0) == usage.cache_write_5m_tokens
    assert recorded.get("reasoningTokens", 0) == usage.reasoning_tokens

    price = price_of(stack, sdk.provider, sdk.model)
    assert int(record["costNanos"]) == cost_nanos(price, usage) > 0
    parts = ("inputCostNanos", "outputCostNanos", "otherCostNanos")
    assert sum(int(record[part]) for part in parts) == int(record["costNanos"])
    assert (record["provider"], record["model"]) == (sdk.provider, sdk.model)
    assert record["priceId"] == price["priceId"]
    assert record["outcome"] == "OUTCOME_SUCCESS"
    assert (record["estimated"], record["unpriced"]) == (False, False)
    left = stack.rpc("UserService/GetBudget", {"user_id": email})["budget"]
    assert int(left["spentNanos"]) == int(record["costNanos"])
    assert int(left["heldNanos"]) == 0


def test_a_dearer_tier_counts_for_the_whole_call(stack: Stack) -> None:
    """F101, S15: a prompt beyond a tier's size is charged at the tier's prices."""
    email, key = stack.person("long", 10)
    body = {"contents": [{"role": "user", "parts": [{"text": "word " * 170_000}]}]}
    path = "/v1beta/models/gemini-2.5-pro:generateContent"
    assert stack.call(path, body, key).status == 200
    price = price_of(stack, "gemini", "gemini-2.5-pro")
    usage = Usage(**stack.served()[-1]["usage"])
    (tier,) = price["tiers"]
    assert usage.input_tokens > int(tier["fromInputTokens"])
    plain = {name: value for name, value in price.items() if name != "tiers"}
    found = int(the_record(stack, user_id=email)["costNanos"])
    assert found == cost_nanos(price, usage) > cost_nanos(plain, usage)


def test_the_answers_request_id_is_the_records(stack: Stack) -> None:
    """F100: what a call cost can be looked up by the id that its answer carried."""
    _, key = stack.person("traced", 1)
    with openai.OpenAI(base_url=f"{stack.sidecar_url}/v1", api_key=key) as client:
        raw = client.chat.completions.with_raw_response.create(
            model="gpt-4o", messages=[{"role": "user", "content": SHORT}]
        )
    record = the_record(stack, request_id=raw.headers["x-bursar-request-id"])
    assert float(raw.headers["x-bursar-cost-usd"]) == record["costUsd"]
    assert float(raw.headers["x-bursar-remaining-usd"]) == pytest.approx(1 - record["costUsd"])


def own_exception(name: str, error: BaseException) -> bool:
    """Whether an error is what the SDK's users catch for 402."""
    if name.startswith("openai"):
        return isinstance(error, openai.APIStatusError) and (error.status_code, error.code) == (
            402,
            "BUDGET_CAP_HARD",
        )
    if name.startswith("anthropic"):
        return isinstance(error, anthropic.PaymentRequiredError) and error.status_code == 402
    return isinstance(error, genai_errors.ClientError) and error.code == 402


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("name", ["openai chat", "openai responses", "anthropic messages", "gemini content"])
def test_a_spent_budget_is_the_sdks_own_exception_after_one_request(
    stack: Stack, name: str, stream: bool
) -> None:
    """F053, F054, F074, C04, S13: refused once, before the provider; a grant lets the next call through."""
    sdk = SDKS[name]
    email, key = stack.person("spender", 0.000001)
    assert sdk.through(stack.sidecar_url, key, SHORT, stream)
    refusals = 'refusals_total{code="BUDGET_CAP_HARD"}'
    before = stack.count(refusals), len(stack.served())
    with pytest.raises(Exception, match="budget exhausted") as caught:
        sdk.through(stack.sidecar_url, key, SHORT, stream)
    assert own_exception(name, caught.value), repr(caught.value)
    assert (stack.count(refusals) - before[0], len(stack.served()) - before[1]) == (1, 0)
    stack.rpc(
        "UserService/CreateGrant",
        {"user_id": email, "amount_usd": 1, "reason": "more", "expires_at": "2099-01-01T00:00:00Z"},
    )
    assert sdk.through(stack.sidecar_url, key, SHORT, stream)
    first, second = (int(record["costNanos"]) for record in stack.records(user_id=email))
    grants = stack.rpc("UserService/ListGrants", {"user_id": email})["grants"]
    assert first == second == int(grants[0]["spentNanos"])


CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": LONG}]}
ASKED = {"stream_options": {"include_usage": True}}
TO_GEMINI = {"contents": [{"role": "user", "parts": [{"text": LONG}]}]}
TO_CLAUDE = {"model": "claude-sonnet-5", "max_tokens": 99, "messages": CHAT["messages"]}


@pytest.mark.parametrize(
    ("prefix", "path", "body", "headers"),
    [
        ("", "/v1/chat/completions", CHAT, {}),
        ("", "/v1/chat/completions", CHAT | {"stream": True}, {}),
        ("/openai", "/v1/chat/completions", CHAT | {"stream": True, "n": 3}, {"x-fake-chunk-bytes": "7"}),
        ("/openai", "/v1/chat/completions", CHAT | {"stream": True} | ASKED, {}),
        ("/openai", "/v1/chat/completions", CHAT, {"x-fake-status": "400"}),
        ("/openai", "/v1/responses", {"model": "gpt-5", "input": LONG, "stream": True}, {}),
        ("/openai", "/v1/embeddings", {"model": "text-embedding-3-small", "input": LONG}, {}),
        ("/anthropic", "/v1/messages", TO_CLAUDE, {}),
        ("/anthropic", "/v1/messages", TO_CLAUDE | {"stream": True}, {"x-fake-chunk-bytes": "11"}),
        ("/gemini", "/v1beta/models/gemini-2.5-flash:generateContent", TO_GEMINI, {}),
        ("/gemini", "/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse", TO_GEMINI, {}),
        ("/gemini", "/v1beta/models/gemini-2.5-flash:streamGenerateContent", TO_GEMINI, {}),
        ("/gemini", "/v1beta/models/gemini-2.5-flash:countTokens", TO_GEMINI, {}),
    ],
)
def test_an_app_sees_byte_for_byte_what_the_provider_sends(
    stack: Stack, prefix: str, path: str, body: dict[str, Any], headers: dict[str, str]
) -> None:
    """F099: nothing is added that was not asked for, nothing is left out, whatever pieces it comes in."""
    _, key = stack.person("reader", 1)
    directly = call(stack.provider_url, path, body, "sk-its-own", headers)
    sent_directly = stack.served()[-1]
    through = stack.call(prefix + path, body, key, headers)
    sent_through = stack.served()[-1]
    assert through.status == directly.status
    assert through.headers["content-type"] == directly.headers["content-type"]
    assert through.body == directly.body
    assert len(through.body) > 20
    if not body.get("stream") or path != "/v1/chat/completions" or "stream_options" in body:
        assert sent_through["request_sha256"] == sent_directly["request_sha256"]
    assert sent_through["credential_sha256"] != sent_directly["credential_sha256"]
    assert not [name for name in sent_through["header_names"] if name.startswith("x-bursar")]
