"""Amounts are what people typed, to the nano; what cannot be meant is refused on both doors and changes nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from bursar.v1 import budget_service_pb2 as budgets
from bursar.v1 import tenant_service_pb2 as tenants
from bursar.v1 import user_service_pb2 as users
from support.door_clients import Failure, call_grpc
from support.stack import Stack

EMAIL = "nobody-yet@example.com"
MEBIBYTE = "x" * 1_048_576


def everything(stack: Stack) -> list[Any]:
    """Return what an administrator can list; a refused request changes nothing of it."""
    page = {"page_size": 1000}
    return [
        stack.rpc("UserService/ListUsers", page),
        stack.rpc("BudgetService/ListBudgets", page),
        stack.rpc("TenantService/ListTenants", page),
        stack.rpc("TenantService/ListApiKeys", page),
        stack.rpc("TenantService/ListGroups", page),
        stack.rpc("UserService/ListAuditLog", {"limit": 1000}),
    ]


def refused_json(stack: Stack, rpc: str, body: str) -> Failure:
    reply = stack.post(rpc, body)
    assert reply.status == 400, reply.body
    return reply.failure


def refused_grpc(stack: Stack, rpc: str, message: Message) -> Failure:
    failure = call_grpc(stack.grpc_address, rpc, message, token=stack.token).failure
    assert failure is not None
    return failure


@pytest.mark.parametrize(
    ("limit", "nanos"), [("0.1", 100_000_000), ("0", 0), ("0.000000001", 1), ("12.3456789", 12_345_678_900)]
)
def test_an_amount_is_stored_and_read_back_as_it_was_typed(stack: Stack, limit: str, nanos: int) -> None:
    """F044: 0.1 is exactly 100,000,000 nanos, and 0 is 0 and not nothing."""
    email, key = stack.person("amount")
    made = stack.rpc("UserService/SetBudget", f'{{"user_id":"{email}","limit_usd":{limit}}}')["budget"]
    found = stack.rpc("BudgetService/GetBudget", {"budget_id": made["budgetId"]})["budget"]
    status = stack.rpc("UserService/GetMyBudget", {}, key)["budget"]
    for budget in (made, found, status["budget"]):
        assert json.dumps(budget["limitUsd"]) in (limit, f"{limit}.0", "1e-09")
        assert budget["limitUsd"] == float(limit)
        assert int(budget["limitNanos"]) == nanos
    assert int(status["limitNanos"]) == nanos
    native = call_grpc(
        stack.grpc_address,
        "BudgetService/GetBudget",
        budgets.GetBudgetRequest(budget_id=made["budgetId"]),
        token=stack.token,
    )
    read = budgets.GetBudgetResponse.FromString(native.body).budget
    assert read.HasField("limit_usd")
    assert (read.limit_usd, read.limit_nanos) == (float(limit), nanos)


SET = f'{{"user_id":"{EMAIL}","limit_usd":%s}}'
GRANT = f'{{"user_id":"{EMAIL}","amount_usd":1,"reason":"r","expires_at":%s}}'


@pytest.mark.parametrize(
    ("rpc", "body", "field"),
    [
        ("UserService/SetBudget", SET % '"NaN"', "limit_usd"),
        ("UserService/SetBudget", SET % "NaN", ""),
        ("UserService/SetBudget", SET % '"Infinity"', "limit_usd"),
        ("UserService/SetBudget", SET % '"-Infinity"', "limit_usd"),
        ("UserService/SetBudget", SET % "1e400", "limit_usd"),
        ("UserService/SetBudget", SET % "-1", "limit_usd"),
        ("UserService/SetBudget", SET % "0.0000000001", "limit_usd"),
        ("UserService/SetBudget", SET % '1,"limit":2', "limit"),
        ("UserService/SetBudget", SET % '1,"limitUsd":2', "limit_usd"),
        ("UserService/SetBudget", SET % '1,"enforcement":"ENFORCEMENT_HRAD"', "enforcement"),
        ("UserService/SetBudget", SET % '1,"enforcement":99', "enforcement"),
        ("UserService/SetBudget", f'{{"user_id":"{EMAIL}"}}', "limit_usd"),
        ("UserService/CreateGrant", GRANT % '"2099-01-01"', "expires_at"),
        ("UserService/CreateGrant", GRANT % '"2099-01-01T00:00:00"', "expires_at"),
        ("UserService/CreateGrant", f'{{"user_id":"{EMAIL}","amount_usd":-0.01}}', "amount_usd"),
        ("UsageService/GetCostSummary", '{"from":"2026-01-01","to":"2026-02-01T00:00:00Z"}', "from"),
        ("TenantService/CreateTenant", json.dumps({"name": MEBIBYTE}), "name"),
        ("BudgetService/CreateBudget", json.dumps({"budget": {"name": MEBIBYTE, "limit_usd": 1}}), "budget.name"),
        ("UserService/CreateUser", json.dumps({"email": EMAIL, "display_name": MEBIBYTE}), "display_name"),
    ],
    ids=lambda value: value[:70] if isinstance(value, str) else None,
)  # fmt: skip
def test_json_that_cannot_be_meant_is_refused_by_name(stack: Stack, rpc: str, body: str, field: str) -> None:
    """F188: INVALID_ARGUMENT names the field, and nothing has changed."""
    before = everything(stack)
    failure = refused_json(stack, rpc, body)
    assert failure.code == 3
    if field:
        assert field in (*failure.fields, *(name.replace("_time", "") for name in failure.fields))
        assert field.rpartition(".")[2] in failure.message
    assert MEBIBYTE[:10_000] not in failure.message
    assert everything(stack) == before


def a_set(**fields: Any) -> users.SetBudgetRequest:
    wanted: dict[str, Any] = {"user_id": EMAIL, "limit_usd": 1} | fields
    return users.SetBudgetRequest(**wanted)


def a_grant(**fields: Any) -> users.CreateGrantRequest:
    wanted: dict[str, Any] = {
        "user_id": EMAIL,
        "amount_usd": 1,
        "reason": "r",
        "expires_at": Timestamp(seconds=4_070_908_800),
    }
    return users.CreateGrantRequest(**(wanted | fields))


def a_named_budget() -> budgets.CreateBudgetRequest:
    request = budgets.CreateBudgetRequest()
    request.budget.name = MEBIBYTE
    request.budget.limit_usd = 1
    return request


@pytest.mark.parametrize(
    ("rpc", "message", "field"),
    [
        ("UserService/SetBudget", a_set(limit_usd=float("nan")), "limit_usd"),
        ("UserService/SetBudget", a_set(limit_usd=float("inf")), "limit_usd"),
        ("UserService/SetBudget", a_set(limit_usd=float("-inf")), "limit_usd"),
        ("UserService/SetBudget", a_set(limit_usd=-1), "limit_usd"),
        ("UserService/SetBudget", a_set(limit_usd=-5e-324), "limit_usd"),
        ("UserService/SetBudget", a_set(limit_usd=1e-10), "limit_usd"),
        ("UserService/SetBudget", a_set(enforcement=99), "enforcement"),
        ("UserService/SetBudget", a_set(period=99), "period"),
        ("UserService/SetBudget", users.SetBudgetRequest(user_id=EMAIL), "limit_usd"),
        ("UserService/CreateGrant", a_grant(expires_at=Timestamp(seconds=2**62)), "expires_at"),
        ("UserService/CreateGrant", a_grant(amount_usd=-0.01), "amount_usd"),
        ("TenantService/CreateTenant", tenants.CreateTenantRequest(name=MEBIBYTE), "name"),
        ("BudgetService/CreateBudget", a_named_budget(), "budget.name"),
        ("UserService/CreateUser", users.CreateUserRequest(email=EMAIL, display_name=MEBIBYTE), "display_name"),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_grpc_that_cannot_be_meant_is_refused_by_name(
    stack: Stack, rpc: str, message: Message, field: str
) -> None:
    """The native door says the same of the same."""
    before = everything(stack)
    failure = refused_grpc(stack, rpc, message)
    assert failure.code == 3
    assert field in failure.fields
    assert everything(stack) == before


def test_more_than_four_mebibytes_are_too_much(stack: Stack) -> None:
    """RESOURCE_EXHAUSTED on both doors, and nothing has changed."""
    before = everything(stack)
    name = "x" * (4 * 1_048_576 + 1)
    reply = stack.post("TenantService/CreateTenant", {"name": name})
    assert reply.failure.code == 8
    message = tenants.CreateTenantRequest(name=name)
    assert refused_grpc(stack, "TenantService/CreateTenant", message).code == 8
    assert everything(stack) == before
