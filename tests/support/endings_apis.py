"""The APIs of the endings matrix: what each sends, hand-written, event by event."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from support.eventstream import event, frame

Doc = dict[str, Any] | str


@dataclass(frozen=True)
class Figures:
    """Usage in an event: left out unless the ending tells it; without a value it is a null before the figures come."""

    value: object = None


class Framing(Enum):
    """How an answer's parts follow each other; its value is the content type."""

    EVENTS = "text/event-stream"
    LINES = "application/x-ndjson"
    ARRAY = "application/json; charset=UTF-8"
    FRAMES = "application/vnd.amazon.eventstream"
    JSON = "application/json"


@dataclass(frozen=True)
class Api:
    """One API: a request, and the parts of its answers.

    `close` says why the answer ends, `tail` is there for the usage alone, `marker` says nothing but that it was the end.
    A JSON answer is one of `texts`, `tool`, `refusal`, `nothing`. `error` comes inside an answer with status 200, where the
    API does that; `failure` is the body of a refused call. `asks_itself`: the app does not ask for usage, Bursar does.
    """

    title: str
    path: str
    request: dict[str, Any]
    framing: Framing
    texts: Sequence[Doc]
    error: Doc | None
    failure: dict[str, Any]
    tool: Sequence[Doc] | None = None
    refusal: Sequence[Doc] | None = None
    nothing: Sequence[Doc] = ()
    begin: Sequence[Doc] = ()
    close: Sequence[Doc] = ()
    tail: Sequence[Doc] = ()
    marker: Sequence[Doc] = ()
    output_tokens: int = 5
    asks_itself: bool = False

    @property
    def streams(self) -> bool:
        return self.framing is not Framing.JSON

    def rendered(self, docs: Sequence[Doc], figures: bool, nulls: bool, line: str = "\n") -> list[bytes]:
        """Return each part's bytes."""
        parts = [shown(doc, figures, nulls) for doc in docs]
        if self.framing is Framing.FRAMES:
            return [framed(part) for part in parts]
        texts = [part if isinstance(part, str) else dumped(part) for part in parts]
        match self.framing:
            case Framing.EVENTS:
                return [
                    f"{named(part, line)}data: {text}{line}{line}".encode()
                    for part, text in zip(parts, texts, strict=True)
                ]
            case Framing.LINES:
                return [f"{text}{line}".encode() for text in texts]
            case Framing.ARRAY:
                return [
                    f"{'[' if at == 0 else ',' + line}{text}{']' if doc is docs[-1] and doc in self.close else ''}".encode()
                    for at, (doc, text) in enumerate(zip(docs, texts, strict=True))
                ]
            case _:
                return [
                    text.replace(',"', f',{line}"').encode() if line != "\n" else text.encode()
                    for text in texts
                ]


def dumped(doc: object) -> str:
    return json.dumps(doc, separators=(",", ":"))


def named(part: Doc, line: str) -> str:
    return f"event: {part['type']}{line}" if isinstance(part, dict) and "type" in part else ""


def framed(part: Doc) -> bytes:
    """Return one of Amazon's frames: of an exception, a model's own event in a chunk, or an event by its kind."""
    assert isinstance(part, dict)
    ((kind, payload),) = part.items()
    if kind.endswith("Exception"):
        return frame(
            {":exception-type": kind, ":content-type": "application/json", ":message-type": "exception"},
            payload,
        )
    return event(kind, chunk=payload) if kind == "chunk" else event(kind, payload)


def shown(doc: Any, figures: bool, nulls: bool) -> Any:
    """Return a part as it is sent: with or without its usage, with or without nulls in the place of usage to come."""
    if isinstance(doc, list):
        return [shown(one, figures, nulls) for one in doc]
    if not isinstance(doc, dict):
        return doc
    found = {}
    for name, value in doc.items():
        if not isinstance(value, Figures):
            found[name] = shown(value, figures, nulls)
        elif value.value is None and nulls:
            found[name] = None
        elif value.value is not None and figures:
            found[name] = value.value
    return found


HI = [{"role": "user", "content": "Name a sea, if you please."}]
NULL = Figures()
WORDS = ("The Sargasso", " Sea is", " one.")
ARGUMENTS = '{"name":"Sargasso"}'

# -- OpenAI and whatever is compatible ------------------------------------------------------------------

CHAT_USAGE = Figures({"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12})
EMBEDDED = Figures({"prompt_tokens": 7, "total_tokens": 7})
OPENAI_ERROR = {"error": {"message": "The server had an error.", "type": "server_error", "code": None}}


def chat_event(delta: dict[str, Any], finish: str | None = None) -> Doc:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {
        "id": "c1",
        "object": "chat.completion.chunk",
        "model": "gpt-4o-mini-2024-07-18",
        "choices": [choice],
        "usage": NULL,
    }


def chat(title: str, path: str, **more: Any) -> Api:
    asked = {} if more.get("asks_itself") else {"stream_options": {"include_usage": True}}
    return Api(
        title,
        path,
        {"model": "gpt-4o-mini", "stream": True, **asked, "messages": HI},
        Framing.EVENTS,
        begin=[chat_event({"role": "assistant", "content": ""})],
        texts=[chat_event({"content": word}) for word in WORDS],
        tool=[
            chat_event(
                {"tool_calls": [{"index": 0, "id": "t1", "function": {"name": "find_sea", "arguments": ""}}]}
            ),
            chat_event({"tool_calls": [{"index": 0, "function": {"arguments": ARGUMENTS}}]}),
        ],
        refusal=[chat_event({"refusal": "I cannot do that."})],
        close=[chat_event({}, "stop")],
        tail=[
            {
                "id": "c1",
                "object": "chat.completion.chunk",
                "model": "gpt-4o-mini-2024-07-18",
                "choices": [],
                "usage": CHAT_USAGE,
            }
        ],
        marker=["[DONE]"],
        error=OPENAI_ERROR,
        failure={**OPENAI_ERROR, "usage": CHAT_USAGE},
        **more,
    )


def completions_event(text: str, finish: str | None = None) -> Doc:
    choice = {"index": 0, "text": text, "finish_reason": finish}
    return {
        "id": "c1",
        "object": "text_completion",
        "model": "gpt-3.5-turbo-instruct",
        "choices": [choice],
        "usage": NULL,
    }


def chat_answer(message: dict[str, Any] | None, finish: str = "stop") -> Doc:
    choices = (
        [{"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}]
        if message
        else []
    )
    return {
        "id": "c1",
        "object": "chat.completion",
        "model": "gpt-4o-mini-2024-07-18",
        "choices": choices,
        "usage": CHAT_USAGE,
    }


RESPONSES_USAGE = Figures({"input_tokens": 7, "output_tokens": 5, "total_tokens": 12})


def response_event(kind: str, status: str, usage: Figures) -> Doc:
    response = {
        "id": "resp_1",
        "status": status,
        "model": "gpt-4o-mini-2024-07-18",
        "output": [],
        "usage": usage,
    }
    return {"type": kind, "response": response}


def delta_event(kind: str, delta: str) -> Doc:
    return {"type": f"response.{kind}.delta", "item_id": "m1", "output_index": 0, "delta": delta}


OPENAI = [
    chat("OpenAI chat", "/openai/v1/chat/completions"),
    chat("OpenAI chat, usage asked for by Bursar", "/openai/v1/chat/completions", asks_itself=True),
    Api(
        "OpenAI chat, JSON",
        "/openai/v1/chat/completions",
        {"model": "gpt-4o-mini", "messages": HI},
        Framing.JSON,
        texts=[chat_answer({"content": "".join(WORDS)})],
        tool=[
            chat_answer(
                {"tool_calls": [{"id": "t1", "function": {"name": "find_sea", "arguments": ARGUMENTS}}]},
                "tool_calls",
            )
        ],
        refusal=[chat_answer({"refusal": "I cannot do that."})],
        nothing=[chat_answer(None)],
        error=OPENAI_ERROR,
        failure={**OPENAI_ERROR, "usage": CHAT_USAGE},
    ),
    Api(
        "OpenAI Responses",
        "/openai/v1/responses",
        {"model": "gpt-4o-mini", "stream": True, "input": "Name a sea, if you please."},
        Framing.EVENTS,
        begin=[response_event("response.created", "in_progress", NULL)],
        texts=[delta_event("output_text", word) for word in WORDS],
        tool=[delta_event("function_call_arguments", ARGUMENTS)],
        refusal=[delta_event("refusal", "I cannot do that.")],
        close=[response_event("response.completed", "completed", RESPONSES_USAGE)],
        error={"type": "error", "code": "server_error", "message": "The server had an error."},
        failure={**OPENAI_ERROR, "usage": RESPONSES_USAGE},
    ),
    Api(
        "OpenAI completions",
        "/openai/v1/completions",
        {
            "model": "gpt-3.5-turbo-instruct",
            "stream": True,
            "stream_options": {"include_usage": True},
            "prompt": "Name a sea.",
        },
        Framing.EVENTS,
        texts=[completions_event(word) for word in WORDS],
        close=[completions_event("", "stop")],
        tail=[
            {
                "id": "c1",
                "object": "text_completion",
                "model": "gpt-3.5-turbo-instruct",
                "choices": [],
                "usage": CHAT_USAGE,
            }
        ],
        marker=["[DONE]"],
        error=OPENAI_ERROR,
        failure={**OPENAI_ERROR, "usage": CHAT_USAGE},
    ),
    Api(
        "OpenAI embeddings, JSON",
        "/openai/v1/embeddings",
        {"model": "text-embedding-3-small", "input": "Name a sea, if you please."},
        Framing.JSON,
        texts=[
            {
                "object": "list",
                "model": "text-embedding-3-small",
                "data": [{"index": 0, "embedding": [0.25, -0.5]}],
                "usage": EMBEDDED,
            }
        ],
        nothing=[{"object": "list", "model": "text-embedding-3-small", "data": [], "usage": EMBEDDED}],
        error=OPENAI_ERROR,
        failure={**OPENAI_ERROR, "usage": EMBEDDED},
        output_tokens=0,
    ),
    chat("OpenAI-compatible, any other", "/lab/v1/chat/completions"),
]

# -- Anthropic -----------------------------------------------------------------------------------------

MESSAGES_USAGE = Figures({"input_tokens": 7, "output_tokens": 5})
ANTHROPIC_ERROR = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
ANTHROPIC_REQUEST = {"model": "claude-3-5-haiku-latest", "max_tokens": 500, "messages": HI}


def block_delta(delta: dict[str, Any]) -> Doc:
    return {"type": "content_block_delta", "index": 0, "delta": delta}


def message(content: list[dict[str, Any]], reason: str = "end_turn") -> Doc:
    return {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-3-5-haiku-20241022",
        "content": content, "stop_reason": reason, "usage": MESSAGES_USAGE,
    }  # fmt: skip


ANTHROPIC = [
    Api(
        "Anthropic Messages",
        "/anthropic/v1/messages",
        {**ANTHROPIC_REQUEST, "stream": True},
        Framing.EVENTS,
        begin=[
            {
                "type": "message_start",
                "message": {
                    "id": "msg_1",
                    "model": "claude-3-5-haiku-20241022",
                    "content": [],
                    "usage": NULL,
                },
            },
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        ],
        texts=[block_delta({"type": "text_delta", "text": word}) for word in WORDS],
        tool=[block_delta({"type": "input_json_delta", "partial_json": ARGUMENTS})],
        refusal=[block_delta({"type": "text_delta", "text": "I cannot do that."})],
        close=[{"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": MESSAGES_USAGE}],
        marker=[{"type": "message_stop"}],
        error=ANTHROPIC_ERROR,
        failure={**ANTHROPIC_ERROR, "usage": MESSAGES_USAGE},
    ),
    Api(
        "Anthropic Messages, JSON",
        "/anthropic/v1/messages",
        ANTHROPIC_REQUEST,
        Framing.JSON,
        texts=[message([{"type": "text", "text": "".join(WORDS)}])],
        tool=[
            message(
                [{"type": "tool_use", "id": "t1", "name": "find_sea", "input": {"name": "Sargasso"}}],
                "tool_use",
            )
        ],
        refusal=[message([{"type": "text", "text": "I cannot do that."}], "refusal")],
        nothing=[message([])],
        error=ANTHROPIC_ERROR,
        failure={**ANTHROPIC_ERROR, "usage": MESSAGES_USAGE},
    ),
]
