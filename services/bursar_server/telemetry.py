"""What the control plane says about itself: metrics, structured logs, and traces over OTLP when a collector is named."""

import logging
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from bursar_server.kit.logs import JsonFormatter
from bursar_server.kit.metrics import Counter, Gauge, Histogram, Metrics, prometheus_text

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Observation
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import Metric as OtlpMetric
    from opentelemetry.sdk.metrics.export import MetricExporter
    from opentelemetry.trace import Span

SCOPE = "bursar"

# Any of these turns OTLP on; the exporters read them, and all other OTEL_*, themselves.
_ENDPOINTS = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
)


@dataclass(frozen=True, slots=True)
class MeteredCall:
    """One deducted call with the dimensions that a statement has (F146). Ids are texts, instants aware, money in nanos."""

    request_id: str
    start_time: datetime
    end_time: datetime
    tenant_id: str
    user_id: str
    api_key_id: str
    provider: str
    model: str
    input_tokens: int
    output_tokens: int
    cost_nanos: int
    outcome: str
    session_id: str = ""
    service_tier: str = ""
    estimated: bool = False
    unpriced: bool = False
    tags: Mapping[str, str] = field(default_factory=dict)

    def attributes(self) -> dict[str, str | int | bool]:
        """Return the call as span attributes: names of the GenAI conventions where they exist, `bursar.*` otherwise."""
        found: dict[str, str | int | bool] = {
            "gen_ai.provider.name": self.provider,
            "gen_ai.response.model": self.model,
            "gen_ai.usage.input_tokens": self.input_tokens,
            "gen_ai.usage.output_tokens": self.output_tokens,
            "gen_ai.conversation.id": self.session_id,
            "bursar.request.id": self.request_id,
            "bursar.tenant.id": self.tenant_id,
            "bursar.user.id": self.user_id,
            "bursar.api_key.id": self.api_key_id,
            "bursar.service_tier": self.service_tier,
            "bursar.cost_nanos": self.cost_nanos,
            "bursar.outcome": self.outcome,
            "bursar.estimated": self.estimated,
            "bursar.unpriced": self.unpriced,
        }
        found.update({f"bursar.tag.{key}": value for key, value in self.tags.items()})
        return {name: value for name, value in found.items() if value != ""}


class Telemetry:
    """Where everything counts. Without a collector only the numbers for `/metrics` are kept, and nothing else is paid for."""

    def __init__(self, otlp: "Otlp | None" = None) -> None:
        self.metrics = Metrics()
        self._otlp = otlp

    @property
    def exports_calls(self) -> bool:
        """Whether `record_call` sends anything: ask before putting a MeteredCall together."""
        return self._otlp is not None and self._otlp.traces

    def start(self) -> None:
        """Begin to export the metrics, if a collector was named; call it once all of them have been added."""
        if self._otlp is not None:
            self._otlp.export_metrics(self.metrics)

    def record_call(self, call: MeteredCall) -> None:
        """Send a deducted call as a span of its own, from any thread; does nothing without a collector (F146)."""
        if self._otlp is not None:
            self._otlp.send_call(call)

    def start_span(self, name: str, headers: Mapping[str, str]) -> "Span | None":
        """Start the span of an RPC as the child of the caller's (`traceparent`), or return None without a collector."""
        return None if self._otlp is None else self._otlp.start_span(name, headers)

    def prometheus(self) -> str:
        """Return every metric in Prometheus' text format."""
        return prometheus_text(self.metrics)

    def close(self) -> None:
        """Send what is still waiting; returns after some seconds at most."""
        if self._otlp is not None:
            self._otlp.close()


def telemetry_of(environ: Mapping[str, str]) -> Telemetry:
    """Return the telemetry that the standard OTEL_* variables ask for; OpenTelemetry is only imported when they do."""
    wanted = any(environ.get(name) for name in _ENDPOINTS)
    if not wanted or environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return Telemetry()
    return Telemetry(
        Otlp(
            traces=environ.get("OTEL_TRACES_EXPORTER", "otlp") != "none",
            metrics=environ.get("OTEL_METRICS_EXPORTER", "otlp") != "none",
        )
    )


class Otlp:
    """Traces and metrics over OTLP/HTTP. Counters and gauges are observable instruments, read at each export."""

    def __init__(self, *, traces: bool = True, metrics: bool = True) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._resource = Resource.create()
        if str(self._resource.attributes["service.name"]).startswith("unknown_service"):
            self._resource = self._resource.merge(Resource({"service.name": "bursar"}))
        self.traces = traces
        self._metrics = metrics
        self._tracers = TracerProvider(resource=self._resource, shutdown_on_exit=False)
        if traces:
            self._tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._tracers.get_tracer(SCOPE)
        self._propagator = TraceContextTextMapPropagator()
        self._meters: MeterProvider | None = None

    def start_span(self, name: str, headers: Mapping[str, str]) -> "Span | None":
        """Start a server span as the child of the one named by `traceparent`."""
        if not self.traces:
            return None
        from opentelemetry.trace import SpanKind

        return self._tracer.start_span(name, self._propagator.extract(headers), SpanKind.SERVER)

    def send_call(self, call: MeteredCall) -> None:
        """Send a call as a client span with the time it took, in a trace of its own."""
        if not self.traces:
            return
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind

        name = f"{call.provider} {call.model}"
        start, end = _nanos_of(call.start_time), _nanos_of(call.end_time)
        span = self._tracer.start_span(name, Context(), SpanKind.CLIENT, call.attributes(), start_time=start)
        span.end(max(start, end))

    def export_metrics(self, metrics: Metrics) -> None:
        """Export the metrics every OTEL_METRIC_EXPORT_INTERVAL milliseconds (default 60,000)."""
        if not self._metrics:
            return
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

        reader = PeriodicExportingMetricReader(_exporter_with_histograms(metrics))
        self._meters = MeterProvider([reader], self._resource, shutdown_on_exit=False)
        meter = self._meters.get_meter(SCOPE)
        for metric in metrics:
            about = metric.description
            if isinstance(metric, Counter):
                meter.create_observable_counter(about.name, [_observer(metric)], about.unit, about.help)
            elif isinstance(metric, Gauge):
                meter.create_observable_gauge(about.name, [_observer(metric)], about.unit, about.help)

    def close(self) -> None:
        """Send what is still waiting."""
        self._tracers.shutdown()
        if self._meters is not None:
            self._meters.shutdown()


def _nanos_of(instant: datetime) -> int:
    """Return an instant as nanoseconds since 1970, exact to the microsecond."""
    since = instant - datetime(1970, 1, 1, tzinfo=UTC)
    return ((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds) * 1000


def _observer(metric: Counter | Gauge) -> "Callable[[CallbackOptions], Iterable[Observation]]":
    from opentelemetry.metrics import Observation

    names = metric.description.labels

    def observe(_options: "CallbackOptions") -> "list[Observation]":
        return [
            Observation(value, dict(zip(names, key, strict=True))) for key, value in metric.values().items()
        ]

    return observe


def _exporter_with_histograms(metrics: Metrics) -> "MetricExporter":
    """Return the OTLP exporter with the histograms added, for which OpenTelemetry has no observable instrument."""
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.sdk.metrics.export import MetricExportResult, MetricsData

    class Exporter(OTLPMetricExporter):
        def export(
            self, metrics_data: MetricsData, timeout_millis: float | None = 10_000, **kwargs: Any
        ) -> MetricExportResult:
            added = False
            resources = []
            for entry in metrics_data.resource_metrics:
                scopes = list(entry.scope_metrics)
                for index, scope in enumerate(scopes):
                    if scope.scope.name == SCOPE and not added:
                        added = True
                        scopes[index] = replace(
                            scope, metrics=[*scope.metrics, *_histograms(metrics, scope.metrics)]
                        )
                resources.append(replace(entry, scope_metrics=scopes))
            return super().export(MetricsData(resources), timeout_millis, **kwargs)

    return Exporter()


def _histograms(metrics: Metrics, beside: "Iterable[OtlpMetric]") -> "Iterable[OtlpMetric]":
    """Yield the histograms as OTLP has them, over the same time as the metrics exported beside them."""
    from opentelemetry.sdk.metrics import export

    points = [point for metric in beside for point in metric.data.data_points]
    if not points:
        return
    start = min(point.start_time_unix_nano or point.time_unix_nano for point in points)
    for metric in metrics:
        if isinstance(metric, Histogram):
            about = metric.description
            data_points = [
                export.HistogramDataPoint(
                    attributes=dict(zip(about.labels, labels, strict=True)),
                    start_time_unix_nano=start,
                    time_unix_nano=points[0].time_unix_nano,
                    count=entry.count,
                    sum=entry.total,
                    bucket_counts=entry.counts,
                    explicit_bounds=metric.buckets,
                    min=entry.smallest,
                    max=entry.largest,
                )
                for labels, entry in metric.values().items()
            ]
            data = export.Histogram(data_points, export.AggregationTemporality.CUMULATIVE)
            yield export.Metric(about.name, about.help, about.unit, data)


def set_up_logging(level: str) -> None:
    """Write every log record of the process to stderr as one line of JSON; `level` is a name such as INFO."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # Tells of every plug-in that it loads.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.captureWarnings(True)
