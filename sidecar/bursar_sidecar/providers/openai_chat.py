"""Answers of OpenAI's chat completions, legacy completions and embeddings, and of everything compatible with them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal

from bursar_sidecar.providers.base import ApiCall, Usage
from bursar_sidecar.providers.json_edit import Member, NotAnObjectError, applied, members, removal
from bursar_sidecar.providers.json_scan import ANYWHERE
from bursar_sidecar.providers.readers import Document, JsonShape, document
from bursar_sidecar.providers.sse import data_of
from bursar_sidecar.providers.streams import StreamReader
from bursar_sidecar.usage import Findings, clamped, count, decimal_text, part, parts, text

#: `"usage":null` among the last members of an event, only plain texts behind it. What stands between it and the last
#: brace has no bracket, so it is a member of the event itself and nothing nested.
_NULL_AT_END = re.compile(rb'"usage":\s*null(?=(?:,\s*"\w+":\s*"[^"\\]*")*\s*\}\s*$)')

#: What vendors call cached prompt tokens outside `prompt_tokens_details`.
_CACHED = ("num_cached_tokens", "cached_tokens", "prompt_cache_hit_tokens", "cache_read_input_tokens")
_TOOL_USES = ("server_tool_use_details", "server_tool_use")

_TICKS_PER_DOLLAR = 10**10  # xAI's `cost_in_usd_ticks`


def chat_usage(raw: Mapping[str, object]) -> Usage:
    """Return a chat `usage` object as usage.

    The total settles what the vendors count apart: xAI leaves reasoning out of the completion, Gemini's compatible
    API leaves thinking out of everything but the total, Mistral leaves audio out of the prompt.
    """
    prompt_parts, output_parts = (
        part(raw.get("prompt_tokens_details")),
        part(raw.get("completion_tokens_details")),
    )
    prompt, completion = count(raw.get("prompt_tokens")), count(raw.get("completion_tokens"))
    reasoning = count(output_parts.get("reasoning_tokens"))
    audio = count(prompt_parts.get("audio_tokens"))
    apart = count(raw.get("total_tokens")) - prompt - completion
    if "prompt_tokens" not in raw and not completion:  # embeddings of some vendors have the total alone
        prompt, apart = prompt + apart, 0
    if apart > 0 and apart == audio:
        prompt += apart
    elif apart > 0:
        completion += apart
        reasoning = reasoning or apart
    return clamped(
        Usage(
            input_tokens=prompt,
            output_tokens=completion,
            cache_read_tokens=count(prompt_parts.get("cached_tokens")) or _first_count(raw, _CACHED),
            cache_write_5m_tokens=count(prompt_parts.get("cache_write_tokens"))
            or count(raw.get("cache_creation_input_tokens")),
            reasoning_tokens=reasoning,
            input_audio_tokens=audio,
            output_audio_tokens=count(output_parts.get("audio_tokens")),
            input_image_tokens=count(prompt_parts.get("image_tokens")),
            output_image_tokens=count(output_parts.get("image_tokens")),
            web_searches=_web_searches(raw),
            requests=1,
        )
    )


def _web_searches(raw: Mapping[str, object]) -> int:
    for name in _TOOL_USES:
        if name in raw and (found := count(part(raw[name]).get("web_search_requests"))):
            return found
    return count(raw.get("num_search_queries"))


def _first_count(where: Mapping[str, object], names: Iterable[str]) -> int:
    """Return the first count that is there and not 0."""
    for name in names:
        if name in where and (found := count(where[name])):
            return found
    return 0


def provider_cost(raw: Mapping[str, object]) -> str | None:
    """Return the provider's own cost in a `usage` object (OpenRouter, Vercel, Perplexity, xAI, Pydantic), where there is one."""
    cost = raw.get("cost")
    if cost is None:
        cost = part(raw.get("pydantic_ai_gateway")).get("cost_estimate")
    ticks = raw.get("cost_in_usd_ticks")
    if cost is None and isinstance(ticks, int) and not isinstance(ticks, bool):
        return decimal_text(Decimal(ticks) / _TICKS_PER_DOLLAR)
    return decimal_text(part(cost).get("total_cost") if isinstance(cost, dict) else cost)


def read_chat(answer: Document, found: Findings) -> None:
    """Note what a JSON answer says; its text only where it has no usage."""
    _read_common(answer, found)
    if answer.get("error") and not answer.get("choices"):
        found.failed = True
    if found.usage is None:
        _read_choices(answer, found)


def _place(found: Document, key: str, depth: int, value: object) -> None:
    """Put a picked member where `read_chat` looks: a text becomes a choice of its own."""
    choices = found.setdefault("choices", [])
    if key in ("content", "arguments"):
        if isinstance(choices, list):
            choices.append({"message": {"content": value}})
    elif depth == 1:
        found[key] = value


CHAT = JsonShape(
    read=read_chat,
    wanted={
        b"id": 1,
        b"model": 1,
        b"service_tier": 1,
        b"usage": 1,
        b"x_groq": 1,
        b"error": 1,
        b"content": ANYWHERE,
        b"arguments": ANYWHERE,
    },
    place=_place,
)


class ChatStream(StreamReader):
    """A stream of chat completions or legacy completions; `[DONE]` is its terminal marker.

    The last usage that is not null counts, also beside empty `choices`; else Groq's `x_groq.usage`. Where
    `include_usage` was inserted, what it added is taken out again. `silent` hears of a whole stream without usage.
    """

    def __init__(self, call: ApiCall, status: int, silent: Callable[[], None] | None = None) -> None:
        super().__init__(call, status)
        self._strip = call.usage_inserted
        self._silent = silent

    def _event(self, block: bytes) -> bytes:
        at = block.rfind(b'"usage"')
        if at >= 0:
            null = _NULL_AT_END.match(block, at)
            if null is None:
                return self._usage_event(block)
            return self._content(_cut(block, at, null.end()) if self._strip else block)
        if b"[DONE]" in block and data_of(block) == b"[DONE]":
            self._found.final = self._found.usage is not None
            if self._silent is not None and not self._found.final and not self._found.failed:
                self._silent()
            return self._hold(block)
        if b"error" in block:
            self._read_error(block)
        return self._content(block)

    def _usage_event(self, block: bytes) -> bytes:
        event = document(data_of(block))
        if event is None:
            return self._content(block)
        had_usage = isinstance(event.get("usage"), dict)
        _read_common(event, self._found)
        self._found.final = self._found.usage is not None and _is_last(event)
        if not self._strip:
            return self._content(block)
        if had_usage and event.get("choices") == []:
            return b""
        return self._content(block if had_usage or "usage" not in event else without_usage(block))

    def _read_content(self, event: Document) -> None:
        self._found.work_id = self._found.work_id or text(event.get("id"))
        self._found.model = self._found.model or text(event.get("model"))
        self._found.service_tier = self._found.service_tier or text(event.get("service_tier"))
        _read_choices(event, self._found)


def _is_last(event: Document) -> bool:
    """Return whether usage in this event is the whole answer's: some vendors report it with every piece of text."""
    return all(choice.get("finish_reason") for choice in parts(event.get("choices")))


def _cut(block: bytes, start: int, end: int) -> bytes:
    """Return an event without the null member that is there, and the comma before it."""
    before = block[:start].rstrip()
    return before[:-1] + block[end:] if before.endswith(b",") else without_usage(block)


def without_usage(block: bytes) -> bytes:
    """Return an event without the null `usage` members of its object, every other byte as it was."""
    start = block.find(b"{")
    try:
        present = members(block, start)
    except (NotAnObjectError, ValueError):
        return block
    gone = {index for index, member in enumerate(present) if _is_null_usage(block, member)}
    return applied(block, removal(present, gone)) if gone else block


def _is_null_usage(block: bytes, member: Member) -> bool:
    return member.key == "usage" and block[member.value_start : member.end] == b"null"


def _read_common(answer: Document, found: Findings) -> None:
    found.work_id = text(answer.get("id")) or found.work_id
    found.model = text(answer.get("model")) or found.model
    found.service_tier = text(answer.get("service_tier")) or found.service_tier
    raw = answer.get("usage")
    if not isinstance(raw, dict):
        raw = part(answer.get("x_groq")).get("usage")
    if not isinstance(raw, dict):  # Moonshot's streams have it in the last choice
        raw = next((one["usage"] for one in parts(answer.get("choices")) if one.get("usage")), None)
    if isinstance(raw, dict):
        found.usage = chat_usage(raw)
        found.service_tier = found.service_tier or text(raw.get("service_tier"))
        found.provider_cost_usd = provider_cost(raw) or found.provider_cost_usd


def _read_choices(answer: Document, found: Findings) -> None:
    for choice in parts(answer.get("choices")):
        if choice.get("finish_reason"):
            found.finished = True
        said = part(choice.get("delta")) or part(choice.get("message"))
        spoken = [text(choice.get("text"))]
        spoken += [text(said.get(name)) for name in ("content", "refusal", "reasoning", "reasoning_content")]
        for tool in parts(said.get("tool_calls")):
            function = part(tool.get("function"))
            spoken += [text(function.get("name")), text(function.get("arguments"))]
        found.say(*spoken)
