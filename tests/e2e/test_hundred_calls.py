"""A budget worth so many calls lets so many through, whatever comes at once: two sidecars, two control planes, one database.

The suite makes all 1,000 calls in a streamed and an unstreamed variant, and 300 in the others;
BURSAR_TEST_HUNDRED_CALLS=1000 makes so many in all.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from uuid import UUID

import aiohttp
import pytest

from bursar_server.kit.ids import uuid7_at
from support.database import DatabaseServer
from support.door_clients import request
from support.stack import served
from support.two_planes import CALL_NANOS, MODEL, OUTPUT_TOKENS, TwoPlanes, asks, post, post_many, two_planes

AT_ONCE = 64
FEWER = int(os.environ.get("BURSAR_TEST_HUNDRED_CALLS", "300"))


@pytest.fixture(scope="module")
def installation(database_server: DatabaseServer, template_database: str) -> Iterator[TwoPlanes]:
    with two_planes(database_server, template_database) as running:
        yield running
        running.assert_books()


@pytest.mark.parametrize(
    ("admission", "stream", "latency_ms", "calls"),
    [
        ("EXPECTED", False, 0, FEWER),
        ("EXPECTED", False, 100, 1_000),
        ("EXPECTED", True, 0, FEWER),
        ("EXPECTED", True, 100, FEWER),
        ("UPPER_BOUND", False, 0, FEWER),
        ("UPPER_BOUND", False, 100, FEWER),
        ("UPPER_BOUND", True, 0, 1_000),
        ("UPPER_BOUND", True, 100, FEWER),
    ],
)
async def test_a_budget_worth_100_calls_serves_100(
    installation: TwoPlanes, admission: str, stream: bool, latency_ms: int, calls: int
) -> None:
    """C03, C04, S10, S11: of many calls, 64 at a time, exactly 100 get through; the rest are told that it is spent."""
    email, key = installation.person("hundred")
    budget = installation.budget(
        {"user_id": email}, 100 * CALL_NANOS, admission=f"ADMISSION_{admission}", max_wait_ms=30_000
    )
    # A model of its own, so that nobody knows what it usually costs: EXPECTED begins with far too large holds.
    body = asks(model=f"{MODEL}-{email}", stream=stream)
    if admission == "UPPER_BOUND":
        body["max_tokens"] = OUTPUT_TOKENS
    told = await post_many(installation.sidecars, key, body, calls, AT_ONCE, latency_ms)
    assert told == {(200, ""): 100, (402, "BUDGET_CAP_HARD"): calls - 100}
    assert await installation.settled(budget) == [(100 * CALL_NANOS, 0)]


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.mark.parametrize("admission", ["EXPECTED", "UPPER_BOUND"])
async def test_five_cents_serve_small_prompts_with_a_large_limit(
    installation: TwoPlanes, client: aiohttp.ClientSession, admission: str
) -> None:
    """S10, S11: eight at once with 32,000 output tokens each, twenty times the budget, are all served."""
    email, key = installation.person("five-cents")
    limit_nanos = 50_000_000
    fits = {"admission": f"ADMISSION_{admission}", "fit_output": True, "max_wait_ms": 30_000}
    budget = installation.budget({"user_id": email}, limit_nanos, **fits)
    request(installation.provider_url, "/__reset", b"")
    body = asks(model=f"{MODEL}-{email}", max_tokens=32_000)
    told = await asyncio.gather(*(post(client, one, key, body) for one in installation.sidecars * 4))
    assert [one.status for one in told] == [200] * 8
    assert await installation.settled(budget) == [(8 * CALL_NANOS, 0)]
    reached = [json.loads(call["body"])["max_tokens"] for call in served(installation.provider_url)]
    if admission == "EXPECTED":
        assert reached == [32_000] * 8
        return
    affordable = limit_nanos // CALL_NANOS * OUTPUT_TOKENS
    assert max(reached) == affordable
    assert sorted(reached) == sorted(int(one.headers["x-bursar-fit-output-tokens"]) for one in told)
    assert min(reached) >= affordable - 8 * OUTPUT_TOKENS


async def wait_for_waits(installation: TwoPlanes, budget_id: UUID, waits: int) -> None:
    statement = "SELECT count(*)::int FROM check_waits WHERE budget_id = %s"
    async with asyncio.timeout(10):
        while installation.sql(statement, budget_id) != [(waits,)]:  # noqa: ASYNC110  (others change it)
            await asyncio.sleep(0.02)


async def test_who_waits_is_served_and_who_leaves_is_in_nobodys_way(
    installation: TwoPlanes, client: aiohttp.ClientSession
) -> None:
    """S10, S17: the room that a settled call leaves goes to the next that still waits, on whichever plane it does."""
    email, key = installation.person("waiting")
    # Each call holds two thirds of it, and costs half of that.
    most = 2 * OUTPUT_TOKENS
    budget = installation.budget(
        {"user_id": email}, 3 * CALL_NANOS, admission="ADMISSION_UPPER_BOUND", max_wait_ms=30_000
    )
    plane, other_plane = installation.planes
    asked = {"request_id": str(uuid7_at(datetime.now(UTC))), "user_id": email, "provider": "openai"}
    held = plane.rpc("MeteringService/Check", {**asked, "model": MODEL, "max_output_tokens": most})
    assert int(held["heldNanos"]) == 2 * CALL_NANOS
    one, other = installation.sidecars
    leaves = asyncio.create_task(post(client, other, key, asks(max_tokens=most)))
    await wait_for_waits(installation, budget, 1)
    stays = asyncio.create_task(post(client, one, key, asks(max_tokens=most)))
    await wait_for_waits(installation, budget, 2)
    leaves.cancel()
    await wait_for_waits(installation, budget, 1)
    assert not stays.done()
    used = {"items": [{"model": MODEL, "usage": {"output_tokens": OUTPUT_TOKENS}}]}
    other_plane.rpc("MeteringService/Deduct", {**asked, **used, "outcome": "OUTCOME_SUCCESS"})
    assert (await stays).status == 200
    assert await installation.settled(budget) == [(2 * CALL_NANOS, 0)]
    assert installation.sql("SELECT count(*) FROM check_waits") == [(0,)]
    assert installation.sql("SELECT count(*) FROM holds") == [(0,)]


async def test_any_remaining_overshoots_by_what_is_in_flight(installation: TwoPlanes) -> None:
    """C03, S14: the overshoot is at most what was in flight, and the planes' metrics say the same to the nano."""
    email, key = installation.person("any-remaining")
    limit_nanos = 100 * CALL_NANOS - 1
    budget = installation.budget({"user_id": email}, limit_nanos)
    before = installation.overshoot_nanos()
    told = await post_many(installation.sidecars, key, asks(), 300, AT_ONCE, 50)
    served_calls = told.pop((200, ""))
    assert set(told) == {(402, "BUDGET_CAP_HARD")}
    assert await installation.settled(budget) == [(served_calls * CALL_NANOS, 0)]
    overshoot = served_calls * CALL_NANOS - limit_nanos
    assert 0 < overshoot < AT_ONCE * CALL_NANOS
    assert installation.overshoot_nanos() - before == overshoot


async def test_a_users_first_calls_make_it_once(
    installation: TwoPlanes, client: aiohttp.ClientSession
) -> None:
    """F043: 32 first calls for an e-mail that nobody has heard of, at once through both, make one user and its budget."""
    made = installation.planes[0].rpc("TenantService/CreateApiKey", {"name": "an app", "act_for_users": True})
    headers = {"x-bursar-user": "never-seen@example.com"}
    calls = (post(client, one, made["secret"], asks(), headers=headers) for one in installation.sidecars * 16)
    assert [told.status for told in await asyncio.gather(*calls)] == [200] * 32
    [(user,)] = installation.sql("SELECT user_id FROM users WHERE email = %s", headers["x-bursar-user"])
    [(budget,)] = installation.sql("SELECT budget_id FROM budgets WHERE user_id = %s", user)
    assert await installation.settled(budget) == [(32 * CALL_NANOS, 0)]


async def test_a_key_works_from_its_first_instant(
    installation: TwoPlanes, client: aiohttp.ClientSession
) -> None:
    """S13: a key that one plane made is good at once through both."""
    for number in range(10):
        _, key = await asyncio.to_thread(installation.planes[number % 2].person, "just-made")
        told = await asyncio.gather(*(post(client, one, key, asks()) for one in installation.sidecars * 2))
        assert [one.status for one in told] == [200] * 4


async def test_a_new_period_is_begun_once(installation: TwoPlanes, client: aiohttp.ClientSession) -> None:
    """S4, S12: the first calls of a period, at once on both planes, count in one balance of each budget."""
    email, key = installation.person("periods")
    periods = ("DAILY", "WEEKLY", "MONTHLY", "TOTAL")
    budgets = [
        installation.budget({"user_id": email}, CALL_NANOS * 10**3, period=f"BUDGET_PERIOD_{period}")
        for period in periods
    ]

    # A budget has its balance from the start. The next period's is not there before its first call.
    installation.sql("DELETE FROM balances WHERE budget_id = ANY(%s)", budgets)
    told = await asyncio.gather(*(post(client, one, key, asks()) for one in installation.sidecars * 16))
    assert [one.status for one in told] == [200] * 32
    assert [await installation.settled(budget) for budget in budgets] == [[(32 * CALL_NANOS, 0)]] * 4
