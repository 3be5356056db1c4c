"""Recorded provider traffic, every case of every API: the right usage, model, tier and cost, and the same bytes."""

from __future__ import annotations

import json
import random

import pytest

from support.corpus import (
    READ_OTHERWISE,
    body_of,
    cases,
    differences,
    needs_corpus,
    pieces,
    read,
    upstreams,
)


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "in pieces"])
def test_every_recording_is_read_right(cut: bool) -> None:
    """F100, F102, F103: model, tier, provider's cost and every count as it was billed, however the bytes come."""
    needs_corpus()
    wrong: list[str] = []
    strict = 0
    for case in cases():
        strict += case["strict"]
        if case["id"] in READ_OTHERWISE and not case["strict"]:
            continue
        metered = read(case, random.Random(case["id"]) if cut else None)
        wrong += [f"{case['id']}: {one}" for one in differences(case, metered)]
    assert not wrong, "\n" + "\n".join(wrong)
    assert strict >= 700


def test_no_recording_is_set_aside_for_nothing() -> None:
    """A case that is listed with a reason is still read otherwise."""
    needs_corpus()
    listed = [case for case in cases() if case["id"] in READ_OTHERWISE]
    assert len(listed) == len(READ_OTHERWISE)
    assert [case["id"] for case in listed if not differences(case, read(case, None))] == []


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
    for case in cases():
        asked_for = case["stream"] and "req_include_usage" in case["features"]
        if case["provider"] != "openai" or not case["strict"] or not asked_for:
            continue
        count += 1
        asked = {**case["request_body"], "stream": True}
        del asked["stream_options"]
        dialect = upstreams()["openai"].dialect
        call = dialect.open("POST", case["path"], "", {}, json.dumps(asked).encode())
        assert call.usage_inserted
        reader = dialect.reader(call, 200, "text/event-stream")
        answer = body_of(case, "response_body")
        passed = b"".join(reader.feed(piece) for piece in pieces(answer, random.Random(case["id"])))
        kept = [without_usage(event) for event in answer.split(b"\n\n")[:-1]]
        assert passed + reader.end() + reader.held == b"".join(event + b"\n\n" for event in kept if event)
        assert differences(case, reader.metered()) == []
    assert count >= 10
