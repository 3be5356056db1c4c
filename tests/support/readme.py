"""The README's commands, taken out of it so that they can be run as they are written."""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, and its text."""

    language: str
    text: str


def blocks(readme: str) -> list[Block]:
    """Return the fenced blocks that have a language, in order."""
    return [Block(language, text) for language, text in _BLOCK.findall(readme)]


def script_of(steps: list[Block], out: Path) -> str:
    """Return one shell script that runs the steps in order in the same shell.

    What the step numbered N says is in `out`/N.out and N.err; a step that fails ends the script.
    """
    lines = ["set -e"]
    for number, step in enumerate(steps):
        text = step.text
        if step.language == "python":
            text = f"{sys.executable} - <<'END_OF_PYTHON'\n{text}END_OF_PYTHON\n"
        lines += ["{", text, f"}} >{out}/{number}.out 2>{out}/{number}.err"]
    return "\n".join(lines)


def put_curl_on_the_path(folder: Path) -> None:
    """Put a `curl` into a folder of programs where the machine has none."""
    if shutil.which("curl") is None:
        install_curl(folder)


def install_curl(folder: Path) -> Path:
    """Write the stand-in for `curl` into a folder and return its path."""
    program = folder / "curl"
    program.write_text(
        f"#!{sys.executable}\n{Path(__file__).with_name('curl.py').read_text(encoding='utf-8')}"
    )
    program.chmod(0o755)
    return program
