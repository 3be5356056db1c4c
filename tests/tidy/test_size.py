"""No file is longer than 400 lines, no function longer than 70."""

from __future__ import annotations

import ast

from tidy.conftest import MakeProject
from tidy.project import Project, expect_none, matches

FILE_LINES = 400
FUNCTION_LINES = 70

# A migration is frozen when it is released: it is written once, from top to bottom, and never read in pieces.
FROZEN = "services/bursar_server/db/migrations/versions/*.py"


def long_files(project: Project) -> list[str]:
    found = []
    for path in project.matching(
        "services/**/*", "sidecar/**/*", "tests/**/*", "tools/**/*", "bench/**/*", "web/**/*"
    ):
        if path.endswith((".py", ".ts", ".tsx", ".css")) and not matches(path, FROZEN):
            lines = len(project.text(path).splitlines())
            if lines > FILE_LINES:
                found.append(f"{path}: {lines} lines")
    return found


def long_functions(project: Project) -> list[str]:
    found = []
    for path, tree in project.python("services", "sidecar", "tests", "tools", "bench"):
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not matches(path, FROZEN):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_LINES:
                    found.append(f"{path}:{node.lineno}: {node.name} has {lines} lines")
    return found


def test_no_file_is_too_long(project: Project) -> None:
    expect_none(long_files(project))


def test_no_function_is_too_long(project: Project) -> None:
    expect_none(long_functions(project))


def test_the_limits_are_kept_to_the_line(make_project: MakeProject) -> None:
    def function(name: str, lines: int) -> str:
        return f"def {name}() -> None:\n" + "    pass\n" * (lines - 1)

    bad = make_project(
        {
            "services/a.py": "\n" * 401,
            "services/b.py": "\n" * 400,
            "sidecar/c.py": function("long", 71) + function("right", 70) + "async " + function("later", 71),
            FROZEN.replace("*", "0001_start"): "\n" * 300 + function("upgrade", 200),
            "gen/d.py": "\n" * 1000,
        }
    )
    assert long_files(bad) == ["services/a.py: 401 lines"]
    assert long_functions(bad) == [
        "sidecar/c.py:1: long has 71 lines",
        "sidecar/c.py:142: later has 71 lines",
    ]
