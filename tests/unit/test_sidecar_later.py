"""What is asked of which provider afterwards, where, and how its answer is read."""

from __future__ import annotations

import json
from typing import Any

import pytest
from multidict import CIMultiDict

from bursar_sidecar.exchange import Forward
from bursar_sidecar.inquiry import Inquiry, inquiry_about
from bursar_sidecar.providers.base import Metered, Outcome, Usage, UsageItem
from bursar_sidecar.providers.openrouter import generation
from bursar_sidecar.upstreams import KNOWN, resolve
from support.wire import CASES, Case

ADDRESSES = {
    "azure": {"URL": "https://provider.test"},
    "lab": {"URL": "https://provider.test"},
    "xai": {"URL": "https://provider.test/base/"},
}
UPSTREAMS, _ = resolve(ADDRESSES, {})
ESTIMATE = (UsageItem("m", "", Usage(output_tokens=1)),)


def asked_about(
    name: str, path: str, body: bytes = b"{}", answer_id: str = "id_1", **headers: str
) -> Inquiry | None:
    """Return what is asked when an answer to such a call breaks off."""
    target, _, query = path.partition("?")
    upstream = UPSTREAMS[name].at(target)
    call = upstream.dialect.open("POST", target, query, {}, body)
    sent = CIMultiDict({"Authorization": "Bearer k", "Content-Type": "application/json", "X-Mine": "1"})
    sent["Content-Encoding"] = "gzip"
    later = upstream.later and upstream.later(call, target)
    url = f"{upstream.origin}{upstream.base_path}{path}"
    forward = Forward(name, upstream.dialect, "POST", upstream.origin, url, sent, call, False, later)
    metered = Metered(ESTIMATE, True, None, Outcome.CANCELLED, answer_id)
    return inquiry_about(forward, metered, {name.replace("_", "-"): value for name, value in headers.items()})


@pytest.mark.parametrize(
    ("name", "path", "body", "url"),
    [
        ("openai", "/v1/responses", b"{}", "https://api.openai.com/v1/responses/id_1"),
        ("openai", "/v1/responses/", b'{"store":null}', "https://api.openai.com/v1/responses/id_1"),
        ("openai", "/v1/responses", b'{"store":true}', "https://api.openai.com/v1/responses/id_1"),
        ("openai", "/v1/responses", b'{"store":false}', None),
        ("openai", "/v1/responses/compact", b"{}", None),
        ("openai", "/v1/chat/completions", b'{"store":true}', "https://api.openai.com/v1/chat/completions/id_1"),
        ("openai", "/v1/chat/completions", b"{}", None),
        ("openai", "/v1/chat/completions", b'{"metadata":{"store":true}}', None),
        ("openai", "/v1/completions", b'{"store":true}', None),
        ("openai", "/v1/embeddings", b"{}", None),
        ("openai", "/v1/messages", b"{}", None),
        ("azure", "/openai/responses?api-version=1", b"{}", "https://provider.test/openai/responses/id_1?api-version=1"),
        ("azure", "/openai/v1/chat/completions", b'{"store":true}', None),
        ("xai", "/v1/responses", b"{}", "https://provider.test/base/v1/responses/id_1"),
        ("openrouter", "/api/v1/chat/completions", b"{}", "https://openrouter.ai/api/v1/generation?id=id_1"),
        ("openrouter", "/api/v1/completions?a=b", b"{}", "https://openrouter.ai/api/v1/generation?id=id_1"),
        ("openrouter", "/api/v1/responses", b'{"store":false}', "https://openrouter.ai/api/v1/generation?id=id_1"),
        ("openrouter", "/api/v1/messages", b"{}", "https://openrouter.ai/api/v1/generation?id=id_1"),
        ("openrouter", "/api/v1/messages/count_tokens", b"{}", None),
        ("openrouter", "/api/chat/completions", b"{}", None),
        ("gemini", "/v1beta/interactions", b"{}", "https://generativelanguage.googleapis.com/v1beta/interactions/id_1"),
        ("gemini", "/v1beta/interactions?alt=sse&key=k%2B1", b"{}", "https://generativelanguage.googleapis.com/v1beta/interactions/id_1?key=k%2B1"),
        ("gemini", "/v1beta/interactions?alt=sse", b"{}", "https://generativelanguage.googleapis.com/v1beta/interactions/id_1"),
        ("gemini", "/v1beta/interactions", b'{"store":false}', None),
        ("gemini", "/v1beta/models/m:generateContent", b"{}", None),
        ("lab", "/v1/responses", b"{}", None),
        ("mistral", "/v1/chat/completions", b'{"store":true}', None),
        ("anthropic", "/v1/messages", b"{}", None),
    ],
)  # fmt: skip
def test_where_it_is_asked(name: str, path: str, body: bytes, url: str | None) -> None:
    """The address is the call's own, and only providers are asked that say that they know."""
    inquiry = asked_about(name, path, body)
    assert (inquiry.url if inquiry is not None else None) == url


def test_with_what_it_is_asked() -> None:
    inquiry = asked_about("openai", "/v1/responses")
    assert inquiry is not None
    assert dict(inquiry.headers) == {
        "Authorization": "Bearer k",
        "X-Mine": "1",
        "Accept": "application/json",
    }
    assert (inquiry.asked.body, inquiry.asked.stream) == (b"", False)


def test_the_header_says_it_before_the_body() -> None:
    """The id of a message or a response is not that of its generation."""
    path = "/api/v1/messages"
    inquiry = asked_about("openrouter", path, answer_id="msg_1", x_generation_id="gen-7")
    assert inquiry is not None
    assert (inquiry.answer_id, inquiry.url) == ("gen-7", "https://openrouter.ai/api/v1/generation?id=gen-7")
    assert asked_about("openai", "/v1/responses", answer_id="", x_generation_id="gen-7") is None


@pytest.mark.parametrize(
    "odd",
    ["", "..", "../files", "a/b", "a%2fb", "a?b", "a#b", "a b", "a\nb", "a\n", "a.b", "a&b=c", "-", "_x", "é", "a" * 257,
     "id_1/../../x", "@evil.test", "//evil.test", "a\\b", "a;b", "a:b", "{id}"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["openai", "openrouter"])
def test_an_id_that_could_be_something_else_is_not_asked_about(name: str, odd: str) -> None:
    path = "/v1/responses" if name == "openai" else "/api/v1/responses"
    assert asked_about(name, path, answer_id=odd) is None
    assert asked_about("openrouter", "/api/v1/chat/completions", answer_id="", x_generation_id=odd) is None


def test_only_known_upstreams_have_something_to_ask() -> None:
    assert {name for name, known in KNOWN.items() if known.later} == {
        "openai", "azure", "xai", "openrouter", "gemini"
    }  # fmt: skip


def read(body: bytes, cut: int | None = None) -> Metered:
    call = UPSTREAMS["openrouter"].dialect.open(
        "POST", "/api/v1/chat/completions", "", {}, b'{"model":"openai/gpt-4o"}'
    )
    later = generation(call, "")
    assert later is not None
    reader = later.reader(call, 200)
    reader.feed(body[:cut])
    reader.end()
    return reader.metered()


GENERATION: dict[str, Any] = {
    "id": "gen-1",
    "model": "openai/gpt-4o-2024-08-06",
    "total_cost": 6.02e-06,
    "usage": 6.02e-06,
    "tokens_prompt": 9,
    "tokens_completion": 19,
    "native_tokens_prompt": 11,
    "native_tokens_completion": 16,
    "native_tokens_completion_images": 3,
    "native_tokens_reasoning": 19,
    "native_tokens_cached": 20,
    "service_tier": "flex",
}


def test_a_generation_is_read() -> None:
    """F099: native counts, the whole with its parts; the cost as the provider wrote it; the model as the answer called it."""
    metered = read(json.dumps({"data": GENERATION}).encode())
    usage = Usage(
        input_tokens=11,
        output_tokens=16,
        cache_read_tokens=11,
        reasoning_tokens=19,
        output_image_tokens=3,
        requests=1,
    )
    assert metered == Metered(
        (UsageItem("openai/gpt-4o", "flex", usage),), False, "0.00000602", Outcome.SUCCESS
    )


def test_a_generation_that_is_not_accounted_for_yet() -> None:
    """Without counts and cost it is not over; with a cost alone the estimate gets that cost."""
    nothing: dict[str, Any] = dict.fromkeys(GENERATION)
    early = read(json.dumps({"data": nothing}).encode())
    assert (early.items, early.outcome) == ((), Outcome.SUCCESS)
    priced = read(json.dumps({"data": nothing | {"total_cost": 0.5}}).encode())
    assert (priced.estimated, priced.provider_cost_usd) == (True, "0.5")


@pytest.mark.parametrize("unknown", ["native_tokens_prompt", "native_tokens_completion"])
def test_half_a_generation_is_not_exact(unknown: str) -> None:
    """F099: each count can be null by itself, which is not 0: asked again, or the estimate with the cost."""
    half = GENERATION | {unknown: None}
    assert read(json.dumps({"data": half | {"total_cost": None}}).encode()).items == ()
    priced = read(json.dumps({"data": half}).encode())
    assert (priced.estimated, priced.provider_cost_usd) == (True, "0.00000602")


@pytest.mark.parametrize("nothing", [0, 0.0])
def test_a_generation_that_says_nothing_was_used_is_asked_about_again(nothing: float) -> None:
    """F099: an answer came, so zeros are what is there before it is accounted for, not what it consumed."""
    zeros = dict.fromkeys(("native_tokens_prompt", "native_tokens_completion", "total_cost"), nothing)
    assert read(json.dumps({"data": GENERATION | zeros}).encode()).items == ()


@pytest.mark.parametrize(
    ("name", "work_id"),
    [
        ("openai_responses_stream_cut", "resp_1"),
        ("openai_chat_stream_cut", None),
        ("gemini_interaction_stream", "v1_x"),
    ],
)
def test_a_stream_that_breaks_off_has_an_id(name: str, work_id: str | None) -> None:
    case = Case(name)
    if work_id is None:
        work_id = json.loads(case.answer.partition(b"data: ")[2].partition(b"\n")[0])["id"]
    reader = case.reader()
    reader.feed(case.answer[: case.answer.rindex(b"\n\n", 0, -2) if "interaction" not in name else 350])
    metered = reader.metered(Outcome.CANCELLED)
    assert (metered.estimated, metered.work_id) == (True, work_id)


@pytest.mark.parametrize("name", CASES)
def test_only_what_is_estimated_or_not_over_has_an_id(name: str) -> None:
    case = Case(name)
    reader = case.reader()
    reader.feed(case.answer)
    reader.end()
    metered = reader.metered()
    assert not metered.work_id or metered.estimated or not metered.items
