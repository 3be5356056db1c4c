"""`python -m bench`: runs the benchmarks and prints what they found beside the targets."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path

import uvloop

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # the fakes and fixtures that the tests have

from tools.compile import current  # noqa: E402

from bench import calls, memory, pairs, rpc, start  # noqa: E402
from bench.figures import Figure, Pace, table  # noqa: E402
from bench.postgres import Server, running_server  # noqa: E402
from bench.stack import Stack, running_stack  # noqa: E402

OnServer = Callable[[Server, Pace], Awaitable[list[Figure]]]
OnStack = Callable[[Stack, Pace], Awaitable[list[Figure]]]

ON_SERVER: dict[str, OnServer] = {"pairs": pairs.spread, "hot": pairs.hot}
ON_STACK: dict[str, OnStack] = {
    "deduct": rpc.deduct,
    "calls": calls.whole_answers,
    "streams": calls.streams,
    "first-byte": calls.first_byte,
    "added": calls.added,
    "start": start.cold_start,
    "memory": memory.memory,
}
NAMES = [*ON_SERVER, *ON_STACK]


async def measure(names: list[str], pace: Pace) -> list[Figure]:
    """Run the benchmarks in their order, on one server; say on stderr which is under way."""
    figures: list[Figure] = []
    with ExitStack() as cleanup:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="bursar-bench-")))
        server = cleanup.enter_context(running_server(folder))
        for name in [name for name in ON_SERVER if name in names]:
            figures += await _one(name, ON_SERVER[name](server, pace))
        if any(name in names for name in ON_STACK):
            with running_stack(server, folder) as stack:
                for name in [name for name in ON_STACK if name in names]:
                    figures += await _one(name, ON_STACK[name](stack, pace))
    return figures


async def _one(name: str, benchmark: Awaitable[list[Figure]]) -> list[Figure]:
    began = time.perf_counter()
    found = await benchmark
    print(f"bench: {name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    return found


def machine() -> dict[str, object]:
    """Return what the figures were measured on; nothing that names the machine."""
    return {
        "cores": os.cpu_count(),
        "architecture": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "compiled": current(),
        "load_before": [round(value, 2) for value in os.getloadavg()],
    }


def options_of(arguments: list[str] | None) -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--only", nargs="+", choices=NAMES, metavar="NAME", help=f"some of: {', '.join(NAMES)}"
    )
    parser.add_argument(
        "--seconds", type=float, default=Pace.seconds, help="how long each side is measured in a round"
    )
    parser.add_argument(
        "--rounds", type=int, default=Pace.rounds, help="how often both sides are measured in turns"
    )
    parser.add_argument(
        "--calls", type=int, default=Pace.calls, help="how many calls the memory is measured after"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the results here too, say bench/results/today.json"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Print the table; return 0 whatever it says: a shared machine's bad minute must not fail a build."""
    options = options_of(arguments)
    pace = Pace(options.seconds, options.rounds, options.calls)
    about = machine()
    began = time.perf_counter()
    figures = uvloop.run(measure(options.only or NAMES, pace))
    took = time.perf_counter() - began
    print(f"\n{table(figures)}\n")
    short = sum(not figure.ok for figure in figures)
    code = "compiled" if about["compiled"] else "not compiled (make compile)"
    print(
        f"{len(figures) - short} of {len(figures)} targets met; {took:.0f} s on {os.cpu_count()} shared cores, {code}."
    )
    if options.json:
        document = {
            "machine": about,
            "pace": {"seconds": pace.seconds, "rounds": pace.rounds, "calls": pace.calls},
            "figures": [figure.document() for figure in figures],
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
