"""Every wire format by hand-written fixtures: usage read, bytes kept, whatever the pieces are cut like."""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from bursar_sidecar.providers.base import ApiCall, Dialect, Metered, Reader
from bursar_sidecar.upstreams import resolve
from support.eventstream import frame

WIRE = Path(__file__).parent.parent / "golden" / "wire"
CASES = sorted(path.name for path in WIRE.iterdir() if path.is_dir())
UPSTREAMS, _ = resolve({name: {"URL": "https://provider.test"} for name in ("azure", "bedrock")}, {})


class Case:
    """One fixture folder."""

    def __init__(self, name: str) -> None:
        self.folder = WIRE / name
        self.call: dict[str, Any] = json.loads((self.folder / "call.json").read_text())
        self.expected: dict[str, Any] = self.call["expected"]
        self.request = next(self.folder.glob("request.*")).read_bytes()
        self.answer, self.held = self._body("answer")
        app = next(self.folder.glob("app.*"), None)
        self.app = app.read_bytes() if app is not None else self.answer
        if "held" in self.expected:
            self.held = self.expected["held"].encode()
        upstream = self.folder / "upstream_request.json"
        self.upstream_request = upstream.read_bytes() if upstream.exists() else self.request

    def _body(self, name: str) -> tuple[bytes, bytes]:
        """Return the body, and what of it is held unless the fixture says otherwise: all, or frames from the end."""
        file = next(self.folder.glob(f"{name}.*"))
        if file.suffix != ".frames":
            return file.read_bytes(), file.read_bytes()
        frames = [frame(**one) for one in json.loads(file.read_text())]
        kept = len(frames) - self.expected["held_frames"]
        cut = self.call.get("cut_bytes", 0)
        body = b"".join(frames)
        return body[: len(body) - cut], b"".join(frames[kept:])[: len(body) - cut]

    @property
    def dialect(self) -> Dialect:
        return UPSTREAMS[self.call["upstream"]].at(self.call["path"]).dialect

    def opened(self) -> ApiCall:
        query = self.call.get("query", "")
        return self.dialect.open(self.call["method"], self.call["path"], query, {}, self.request)

    def reader(self) -> Reader:
        call, headers = self.call, self.call.get("headers", {})
        return self.dialect.reader(self.opened(), call["status"], call["content_type"], headers)


def shown(metered: Metered) -> list[dict[str, Any]]:
    """Return the items as the fixtures write them: only counts that are not 0."""
    return [
        {
            "model": item.model,
            "service_tier": item.service_tier,
            "usage": {name: count for name, count in asdict(item.usage).items() if count},
        }
        for item in metered.items
    ]


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
