"""`python -m chaos`: a long run; the last line says what came of it, and the exit code is 1 where anything is wrong."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys

from chaos.plan import long_plan, short_plan
from chaos.run import Result, run
from support.stack import scratch_folder

_SHOWN = 20


def main() -> int:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=300, help="at least so many processes are killed")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000), help="repeats a run's plan")
    parser.add_argument(
        "--outage", type=float, default=60.0, help="how long the database stands still, seconds"
    )
    parser.add_argument("--apps", type=int, default=10, help="how many calls are open at a time")
    parser.add_argument("--short", action="store_true", help="the plan of the test suite")
    given = parser.parse_args()
    plan = short_plan(given.seed) if given.short else long_plan(given.seed, given.kills, given.outage)
    print(f"chaos: seed={given.seed}: {len(plan.actions)} actions, {plan.kills} kills", file=sys.stderr)
    with scratch_folder() as folder:
        result = asyncio.run(run(folder, plan, apps=given.apps, rest_s=0.15))
    show(result)
    return 0 if result.good else 1


def show(result: Result) -> None:
    """Print what is wrong, what was hit, and the summary as the last line."""
    found = result.verdict
    for kind, calls in (
        ("lost", found.lost),
        ("doubled", found.doubled),
        ("wrong", [*found.wrong, *result.trouble]),
    ):
        for what in calls[:_SHOWN]:
            print(f"{kind}: {what}")
        if len(calls) > _SHOWN:
            print(f"{kind}: and {len(calls) - _SHOWN} more")
    print("chaos: for the apps: " + ", ".join(f"{count} {end}" for end, count in result.ends.most_common()))
    print(
        "chaos: kills that met what they waited for: "
        + ("; ".join(f"{count} {what}" for what, count in result.aimed.most_common()) or "none")
    )
    print(
        f"chaos: killed sidecars left {result.owed} Deducts that were then replayed; {found.partial} answers broke off"
        f" at the provider; {found.unseen} estimates are of calls that were on their way and never arrived"
    )
    print(result.line())


if __name__ == "__main__":
    sys.exit(main())
