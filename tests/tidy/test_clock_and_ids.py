"""Time comes from a clock that is handed in, ids from one place, and words for people go through the command line."""

from __future__ import annotations

import ast

import pytest

from tidy.conftest import MakeProject
from tidy.names import used_names
from tidy.project import Project, expect_none, matches

# Only these may ask the machine for the time or for randomness that becomes an id: a test hands in its own.
SOURCES = (
    "services/bursar_server/kit/*.py",
    "sidecar/bursar_sidecar/clock.py",
    "sidecar/bursar_sidecar/ids.py",
)

BANNED = {
    "datetime.datetime.now",
    "datetime.datetime.utcnow",
    "datetime.datetime.today",
    "datetime.date.today",
    "time.time",
    "time.time_ns",
    "time.localtime",
    "time.gmtime",
    "uuid.uuid1",
    "uuid.uuid4",
    "uuid.uuid6",
    "uuid.uuid7",
    "os.urandom",
    "random.getrandbits",
    "random.randbytes",
    "random.randint",
    "random.choices",
}

# People read these; everything else logs.
MAY_PRINT = ("**/cli.py", "tools/*.py", "bench/**/*.py", "tests/**/*.py")


def unclocked(project: Project) -> list[str]:
    return [
        f"{path}:{line}: {name}"
        for path, tree in project.python("services", "sidecar")
        if not matches(path, *SOURCES)
        for name, line in used_names(tree)
        if name in BANNED
    ]


def prints(project: Project) -> list[str]:
    return [
        f"{path}:{node.lineno}: print"
        for path, tree in project.python("services", "sidecar", "tools", "bench", "tests")
        if not matches(path, *MAY_PRINT)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]


def test_time_and_ids_come_from_one_place(project: Project) -> None:
    expect_none(unclocked(project))


def test_nothing_prints_but_the_command_line(project: Project) -> None:
    expect_none(prints(project))


@pytest.mark.parametrize(
    "source",
    [
        "from datetime import datetime, UTC\nx = datetime.now(UTC)",
        "import datetime as d\nx = d.datetime.now(d.UTC)",
        "from datetime import date as day\nx = day.today()",
        "from time import time\nx = time()",
        "import time\nx = time.time_ns()",
        "import uuid\nx = field(default_factory=uuid.uuid4)",
        "def f():\n    from uuid import uuid4 as new\n    return new()",
        "import os\nx = os.urandom(16)",
    ],
)
def test_every_way_to_the_machines_clock_is_seen(make_project: MakeProject, source: str) -> None:
    bad = make_project(
        {"services/bursar_server/users/service.py": source, "services/bursar_server/kit/ids.py": source}
    )
    assert len(unclocked(bad)) == 1
    assert unclocked(bad)[0].startswith("services/bursar_server/users/service.py:")


def test_other_uses_of_these_modules_are_fine(make_project: MakeProject) -> None:
    source = "import time, random, uuid\nfrom datetime import datetime, UTC\n"
    source += (
        "a = time.monotonic(), random.random(), uuid.UUID(int=7), datetime.fromtimestamp(0, UTC), clock.now()"
    )
    assert unclocked(make_project({"sidecar/bursar_sidecar/outbox.py": source})) == []


def test_a_print_is_seen(make_project: MakeProject) -> None:
    bad = make_project(
        {"services/bursar_server/users/rpc.py": "print(1)", "services/bursar_server/cli.py": "print(1)"}
    )
    assert prints(bad) == ["services/bursar_server/users/rpc.py:1: print"]
