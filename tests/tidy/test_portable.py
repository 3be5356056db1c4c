"""Nothing in the repository points at one machine, one package index or one tracker's numbers."""

from __future__ import annotations

import json
import re

import pytest

from tidy.conftest import MakeProject
from tidy.project import Project, expect_none, matches

# Written in pieces, so that this file does not find itself.
TRACES = {
    "a path of one machine": re.compile(
        r"(?<![\w.~-])/(?:home/[a-z]|Users/[A-Z]|root/|work/|opt/(?:pypi|wheels|npm))|\b[C]:\\\\"
    ),
    "a registry's host": re.compile(
        r"\b(?:pypi\.(?:org|python\.org)|pythonhosted\.org|registry\.(?:npmjs\.org|npmmirror\.com|yarnpkg\.com)|"
        r"proxy\.golang\.org|npmjs\.com)"
    ),
}
# A number of a tracker means nothing to who reads a clone; an address of somebody else's is a source.
NUMBER = re.compile(r"(?<![\w&/#])#\d{1,5}\b(?!-)|\b(?:issue|pull request|ticket|PR) #?\d+\b", re.IGNORECASE)
NUMBERED = ("**/*.md", "**/*.py", "**/*.proto", "**/*.toml", "**/*.yaml", "**/*.yml", "Makefile", ".ci/run")


def traces(project: Project) -> list[str]:
    found = []
    for path, text in project.texts.items():
        for number, line in enumerate(text.splitlines(), start=1):
            found += [f"{path}:{number}: {what}" for what, pattern in TRACES.items() if pattern.search(line)]
            if matches(path, *NUMBERED) and not path.startswith("gen/") and NUMBER.search(line):
                found.append(f"{path}:{number}: a tracker's number")
    return found


def lock_files_that_name_an_index(project: Project) -> list[str]:
    """Exact versions and hashes are enough; which mirror they come from is the installer's affair."""
    found = []
    for path in project.matching("**/requirements*.lock", "**/requirements*.txt"):
        for number, line in enumerate(project.text(path).splitlines(), start=1):
            if "://" in line or re.match(r"\s*(-i\b|--(extra-)?index-url|--find-links|--trusted-host)", line):
                found.append(f"{path}:{number}: {line.strip()}")
    for path in project.matching("**/package-lock.json"):
        packages = json.loads(project.text(path)).get("packages", {})
        found += [f"{path}: {name} has 'resolved'" for name, entry in packages.items() if "resolved" in entry]
    return found


def test_nothing_points_at_one_machine_or_registry(project: Project) -> None:
    expect_none(traces(project))


def test_lock_files_name_no_index(project: Project) -> None:
    expect_none(lock_files_that_name_an_index(project))


@pytest.mark.parametrize(
    "line",
    [
        "/".join(["see ", "home", "alice", "bursar"]),
        "/".join(["", "work", "main"]),
        "/".join(["find-links = ", "opt", "wheels"]),
        "/".join(["", "root", ".cache"]),
        "https://" + "pypi" + ".org/project/x",
        "https://files." + "pythonhosted" + ".org/packages",
        "registry." + "npmjs" + ".org",
        "see #" + "12",
        "fixes issue " + "7",
        "(PR #" + "99)",
    ],
)
def test_a_trace_is_seen(make_project: MakeProject, line: str) -> None:
    assert len(traces(make_project({"docs/a.md": f"fine\n{line}\n"}))) == 1


@pytest.mark.parametrize(
    "line",
    [
        "[a record](adr/0001-x.md#1-context) and [a heading](#2-what)",
        "https://github.com/connectrpc/connect-py/issues/176",
        "`/v1/homes`, ./work/x, ~/work/, a/root/b, &#39;",
        "PyPI has it; use npm.",
        "#!/usr/bin/env bash",
    ],
)
def test_these_are_no_traces(make_project: MakeProject, line: str) -> None:
    expect_none(traces(make_project({"docs/a.md": line})))


def test_a_lock_file_with_a_host_is_seen(make_project: MakeProject) -> None:
    bad = make_project(
        {
            "requirements.lock": "--index-url https://mirror.example/simple\nattrs==1.0 \\\n    --hash=sha256:00\n",
            "web/package-lock.json": json.dumps(
                {"packages": {"": {}, "node_modules/a": {"resolved": "https://mirror.example/a.tgz"}}}
            ),
        }
    )
    assert len(lock_files_that_name_an_index(bad)) == 2
