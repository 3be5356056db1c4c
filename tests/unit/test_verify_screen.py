"""How a proof is shown."""

import io
import json
from uuid import UUID

from bursar_server.verify.model import INVARIANTS, Difference, Outcome, Progress
from bursar_server.verify.screen import Screen, difference_line, progress_line, summary_line
from support.clock import FakeClock

TENANT = UUID("00000000-0000-7000-8000-000000000001")
IDS = {"budget_id": "b-1", "period_key": "2026-11-01T00:00:00Z#1"}
SPENT = Difference("I1", TENANT, "balance", IDS, "spent_nanos", "balance", 1_500_000_000, "entries", 7)
NONE = dict.fromkeys((invariant.number for invariant in INVARIANTS), 0)
CLEAN = Outcome(NONE, {"entries": 203_118, "calls": 1, "reports": 0}, 2, 4.04)
BROKEN = Outcome(NONE | {"I1": 1, "I7": 1_200}, {"calls": 2}, 1, 0.1, ("months that are dropped",))


class Terminal(io.StringIO):
    """A stream that somebody looks at."""

    def isatty(self) -> bool:
        return True


def test_a_difference_is_one_line_with_both_figures_and_ids() -> None:
    line = difference_line(SPENT, "acme")
    assert line == (
        f"I1   balance, spent: balance 1.5 USD, entries 0.000000007 USD  |  tenant acme {TENANT}  budget b-1"
        "  period-key 2026-11-01T00:00:00Z#1"
    )
    tokens = Difference(
        "I2", TENANT, "balance", {}, "held_tokens", "balance", 1, "open holds", 2, "not confirmed"
    )
    assert difference_line(tokens) == (
        f"I2   balance, held: balance 1 tokens, open holds 2 tokens  (not confirmed)  |  tenant {TENANT}"
    )
    assert "\n" not in line


def test_the_end_says_what_holds() -> None:
    out, err = io.StringIO(), io.StringIO()
    Screen(out, err, FakeClock()).outcome(CLEAN)
    lines = out.getvalue().splitlines()
    assert lines[-1] == "Clean: every invariant holds. 2 tenants, 203,118 entries, 1 call in 4.0 s."
    assert [line.split()[0] for line in lines[:12]] == [invariant.number for invariant in INVARIANTS]
    assert all(line.endswith("holds") for line in lines[:12])
    assert err.getvalue() == ""


def test_the_end_says_what_differs_and_what_was_left_out() -> None:
    out = io.StringIO()
    screen = Screen(out, io.StringIO(), FakeClock())
    screen.difference(SPENT)
    screen.outcome(BROKEN)
    text = out.getvalue()
    assert text.startswith("I1   balance, spent: balance 1.5 USD")
    assert "1,200 differ" in text
    assert "Not looked at: months that are dropped." in text
    assert text.endswith("1,201 differences. 1 tenant, 2 calls in 0.1 s.\n")
    assert summary_line(Outcome({"I1": 1}, {}, 1, 0.1)).startswith("1 difference. ")


def test_json_is_lines() -> None:
    out = io.StringIO()
    screen = Screen(out, io.StringIO(), FakeClock(), as_json=True)
    screen.difference(SPENT)
    screen.outcome(BROKEN)
    difference, summary = map(json.loads, out.getvalue().splitlines())
    assert difference == {
        "event": "difference", "invariant": "I1", "tenant_id": str(TENANT), "subject": "balance", "ids": IDS,
        "figure": "spent_nanos", "said_by": "balance", "said": 1_500_000_000, "proved_by": "entries", "proved": 7, "note": "",
    }  # fmt: skip
    assert (summary["event"], summary["clean"], summary["differences"]["I7"]) == ("summary", False, 1_200)
    assert (summary["looked_at"], summary["left_out"]) == ({"calls": 2}, ["months that are dropped"])


def test_progress_is_one_line_that_changes_and_goes_away() -> None:
    clock, out, err = FakeClock(), io.StringIO(), Terminal()
    screen = Screen(out, err, clock)
    progress = Progress("acme", 1, 3, "calls", {"entries": 1_000})
    screen.progress(progress)
    assert err.getvalue() == "", "what is over at once shows nothing"
    clock.advance(1)
    screen.progress(progress)
    assert err.getvalue() == "\r\x1b[Kacme (2 of 3): calls · 1,000 entries · 1 s"
    screen.difference(SPENT)
    assert err.getvalue().endswith(" 1 s\r\x1b[K")
    assert out.getvalue().startswith("I1 ")


def test_progress_without_a_terminal_is_a_line_now_and_then() -> None:
    clock, err = FakeClock(), io.StringIO()
    screen = Screen(io.StringIO(), err, clock)
    for _ in range(100):
        screen.progress(Progress("acme", 0, 1, "calls"))
        clock.advance(0.25)
    assert 3 <= len(err.getvalue().splitlines()) <= 6
    assert progress_line(Progress("acme", 0, 0, "calls"), 3) == "acme (1 of 1): calls · 3 s"


def test_colours_only_where_asked_for() -> None:
    for colour in (False, True):
        out = io.StringIO()
        Screen(out, io.StringIO(), FakeClock(), colour=colour).outcome(BROKEN)
        assert ("\x1b[" in out.getvalue()) is colour
