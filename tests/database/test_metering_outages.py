"""What the control plane says for the time when it cannot be asked, and what it notes of that time afterwards."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from bursar.v1 import budget_pb2
from bursar.v1 import metering_service_pb2 as pb
from bursar_server.budgets.model import OnUnreachable
from bursar_server.kit.caller import Caller, Role
from bursar_server.kit.errors import BursarError, Reason
from bursar_server.metering.model import PrincipalRef, RefusedCalls, ReleaseCall
from bursar_server.metering.rpc import check_call, check_response, deduct_call, release_call
from support.metering import PLATFORM, Ledger, ledger_on, new_id

SIDECAR = Caller(Role.SIDECAR, "sidecar")
OPEN, LAST = OnUnreachable.OPEN, OnUnreachable.LAST_KNOWN_GOOD


@pytest.fixture
async def ledger(database_url: str) -> AsyncIterator[Ledger]:
    async with ledger_on(database_url) as running:
        yield running


def key_id(ledger: Ledger, key: PrincipalRef) -> UUID:
    [(found,)] = ledger.sql("SELECT api_key_id FROM api_keys WHERE key_sha256 = %s", key.api_key_sha256)
    return UUID(str(found))


def events(ledger: Ledger, action: str) -> list[tuple[Any, ...]]:
    return ledger.sql(
        "SELECT actor, resource, user_id, details FROM audit_events WHERE action = %s ORDER BY sequence",
        action,
    )


async def test_a_check_says_the_strictest_word_of_its_budgets(ledger: Ledger) -> None:
    """CLOSED, then LAST_KNOWN_GOOD, then OPEN; S3: soft and shadow budgets have no say, and silence is the sidecar's."""
    key = ledger.key()
    silent = ledger.budget("TENANT", 1_000)
    assert (await ledger.check(key)).outlook is None
    ledger.budget("TENANT", 1_000, enforcement="SOFT", on_unreachable="CLOSED")
    ledger.budget("TENANT", 1_000, shadow=True, on_unreachable="CLOSED")
    assert (await ledger.check(key)).outlook is None
    ledger.budget("KEY", 1_000, api_key_id=key_id(ledger, key), on_unreachable="OPEN")
    assert (await ledger.check(key)).outlook.policy is OPEN
    ledger.budget("GLOBAL", 1_000, tenant_id=PLATFORM, on_unreachable="LAST_KNOWN_GOOD")
    outlook = (await ledger.check(key)).outlook
    assert (outlook.policy, len(outlook.budgets)) == (LAST, 3)
    assert silent in {left.budget_id for left in outlook.budgets}
    ledger.budget("TENANT", 1_000, on_unreachable="CLOSED")
    assert (await ledger.check(key)).outlook.policy is OnUnreachable.CLOSED


async def test_a_check_says_what_each_budget_has_left(ledger: Ledger) -> None:
    """S2, S7, S10, C13: held amounts are taken off, grants stand beside the user's budget, tokens are tokens."""
    alice = ledger.user("alice@example.com")
    key = ledger.key(alice)
    money = ledger.budget("TENANT", 1_000, admission="UPPER_BOUND")
    tokens = ledger.budget("TENANT", None, limit_tokens=500)
    own = ledger.budget("USER", 300, user_id=alice)
    ledger.grant(alice, 200)
    await ledger.call(key)
    outlook = (await ledger.check(key, with_budgets=True)).outlook
    assert outlook.policy is None
    assert {left.budget_id: (left.amount, left.in_tokens) for left in outlook.budgets} == {
        money: (1_000 - 100 - 100, False),
        tokens: (500 - 55, True),
        own: (300 + 100, False),
    }
    assert not outlook.by_tags
    ledger.budget("TAG", 1_000, tag_key="team", tag_value="core")
    assert (await ledger.check(key, with_budgets=True)).outlook.by_tags


async def test_a_denied_check_says_it_too(ledger: Ledger) -> None:
    key = ledger.key()
    budget = ledger.budget("TENANT", 90, on_unreachable="LAST_KNOWN_GOOD")
    await ledger.call(key)
    denied = await ledger.check(key)
    assert not denied.allowed
    assert [(left.budget_id, left.amount) for left in denied.outlook.budgets] == [(budget, 0)]


async def test_a_call_that_was_let_through_is_noted_where_it_is_charged(ledger: Ledger) -> None:
    """S16, S20: one event for each such call, in its Deduct's transaction; a repeat notes nothing."""
    alice = ledger.user("alice@example.com")
    key = ledger.key(alice)
    ledger.budget("TENANT", 1_000)
    request_id = new_id()
    answer = await ledger.deduct(key, request_id, degraded=LAST)
    assert answer.unchecked
    assert (await ledger.deduct(key, request_id, degraded=LAST)).duplicate
    await ledger.deduct(key, new_id())
    details = {
        "request_id": str(request_id),
        "policy": "LAST_KNOWN_GOOD",
        "provider": "openai",
        "model": "test-model",
        "cost_usd": "0.0000001",
    }
    assert events(ledger, "DEGRADED_ALLOW") == [("alice@example.com", f"call/{request_id}", alice, details)]
    ledger.assert_books()


async def test_a_call_whose_check_was_not_heard_is_noted_as_well(ledger: Ledger) -> None:
    """Its hold stands, and is settled; who decided was the sidecar."""
    key = ledger.key()
    ledger.budget("TENANT", 1_000)
    check = await ledger.check(key)
    answer = await ledger.deduct(key, check.request_id, degraded=OPEN)
    assert not answer.unchecked
    assert [details["policy"] for *_, details in events(ledger, "DEGRADED_ALLOW")] == ["OPEN"]


async def test_refused_calls_are_noted_once(ledger: Ledger) -> None:
    """One event for each report, however often it comes; nothing is charged and nobody sees a call."""
    alice = ledger.user("alice@example.com")
    key = ledger.key(alice)
    ledger.budget("TENANT", 1_000)
    at = datetime(2026, 5, 1, 12, tzinfo=UTC)
    report = ReleaseCall(new_id(), key, None, RefusedCalls(7, OnUnreachable.CLOSED, at, at))
    for _ in range(2):
        assert not (await ledger.service.release(report)).released
    details = {
        "report_id": str(report.request_id),
        "policy": "CLOSED",
        "calls": 7,
        "first_time": "2026-05-01T12:00:00+00:00",
        "last_time": "2026-05-01T12:00:00+00:00",
    }
    [(actor, resource, user_id, found)] = events(ledger, "DEGRADED_DENY")
    assert (actor, user_id, found) == ("alice@example.com", alice, details)
    assert resource == f"api_key/{key_id(ledger, key)}"
    assert ledger.sql("SELECT coalesce(sum(requests), 0) FROM rollup_days") == [(0,)]
    ledger.assert_books()


async def test_what_nobody_s_keys_were_refused_is_in_no_trail(ledger: Ledger) -> None:
    """A key that nobody has, and a tenant that the sidecar's token is not for: the report is taken and forgotten."""
    refused = RefusedCalls(7, OnUnreachable.CLOSED, None, None)
    nobody = ReleaseCall(new_id(), PrincipalRef("f" * 64), None, refused)
    foreign = ReleaseCall(new_id(), ledger.key(), frozenset({PLATFORM}), refused)
    for report in (nobody, foreign):
        assert not (await ledger.service.release(report)).released
    assert events(ledger, "DEGRADED_DENY") == []
    with pytest.raises(BursarError) as raised:
        await ledger.service.release(ReleaseCall(new_id(), PrincipalRef("f" * 64), None))
    assert raised.value.reason is Reason.PRINCIPAL_UNKNOWN


async def test_the_contract_says_it_all(ledger: Ledger) -> None:
    key = ledger.key()
    money = ledger.budget("TENANT", 1_000, on_unreachable="LAST_KNOWN_GOOD")
    tokens = ledger.budget("TENANT", None, limit_tokens=500)
    message = check_response(await ledger.check(key))
    assert message.on_unreachable == budget_pb2.ON_UNREACHABLE_LAST_KNOWN_GOOD
    left = {one.budget_id: one for one in message.budgets}
    assert left[str(money)].remaining_nanos == 1_000
    assert left[str(tokens)].remaining_tokens == 500
    assert not left[str(tokens)].HasField("remaining_nanos")
    asked = pb.CheckRequest(request_id=str(new_id()), api_key_sha256=key.api_key_sha256, with_budgets=True)
    assert check_call(asked, SIDECAR, None).with_budgets
    charge = pb.DeductRequest(
        request_id=str(new_id()), api_key_sha256=key.api_key_sha256, degraded=budget_pb2.ON_UNREACHABLE_OPEN
    )
    assert deduct_call(charge, SIDECAR).degraded is OPEN
    plain = pb.ReleaseHoldRequest(request_id=str(new_id()), api_key_sha256=key.api_key_sha256)
    assert release_call(plain, SIDECAR).refused is None
    plain.refused.calls = 3
    plain.refused.user_id = "bob@example.com"
    plain.refused.policy = budget_pb2.ON_UNREACHABLE_LAST_KNOWN_GOOD
    plain.refused.first_time.CopyFrom(Timestamp(seconds=1))
    report = release_call(plain, SIDECAR)
    assert report.principal == PrincipalRef(key.api_key_sha256, "bob@example.com")
    assert report.refused == RefusedCalls(3, LAST, datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC), None)
    for field, value in (("calls", -1), ("policy", 99)):
        wrong = pb.ReleaseHoldRequest()
        wrong.CopyFrom(plain)
        setattr(wrong.refused, field, value)
        with pytest.raises(BursarError) as raised:
            release_call(wrong, SIDECAR)
        assert raised.value.field == f"refused.{field}"
