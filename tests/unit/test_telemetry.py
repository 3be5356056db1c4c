"""Logs as JSON, and what goes out over OTLP when a collector is named."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bursar_server.kit.logs import JsonFormatter, scrubbed
from bursar_server.telemetry import MeteredCall, telemetry_of
from support.collector import Collector, attributes_of

START = datetime(2026, 5, 1, 12, 0, 0, 123456, tzinfo=UTC)
CALL = MeteredCall(
    request_id="0190a1b2-0000-7000-8000-000000000001",
    start_time=START,
    end_time=START + timedelta(seconds=2),
    tenant_id="tenant",
    user_id="user",
    api_key_id="",
    provider="openai",
    model="gpt-4o",
    input_tokens=10,
    output_tokens=0,
    cost_nanos=123,
    outcome="SUCCESS",
    tags={"team": "core"},
)


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with Collector() as running:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", running.url)
        yield running


def test_a_call_carries_the_dimensions_of_a_statement(collector: Collector) -> None:
    """F146: the same per-request dimensions, under the names of the GenAI conventions where they exist."""
    telemetry = telemetry_of({"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url})
    assert telemetry.exports_calls
    telemetry.record_call(CALL)
    telemetry.close()
    [request] = collector.traces
    [resource] = request.resource_spans
    assert attributes_of(resource.resource)["service.name"] == "bursar"
    [span] = resource.scope_spans[0].spans
    assert attributes_of(span) == {
        "gen_ai.provider.name": "openai",
        "gen_ai.response.model": "gpt-4o",
        "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.output_tokens": 0,
        "bursar.request.id": CALL.request_id,
        "bursar.tenant.id": "tenant",
        "bursar.user.id": "user",
        "bursar.cost_nanos": 123,
        "bursar.outcome": "SUCCESS",
        "bursar.estimated": False,
        "bursar.unpriced": False,
        "bursar.tag.team": "core",
    }
    assert span.start_time_unix_nano == 1777636800_123456000
    assert span.end_time_unix_nano - span.start_time_unix_nano == 2_000_000_000


def test_every_kind_of_metric_arrives(collector: Collector) -> None:
    telemetry = telemetry_of({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": f"{collector.url}/v1/metrics"})
    telemetry.metrics.counter("bursar.calls", "Calls.", labels=("model",)).add("gpt-4o", amount=3)
    telemetry.metrics.gauge("bursar.open", "Open.", lambda: 2)
    telemetry.metrics.histogram("bursar.took", "Took.", buckets=(0.1, 1.0)).observe(0.5)
    telemetry.start()
    telemetry.close()
    found = {
        metric.name: metric
        for scope in collector.metrics[-1].resource_metrics[0].scope_metrics
        for metric in scope.metrics
    }
    [calls] = found["bursar.calls"].sum.data_points
    assert (calls.as_int, attributes_of(calls)) == (3, {"model": "gpt-4o"})
    assert found["bursar.calls"].sum.is_monotonic
    assert found["bursar.open"].gauge.data_points[0].as_double == 2
    [took] = found["bursar.took"].histogram.data_points
    assert (list(took.bucket_counts), took.count, took.sum) == ([0, 1, 0], 1, 0.5)
    assert (found["bursar.took"].unit, list(took.explicit_bounds)) == ("s", [0.1, 1.0])
    assert took.start_time_unix_nano <= took.time_unix_nano


def test_a_span_continues_the_callers_trace(collector: Collector) -> None:
    telemetry = telemetry_of({"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url})
    parent = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    span = telemetry.start_span("bursar.v1.UserService/SetBudget", parent)
    assert span is not None
    span.end()
    telemetry.close()
    [sent] = collector.traces[0].resource_spans[0].scope_spans[0].spans
    assert sent.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
    assert sent.parent_span_id.hex() == "b7ad6b7169203331"


@pytest.mark.parametrize(
    "environ", [{}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "True"}]
)
def test_off_by_default(environ: dict[str, str]) -> None:
    telemetry = telemetry_of(environ)
    assert not telemetry.exports_calls
    assert telemetry.start_span("x", {}) is None
    telemetry.record_call(CALL)
    telemetry.start()
    telemetry.close()


def test_opentelemetry_is_not_even_imported_when_off() -> None:
    script = (
        "import sys, bursar_server.telemetry as t; t.telemetry_of({}); print('opentelemetry' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def formatted(message: str, *args: object, **extra: object) -> dict[str, Any]:
    record = logging.getLogger("bursar.test").makeRecord(
        "bursar.test", logging.WARNING, __file__, 1, message, args, None, extra=extra
    )
    line = JsonFormatter().format(record)
    assert "\n" not in line
    return dict(json.loads(line))


def test_a_log_line_is_json_with_the_message_as_it_is() -> None:
    """F088: the message can be filtered on, to the letter."""
    line = formatted("🔔 budget alert: %d%% threshold reached", 90, budget_id="b", threshold_pct=90)
    assert line["message"] == "🔔 budget alert: 90% threshold reached"
    assert (line["level"], line["severity"], line["logger"]) == ("WARNING", "WARNING", "bursar.test")
    assert (line["budget_id"], line["threshold_pct"]) == ("b", 90)
    assert datetime.fromisoformat(line["time"]).tzinfo is not None


def test_secrets_never_reach_a_log() -> None:
    key, token = "bur_" + "k" * 43, "bat_" + "t-" * 21
    line = formatted(f"{key} and {token}", url="postgresql://bursar:geheim@db/x", other=token)
    assert line["message"] == "bur_… and bat_…"
    assert (line["url"], line["other"]) == ("postgresql://bursar:…@db/x", "bat_…")
    assert scrubbed("https://example.com/a:b@c") == "https://example.com/a:b@c"


def test_a_traceback_is_a_field() -> None:
    error = ValueError("with bat_" + "x" * 43)
    record = logging.getLogger("x").makeRecord("x", 40, "f", 1, "failed", (), (type(error), error, None))
    line = json.loads(JsonFormatter().format(record))
    assert line["traceback"].endswith("ValueError: with bat_…")
