"""Counts tokens where no provider did: by OpenAI's own vocabularies where they are installed, else by a ratio.

Nothing here runs for a call whose usage arrives, and no vocabulary is loaded before one is needed (docs/adr/0007).
"""

from __future__ import annotations

import functools
import importlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Protocol

import orjson

#: So much of an answer's text is kept for a vocabulary; the rest is taken to be like it.
SAMPLE_MAX_BYTES = 64 << 10

#: Bytes of text that make a token, by what the model's name has in it. The makers' own words: about 3.5 characters
#: for Claude (Anthropic's glossary), 0.3 tokens a character for DeepSeek, 4 characters for Gemini and for GPT. Bytes,
#: not characters: scripts beyond ASCII take more bytes a character and fewer characters a token.
_BYTES_PER_TOKEN: Mapping[str, float] = {"claude": 3.5, "deepseek": 3.3}
_BYTES_PER_TOKEN_ELSE = 4.0

#: Which vocabulary a model's tokens are from, as OpenAI's own tiktoken maps them (tiktoken/model.py).
_VOCABULARIES = (
    (re.compile(r"(?:^|[/.:])(?:gpt-(?:4o|4\.\d|[5-9]|oss)|chatgpt-|o[134](?:-|$)|codex-)"), "o200k_base"),
    (re.compile(r"(?:^|[/.:])(?:gpt-4|gpt-3\.?5|text-embedding-|davinci-002|babbage-002)"), "cl100k_base"),
)

#: What a message takes beside its text, and an answer's beginning, in OpenAI's chat format (OpenAI's cookbook: 3 and 3,
#: and a role of 1).
_MESSAGE_TOKENS = 4
_ANSWER_TOKENS = 3
#: What gpt-oss models are told before anything else: 60 tokens in every recording of a short prompt.
_OSS_TOKENS = 60

#: Members of a request that no model reads.
_NOT_READ = frozenset(
    {
        "call_id",
        "encoding_format",
        "encrypted_content",
        "id",
        "include",
        "metadata",
        "model",
        "previous_response_id",
        "reasoning_effort",
        "role",
        "service_tier",
        "stream",
        "stream_options",
        "tool_call_id",
        "tool_choice",
        "truncation",
        "type",
        "user",
    }
)
#: Members that a model reads as JSON, names and all.
_READ_AS_JSON = frozenset({"tools", "functions", "response_format", "schema"})
_HOLDS_MESSAGES = ("messages", "input")
#: Members whose tokens are not those of their text.
_NOT_TEXT = (b"base64", b'"image_url"', b'"input_image"', b'"input_audio"', b'"file"', b'"input_file"')


class Vocabulary(Protocol):
    """What counts the tokens of a text exactly."""

    def count(self, text: str) -> int:
        """Return how many tokens `text` is; raises UnicodeEncodeError for a lone surrogate."""
        ...


def vocabulary_of(*models: str) -> Vocabulary | None:
    """Return the vocabulary of the first model whose it is known; None where none is, or it is not installed."""
    for model in models:
        for pattern, name in _VOCABULARIES:
            if pattern.search(model.lower()):
                return _loaded(name)
    return None


def by_ratio(model: str, size_bytes: int) -> int:
    """Return the tokens that `size_bytes` bytes of UTF-8 text are taken for, rounded up; none for none."""
    name = model.lower()
    ratio = next((each for part, each in _BYTES_PER_TOKEN.items() if part in name), _BYTES_PER_TOKEN_ELSE)
    return math.ceil(max(size_bytes, 0) / ratio)


def said_tokens(models: Sequence[str], said: Sequence[str], size_bytes: int) -> int:
    """Return the tokens of a text of `size_bytes` that begins with the pieces `said`.

    `models` are the names the model goes by, the surest first.
    """
    vocabulary = vocabulary_of(*models) if said else None
    if vocabulary is None:
        return by_ratio(next((model for model in models if model), ""), size_bytes)
    text = _sound("".join(said))
    counted = vocabulary.count(text)
    kept_bytes = len(text.encode())
    return counted if kept_bytes >= size_bytes else math.ceil(counted * size_bytes / max(kept_bytes, 1))


def asked_tokens(models: Sequence[str], body: bytes) -> int | None:
    """Return the input tokens of a request; None where its body cannot say: no JSON, nothing to read, or not all text."""
    if body[:1] != b"{" or any(mark in body for mark in _NOT_TEXT):
        return None
    try:
        asked = orjson.loads(body)
    except ValueError:
        return None
    read: list[str] = []
    _collect(asked, read)
    if not read:
        return None
    text = _sound("\n".join(read))
    return said_tokens(models, (text,), len(text.encode())) + _around(models, asked)


def _around(models: Sequence[str], asked: Mapping[str, object]) -> int:
    """Return what a request's input takes beside its texts."""
    given = [asked[name] for name in _HOLDS_MESSAGES if name in asked]
    messages = sum(len(one) if isinstance(one, list) else 1 for one in given)
    if not messages or any("embedding" in model for model in models):
        return 0
    around = messages * _MESSAGE_TOKENS + _ANSWER_TOKENS
    return around + _OSS_TOKENS if any("gpt-oss" in model.lower() for model in models) else around


def _collect(value: object, read: list[str]) -> None:
    """Add every text of a request that the model reads."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            read.append(one)
        elif isinstance(one, list):
            waiting += reversed(one)
        elif isinstance(one, dict):
            for name, member in reversed(one.items()):
                if name in _READ_AS_JSON:
                    read.append(json_text(member))
                elif name not in _NOT_READ:
                    waiting.append(member)


def json_text(value: object) -> str:
    """Return `value` as JSON text, whatever it holds; empty where it is nested deeper than any model reads."""
    try:
        return orjson.dumps(value, default=str).decode()
    except TypeError:  # half a character, a number beyond 64 bits, or many levels
        try:
            return json.dumps(value, default=str)
        except (ValueError, RecursionError):
            return ""


def _sound(text: str) -> str:
    """Return `text` without lone surrogates, which are in no vocabulary."""
    return text if text.isascii() else text.encode(errors="replace").decode()


@functools.cache
def _loaded(name: str) -> Vocabulary | None:
    """Return a vocabulary, loaded once for the process; None where the extra `tokens` is not installed."""
    try:
        vocabularies = importlib.import_module("rs_bpe.bpe").openai
    except ImportError:
        return None
    vocabulary: Vocabulary = getattr(vocabularies, name)()
    return vocabulary
