"""Every refusal in the words of the API that was called."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bursar.v1.metering_pb2 import Denial
from bursar_sidecar import denial
from bursar_sidecar.providers.base import DIALECTS, InvalidTags, Problem, dialect_named

NOW = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)
MIDNIGHT = datetime(2026, 3, 5, tzinfo=UTC)


def spent(**fields: Any) -> Denial:
    values: dict[str, Any] = {
        "code": "BUDGET_CAP_HARD",
        "reason": "insufficient_budget",
        "budget_id": "bud_1",
        "scope": "user",
        "limit_usd": 5.0,
        "spent_usd": 5.25,
        "period_reset_time": MIDNIGHT,
        **fields,
    }
    return Denial(**values)


def limited(opens_in: timedelta, code: str = "RATE_LIMITED") -> Denial:
    return Denial(code=code, reason="rate_limit", retryable=True, period_reset_time=NOW + opens_in)


def answered(problem: Problem, dialect: str = "openai") -> tuple[int, dict[str, str], dict[str, Any]]:
    status, headers, body = denial.answer(dialect_named(dialect), problem)
    return status, headers, json.loads(body)


def test_a_spent_budget_in_openais_shape() -> None:
    """C04: one 402 with both names, the reset time, and no invitation to send again."""
    status, headers, body = answered(denial.denied([spent()], NOW))
    assert status == 402
    assert headers == {"content-type": "application/json", "x-should-retry": "false"}
    assert body == {
        "error": {
            "message": "budget exhausted: the user budget has nothing left for this call "
            "($5.25 of $5.00 spent); it resets at 2026-03-05T00:00:00Z.",
            "type": "insufficient_budget",
            "param": None,
            "code": "BUDGET_CAP_HARD",
            "budget_id": "bud_1",
            "scope": "user",
            "limit_usd": 5.0,
            "spent_usd": 5.25,
            "period_reset_time": "2026-03-05T00:00:00Z",
            "retryable": False,
        }
    }


def test_a_spent_budget_in_anthropics_shape() -> None:
    status, _, body = answered(denial.denied([spent()], NOW), "anthropic")
    error = body["error"]
    assert (status, body["type"]) == (402, "error")
    assert (error["type"], error["code"]) == ("insufficient_budget", "BUDGET_CAP_HARD")
    assert error["message"].startswith("budget exhausted")
    assert error["details"]["error_code"] == "BUDGET_CAP_HARD"
    assert error["details"]["budget_id"] == "bud_1"
    assert error["details"]["retryable"] is False


@pytest.mark.parametrize("stream", [False, True])
def test_a_spent_budget_in_geminis_shape(stream: bool) -> None:
    problem = denial.denied([spent()], NOW)
    status, headers, raw = denial.answer(dialect_named("gemini"), problem, stream)
    error = json.loads(raw)["error"]
    assert (status, error["code"], error["status"]) == (402, 402, "RESOURCE_EXHAUSTED")
    assert headers["x-should-retry"] == "false"
    assert error["message"].startswith("budget exhausted")
    assert error["details"] == [
        {
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": "BUDGET_CAP_HARD",
            "domain": "bursar.dev",
            "metadata": {
                "budget_id": "bud_1",
                "scope": "user",
                "limit_usd": "5.0",
                "spent_usd": "5.25",
                "period_reset_time": "2026-03-05T00:00:00Z",
                "retryable": "false",
            },
        }
    ]


def test_a_budget_that_the_caller_may_not_read_shows_no_figures() -> None:
    """S2: of others' budgets only the kind of scope and the reset time."""
    hidden = Denial(
        code="BUDGET_CAP_HARD", reason="insufficient_budget", scope="tenant", period_reset_time=MIDNIGHT
    )
    _, _, body = answered(denial.denied([hidden], NOW))
    assert set(body["error"]) == {
        "message",
        "type",
        "param",
        "code",
        "scope",
        "period_reset_time",
        "retryable",
    }
    assert "$" not in body["error"]["message"]


def test_a_budget_in_tokens_and_small_amounts_are_said_exactly() -> None:
    tokens = Denial(code="BUDGET_CAP_HARD", scope="key", limit_tokens=1000, spent_tokens=1000)
    assert "(1000 of 1000 tokens spent)" in denial.denied([tokens], NOW).message
    assert (
        "($0.00015 of $0.0001 spent)" in denial.denied([spent(limit_usd=1e-4, spent_usd=1.5e-4)], NOW).message
    )


def test_every_denial_is_listed_and_the_hopeless_one_counts() -> None:
    """S2: waiting for a hold cannot help where another budget is spent."""
    held = Denial(code="BUDGET_HELD", reason="rate_limit", retryable=True, scope="group")
    status, _, body = answered(denial.denied([held, spent()], NOW))
    assert (status, body["error"]["code"]) == (402, "BUDGET_CAP_HARD")
    assert [one["code"] for one in body["error"]["denials"]] == ["BUDGET_HELD", "BUDGET_CAP_HARD"]


@pytest.mark.parametrize(
    ("opens_in", "retry_after", "should_retry"),
    [
        (timedelta(seconds=-5), "1", None),
        (timedelta(milliseconds=200), "1", None),
        (timedelta(seconds=7, milliseconds=1), "8", None),
        (timedelta(seconds=60), "60", None),
        (timedelta(seconds=61), "61", "false"),
        (timedelta(hours=2), "7200", "false"),
    ],
)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_rate_limit_says_when_to_come_back(
    dialect: str, opens_in: timedelta, retry_after: str, should_retry: str | None
) -> None:
    """Above 60 seconds the SDKs are told not to wait."""
    status, headers, _ = answered(denial.denied([limited(opens_in)], NOW), dialect)
    assert (status, headers["retry-after"], headers.get("x-should-retry")) == (429, retry_after, should_retry)


def test_a_held_budget_is_worth_another_try() -> None:
    """S10: nothing is spent yet, only promised to calls under way."""
    held = Denial(
        code="BUDGET_HELD", reason="rate_limit", retryable=True, period_reset_time=MIDNIGHT, scope="user"
    )
    status, headers, body = answered(denial.denied([held], NOW))
    assert (status, headers["retry-after"], body["error"]["code"]) == (429, "1", "BUDGET_HELD")
    assert "x-should-retry" not in headers
    assert body["error"]["retryable"] is True


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("KEY_UNKNOWN", 401),
        ("KEY_REVOKED", 403),
        ("USER_DEACTIVATED", 403),
        ("USER_UNKNOWN", 403),
        ("TENANT_SUSPENDED", 403),
        ("NO_BUDGET", 403),
        ("MODEL_UNPRICED", 403),
    ],
)
def test_what_only_a_person_can_change_is_not_tried_again(code: str, status: int) -> None:
    problem = denial.denied([Denial(code=code, message="Ask your administrator.")], NOW)
    found, headers, body = answered(problem)
    assert (found, headers["x-should-retry"]) == (status, "false")
    assert (body["error"]["code"], body["error"]["message"]) == (code, "Ask your administrator.")


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        ("insufficient_budget", 402),
        ("rate_limit", 429),
        ("authentication", 401),
        ("permission", 403),
        ("?", 403),
    ],
)
def test_a_code_from_a_later_version_goes_by_its_reason(reason: str, status: int) -> None:
    problem = denial.denied([Denial(code="SOMETHING_NEW", reason=reason)], NOW)
    assert (problem.status, problem.code) == (status, "SOMETHING_NEW")
    assert problem.message


def test_a_denial_without_reasons_is_still_one() -> None:
    assert denial.denied([], NOW).status == 403


def said(dialect: str, body: dict[str, Any]) -> tuple[str, str]:
    """Return code and message from where the API's clients look for them."""
    if dialect in ("bedrock", "cohere"):
        return body["code"], body["message"]
    if dialect == "ollama":
        return body["code"], body["error"]
    error = body["error"]
    code = error["details"][0]["reason"] if dialect in ("gemini", "vertex") else error["code"]
    return code, error["message"]


@pytest.mark.parametrize(
    ("problem", "status", "retry_after", "should_retry"),
    [
        (denial.unauthenticated(), 401, None, "false"),
        (denial.forbidden("ACT_FOR_USERS", "This key may not act for users."), 403, None, "false"),
        (denial.invalid_tags(InvalidTags("metadata.tags.team", "must be text")), 400, None, "false"),
        (denial.invalid_request("x-bursar-tags: no key before ="), 400, None, "false"),
        (denial.not_found("no upstream has this path"), 404, None, "false"),
        (denial.too_large(1 << 20), 413, None, "false"),
        (denial.control_plane_unavailable(), 503, "1", None),
        (denial.shutting_down(), 503, "1", None),
        (denial.upstream_unreachable("openai"), 502, None, None),
        (denial.upstream_timeout("openai"), 504, None, None),
    ],
)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_sidecars_own_refusals(
    dialect: str, problem: Problem, status: int, retry_after: str | None, should_retry: str | None
) -> None:
    found, headers, body = answered(problem, dialect)
    assert (found, headers.get("retry-after"), headers.get("x-should-retry")) == (
        status,
        retry_after,
        should_retry,
    )
    assert said(dialect, body) == (problem.code, problem.message)


def test_tags_name_the_field() -> None:
    problem = denial.invalid_tags(InvalidTags("metadata.tags.team", "a tag's value must be text"))
    _, _, body = answered(problem)
    assert body["error"]["field"] == "metadata.tags.team"
    assert "metadata.tags.team" in body["error"]["message"]
