"""What a benchmark finds: ratios of two things measured side by side, the target, and the table of them."""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class Pace:
    """How long a run takes: so many rounds, each measuring every side for so many seconds; `calls` for the memory's."""

    seconds: float = 3.0
    rounds: int = 3
    calls: int = 100_000


@dataclass
class Figure:
    """One row of the table. `ours` and `against` are one value a round, in the same order; amounts are in `unit`.

    The ratio is the median of the rounds' own ratios: what disturbs a round disturbs both of its sides. A figure
    without `against` is compared with the target itself.
    """

    what: str
    against_what: str
    unit: str
    ours: list[float]
    against: list[float]
    target: float
    at_least: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """The ratio of each round; without another side, our own values."""
        if not self.against:
            return self.ours
        return [
            ours / against if against else float("inf")
            for ours, against in zip(self.ours, self.against, strict=True)
        ]

    @property
    def ratio(self) -> float:
        """The median of the rounds' ratios."""
        return statistics.median(self.ratios)

    @property
    def ok(self) -> bool:
        """Whether the target is met."""
        return self.ratio >= self.target if self.at_least else self.ratio <= self.target

    def document(self) -> dict[str, Any]:
        """Return the row for a file of results."""
        return {
            "what": self.what,
            "against": self.against_what,
            "unit": self.unit,
            "ours": [_rounded(value) for value in self.ours],
            "theirs": [_rounded(value) for value in self.against],
            "ratio": _rounded(self.ratio),
            "ratios": [_rounded(value) for value in self.ratios],
            "target": self.target,
            "at_least": self.at_least,
            "ok": self.ok,
            "notes": self.notes,
        }


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


async def side_by_side(
    pace: Pace, ours: Callable[[], Awaitable[A]], against: Callable[[], Awaitable[B]]
) -> list[tuple[A, B]]:
    """Measure both sides in turns; which goes first alternates, so that a drift of the machine favours neither."""
    pairs = []
    for number in range(pace.rounds):
        if number % 2:
            theirs = await against()
            pairs.append((await ours(), theirs))
        else:
            mine = await ours()
            pairs.append((mine, await against()))
    return pairs


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value that `percent` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100).__int__() - 1)]


def amount(value: float, unit: str) -> str:
    """Return a value as a person reads it."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f} {unit}".rstrip()


def table(figures: Sequence[Figure]) -> str:
    """Return the rows under their headings, with the notes below."""
    head = ("what", "ours", "against", "ratio", "target", "")
    rows = [_cells(figure) for figure in figures]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = [_line(head, widths), "  ".join("-" * width for width in widths[:-1])]
    lines += [_line(row, widths) for row in rows]
    noted = [f"  {figure.what}: {note}" for figure in figures for note in figure.notes]
    return "\n".join([*lines, *(["", "Beside that:"] if noted else []), *noted])


def _cells(figure: Figure) -> tuple[str, ...]:
    sign = "≥" if figure.at_least else "≤"
    alone = not figure.against
    spread = f" ({min(figure.ratios):.2f}–{max(figure.ratios):.2f})" if len(figure.ratios) > 1 else ""
    return (
        figure.what,
        amount(statistics.median(figure.ours), figure.unit),
        "–" if alone else f"{amount(statistics.median(figure.against), figure.unit)} {figure.against_what}",
        "–" if alone else f"{figure.ratio:.2f}{spread}",
        f"{sign} {amount(figure.target, figure.unit) if alone else f'{figure.target:g}x'}",
        "ok" if figure.ok else "short",
    )


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    parts = [
        cell.rjust(width) if column in (1, 3, 4) else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(parts).rstrip()
