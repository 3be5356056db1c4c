"""`bursar demo`: a walk that ends by itself and tells the whole story."""

from __future__ import annotations

import re

from support.stack import bursar, environment


def test_the_demo_tells_the_whole_story() -> None:
    """F051, F053, F074, F085: budget, calls, alert, 402, grant, the call again, what is left, the statement."""
    # A provider's key in the environment is none of the demo's business: it calls nobody.
    done = bursar(
        "demo", environ=environment(OPENAI_API_KEY="sk-real", BURSAR_HOLD_LEASE_MS="nonsense"), timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    steps = re.findall(r"^(\d+)\. (.+)$", done.stdout, re.MULTILINE)
    assert [int(number) for number, _ in steps] == list(range(1, len(steps) + 1))
    story = [
        r"A budget: alice@example\.com may spend \$0\.003 a day",
        r"CreateApiKey -> bur_",
        r"call +1: \d+ tokens in, \d+ out, cost \$0\.\d+, \$0\.\d+ left",
        r"HTTP 402 BUDGET_CAP_HARD: budget exhausted",
        r"BUDGET_CAP_SOFT at 80 %",
        r"CreateGrant -> \$0\.01 until",
        r"call +1: \d+ tokens in, \d+ out, cost \$0\.\d+",
        r"grants \$0\.\d+ \+ budget \$0\.000000 = \$0\.\d+",
        r"gpt-4o: \d+ calls, \$0\.\d+",
        r"report [0-9a-f-]{36}: \$0\.\d+, sha256 [0-9a-f]{16}",
        r"agree to the nano",
        r"stopped and removed",
    ]
    rest = done.stdout
    for line in story:
        found = re.search(line, rest)
        assert found, f"{line} is not in\n{rest}"
        rest = rest[found.end() :]
    assert not re.search(r"bur_[A-Za-z0-9_-]{43}|bat_", done.stdout)
