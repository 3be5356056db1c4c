"""Everything stands where someone would look for it: the top folders, and the same file names in every feature."""

from __future__ import annotations

from tidy.conftest import MakeProject
from tidy.project import Project, expect_none, matches

TOP_FOLDERS = {
    ".ci",
    "bench",
    "deploy",
    "docs",
    "gen",
    "proto",
    "services",
    "sidecar",
    "tests",
    "tools",
    "web",
}

TOP_FILES = {
    ".editorconfig",
    ".gitattributes",
    ".gitignore",
    ".importlinter",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "SECURITY.md",
    "buf.gen.yaml",
    "buf.yaml",
    "pyproject.toml",
    "requirements.lock",
}

# One import package under each source root.
PACKAGES = {"gen": "bursar", "services": "bursar_server", "sidecar": "bursar_sidecar"}

SERVER = "services/bursar_server"
SERVER_FILES = {
    "__init__.py",
    "__main__.py",
    "bootstrap.py",
    "cli.py",
    "config.py",
    "demo.py",
    "doctor.py",
    "process.py",
    "py.typed",
    "secrets.py",
    "settings.py",
    "telemetry.py",
    "up.py",
}
SERVER_FOLDERS = {"console", "db", "kit", "rpc"}
FEATURES = {
    "audit",
    "budgets",
    "chargeback",
    "compliance",
    "grants",
    "groups",
    "keys",
    "ledger",
    "metering",
    "notify",
    "pricing",
    "tenants",
    "tokens",
    "usage",
    "users",
    "verify",
}
FEATURE_FILES = {"__init__.py", "README.md", "model.py", "rules.py", "service.py", "store.py", "rpc.py"}

# What a feature has beside the usual files, because it does something that no other does.
FEATURE_EXTRAS: dict[str, set[str]] = {
    # A lane's batch is a service of several parts: who runs it, the transaction, and what each kind of call does in it.
    "metering": {
        "ahead.py",
        "batch.py",
        "batches.py",
        "checks.py",
        "context.py",
        "deducts.py",
        "directory.py",
        "evaluation.py",
        "history.py",
        "inbox.py",
        "lane.py",
        "memory.py",
        "needs.py",
        "observer.py",
        "session.py",
        "tickets.py",
        "waits.py",
        "writes.py",
    },
    # The rows of the batch's statements, and the translation of the catalogue's data, are long enough for their own files.
    "ledger": {"rows.py"},
    "pricing": {"catalogue.py", "patterns.py"},
    # The proof of the books is a service of several checks, with more SQL than one file holds, and a screen of its own.
    "verify": {"accounts.py", "calls.py", "proofs.py", "rollups.py", "screen.py", "statements.py", "work.py"},
}

TEST_FOLDERS = {"chaos", "contract", "database", "e2e", "golden", "support", "tidy", "unit"}


def misplaced(project: Project) -> list[str]:
    return [path for path in project.files if not _has_a_place(path)]


def _has_a_place(path: str) -> bool:
    parts = path.split("/")
    if len(parts) == 1:
        return path in TOP_FILES
    if parts[0] in PACKAGES and parts[1] != PACKAGES[parts[0]]:
        return False
    if matches(path, f"{SERVER}/**/*"):
        return _has_a_place_in_the_server(parts[2:])
    if parts[0] == "proto":
        return matches(path, "proto/bursar/v1/*.proto")
    if parts[0] == "tests":
        return parts[1] in TEST_FOLDERS or parts[1:] in (["__init__.py"], ["conftest.py"])
    return parts[0] in TOP_FOLDERS


def _has_a_place_in_the_server(parts: list[str]) -> bool:
    if len(parts) == 1:
        return parts[0] in SERVER_FILES
    if parts[0] in FEATURES:
        return len(parts) == 2 and parts[1] in FEATURE_FILES | FEATURE_EXTRAS.get(parts[0], set())
    return parts[0] in SERVER_FOLDERS


def half_features(project: Project) -> list[str]:
    """A public feature has a service behind its rpc, and a store never stands without a service."""
    found = []
    for feature in sorted(FEATURES):
        files = {path.rsplit("/", 1)[1] for path in project.matching(f"{SERVER}/{feature}/*")}
        if files & {"rpc.py", "store.py"} and "service.py" not in files:
            found.append(f"{SERVER}/{feature}: no service.py")
    return found


def test_every_file_has_its_place(project: Project) -> None:
    expect_none(misplaced(project))


def test_every_feature_is_whole(project: Project) -> None:
    expect_none(half_features(project))


def test_a_stray_file_is_seen(make_project: MakeProject) -> None:
    bad = [
        "notes.txt",
        "scripts/run.sh",
        "services/other/x.py",
        f"{SERVER}/common.py",
        f"{SERVER}/payments/service.py",
        f"{SERVER}/users/repository.py",
        f"{SERVER}/users/deep/service.py",
        "sidecar/setup.py",
        "tests/integration/test_x.py",
        "proto/bursar/v2/x.proto",
    ]
    good = [
        "README.md",
        f"{SERVER}/users/service.py",
        f"{SERVER}/db/migrations/env.py",
        "sidecar/bursar_sidecar/app.py",
    ]
    assert misplaced(make_project(dict.fromkeys(bad + good, ""))) == sorted(bad)


def test_half_a_feature_is_seen(make_project: MakeProject) -> None:
    bad = make_project(
        {f"{SERVER}/users/store.py": "", f"{SERVER}/usage/rpc.py": "", f"{SERVER}/usage/service.py": ""}
    )
    assert half_features(bad) == [f"{SERVER}/users: no service.py"]
