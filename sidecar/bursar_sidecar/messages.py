"""Turns calls into the contract's messages."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from bursar.v1 import metering_pb2
from bursar.v1.metering_service_pb2 import CheckRequest, DeductRequest
from bursar_sidecar.money import usd_of_text
from bursar_sidecar.providers.base import Metered, Outcome, Usage, UsageItem

_OUTCOMES = {outcome: getattr(metering_pb2, f"OUTCOME_{outcome.value}") for outcome in Outcome}
#: The contract's bound on the items of one Deduct.
_ITEMS_MAX = 16
_NAME_MAX_CHARACTERS = 200
#: What a call is taken to generate where nothing more is heard of it (S11: without any history).
_UNKNOWN_OUTPUT_TOKENS = 1024
_NO_TAGS: Mapping[str, str] = MappingProxyType({})


class Ask(NamedTuple):
    """Who wants to call what: what a Check asks and a Deduct repeats.

    `provider` is its name in prices, `user_id` names the user that the key acts for, if it may; `body_user` is whom the
    request's own body names. `can_fit_output`: a lower output limit can be put on the request.
    """

    key_sha256: str
    provider: str
    model: str = ""
    input_tokens_estimate: int = 0
    max_output_tokens: int | None = None
    tags: Mapping[str, str] = _NO_TAGS
    session_id: str = ""
    user_id: str = ""
    body_user: str = ""
    can_fit_output: bool = False


def check_payload(request_id: str, ask: Ask) -> bytes:
    """Return the Check in wire format. Raises ValueError where a text cannot be sent (lone surrogates)."""
    return CheckRequest(
        request_id=request_id,
        api_key_sha256=ask.key_sha256,
        user_id=ask.user_id,
        provider=ask.provider,
        model=ask.model,
        input_tokens_estimate=ask.input_tokens_estimate,
        max_output_tokens=ask.max_output_tokens,
        tags=ask.tags,
        session_id=ask.session_id,
        can_fit_output=ask.can_fit_output,
        body_user=ask.body_user,
    ).SerializeToString()


def deduct_payload(request_id: str, ask: Ask, metered: Metered, start_ns: int, end_ns: int) -> bytes:
    """Return the Deduct in wire format; instants in nanoseconds since 1970."""
    return DeductRequest(
        request_id=request_id,
        provider=ask.provider,
        items=[_item(item) for item in metered.items[:_ITEMS_MAX]],
        outcome=_OUTCOMES[metered.outcome],
        estimated=metered.estimated,
        provider_cost_usd=usd_of_text(metered.provider_cost_usd),
        start_time=_instant(start_ns),
        end_time=_instant(max(end_ns, start_ns)),
        api_key_sha256=ask.key_sha256,
        user_id=ask.user_id,
        tags=ask.tags,
        session_id=ask.session_id,
        body_user=ask.body_user,
    ).SerializeToString()


# Plain mappings: the message is then made in one step, which costs half of making its parts first.
def _item(item: UsageItem) -> Mapping[str, object]:
    usage = {name: value for name, value in zip(Usage._fields, item.usage, strict=True) if value}
    return {"model": _name(item.model), "service_tier": _name(item.service_tier), "usage": usage}


def _instant(instant_ns: int) -> Mapping[str, int]:
    seconds, rest = divmod(instant_ns // 1000, 1_000_000)
    return {"seconds": seconds, "nanos": rest * 1000}


def unheard(ask: Ask) -> Metered:
    """Return what a call is charged of which nothing was heard after it was sent, and for which no hold stands."""
    limit = ask.max_output_tokens
    output = _UNKNOWN_OUTPUT_TOKENS if limit is None else min(limit, _UNKNOWN_OUTPUT_TOKENS)
    usage = Usage(input_tokens=ask.input_tokens_estimate, output_tokens=output, requests=1)
    return Metered((UsageItem(ask.model, "", usage),), True, None, Outcome.PARTIAL)


def _name(text: str) -> str:
    """Return a provider's word as it can be sent and stored: no control characters, no lone surrogates, not endless."""
    if text.isascii() and text.isprintable() and len(text) <= _NAME_MAX_CHARACTERS:
        return text
    sound = text.encode("utf-8", "replace").decode()[:_NAME_MAX_CHARACTERS]
    return "".join(character for character in sound if character.isprintable())
