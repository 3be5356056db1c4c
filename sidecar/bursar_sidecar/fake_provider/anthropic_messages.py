"""Anthropic's Messages API, as it looks on the wire."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from bursar_sidecar.fake_provider.plan import Document, Plan
from bursar_sidecar.fake_provider.wire import Answer, event_stream, json_answer, named_event


def message_answer(model: str, body: Document, plan: Plan) -> Answer:
    """Return the answer of `POST /v1/messages`."""
    if body.get("stream") is True:
        return event_stream(_events(model, plan))
    content: list[object] = [{"type": "text", "text": plan.text}]
    if plan.reasoning_tokens:
        content.insert(0, {"type": "thinking", "thinking": _thought(plan), "signature": plan.digest})
    return json_answer(
        {
            **_message(model, plan),
            "content": content,
            "stop_reason": _stop_reason(plan),
            "usage": {**_usage(plan, plan.output_tokens), "service_tier": "standard"},
        }
    )


def count_answer(plan: Plan) -> Answer:
    """Return the answer of `POST /v1/messages/count_tokens`."""
    return json_answer({"input_tokens": plan.input_tokens})


def models_answer(names: tuple[str, ...]) -> Answer:
    """Return the answer of `GET /v1/models` to an Anthropic client."""
    data = [
        {"type": "model", "id": name, "display_name": name, "created_at": "2026-01-01T00:00:00Z"}
        for name in names
    ]
    return json_answer({"data": data, "has_more": False, "first_id": names[0], "last_id": names[-1]})


def _message(model: str, plan: Plan) -> dict[str, object]:
    return {
        "model": model,
        "id": f"msg_{plan.digest[:24]}",
        "type": "message",
        "role": "assistant",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }


def _usage(plan: Plan, output_tokens: int) -> dict[str, object]:
    """Return a usage object; `input_tokens` leaves out what the cache gave or took."""
    return {
        "input_tokens": plan.input_tokens - plan.cache_read_tokens - plan.cache_write_tokens,
        "cache_creation_input_tokens": plan.cache_write_tokens,
        "cache_read_input_tokens": plan.cache_read_tokens,
        "cache_creation": {
            "ephemeral_5m_input_tokens": plan.cache_write_tokens,
            "ephemeral_1h_input_tokens": 0,
        },
        "output_tokens": output_tokens,
        **(
            {"output_tokens_details": {"thinking_tokens": plan.reasoning_tokens}}
            if plan.reasoning_tokens
            else {}
        ),
    }


def _events(model: str, plan: Plan) -> Iterator[bytes]:
    first = {**_usage(plan, min(plan.output_tokens, 1)), "service_tier": "standard"}
    first.pop("output_tokens_details", None)
    yield named_event({"type": "message_start", "message": {**_message(model, plan), "usage": first}})
    yield named_event({"type": "ping"})
    index = 0
    if plan.reasoning_tokens:
        thinking = {"type": "thinking", "thinking": "", "signature": ""}
        deltas: list[dict[str, object]] = [{"type": "thinking_delta", "thinking": _thought(plan)}]
        deltas.append({"type": "signature_delta", "signature": plan.digest})
        yield from _block(index, thinking, deltas)
        index += 1
    spoken: list[dict[str, object]] = [{"type": "text_delta", "text": token} for token in plan.choices[0]]
    yield from _block(index, {"type": "text", "text": ""}, spoken)
    delta = {"stop_reason": _stop_reason(plan), "stop_sequence": None}
    usage = _usage(plan, plan.output_tokens)
    del usage["cache_creation"]
    yield named_event({"type": "message_delta", "delta": delta, "usage": usage})
    yield named_event({"type": "message_stop"})


def _block(index: int, opening: Mapping[str, object], deltas: list[dict[str, object]]) -> Iterator[bytes]:
    yield named_event({"type": "content_block_start", "index": index, "content_block": opening})
    for delta in deltas:
        yield named_event({"type": "content_block_delta", "index": index, "delta": delta})
    yield named_event({"type": "content_block_stop", "index": index})


def _thought(plan: Plan) -> str:
    return f"I should answer briefly and kindly. Thinking took {plan.reasoning_tokens} tokens."


def _stop_reason(plan: Plan) -> str:
    return "max_tokens" if plan.cut else "end_turn"
