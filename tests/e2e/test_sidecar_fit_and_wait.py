"""Calls that wait for other calls' holds, answers made shorter to fit a budget, and users that bodies name."""

from __future__ import annotations

import asyncio
import json

import pytest

from bursar.v1 import metering_pb2
from support.fake_control_plane import HELD, Served
from support.odd_upstream import OddUpstream
from support.sidecars import RunningSidecar, until
from support.stack import Stack


def asks(model: str, **more: object) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": "Hi"}], **more}


async def test_a_call_waits_for_other_calls_holds_and_delays_nobody(
    sidecar: RunningSidecar, plane: Served
) -> None:
    """S10: the same id and question wait on a request of their own; other calls go on."""
    plane.service.held = True
    waiting = asyncio.ensure_future(sidecar.post())
    await until(lambda: len(plane.service.waits) == 1)
    assert plane.service.waits == plane.service.checks
    assert plane.service.wait_timeouts_ms == ["65000"]
    async with asyncio.timeout(2):
        assert (await sidecar.post(json=asks("free"))).status == 200
    assert not waiting.done()
    assert sidecar.sidecar.gate.open_calls == 1
    plane.service.freed.set()
    response = await waiting
    assert response.status == 200
    assert plane.service.waits[0].request_id == response.headers["x-bursar-request-id"]
    assert await sidecar.metric("check_waits_total") == 1


async def test_a_wait_in_vain_is_a_429(sidecar: RunningSidecar, plane: Served, upstream: OddUpstream) -> None:
    """S10: nothing is spent yet, so the app may try again."""
    plane.service.held = True
    plane.service.account.denial = metering_pb2.Denial.FromString(HELD.SerializeToString())
    plane.service.freed.set()
    response = await sidecar.post()
    assert (response.status, response.headers["retry-after"]) == (429, "1")
    assert (await response.json())["error"]["code"] == "BUDGET_HELD"
    assert not upstream.heard
    assert sidecar.sidecar.gate.open_calls == 0


async def test_an_app_that_leaves_while_it_waits_leaves_no_hold(
    sidecar: RunningSidecar, plane: Served, upstream: OddUpstream
) -> None:
    """S17: its wait ends at once, what it brings all the same is given back, and nothing is sent."""
    plane.service.held = True
    waiting = asyncio.ensure_future(sidecar.post())
    await until(lambda: len(plane.service.waits) == 1)
    waiting.cancel()
    await until(lambda: plane.service.released == [plane.service.waits[0].request_id])
    assert sidecar.sidecar.gate.open_calls == 0
    plane.service.freed.set()
    assert await sidecar.metric("app_disconnects_total") == 1
    assert not plane.service.holds
    assert not upstream.heard


async def test_a_control_plane_that_fails_during_the_wait(sidecar: RunningSidecar, plane: Served) -> None:
    """S17: nobody knows whether a hold was written, so it is released."""
    plane.service.held = True
    waiting = asyncio.ensure_future(sidecar.post())
    await until(lambda: len(plane.service.waits) == 1)
    plane.service.down = True
    plane.service.freed.set()
    response = await waiting
    assert (response.status, response.headers["retry-after"]) == (503, "1")
    assert sidecar.sidecar.gate.open_calls == 0


async def test_the_answer_is_made_to_fit(
    sidecar: RunningSidecar, plane: Served, upstream: OddUpstream
) -> None:
    """S11: the provider gets the lower limit and else the same bytes, and the app is told."""
    plane.service.fit_output_tokens = 245
    body = b'{ "model":"gpt-4o-mini","max_tokens": 32000,\n "messages":[], "temperature": 0.20 }'
    response = await sidecar.post(data=body)
    assert (response.status, response.headers["x-bursar-fit-output-tokens"]) == (200, "245")
    assert upstream.heard[0].body == body.replace(b"32000", b"245")
    too_many = await sidecar.post(json=asks("gpt-4o-mini", n=300))
    assert (too_many.status, too_many.headers["x-should-retry"]) == (402, "false")
    assert (await too_many.json())["error"]["code"] == "BUDGET_CAP_HARD"
    assert len(upstream.heard) == 1
    await until(lambda: len(plane.service.released) == 1)
    assert sidecar.sidecar.gate.open_calls == 0


@pytest.mark.parametrize(
    ("user", "told"),
    [("alice@example.com", "alice@example.com"), ("u" * 321, ""), ("a\tb", ""), (7, "")],
)
async def test_the_user_in_the_body_is_told(
    sidecar: RunningSidecar, plane: Served, upstream: OddUpstream, user: object, told: str
) -> None:
    """What cannot name a user of ours is the provider's own affair; the provider gets the field in any case."""
    assert (await sidecar.post(json=asks("gpt-4o-mini", user=user))).status == 200
    (record,) = plane.service.records.values()
    assert (plane.service.checks[0].body_user, record.body_user) == (told, told)
    assert json.loads(upstream.heard[0].body)["user"] == user


def test_a_small_budget_serves_a_large_limit_where_it_may_fit(stack: Stack) -> None:
    """S10, S11: with fit_output a budget of five cents answers; without it the same call is refused."""
    body = asks("gpt-4o", max_tokens=32_000)
    for name, fits in (("fits", True), ("does-not-fit", False)):
        email, key = stack.person(name)
        budget = {
            "name": name,
            "scope": {"user_id": stack.rpc("UserService/GetUser", {"user_id": email})["user"]["userId"]},
            "period": "BUDGET_PERIOD_DAILY",
            "limit_usd": 0.05,
            "admission": "ADMISSION_UPPER_BOUND",
            "fit_output": fits,
        }
        stack.rpc("BudgetService/CreateBudget", {"budget": budget})
        reply = stack.call("/v1/chat/completions", body, key)
        assert reply.status == (200 if fits else 402), reply.json
        fitted = reply.headers.get("x-bursar-fit-output-tokens")
        assert (fitted is not None and 0 < int(fitted) < 32_000) == fits
