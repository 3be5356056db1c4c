"""Answers of Gemini's Interactions API."""

from __future__ import annotations

from collections.abc import Mapping

from bursar_sidecar.providers.base import Usage
from bursar_sidecar.providers.readers import Document, JsonShape
from bursar_sidecar.providers.streams import StreamReader
from bursar_sidecar.usage import Findings, clamped, count, part, parts, text

_FINAL_STATES = frozenset({"completed", "incomplete", "failed", "cancelled", "requires_action"})
_FINISHING_TYPES = frozenset({"interaction.completed", "interaction.complete", "interaction.failed"})


def interaction_usage(raw: Mapping[str, object]) -> Usage:
    """Return an interaction's `usage`: tool results count as input, thoughts as output, cached is part of the input."""
    thoughts = count(raw.get("total_thought_tokens"))
    inputs = (raw.get("input_tokens_by_modality"), raw.get("tool_use_tokens_by_modality"))
    return clamped(
        Usage(
            input_tokens=count(raw.get("total_input_tokens")) + count(raw.get("total_tool_use_tokens")),
            output_tokens=count(raw.get("total_output_tokens")) + thoughts,
            cache_read_tokens=count(raw.get("total_cached_tokens")),
            reasoning_tokens=thoughts,
            input_audio_tokens=sum(_modality(one, "audio") for one in inputs),
            output_audio_tokens=_modality(raw.get("output_tokens_by_modality"), "audio"),
            input_image_tokens=sum(_modality(one, "image") for one in inputs),
            output_image_tokens=_modality(raw.get("output_tokens_by_modality"), "image"),
            requests=1,
        )
    )


def read_interaction(answer: Document, found: Findings) -> None:
    """Note what an interaction says; one that is still in progress is not billable yet."""
    found.model = text(answer.get("model")) or found.model
    found.work_id = text(answer.get("id")) or found.work_id
    found.service_tier = text(answer.get("service_tier")) or found.service_tier
    status = answer.get("status")
    found.deferred = status in ("queued", "in_progress")
    found.failed = status == "failed" or (status is None and bool(answer.get("error")))
    found.cancelled = status == "cancelled"
    found.finished = status in _FINAL_STATES
    raw = answer.get("usage")
    if isinstance(raw, dict):
        found.usage = interaction_usage(raw)


INTERACTION = JsonShape(
    read=read_interaction,
    wanted={b"id": 1, b"model": 1, b"service_tier": 1, b"status": 1, b"error": 1, b"usage": 1},
)


class InteractionStream(StreamReader):
    """A stream of interaction events; the one that completes the interaction is its terminal marker."""

    def _event(self, block: bytes) -> bytes:
        if b'"interaction.' in block:
            event = self._document(block) or {}
            if event.get("event_type") in _FINISHING_TYPES:
                read_interaction(dict(part(event.get("interaction"))), self._found)
                self._found.deferred = False
                self._found.final = self._found.usage is not None
                return self._hold(block)
        if b"error" in block:
            self._read_error(block)
        return self._content(block)

    def _read_content(self, event: Document) -> None:
        interaction = part(event.get("interaction"))
        self._found.work_id = self._found.work_id or text(interaction.get("id"))
        self._found.model = self._found.model or text(interaction.get("model"))
        self._found.say(text(part(event.get("delta")).get("text")))


def _modality(details: object, name: str) -> int:
    return sum(count(one.get("tokens")) for one in parts(details) if one.get("modality") == name)
