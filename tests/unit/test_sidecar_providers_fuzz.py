"""Whatever bytes come, however they are cut: no reader raises, none loses a byte or makes one up, none keeps much.

The answers are those of the wire fixtures, cut, damaged and repeated. `BURSAR_FUZZ_EXAMPLES` runs more of them, each
time others.
"""

from __future__ import annotations

import json
import os
import random
import tracemalloc
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bursar_sidecar.providers import frames, sse
from bursar_sidecar.providers.base import Outcome, Reader
from support.eventstream import event
from support.wire import CASES, Case

EXAMPLES = int(os.environ.get("BURSAR_FUZZ_EXAMPLES", "0"))
fuzz = settings(
    max_examples=EXAMPLES or 150,
    derandomize=not EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
KEPT = {name: Case(name) for name in CASES}
COUNT_MAX = 2 * 10**12 * 16

#: What providers' answers are made of, for damage that stays close to them.
CRUMBS = (
    b'"usage":null',
    b'"usage":{}',
    b'"usage":{"prompt_tokens":-1,"completion_tokens":1e400}',
    b"[DONE]",
    b"data: ",
    b"\n\n",
    b"\r\n\r\n",
    b"\\",
    b'"',
    b"[{",
    b"}]",
    b"\xff\xfe",
    b"\xf0\x9f",
    b"\x00\x00\x00\x10",
    b'"finishReason":"STOP"',
    b'"done":true',
    b'"message_stop"',
    b"null",
    b"1" * 400,
    b"[" * 300,
)


def damaged(body: bytes, rng: random.Random) -> bytes:
    """Return a body with a few bytes changed, lost, doubled or put in."""
    for _ in range(rng.randint(0, 4)):
        at = rng.randint(0, len(body))
        upto = min(len(body), at + rng.choice((1, 2, 8, 60)))
        kind = rng.randint(0, 4)
        if kind == 0:
            body = body[:at] + rng.randbytes(upto - at) + body[upto:]
        elif kind == 1:
            body = body[:at] + body[upto:]
        elif kind == 2:
            body = body[:upto] + body[at:]
        elif kind == 3:
            body = body[:at] + rng.choice(CRUMBS) + body[at:]
        else:
            body = body[:at]
    return body


def cut(body: bytes, rng: random.Random) -> Iterator[bytes]:
    while body:
        size = rng.choice((1, 2, 3, 5, 17, 120, 4000))
        yield body[:size]
        body = body[size:]


def check_metered(reader: Reader, outcome: Outcome | None = None) -> None:
    metered = reader.metered(outcome)
    assert outcome is None or metered.outcome is outcome
    for item in metered.items:
        assert all(0 <= count <= COUNT_MAX for count in item.usage)


@fuzz
@given(st.sampled_from(CASES), st.integers(0, 2**32))
def test_damaged_answers_come_through_as_they_are(name: str, seed: int) -> None:
    """F099: no byte is lost or made up, and what was consumed can be said at any time."""
    case, rng = KEPT[name], random.Random(seed)
    reader = case.reader()
    body = damaged(case.answer, rng)
    asked_at = rng.randint(0, 20)
    passed = []
    for index, piece in enumerate(cut(body, rng)):
        passed.append(reader.feed(piece))
        if index == asked_at:
            check_metered(reader, Outcome.CANCELLED)
    passed.append(reader.end())
    assert isinstance(reader.complete, bool)
    check_metered(reader)
    if not case.opened().usage_inserted:
        assert b"".join(passed) + reader.held == body


@fuzz
@given(st.sampled_from(CASES), st.integers(0, 2**32))
def test_how_an_answer_is_cut_changes_nothing(name: str, seed: int) -> None:
    """F100: the same bytes are the same bill."""
    case, rng = KEPT[name], random.Random(seed)
    body = damaged(case.answer, rng)
    whole, pieced = case.reader(), case.reader()
    at_once = whole.feed(body) + whole.end()
    in_pieces = b"".join([*map(pieced.feed, cut(body, rng)), pieced.end()])
    assert (in_pieces, pieced.held, pieced.complete) == (at_once, whole.held, whole.complete)
    assert pieced.metered() == whole.metered()


@fuzz
@given(st.sampled_from(CASES), st.integers(0, 2**32))
def test_damaged_requests_are_opened(name: str, seed: int) -> None:
    """An odd body passes through with what is known of it."""
    case, rng = KEPT[name], random.Random(seed)
    body = damaged(case.request, rng)
    call = case.dialect.open(case.call["method"], case.call["path"], case.call.get("query", ""), {}, body)
    assert call.usage_inserted or call.tags or call.body == body
    assert call.input_tokens_estimate >= 0
    if call.fits_output:
        fitted = case.dialect.with_output_limit(call, 7)
        assert fitted is None or 0 < (fitted.max_output_tokens or 0) <= 7


@pytest.mark.parametrize("name", [name for name in CASES if "stream" in name or "array" in name])
def test_a_part_too_large_to_keep_passes_in_pieces(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An event that never ends does not fill the memory: it goes on to the app unread."""
    monkeypatch.setattr(frames, "EVENT_MAX_BYTES", 64)
    monkeypatch.setattr(sse.Splitter.__init__, "__defaults__", (64,))
    case = KEPT[name]
    reader = case.reader()
    pieces = [case.answer[at : at + 10] for at in range(0, len(case.answer), 10)]
    passed = b"".join([*map(reader.feed, pieces), reader.end()])
    check_metered(reader)
    if not case.opened().usage_inserted:
        assert passed + reader.held == case.answer


def sse_pieces() -> bytes:
    return b"data: " + json.dumps({"choices": [{"delta": {"content": "word " * 200}}]}).encode() + b"\n\n"


def gemini_pieces() -> bytes:
    return b',{"candidates":[{"content":{"parts":[{"text":"' + b"word " * 200 + b'"}]}}]}\n'


def ollama_pieces() -> bytes:
    return json.dumps({"message": {"content": "word " * 200}, "done": False}).encode() + b"\n"


def bedrock_pieces() -> bytes:
    return event("contentBlockDelta", {"delta": {"text": "word " * 200}})


def invoke_pieces() -> bytes:
    return event("chunk", chunk={"generation": "word " * 200, "prompt_token_count": 1})


@pytest.mark.parametrize(
    ("name", "begin", "piece"),
    [
        ("openai_chat_stream_asked", b"", sse_pieces),
        ("openai_chat_stream_inserted", b"", sse_pieces),
        ("openai_responses_stream_completed", b"", sse_pieces),
        ("anthropic_message_stream", b"", sse_pieces),
        ("gemini_content_stream", b"", sse_pieces),
        ("gemini_content_array", b"[{}", gemini_pieces),
        ("ollama_chat_stream", b"", ollama_pieces),
        ("cohere_v1_chat_stream", b"", ollama_pieces),
        ("cohere_v2_chat_stream", b"", sse_pieces),
        ("bedrock_converse_stream", b"", bedrock_pieces),
        ("bedrock_invoke_stream_llama", b"", invoke_pieces),
        ("openai_speech_stream", b"", sse_pieces),
        ("gemini_interaction_stream", b"", sse_pieces),
    ],
)
def test_a_long_stream_takes_constant_memory(name: str, begin: bytes, piece: Callable[[], bytes]) -> None:
    """F099: what has been passed on is not kept; some text is, for an estimate should usage never come."""
    reader = KEPT[name].reader()
    one = piece() * 20
    assert reader.feed(begin + one) is not None
    tracemalloc.start()
    try:
        for _ in range(4 * 2**20 // len(one)):
            reader.feed(one)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 2**20
    check_metered(reader)
