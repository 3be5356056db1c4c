"""Two control-plane processes on one database answer as one."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

import pytest

from bursar_server.kit.ids import uuid7_at
from support.database import DatabaseServer
from support.stack import SERVE, ControlPlane, control_plane, environment, scratch_folder, started

INPUT, OUTPUT = 1_000, 1_000
# A dollar a million in, two out: such a call costs at most 0.003 dollars.
MODEL, CALL_NANOS = "two-planes", 3_000_000


@pytest.fixture(scope="module")
def planes(
    database_server: DatabaseServer, template_database: str
) -> Iterator[tuple[ControlPlane, ControlPlane]]:
    """Two processes with a data directory each and one database."""
    name = database_server.create(template=template_database)
    database_url = database_server.url(name)
    with ExitStack() as stack:
        stack.callback(database_server.drop, name)
        folder = stack.enter_context(scratch_folder())
        found = []
        for name in ("one", "other"):
            environ = environment(BURSAR_DATABASE_URL=database_url, BURSAR_DATA_DIR=str(folder / name))
            child = stack.enter_context(started(SERVE, environ, folder))
            found.append(control_plane(child, folder / name))
        one, other = found
        price = {"model_pattern": MODEL, "input_usd_per_million": 1, "output_usd_per_million": 2}
        one.rpc("PricingService/CreatePrice", {"price": price})
        yield one, other


def check(plane: ControlPlane, email: str) -> dict[str, Any]:
    """Ask whether a user may make a call, as a sidecar does."""
    asked = {
        "request_id": str(uuid7_at(datetime.now(UTC))),
        "user_id": email,
        "provider": "openai",
        "model": MODEL,
        "input_tokens_estimate": INPUT,
        "max_output_tokens": OUTPUT,
    }
    return plane.rpc("MeteringService/Check", asked)


def allowed(plane: ControlPlane, email: str) -> bool:
    return bool(check(plane, email)["decision"] == "DECISION_ALLOW")


def until(plane: ControlPlane, email: str, wanted: bool) -> float:
    """Return after how many seconds a plane decides so."""
    began = time.monotonic()
    while allowed(plane, email) != wanted:
        assert time.monotonic() - began < 5
        time.sleep(0.01)
    return time.monotonic() - began


def test_a_token_of_one_is_known_to_the_other(planes: tuple[ControlPlane, ControlPlane]) -> None:
    """What is made through one is there through the other."""
    one, other = planes
    email, _ = one.person("shared", 1)
    assert other.rpc("UserService/GetUser", {"user_id": email}, one.token)["user"]["email"] == email
    assert one.rpc("UserService/GetUser", {"user_id": email}, other.token)["user"]["email"] == email


def test_a_change_through_one_binds_in_the_other_within_a_second(
    planes: tuple[ControlPlane, ControlPlane],
) -> None:
    """S13: a limit set, raised, a grant, a reset, a key's budget: all of it counts at once everywhere."""
    one, other = planes
    email, _ = one.person("moved")
    assert allowed(one, email)
    assert allowed(other, email)
    for changed, asked in ((one, other), (other, one)):
        changed.rpc("UserService/SetBudget", {"user_id": email, "limit_usd": 0})
        assert until(asked, email, wanted=False) < 1
        changed.rpc("UserService/SetBudget", {"user_id": email, "limit_usd": 5})
        assert until(asked, email, wanted=True) < 1
    one.rpc("UserService/SetBudget", {"user_id": email, "limit_usd": 0})
    assert until(other, email, wanted=False) < 1
    grant = {"user_id": email, "amount_usd": 1, "reason": "r", "expires_at": "2099-01-01T00:00:00Z"}
    granted = one.rpc("UserService/CreateGrant", grant)["grant"]
    assert until(other, email, wanted=True) < 1
    other.rpc("UserService/RevokeGrant", {"grant_id": granted["grantId"], "reason": "r"})
    assert until(one, email, wanted=False) < 1
    one.rpc("UserService/SetBudget", {"user_id": email, "limit_usd": 5})
    one.rpc("UserService/DeactivateUser", {"user_id": email})
    assert until(other, email, wanted=False) < 1


def test_of_forty_calls_at_once_the_ten_that_fit_get_through(
    planes: tuple[ControlPlane, ControlPlane],
) -> None:
    """C03, S2, S9, S10, S14: an upper bound holds across processes, and both settle into one account."""
    email, _ = planes[0].person("many", 10 * CALL_NANOS / 1e9, admission="ADMISSION_UPPER_BOUND")
    with ThreadPoolExecutor(40) as pool:
        answers = list(
            pool.map(lambda plane: check(plane, email), itertools.islice(itertools.cycle(planes), 40))
        )
    allows = [answer for answer in answers if answer["decision"] == "DECISION_ALLOW"]
    assert len(allows) == 10
    assert {int(answer["heldNanos"]) for answer in allows} == {CALL_NANOS}
    for plane in planes:
        status = plane.rpc("UserService/GetBudget", {"user_id": email})["budget"]
        assert (int(status["spentNanos"]), int(status["heldNanos"])) == (0, 10 * CALL_NANOS)

    for answer, plane in zip(allows, itertools.cycle(planes), strict=False):
        usage = {"input_tokens": INPUT, "output_tokens": 500, "requests": 1}
        deduct = {
            "request_id": answer["requestId"],
            "provider": "openai",
            "items": [{"model": MODEL, "usage": usage}],
            "outcome": "OUTCOME_SUCCESS",
        }
        assert int(plane.rpc("MeteringService/Deduct", deduct)["costNanos"]) == 2_000_000
    for plane in planes:
        status = plane.rpc("UserService/GetBudget", {"user_id": email})["budget"]
        assert (int(status["spentNanos"]), int(status["heldNanos"])) == (20_000_000, 0)
        assert len(plane.records(user_id=email)) == 10


def test_a_rate_limit_is_one_for_both(planes: tuple[ControlPlane, ControlPlane]) -> None:
    """F092, F093: so many calls a minute, whichever process is asked."""
    email, _ = planes[0].person("hasty")
    planes[0].rpc("UserService/UpdateUser", {"id": email, "rate_limit": 8})
    with ThreadPoolExecutor(20) as pool:
        calls = pool.map(lambda plane: allowed(plane, email), itertools.islice(itertools.cycle(planes), 20))
        # A minute may begin in between: then both minutes' calls get through.
        assert sum(calls) in (8, *range(9, 17))
