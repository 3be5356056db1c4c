"""Recorded provider traffic (../shared/corpus, not part of the project): its cases, and what is expected of them."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterator
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from bursar_sidecar.providers.base import Metered, Outcome, UsageItem
from bursar_sidecar.upstreams import Upstream, resolve

CORPUS = Path(__file__).resolve().parents[3] / "shared" / "corpus" / "open.jsonl"

#: What the recordings call a provider where the sidecar's name for it is another one.
NAMES = {"google": "gemini", "google-vertex": "vertex", "aws-bedrock": "bedrock"}
DIALECTS = {"anthropic-compatible": "anthropic"}

#: What the recording calls a count, and what usage calls it.
COUNTS = {
    "input_tokens": "input_tokens",
    "output_tokens": "output_tokens",
    "cache_read_tokens": "cache_read_tokens",
    "cache_write_5m_tokens": "cache_write_5m_tokens",
    "cache_write_1h_tokens": "cache_write_1h_tokens",
    "reasoning_tokens": "reasoning_tokens",
    "input_audio_tokens": "input_audio_tokens",
    "output_audio_tokens": "output_audio_tokens",
    "input_image_tokens": "input_image_tokens",
    "output_image_tokens": "output_image_tokens",
    "web_search_requests": "web_searches",
}

#: Service tiers that a recording has by the number of an enum, by the name that the API gives the number.
TIERS: dict[object, str] = {1: "ON_DEMAND"}


@cache
def upstreams() -> dict[str, Upstream]:
    """Return the upstreams that this version knows, and those of the recordings as configuration alone."""
    names = {NAMES.get(case["provider"], case["provider"]) for case in cases()}
    known, missing = resolve({}, {})
    settings = {
        name: {
            "URL": "https://provider.test",
            "DIALECT": DIALECTS.get(name, ""),
            "INCLUDE_USAGE": "off" if name not in missing else "",
        }
        for name in names - known.keys()
    }
    return resolve(settings, {})[0]


def cases() -> Iterator[dict[str, Any]]:
    with CORPUS.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def body_of(case: dict[str, Any], name: str) -> bytes:
    packed, plain = case.get(f"{name}_b64"), case.get(name)
    if packed is not None:
        return base64.b64decode(packed)
    if isinstance(plain, str):
        return plain.encode()
    return b"" if plain is None else json.dumps(plain).encode()


def pieces(body: bytes, rng: random.Random | None) -> Iterator[bytes]:
    at = 0
    while at < len(body):
        size = len(body) if rng is None else rng.choice((1, 2, 3, 7, 50, 300, 4000))
        yield body[at : at + size]
        at += size


def read(case: dict[str, Any], rng: random.Random | None) -> Metered:
    """Return what is metered of the recorded answer, its bytes having come through unchanged."""
    path, _, query = case["path"].partition("?")
    dialect = upstreams()[NAMES.get(case["provider"], case["provider"])].at(path).dialect
    request = body_of(case, "request_body")
    call = dialect.open(case["method"], path, query, case["request_headers"], request)
    assert call.usage_inserted or call.body == request
    headers = {name.lower(): value for name, value in case["response_headers"].items()}
    reader = dialect.reader(call, case["response_status"], headers.get("content-type", ""), headers)
    answer = body_of(case, "response_body")
    passed = b"".join(reader.feed(piece) for piece in pieces(answer, rng)) + reader.end()
    if not call.usage_inserted:
        assert passed + reader.held == answer
    metered = reader.metered()
    assert reader.complete or metered.outcome is Outcome.FAILED
    return metered


def differences(case: dict[str, Any], metered: Metered) -> list[str]:
    expected = case["expected"]
    found = []
    cost, stated = metered.provider_cost_usd, expected.get("provider_cost_usd")
    if (cost is None) != (stated is None) or (cost is not None and float(Decimal(cost)) != stated):
        found.append(f"the provider's cost {cost}, not {stated}")
    if not expected["billable"]:
        return found + ([f"billed: {metered.items}"] if metered.items else [])
    if not metered.items:
        return [*found, "not billed"]
    main, *others = metered.items
    if expected["model"] and main.model != expected["model"]:
        found.append(f"model {main.model}, not {expected['model']}")
    tier = expected.get("service_tier", main.service_tier)
    if main.service_tier != TIERS.get(tier, tier):
        found.append(f"tier {main.service_tier}, not {tier}")
    if expected["usage_present"]:
        found += [] if metered.outcome is Outcome.SUCCESS else [f"outcome {metered.outcome}"]
        if metered.estimated and expected["input_tokens"] is not None:
            found.append("estimated")
    billed = dict(expected.get("billable_by_model") or {})
    found += counted(main, expected | billed.pop("(request model)", {}))
    if {other.model for other in others} != set(billed):
        found.append(f"models {others}, not {set(billed)}")
    for other in others:
        found += counted(other, billed.get(other.model, {}))
    return found


def counted(item: UsageItem, expected: dict[str, Any]) -> list[str]:
    usage = {name: getattr(item.usage, ours) for name, ours in COUNTS.items()}
    usage["cache_write_tokens"] = usage["cache_write_5m_tokens"] + usage["cache_write_1h_tokens"]
    return [
        f"{item.model} {name}: {count}, not {expected[name]}"
        for name, count in usage.items()
        if expected.get(name) is not None and expected[name] != count
    ]


def needs_corpus() -> None:
    if not CORPUS.exists():
        pytest.skip("no recorded traffic: ../shared/corpus/open.jsonl (the wire fixtures cover each format)")


#: Cases that are read otherwise than their recording says, and why that is right; none of them is strict.
CLAMPED = "more cached than prompt tokens: cut to the prompt, as the case's own note asks"
UNKNOWN_API = "an API of a provider that the sidecar does not know: it has no usage that could be billed by"
READ_OTHERWISE = {
    "aleph-alpha.complete-e5a3a0d596": UNKNOWN_API,
    "azure.chat-89d1d845df": CLAMPED,
    "azure.chat-a883ef126d": CLAMPED,
    "azure.chat-da50b78f0a": CLAMPED,
    "azure.chat.stream-0acc7eb893": CLAMPED,
    "azure.chat.stream-3ad6f9fdb8": CLAMPED,
    "azure.chat.stream-6557bfd437": CLAMPED,
    "deepgram.other-3f2befd50d": UNKNOWN_API,
    "deepgram.other-861c18bc3e": UNKNOWN_API,
    "deepgram.other-dd5e415ccd": UNKNOWN_API,
    "google.interactions-ea710b1d12": "work in the background, not done yet: nothing is known to bill",
    "openai.responses.stream-b50115eddc": "failed without usage or text: nothing was consumed (S17)",
    "watsonx.generation-610b8d19fe": UNKNOWN_API,
    "watsonx.generation.stream-cfecf8d5f6": UNKNOWN_API,
    "watsonx.generation.stream-d9527b24aa": UNKNOWN_API,
    "xai.other-0e85af674a": UNKNOWN_API,
}
