"""How the sidecar says no: one `Problem` for each cause, answered in the error shape of the API that was called.

Provider SDKs decide by status, `Retry-After` and `x-should-retry` whether to send again: a call that no repetition can
help (a spent budget, a revoked key) is refused once and for all, a short wait says how long it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal

from bursar.v1.metering_pb2 import Denial
from bursar_sidecar.providers.base import Dialect, InvalidTags, Problem

#: SDKs wait at most about this long between attempts; above it a repetition would only hold a connection open.
RETRY_MAX_SECONDS = 60

BUDGET_CODE = "BUDGET_CAP_HARD"
HELD_CODE = "BUDGET_HELD"

#: Status and type by the code of a denial.
_BY_CODE = {
    BUDGET_CODE: (402, "insufficient_budget"),
    HELD_CODE: (429, "rate_limit_error"),
    "RATE_LIMITED": (429, "rate_limit_error"),
    "KEY_UNKNOWN": (401, "authentication_error"),
    "KEY_REVOKED": (403, "permission_error"),
    "USER_DEACTIVATED": (403, "permission_error"),
    "USER_UNKNOWN": (403, "permission_error"),
    "TENANT_SUSPENDED": (403, "permission_error"),
    "NO_BUDGET": (403, "permission_error"),
    # Nothing has been spent and no money would help: somebody has to give the model a price.
    "MODEL_UNPRICED": (403, "permission_error"),
    # The call's own release overtook its Check; a new call gets a new id.
    "REQUEST_RELEASED": (503, "api_error"),
}

#: The same by the kind of problem, for codes that this version does not know.
_BY_REASON = {
    "insufficient_budget": (402, "insufficient_budget"),
    "rate_limit": (429, "rate_limit_error"),
    "authentication": (401, "authentication_error"),
    "permission": (403, "permission_error"),
}


def answer(dialect: Dialect, problem: Problem, stream: bool = False) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and body that tell the app about `problem` in the words of `dialect`."""
    headers = {"content-type": "application/json"}
    if problem.retry_after_seconds is not None:
        headers["retry-after"] = str(problem.retry_after_seconds)
    if problem.should_retry is not None:
        headers["x-should-retry"] = "true" if problem.should_retry else "false"
    return problem.status, headers, dialect.error_body(problem, stream)


def denied(denials: Sequence[Denial], now: datetime) -> Problem:
    """Return the problem of a call that Check denied; `denials` are strictest first, `now` is an aware UTC instant.

    A denial that waiting cannot help goes before one that it can (C04: 402 with the code BUDGET_CAP_HARD).
    """
    if not denials:
        return Problem(403, "DENIED", "permission_error", "The call was denied.", should_retry=False)
    first = next((one for one in denials if _is_final(one)), denials[0])
    status, kind = _status_and_type(first)
    details = _details(first)
    if len(denials) > 1:
        details["denials"] = [{"code": one.code, **_details(one)} for one in denials]
    if status in (429, 503):
        return _wait(status, kind, first, details, now)
    details["retryable"] = False
    message = (
        _budget_message(first) if status == 402 else first.message or f"The call was denied: {first.code}."
    )
    return Problem(status, first.code, kind, message, should_retry=False, details=details)


def output_too_short() -> Problem:
    """Return the problem of a call whose budget pays for fewer output tokens than the call can be made with."""
    message = "budget exhausted: what is left pays for fewer output tokens than this call needs."
    details: dict[str, object] = {"retryable": False}
    return Problem(402, BUDGET_CODE, "insufficient_budget", message, should_retry=False, details=details)


def unauthenticated() -> Problem:
    """Return the problem of a call that carries no key of this installation."""
    message = "No Bursar API key was sent. Use your bur_ key where the provider's key would go."
    return Problem(401, "KEY_MISSING", "authentication_error", message, should_retry=False)


def forbidden(code: str, message: str) -> Problem:
    """Return the problem of a call that its key may not make."""
    return Problem(403, code, "permission_error", message, should_retry=False)


def invalid_tags(error: InvalidTags) -> Problem:
    """Return the problem of tags that are not text."""
    message = f"{error.field}: {error.message}"
    return Problem(
        400,
        "INVALID_TAGS",
        "invalid_request_error",
        message,
        should_retry=False,
        details={"field": error.field},
    )


def invalid_request(message: str) -> Problem:
    """Return the problem of a request that the sidecar cannot forward as it is."""
    return Problem(400, "INVALID_REQUEST", "invalid_request_error", message, should_retry=False)


def not_found(message: str) -> Problem:
    """Return the problem of a path that belongs to no upstream."""
    return Problem(404, "NOT_FOUND", "not_found_error", message, should_retry=False)


def too_large(limit_bytes: int) -> Problem:
    """Return the problem of a request body above the sidecar's limit."""
    message = f"The request body is larger than {limit_bytes} bytes."
    return Problem(413, "REQUEST_TOO_LARGE", "request_too_large", message, should_retry=False)


def control_plane_unavailable() -> Problem:
    """Return the problem of a call that nobody could be asked about, where the policy is closed."""
    message = "The budget service cannot be asked right now; nothing was sent to the provider."
    return Problem(503, "CONTROL_PLANE_UNAVAILABLE", "api_error", message, retry_after_seconds=1)


def spent_on_the_way() -> Problem:
    """Return the problem of a stream that brought more than what its budget had left."""
    message = "budget exhausted: this stream was ended because a budget has nothing left for it; what came is charged."
    details: dict[str, object] = {"retryable": False}
    return Problem(402, BUDGET_CODE, "insufficient_budget", message, should_retry=False, details=details)


def spent_as_known() -> Problem:
    """Return the problem of a call that nobody could be asked about, and that what was left does not pay for."""
    message = (
        "budget exhausted: the budget service cannot be asked right now, and what was left when it could be asked last "
        "does not pay for this call."
    )
    details: dict[str, object] = {"retryable": False}
    return Problem(402, BUDGET_CODE, "insufficient_budget", message, should_retry=False, details=details)


def shutting_down() -> Problem:
    """Return the problem of a call that came while the sidecar stops."""
    message = "The sidecar is stopping; nothing was sent to the provider."
    return Problem(503, "SHUTTING_DOWN", "api_error", message, retry_after_seconds=1)


def upstream_unreachable(upstream: str) -> Problem:
    """Return the problem of a provider that could not be reached or broke off before it answered."""
    message = f"The provider {upstream} could not be reached."
    return Problem(502, "UPSTREAM_UNREACHABLE", "api_error", message)


def upstream_timeout(upstream: str) -> Problem:
    """Return the problem of a provider that did not answer in time."""
    message = f"The provider {upstream} did not answer in time."
    return Problem(504, "UPSTREAM_TIMEOUT", "timeout_error", message)


def _is_final(denial: Denial) -> bool:
    return _status_and_type(denial)[0] not in (429, 503)


def _status_and_type(denial: Denial) -> tuple[int, str]:
    known = _BY_CODE.get(denial.code) or _BY_REASON.get(denial.reason)
    return known or (403, "permission_error")


def _wait(status: int, kind: str, denial: Denial, details: dict[str, object], now: datetime) -> Problem:
    seconds = 1
    if denial.code != HELD_CODE and denial.HasField("period_reset_time"):
        opens = denial.period_reset_time.ToDatetime(UTC)
        seconds = max(math.ceil((opens - now).total_seconds()), 1)
    soon = seconds <= RETRY_MAX_SECONDS
    details["retryable"] = True
    message = denial.message or f"Too many requests; try again in {seconds} s."
    return Problem(status, denial.code, kind, message, seconds, None if soon else False, details)


def _details(denial: Denial) -> dict[str, object]:
    """Return what the principal may know of the budget: the control plane leaves out what it may not (S2)."""
    details: dict[str, object] = {}
    if denial.budget_id:
        details["budget_id"] = denial.budget_id
    if denial.scope:
        details["scope"] = denial.scope
    for name in ("limit_usd", "spent_usd", "limit_tokens", "spent_tokens"):
        if denial.HasField(name):
            details[name] = getattr(denial, name)
    if denial.HasField("period_reset_time"):
        details["period_reset_time"] = _instant(denial)
    return details


def _budget_message(denial: Denial) -> str:
    scope = f"the {denial.scope} budget" if denial.scope else "a budget"
    says = f"budget exhausted: {scope} has nothing left for this call"
    if denial.HasField("spent_usd") and denial.HasField("limit_usd"):
        says += f" (${_dollars(denial.spent_usd)} of ${_dollars(denial.limit_usd)} spent)"
    elif denial.HasField("spent_tokens") and denial.HasField("limit_tokens"):
        says += f" ({denial.spent_tokens} of {denial.limit_tokens} tokens spent)"
    if denial.HasField("period_reset_time"):
        says += f"; it resets at {_instant(denial)}"
    return f"{says}."


def _dollars(amount: float) -> str:
    """Return an amount as people write it: at least two decimals, and as many as it has."""
    exact = Decimal(repr(amount))
    return f"{exact:.2f}" if exact == round(exact, 2) else format(exact, "f")


def _instant(denial: Denial) -> str:
    return denial.period_reset_time.ToDatetime(UTC).isoformat().replace("+00:00", "Z")
