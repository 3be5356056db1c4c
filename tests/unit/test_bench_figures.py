"""The benchmarks' own arithmetic: medians of ratios, percentiles, the table."""

from __future__ import annotations

import pytest
from bench.figures import Figure, Pace, percentile, side_by_side, table
from bench.upstream import EVENTS, STREAM, WHOLE


def test_a_ratio_is_the_median_of_the_rounds_own() -> None:
    figure = Figure("calls", "proxy", "/s", [100.0, 10.0, 90.0], [200.0, 20.0, 100.0], 0.5, at_least=True)
    assert figure.ratios == [0.5, 0.5, 0.9]
    assert figure.ratio == 0.5
    assert figure.ok
    assert not Figure("calls", "proxy", "/s", [1.0], [2.0], 0.51, at_least=True).ok
    assert Figure("time", "", "s", [0.4, 0.5], [], 0.6).ok
    assert not Figure("time", "", "s", [0.7], [], 0.6).ok


@pytest.mark.parametrize(("percent", "expected"), [(50, 50), (99, 99), (100, 100), (0, 1), (99.5, 100)])
def test_percentiles_are_values_that_were_measured(percent: float, expected: int) -> None:
    assert percentile(list(range(100, 0, -1)), percent) == expected


def test_the_table_says_what_falls_short() -> None:
    figures = [
        Figure(
            "pairs/s", "TPC-B", "/s", [1500.0, 1600.0], [1000.0, 1000.0], 1.5, at_least=True, notes=["a note"]
        ),
        Figure("start", "", "s", [0.75], [], 0.6),
    ]
    lines = [" ".join(line.split()) for line in table(figures).splitlines()]
    assert lines[2] == "pairs/s 1,550 /s 1,000 /s TPC-B 1.55 (1.50–1.60) ≥ 1.5x ok"
    assert lines[3] == "start 0.75 s – – ≤ 0.60 s short"
    assert lines[-1] == "pairs/s: a note"


async def test_sides_take_turns_in_going_first() -> None:
    order: list[str] = []

    async def ours() -> int:
        order.append("ours")
        return len(order)

    async def against() -> int:
        order.append("against")
        return len(order)

    assert await side_by_side(Pace(rounds=3), ours, against) == [(1, 2), (4, 3), (5, 6)]


def test_the_canned_answers_are_what_they_claim() -> None:
    """A stream of 34 events that ends as HTTP says, and a whole answer of the length that it states."""
    stream = b"".join(STREAM)
    assert stream.count(b"data: ") == EVENTS == len(STREAM)
    assert stream.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    head, _, body = WHOLE.partition(b"\r\n\r\n")
    assert f"content-length: {len(body)}".encode() in head
