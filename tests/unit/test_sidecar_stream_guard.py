"""Which streams have outgrown their budget, and what their app hears."""

from __future__ import annotations

import json

import pytest

from bursar_sidecar import denial
from bursar_sidecar.providers.base import dialect_named
from bursar_sidecar.stream_guard import error_event, outgrown

ASKED = json.dumps({"model": "gpt-4o", "stream": True, "messages": [{"role": "user", "content": "Hi"}]})
SSE = "text/event-stream; charset=utf-8"


def chunk(text: str) -> bytes:
    delta = {"choices": [{"index": 0, "delta": {"content": text}}], "model": "gpt-4o"}
    return b"data: " + json.dumps(delta).encode() + b"\n\n"


def test_a_stream_has_outgrown_its_budget_with_the_token_that_is_too_many() -> None:
    """C03: text is counted as it comes; a stream that is over is left in peace."""
    dialect = dialect_named("openai")
    call = dialect.open("POST", "/v1/chat/completions", "", {}, ASKED.encode())
    reader = dialect.reader(call, 200, SSE)
    assert not outgrown(reader, 0)
    reader.feed(chunk("The harbour lies in the north of the town, and the hills behind it. "))
    brought = sum(item.usage.output_tokens for item in reader.metered().items)
    assert brought > 5
    assert not outgrown(reader, brought)
    assert outgrown(reader, brought - 1)
    reader.feed(b"data: [DONE]\n\n")
    assert not outgrown(reader, 0)


@pytest.mark.parametrize(
    ("name", "path", "content_type", "begins"),
    [
        ("openai", "/v1/chat/completions", SSE, b'data: {"error":'),
        ("openai", "/v1/responses", SSE, b'event: error\ndata: {"type":"error","error":'),
        ("anthropic", "/v1/messages", SSE, b'event: error\ndata: {"type":"error"'),
        ("gemini", "/v1beta/models/gemini-2.5-pro:streamGenerateContent", SSE, b'data: {"error":'),
        ("ollama", "/api/chat", "application/x-ndjson", b"{"),
        ("gemini", "/v1beta/models/gemini-2.5-pro:streamGenerateContent", "application/json", b""),
        ("bedrock", "/model/x/converse-stream", "application/vnd.amazon.eventstream", b""),
        ("cohere", "/v2/chat", SSE, b""),
    ],
)
def test_each_api_hears_it_in_its_own_words(name: str, path: str, content_type: str, begins: bytes) -> None:
    """C04: an event of the API where it has one, else nothing: the connection is cut."""
    dialect = dialect_named(name)
    call = dialect.open("POST", path, "", {}, ASKED.encode())
    event = error_event(dialect, call, denial.spent_on_the_way(), content_type)
    assert event.startswith(begins) if begins else event == b""
    if event:
        said = json.loads(event.partition(b"data: ")[2] or event)
        assert "BUDGET_CAP_HARD" in json.dumps(said)
