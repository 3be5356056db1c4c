"""Every wire format by hand-written fixtures: usage read, bytes kept, whatever the pieces are cut like."""

from __future__ import annotations

import random

import pytest

from support.wire import CASES, Case, shown


def pieces(body: bytes, size_max: int, rng: random.Random) -> list[bytes]:
    cut: list[bytes] = []
    while body:
        size = rng.randint(1, size_max)
        cut.append(body[:size])
        body = body[size:]
    return cut


def check(case: Case, cut: list[bytes]) -> None:
    reader = case.reader()
    passed = b"".join(reader.feed(piece) for piece in cut) + reader.end()
    metered = reader.metered()
    expected = case.expected
    assert passed + reader.held == case.app
    assert reader.held == case.held
    assert reader.complete is expected["complete"]
    assert metered.outcome.name == expected["outcome"]
    assert metered.estimated is expected["estimated"]
    assert metered.provider_cost_usd == expected.get("provider_cost_usd")
    assert shown(metered) == expected["items"]


@pytest.mark.parametrize("name", CASES)
def test_the_provider_gets_the_apps_body(name: str) -> None:
    """F099: byte for byte, but for an inserted `include_usage`."""
    case = Case(name)
    call = case.opened()
    assert call.body == case.upstream_request
    assert call.usage_inserted is (case.upstream_request != case.request)


@pytest.mark.parametrize("name", CASES)
def test_an_answer_in_one_piece(name: str) -> None:
    case = Case(name)
    check(case, [case.answer])


@pytest.mark.parametrize("name", CASES)
def test_an_answer_byte_by_byte(name: str) -> None:
    case = Case(name)
    check(case, [bytes([byte]) for byte in case.answer])


@pytest.mark.parametrize("name", CASES)
def test_an_answer_in_random_pieces(name: str) -> None:
    case = Case(name)
    rng = random.Random(name)
    for size_max in (3, 20, 300):
        check(case, pieces(case.answer, size_max, rng))


@pytest.mark.parametrize("name", [name for name in CASES if "stream" in name or "array" in name])
def test_content_is_never_held(name: str) -> None:
    """Of a stream only the terminal marker waits for the Deduct: all before it has passed when it comes."""
    case = Case(name)
    reader = case.reader()
    assert reader.feed(case.answer) + reader.end() == case.app[: len(case.app) - len(case.held)]


@pytest.mark.parametrize("name", CASES)
def test_an_answer_cut_anywhere_is_metered(name: str) -> None:
    """F103: what an answer did not come to say is flagged as estimated, and no byte is lost or made up."""
    case = Case(name)
    for stop in range(0, len(case.answer), 7):
        reader = case.reader()
        passed = reader.feed(case.answer[:stop])
        metered = reader.metered()
        if metered.items and not metered.estimated:
            assert shown(metered) == case.expected["items"]
        came = passed + reader.end() + reader.held
        if case.app == case.answer:
            assert came == case.answer[:stop]


#: Answers of one JSON object, of which everything is known.
OBJECTS = [
    name
    for name in CASES
    if Case(name).answer[:1] == b"{"
    and Case(name).held == Case(name).answer
    and not Case(name).expected["estimated"]
]


@pytest.mark.parametrize("padding", [b'"padding":"' + b"x" * (2 << 20) + b'",', b" " * (2 << 20)])
@pytest.mark.parametrize("name", OBJECTS)
def test_an_answer_too_large_to_keep_says_the_same(name: str, padding: bytes) -> None:
    """F099: it passes as it comes, all but its last piece."""
    case = Case(name)
    reader = case.reader()
    body = case.answer[:1] + padding + case.answer[1:]
    cut = [body[at : at + (64 << 10)] for at in range(0, len(body), 64 << 10)]
    passed = b"".join([reader.feed(piece) for piece in cut])
    assert (passed, reader.end(), reader.held) == (body[: -len(cut[-1])], b"", cut[-1])
    metered = reader.metered()
    assert (shown(metered), metered.estimated) == (case.expected["items"], False)
    assert (metered.outcome.name, reader.complete) == (case.expected["outcome"], True)
    assert metered.provider_cost_usd == case.expected.get("provider_cost_usd")
