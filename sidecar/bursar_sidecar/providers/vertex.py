"""Google's Vertex AI: Gemini's API at longer paths, and the models of other publishers under the same roof."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import unquote

from bursar_sidecar.providers.anthropic import Anthropic, messages_call
from bursar_sidecar.providers.base import NO_HEADERS, ApiCall, Problem, Reader
from bursar_sidecar.providers.gemini import Gemini
from bursar_sidecar.providers.openai import OpenAI
from bursar_sidecar.providers.request import Request

_RAW = re.compile(r"(?:^|/)publishers/([^/]+)/models/([^/:]+):(rawPredict|streamRawPredict)$")


class Vertex:
    """The dialect of `aiplatform.googleapis.com`: Gemini's; under `rawPredict` Anthropic's for Claude, OpenAI's for the rest.

    The model is always in the path.
    """

    def __init__(self) -> None:
        self._gemini = Gemini()
        self._anthropic = Anthropic()
        self._openai = OpenAI(inserts_usage=False)

    @property
    def name(self) -> str:
        """The name that the configuration uses."""
        return "vertex"

    def speaks(self, path: str) -> bool:
        """Return whether a path is one of a publisher's model."""
        return _RAW.search(unquote(path)) is not None or self._gemini.speaks(path)

    def open(self, method: str, path: str, query: str, headers: Mapping[str, str], body: bytes) -> ApiCall:
        """Read a request; generating, embedding and predicting are metered."""
        raw = _RAW.search(unquote(path))
        if raw is None:
            return self._gemini.open(method, path, query, headers, body)
        publisher, model, verb = raw.groups()
        stream = verb == "streamRawPredict"
        if publisher != "anthropic":
            call = self._openai.open(method, "/chat/completions", query, headers, body)
            return call._replace(model=model, stream=stream or call.stream)
        metered = method == "POST" and model != "count-tokens"
        return messages_call(Request(body), metered, model, stream or None)

    def with_output_limit(self, call: ApiCall, tokens: int) -> ApiCall | None:
        """Return `call` with a lower limit."""
        return self._of(call).with_output_limit(call, tokens)

    def reader(
        self, call: ApiCall, status: int, content_type: str, headers: Mapping[str, str] = NO_HEADERS
    ) -> Reader:
        """Return a fresh reader for the answer to `call`."""
        return self._of(call).reader(call, status, content_type, headers)

    def credential_headers(self, api_key: str) -> dict[str, str]:
        """Return Google's header for an API key (Vertex in express mode); tokens come from a signer."""
        return self._gemini.credential_headers(api_key)

    def error_body(self, problem: Problem, stream: bool) -> bytes:
        """Return Google's error shape."""
        return self._gemini.error_body(problem, stream)

    def _of(self, call: ApiCall) -> Gemini | Anthropic | OpenAI:
        if call.api.startswith("anthropic."):
            return self._anthropic
        return self._openai if call.api.startswith("openai.") else self._gemini
