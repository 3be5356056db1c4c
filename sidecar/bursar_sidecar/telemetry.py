"""What the sidecar tells about itself: counts for Prometheus, and logs as JSON lines without secrets."""

from __future__ import annotations

import json
import logging
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_LOGGER = "bursar_sidecar"
_FOREIGN_MESSAGE_MAX = 200

_Value = int | float


@dataclass(slots=True)
class Counts:
    """Plain integers that only grow; read when somebody asks for /metrics."""

    calls: Counter[str] = field(default_factory=Counter)  # by upstream
    refused: Counter[str] = field(default_factory=Counter)  # by code
    outcomes: Counter[str] = field(default_factory=Counter)
    upstream_errors: Counter[str] = field(default_factory=Counter)  # by kind
    checks: int = 0
    check_batches: int = 0
    check_waits: int = 0
    deducts: int = 0
    deduct_batches: int = 0
    deducts_late: int = 0
    deducts_replayed: int = 0
    releases: int = 0
    dead_letters: int = 0
    degraded: Counter[tuple[str, str]] = field(default_factory=Counter)  # by policy and decision
    renewals: int = 0
    holds_missing: int = 0
    ids_corrected: int = 0
    streams_ended: int = 0
    app_disconnects: int = 0
    estimated: int = 0
    true_ups: Counter[str] = field(default_factory=Counter)  # by result
    sent_without_end: int = 0
    outbox_torn_bytes: int = 0
    outbox_damaged_bytes: int = 0
    control_plane_errors: int = 0


# name in Counts, name of the metric, labels of its parts, meaning
_COUNTERS: tuple[tuple[str, str, str, str], ...] = (
    ("calls", "calls", "upstream", "Calls that were forwarded to an upstream."),
    ("refused", "refusals", "code", "Requests that the sidecar answered itself."),
    ("outcomes", "outcomes", "outcome", "Calls by how they ended."),
    ("upstream_errors", "upstream_errors", "kind", "Upstreams that could not be reached or broke off."),
    ("checks", "checks", "", "Checks asked."),
    ("check_batches", "check_batches", "", "BatchCheck requests that carried them."),
    ("check_waits", "check_waits", "", "Checks that waited for other calls' holds."),
    ("deducts", "deducts", "", "Deducts committed, replayed ones included."),
    ("deduct_batches", "deduct_batches", "", "BatchDeduct requests that carried them."),
    (
        "deducts_late",
        "deducts_late",
        "",
        "Answers that went out before their Deduct was committed (it is in the outbox).",
    ),
    ("deducts_replayed", "deducts_replayed", "", "Deducts committed out of the outbox."),
    ("releases", "releases", "", "Holds released because nothing was sent."),
    ("dead_letters", "dead_letters", "", "Deducts and releases that the control plane will never accept."),
    (
        "degraded",
        "degraded_decisions",
        "policy,decision",
        "Calls decided without a Check, since the control plane could not be asked.",
    ),
    ("renewals", "hold_renewals", "", "Holds renewed."),
    ("holds_missing", "holds_missing", "", "Holds that were gone when they should have been renewed."),
    ("streams_ended", "streams_ended", "", "Streams that were ended because their budget was spent."),
    ("ids_corrected", "request_id_corrections", "", "Corrections of the clock after a misplaced request id."),
    ("app_disconnects", "app_disconnects", "", "Apps that went away before the answer ended."),
    ("estimated", "estimated_calls", "", "Calls whose usage was estimated."),
    (
        "true_ups",
        "true_ups",
        "result",
        "Calls whose provider was to be asked afterwards: settled by what it said, or charged with their estimate.",
    ),
    ("sent_without_end", "sent_without_end", "", "Calls that a crash interrupted after they were sent."),
    ("outbox_torn_bytes", "outbox_torn_bytes", "", "Bytes of unfinished writes found at the start."),
    (
        "outbox_damaged_bytes",
        "outbox_damaged_bytes",
        "",
        "Bytes found damaged at the start; the file was kept.",
    ),
    ("control_plane_errors", "control_plane_errors", "", "Requests to the control plane that failed."),
)

Gauge = tuple[str, str, Callable[[], _Value]]


def metrics_text(counts: Counts, gauges: list[Gauge]) -> str:
    """Return everything in Prometheus' text format; `gauges` are name, meaning, and how to read the value now."""
    lines: list[str] = []
    for attribute, name, label, meaning in _COUNTERS:
        metric = f"bursar_sidecar_{name}_total"
        lines += [f"# HELP {metric} {meaning}", f"# TYPE {metric} counter"]
        value = getattr(counts, attribute)
        if label:
            lines += [f"{metric}{{{_labels(label, part)}}} {value[part]}" for part in sorted(value)]
        else:
            lines.append(f"{metric} {value}")
    for name, meaning, read in gauges:
        metric = f"bursar_sidecar_{name}"
        lines += [f"# HELP {metric} {meaning}", f"# TYPE {metric} gauge", f"{metric} {read()}"]
    return "\n".join(lines) + "\n"


def _labels(names: str, part: str | tuple[str, ...]) -> str:
    parts = (part,) if isinstance(part, str) else part
    pairs = zip(names.split(","), parts, strict=True)
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs)


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, message, and the fields given as `extra={"fields": …}`.

    Of a library's message the beginning of the first line only: what follows shows values.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; of an exception its type and where it was raised, never its text or values."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "message": _own_words(record),
        }
        fields = getattr(record, "fields", None)
        if isinstance(fields, Mapping):
            line |= fields
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__
            line["at"] = _places(record.exc_info[2])
        return json.dumps(line, default=str)


def _own_words(record: logging.LogRecord) -> str:
    message = record.getMessage()
    if record.name.partition(".")[0] == _LOGGER:
        return message
    return message.partition("\n")[0][:_FOREIGN_MESSAGE_MAX]


def _places(traceback: TracebackType | None) -> list[str]:
    """Return the places of a traceback without the values in it, which could be a key or a prompt."""
    places: list[str] = []
    while traceback is not None:
        code = traceback.tb_frame.f_code
        places.append(f"{code.co_filename.rpartition('/')[2]}:{traceback.tb_lineno} {code.co_name}")
        traceback = traceback.tb_next
    return places[-8:]


class WithoutDetail(logging.Filter):
    """Cuts what an HTTP parser says about a bad request: it quotes the bytes, and they could be a credential."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep the record with its own words only."""
        record.exc_info = None
        record.exc_text = None
        return True


def start_logging(level: str) -> logging.Logger:
    """Send the sidecar's logs, and libraries' warnings, to stderr as JSON lines; return the sidecar's logger."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logger = logging.getLogger(_LOGGER)
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(level)
    http = logging.getLogger("bursar_sidecar.http")
    http.addFilter(WithoutDetail())
    return logger
