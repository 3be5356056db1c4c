"""What the proxy may ask about a provider's API, without any I/O: the interface that every dialect fulfils.

A *dialect* is one wire format (OpenAI's, Anthropic's, Gemini's, ...). It reads what a request asks (`ApiCall`), reads
what an answer says it consumed (`Reader`, `Metered`), and says no in words that the provider's own SDKs understand
(`error_body`). Upstreams are many, dialects few.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple, Protocol

#: Names that `dialect_named` knows.
DIALECTS: tuple[str, ...] = ("openai", "anthropic", "gemini", "vertex", "bedrock", "cohere", "ollama")

#: A request whose body has no tags.
NO_TAGS: Mapping[str, str] = MappingProxyType({})

#: The most that is held back of a JSON answer, and the most kept of any one event (contract: 1 MiB; own bound: 16 MiB).
HELD_MAX_BYTES = 1 << 20
EVENT_MAX_BYTES = 16 << 20


class Outcome(enum.Enum):
    """How a call ended; the names are those of `bursar.v1.Outcome` without their prefix."""

    SUCCESS = "SUCCESS"
    PARTIAL = "PARTIAL"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


class Usage(NamedTuple):
    """Units that one model consumed; none is negative.

    `input_tokens` includes cached reads and writes, `output_tokens` includes reasoning; the parts are of which.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0
    reasoning_tokens: int = 0
    input_audio_tokens: int = 0
    output_audio_tokens: int = 0
    input_image_tokens: int = 0
    output_image_tokens: int = 0
    images: int = 0
    web_searches: int = 0
    requests: int = 0


class UsageItem(NamedTuple):
    """What one model consumed in one service tier ("" when the provider names none)."""

    model: str
    service_tier: str
    usage: Usage


class Metered(NamedTuple):
    """What an answer, as far as it has come, says it consumed.

    `items` is empty where no usage is known. `provider_cost_usd` is the provider's own figure, the decimal text as it
    wrote it. `outcome` is as far as the body tells. `work_id` is the provider's name for work that goes on in the
    background, and for an answer whose usage is estimated; `ended` is what work consumed, on an answer that says that it
    is over.
    """

    items: tuple[UsageItem, ...]
    estimated: bool
    provider_cost_usd: str | None
    outcome: Outcome
    work_id: str = ""
    ended: Metered | None = None


class ApiCall(NamedTuple):
    """What a request asks of the provider.

    `metered`: an answer is expected to carry usage (generation, embeddings); any other path is a call without usage.
    `model` is "" when unknown. `body` is what goes upstream: byte for byte the app's, but for removed tags and an
    inserted `include_usage`. `user` is OpenAI's field of that name. `fits_output`: `with_output_limit` can lower what
    the model may generate. `work_id` names the work in the background that the call asks about.
    """

    api: str
    metered: bool
    model: str
    stream: bool
    input_tokens_estimate: int
    max_output_tokens: int | None
    tags: Mapping[str, str] = NO_TAGS
    user: str | None = None
    body: bytes = b""
    usage_inserted: bool = False
    fits_output: bool = False
    work_id: str = ""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why the sidecar answers itself: one refusal, before a dialect puts it into its API's error shape.

    `code` is for programs (`BUDGET_CAP_HARD`), `type` is the API-style kind (`insufficient_budget`), `should_retry`
    becomes the header `x-should-retry` unless it is None. `details` holds JSON values that travel beside the message.
    """

    status: int
    code: str
    type: str
    message: str
    retry_after_seconds: int | None = None
    should_retry: bool | None = None
    details: dict[str, object] = field(default_factory=dict)


class InvalidTagsError(ValueError):
    """`metadata.tags` is an object whose content cannot be tags: `field` says which, the message says why."""

    def __init__(self, field_name: str, message: str) -> None:
        super().__init__(message)
        self.field = field_name
        self.message = message


#: The shorter name of `InvalidTagsError`.
InvalidTags = InvalidTagsError


class Reader(Protocol):
    """One answer's body, fed decoded bytes in pieces cut anywhere; a stream takes constant memory."""

    def feed(self, data: bytes) -> bytes:
        """Return what may go to the app now; never raises, whatever the bytes are."""
        ...

    def end(self) -> bytes:
        """Return what else may go to the app before the Deduct, the upstream body having ended (normally nothing)."""
        ...

    @property
    def complete(self) -> bool:
        """Whether the terminal marker, the finishing event or the whole JSON body has been seen.

        Where only the end of the body ends a stream (Gemini's events, a chat without `[DONE]`) it is known after `end`.
        """
        ...

    @property
    def held(self) -> bytes:
        """What goes to the app only once the Deduct is committed: terminal marker, JSON answer, or its last piece.

        Read it at the end: until then more can come, and Gemini's last event is released when another follows it.
        """
        ...

    def metered(self, outcome: Outcome | None = None) -> Metered:
        """Return what is known so far, at any time; after an abort an estimate of what was received, flagged.

        `outcome` overrides what the body tells (the proxy knows that an app hung up).
        """
        ...


@dataclass(frozen=True, slots=True)
class Later:
    """How a provider says afterwards what one of its answers consumed: a GET beside the call, with the answer's id.

    What follows the last `after` in the call's path gives way to `path` ("" keeps the whole), its query to `query` where
    there is one; `{id}` stands for the id in both. The id is what the answer's `header` says, else what its body does
    (`Metered.work_id`). `reader` reads what comes; as long as that is work not done yet, it is asked again.
    """

    reader: Callable[[ApiCall, int], Reader]
    path: str
    after: str = ""
    query: str = ""
    header: str = ""


#: Returns how a provider is asked afterwards about a call at a path; None where it has nothing that could be asked.
LaterRule = Callable[[ApiCall, str], Later | None]

#: An answer whose headers say nothing.
NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class Dialect(Protocol):
    """One provider API, shared by all calls: it knows nothing of any of them."""

    @property
    def name(self) -> str:
        """The name that the configuration uses."""
        ...

    def speaks(self, path: str) -> bool:
        """Return whether this API has something at `path`: an upstream can speak several APIs, each at its own paths."""
        ...

    def open(self, method: str, path: str, query: str, headers: Mapping[str, str], body: bytes) -> ApiCall:
        """Read a request; `path` is the provider's (no upstream prefix), `query` has no question mark.

        An odd body passes through with what is known of it. Raises InvalidTags where `metadata.tags` is an object
        with anything but text in it, for the app to hear as a 400.
        """
        ...

    def with_output_limit(self, call: ApiCall, tokens: int) -> ApiCall | None:
        """Return `call`, which `fits_output`, generating at most `tokens` over all its answers; else unchanged.

        None where the API has no such call: fewer tokens than answers, or than the thinking asked for.
        """
        ...

    def reader(
        self, call: ApiCall, status: int, content_type: str, headers: Mapping[str, str] = NO_HEADERS
    ) -> Reader:
        """Return a fresh reader for the answer to `call`; `headers` are looked up in lower case."""
        ...

    def credential_headers(self, api_key: str) -> dict[str, str]:
        """Return the headers that carry the provider's own key."""
        ...

    def error_body(self, problem: Problem, stream: bool) -> bytes:
        """Return the JSON that this API's SDKs read as an error of `problem.status`."""
        ...


def dialect_named(name: str) -> Dialect:
    """Return the dialect called `name`; raises LookupError for a name that is not in DIALECTS."""
    from bursar_sidecar.providers.registry import REGISTRY  # late: the dialects import this module

    return REGISTRY[name]


#: Bytes of request or answer text taken for one token where nothing counted them. English prose and JSON come to
#: about four (OpenAI's own rule of thumb); other scripts take more bytes a token, not fewer.
BYTES_PER_TOKEN = 4


def token_estimate(text_bytes: int) -> int:
    """Return the tokens that `text_bytes` bytes of UTF-8 text are taken for: a quarter, rounded up, none for none."""
    return -(-max(text_bytes, 0) // BYTES_PER_TOKEN)
