"""Google's Gemini API, as it looks on the wire."""

from __future__ import annotations

import orjson

from bursar_sidecar.fake_provider.openai_chat import embedding
from bursar_sidecar.fake_provider.plan import Document, Plan
from bursar_sidecar.fake_provider.wire import Answer, event_stream

#: How many tokens one piece of a stream carries: Gemini sends few and large ones.
_PIECE_TOKENS = 8


def content_answer(model: str, plan: Plan) -> Answer:
    """Return the answer of `:generateContent`."""
    return _pretty(_piece(model, plan, plan.text, plan.output_tokens, last=True))


def stream_answer(model: str, plan: Plan, as_events: bool) -> Answer:
    """Return the answer of `:streamGenerateContent`: events with `alt=sse`, else one growing JSON array."""
    tokens = plan.choices[0]
    starts = list(range(0, len(tokens), _PIECE_TOKENS)) or [0]
    pieces = []
    for start in starts:
        said = tokens[start : start + _PIECE_TOKENS]
        so_far = min(start + _PIECE_TOKENS, len(tokens)) + plan.reasoning_tokens
        pieces.append(_piece(model, plan, "".join(said), so_far, last=start == starts[-1]))
    if as_events:
        events = [b"data: " + orjson.dumps(piece) + b"\r\n\r\n" for piece in pieces]
        return event_stream(events)
    texts = [orjson.dumps(piece, option=orjson.OPT_INDENT_2) for piece in pieces]
    parts = [b"[" + texts[0], *[b",\r\n" + text for text in texts[1:]], b"\n]"]
    return Answer("application/json; charset=UTF-8", tuple(parts), stream=True)


def embed_answer(body: Document, plan: Plan, batch: bool) -> Answer:
    """Return the answer of `:embedContent` or `:batchEmbedContents`; neither reports usage."""
    if not batch:
        return _pretty({"embedding": {"values": embedding(plan.digest, 768)}})
    requests = body.get("requests")
    count = len(requests) if isinstance(requests, list) else 1
    return _pretty(
        {"embeddings": [{"values": embedding(f"{plan.digest}{index}", 768)} for index in range(count)]}
    )


def count_answer(plan: Plan) -> Answer:
    """Return the answer of `:countTokens`."""
    details = [{"modality": "TEXT", "tokenCount": plan.input_tokens}]
    return _pretty({"totalTokens": plan.input_tokens, "promptTokensDetails": details})


def models_answer(names: tuple[str, ...]) -> Answer:
    """Return the answer of `GET /v1beta/models`."""
    methods = ["generateContent", "countTokens"]
    models = [
        {"name": f"models/{name}", "displayName": name, "supportedGenerationMethods": methods}
        for name in names
    ]
    return _pretty({"models": models})


def _piece(model: str, plan: Plan, text: str, output_so_far: int, last: bool) -> dict[str, object]:
    candidate: dict[str, object] = {"content": {"parts": [{"text": text}], "role": "model"}}
    if last:
        candidate["finishReason"] = "MAX_TOKENS" if plan.cut else "STOP"
    candidate["index"] = 0
    return {
        "candidates": [candidate],
        "usageMetadata": _usage(plan, output_so_far),
        "modelVersion": model,
        "responseId": plan.digest[:22],
    }


def _usage(plan: Plan, output_so_far: int) -> dict[str, object]:
    """Return `usageMetadata`; counts of zero are left out, as proto3 JSON does."""
    counts: dict[str, object] = {
        "promptTokenCount": plan.input_tokens,
        "candidatesTokenCount": output_so_far - plan.reasoning_tokens,
        "totalTokenCount": plan.input_tokens + output_so_far,
        "cachedContentTokenCount": plan.cache_read_tokens,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": plan.input_tokens}],
        "thoughtsTokenCount": plan.reasoning_tokens,
        "serviceTier": "standard",
    }
    return {name: value for name, value in counts.items() if value != 0}


def _pretty(body: object) -> Answer:
    return Answer(
        "application/json; charset=UTF-8", (orjson.dumps(body, option=orjson.OPT_INDENT_2) + b"\n",)
    )
