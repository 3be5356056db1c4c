"""Lists which rows of the requirements (F, C) and rules of the semantics (S) a passing test proves.

A test proves the rows that its docstring names. Without --junit the whole suite runs first (a quarter of an hour at
worst); with it, the JUnit report of an earlier run is read. Failing and skipped tests prove nothing.
"""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent

DEFINED = {
    "docs/requirements.md": re.compile(r"^\| ([FC]\d+) \| (.*?) \|", re.MULTILINE),
    "docs/semantics.md": re.compile(r"^- \*\*(S\d+)\*\* (.*)", re.MULTILINE),
}
NAMED = re.compile(r"\b(?:F\d{3}|C\d{2}|S\d{1,2})\b")
RANGE = re.compile(r"\b([FCS])(\d{1,3})\s?[–-]\s?\1(\d{1,3})\b")


@dataclass(frozen=True)
class Proof:
    """One test function: where it stands, and the rows its docstring names."""

    module: str
    name: str
    rows: tuple[str, ...]

    @property
    def label(self) -> str:
        """Return the name that pytest takes on its command line, from the root."""
        return f"{self.module.replace('.', '/')}.py::{self.name}"


def defined_rows(root: Path) -> dict[str, str]:
    """Return every row and rule with its text, in the order of the documents."""
    rows: dict[str, str] = {}
    for document, pattern in DEFINED.items():
        for number, text in pattern.findall((root / document).read_text(encoding="utf-8")):
            if number in rows:
                raise ValueError(f"{document}: {number} is there twice")
            rows[number] = text
    return rows


def rows_in(text: str) -> tuple[str, ...]:
    """Return the rows that a docstring names, those inside a range (F074–F080) included, each once."""
    found = dict.fromkeys(NAMED.findall(text))
    for letter, first, last in RANGE.findall(text):
        for number in range(int(first), int(last) + 1):
            found[f"{letter}{number:0{1 if letter == 'S' else len(first)}d}"] = None
    return tuple(sorted(found))


def find_proofs(root: Path) -> Iterator[Proof]:
    """Yield every test function under tests/, also those inside classes."""
    for file in sorted((root / "tests").rglob("test_*.py")):
        module = ".".join(file.relative_to(root).with_suffix("").parts)
        yield from _proofs_in(ast.parse(file.read_text(encoding="utf-8")), module, "")


def _proofs_in(tree: ast.Module | ast.ClassDef, module: str, prefix: str) -> Iterator[Proof]:
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            yield from _proofs_in(node, module, f"{prefix}{node.name}::")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test"):
            yield Proof(module, prefix + node.name, rows_in(ast.get_docstring(node) or ""))


def passed(report: Path) -> set[str]:
    """Return the labels of the tests whose every case passed, from a JUnit report."""
    good: set[str] = set()
    bad: set[str] = set()
    for case in ElementTree.parse(report).iter("testcase"):
        module, _, classes = case.attrib["classname"].partition(".Test")
        name = "".join(f"{part}::" for part in (f"Test{classes}".split(".") if classes else []))
        label = f"{module.replace('.', '/')}.py::{name}{case.attrib['name'].partition('[')[0]}"
        proved = not any(child.tag in {"failure", "error", "skipped"} for child in case)
        (good if proved else bad).add(label)
    return good - bad


def table(rows: dict[str, str], tests: list[Proof], good: set[str]) -> Iterator[str]:
    """Yield the lines of the report: what is proven and by which tests, what is not, and the totals last."""
    proofs: dict[str, list[str]] = {row: [] for row in rows}
    for test in tests:
        if test.label in good:
            for row in test.rows:
                proofs.setdefault(row, []).append(test.label)
    yield "PROVEN"
    for row, labels in proofs.items():
        if labels:
            yield f"{row:5} {labels[0]}" + (f" and {len(labels) - 1} more" if len(labels) > 1 else "")
    yield "\nNOT PROVEN"
    for row, labels in proofs.items():
        if not labels:
            yield f"{row:5} {rows[row][:100]}"
    yield ""
    totals = []
    for letter in "FCS":
        all_of = [row for row in proofs if row.startswith(letter)]
        totals.append(f"{letter}: {sum(1 for row in all_of if proofs[row])} of {len(all_of)}")
    yield "proven " + ", ".join(totals)


def main(arguments: list[str] | None = None) -> int:
    """Print the table; return pytest's code when it was run here and failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--junit", type=Path, help="read this report instead of running the tests")
    options, rest = parser.parse_known_args(arguments)
    code = 0
    with tempfile.TemporaryDirectory() as scratch:
        report = options.junit or Path(scratch) / "junit.xml"
        if not options.junit:
            command = [
                sys.executable,
                "-m",
                "pytest",
                f"--junitxml={report}",
                "-n",
                "logical",
                "--maxprocesses",
                "4",
            ]
            code = subprocess.run([*command, *rest], cwd=ROOT, check=False).returncode
        if not report.exists():
            return code or 1
        good = passed(report)
    print(*table(defined_rows(ROOT), list(find_proofs(ROOT)), good), sep="\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
