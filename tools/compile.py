"""Compiles the modules that every metered call goes through, in place, with mypyc: docs/adr/0010-compiled.md.

Python runs the same modules as they are where nothing is compiled, at about two thirds of the speed. What is compiled is
compiled again when its sources, the compiler or the Python change; a wheel that is built from the tree contains it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "services"
BUILD = ROOT / "build" / "compiled"
STAMP = BUILD / "stamp.json"
GROUP = "bursar_server"

# What runs for each call or each row; what runs once for a batch or an RPC gains nothing. metering/batch.py is beyond
# mypyc (an attribute of an exception, added to in place), rpc/ is awaited more than it computes.
MODULES = {
    "budgets": ("model", "rules"),
    "db": ("binary",),
    "kit": ("ids", "money", "periods"),
    "ledger": ("model", "rows", "rules", "service", "store"),
    "metering": (
        *("ahead", "checks", "context", "deducts", "directory", "evaluation", "history", "inbox", "memory", "model"),
        *("needs", "observer", "rpc", "rules", "service", "session", "store", "tickets", "waits", "writes"),
    ),
    "pricing": ("model", "rules"),
}  # fmt: skip


def sources() -> list[Path]:
    """Return the modules that are compiled."""
    return [SOURCES / GROUP / folder / f"{name}.py" for folder, names in MODULES.items() for name in names]


def products() -> list[Path]:
    """Return what is compiled, whatever it was compiled for."""
    return sorted(SOURCES.rglob("*.so"))


def digest() -> str:
    """Return what identifies a compilation: what it reads, by what, and for which Python."""
    found = hashlib.sha256()
    # Types come from other modules too, but none that the compiled ones do not name.
    for file in [*sources(), Path(__file__)]:
        found.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes() + b"\0")
    found.update(f"{version('mypy')} {sysconfig.get_config_var('EXT_SUFFIX')}".encode())
    return found.hexdigest()


def current() -> bool:
    """Whether everything is compiled, and from the sources as they are."""
    try:
        found = json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(found["digest"] == digest() and found["products"] == [str(file) for file in products()])


def stamp() -> None:
    """Note that what is compiled is of the sources as they are."""
    found = {"digest": digest(), "products": [str(file) for file in products()]}
    STAMP.write_text(json.dumps(found), encoding="utf-8")


def missing() -> str | None:
    """Return what this machine has not that compiling takes."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]
    if shutil.which(compiler) is None:
        return f"the C compiler ({compiler})"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "Python's C headers (python3-dev)"
    return None


def remove() -> None:
    """Remove what is compiled: Python runs the sources."""
    for file in [*products(), STAMP]:
        file.unlink(missing_ok=True)


def build() -> None:
    """Compile; runs in a process of its own, whose output is only of interest when it fails."""
    from mypyc.build import mypycify
    from setuptools import Distribution
    from setuptools.command.build_ext import build_ext

    os.chdir(ROOT)
    logging.disable(logging.INFO)
    extensions = mypycify(
        ["--cache-dir", str(BUILD / "mypy"), *(str(file.relative_to(ROOT)) for file in sources())],
        opt_level="2",
        debug_level="0",
        target_dir=str(BUILD),
        group_name=GROUP,
    )
    for extension in extensions:
        # A newer compiler's warnings about generated code are nothing that anybody here can act on.
        extension.extra_compile_args = [flag for flag in extension.extra_compile_args if flag != "-Werror"]
    command = build_ext(
        Distribution(
            {"name": GROUP, "ext_modules": extensions, "package_dir": {"": str(SOURCES.relative_to(ROOT))}}
        )
    )
    command.inplace, command.build_lib, command.build_temp = True, str(BUILD), str(BUILD)
    command.ensure_finalized()
    command.run()


def compile_all() -> int:
    """Compile unless everything is; return the exit code. What fails leaves nothing compiled behind."""
    if current():
        return 0
    remove()
    lacking = missing()
    if lacking:
        print(
            f"setup: {lacking} is missing: nothing is compiled, a third of the speed is lost", file=sys.stderr
        )
        return 0
    print("setup: compiling what every metered call goes through (about a minute)", file=sys.stderr)
    BUILD.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, __file__, "--build"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        remove()
        print(
            done.stdout[-4_000:], "setup: this could not be compiled; `COMPILE=no` runs it as it is",
            sep="\n", file=sys.stderr,
        )  # fmt: skip
        return done.returncode
    stamp()
    return 0


class CompiledWheel(BuildHookInterface[Any]):
    """A wheel contains what is compiled in the tree, and says for which Python and platform that is."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add it. Raises RuntimeError where it is not compiled from the sources as they are."""
        found = products()
        if version == "editable" or not found:
            return
        if not current():
            raise RuntimeError("what is compiled is not of these sources: run tools/compile.py")
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        build_data["force_include"].update({str(file): str(file.relative_to(SOURCES)) for file in found})


def main(arguments: list[str] | None = None) -> int:
    """Return 0 when what is compiled is what the sources say, or nothing is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--check", action="store_true", help="only say whether what is compiled is out of date, exit 1 if so"
    )
    instead.add_argument(
        "--remove", action="store_true", help="remove what is compiled: Python runs the sources"
    )
    instead.add_argument("--build", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.build:
        build()
    elif options.remove:
        remove()
    elif options.check:
        if products() and not current():
            print(
                "what is compiled is not of these sources: run `make compile`, or `make compile COMPILE=no`",
                file=sys.stderr,
            )
            return 1
    else:
        return compile_all()
    return 0


if __name__ == "__main__":
    sys.exit(main())
