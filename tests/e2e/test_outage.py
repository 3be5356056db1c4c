"""A real control plane goes away under a real sidecar and comes back: who is served meanwhile, and what the books say."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from support.database import DatabaseServer
from support.door_clients import Reply
from support.stack import (
    PROVIDER,
    SERVE,
    SIDECAR,
    Child,
    ControlPlane,
    bursar,
    call,
    control_plane,
    environment,
    scratch_folder,
    served,
    sidecar_count,
    started,
)

CHAT = "/v1/chat/completions"
HELLO = {"max_tokens": 20, "messages": [{"role": "user", "content": "Are you there?"}]}
LIMIT_NANOS = 3_000_000
LAST_KNOWN_GOOD = "ON_UNREACHABLE_LAST_KNOWN_GOOD"


class Installation:
    """A control plane that can be killed and started again, a provider, and a sidecar whose own policy is CLOSED."""

    def __init__(self, stack: ExitStack, database_url: str) -> None:
        self.folder = stack.enter_context(scratch_folder())
        self._stack = stack
        self.environ = environment(
            BURSAR_DATABASE_URL=database_url,
            BURSAR_DATA_DIR=str(self.folder / "data"),
            BURSAR_SWEEP_DELAY_MS="0",
        )
        self.plane, self._child = self._started()
        self.provider = stack.enter_context(started(PROVIDER, environment(), self.folder))
        settings = {"BURSAR_DATA_DIR": str(self.folder / "data"), "BURSAR_CONTROL_PLANE_URL": self.plane.url}
        for name in ("OPENAI", "ANTHROPIC"):
            settings[f"BURSAR_UPSTREAM_{name}_URL"] = self.provider.url
            settings[f"BURSAR_UPSTREAM_{name}_API_KEY"] = "sk-its-own"
        self.sidecar = stack.enter_context(started(SIDECAR, environment(**settings), self.folder)).url

    def _started(self) -> tuple[ControlPlane, Child]:
        child = self._stack.enter_context(started(SERVE, self.environ, self.folder))
        return control_plane(child, self.folder / "data"), child

    def goes_away(self) -> None:
        self._child.kill()

    def comes_back(self) -> None:
        self.environ["BURSAR_LISTEN"] = str(self._child.ready["listen"])
        self.plane, self._child = self._started()
        wait_for(lambda: sidecar_count(self.sidecar, "control_plane_reachable") == 1)
        wait_for(lambda: sidecar_count(self.sidecar, "outbox_depth") == 0)

    def user(self, name: str, limit_usd: float, word: str | None) -> tuple[str, str]:
        """Make a user with a budget that says what happens to calls in an outage; return e-mail and key."""
        email, key = self.plane.person(name)
        budget: dict[str, Any] = {"scope": {"user_id": email}, "limit_usd": limit_usd}
        if word is not None:
            budget["on_unreachable"] = word
        self.plane.rpc("BudgetService/CreateBudget", {"budget": budget})
        return email, key

    def call(self, key: str, path: str = CHAT, latency_ms: int = 0, model: str = "gpt-4o") -> Reply:
        headers = {"x-fake-latency-ms": str(latency_ms)}
        return call(self.sidecar, path, {**HELLO, "model": model}, key, headers)

    def spent_nanos(self, email: str) -> int:
        totals = self.plane.rpc("UsageService/GetCostSummary", {"user_id": email})["totals"]
        budget = self.plane.rpc("UserService/GetBudget", {"user_id": email})["budget"]
        assert (budget["spentNanos"], budget["heldNanos"]) == (totals["costNanos"], "0")
        return int(totals["costNanos"])

    def events(self, action: str, email: str) -> list[dict[str, Any]]:
        asked = {"user_id": email, "action": action, "limit": 100}
        return list(self.plane.rpc("UserService/ListAuditLog", asked).get("entries", []))


def wait_for(true: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture
def installation(database_server: DatabaseServer, template_database: str) -> Iterator[Installation]:
    name = database_server.create(template=template_database)
    with ExitStack() as stack:
        stack.callback(database_server.drop, name)
        yield Installation(stack, database_server.url(name))


def test_an_outage_from_end_to_end(installation: Installation) -> None:
    """S16, S17, S20: each budget's word counts, open calls finish, what was left is not exceeded, and all is in the books."""
    alice, her_key = installation.user("alice", LIMIT_NANOS / 10**9, LAST_KNOWN_GOOD)
    bob, his_key = installation.user("bob", 0.0001, "ON_UNREACHABLE_OPEN")
    carol, third_key = installation.user("carol", 10, None)
    first = [installation.call(key) for key in (her_key, his_key, third_key)]
    [cost] = {round(float(reply.headers["x-bursar-cost-usd"]) * 10**9) for reply in first}
    slow: list[Reply] = []
    under_way = threading.Thread(target=lambda: slow.append(installation.call(her_key, latency_ms=1500)))
    under_way.start()
    wait_for(lambda: sidecar_count(installation.sidecar, 'calls_total{upstream="openai"}') == 4)
    installation.goes_away()
    under_way.join()
    assert [reply.status for reply in slow] == [200]

    # What is left after two calls pays for so many more, and for no part of one.
    affordable = LIMIT_NANOS // cost - 2
    assert [installation.call(her_key).status for _ in range(affordable)] == [200] * affordable
    refused = installation.call(her_key)
    assert (refused.status, refused.headers["x-should-retry"]) == (402, "false")
    assert refused.json["error"]["code"] == "BUDGET_CAP_HARD"
    of_anthropic = installation.call(her_key, "/v1/messages", model="claude-sonnet-4-5")
    assert (of_anthropic.status, of_anthropic.json["type"]) == (402, "error")
    assert [installation.call(his_key).status for _ in range(3)] == [200] * 3
    assert installation.call(third_key).status == 503

    installation.comes_back()
    assert [installation.spent_nanos(who) // cost for who in (alice, bob, carol)] == [affordable + 2, 4, 1]
    records = installation.plane.records()
    assert len({record["requestId"] for record in records}) == len(records) == affordable + 2 + 4 + 1
    assert len(served(installation.provider.url)) == len(records)
    for who, policy, calls in ((alice, "LAST_KNOWN_GOOD", affordable), (bob, "OPEN", 3), (carol, "", 0)):
        noted = [event["details"] for event in installation.events("DEGRADED_ALLOW", who)]
        unchecked = [record for record in installation.plane.records(user_id=who) if record["unchecked"]]
        assert {details["request_id"] for details in noted} == {record["requestId"] for record in unchecked}
        assert [details["policy"] for details in noted] == [policy] * calls
    for who, policy, calls in ((alice, "LAST_KNOWN_GOOD", 2), (carol, "CLOSED", 1)):
        [event] = installation.events("DEGRADED_DENY", who)
        assert (event["details"]["policy"], event["details"]["calls"]) == (policy, calls)
    assert installation.events("DEGRADED_DENY", bob) == []
    proof = bursar("verify", environ=installation.environ)
    assert proof.returncode == 0, proof.stdout
    # Everything is as before: the budgets decide again.
    assert [installation.call(key).status for key in (her_key, his_key, third_key)] == [200, 402, 200]
