"""How much output the budgets that guard streams can bear. A token in costs 1 nano, a token out 2."""

from typing import Any

import pytest

from bursar_server.metering.model import PrincipalRef
from support.metering import Ledger


async def bears(
    ledger: Ledger, key: PrincipalRef, input_tokens: int = 10, most: int | None = None
) -> int | None:
    """Return what the Check of a call says; None where nothing is in its way."""
    answer = await ledger.check(key, input_tokens_estimate=input_tokens, max_output_tokens=most)
    assert answer.allowed
    bearable: int | None = answer.guard_output_tokens
    return bearable


async def test_what_a_guarding_budget_bears(ledger: Ledger) -> None:
    """C03, S6: what is left beside other calls' holds, and the user's grants; the tightest of the budgets counts."""
    alice = ledger.user("alice@example.com")
    key = ledger.key(alice)
    ledger.budget("TENANT", 10_000)
    ledger.budget("USER", 310, user_id=alice, guard_streams=True)
    assert await bears(ledger, key) == 150
    ledger.grant(alice, 100)
    assert await bears(ledger, key) == 200
    assert await bears(ledger, key, most=150) is None
    ledger.budget("TENANT", 100, guard_streams=True)
    assert await bears(ledger, key) == 45
    assert await bears(ledger, key, input_tokens=1_000) == 0


@pytest.mark.parametrize("without", [{"enforcement": "SOFT"}, {"shadow": True}, {"guard_streams": False}])
async def test_a_budget_that_cannot_deny_guards_nothing(ledger: Ledger, without: dict[str, Any]) -> None:
    """S3: soft and shadow budgets end no stream, nor does one that nobody asked to."""
    key = ledger.key()
    ledger.budget("TENANT", 100, **({"guard_streams": True} | without))
    assert await bears(ledger, key) is None


async def test_holds_of_others_are_taken_off(ledger: Ledger) -> None:
    """S10: what other calls hold is not there for this one; what it holds itself is."""
    key = ledger.key()
    ledger.budget("TENANT", 300, admission="UPPER_BOUND", guard_streams=True)
    ledger.budget("TENANT", 160, guard_streams=True)
    assert await bears(ledger, key, most=45) is None
    assert await bears(ledger, key, most=95) == 75
