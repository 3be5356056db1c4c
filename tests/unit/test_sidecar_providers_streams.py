"""Event streams and JSON texts are cut up without changing a byte, in constant memory."""

from __future__ import annotations

import base64
import json
import random
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bursar_sidecar.providers.base import HELD_MAX_BYTES, ApiCall, Outcome, Reader, dialect_named
from bursar_sidecar.providers.json_scan import ANYWHERE, MemberScanner
from bursar_sidecar.providers.sse import Raw, Splitter, data_of

MIB = 1 << 20


def cut(body: bytes, rng: random.Random, size_max: int) -> list[bytes]:
    found = []
    while body:
        size = rng.randint(1, size_max)
        found.append(body[:size])
        body = body[size:]
    return found


def events(pieces: list[bytes], splitter: Splitter | None = None) -> list[bytes]:
    splitter = splitter or Splitter()
    found = [block for piece in pieces for block in splitter.feed(piece)]
    rest = splitter.rest()
    return [*found, rest] if rest else found


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_every_line_end_is_understood(end: bytes) -> None:
    stream = end.join(
        [b"data: a", b"", b": comment", b"event: x", b"data: b", b"data: c", b"", b"data:d", b"", b""]
    )
    found = events([stream])
    assert [data_of(block) for block in found] == [b"a", b"b\nc", b"d"]
    assert b"".join(found) == stream


@given(
    st.lists(
        st.sampled_from(
            [b"\n", b"\r\n", b"\r", b"data: x", b"data: \xc5\xbc\xf0\x9f\x8c\x8a", b": c", b"event: e"]
        )
    ),
    st.randoms(use_true_random=False),
)
def test_pieces_make_no_difference(parts: list[bytes], rng: random.Random) -> None:
    """However a stream is cut, the same events come with the same bytes."""
    stream = b"".join(parts)
    whole = events([stream])
    in_pieces = events(cut(stream, rng, 3))
    assert b"".join(whole) == b"".join(in_pieces) == stream
    told = [[data for block in found if (data := data_of(block))] for found in (whole, in_pieces)]
    assert told[0] == told[1]


def test_a_line_feed_that_comes_late_belongs_to_the_event_before() -> None:
    splitter = Splitter()
    assert splitter.feed(b"data: a\r\n\r") == [b"data: a\r\n\r"]
    assert splitter.feed(b"\ndata: b\r\n\r\n") == [Raw(b"\n"), b"data: b\r\n\r\n"]


def test_an_event_too_large_to_keep_passes_unread() -> None:
    stream = b"data: a\n\n" + b"data: " + b"x" * 100 + b"\n\ndata: b\n\n"
    splitter = Splitter(max_bytes=50)
    found = events([stream[at : at + 10] for at in range(0, len(stream), 10)], splitter)
    assert b"".join(found) == stream
    assert [data_of(block) for block in found if type(block) is bytes] == [b"a", b"b"]
    assert max(map(len, found)) <= 60


def found_in(
    text: bytes, wanted: dict[bytes, int], pieces: list[bytes] | None = None
) -> list[tuple[str, int, Any]]:
    found: list[tuple[str, int, Any]] = []
    scanner = MemberScanner(
        wanted, lambda key, depth, value: found.append((key.decode(), depth, json.loads(value)))
    )
    for piece in pieces if pieces is not None else [text]:
        scanner.feed(piece)
    assert scanner.closed
    return found


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["usage", "model", 'q"', "x", "{"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(
    st.dictionaries(st.sampled_from(["usage", "model", "y"]), json_values), st.randoms(use_true_random=False)
)
def test_members_at_the_root_are_found_in_any_pieces(document: dict[str, Any], rng: random.Random) -> None:
    text = json.dumps(document).encode()
    found = found_in(text, {b"usage": 1, b"model": 1}, cut(text, rng, 5))
    assert {key: value for key, _, value in found} == {
        key: value for key, value in document.items() if key in ("usage", "model")
    }


def test_members_anywhere_are_found() -> None:
    text = b'{"a":[{"q":["x","]"]},{"b":{"q":[]}}],"c":"\\"q\\":[1]","q" : 7 }'
    assert found_in(text, {b"q": ANYWHERE}) == [("q", 3, ["x", "]"]), ("q", 4, []), ("q", 1, 7)]


def call(api_dialect: str, path: str, body: str = '{"model":"asked","stream":false}') -> tuple[ApiCall, Any]:
    dialect = dialect_named(api_dialect)
    return dialect.open("POST", path, "", {}, body.encode()), dialect


def fed(reader: Reader, body: bytes, piece_bytes: int = 64 << 10) -> tuple[bytes, int]:
    """Feed the body; return what passed and the largest amount that was held back meanwhile."""
    passed, came, held_max = bytearray(), 0, 0
    for at in range(0, len(body), piece_bytes):
        piece = body[at : at + piece_bytes]
        came += len(piece)
        passed += reader.feed(piece)
        held_max = max(held_max, came - len(passed))
    passed += reader.end()
    return bytes(passed), held_max


def test_a_json_answer_of_a_mebibyte_is_held_whole() -> None:
    asked, dialect = call("openai", "/v1/chat/completions")
    body = b'{"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3},"model":"m","x":"'
    body += b"x" * (HELD_MAX_BYTES - len(body) - 2) + b'"}'
    reader = dialect.reader(asked, 200, "application/json")
    passed, _ = fed(reader, body)
    assert (passed, reader.held, reader.complete) == (b"", body, True)


LARGE = base64.b64encode(random.Random(7).randbytes(2 * MIB)).decode()


@pytest.mark.parametrize(
    ("dialect", "path", "answer"),
    [
        (
            "openai",
            "/v1/chat/completions",
            {
                "choices": [{"message": {"content": LARGE, "usage": {"prompt_tokens": 99}}}],
                "model": "served",
                "service_tier": "flex",
                "usage": {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16},
            },
        ),
        (
            "openai",
            "/v1/responses",
            {
                "model": "served",
                "status": "completed",
                "tools": [{"type": "web_search"}],
                "output": [
                    {"type": "web_search_call"},
                    {"type": "image_generation_call", "result": LARGE},
                    {"type": "web_search_call"},
                ],
                "service_tier": "flex",
                "usage": {"input_tokens": 11, "output_tokens": 5},
            },
        ),
        (
            "anthropic",
            "/v1/messages",
            {
                "model": "served",
                "content": [{"type": "text", "text": LARGE}],
                "usage": {"input_tokens": 11, "output_tokens": 5, "service_tier": "flex"},
            },
        ),
        (
            "gemini",
            "/v1beta/models/asked:generateContent",
            {
                "candidates": [
                    {
                        "content": {"parts": [{"inlineData": {"data": LARGE}}]},
                        "finishReason": "STOP",
                        "groundingMetadata": {"webSearchQueries": ["a", "b"]},
                    }
                ],
                "usageMetadata": {"promptTokenCount": 11, "candidatesTokenCount": 5, "serviceTier": "flex"},
                "modelVersion": "served",
            },
        ),
    ],
)
def test_a_larger_answer_passes_but_for_its_last_piece(
    dialect: str, path: str, answer: dict[str, Any]
) -> None:
    """The usage of an answer of any size is found, and never more than 1 MiB of it waits."""
    body = json.dumps(answer).encode()
    asked, spoken = call(dialect, path)
    reader = spoken.reader(asked, 200, "application/json")
    passed, held_max = fed(reader, body)
    assert passed + reader.held == body
    assert 0 < len(reader.held) <= 64 << 10
    assert held_max <= HELD_MAX_BYTES + (64 << 10)
    metered = reader.metered()
    item = metered.items[0]
    assert (metered.outcome, metered.estimated, reader.complete) == (Outcome.SUCCESS, False, True)
    assert (item.model, item.service_tier) == ("served", "flex")
    assert (item.usage.input_tokens, item.usage.output_tokens) == (11, 5)
    assert item.usage.web_searches == (0 if "messages" in path or "chat" in path else 2)


def test_a_large_answer_that_breaks_off_is_estimated() -> None:
    asked, dialect = call("openai", "/v1/chat/completions")
    reader = dialect.reader(asked, 200, "application/json")
    fed(reader, json.dumps({"choices": [{"message": {"content": LARGE}}]}).encode()[:-9])
    metered = reader.metered()
    assert (metered.outcome, metered.estimated, reader.complete) == (Outcome.PARTIAL, True, False)
    assert 0 < metered.items[0].usage.output_tokens <= 4096


def peak_bytes(reader: Reader, piece: bytes, count: int) -> int:
    reader.feed(piece)
    tracemalloc.start()
    for _ in range(count):
        reader.feed(piece)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_a_large_answer_takes_constant_memory() -> None:
    asked, dialect = call("openai", "/v1/responses")
    reader = dialect.reader(asked, 200, "application/json")
    fed(reader, b'{"output":[{"result":"' + b"x" * (2 * MIB))
    assert peak_bytes(reader, b"y" * (64 << 10), 300) < MIB


@pytest.mark.parametrize("stream", ["openai", "anthropic", "gemini", "array"])
def test_a_long_stream_takes_constant_memory(stream: str) -> None:
    paths = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages"}
    path = paths.get(stream, "/v1beta/models/g:streamGenerateContent")
    asked, dialect = call("gemini" if stream == "array" else stream, path, '{"model":"m","stream":true}')
    piece = {
        "openai": b'data: {"choices":[{"index":0,"delta":{"content":"word "},"finish_reason":null}],"usage":null}\n\n',
        "anthropic": b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"word "}}\n\n',
        "gemini": b'data: {"candidates":[{"content":{"parts":[{"text":"word "}]}}],"usageMetadata":{"promptTokenCount":1}}\r\n\r\n',
        "array": b'{"candidates":[{"content":{"parts":[{"text":"word "}]}}],"usageMetadata":{"promptTokenCount":1}},\n',
    }[stream]
    reader = dialect.reader(asked, 200, "application/json" if stream == "array" else "text/event-stream")
    if stream == "array":
        reader.feed(b"[")
    assert peak_bytes(reader, piece, 5000) < MIB // 2
    metered = reader.metered(Outcome.CANCELLED)
    assert metered.outcome is Outcome.CANCELLED
    assert metered.estimated
    assert metered.items[0].usage.output_tokens == -(-5001 * 5 // 4)


def test_nothing_after_the_marker_passes_before_it() -> None:
    asked, dialect = call("openai", "/v1/chat/completions", '{"model":"m","stream":true}')
    reader = dialect.reader(asked, 200, "text/event-stream")
    assert reader.feed(b"data: {}\n\ndata: [DONE]\n\n: late\n\n") == b"data: {}\n\n"
    assert reader.feed(b"data: more") == b""
    assert reader.end() == b""
    assert reader.held == b"data: [DONE]\n\n: late\n\ndata: more"


@pytest.mark.parametrize("space", [b"", b" "])
@pytest.mark.parametrize("last", [b"", b',"obfuscation":"a1b2"'])
def test_null_usage_is_taken_out_of_an_event_however_it_is_spaced(space: bytes, last: bytes) -> None:
    """F099: what Bursar's own `include_usage` added does not reach the app; all other bytes do."""
    call = dialect_named("openai").open(
        "POST", "/v1/chat/completions", "", {}, b'{"model":"gpt-4o","stream":true,"messages":[]}'
    )
    assert call.usage_inserted
    inner, rest = b'{"usage":null,"index":0}', last.replace(b",", b"," + space).replace(b":", b":" + space)
    kept = b'data: {"id":"a","choices":[%s]%s%s}\n\n'
    added = b"," + space + b'"usage":' + space + b"null"
    reader = dialect_named("openai").reader(call, 200, "text/event-stream")
    assert reader.feed(kept % (inner, added, rest)) == kept % (inner, b"", rest)
    passed = reader.feed(b"data: {%s%s}\n\n" % (added[1:], rest))
    assert json.loads(data_of(passed)) == ({"obfuscation": "a1b2"} if last else {})


def test_the_marker_as_content_is_content() -> None:
    asked, dialect = call("openai", "/v1/chat/completions", '{"model":"m","stream":true}')
    reader = dialect.reader(asked, 200, "text/event-stream")
    event = b'data: {"choices":[{"delta":{"content":"[DONE]"}}]}\n\n'
    assert (reader.feed(event), reader.held, reader.complete) == (event, b"", False)


def test_a_gemini_answer_with_two_candidates_is_not_held_by_the_first_to_finish() -> None:
    asked, dialect = call("gemini", "/v1beta/models/g:streamGenerateContent")
    reader = dialect.reader(asked, 200, "text/event-stream")
    first = b'data: {"candidates":[{"finishReason":"STOP","index":0}]}\r\n\r\n'
    second = b'data: {"candidates":[{"content":{"parts":[{"text":"more"}]},"index":1}]}\r\n\r\n'
    last = b'data: {"candidates":[{"finishReason":"STOP","index":1}],"usageMetadata":{"promptTokenCount":3,"candidatesTokenCount":4}}\r\n\r\n'
    assert reader.feed(first) == b""
    assert reader.feed(second) == first
    assert reader.feed(last) == second
    assert not reader.complete
    assert (reader.end(), reader.held, reader.complete) == (b"", last, True)
    assert reader.metered().items[0].usage.output_tokens == 4


def test_other_answers_pass_at_once() -> None:
    asked, dialect = call("openai", "/v1/files/file-1/content")
    reader = dialect.reader(asked, 200, "audio/mpeg")
    assert reader.feed(b"ID3\n\n") == b"ID3\n\n"
    assert (reader.complete, reader.end(), reader.complete, reader.held) == (False, b"", True, b"")
    assert reader.metered().items == ()


def test_a_call_that_is_not_metered_has_no_usage() -> None:
    """A call to a path without usage is recorded as a call, whatever its answer looks like."""
    asked, dialect = call("openai", "/v1/batches")
    reader = dialect.reader(asked, 200, "application/json")
    reader.feed(b'{"usage":{"prompt_tokens":5}}')
    metered = reader.metered()
    assert (metered.items, metered.estimated, metered.outcome) == ((), False, Outcome.SUCCESS)


@given(
    st.binary(max_size=300), st.sampled_from(["openai", "anthropic", "gemini"]), st.sampled_from([200, 500])
)
def test_garbage_is_metered_without_an_error(body: bytes, name: str, status: int) -> None:
    paths = {
        "openai": "/v1/responses",
        "anthropic": "/v1/messages",
        "gemini": "/v1/models/g:streamGenerateContent",
    }
    asked, dialect = call(name, paths[name], '{"model":"m","stream":true}')
    for content_type in ("text/event-stream", "application/json", ""):
        reader = dialect.reader(asked, status, content_type)
        assert reader.feed(body) + reader.end() + reader.held == body
        assert reader.metered().outcome in Outcome


odd_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["usage", "usageMetadata", "choices", "delta", "message", "candidates", "content", "parts", "type", "error",
             "response", "output", "iterations", "prompt_tokens", "completion_tokens", "input_tokens", "model",
             "promptTokenCount", "promptTokensDetails", "cache_creation", "cost", "tool_calls", "total_tokens"]
        ),
        inner,
        max_size=5,
    ),
    max_leaves=25,
)  # fmt: skip


@given(odd_json, st.sampled_from(["message_start", "message_delta", "response.completed", "message_stop"]))
def test_odd_answers_are_metered_without_an_error(value: Any, kind: str) -> None:
    """F103: a provider's strange answer never breaks the call; counts that make no sense read as not reported."""
    apis = [
        ("openai", "/v1/chat/completions"),
        ("openai", "/v1/responses"),
        ("anthropic", "/v1/messages"),
        ("gemini", "/v1/models/g:generateContent"),
        ("gemini", "/v1/models/g:streamGenerateContent"),
    ]
    document = {"type": kind, **value} if isinstance(value, dict) else value
    text = json.dumps(document).encode()
    for name, path in apis:
        asked, dialect = call(name, path)
        for body, content_type in (
            (text, "application/json"),
            (b"data: " + text + b"\n\n", "text/event-stream"),
        ):
            reader = dialect.reader(asked, 200, content_type)
            assert reader.feed(body) + reader.end() + reader.held == body
            for item in reader.metered().items:
                assert all(0 <= units < 10**14 for units in item.usage)
