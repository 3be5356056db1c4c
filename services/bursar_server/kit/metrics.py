"""Metrics: plain integers that anything may count in, read by whoever exports them.

Recording costs a lock and a dictionary, well below a microsecond; the exporters ask for the numbers when they need them.
Names are written as OpenTelemetry does (`bursar.rpc.requests`); Prometheus shows them as `bursar_rpc_requests_total`.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from threading import Lock
from typing import TypeVar

# How many label combinations a metric keeps apart; what comes later is counted together as "other".
MAX_SERIES = 1000

# Seconds, from half a millisecond to half a minute: what an RPC or a batch takes.
LATENCY_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)

Labels = tuple[str, ...]
# What a gauge reads: one number, or one for each combination of labels.
Reading = float | Mapping[Labels, float]

_UNITS = {"s": "seconds", "ms": "milliseconds", "By": "bytes", "nanos": "nanos"}


@dataclass(frozen=True, slots=True)
class Description:
    """What a metric is: its name, what it says, its unit (UCUM: `s`, `By`; empty for counts) and its labels."""

    name: str
    help: str
    unit: str = ""
    labels: tuple[str, ...] = ()

    @property
    def prometheus_name(self) -> str:
        """The name as Prometheus writes it, with the unit last; counters add `_total`."""
        name = self.name.replace(".", "_")
        unit = _UNITS.get(self.unit, "")
        return f"{name}_{unit}" if unit and not name.endswith(f"_{unit}") else name


class _Series:
    """The label combinations of one metric, bounded."""

    def __init__(self, description: Description) -> None:
        self.description = description
        self._lock = Lock()

    def _key(self, known: Mapping[Labels, object], labels: Labels) -> Labels:
        if labels in known:
            return labels
        if len(labels) != len(self.description.labels):
            raise ValueError(
                f"{self.description.name} has the labels {self.description.labels}, not {labels}"
            )
        return labels if len(known) < MAX_SERIES else ("other",) * len(labels)


class Counter(_Series):
    """A number that only goes up."""

    def __init__(self, description: Description) -> None:
        super().__init__(description)
        self._values: dict[Labels, int] = {} if description.labels else {(): 0}

    def add(self, *labels: str, amount: int = 1) -> None:
        """Count `amount` more, from any thread."""
        with self._lock:
            key = self._key(self._values, labels)
            self._values[key] = self._values.get(key, 0) + amount

    def values(self) -> dict[Labels, int]:
        """Return the count of each combination of labels."""
        with self._lock:
            return dict(self._values)


class Gauge:
    """A number that is read when it is asked for."""

    def __init__(self, description: Description, read: Callable[[], Reading]) -> None:
        self.description = description
        self._read = read

    def values(self) -> dict[Labels, float]:
        """Return the number of each combination of labels."""
        reading = self._read()
        return dict(reading) if isinstance(reading, Mapping) else {(): float(reading)}


@dataclass(slots=True)
class Distribution:
    """How many observations fell into each bucket (the last has no upper bound), their sum, and the extremes."""

    counts: list[int]
    total: float = 0.0
    smallest: float = inf
    largest: float = -inf

    @property
    def count(self) -> int:
        """How many observations there were."""
        return sum(self.counts)


class Histogram(_Series):
    """How observations spread over fixed buckets, given by their upper bounds."""

    def __init__(self, description: Description, buckets: tuple[float, ...]) -> None:
        super().__init__(description)
        self.buckets = buckets
        self._values: dict[Labels, Distribution] = {}

    def observe(self, value: float, *labels: str) -> None:
        """Record one observation, in the metric's unit, from any thread."""
        with self._lock:
            key = self._key(self._values, labels)
            found = self._values.get(key)
            if found is None:
                found = self._values[key] = Distribution([0] * (len(self.buckets) + 1))
            found.counts[bisect_left(self.buckets, value)] += 1
            found.total += value
            found.smallest = min(found.smallest, value)
            found.largest = max(found.largest, value)

    def values(self) -> dict[Labels, Distribution]:
        """Return a copy of the distribution of each combination of labels."""
        with self._lock:
            return {key: replace(entry, counts=list(entry.counts)) for key, entry in self._values.items()}


Metric = Counter | Gauge | Histogram
M = TypeVar("M", Counter, Gauge, Histogram)


@dataclass(slots=True)
class Metrics:
    """All metrics of a process."""

    _metrics: dict[str, Metric] = field(default_factory=dict)

    def counter(self, name: str, about: str, *, unit: str = "", labels: tuple[str, ...] = ()) -> Counter:
        """Add a counter. Raises ValueError for a name that is taken."""
        return self._add(Counter(Description(name, about, unit, labels)))

    def gauge(
        self,
        name: str,
        about: str,
        read: Callable[[], Reading],
        *,
        unit: str = "",
        labels: tuple[str, ...] = (),
    ) -> Gauge:
        """Add a gauge, read by calling `read` at each export. Raises ValueError for a name that is taken."""
        return self._add(Gauge(Description(name, about, unit, labels), read))

    def histogram(
        self,
        name: str,
        about: str,
        *,
        unit: str = "s",
        labels: tuple[str, ...] = (),
        buckets: tuple[float, ...] = LATENCY_BUCKETS,
    ) -> Histogram:
        """Add a histogram. Raises ValueError for a name that is taken."""
        return self._add(Histogram(Description(name, about, unit, labels), buckets))

    def __iter__(self) -> Iterator[Metric]:
        """Yield every metric, in the order they were added."""
        return iter(list(self._metrics.values()))

    def _add(self, metric: M) -> M:
        name = metric.description.name
        if name in self._metrics:
            raise ValueError(f"there is a metric {name} already")
        self._metrics[name] = metric
        return metric


def prometheus_text(metrics: Metrics) -> str:
    """Return every metric in Prometheus' text format, version 0.0.4."""
    lines: list[str] = []
    for metric in metrics:
        about = metric.description
        name = about.prometheus_name + ("_total" if isinstance(metric, Counter) else "")
        kind = (
            "counter"
            if isinstance(metric, Counter)
            else "gauge"
            if isinstance(metric, Gauge)
            else "histogram"
        )
        lines.append(f"# HELP {name} {_escaped(about.help)}")
        lines.append(f"# TYPE {name} {kind}")
        if isinstance(metric, Histogram):
            for labels, entry in sorted(metric.values().items()):
                lines.extend(_histogram_lines(name, about.labels, labels, metric.buckets, entry))
        else:
            for labels, value in sorted(metric.values().items()):
                lines.append(f"{name}{_label_text(about.labels, labels)} {_number(value)}")
    return "\n".join(lines) + "\n"


def _histogram_lines(
    name: str, names: Labels, labels: Labels, buckets: tuple[float, ...], entry: Distribution
) -> Iterator[str]:
    below = 0
    for bound, count in zip((*buckets, None), entry.counts, strict=True):
        below += count
        edge = "+Inf" if bound is None else _number(bound)
        yield f"{name}_bucket{_label_text((*names, 'le'), (*labels, edge))} {below}"
    yield f"{name}_sum{_label_text(names, labels)} {_number(entry.total)}"
    yield f"{name}_count{_label_text(names, labels)} {below}"


def _label_text(names: Labels, values: Labels) -> str:
    if not names:
        return ""
    pairs = (
        f'{name.replace(".", "_")}="{_escaped(value, quoted=True)}"'
        for name, value in zip(names, values, strict=True)
    )
    return "{" + ",".join(pairs) + "}"


def _escaped(text: str, *, quoted: bool = False) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quoted else text


def _number(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    return str(int(value)) if value.is_integer() else repr(value)
