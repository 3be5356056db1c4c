"""The files of a project, as the tidy checks see them."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent.parent


class Project:
    """A folder and the files in it that count, named by their path from the root with forward slashes."""

    def __init__(self, root: Path, files: list[str]) -> None:
        self.root = root
        self.files = sorted(files)
        self._trees: dict[str, ast.Module] = {}

    def text(self, path: str) -> str:
        """Return the content of one file."""
        return (self.root / path).read_text(encoding="utf-8")

    def matching(self, *patterns: str) -> Iterator[str]:
        """Yield the files that match one of the patterns, where `**` stands for any folders."""
        for path in self.files:
            if matches(path, *patterns):
                yield path

    def python(self, *roots: str) -> Iterator[tuple[str, ast.Module]]:
        """Yield the Python files under the given top folders, parsed."""
        for path in self.files:
            if path.endswith(".py") and path.split("/")[0] in roots:
                if path not in self._trees:
                    self._trees[path] = ast.parse(self.text(path), filename=path)
                yield path, self._trees[path]

    @cached_property
    def texts(self) -> dict[str, str]:
        """Return every file that is text, by path; binary files are left out."""
        found = {}
        for path in self.files:
            content = (self.root / path).read_bytes()
            if b"\0" not in content:
                found[path] = content.decode("utf-8", errors="replace")
        return found


def matches(path: str, *patterns: str) -> bool:
    """Say whether a path matches one of the patterns, where `**` stands for any folders, none included."""
    return any(_matches(PurePosixPath(path).parts, PurePosixPath(pattern).parts) for pattern in patterns)


def _matches(path: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    if not pattern:
        return not path
    if pattern[0] == "**":
        return any(_matches(path[start:], pattern[1:]) for start in range(len(path) + 1))
    return bool(path) and PurePosixPath(path[0]).match(pattern[0]) and _matches(path[1:], pattern[1:])


def repository() -> Project:
    """Return this repository: what git tracks, and what stands untracked in folders that it tracks."""
    tracked = _listed("--cached")
    folders = {path.split("/")[0] for path in tracked if "/" in path}
    new = _listed("--others", "--exclude-standard", "--", *sorted(folders))
    return Project(ROOT, [path for path in {*tracked, *new} if (ROOT / path).is_file()])


def _listed(*options: str) -> list[str]:
    command = ["git", "ls-files", "-z", *options]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [path for path in listed.split("\0") if path]


def expect_none(findings: list[str]) -> None:
    """Fail with every finding on a line of its own."""
    assert not findings, "\n" + "\n".join(findings)
