"""The commands of a user of such a system, word for word, with the real `buf` and as plain HTTP with JSON."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.certificates import make_certificate
from support.stack import BIN, SERVE, ControlPlane, Stack, bursar, control_plane, environment, started

SET_BUDGET = """buf curl --protocol connect -H "Authorization: Bearer $TOKEN" \
http://127.0.0.1:8080/bursar.v1.UserService/SetBudget -d '{"user_id":"alice@example.com","limit_usd":10.0}'"""
ALICE = "alice@example.com"
GRANT = (
    '{"user_id":"alice@example.com","amount_usd":25.0,"reason":"Hackathon week",'
    '"starts_at":"2026-01-01T00:00:00Z","expires_at":"2099-01-08T00:00:00Z"}'
)


def shell(command: str, token: str, **replaced: str) -> dict[str, Any]:
    """Run a command as it is written, with `buf` on the path; `replaced` maps addresses to the real ones."""
    for written, real in replaced.items():
        assert written in command
        command = command.replace(written, real)
    done = subprocess.run(
        ["sh", "-c", command], env=environment(TOKEN=token), text=True, capture_output=True, check=False, timeout=30
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert done.stderr == ""
    return dict(json.loads(done.stdout))


def buf(
    plane: ControlPlane, rpc: str, body: str, *options: str, token: str | None = None, url: str = ""
) -> dict[str, Any]:
    """Run `buf curl` without `--schema` against a control plane."""
    authority = ("--cacert", str(plane.authority)) if plane.authority else ()
    header = ("-H", f"Authorization: Bearer {token or plane.token}")
    command = [str(BIN / "buf"), "curl", *options, *authority, *header]
    done = subprocess.run(
        [*command, f"{url or plane.url}/bursar.v1.{rpc}", "-d", body],
        text=True, capture_output=True, check=False, timeout=30,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_the_first_command_works_as_it_is_written(stack: Stack) -> None:
    """F044, F185: SetBudget sets a person's dollars a day, found by reflection over Connect."""
    answer = shell(SET_BUDGET, stack.token, **{"http://127.0.0.1:8080": stack.url})
    budget = answer["budget"]
    assert budget["limitUsd"] == 10
    assert int(budget["limitNanos"]) == 10_000_000_000
    assert budget["period"] == "BUDGET_PERIOD_DAILY"
    assert budget["enforcement"] == "ENFORCEMENT_HARD"


@pytest.mark.parametrize("protocol", ["grpcweb", "grpc --http2-prior-knowledge"])
def test_the_other_protocols_work_on_the_same_door(stack: Stack, protocol: str) -> None:
    """F185: gRPC-Web and gRPC are spoken where Connect is, without a schema."""
    command = SET_BUDGET.replace("--protocol connect", f"--protocol {protocol}")
    answer = shell(command, stack.token, **{"http://127.0.0.1:8080": stack.url})
    assert answer["budget"]["limitUsd"] == 10


def test_grpc_works_on_its_own_door(stack: Stack) -> None:
    """F185: the native door has reflection too."""
    command = SET_BUDGET.replace("--protocol connect", "--protocol grpc --http2-prior-knowledge")
    answer = shell(command, stack.token, **{"127.0.0.1:8080": stack.grpc_address})
    assert answer["budget"]["limitUsd"] == 10


@pytest.fixture
def secure(database_url: str, folder: Path) -> Iterator[ControlPlane]:
    """A control plane with TLS on both doors."""
    certificate, key = make_certificate(folder)
    environ = environment(
        BURSAR_DATABASE_URL=database_url,
        BURSAR_DATA_DIR=str(folder / "data"),
        BURSAR_TLS_CERT=str(certificate),
        BURSAR_TLS_KEY=str(key),
    )
    with started(SERVE, environ, folder) as child:
        yield control_plane(child, folder / "data", certificate)


def test_all_of_it_works_over_https(secure: ControlPlane) -> None:
    """F185: one certificate serves both doors, in every protocol."""
    body = '{"user_id":"alice@example.com","limit_usd":10.0}'
    for protocol in ("connect", "grpcweb", "grpc"):
        answer = buf(secure, "UserService/SetBudget", body, "--protocol", protocol)
        assert answer["budget"]["limitUsd"] == 10
    native = f"https://{secure.grpc_address}"
    answer = buf(secure, "UserService/SetBudget", body, "--protocol", "grpc", url=native)
    assert answer["budget"]["limitUsd"] == 10
    assert secure.rpc("UserService/SetBudget", json.loads(body))["budget"]["limitUsd"] == 10


def test_alice_asks_what_she_has_left(stack: Stack) -> None:
    """F008, F072: GetMyBudget answers a person's own token and her app's own key."""
    stack.rpc("UserService/SetBudget", {"user_id": ALICE, "limit_usd": 10.0})
    made = bursar(
        "token", "create", "--user", ALICE, environ=environment(BURSAR_DATA_DIR=str(stack.data_dir))
    )
    assert made.returncode == 0, made.stderr
    token = made.stdout.strip()
    assert token.startswith("bat_")
    assert token not in made.stderr
    for credential in (token, stack.key_for(ALICE)):
        for answer in (
            buf(stack, "UserService/GetMyBudget", "{}", "--protocol", "connect", token=credential),
            stack.rpc("UserService/GetMyBudget", {}, credential),
        ):
            assert answer["budget"]["budget"]["limitUsd"] == 10
            assert answer["user"]["email"] == ALICE
            assert answer["budgetRemainingUsd"] == 10
            assert answer["totalRemainingUsd"] == answer["budgetRemainingUsd"] + answer["grantsRemainingUsd"]
            assert answer["periodKey"]
            assert answer["periodResetTime"].endswith("T00:00:00Z")
        refused = stack.post("UserService/SetBudget", {"user_id": ALICE, "limit_usd": 99}, token=credential)
        assert (refused.status, refused.json["code"]) == (403, "permission_denied")


def test_a_grant_has_all_its_fields(stack: Stack) -> None:
    """F074, F075, F080: an amount, a reason, a beginning and an end."""
    email, key = stack.person("granted", 1)
    body = GRANT.replace(ALICE, email)
    for grant in (
        buf(stack, "UserService/CreateGrant", body, "--protocol", "connect")["grant"],
        stack.rpc("UserService/CreateGrant", json.loads(body))["grant"],
    ):
        assert grant["grantId"]
        assert (grant["amountUsd"], grant["spentUsd"], grant["remainingUsd"]) == (25, 0, 25)
        assert grant["reason"] == "Hackathon week"
        assert grant["startsAt"] == "2026-01-01T00:00:00Z"
        assert grant["expiresAt"] == "2099-01-08T00:00:00Z"
        assert grant["status"] == "GRANT_STATUS_ACTIVE"
    mine = stack.rpc("UserService/GetMyBudget", {}, key)
    assert (mine["grantsRemainingUsd"], mine["totalRemainingUsd"]) == (50, 51)


def test_a_rate_limit_is_set(stack: Stack) -> None:
    """F092, F094: sixty a minute unless changed."""
    email, _ = stack.person("limited")
    user = stack.rpc("UserService/GetUser", {"user_id": email})["user"]
    assert user["rateLimit"] == 60
    body = json.dumps({"id": user["userId"], "rate_limit": 120})
    assert buf(stack, "UserService/UpdateUser", body, "--protocol", "connect")["user"]["rateLimit"] == 120
    assert stack.rpc("UserService/UpdateUser", {"id": email, "rate_limit": 0})["user"]["rateLimit"] == 0


def test_the_audit_log_tells_who_did_what(stack: Stack) -> None:
    """F173, F175, F177: every change of an administrator, the newest first, chained by hashes."""
    email, _ = stack.person("audited", 1, reason="a trial")
    user = stack.rpc("UserService/GetUser", {"user_id": email})["user"]
    stack.rpc("UserService/CreateGrant", json.loads(GRANT.replace(ALICE, email)))
    body = json.dumps({"user_id": user["userId"], "limit": 20})
    answer = buf(stack, "UserService/ListAuditLog", body, "--protocol", "connect")
    entries = answer["entries"]
    assert entries == stack.rpc("UserService/ListAuditLog", json.loads(body))["entries"]
    assert len(entries) <= 20
    assert "create_grant" in {entry["action"] for entry in entries}
    assert "set_budget" in {entry["action"] for entry in entries}
    for entry in entries:
        assert entry["userId"] == user["userId"]
        assert entry["actor"]
        assert len(entry["hash"]) == 64
        assert entry["createTime"]
    assert [entry["createTime"] for entry in entries] == sorted(
        (entry["createTime"] for entry in entries), reverse=True
    )
