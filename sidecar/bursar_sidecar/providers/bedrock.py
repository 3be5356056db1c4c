"""Amazon Bedrock: Converse, and the models' own APIs under InvokeModel."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import unquote

import orjson

from bursar_sidecar.providers.base import NO_HEADERS, ApiCall, Problem, Reader
from bursar_sidecar.providers.bedrock_answers import CONVERSE, ConverseStream, InvokeStream, invoke_shape
from bursar_sidecar.providers.output_limit import lowered
from bursar_sidecar.providers.readers import JsonReader, UndecidedReader, document, reader_for
from bursar_sidecar.providers.request import Request, positive
from bursar_sidecar.usage import count, part

#: Ids and ARNs of models and inference profiles; an ARN has slashes once it is decoded.
_PATH = re.compile(
    r"(?:^|/)model/(.+)/(converse|converse-stream|invoke|invoke-with-response-stream|count-tokens)$"
)
_CONVERSE = ("converse", "converse-stream")
_STREAMS = ("converse-stream", "invoke-with-response-stream")
_OTHER = "bedrock.other"

#: What the older models call their output limit, by the object that it stands in ("" is the outermost).
_LIMITS = (
    ("", "max_tokens"),
    ("", "max_completion_tokens"),
    ("", "max_tokens_to_sample"),
    ("", "max_gen_len"),
    ("inferenceConfig", "maxTokens"),
    ("inferenceConfig", "max_new_tokens"),
    ("textGenerationConfig", "maxTokenCount"),
)

#: What AWS calls a refusal of that status; its SDKs decide by these names what to try again.
_EXCEPTIONS = {
    400: "ValidationException",
    401: "UnrecognizedClientException",
    402: "ServiceQuotaExceededException",
    403: "AccessDeniedException",
    404: "ResourceNotFoundException",
    413: "ValidationException",
    429: "ThrottlingException",
    503: "ServiceUnavailableException",
    504: "ModelTimeoutException",
}


class Bedrock:
    """The dialect of `bedrock-runtime.<region>.amazonaws.com`: the model and the verb are in the path."""

    @property
    def name(self) -> str:
        """The name that the configuration uses."""
        return "bedrock"

    def speaks(self, path: str) -> bool:
        """Return whether a path is a verb of a model."""
        return _PATH.search(unquote(path)) is not None

    def open(self, method: str, path: str, query: str, headers: Mapping[str, str], body: bytes) -> ApiCall:  # noqa: ARG002
        """Read a request; conversing and invoking are metered, counting tokens is not."""
        found = _PATH.search(unquote(path))
        model, verb = found.groups() if found is not None else ("", "")
        metered = found is not None and method == "POST" and verb != "count-tokens"
        request = Request(body)
        asked = request.document
        limit = _limit(asked) if metered else None
        converses = verb in _CONVERSE
        return ApiCall(
            api=f"bedrock.{verb.replace('-', '_')}" if metered else _OTHER,
            metered=metered,
            model=model.rpartition("/")[2] if model.startswith("arn:") else model,
            stream=verb in _STREAMS,
            input_tokens_estimate=request.input_tokens_estimate if metered else 0,
            max_output_tokens=limit,
            tags=request.tags,
            body=request.edited(),
            fits_output=metered
            and bool(asked)
            and (converses or positive(asked.get("max_tokens")) is not None),
        )

    def with_output_limit(self, call: ApiCall, tokens: int) -> ApiCall | None:
        """Return `call` with a lower limit, which must stay above the thinking that was asked for."""
        asked = document(call.body) or {}
        fields = part(asked.get("additionalModelRequestFields"))
        for thinking in (part(asked.get("thinking")), part(fields.get("thinking"))):
            if tokens <= count(thinking.get("budget_tokens")):
                return None
        if call.api.startswith("bedrock.converse"):
            body = lowered(call.body, ("maxTokens",), tokens, ("inferenceConfig",))
        else:
            body = lowered(call.body, ("max_tokens",), tokens)
        return call._replace(body=body, max_output_tokens=tokens)

    def reader(
        self, call: ApiCall, status: int, content_type: str, headers: Mapping[str, str] = NO_HEADERS
    ) -> Reader:
        """Return a fresh reader for the answer to `call`; a stream that worked is of frames, whatever it is called."""
        converses = call.api.startswith("bedrock.converse")
        shape = CONVERSE if converses else invoke_shape(headers)
        if call.metered and call.stream and 200 <= status < 300:
            return UndecidedReader(
                lambda: JsonReader(call, status, shape),
                lambda: ConverseStream(call, status) if converses else InvokeStream(call, status, headers),
                _is_frames,
            )
        if call.metered:
            return JsonReader(call, status, shape)
        return reader_for(call, status, content_type, shape, ConverseStream)

    def credential_headers(self, api_key: str) -> dict[str, str]:
        """Return a bearer token (a Bedrock API key); signatures come from a signer."""
        return {"authorization": f"Bearer {api_key}"}

    def error_body(self, problem: Problem, stream: bool) -> bytes:  # noqa: ARG002
        """Return AWS's error shape: `__type` is what its SDKs raise, the code and the details stand beside it."""
        kind = _EXCEPTIONS.get(problem.status, "InternalServerException")
        error = {"__type": kind, "message": problem.message, "code": problem.code, "type": problem.type}
        return orjson.dumps({**problem.details, **error})


def _is_frames(first: bytes) -> bool | None:
    begins = first.lstrip()[:1]
    return None if not begins else begins not in b"{["


def _limit(asked: Mapping[str, object]) -> int | None:
    for parent, name in _LIMITS:
        found = positive((part(asked.get(parent)) if parent else asked).get(name))
        if found is not None:
            return found
    return None
