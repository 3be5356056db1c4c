"""Writes gen/ from proto/, or with --check says how gen/ differs from what proto/ would give.

Offline: buf compiles, the plugins of buf.gen.yaml run from the environment that runs this file. Files in gen/
that no proto gives any more are removed (or reported), so that gen/ is always exactly what this makes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# The package files that no plugin writes. Plain `pip install bursar` is this package alone.
PACKAGE_FILES = {
    "bursar/__init__.py": '"""Bursar\'s typed client: message classes and stubs, generated from proto/."""\n',
    "bursar/v1/__init__.py": '"""The messages and services of bursar.v1, generated from proto/bursar/v1/."""\n',
    "bursar/py.typed": "",
}


def generate(root: Path, out: Path) -> None:
    """Fill the empty folder `out` with what gen/ should hold for the protos under `root`."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    command = ["buf", "generate", str(root), "--template", str(root / "buf.gen.yaml"), "--output", str(out)]
    subprocess.run(command, cwd=root, env={**os.environ, "PATH": path}, check=True)
    for name, text in PACKAGE_FILES.items():
        file = out / "gen" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file under `folder` by its relative name, Python's caches left out."""
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and "__pycache__" not in file.parts
    }


def differences(wanted: dict[str, bytes], found: dict[str, bytes]) -> list[str]:
    """Return one line for each file that is missing, stale or changed; empty when both agree."""
    lines = [f"gen/{name}: missing" for name in wanted.keys() - found.keys()]
    lines += [f"gen/{name}: no proto gives this file" for name in found.keys() - wanted.keys()]
    lines += [f"gen/{name}: differs" for name in wanted.keys() & found.keys() if wanted[name] != found[name]]
    return sorted(lines)


def write(wanted: dict[str, bytes], gen: Path) -> None:
    """Make `gen` hold exactly `wanted`; files that are right already keep their time."""
    found = tree(gen) if gen.is_dir() else {}
    for name in found.keys() - wanted.keys():
        (gen / name).unlink()
    for name, content in wanted.items():
        if found.get(name) != content:
            (gen / name).parent.mkdir(parents=True, exist_ok=True)
            (gen / name).write_bytes(content)


def main(arguments: list[str] | None = None) -> int:
    """Return 0 when gen/ is (now) right, 1 when --check found differences, buf's code when it failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="change nothing; list the differences, exit 1 if any"
    )
    parser.add_argument(
        "--root", type=Path, default=ROOT, help="the folder that has buf.yaml, proto/ and gen/"
    )
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            generate(options.root, Path(scratch))
        except subprocess.CalledProcessError as error:
            return error.returncode
        wanted = tree(Path(scratch) / "gen")
    if not options.check:
        write(wanted, options.root / "gen")
        return 0
    lines = differences(wanted, tree(options.root / "gen"))
    if lines:
        print(
            *lines,
            "gen/ is not what proto/ gives: run 'make generate' and commit it.",
            sep="\n",
            file=sys.stderr,
        )
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
