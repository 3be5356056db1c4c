"""The benchmarks run: each for a moment, with its figures in the table and in the file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from support.stack import ROOT, environment

ROWS = {
    "pairs": 2,
    "hot": 1,
    "deduct": 1,
    "calls": 3,
    "streams": 1,
    "first-byte": 1,
    "added": 1,
    "start": 2,
    "memory": 2,
}


def test_every_benchmark_runs(tmp_path: Path) -> None:
    """`make bench` for a fraction of its time: all rows, in order, none without a value."""
    results = tmp_path / "results.json"
    command = ["-m", "bench", "--seconds", "0.2", "--rounds", "1", "--calls", "200", "--json", str(results)]
    environ = environment(TMPDIR=str(tmp_path))
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(results.read_text(encoding="utf-8"))["figures"]
    assert len(figures) == sum(ROWS.values())
    assert all(min(figure["ours"]) > 0 for figure in figures)
    assert all(figure["what"] in done.stdout for figure in figures)
    told = [line.split(": ")[1] for line in done.stderr.splitlines() if line.startswith("bench: ")]
    assert told == list(ROWS)
