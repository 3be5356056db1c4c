"""A lower output limit: the request's other bytes stay as the app wrote them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bursar_sidecar.providers.base import ApiCall, dialect_named

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
LEGACY = "/v1/completions"
GEMINI = "/v1beta/models/gemini-2.5-flash:generateContent"
MESSAGES = "/v1/messages"


def limited(body: str, tokens: int, path: str = CHAT, dialect: str = "openai") -> ApiCall | None:
    found = dialect_named(dialect)
    call = found.open("POST", path, "", {}, body.encode())
    assert call.fits_output
    return found.with_output_limit(call, tokens)


@pytest.mark.parametrize(
    ("path", "asked", "sent"),
    [
        (CHAT, '{"model":"m", "max_tokens" : 32000 }', '{"model":"m", "max_tokens" : 245 }'),
        (
            CHAT,
            '{"max_completion_tokens":32000,"max_tokens":null}',
            '{"max_completion_tokens":245,"max_tokens":null}',
        ),
        (
            CHAT,
            '{"max_completion_tokens":9,"max_tokens":4e4}',
            '{"max_completion_tokens":9,"max_tokens":245}',
        ),
        (CHAT, '{"max_tokens":500,"max_tokens":null}', '{"max_tokens":245,"max_tokens":245}'),
        (CHAT, '{"max_tokens":null}', '{"max_completion_tokens":245,"max_tokens":null}'),
        (CHAT, '{"max_completion_tokens":null}', '{"max_completion_tokens":245}'),
        (CHAT, '\n{ "model":"m"}', '\n{"max_completion_tokens":245, "model":"m"}'),
        (CHAT, '{"n":2,"max_tokens":300}', '{"n":2,"max_tokens":122}'),
        (
            CHAT,
            '{"max\\u005ftokens":300,"x":{"max_tokens":300}}',
            '{"max\\u005ftokens":245,"x":{"max_tokens":300}}',
        ),
        (LEGACY, '{"best_of":3,"prompt":"x"}', '{"max_tokens":81,"best_of":3,"prompt":"x"}'),
        (RESPONSES, '{"n":2,"max_output_tokens":1000}', '{"n":2,"max_output_tokens":245}'),
        (RESPONSES, '{"model":"m"}', '{"max_output_tokens":245,"model":"m"}'),
        (MESSAGES, '{"max_tokens":32000}', '{"max_tokens":245}'),
        (
            MESSAGES,
            '{"thinking":{"budget_tokens":244},"max_tokens":32000}',
            '{"thinking":{"budget_tokens":244},"max_tokens":245}',
        ),
        (GEMINI, '{"contents":[]}', '{"generationConfig":{"maxOutputTokens":245},"contents":[]}'),
        (GEMINI, '{"generationConfig":null}', '{"generationConfig":{"maxOutputTokens":245}}'),
        (GEMINI, '{"generationConfig":{}}', '{"generationConfig":{"maxOutputTokens":245}}'),
        (
            GEMINI,
            '{"generation_config":{"candidate_count":5, "max_output_tokens": 800}}',
            '{"generation_config":{"candidate_count":5, "max_output_tokens": 49}}',
        ),
        (
            GEMINI,
            '{"generationConfig":{"temperature":0.20}}',
            '{"generationConfig":{"maxOutputTokens":245,"temperature":0.20}}',
        ),
    ],
)
def test_the_limit_is_lowered_where_it_stands(path: str, asked: str, sent: str) -> None:
    """S11: what was allowed is what the provider is asked for; several answers share it."""
    dialect = {MESSAGES: "anthropic", GEMINI: "gemini"}.get(path, "openai")
    call = limited(asked, 245, path, dialect)
    assert call is not None
    assert call.body.decode() == sent
    assert call.max_output_tokens is not None
    assert 245 - 5 <= call.max_output_tokens <= 245


def test_what_cannot_be_made_shorter_is_no_call() -> None:
    """Fewer tokens than choices, or no more than the thinking asked for: the provider would only refuse it."""
    assert limited('{"n":4}', 3) is None
    assert limited('{"generationConfig":{"candidateCount":4}}', 3, GEMINI, "gemini") is None
    thinking = '{"thinking":{"budget_tokens":2000},"max_tokens":32000}'
    assert limited(thinking, 2000, MESSAGES, "anthropic") is None


@pytest.mark.parametrize(
    ("dialect", "path", "body"),
    [
        ("openai", "/v1/embeddings", b'{"input":"x"}'),
        ("openai", "/v1/models", b""),
        ("openai", CHAT, b"not JSON"),
        ("anthropic", MESSAGES, b'{"model":"m"}'),
        ("anthropic", "/v1/messages/count_tokens", b'{"max_tokens":5}'),
        ("gemini", "/v1beta/models/m:embedContent", b'{"content":{}}'),
        ("gemini", "/v1beta/models/m:countTokens", b'{"contents":[]}'),
    ],
)
def test_other_calls_do_not_offer_it(dialect: str, path: str, body: bytes) -> None:
    assert not dialect_named(dialect).open("POST", path, "", {}, body).fits_output


NAMES = {
    "openai": ("max_completion_tokens", "max_tokens"),
    "anthropic": ("max_tokens",),
}
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    before=st.dictionaries(st.text(max_size=6).map("b{}".format), VALUES, max_size=4),
    after=st.dictionaries(st.text(max_size=6).map("a{}".format), VALUES, max_size=4),
    dialect=st.sampled_from(sorted(NAMES)),
    number=st.integers(1, 10**6),
    tokens=st.integers(1, 10**6),
    indent=st.sampled_from([None, 1]),
    escaped=st.booleans(),
)
def test_only_that_member_changes(
    before: dict[str, Any],
    after: dict[str, Any],
    dialect: str,
    number: int,
    tokens: int,
    indent: int | None,
    escaped: bool,
) -> None:
    """Byte for byte: the text before the limit's digits and the text behind them are the app's own."""
    name = NAMES[dialect][-1]
    asked = json.dumps({**before, name: 987654321987, **after}, indent=indent, ensure_ascii=escaped)
    head, _, tail = asked.partition(f'"{name}": 987654321987')
    asked = f'{head}"{name}": {number}{tail}'
    call = limited(asked, tokens, MESSAGES if dialect == "anthropic" else CHAT, dialect)
    assert call is not None
    assert call.body.decode() == f'{head}"{name}": {min(number, tokens)}{tail}'
    assert call.max_output_tokens == tokens
