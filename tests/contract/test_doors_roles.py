"""The table of roles against what the protos promise and what the descriptors have."""

from __future__ import annotations

import re
from pathlib import Path

from bursar_server.kit.caller import Role
from bursar_server.rpc.auth import ABOUT_ONESELF, ROLES
from bursar_server.rpc.services import files, rpcs
from support.doors import Users, services_without_a_database

PROTOS = Path(__file__).resolve().parents[2] / "proto/bursar/v1"
SERVICE = re.compile(r"((?:^//.*\n)*)^service (\w+) \{\n((?:  .*\n)*)\}", re.MULTILINE)
RPC = re.compile(r"((?:^  //.*\n)*)^  rpc (\w+)\(", re.MULTILINE)
PROMISE = re.compile(r"Roles: ([^.]*)\.")


def comment(text: str) -> str:
    return " ".join(line.strip().removeprefix("//").strip() for line in text.splitlines())


def promised() -> dict[str, frozenset[Role]]:
    """Read `Roles: a, b; c for its groups.` and `Roles: as OtherRpc.` from the comments of the RPCs."""
    found: dict[str, frozenset[Role]] = {}
    for file in sorted(PROTOS.glob("*_service.proto")):
        for about, service, body in SERVICE.findall(file.read_text(encoding="utf-8")):
            for text, name in RPC.findall(body):
                path = f"/bursar.v1.{service}/{name}"
                promise = PROMISE.search(comment(text))
                if promise is None:
                    found[path] = _without_a_promise(path, comment(about))
                elif promise[1].startswith("as "):
                    found[path] = found[f"/bursar.v1.{service}/{promise[1].removeprefix('as ')}"]
                else:
                    words = re.findall(r"[a-z]+_[a-z]+", promise[1])
                    found[path] = frozenset(Role[word.upper()] for word in words)
    return found


def _without_a_promise(path: str, about: str) -> frozenset[Role]:
    if path in ABOUT_ONESELF:
        return frozenset(Role) - {Role.SIDECAR}
    # The sidecar's service says it once for all; the operator may look for itself.
    assert "(role `sidecar`)" in about, path
    return frozenset({Role.SIDECAR, Role.PLATFORM_ADMIN})


def test_the_table_says_what_the_protos_promise() -> None:
    """C11: who may call what."""
    assert promised() == ROLES


def test_the_table_has_every_rpc_and_no_other() -> None:
    declared = {
        f"/{service.full_name}/{method.name}"
        for file in files()
        for service in file.services_by_name.values()
        for method in service.methods
    }
    assert set(ROLES) == declared
    declared_in = {file.name for file in files()}
    assert declared_in == {f"bursar/v1/{file.name}" for file in PROTOS.glob("*_service.proto")}


def test_deleting_is_for_admins() -> None:
    """F005: a developer creates and edits; delete is admin-only."""
    for path, allowed in ROLES.items():
        method = path.rpartition("/")[2]
        if method.startswith(("Delete", "Revoke", "Reset", "Deactivate")):
            assert Role.TENANT_DEVELOPER not in allowed, path
            assert Role.TENANT_ADMIN in allowed, path


def test_a_sidecar_meters_and_nothing_else() -> None:
    """C11."""
    assert {path.split("/")[1] for path, allowed in ROLES.items() if Role.SIDECAR in allowed} == {
        "bursar.v1.MeteringService"
    }
    assert {path for path, allowed in ROLES.items() if Role.MEMBER in allowed} == ABOUT_ONESELF


def test_every_rpc_is_served() -> None:
    found = {
        f"/{rpc.info.service_name}/{rpc.info.name}" for rpc in rpcs(services_without_a_database(Users()))
    }
    assert found == set(ROLES)
