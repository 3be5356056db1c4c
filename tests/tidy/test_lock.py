"""requirements.lock is what pyproject.toml asks for: exact, hashed, complete, and installable by make."""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tools.bench_weight import constraints

from tidy.conftest import MakeProject
from tidy.project import Project, expect_none

PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^ ;\\]+)", re.MULTILINE)

# `connectrpc` under its former name: both write into one import package.
NEVER = {"connect-python"}


def wanted(project: Project) -> list[Requirement]:
    """Return every requirement of pyproject.toml: the client's, the extras', the build's and the developers'."""
    data = tomllib.loads(project.text("pyproject.toml"))
    lines = list(data["project"].get("dependencies", []))
    for extra in data["project"].get("optional-dependencies", {}).values():
        lines += extra
    lines += [line for group in data.get("dependency-groups", {}).values() for line in group]
    lines += data.get("build-system", {}).get("requires", [])
    return [Requirement(line) for line in lines if Requirement(line).name != data["project"]["name"]]


def lock_drift(project: Project) -> list[str]:
    text = project.text("requirements.lock")
    pins = {canonicalize_name(name): version for name, version in PIN.findall(text)}
    blocks = {
        canonicalize_name(block.split("==")[0].split("[")[0]): block for block in re.split(r"\n(?=\S)", text)
    }
    found = []
    for requirement in wanted(project):
        version = pins.get(canonicalize_name(requirement.name))
        if version is None:
            found.append(f"{requirement}: not locked")
        elif not requirement.specifier.contains(version, prereleases=True):
            found.append(f"{requirement}: locked at {version}")
    found += [f"{name}: no hash" for name in pins if "--hash=sha256:" not in blocks[name]]
    found += [f"{name}: must not be installed" for name in NEVER & pins.keys()]
    asked = {canonicalize_name(requirement.name) for requirement in wanted(project)}
    for name, block in blocks.items():
        reasons = set(re.findall(r"#\s+(?:via )?([A-Za-z0-9._-]+)", block)) - {"via"}
        if name in pins and reasons == {"bursar"} and name not in asked:
            found.append(f"{name}: locked, but no longer asked for")
    return sorted(found)


def test_the_lock_file_is_what_pyproject_asks_for(project: Project) -> None:
    expect_none(lock_drift(project))


PYPROJECT = """
[project]
name = "bursar"
dependencies = ["attrs>=25"]
[project.optional-dependencies]
server = ["Brotli>=1"]
all = ["bursar[server]"]
[dependency-groups]
dev = ["pytest==9.0"]
"""
LOCK = """attrs==26.1.0 \\
    --hash=sha256:00
    # via bursar (pyproject.toml)
brotli==1.2 \\
    --hash=sha256:00
    # via
    #   bursar (pyproject.toml)
    #   attrs
pytest==9.0 \\
    --hash=sha256:00
    # via bursar (pyproject.toml:dev)
"""


@pytest.mark.parametrize(
    ("old", "new", "finding"),
    [
        ("", "", None),
        ("attrs==26.1.0", "attrs==24.1.0", "attrs>=25: locked at 24.1.0"),
        ("brotli==1.2", "zstd==1.2", "Brotli>=1: not locked"),
        ("pytest==9.0 \\\n    --hash=sha256:00\n", "pytest==9.0\n", "pytest: no hash"),
        (
            "attrs==26.1.0",
            "connect-python==1 \\\n    --hash=sha256:00\nattrs==26.1.0",
            "connect-python: must not",
        ),
        (
            "pytest==",
            "left-over==1 \\\n    --hash=sha256:00\n    # via bursar (pyproject.toml)\npytest==",
            "left-over:",
        ),
    ],
)
def test_drift_is_seen(make_project: MakeProject, old: str, new: str, finding: str | None) -> None:
    found = lock_drift(
        make_project({"pyproject.toml": PYPROJECT, "requirements.lock": LOCK.replace(old, new)})
    )
    if finding is None:
        assert found == []
    else:
        assert any(line.startswith(finding) for line in found), found


def test_the_lock_file_as_constraints_has_no_hashes() -> None:
    lock = LOCK.replace("brotli==1.2", "brotli==1.2 ; sys_platform != 'win32'").replace(
        "attrs==", "attrs[x]=="
    )
    assert constraints(lock) == "attrs==26.1.0\nbrotli==1.2 ; sys_platform != 'win32'\npytest==9.0\n"
