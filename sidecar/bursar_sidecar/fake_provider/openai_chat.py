"""OpenAI's chat completions, legacy completions, embeddings and models, as they look on the wire."""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Iterator, Mapping

from bursar_sidecar.fake_provider.plan import Document, Plan
from bursar_sidecar.fake_provider.wire import Answer, data_event, event_stream, json_answer

_FINGERPRINT = "fp_bursar_fake"
_DIMENSIONS = 1536


def chat_answer(model: str, body: Document, plan: Plan, reports_usage: bool = True) -> Answer:
    """Return the answer of `POST /v1/chat/completions`."""
    head = {"id": f"chatcmpl-{plan.digest[:29]}", "created": plan.created, "model": model}
    if body.get("stream") is True:
        return event_stream(_chat_events(head, body, plan, reports_usage))
    choices: list[dict[str, object]] = [
        {
            "index": index,
            "message": {
                "role": "assistant",
                "content": "".join(tokens),
                "refusal": None,
                "annotations": [],
            },
            "logprobs": None,
            "finish_reason": _finish(plan),
        }
        for index, tokens in enumerate(plan.choices)
    ]
    whole: dict[str, object] = {**_object(head, "chat.completion"), "choices": choices}
    if reports_usage:
        whole["usage"] = chat_usage(plan)
    return json_answer({**whole, "service_tier": "default", "system_fingerprint": _FINGERPRINT})


def completion_answer(model: str, body: Document, plan: Plan, reports_usage: bool = True) -> Answer:
    """Return the answer of `POST /v1/completions`."""
    head = {"id": f"cmpl-{plan.digest[:29]}", "created": plan.created, "model": model}
    if body.get("stream") is True:
        return event_stream(_completion_events(head, body, plan, reports_usage))
    choices = [
        {"text": "".join(tokens), "index": index, "logprobs": None, "finish_reason": _finish(plan)}
        for index, tokens in enumerate(plan.choices)
    ]
    whole: dict[str, object] = {**_object(head, "text_completion"), "choices": choices}
    if reports_usage:
        whole["usage"] = _short_usage(plan)
    return json_answer(whole)


def embeddings_answer(model: str, body: Document, plan: Plan) -> Answer:
    """Return the answer of `POST /v1/embeddings`, as floats or base64 as asked."""
    given = body.get("input")
    inputs = given if isinstance(given, list) and given and not isinstance(given[0], int) else [given]
    dimensions = body.get("dimensions")
    size = dimensions if isinstance(dimensions, int) and 0 < dimensions <= 4096 else _DIMENSIONS
    data = []
    for index, one in enumerate(inputs):
        vector = embedding(f"{plan.digest}{one}", size)
        packed = body.get("encoding_format") == "base64"
        shown: object = base64.b64encode(struct.pack(f"<{size}f", *vector)).decode() if packed else vector
        data.append({"object": "embedding", "index": index, "embedding": shown})
    usage = {"prompt_tokens": plan.input_tokens, "total_tokens": plan.input_tokens}
    return json_answer({"object": "list", "data": data, "model": model, "usage": usage})


def embedding(seed: str, size: int) -> list[float]:
    """Return `size` numbers between -0.1 and 0.1 that depend on `seed` alone."""
    raw = hashlib.shake_256(seed.encode(errors="replace")).digest(size)
    return [(byte - 128) / 1280 for byte in raw]


def models_answer(names: tuple[str, ...]) -> Answer:
    """Return the answer of `GET /v1/models`."""
    data = [{"id": name, "object": "model", "created": 1_767_225_600, "owned_by": "system"} for name in names]
    return json_answer({"object": "list", "data": data})


def chat_usage(plan: Plan) -> dict[str, object]:
    """Return chat's `usage` object."""
    return {
        **_short_usage(plan),
        "prompt_tokens_details": {"cached_tokens": plan.cache_read_tokens, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": plan.reasoning_tokens,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _short_usage(plan: Plan) -> dict[str, object]:
    return {
        "prompt_tokens": plan.input_tokens,
        "completion_tokens": plan.output_tokens,
        "total_tokens": plan.input_tokens + plan.output_tokens,
    }


def _chat_events(
    head: Mapping[str, object], body: Document, plan: Plan, reports_usage: bool
) -> Iterator[bytes]:
    common = {
        **_object(head, "chat.completion.chunk"),
        "service_tier": "default",
        "system_fingerprint": _FINGERPRINT,
    }
    asked = reports_usage and _include_usage(body)
    rest: dict[str, object] = {"usage": None} if asked else {}
    for index, tokens in enumerate(plan.choices):
        deltas: list[dict[str, object]] = [{"role": "assistant", "content": "", "refusal": None}]
        deltas += [{"content": token} for token in tokens]
        for delta in [*deltas, {}]:
            finish = None if delta else _finish(plan)
            choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
            yield data_event({**common, "choices": [choice], **rest, "obfuscation": plan.digest[:9]})
    if asked:
        yield data_event({**common, "choices": [], "usage": chat_usage(plan), "obfuscation": plan.digest[:4]})
    yield b"data: [DONE]\n\n"


def _completion_events(
    head: Mapping[str, object], body: Document, plan: Plan, reports_usage: bool
) -> Iterator[bytes]:
    common = _object(head, "text_completion")
    asked = reports_usage and _include_usage(body)
    rest: dict[str, object] = {"usage": None} if asked else {}
    for index, tokens in enumerate(plan.choices):
        for position, token in enumerate(tokens):
            finish = _finish(plan) if position == len(tokens) - 1 else None
            choice = {"text": token, "index": index, "logprobs": None, "finish_reason": finish}
            yield data_event({**common, "choices": [choice], **rest})
    if asked:
        yield data_event({**common, "choices": [], "usage": _short_usage(plan)})
    yield b"data: [DONE]\n\n"


def _object(head: Mapping[str, object], kind: str) -> dict[str, object]:
    return {"id": head["id"], "object": kind, "created": head["created"], "model": head["model"]}


def _include_usage(body: Document) -> bool:
    options = body.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def _finish(plan: Plan) -> str:
    return "length" if plan.cut else "stop"
