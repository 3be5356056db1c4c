"""Estimates: exact for text of OpenAI's models, a stated ratio for others, bounded in memory, free when usage comes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bursar_sidecar.providers.base import ApiCall, dialect_named
from bursar_sidecar.tokens import SAMPLE_MAX_BYTES, asked_tokens, by_ratio, said_tokens, vocabulary_of
from bursar_sidecar.usage import Findings, settle

#: English prose written for this test.
PROSE = (
    "A ledger that nobody can check is only a list of claims. Every call is written down before its answer is "
    "finished, and every figure on a statement leads back to the calls behind it. When a stream breaks off, what "
    "came is still owed: the words that were received, and the question that was asked."
)
CODE = 'def total(rows: list[dict[str, int]]) -> int:\n    return sum(row["cost"] for row in rows if row.get("ok"))\n'

#: How far the ratios may be from a real vocabulary on such text; DeepSeek's own figure is the most careful.
RATIO_ERROR_MAX = 0.45

CALL = ApiCall("openai.chat_completions", True, "gpt-4o", True, 100, None)


def body(model: str, *texts: str, **more: object) -> bytes:
    messages = [{"role": "user", "content": each} for each in texts]
    return json.dumps({"model": model, "messages": messages, **more}).encode()


@pytest.mark.parametrize("text", [PROSE, CODE, "Grüße, 你好, 🌊 — ¿qué tal?"])
@pytest.mark.parametrize("cut_at", [1, 3, 7, 1000])
def test_deltas_count_as_the_text_they_make(text: str, cut_at: int) -> None:
    """F103: however a stream is cut, its tokens are those of the joined text."""
    pieces = [text[at : at + cut_at] for at in range(0, len(text), cut_at)]
    vocabulary = vocabulary_of("gpt-4o")
    assert vocabulary is not None, "the extra `tokens` is part of the development environment"
    assert said_tokens(("gpt-4o",), pieces, len(text.encode())) == vocabulary.count(text)


def test_the_vocabulary_is_the_models_own() -> None:
    """The newer vocabulary makes fewer tokens of scripts beyond ASCII; plain words are the same in both."""
    text = "Tokenization of 2026-11-23 in Zürich: naïve, 漢字, 🙂."
    o200k, cl100k = vocabulary_of("gpt-5-mini"), vocabulary_of("gpt-3.5-turbo")
    assert o200k is not None
    assert cl100k is not None
    assert o200k.count(text) < cl100k.count(text)
    assert o200k.count("hello world") == cl100k.count("hello world") == 2


@pytest.mark.parametrize(
    ("model", "known"),
    [
        ("gpt-4o-mini-2024-07-18", True),
        ("ft:gpt-4o-mini-2024-07-18:acme::abc", True),
        ("openai/gpt-5.2", True),
        ("openai.gpt-oss-120b-1:0", True),
        ("gpt-35-turbo", True),
        ("o4-mini", True),
        ("GPT-4", True),
        ("text-embedding-3-small", True),
        ("claude-sonnet-4-5", False),
        ("gemini-2.5-pro", False),
        ("mistral-large-latest", False),
        ("o1x", False),
        ("", False),
    ],
)
def test_which_models_have_a_vocabulary(model: str, known: bool) -> None:
    assert (vocabulary_of(model) is not None) is known


@pytest.mark.parametrize(
    ("model", "tokens"),
    [
        ("claude-sonnet-4-5", 286),
        ("deepseek-chat", 304),
        ("gemini-2.5-pro", 250),
        ("mistral-large", 250),
        ("", 250),
    ],
)
def test_other_models_count_by_their_ratio(model: str, tokens: int) -> None:
    """1,000 bytes by the ratios that the makers state: 3.5 (Claude), 3.3 (DeepSeek), 4 bytes a token."""
    assert by_ratio(model, 1000) == tokens
    assert said_tokens((model,), ["x" * 1000], 1000) == tokens
    assert by_ratio(model, 0) == by_ratio(model, -1) == 0


@pytest.mark.parametrize("text", [PROSE, CODE])
@pytest.mark.parametrize("model", ["claude-sonnet-4-5", "deepseek-chat", "gemini-2.5-pro"])
def test_the_ratio_is_near_a_real_vocabulary(model: str, text: str) -> None:
    """Without a vocabulary the estimate stays within sight of one: a bill that is off, not one that is absurd."""
    vocabulary = vocabulary_of("gpt-4o")
    assert vocabulary is not None
    counted = vocabulary.count(text)
    assert abs(by_ratio(model, len(text.encode())) - counted) <= RATIO_ERROR_MAX * counted


def test_a_chat_request_counts_as_openai_bills_it() -> None:
    """OpenAI's cookbook: three tokens and a role around each message, three before the answer."""
    vocabulary = vocabulary_of("gpt-4o")
    assert vocabulary is not None
    assert asked_tokens(("gpt-4o",), body("gpt-4o", "hello world")) == 2 + 4 + 3
    assert asked_tokens(("gpt-4o",), b'{"model":"gpt-4o","input":"hello world"}') == 2 + 4 + 3
    assert asked_tokens(("text-embedding-3-small",), b'{"model":"m","input":"hello world"}') == 2
    assert asked_tokens(("gpt-4o",), body("gpt-4o", PROSE)) == vocabulary.count(PROSE) + 7
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    plain, with_tools = (
        body("gpt-4o", "hi"),
        body("gpt-4o", "hi", tools=tools, user="someone", metadata={"a": "b"}),
    )
    assert (asked_tokens(("gpt-4o",), with_tools) or 0) > (asked_tokens(("gpt-4o",), plain) or 0)


@pytest.mark.parametrize(
    "odd",
    [
        b"",
        b"--form",
        b"{",
        b"[]",
        b"{}",
        b'{"messages":[]}',
        b'{"messages":[{"content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}]}]}',
    ],
)
def test_a_request_that_is_not_all_text_keeps_the_estimate_of_its_check(odd: bytes) -> None:
    assert asked_tokens(("gpt-4o",), odd) is None
    metered = settle(CALL._replace(body=odd), 200, Findings(model="gpt-4o"), False, None)
    assert metered.estimated
    assert metered.items[0].usage.input_tokens == CALL.input_tokens_estimate


def test_without_the_extra_everything_counts_by_the_ratio() -> None:
    script = (
        "import sys; sys.modules['rs_bpe'] = None\n"
        "from bursar_sidecar.tokens import asked_tokens, said_tokens\n"
        "assert said_tokens(('gpt-4o',), ['x' * 400], 400) == 100\n"
        "assert asked_tokens(('gpt-4o',), b'{\"input\":\"hello\"}') == 2 + 4 + 3\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_nothing_is_loaded_for_calls_whose_usage_comes() -> None:
    """An estimate costs nothing, neither time nor memory, where none is needed."""
    script = (
        "import sys\n"
        "from bursar_sidecar.app import Sidecar\n"
        "from bursar_sidecar.providers.base import dialect_named\n"
        "openai = dialect_named('openai')\n"
        'body = b\'{"model":"gpt-4o","stream":true,"messages":[{"role":"user","content":"hi"}]}\'\n'
        "call = openai.open('POST', '/v1/chat/completions', '', {}, body)\n"
        "reader = openai.reader(call, 200, 'text/event-stream')\n"
        'chunk = b\'data: {"model":"gpt-4o","choices":[{"index":0,"delta":{"content":"word "}}]}\\n\\n\'\n'
        "reader.feed(chunk * 5000)\n"
        'reader.feed(b\'data: {"choices":[],"usage":{"prompt_tokens":8,"completion_tokens":5000}}\\n\\n\')\n'
        "reader.feed(b'data: [DONE]\\n\\n')\n"
        "metered = reader.metered()\n"
        "assert metered.items[0].usage.output_tokens == 5000 and not metered.estimated\n"
        "assert 'rs_bpe' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_long_answer_is_kept_in_bounds() -> None:
    """Only how an answer begins is kept; the rest counts as if it were like that."""
    found = Findings(model="gpt-4o")
    for _ in range(10_000):
        found.say(PROSE)
    assert found.text_bytes == 10_000 * len(PROSE)
    assert sum(map(len, found.sample)) < SAMPLE_MAX_BYTES + len(PROSE)
    vocabulary = vocabulary_of("gpt-4o")
    assert vocabulary is not None
    metered = settle(CALL, 200, found, False, None)
    exact = vocabulary.count(PROSE * 10_000)
    assert abs(metered.items[0].usage.output_tokens - exact) < exact / 200
    found.say("x" * (10 * SAMPLE_MAX_BYTES))
    assert sum(map(len, found.sample)) < 3 * SAMPLE_MAX_BYTES


def test_an_estimate_never_passes_the_requests_own_limit() -> None:
    found = Findings(model="gpt-4o")
    found.say(PROSE * 10)
    metered = settle(CALL._replace(max_output_tokens=5), 200, found, False, None)
    assert metered.items[0].usage.output_tokens == 5


@pytest.mark.parametrize("usage", [b"", b',"usage":null'])
def test_a_stream_that_breaks_off_owes_what_came_and_what_was_asked(usage: bytes) -> None:
    """S14 F103: an aborted stream, and one whose usage stays null, is charged for its text and its input."""
    openai = dialect_named("openai")
    call = openai.open("POST", "/v1/chat/completions", "", {}, body("gpt-4o", PROSE, stream=True))
    reader = openai.reader(call, 200, "text/event-stream")
    for word in PROSE.split(" "):
        delta = json.dumps({"choices": [{"index": 0, "delta": {"content": word + " "}}]})[:-1].encode()
        reader.feed(b'data: {"model":"gpt-4o-2024-08-06",' + delta[1:] + usage + b"}\n\n")
    metered = reader.metered()
    vocabulary = vocabulary_of("gpt-4o")
    assert vocabulary is not None
    (item,) = metered.items
    assert metered.estimated
    assert item.usage.input_tokens == vocabulary.count(PROSE) + 7
    assert item.usage.output_tokens == vocabulary.count(PROSE + " ")


def test_what_a_finished_response_repeats_counts_once() -> None:
    """A response that ends without usage repeats its whole text; the text was already counted as it came."""
    openai = dialect_named("openai")
    call = openai.open("POST", "/v1/responses", "", {}, b'{"model":"gpt-5","input":"hi","stream":true}')
    reader = openai.reader(call, 200, "text/event-stream")
    delta = json.dumps({"type": "response.output_text.delta", "delta": PROSE})
    reader.feed(f"event: response.output_text.delta\ndata: {delta}\n\n".encode())
    output = [{"type": "message", "content": [{"type": "output_text", "text": PROSE}]}]
    response = {"model": "gpt-5", "status": "incomplete", "output": output, "usage": None}
    done = json.dumps({"type": "response.incomplete", "response": response}, separators=(",", ":"))
    reader.feed(f"event: response.incomplete\ndata: {done}\n\n".encode())
    vocabulary = vocabulary_of("gpt-5")
    assert vocabulary is not None
    assert reader.metered().items[0].usage.output_tokens == vocabulary.count(PROSE)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=50), max_size=8), st.sampled_from(["gpt-4o", "gpt-4", "claude", ""]))
def test_any_text_counts_as_something(pieces: list[str], model: str) -> None:
    """Lone surrogates too, which JSON can carry and no vocabulary has."""
    found = Findings(model=model)
    found.say(*pieces, "\ud800")
    output = settle(CALL, 200, found, False, None).items[0].usage.output_tokens
    assert 1 <= output <= found.text_bytes
    asked_tokens((model,), json.dumps({"input": [*pieces, "\udfff"]}).encode())
