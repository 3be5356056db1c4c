"""Recorded provider traffic, every strict case of the three APIs: the right usage, the right model, the same bytes."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bursar_sidecar.providers.base import Metered, Outcome, UsageItem, dialect_named

CORPUS = Path(__file__).resolve().parents[3] / "shared" / "corpus" / "open.jsonl"

#: Which dialect reads which recorded API of which provider.
SPOKEN = {"openai": "openai", "anthropic": "anthropic", "google": "gemini"}

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


def strict_cases() -> Iterator[dict[str, Any]]:
    with CORPUS.open(encoding="utf-8") as lines:
        for line in lines:
            case = json.loads(line)
            spoken = SPOKEN.get(case["provider"])
            if case["strict"] and spoken is not None and case["api"].startswith(f"{spoken}."):
                yield case


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
    dialect = dialect_named(SPOKEN[case["provider"]])
    request = body_of(case, "request_body")
    path, _, query = case["path"].partition("?")
    call = dialect.open(case["method"], path, query, case["request_headers"], request)
    assert call.usage_inserted or call.body == request
    headers = {name.lower(): value for name, value in case["response_headers"].items()}
    reader = dialect.reader(call, case["response_status"], headers.get("content-type", ""))
    answer = body_of(case, "response_body")
    passed = b"".join(reader.feed(piece) for piece in pieces(answer, rng)) + reader.end()
    assert passed + reader.held == answer
    assert reader.complete
    return reader.metered()


def differences(case: dict[str, Any], metered: Metered) -> list[str]:
    expected = case["expected"]
    if not expected["billable"]:
        return [f"billed: {metered.items}"] if metered.items else []
    if not expected["usage_present"]:
        return [] if metered.estimated and metered.items else ["not estimated"]
    found = [] if metered.outcome is Outcome.SUCCESS else [f"outcome {metered.outcome}"]
    if metered.estimated and expected["input_tokens"] is not None:
        found.append("estimated")
    main, *others = metered.items
    if expected["model"] and main.model != expected["model"]:
        found.append(f"model {main.model}, not {expected['model']}")
    if expected.get("service_tier", main.service_tier) != main.service_tier:
        found.append(f"tier {main.service_tier}, not {expected['service_tier']}")
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


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "in pieces"])
def test_every_strict_recording_is_read_right(cut: bool) -> None:
    """F100, F102, F103: model, service tier and every count as the provider billed them, however the bytes come."""
    needs_corpus()
    wrong: list[str] = []
    count = 0
    for case in strict_cases():
        count += 1
        metered = read(case, random.Random(case["id"]) if cut else None)
        wrong += [f"{case['id']}: {one}" for one in differences(case, metered)]
    assert not wrong, "\n" + "\n".join(wrong)
    assert count > 300


def without_usage(event: bytes) -> bytes:
    """Return what the provider would have sent had nobody asked for usage."""
    if event == b"data: [DONE]":
        return event
    document = json.loads(event.removeprefix(b"data: "))
    if document["choices"] == [] and document["usage"]:
        return b""
    assert document["usage"] is None
    assert event.count(b',"usage":null') == 1
    return event.replace(b',"usage":null', b"")


def test_usage_that_only_bursar_asked_for_is_taken_out() -> None:
    """F099: the app sees the very bytes of a stream without `include_usage`, and the usage is read all the same."""
    needs_corpus()
    count = 0
    for case in strict_cases():
        if not (case["stream"] and "req_include_usage" in case["features"]):
            continue
        count += 1
        asked = {**case["request_body"], "stream": True}
        del asked["stream_options"]
        dialect = dialect_named("openai")
        call = dialect.open("POST", case["path"], "", {}, json.dumps(asked).encode())
        assert call.usage_inserted
        reader = dialect.reader(call, 200, "text/event-stream")
        answer = body_of(case, "response_body")
        passed = b"".join(reader.feed(piece) for piece in pieces(answer, random.Random(case["id"])))
        kept = [without_usage(event) for event in answer.split(b"\n\n")[:-1]]
        assert passed + reader.end() + reader.held == b"".join(event + b"\n\n" for event in kept if event)
        assert differences(case, reader.metered()) == []
    assert count >= 10
