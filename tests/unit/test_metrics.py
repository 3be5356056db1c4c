"""Metrics, and how Prometheus reads them."""

from __future__ import annotations

import threading

import pytest

from bursar_server.kit.metrics import MAX_SERIES, Metrics, prometheus_text


def test_the_text_format() -> None:
    metrics = Metrics()
    calls = metrics.counter("bursar.calls", "Calls\nmade.", labels=("tag.key",))
    metrics.counter("bursar.never", "Never counted.")
    metrics.gauge("bursar.open", "Open.", lambda: 2)
    metrics.gauge("bursar.age", "Age.", lambda: {("a",): 0.5}, unit="s", labels=("lane",))
    took = metrics.histogram("bursar.took", "Took.", buckets=(0.1, 1.0))
    calls.add('a"\\\n')
    calls.add("b", amount=41)
    calls.add("b")
    for seconds in (0.1, 0.5, 7.0):
        took.observe(seconds)
    assert prometheus_text(metrics) == (
        "# HELP bursar_calls_total Calls\\nmade.\n"
        "# TYPE bursar_calls_total counter\n"
        'bursar_calls_total{tag_key="a\\"\\\\\\n"} 1\n'
        'bursar_calls_total{tag_key="b"} 42\n'
        "# HELP bursar_never_total Never counted.\n"
        "# TYPE bursar_never_total counter\n"
        "bursar_never_total 0\n"
        "# HELP bursar_open Open.\n"
        "# TYPE bursar_open gauge\n"
        "bursar_open 2\n"
        "# HELP bursar_age_seconds Age.\n"
        "# TYPE bursar_age_seconds gauge\n"
        'bursar_age_seconds{lane="a"} 0.5\n'
        "# HELP bursar_took_seconds Took.\n"
        "# TYPE bursar_took_seconds histogram\n"
        'bursar_took_seconds_bucket{le="0.1"} 1\n'
        'bursar_took_seconds_bucket{le="1"} 2\n'
        'bursar_took_seconds_bucket{le="+Inf"} 3\n'
        "bursar_took_seconds_sum 7.6\n"
        "bursar_took_seconds_count 3\n"
    )


def test_labels_are_bounded() -> None:
    metrics = Metrics()
    calls = metrics.counter("calls", "Calls.", labels=("tenant", "model"))
    for number in range(MAX_SERIES + 10):
        calls.add(str(number), "m")
    values = calls.values()
    assert len(values) == MAX_SERIES + 1
    assert values["other", "other"] == 10
    calls.add("0", "m")
    assert calls.values()["0", "m"] == 2


def test_mistakes_are_loud() -> None:
    metrics = Metrics()
    calls = metrics.counter("calls", "Calls.", labels=("tenant",))
    with pytest.raises(ValueError, match="labels"):
        calls.add()
    with pytest.raises(ValueError, match="already"):
        metrics.gauge("calls", "Again.", lambda: 0)


def test_no_count_is_lost_between_threads() -> None:
    calls = Metrics().counter("calls", "Calls.")

    def count() -> None:
        for _ in range(5000):
            calls.add()

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls.values() == {(): 20_000}
