"""What the three APIs' answers have in common on the wire."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import orjson


@dataclass(frozen=True, slots=True)
class Answer:
    """A successful answer: one JSON body, or the pieces of a stream with its terminal marker as the last."""

    content_type: str
    pieces: tuple[bytes, ...]
    stream: bool = False


def json_answer(body: object) -> Answer:
    """Return `body` as compact JSON."""
    return Answer("application/json", (orjson.dumps(body),))


def event_stream(events: Iterable[bytes]) -> Answer:
    """Return the events as a server-sent event stream."""
    return Answer("text/event-stream; charset=utf-8", tuple(events), stream=True)


def data_event(data: object) -> bytes:
    """Return an event without a name (OpenAI's chat)."""
    return b"data: " + orjson.dumps(data) + b"\n\n"


def named_event(data: Mapping[str, object]) -> bytes:
    """Return an event named after the `type` of its data (OpenAI's Responses, Anthropic)."""
    return b"event: %b\ndata: %b\n\n" % (str(data["type"]).encode(), orjson.dumps(data))
