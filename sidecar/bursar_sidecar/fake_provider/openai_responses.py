"""OpenAI's Responses API, as it looks on the wire."""

from __future__ import annotations

from collections.abc import Iterator

from bursar_sidecar.fake_provider.plan import Document, Plan
from bursar_sidecar.fake_provider.wire import Answer, event_stream, json_answer, named_event


def response_answer(model: str, body: Document, plan: Plan) -> Answer:
    """Return the answer of `POST /v1/responses`."""
    if body.get("stream") is True:
        return event_stream(_events(model, body, plan))
    return json_answer(_finished(model, body, plan))


def _finished(model: str, body: Document, plan: Plan) -> dict[str, object]:
    output: list[object] = []
    if plan.reasoning_tokens:
        output.append(_reasoning(plan))
    output.append(_message(plan, "incomplete" if plan.cut else "completed", [_part(plan.text)]))
    response = _response(model, body, plan, "incomplete" if plan.cut else "completed", output)
    response["incomplete_details"] = {"reason": "max_output_tokens"} if plan.cut else None
    response["usage"] = {
        "input_tokens": plan.input_tokens,
        "input_tokens_details": {"cached_tokens": plan.cache_read_tokens, "cache_write_tokens": 0},
        "output_tokens": plan.output_tokens,
        "output_tokens_details": {"reasoning_tokens": plan.reasoning_tokens},
        "total_tokens": plan.input_tokens + plan.output_tokens,
    }
    return response


def _response(model: str, body: Document, plan: Plan, status: str, output: list[object]) -> dict[str, object]:
    return {
        "id": f"resp_{plan.digest[:48]}",
        "object": "response",
        "created_at": plan.created,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "max_tool_calls": None,
        "model": model,
        "output": output,
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "auto" if status == "in_progress" else "default",
        "store": True,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": None,
        "user": None,
        "metadata": body.get("metadata") or {},
    }


def _reasoning(plan: Plan) -> dict[str, object]:
    return {"id": f"rs_{plan.digest[:48]}", "type": "reasoning", "summary": []}


def _message(plan: Plan, status: str, content: list[object]) -> dict[str, object]:
    return {
        "id": f"msg_{plan.digest[:48]}",
        "type": "message",
        "status": status,
        "content": content,
        "role": "assistant",
    }


def _part(text: str) -> dict[str, object]:
    return {"type": "output_text", "annotations": [], "logprobs": [], "text": text}


def _events(model: str, body: Document, plan: Plan) -> Iterator[bytes]:
    for number, event in enumerate(_numbered(model, body, plan)):
        yield named_event({"type": event["type"], "sequence_number": number, **event})


def _numbered(model: str, body: Document, plan: Plan) -> Iterator[dict[str, object]]:
    begun = _response(model, body, plan, "in_progress", [])
    yield {"type": "response.created", "response": begun}
    yield {"type": "response.in_progress", "response": begun}
    at = 0
    if plan.reasoning_tokens:
        for kind in ("added", "done"):
            yield {"type": f"response.output_item.{kind}", "output_index": at, "item": _reasoning(plan)}
        at += 1
    item_id = f"msg_{plan.digest[:48]}"
    place = {"item_id": item_id, "output_index": at, "content_index": 0}
    yield {
        "type": "response.output_item.added",
        "output_index": at,
        "item": _message(plan, "in_progress", []),
    }
    yield {"type": "response.content_part.added", **place, "part": _part("")}
    for token in plan.choices[0]:
        yield {
            "type": "response.output_text.delta",
            **place,
            "delta": token,
            "logprobs": [],
            "obfuscation": plan.digest[:8],
        }
    yield {"type": "response.output_text.done", **place, "text": plan.text, "logprobs": []}
    yield {"type": "response.content_part.done", **place, "part": _part(plan.text)}
    status = "incomplete" if plan.cut else "completed"
    done = _message(plan, status, [_part(plan.text)])
    yield {"type": "response.output_item.done", "output_index": at, "item": done}
    yield {"type": f"response.{status}", "response": _finished(model, body, plan)}
