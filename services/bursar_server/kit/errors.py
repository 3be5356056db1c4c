"""Errors that callers can act on, and the one table that says which status each has."""

from collections.abc import Mapping
from enum import StrEnum


class Reason(StrEnum):
    """Why a request failed; the names of `bursar.v1.ErrorReason` without their prefix, which says cause and remedy."""

    INVALID_FIELD = "INVALID_FIELD"
    UNKNOWN_FIELD = "UNKNOWN_FIELD"
    UNKNOWN_ENUM_VALUE = "UNKNOWN_ENUM_VALUE"
    MALFORMED_REQUEST = "MALFORMED_REQUEST"
    REQUEST_TOO_LARGE = "REQUEST_TOO_LARGE"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    VERSION_STALE = "VERSION_STALE"
    USER_AMBIGUOUS = "USER_AMBIGUOUS"
    ABOVE_CEILING = "ABOVE_CEILING"
    MANAGED_ELSEWHERE = "MANAGED_ELSEWHERE"
    WRONG_STATE = "WRONG_STATE"
    REQUEST_ID_REUSED = "REQUEST_ID_REUSED"
    REQUEST_ID_MISPLACED = "REQUEST_ID_MISPLACED"
    REQUEST_TOO_OLD = "REQUEST_TOO_OLD"
    PRINCIPAL_UNKNOWN = "PRINCIPAL_UNKNOWN"
    DATABASE_UNAVAILABLE = "DATABASE_UNAVAILABLE"
    OVERLOADED = "OVERLOADED"
    SHUTTING_DOWN = "SHUTTING_DOWN"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    INTERNAL = "INTERNAL"
    PRICE_NOT_FOUND = "PRICE_NOT_FOUND"


# The numbers of google.rpc.Code, which both doors speak.
INVALID_ARGUMENT = 3
DEADLINE_EXCEEDED = 4
NOT_FOUND = 5
ALREADY_EXISTS = 6
PERMISSION_DENIED = 7
RESOURCE_EXHAUSTED = 8
FAILED_PRECONDITION = 9
ABORTED = 10
INTERNAL = 13
UNAVAILABLE = 14
UNAUTHENTICATED = 16

CODE_OF_REASON: Mapping[Reason, int] = {
    Reason.INVALID_FIELD: INVALID_ARGUMENT,
    Reason.UNKNOWN_FIELD: INVALID_ARGUMENT,
    Reason.UNKNOWN_ENUM_VALUE: INVALID_ARGUMENT,
    Reason.MALFORMED_REQUEST: INVALID_ARGUMENT,
    Reason.REQUEST_TOO_LARGE: RESOURCE_EXHAUSTED,
    Reason.UNAUTHENTICATED: UNAUTHENTICATED,
    Reason.PERMISSION_DENIED: PERMISSION_DENIED,
    Reason.NOT_FOUND: NOT_FOUND,
    Reason.ALREADY_EXISTS: ALREADY_EXISTS,
    Reason.VERSION_STALE: ABORTED,
    Reason.USER_AMBIGUOUS: FAILED_PRECONDITION,
    Reason.ABOVE_CEILING: FAILED_PRECONDITION,
    Reason.MANAGED_ELSEWHERE: PERMISSION_DENIED,
    Reason.WRONG_STATE: FAILED_PRECONDITION,
    Reason.REQUEST_ID_REUSED: ALREADY_EXISTS,
    Reason.REQUEST_ID_MISPLACED: INVALID_ARGUMENT,
    Reason.REQUEST_TOO_OLD: FAILED_PRECONDITION,
    Reason.PRINCIPAL_UNKNOWN: FAILED_PRECONDITION,
    Reason.DATABASE_UNAVAILABLE: UNAVAILABLE,
    Reason.OVERLOADED: UNAVAILABLE,
    Reason.SHUTTING_DOWN: UNAVAILABLE,
    Reason.DEADLINE_EXCEEDED: DEADLINE_EXCEEDED,
    Reason.INTERNAL: INTERNAL,
    Reason.PRICE_NOT_FOUND: NOT_FOUND,
}


class BursarError(Exception):
    """A failure with a reason that the caller can act on.

    `message` is for people and carries no secret; `field` names the request's field that is wrong, as a path of proto
    names (`budget.limit_usd`); `metadata` goes into the ErrorInfo.
    """

    def __init__(
        self, reason: Reason, message: str, *, field: str = "", metadata: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.field = field
        self.metadata = dict(metadata or {})

    @property
    def code(self) -> int:
        """The google.rpc.Code of this error."""
        return CODE_OF_REASON[self.reason]


def invalid(field: str, problem: str) -> BursarError:
    """Return the error for a field whose value is not allowed; the message starts with the field's name."""
    return BursarError(Reason.INVALID_FIELD, f"{field}: {problem}", field=field)


def not_found(kind: str, identity: str) -> BursarError:
    """Return the error for a resource that does not exist or that the caller may not see."""
    return BursarError(Reason.NOT_FOUND, f"no such {kind}: {identity[:100]!r}")
