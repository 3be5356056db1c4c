"""What OpenRouter says afterwards of an answer, whatever API it was asked for in."""

from __future__ import annotations

from decimal import Decimal
from functools import partial

from bursar_sidecar.providers.base import ApiCall, Later, Usage
from bursar_sidecar.providers.readers import Document, JsonReader, JsonShape
from bursar_sidecar.usage import Findings, clamped, count, decimal_text, part, text


def read_generation(answer: Document, found: Findings) -> None:
    """Note what a generation's metadata says (API reference, "Get request & usage metadata for a generation").

    The native counts are those that are billed: the prompt with what was cached of it, the completion with its reasoning
    ("Reasoning Tokens": they are output). Each can be null, and none takes no prompt: without both it is not accounted for
    yet, and where it has a cost already, that is kept beside the estimate.
    The model is left to what the answer called it: here it has the name of a dated version, which prices do not know.
    """
    generation = part(answer.get("data"))
    found.service_tier = text(generation.get("service_tier"))
    found.provider_cost_usd = decimal_text(generation.get("total_cost"))
    counts = (generation.get("native_tokens_prompt"), generation.get("native_tokens_completion"))
    if not count(counts[0]) or counts[1] is None:
        found.deferred = not Decimal(found.provider_cost_usd or 0)
        return
    found.finished = True
    found.usage = clamped(
        Usage(
            input_tokens=count(counts[0]),
            output_tokens=count(counts[1]),
            cache_read_tokens=count(generation.get("native_tokens_cached")),
            reasoning_tokens=count(generation.get("native_tokens_reasoning")),
            output_image_tokens=count(generation.get("native_tokens_completion_images")),
            requests=1,
        )
    )


GENERATION = JsonShape(read=read_generation, wanted={b"data": 1})

_LATER = Later(
    partial(JsonReader, shape=GENERATION),
    "/generation",
    after="/v1",
    query="id={id}",
    header="x-generation-id",
)


def generation(call: ApiCall, path: str) -> Later | None:  # noqa: ARG001
    """Return how a call is asked about: 404 for the first seconds; streams that the app broke off are known too."""
    return _LATER if call.metered else None
