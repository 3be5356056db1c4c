"""What a request's fields must be, the same on both doors.

Each function returns the value in our own terms or raises INVALID_ARGUMENT naming the field. `*/rpc.py` files call
these, and nothing else, before a service sees a value.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import cache
from typing import Any, Protocol, TypeVar
from uuid import UUID

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from bursar_server.kit.errors import BursarError, Reason, invalid
from bursar_server.kit.ids import parse_uuid
from bursar_server.kit.money import nanos_of_usd

MAX_TAGS = 32
MAX_TAG_KEY_LENGTH = 64
MAX_TAG_VALUE_LENGTH = 256
MAX_EMAIL_LENGTH = 254
MAX_INT64 = 2**63 - 1

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# The last second of year 9999, in seconds since 1970.
_LAST_SECOND = 253_402_300_799
_LAST_INSTANT = _EPOCH + timedelta(seconds=_LAST_SECOND)
_LOCAL_PART = re.compile(r"[^\s@\"(),:;<>\[\]\\\x00-\x1f\x7f]{1,64}")
_DOMAIN = re.compile(r"(?!-)[\w-]{1,63}(?<!-)(\.(?!-)[\w-]{1,63}(?<!-))*")

Kind = TypeVar("Kind", bound=StrEnum)


class EnumValues(Protocol):
    """A generated enum (`bursar.v1.budget_pb2.BudgetPeriod`), as far as it is asked here."""

    def __hash__(self) -> int:
        """Each is one object for ever."""
        ...

    @property
    def DESCRIPTOR(self) -> Any:  # noqa: N802
        """The enum's descriptor."""
        ...


def text(value: str, field: str, *, max_length: int, required: bool = False) -> str:
    """Return a text of at most `max_length` characters; with `required`, of at least one that is not a space.

    NUL and lone surrogates never come this far: decoding refuses them.
    """
    if len(value) > max_length:
        raise invalid(field, f"must have at most {max_length} characters, not {len(value)}")
    if required and not value.strip():
        raise invalid(field, "is needed")
    return value


def optional_text(message: Message, field: str, *, max_length: int, path: str = "") -> str | None:
    """Return the text of an `optional` field, or None where the request does not have it."""
    if not message.HasField(field):
        return None
    return text(getattr(message, field), path + field, max_length=max_length)


def usd(message: Message, field: str, *, path: str = "") -> int | None:
    """Return the nanos (1e-9 US dollar) of an `optional double` in US dollars, or None where the request has none.

    `path` is what stands before the field's name in errors (`budget.`). 0.1 is exactly 100,000,000; NaN, infinities,
    negatives, more than 9 decimals and more than 1e9 US dollars are refused.
    """
    if not message.HasField(field):
        return None
    return nanos_of_usd(getattr(message, field), path + field)


def required_usd(message: Message, field: str, *, path: str = "", positive: bool = False) -> int:
    """Return the nanos of a field that must be there; with `positive`, 0 is refused too."""
    nanos = usd(message, field, path=path)
    if nanos is None:
        raise invalid(path + field, "is needed")
    if positive and nanos == 0:
        raise invalid(path + field, "must be more than 0")
    return nanos


def integer(value: int, field: str, *, minimum: int = 0, maximum: int = MAX_INT64) -> int:
    """Return a whole number within its bounds, both included."""
    if not minimum <= value <= maximum:
        raise invalid(field, f"must be between {minimum} and {maximum}")
    return value


def optional_integer(
    message: Message, field: str, *, minimum: int = 0, maximum: int = MAX_INT64, path: str = ""
) -> int | None:
    """Return the whole number of an `optional` field, or None where the request does not have it."""
    if not message.HasField(field):
        return None
    return integer(getattr(message, field), path + field, minimum=minimum, maximum=maximum)


def optional_bool(message: Message, field: str) -> bool | None:
    """Return the value of an `optional bool`, or None where the request does not have it."""
    return bool(getattr(message, field)) if message.HasField(field) else None


def uuid(value: str, field: str) -> UUID:
    """Return the UUID that a field must hold, in its usual 36 characters."""
    if not value:
        raise invalid(field, "is needed")
    found = parse_uuid(value)
    if found is None:
        raise invalid(field, "must be a UUID")
    return found


def optional_uuid(value: str, field: str) -> UUID | None:
    """Return the UUID in a field, or None where the field is empty."""
    return uuid(value, field) if value else None


def email(value: str, field: str) -> str:
    """Return an e-mail address with its domain in lower case; also names of that form (service accounts)."""
    if not value:
        raise invalid(field, "is needed")
    if len(value) > MAX_EMAIL_LENGTH:
        raise invalid(field, f"must have at most {MAX_EMAIL_LENGTH} characters")
    local, at, domain = value.rpartition("@")
    if not at or not _LOCAL_PART.fullmatch(local) or not _DOMAIN.fullmatch(domain):
        raise invalid(field, "must be an e-mail address such as alice@example.com")
    return f"{local}@{domain.lower()}"


def user_ref(value: str, field: str) -> UUID | str:
    """Return how a request names a user: its id, or else its e-mail (C24)."""
    if not value:
        raise invalid(field, "is needed: a user's id or e-mail")
    found = parse_uuid(value)
    if found is not None:
        return found
    if "@" not in value:
        raise invalid(field, "must be a user's id (a UUID) or e-mail")
    return email(value, field)


def optional_user_ref(value: str, field: str) -> UUID | str | None:
    """Return how a request names a user, or None where the field is empty."""
    return user_ref(value, field) if value else None


def instant(message: Message, field: str, *, path: str = "") -> datetime | None:
    """Return a timestamp as an aware UTC datetime cut to microseconds (S23), or None where the request has none.

    The years 1970 to 9999 are allowed.
    """
    if not message.HasField(field):
        return None
    stamp: Timestamp = getattr(message, field)
    seconds, nanos = stamp.seconds, stamp.nanos
    if not 0 <= seconds <= _LAST_SECOND or not 0 <= nanos < 1_000_000_000:
        raise invalid(path + field, "must be an instant between the years 1970 and 9999")
    return _EPOCH + timedelta(0, seconds, nanos // 1000)


def required_instant(message: Message, field: str, *, path: str = "") -> datetime:
    """Return a timestamp that must be there."""
    found = instant(message, field, path=path)
    if found is None:
        raise invalid(path + field, "is needed: an instant such as 2026-05-01T00:00:00Z")
    return found


@dataclass(frozen=True, slots=True)
class TimeRange:
    """A half-open range of instants; None is a bound that the request leaves open."""

    start: datetime | None
    end: datetime | None


def time_range(message: Message, start: str = "from_time", end: str = "to_time") -> TimeRange:
    """Return a request's range; an end on :59 without a fraction includes that second (C20, F201).

    Raises INVALID_ARGUMENT naming the end where it does not come after the start.
    """
    first = instant(message, start)
    last = instant(message, end)
    # The last second of year 9999 has none after it that a datetime could hold.
    if last is not None and last.second == 59 and getattr(message, end).nanos == 0 and last < _LAST_INSTANT:
        last += timedelta(seconds=1)
    if first is not None and last is not None and last <= first:
        raise invalid(end, "must be later than the start of the range")
    return TimeRange(first, last)


def since_1970(value: datetime) -> tuple[int, int]:
    """Return an aware datetime as whole seconds since 1970 and the microseconds beyond them."""
    since = value - _EPOCH
    return since.days * 86_400 + since.seconds, since.microseconds


def timestamp_of(value: datetime) -> Timestamp:
    """Return an aware datetime as a timestamp."""
    seconds, microseconds = since_1970(value)
    return Timestamp(seconds=seconds, nanos=microseconds * 1000)


def optional_timestamp(value: datetime | None) -> Timestamp | None:
    """Return a datetime as a timestamp, or None, which leaves the field of a response absent."""
    return None if value is None else timestamp_of(value)


def enum_prefix(values: EnumValues) -> str:
    """Return what stands before the names of an enum's values: `BUDGET_PERIOD_` for BudgetPeriod."""
    zero: str = values.DESCRIPTOR.values_by_number[0].name
    return zero.removesuffix("UNSPECIFIED")


def enum_name(value: int, values: EnumValues, field: str) -> str | None:
    """Return the name of an enum value without its prefix, or None for UNSPECIFIED.

    Raises UNKNOWN_ENUM_VALUE for a number that the enum does not have, naming those it has.
    """
    if not value:
        return None
    found = enum_names(values).get(value)
    if found is None:
        raise BursarError(
            Reason.UNKNOWN_ENUM_VALUE,
            f"{field}: no such value {value}; one of {', '.join(enum_names(values).values())}",
            field=field,
        )
    return found


@cache
def enum_names(values: EnumValues) -> Mapping[int, str]:
    """Return the names of an enum's values without prefix, by number, UNSPECIFIED left out."""
    prefix = enum_prefix(values)
    return {
        entry.number: str(entry.name).removeprefix(prefix)
        for entry in values.DESCRIPTOR.values
        if entry.number
    }


def choice(value: int, values: EnumValues, kind: type[Kind], field: str) -> Kind | None:
    """Return the member of our own enum with the same name, or None for UNSPECIFIED."""
    name = enum_name(value, values, field)
    return None if name is None else kind(name)


def enum_number(values: EnumValues, member: str) -> int:
    """Return the number of the enum value that has the name of our own member: how a response says it."""
    return int(values.DESCRIPTOR.values_by_name[enum_prefix(values) + member].number)


def tags(given: Mapping[str, str], field: str = "tags") -> dict[str, str]:
    """Return a request's tags: at most 32, keys of 1 to 64 and values of 0 to 256 characters (F153)."""
    return text_map(
        given,
        field,
        max_entries=MAX_TAGS,
        max_key_length=MAX_TAG_KEY_LENGTH,
        max_value_length=MAX_TAG_VALUE_LENGTH,
    )


def text_map(
    given: Mapping[str, str], field: str, *, max_entries: int, max_key_length: int, max_value_length: int
) -> dict[str, str]:
    """Return a map of texts within its bounds, such as a tenant's metadata."""
    count = len(given)
    if not count:
        return {}
    if count > max_entries:
        raise invalid(field, f"must have at most {max_entries} entries")
    found = dict(given)
    for key, value in found.items():
        if not 1 <= len(key) <= max_key_length:
            raise invalid(field, f"keys must have 1 to {max_key_length} characters")
        if len(value) > max_value_length:
            raise invalid(field, f"values must have at most {max_value_length} characters")
    return found
