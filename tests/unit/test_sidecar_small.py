"""Ids, money and logs of the sidecar."""

from __future__ import annotations

import io
import json
import logging
import sys
from decimal import Decimal
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bursar_sidecar.ids import RequestIds, packed, sha256_hex, unpacked
from bursar_sidecar.money import usd_of_text, usd_text
from bursar_sidecar.telemetry import Counts, JsonLines, WithoutDetail, metrics_text


class Clock:
    def __init__(self, ns: int) -> None:
        self.ns = ns

    def now_ns(self) -> int:
        return self.ns

    def monotonic(self) -> float:
        return self.ns / 1e9


def test_ids_are_uuids_of_version_7_with_the_time_in_them() -> None:
    """S16: the caller makes the id."""
    ids = RequestIds(Clock(1_700_000_000_123_456_789))
    made = [ids.new() for _ in range(1000)]
    assert len(set(made)) == 1000
    for one in made:
        parsed = UUID(one)
        assert str(parsed) == one
        assert (parsed.version, parsed.variant) == (7, "specified in RFC 4122")
        assert parsed.int >> 80 == 1_700_000_000_123
        assert unpacked(packed(one)) == one


def test_ids_follow_the_control_planes_clock_once_it_is_known() -> None:
    """S16: the sidecar corrects its offset and makes a new id."""
    clock = Clock(10**18)
    ids = RequestIds(clock)
    ids.correct(10**18 + 3600 * 10**9)
    clock.ns += 10**9
    assert ids.now_ns() == 10**18 + 3601 * 10**9
    assert UUID(ids.new()).int >> 80 == 10**12 + 3601 * 10**3
    assert ids.offset_ms == 3_600_000


def test_a_key_is_known_by_its_hash() -> None:
    assert sha256_hex("bur_x") == "50f1d15a2cd7f63a26ad40d84d3ae42cc1bfbd30b7a155589599aa865332102c"


@given(st.integers(-(2**63), 2**63 - 1))
def test_money_as_text_is_exact(nanos: int) -> None:
    text = usd_text(nanos)
    assert Decimal(text).scaleb(9) == nanos
    assert "e" not in text.lower()
    assert not text.endswith(".")
    assert "." not in text or not text.endswith("0")


@pytest.mark.parametrize(
    ("nanos", "text"),
    [(0, "0"), (1, "0.000000001"), (1_500_000, "0.0015"), (10**10, "10"), (-5, "-0.000000005")],
)
def test_money_as_people_read_it(nanos: int, text: str) -> None:
    assert usd_text(nanos) == text


@pytest.mark.parametrize(
    ("text", "usd"),
    [
        (None, None),
        ("0.1", 0.1),
        ("0.00012345678949", 0.000123457),
        ("1e3", 1000.0),
        ("x", None),
        ("-1", None),
        ("1e10", None),
    ],
)
def test_a_providers_own_cost_has_at_most_nine_decimals(text: str | None, usd: float | None) -> None:
    assert usd_of_text(text) == usd


def test_logs_tell_where_but_not_what() -> None:
    """F098: no key and no prompt is in a log, not even in the text of an error."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    logger = logging.Logger("test")
    logger.addHandler(handler)
    try:
        raise ValueError("bur_secret")  # noqa: TRY301
    except ValueError:
        logger.exception("it failed", extra={"fields": {"upstream": "openai"}})
    line = json.loads(stream.getvalue())
    assert line["message"] == "it failed"
    assert line["upstream"] == "openai"
    assert line["error"] == "ValueError"
    assert "test_sidecar_small.py" in line["at"][0]
    assert "bur_secret" not in stream.getvalue()


def test_a_bad_request_is_not_quoted() -> None:
    try:
        raise ValueError("Authorization: Bearer bur_secret")  # noqa: TRY301
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "p", 1, "bad request", (), sys.exc_info())
    assert WithoutDetail().filter(record)
    assert "bur_secret" not in JsonLines().format(record)


def test_metrics_are_prometheus_text() -> None:
    counts = Counts()
    counts.calls["openai"] += 2
    counts.refused['a"b\\c'] += 1
    text = metrics_text(counts, [("depth", "How deep.", lambda: 3)])
    assert 'bursar_sidecar_calls_total{upstream="openai"} 2\n' in text
    assert 'bursar_sidecar_refusals_total{code="a\\"b\\\\c"} 1\n' in text
    assert "# TYPE bursar_sidecar_depth gauge\nbursar_sidecar_depth 3\n" in text
    for line in text.splitlines():
        assert line.startswith("# ") or len(line.rsplit(" ", 1)) == 2
