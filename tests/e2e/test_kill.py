"""Processes that are killed in the middle of calls lose no charge, charge nothing twice, and leave nothing behind."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any

from bursar_sidecar.providers.base import Usage
from support.costs import cost_nanos
from support.door_clients import Reply
from support.embedded import is_running, wait_until
from support.stack import (
    PROVIDER,
    SERVE,
    SIDECAR,
    Child,
    ControlPlane,
    call,
    children_of,
    control_plane,
    environment,
    running_stack,
    served,
    sidecar_count,
    started,
)

LATENCY_MS = 300
LEASE_MS = 2000
SETTLED_S = 30.0
HELLO = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Are you back?"}]}


def settings(provider: Child, folder: Path) -> dict[str, str]:
    return {
        "BURSAR_DATA_DIR": str(folder / "data"),
        "BURSAR_HOLD_LEASE_MS": str(LEASE_MS),
        "BURSAR_SWEEP_DELAY_MS": str(LEASE_MS),
        "BURSAR_UPSTREAM_OPENAI_URL": provider.url,
        "BURSAR_UPSTREAM_OPENAI_API_KEY": "sk-its-own",
    }


@contextmanager
def a_provider(folder: Path) -> Iterator[Child]:
    """Run a provider outside of what is killed; it takes a while to answer, and keeps a log."""
    log = folder / "provider.log"
    arguments = (*PROVIDER, "--latency-ms", str(LATENCY_MS), "--log", str(log))
    with started(arguments, environment(), folder) as child:
        yield child


@dataclass
class App:
    """An app with some calls open at any time; each has a prompt of its own, so that none is mistaken for another."""

    url: str
    key: str
    threads: int = 6
    answers: list[tuple[str, float]] = field(default_factory=list)
    broken: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Call all the time until the block ends."""
        workers = [threading.Thread(target=self._work, args=(number,)) for number in range(self.threads)]
        for worker in workers:
            worker.start()
        try:
            yield
        finally:
            self._stop.set()
            for worker in workers:
                worker.join()

    def _work(self, number: int) -> None:
        count = 0
        while not self._stop.is_set():
            count += 1
            question = f"question {count} of {number}"
            body = {"model": "gpt-4o", "messages": [{"role": "user", "content": question}]}
            try:
                reply = call(self.url, "/v1/chat/completions", body, self.key)
            except (OSError, HTTPException):
                self.broken += 1
                return
            if reply.status != 200:
                self.broken += 1
                return
            # Only an answer whose Deduct was committed in time says what it cost.
            cost = float(reply.headers.get("x-bursar-cost-usd", "nan"))
            self.answers.append((reply.headers["x-bursar-request-id"], cost))


class SlowCall:
    """One call whose answer takes its time, made by a thread of its own."""

    def __init__(self, url: str, key: str, latency_ms: int) -> None:
        self.replies: list[Reply] = []
        self._arguments = (url, "/v1/chat/completions", HELLO, key, {"x-fake-latency-ms": str(latency_ms)})
        self.thread = threading.Thread(target=lambda: self.replies.append(call(*self._arguments)))
        self.thread.start()


def a_spender(plane: ControlPlane) -> tuple[str, str]:
    """Make a user whose calls hold money while they are open, without a rate limit."""
    email, key = plane.person("spender", 1000, admission="ADMISSION_UPPER_BOUND")
    plane.rpc("UserService/UpdateUser", {"id": email, "rate_limit": 0})
    return email, key


def held_nanos(plane: ControlPlane, email: str) -> int:
    return int(plane.rpc("UserService/GetBudget", {"user_id": email})["budget"]["heldNanos"])


def billed(log: Path) -> list[Usage]:
    """Return what the provider has served, by its own log."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [Usage(**line["usage"]) for line in lines if line["status"] == 200 and line["usage"]]


def spent_nanos(plane: ControlPlane, email: str) -> tuple[int, int]:
    """Return the calls and the cost that the books have of a user; budget, records and rollups say the same."""
    totals = plane.rpc("UsageService/GetCostSummary", {"user_id": email})["totals"]
    budget = plane.rpc("UserService/GetBudget", {"user_id": email})["budget"]
    assert budget["spentNanos"] == totals["costNanos"]
    return int(totals["requests"]), int(totals["costNanos"])


def expected_nanos(plane: ControlPlane, usages: list[Usage]) -> int:
    price = plane.rpc("PricingService/LookupPrice", {"provider": "openai", "model": "gpt-4o"})["price"]
    return sum(cost_nanos(price, usage) for usage in usages)


def run_until(app: App, enough: int, kill: Callable[[], None]) -> None:
    """Let the app call, and kill in the middle of it."""
    with app.calling():
        wait_until(lambda: len(app.answers) >= enough, "answers", 30)
        time.sleep(LATENCY_MS / 2000)
        kill()
        wait_until(lambda: app.broken == app.threads, "the app notices", 60)


def everything_is_gone(pids: list[int], seconds: float) -> None:
    wait_until(lambda: not any(map(is_running, pids)), "no process is left over", seconds)


def records_once(plane: ControlPlane, email: str, answers: list[tuple[str, float]]) -> list[dict[str, Any]]:
    """Check that each answered call is on the records once, at the cost it named; return the records."""
    records = plane.records(user_id=email)
    by_id = {record["requestId"]: record for record in records}
    assert len(by_id) == len(records)
    for request_id, cost_usd in answers:
        assert not by_id[request_id]["estimated"]
        assert cost_usd != cost_usd or by_id[request_id]["costUsd"] == cost_usd
    return records


def test_kill_of_everything_in_the_middle_of_calls(folder: Path) -> None:
    """S16–S18: `kill -9` of `bursar up`, started again at once on the same directory: each call served is charged once."""
    with a_provider(folder) as provider:
        given = settings(provider, folder)
        with running_stack(folder, **given) as stack:
            email, key = a_spender(stack)
            assert stack.child is not None
            family = children_of(stack.child.pid)
            assert len(family) > 5
            late = SlowCall(stack.sidecar_url, key, latency_ms=4000)
            app = App(stack.sidecar_url, key)
            run_until(app, 20, stack.child.kill)
        # Its sidecar still waits for the slow call's answer: the new one takes over when that is finished.
        with running_stack(folder, **given) as stack:
            late.thread.join()
            assert [reply.status for reply in late.replies] == [200]
            wait_until(lambda: held_nanos(stack, email) == 0, "no hold is open", SETTLED_S)
            everything_is_gone(family, 5)
            usages = billed(folder / "provider.log")
            assert len(usages) > len(app.answers) >= 20
            records = records_once(stack, email, app.answers)
            assert len(records) == len(usages)
            assert spent_nanos(stack, email) == (len(usages), expected_nanos(stack, usages))
            assert sidecar_count(stack.sidecar_url, "outbox_depth") == 0
            assert call(stack.sidecar_url, "/v1/chat/completions", HELLO, key).status == 200


def test_kill_of_the_sidecar_in_the_middle_of_calls(folder: Path) -> None:
    """S16–S18: what it knew is charged as it was, what it did not live to see at its estimate, flagged; all of it once."""
    with a_provider(folder) as provider:
        environ = environment(**settings(provider, folder))
        with started(SERVE, environ, folder) as server:
            plane = control_plane(server, folder / "data")
            environ["BURSAR_CONTROL_PLANE_URL"] = plane.url
            email, key = a_spender(plane)
            with started(SIDECAR, environ, folder) as sidecar:
                app = App(sidecar.url, key)
                run_until(app, 20, sidecar.kill)
            assert held_nanos(plane, email) > 0
            with started(SIDECAR, environ, folder) as sidecar:
                wait_until(lambda: held_nanos(plane, email) == 0, "no hold is open", SETTLED_S)
                records = records_once(plane, email, app.answers)
                usages = billed(folder / "provider.log")
                assert len(records) == len(usages)
                lost = [record for record in records if record["estimated"]]
                assert 1 <= len(lost) <= app.threads
                assert all(record["leaseExpired"] for record in lost)
                requests, spent = spent_nanos(plane, email)
                assert requests == len(usages)
                assert spent == sum(int(record["costNanos"]) for record in records)
                assert call(sidecar.url, "/v1/chat/completions", HELLO, key).status == 200


def test_stopping_finishes_what_was_accepted(folder: Path) -> None:
    """A call that is open when SIGTERM comes is answered whole and charged; then everything ends with 0."""
    with running_stack(folder) as stack:
        assert stack.child is not None
        email, key = stack.person("last", 1)
        family = children_of(stack.child.pid)
        late = SlowCall(stack.sidecar_url, key, latency_ms=1500)
        wait_until(lambda: len(served(stack.provider_url)) == 1, "the provider has the call")
        assert stack.child.stop() == 0
        late.thread.join()
        (reply,) = late.replies
        assert reply.status == 200
        everything_is_gone(family, 5)
    with running_stack(folder) as stack:
        (record,) = stack.records(user_id=email)
        assert record["costUsd"] == float(reply.headers["x-bursar-cost-usd"])
        assert stack.child is not None
        assert "Traceback" not in stack.child.log
