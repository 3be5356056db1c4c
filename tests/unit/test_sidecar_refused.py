"""What a sidecar keeps of the calls that it refused by itself, until it can tell."""

from __future__ import annotations

import logging

import pytest

from bursar.v1 import budget_pb2
from bursar.v1.metering_service_pb2 import CheckRequest, DeductRequest, ReleaseHoldRequest
from bursar_sidecar.degraded import Degraded, Report
from bursar_sidecar.ids import RequestIds
from bursar_sidecar.messages import Ask, check_payload, deduct_payload, unheard
from bursar_sidecar.settings import OnUnreachable
from bursar_sidecar.telemetry import Counts, metrics_text

ASK = Ask("ab" * 32, "openai", "gpt-4o", input_tokens_estimate=10)
REQUEST_ID = "01890000-0000-7000-8000-000000000000"


class Clock:
    def __init__(self) -> None:
        self.s = 1000.0

    def now_ns(self) -> int:
        return int(self.s * 1e9)

    def monotonic(self) -> float:
        return self.s


def degraded(own: OnUnreachable, clock: Clock, counts: Counts | None = None) -> Degraded:
    return Degraded(own, 3600.0, RequestIds(clock), clock, counts or Counts(), logging.getLogger("test"))


def told(report: Report) -> ReleaseHoldRequest:
    assert report.payload[:32].hex() == ASK.key_sha256
    return ReleaseHoldRequest.FromString(report.payload[32:])


def test_refused_calls_are_written_at_once_and_then_now_and_then() -> None:
    """One report for each principal, the same one as it grows, and the last word when the outage is over."""
    clock = Clock()
    closed = degraded(OnUnreachable.CLOSED, clock)
    assert list(closed.reports(away=True)) == []
    closed.decide(ASK)
    [first] = closed.reports(away=True)
    assert (told(first).refused.calls, first.ended) == (1, False)
    for _ in range(4):
        clock.s += 1
        closed.decide(ASK)
        assert list(closed.reports(away=True)) == []
    clock.s += 30
    [second] = closed.reports(away=True)
    assert (second.call, told(second).refused.calls) == (first.call, 5)
    clock.s += 60
    assert list(closed.reports(away=True)) == []  # nothing new
    closed.decide(ASK._replace(user_id="bob@example.com", body_user="b"))
    [of_bob] = closed.reports(away=True)
    assert of_bob.call != first.call
    refused = told(of_bob).refused
    assert (refused.user_id, refused.body_user) == ("bob@example.com", "b")
    clock.s += 3
    last, _ = closed.reports(away=False)
    assert (last.call, last.ended) == (first.call, True)
    assert told(last).refused.policy == budget_pb2.ON_UNREACHABLE_CLOSED
    assert told(last).refused.first_time.seconds == 1000
    assert told(last).refused.last_time.seconds == 1004
    assert list(closed.reports(away=False)) == []
    closed.decide(ASK)
    clock.s += 3
    [anew] = closed.reports(away=False)
    assert (anew.call != first.call, told(anew).refused.calls) == (True, 1)


def test_a_report_is_not_closed_while_single_checks_fail() -> None:
    """The control plane answers, but not about these calls: they are one outage while they go on."""
    clock = Clock()
    closed = degraded(OnUnreachable.CLOSED, clock)
    for _ in range(10):
        closed.decide(ASK)
        clock.s += 1
        assert not any(report.ended for report in closed.reports(away=False))
    clock.s += 1
    assert [report.ended for report in closed.reports(away=False)] == [True]


def test_reports_are_bounded(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Keys that anybody makes up do not fill the memory; every decision is counted."""
    monkeypatch.setattr("bursar_sidecar.degraded.REPORTS_MAX", 5)
    clock, counts = Clock(), Counts()
    closed = degraded(OnUnreachable.CLOSED, clock, counts)
    for number in range(20):
        closed.decide(ASK._replace(key_sha256=f"{number:064x}"))
    assert len(list(closed.end())) == 5
    assert "more principals" in caplog.text
    labels = 'policy="CLOSED",decision="DENY"'
    assert f"bursar_sidecar_degraded_decisions_total{{{labels}}} 20\n" in metrics_text(counts, [])


def test_marks_add_to_messages_what_they_say() -> None:
    payload = check_payload(REQUEST_ID, ASK)
    for own, wanted in ((OnUnreachable.CLOSED, False), (OnUnreachable.LAST_KNOWN_GOOD, True)):
        check = CheckRequest.FromString(payload + degraded(own, Clock()).check_mark)
        assert (check.model, check.with_budgets) == ("gpt-4o", wanted)
    charge = deduct_payload(REQUEST_ID, ASK, unheard(ASK), 0, 0)
    mark = degraded(OnUnreachable.CLOSED, Clock()).mark(OnUnreachable.OPEN)
    marked = DeductRequest.FromString(charge + mark)
    assert marked.degraded == budget_pb2.ON_UNREACHABLE_OPEN
    marked.ClearField("degraded")
    assert marked == DeductRequest.FromString(charge)
