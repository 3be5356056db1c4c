"""What the fake provider will answer to a request: text and token counts, the same for the same request and seed.

The counts depend on the seed, the model, the prompt's text and the output limit alone, so that a body with tags taken
out or `include_usage` put in gets the very same answer; a test computes the expected usage with `expected_usage`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import orjson

from bursar_sidecar.providers.base import Usage

Document = Mapping[str, object]

_SENTENCES = (
    "The harbour wakes slowly, and the first boats are already out on the water.",
    "A good plan fits on one page, and the page leaves room for the weather.",
    "Between the two hills there is a path that only the baker uses in winter.",
    "Numbers are friendly once they add up, and these ones do.",
    "The library keeps a window open in spring so that the readers hear the rain.",
    "Small steps taken every day cross more ground than one long march.",
    "Somebody left a lamp burning at the end of the pier, and everybody was glad of it.",
    "If the map and the land disagree, look around before you fold the map.",
    "The bridge was built twice: once on paper, where it cost less, and once in stone.",
    "Tea tastes better when the kettle has been argued about.",
)

#: Answers have this many sentences where nothing limits them.
_SENTENCES_MIN, _SENTENCES_MAX = 2, 4
_REASONING_MODELS = ("o1", "o3", "o4", "gpt-5", "gemini-2.5", "gemini-3")
#: Prompts at least this long are partly read from cache, in steps of 128 tokens (OpenAI's rule).
_CACHED_FROM, _CACHED_STEP = 1024, 128


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request asks, whatever API it comes through.

    `max_output_tokens` is for each of `choices`; `writes_cache` and `thinks` are asked for by Anthropic requests.
    `plain`: the API knows neither cache nor reasoning (embeddings, legacy completions).
    """

    model: str
    prompt: str
    max_output_tokens: int | None = None
    choices: int = 1
    writes_cache: bool = False
    thinks: bool = False
    plain: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """One answer: for each choice its tokens as text and whether the limit cut it, and what is counted."""

    digest: str
    choices: tuple[tuple[str, ...], ...]
    cut: bool
    input_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int

    @property
    def output_tokens(self) -> int:
        """All generated tokens, reasoning included."""
        return sum(map(len, self.choices)) + self.reasoning_tokens

    @property
    def text(self) -> str:
        """The first choice's text."""
        return "".join(self.choices[0])

    @property
    def created(self) -> int:
        """A moment in 2026, seconds since the epoch; it depends on the request, not on a clock."""
        return 1_767_225_600 + int(self.digest[:6], 16)

    def usage(self) -> Usage:
        """Return what a meter is expected to find in the answer."""
        return Usage(
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            cache_read_tokens=self.cache_read_tokens,
            cache_write_5m_tokens=self.cache_write_tokens,
            reasoning_tokens=self.reasoning_tokens,
            requests=1,
        )


def plan(wish: Wish, seed: int = 0, output_tokens: int | None = None) -> Plan:
    """Return the answer to `wish`; `output_tokens` sets the length of each choice where the seed should not."""
    digest = hashlib.sha256(f"{seed}\0{wish.model}\0{wish.prompt}".encode(errors="replace")).hexdigest()
    input_tokens = max(-(-len(wish.prompt.encode(errors="replace")) // 4), 1) + 3
    reasoning = 0
    if not wish.plain and (wish.thinks or wish.model.rpartition("/")[2].startswith(_REASONING_MODELS)):
        reasoning = 16 * (1 + int(digest[6], 16) % 4)
    choices: list[tuple[str, ...]] = []
    cut = False
    for index in range(wish.choices):
        tokens = _tokens(int(digest[24:28], 16) + index, int(digest[8:12], 16) + index, output_tokens)
        if wish.max_output_tokens is not None:
            reasoning = min(reasoning, wish.max_output_tokens)
            room = wish.max_output_tokens - reasoning
            cut = cut or len(tokens) > room
            tokens = tokens[:room]
        choices.append(tokens)
    read = written = 0
    if input_tokens >= _CACHED_FROM and not wish.plain:
        read = input_tokens // 2 // _CACHED_STEP * _CACHED_STEP
    if wish.writes_cache:
        written = (input_tokens - read) // 2
    return Plan(digest, tuple(choices), cut, input_tokens, read, written, reasoning)


def wish_of(path: str, body: Document) -> Wish:
    """Return what a request to `path` (of any of the three APIs) asks."""
    if ":" in path.rpartition("/")[2]:
        return _gemini_wish(path, body)
    model = _text(body.get("model"))
    if path.endswith(("/messages", "/messages/count_tokens")):
        prompt = text_in([body.get("system"), body.get("messages"), body.get("tools")])
        thinking = body.get("thinking")
        return Wish(
            model,
            prompt,
            _limit(body.get("max_tokens")),
            writes_cache=b'"cache_control"' in orjson.dumps(body),
            thinks=isinstance(thinking, dict) and thinking.get("type") in ("enabled", "adaptive"),
        )
    if path.endswith("/responses"):
        prompt = text_in([body.get("instructions"), body.get("input"), body.get("tools")])
        return Wish(model, prompt, _limit(body.get("max_output_tokens")))
    prompt = text_in([body.get("messages"), body.get("prompt"), body.get("input"), body.get("tools")])
    limit = _limit(body.get("max_completion_tokens")) or _limit(body.get("max_tokens"))
    if path.endswith("/embeddings"):
        return Wish(model, prompt, 0, plain=True)
    choices = _limit(body.get("n")) or 1
    if path.endswith("/chat/completions"):
        return Wish(model, prompt, limit, choices)
    return Wish(model, prompt, limit or 16, choices, plain=True)


def expected_usage(path: str, body: bytes, seed: int = 0, output_tokens: int | None = None) -> Usage:
    """Return the usage that the answer to `body` reports, for a test to compare with what was metered."""
    return plan(wish_of(path, orjson.loads(body)), seed, output_tokens).usage()


def text_in(value: object) -> str:
    """Return all the text in a JSON value, in order, a line each; keys and cache marks do not count."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        value = [inner for key, inner in value.items() if key not in ("cache_control", "role", "type")]
    if isinstance(value, list):
        return "\n".join(filter(None, map(text_in, value)))
    return ""


def _gemini_wish(path: str, body: Document) -> Wish:
    model = path.rpartition("/")[2].partition(":")[0]
    config = body.get("generationConfig")
    limit = _limit(config.get("maxOutputTokens")) if isinstance(config, dict) else None
    inputs = [body.get("systemInstruction"), body.get("contents"), body.get("content"), body.get("requests")]
    if "mbedContent" in path:
        return Wish(model, text_in(inputs), 0, plain=True)
    return Wish(model, text_in([*inputs, body.get("tools")]), limit)


def _tokens(start: int, sentences: int, length: int | None) -> tuple[str, ...]:
    """Return some whole sentences from the one numbered `start` on, or `length` tokens of them; a word is a token."""
    words: list[str] = []
    count = _SENTENCES_MIN + sentences % (_SENTENCES_MAX - _SENTENCES_MIN + 1)
    while count > 0 if length is None else len(words) < length:
        words += _SENTENCES[start % len(_SENTENCES)].split(" ")
        start, count = start + 1, count - 1
    return tuple(word if index == 0 else f" {word}" for index, word in enumerate(words[:length]))


def _limit(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
