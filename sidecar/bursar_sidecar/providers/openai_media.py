"""Answers of OpenAI's image and audio APIs, and of what is compatible with them."""

from __future__ import annotations

from collections.abc import Mapping

from bursar_sidecar.providers.base import Usage
from bursar_sidecar.providers.json_scan import ANYWHERE
from bursar_sidecar.providers.openai_chat import chat_usage, provider_cost
from bursar_sidecar.providers.openai_responses import responses_usage
from bursar_sidecar.providers.readers import Document, JsonShape
from bursar_sidecar.providers.streams import StreamReader
from bursar_sidecar.usage import Findings, parts, text

#: Events that end a stream; each carries the usage of the whole.
_FINISHING_TYPES = frozenset(
    {
        "transcript.text.done",
        "speech.audio.done",
        "image_generation.completed",
        "image_edit.completed",
    }
)
_IMAGES = ("b64_json", "url")


def read_media(answer: Document, found: Findings) -> None:
    """Note what an answer says: tokens where it counts them, and how many images it brings.

    A sound billed by its seconds has no unit of its own here: without tokens the call is estimated, and flagged so.
    """
    found.model = text(answer.get("model")) or found.model
    found.service_tier = text(answer.get("service_tier")) or found.service_tier
    found.failed = bool(answer.get("error"))
    images = sum(any(name in one for name in _IMAGES) for one in parts(answer.get("data")))
    raw = answer.get("usage")
    if isinstance(raw, dict):
        found.provider_cost_usd = provider_cost(raw)
        found.usage = _tokens(raw)
    if images:
        found.usage = (found.usage or Usage(requests=1))._replace(images=images)
    elif found.usage is None and found.provider_cost_usd is not None:
        found.usage = Usage(requests=1)
    if found.usage is None:
        found.say(text(answer.get("text")))


def _tokens(raw: Mapping[str, object]) -> Usage | None:
    if "prompt_tokens" in raw or "completion_tokens" in raw:
        return chat_usage(raw)
    if "input_tokens" in raw or "output_tokens" in raw:
        return responses_usage(raw, 0)
    return None


def _place(found: Document, key: str, depth: int, value: object) -> None:
    """Put a picked member where `read_media` looks: a picture becomes an element of `data`."""
    if key in _IMAGES:
        data = found.setdefault("data", [])
        if isinstance(data, list):
            data.append({key: None})
    elif depth == 1:
        found[key] = value


MEDIA = JsonShape(
    read=read_media,
    wanted={
        b"model": 1,
        b"usage": 1,
        b"error": 1,
        b"text": 1,
        b"b64_json": ANYWHERE,
        b"url": ANYWHERE,
    },
    place=_place,
)


class MediaStream(StreamReader):
    """A stream of pieces of a picture, a sound or a transcript; the event that says it is done ends it."""

    def _event(self, block: bytes) -> bytes:
        if b".done" in block or b".completed" in block:
            event = self._document(block) or {}
            if event.get("type") in _FINISHING_TYPES:
                self._finish(event)
                return self._hold(block)
        if b"error" in block:
            self._read_error(block)
        return self._content(block) if b'"b64_json"' not in block and b'"audio"' not in block else block

    def _finish(self, event: Document) -> None:
        read_media({**event, "data": [event]}, self._found)
        self._found.finished = True
        self._found.final = self._found.usage is not None

    def _read_content(self, event: Document) -> None:
        self._found.model = self._found.model or text(event.get("model"))
        self._found.say(text(event.get("delta")))
