"""Any body of a request is read or refused in words; only what the contract says is changed in it; no charge is lost.

`BURSAR_FUZZ_EXAMPLES` runs more examples, each time others.
"""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bursar_sidecar.providers.base import DIALECTS, InvalidTags, dialect_named
from bursar_sidecar.providers.request import Request
from bursar_sidecar.tokens import asked_tokens

EXAMPLES = int(os.environ.get("BURSAR_FUZZ_EXAMPLES", "0"))
fuzz = settings(
    max_examples=EXAMPLES or 200,
    derandomize=not EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)

LEAVES = st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.text(max_size=4) | st.just("\ud800")
KEYS = st.sampled_from(
    ["metadata", "tags", "stream_options", "include_usage", "model", "user", "messages", "tools", "input"]
)
JSON = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)
OBJECTS = st.dictionaries(KEYS | st.text(max_size=3), JSON, max_size=6)
WRITTEN = st.sampled_from([(",", ":"), (" , ", " :\t"), (",\n", ": ")])


def without_tags(value: dict[str, Any]) -> dict[str, Any]:
    """Return what the provider should get of a body: all but tags that are an object, and metadata emptied by that."""
    metadata = value.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("tags"), dict):
        return value
    left = {key: each for key, each in metadata.items() if key != "tags"}
    rest = {key: left if key == "metadata" else each for key, each in value.items()}
    return rest if left else {key: each for key, each in rest.items() if key != "metadata"}


@fuzz
@given(OBJECTS, WRITTEN, st.booleans(), st.booleans())
def test_only_tags_and_the_wish_for_usage_change_in_a_body(
    value: dict[str, Any], separators: tuple[str, str], ascii_only: bool, asks: bool
) -> None:
    """The contract: the rest of the body travels byte for byte."""
    value |= {"stream": True} if asks else {}
    body = json.dumps(value, separators=separators, ensure_ascii=ascii_only).encode(errors="replace")
    value = json.loads(body)
    try:
        request = Request(body)
    except InvalidTags as error:
        error.field.encode()
        return
    expected = without_tags(value)
    if asks and request.include_usage():
        options = expected.get("stream_options") or {}
        expected = {**expected, "stream_options": {**options, "include_usage": True}}
    edited = request.edited()
    assert json.loads(edited) == expected
    if expected == value:
        assert edited == body


@pytest.mark.parametrize("name", DIALECTS)
@fuzz
@given(st.binary(max_size=60) | OBJECTS.map(lambda value: json.dumps(value).encode()))
def test_any_body_can_be_asked_about(name: str, body: bytes) -> None:
    """An odd body passes through with what is known of it; answers that say nothing are estimated from it."""
    dialect = dialect_named(name)
    for path in (
        "/v1/chat/completions",
        "/v1/messages",
        "/v1beta/models/g:generateContent",
        "/api/chat",
        "/v2/chat",
    ):
        try:
            call = dialect.open("POST", path, "", {}, body)
        except InvalidTags:
            continue
        assert call.input_tokens_estimate >= 0
        for answer in (b"", body, b"data: " + body + b"\n\n"):
            reader = dialect.reader(
                call, 200, "text/event-stream" if answer.startswith(b"data") else "application/json"
            )
            passed = reader.feed(answer) + reader.end()
            metered = reader.metered()
            assert passed + reader.held == answer or call.usage_inserted
            assert all(
                item.usage.input_tokens >= 0 and item.usage.output_tokens >= 0 for item in metered.items
            )
    assert (asked_tokens(("gpt-4o",), body) or 0) >= 0


@pytest.mark.parametrize(
    "odd", ['"\\ud800"', '{"a":' * 400 + "1" + "}" * 400, "1" * 40, "[" * 400 + "]" * 400]
)
@pytest.mark.parametrize(
    ("name", "path", "answer"),
    [
        (
            "anthropic",
            "/v1/messages",
            '{"content":[{"type":"tool_use","name":"f","input":{"a":%s}}],"cost":1}',
        ),
        (
            "gemini",
            "/v1beta/models/g:generateContent",
            '{"candidates":[{"content":{"parts":[{"functionCall":{"args":{"a":%s}}}]}}],"cost":1}',
        ),
        (
            "openai",
            "/v1/chat/completions",
            '{"choices":[{"message":{"content":%s,"tool_calls":[{"function":{"arguments":%s}}]}}],"cost":1}',
        ),
        ("ollama", "/api/chat", '{"message":{"tool_calls":[{"function":{"arguments":{"a":%s}}}]},"cost":1}'),
        ("cohere", "/v2/chat", '{"message":{"tool_calls":[{"function":{"arguments":%s}}]},"cost":1}'),
        (
            "bedrock",
            "/model/anthropic.claude-x/converse",
            '{"output":{"message":{"content":[{"toolUse":{"input":{"a":%s}}}]}},"cost":1}',
        ),
    ],
)
def test_json_that_few_writers_can_write_is_read(name: str, path: str, answer: str, odd: str) -> None:
    """S14: half characters, numbers beyond 64 bits and many levels never lose a charge."""
    dialect = dialect_named(name)
    body = (
        f'{{"model":"gpt-4o","max_tokens":9,"tools":[{odd}],"messages":[{{"role":"user","content":{odd}}}]}}'
    )
    call = dialect.open("POST", path, "", {}, body.encode())
    reader = dialect.reader(call, 200, "application/json")
    reader.feed(answer.replace("%s", odd).encode())
    reader.end()
    metered = reader.metered()
    assert metered.items
    assert metered.items[0].usage.requests == 1


def test_a_tag_whose_name_is_half_a_character_is_refused_in_words() -> None:
    for body in (b'{"metadata":{"tags":{"\\ud800":1}}}', b'{"metadata":{"tags":{"a":"\\udfff"}}}'):
        with pytest.raises(InvalidTags) as refused:
            Request(body)
        refused.value.field.encode()
