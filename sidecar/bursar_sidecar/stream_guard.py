"""Streams that outgrow their budget: when one has, and the event that says so in the words of its API."""

from __future__ import annotations

from bursar_sidecar.providers.base import ApiCall, Dialect, Outcome, Problem, Reader

_RESPONSES = "openai.responses"


def outgrown(reader: Reader, output_tokens: int) -> bool:
    """Whether an answer has brought more output than its budget bears; one that is complete is left in peace.

    Where the provider does not count on the way, the text that came is counted as an estimate would.
    """
    if reader.complete:
        return False
    return sum(item.usage.output_tokens for item in reader.metered(Outcome.PARTIAL).items) > output_tokens


def error_event(dialect: Dialect, call: ApiCall, problem: Problem, content_type: str) -> bytes:
    """Return the event that an API's own SDK raises as an error in a stream; empty where the API has none such.

    There the connection is cut, which every client takes for an answer that broke off.
    """
    body = dialect.error_body(problem, stream=True)
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/x-ndjson":
        return body + b"\n"
    if kind != "text/event-stream" or call.api.startswith("cohere."):
        return b""
    if call.api.startswith("anthropic."):
        return b"event: error\ndata: " + body + b"\n\n"
    if call.api == _RESPONSES:
        # The event's type is what the API names, the object in it what the SDK raises.
        return b'event: error\ndata: {"type":"error",' + body[1:] + b"\n\n"
    return b"data: " + body + b"\n\n"
