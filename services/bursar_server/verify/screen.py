"""How the proof is shown: differences and the summary on stdout, progress on stderr; for people, or as lines of JSON."""

import json
from collections.abc import Mapping
from typing import TextIO

from bursar_server.kit.clock import Clock
from bursar_server.kit.money import usd_text
from bursar_server.verify.model import INVARIANTS, Difference, Outcome, Progress

_GREEN, _RED, _DIM, _PLAIN = "\x1b[32m", "\x1b[31m", "\x1b[2m", "\x1b[0m"
_CLEAR_LINE = "\r\x1b[K"
# How often progress is shown: on a terminal the line changes, elsewhere each time is a line more.
_TERMINAL_EVERY_S = 0.1
_LINES_EVERY_S = 5.0
# What grows while somebody waits.
_TOLD = ("entries", "calls", "audit events")


class Screen:
    """Shows one run.

    `colour` is for stdout; the line of progress changes in place where stderr is a terminal, `width` characters wide.
    """

    def __init__(
        self,
        out: TextIO,
        err: TextIO,
        clock: Clock,
        *,
        as_json: bool = False,
        colour: bool = False,
        width: int = 100,
    ) -> None:
        self._out = out
        self._err = err
        self._clock = clock
        self._as_json = as_json
        self._colour = colour
        self._live = err.isatty()
        self._started: float | None = None
        self._shown_at: float | None = None
        self._width = width
        self._on_screen = False
        self._tenant = ""

    def progress(self, progress: Progress) -> None:
        """Show how far it is, now and then."""
        self._tenant = progress.tenant
        now = self._clock.monotonic()
        if self._started is None or self._shown_at is None:
            self._started = self._shown_at = now
        every = _TERMINAL_EVERY_S if self._live else _LINES_EVERY_S
        if now - self._shown_at < every:
            return
        self._shown_at = now
        line = progress_line(progress, now - self._started)
        self._err.write(f"{_CLEAR_LINE}{line[: self._width - 1]}" if self._live else f"{line}\n")
        self._err.flush()
        self._on_screen = self._live

    def difference(self, difference: Difference) -> None:
        """Show a difference on a line of its own."""
        self._clear()
        if self._as_json:
            self._write(json.dumps(difference_json(difference), ensure_ascii=False))
        else:
            line = difference_line(difference, self._tenant)
            number, _, rest = line.partition(" ")
            self._write(f"{self._in(_RED, number)} {rest}")

    def outcome(self, outcome: Outcome) -> None:
        """Show what it came to: each invariant, and one line for all."""
        self._clear()
        if self._as_json:
            self._write(json.dumps(outcome_json(outcome), ensure_ascii=False))
            return
        if not outcome.clean:
            self._write("")
        for invariant in INVARIANTS:
            number = outcome.differences.get(invariant.number, 0)
            state = self._in(_RED, f"{number:,} differ") if number else self._in(_GREEN, "holds")
            self._write(f"  {invariant.number:<4} {invariant.says:<54} {state}")
        self._write("")
        for left_out in outcome.left_out:
            self._write(self._in(_DIM, f"Not looked at: {left_out}."))
        self._write(summary_line(outcome))

    def failure(self, message: str) -> None:
        """Show why it could not be run."""
        self._clear()
        self._err.write(f"bursar: {message}\n")
        self._err.flush()

    def _clear(self) -> None:
        if self._on_screen:
            self._err.write(_CLEAR_LINE)
            self._err.flush()
            self._on_screen = False

    def _in(self, colour: str, text: str) -> str:
        return f"{colour}{text}{_PLAIN}" if self._colour else text

    def _write(self, line: str) -> None:
        self._out.write(f"{line}\n")
        self._out.flush()


def progress_line(progress: Progress, seconds: float) -> str:
    """Return how far it is: whose books, what of them, what has been looked at, and how long it took."""
    looked_at = ", ".join(f"{progress.counts[what]:,} {what}" for what in _TOLD if progress.counts.get(what))
    place = f"{progress.tenant} ({progress.tenants_done + 1} of {max(progress.tenants, progress.tenants_done + 1)})"
    return " · ".join(filter(None, (f"{place}: {progress.doing}", looked_at, f"{seconds:.0f} s")))


def difference_line(difference: Difference, tenant: str = "") -> str:
    """Return a difference as people read it: both figures first, then whose they are."""
    unit = difference.figure.rpartition("_")[2]
    figure = difference.figure.removesuffix("_nanos").removesuffix("_tokens") if unit in ("nanos", "tokens") else (
        difference.figure
    )  # fmt: skip
    what = f"{difference.subject}, {figure.replace('_', ' ')}" if figure != difference.subject else figure
    figures = f"{difference.said_by} {_amount(difference.said, unit)}, {difference.proved_by} {_amount(difference.proved, unit)}"
    ids = {"tenant": f"{tenant} {difference.tenant_id}".strip(), **difference.ids}
    named = "  ".join(f"{name.removesuffix('_id').replace('_', '-')} {value}" for name, value in ids.items())
    note = f"  ({difference.note})" if difference.note else ""
    return f"{difference.invariant:<4} {what}: {figures}{note}  |  {named}"


def _amount(value: int | str, unit: str) -> str:
    if isinstance(value, str):
        return value
    if unit == "nanos":
        return f"{usd_text(value)} USD"
    return f"{value} tokens" if unit == "tokens" else str(value)


def difference_json(difference: Difference) -> Mapping[str, object]:
    """Return a difference as programs read it; amounts in the unit that the figure's name ends with."""
    return {
        "event": "difference",
        "invariant": difference.invariant,
        "tenant_id": str(difference.tenant_id),
        "subject": difference.subject,
        "ids": dict(difference.ids),
        "figure": difference.figure,
        "said_by": difference.said_by,
        "said": difference.said,
        "proved_by": difference.proved_by,
        "proved": difference.proved,
        "note": difference.note,
    }


def outcome_json(outcome: Outcome) -> Mapping[str, object]:
    """Return what a run came to as programs read it."""
    return {
        "event": "summary",
        "clean": outcome.clean,
        "differences": dict(outcome.differences),
        "looked_at": dict(outcome.counts),
        "tenants": outcome.tenants,
        "seconds": round(outcome.seconds, 3),
        "left_out": list(outcome.left_out),
    }


def summary_line(outcome: Outcome) -> str:
    """Return what a run came to in one line."""
    number = sum(outcome.differences.values())
    verdict = (
        "Clean: every invariant holds." if outcome.clean else f"{number:,} difference{'s'[: number > 1]}."
    )
    counts = [(outcome.tenants, "tenants"), *((count, what) for what, count in outcome.counts.items())]
    looked_at = ", ".join(
        f"{count:,} {what if count != 1 else _one(what)}" for count, what in counts if count
    )
    return f"{verdict} {looked_at} in {outcome.seconds:.1f} s."


def _one(what: str) -> str:
    """Return the singular of what is counted."""
    return {"entries": "entry", "open holds": "open hold"}.get(what, what.removesuffix("s"))
