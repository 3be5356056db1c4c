"""JSON to messages, refusing what proto3 JSON parsers let pass: a mistyped field or enum name must never become a default.

Every error is INVALID_ARGUMENT and names the field by its path of proto names, such as `budget.scope.user_id`.
"""

import base64
import difflib
import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from bursar_server.kit.errors import BursarError, Reason, invalid
from bursar_server.rpc.checks import check_text, shown

M = TypeVar("M", bound=Message)

_INTEGER_TEXT = re.compile(r"-?(0|[1-9][0-9]*)")
_NUMBER_TEXT = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_NOT_FINITE = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}
_INSTANT = re.compile(
    r"(\d{4}-\d{2}-\d{2})[Tt](\d{2}:\d{2}:\d{2})(?:\.(\d{1,9}))?([Zz]|[+-]\d{2}:\d{2})", re.ASCII
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_BOUNDS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}

# What people also call a value (C01), by the enum's full name.
SYNONYMS: Mapping[str, Mapping[str, str]] = {
    "bursar.v1.BudgetPeriod": {
        "DAY": "DAILY",
        "WEEK": "WEEKLY",
        "MONTH": "MONTHLY",
        "QUARTER": "QUARTERLY",
        "YEAR": "YEARLY",
    },
}


class _Repeated(dict[str, Any]):
    """A JSON object in which a key came twice."""

    key: str = ""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    repeated = _Repeated(found)
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            repeated.key = key
        seen.add(key)
    return repeated


def malformed(problem: str) -> BursarError:
    """Return the error for a body that cannot be read at all."""
    return BursarError(Reason.MALFORMED_REQUEST, problem)


def parse_json(data: bytes | bytearray, message_class: type[M]) -> M:
    """Return the message that a JSON text says.

    Raises MALFORMED_REQUEST for a text that is no JSON object in UTF-8; UNKNOWN_FIELD, UNKNOWN_ENUM_VALUE or
    INVALID_FIELD naming the field for whatever the message does not have.
    """
    if not data:
        raise malformed("the body is empty: send a JSON object, at least {}")
    try:
        parsed = json.loads(bytes(data).decode("utf-8"), object_pairs_hook=_object)
    except RecursionError as error:
        raise malformed("the body is nested too deeply") from error
    except ValueError as error:
        where = (
            f" at line {error.lineno}, column {error.colno}"
            if isinstance(error, json.JSONDecodeError)
            else ""
        )
        raise malformed(f"the body is not valid JSON{where}") from error
    if not isinstance(parsed, dict):
        raise malformed("the body must be a JSON object")
    message = message_class()
    _fill(message, parsed, "")
    return message


@cache
def _fields_of(descriptor: Any) -> dict[str, FieldDescriptor]:
    """Return a message's fields by each name that JSON may call them."""
    table = {field.json_name: field for field in descriptor.fields}
    table.update({field.name: field for field in descriptor.fields})
    return table


def _fill(message: Message, given: dict[str, Any], path: str) -> None:
    if isinstance(given, _Repeated):
        raise invalid(path + shown(given.key), "is given twice")
    table = _fields_of(message.DESCRIPTOR)
    seen: dict[str, str] = {}
    for key, value in given.items():
        field = table.get(key)
        if field is None:
            raise _unknown_field(message.DESCRIPTOR, key, path)
        here = path + field.name
        if field.name in seen:
            raise invalid(here, f"is given twice, as {seen[field.name]} and as {key}")
        seen[field.name] = key
        if value is None:
            continue
        group = field.containing_oneof
        if group is not None and message.WhichOneof(group.name) is not None:
            raise invalid(
                here, f"only one of {', '.join(member.name for member in group.fields)} may be given"
            )
        _set(message, field, value, here)


def _unknown_field(descriptor: Any, key: str, path: str) -> BursarError:
    close = difflib.get_close_matches(key, [field.name for field in descriptor.fields], n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    name = path + shown(key)
    return BursarError(Reason.UNKNOWN_FIELD, f"{name}: no such field{hint}", field=name)


def _set(message: Message, field: FieldDescriptor, value: object, path: str) -> None:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        _fill_map(getattr(message, field.name), kind, value, path)
    elif field.is_repeated:
        _fill_list(getattr(message, field.name), field, value, path)
    elif kind is not None:
        target = getattr(message, field.name)
        target.SetInParent()
        _fill_message(target, value, path)
    else:
        setattr(message, field.name, _scalar(field, value, path))


def _fill_list(target: Any, field: FieldDescriptor, value: object, path: str) -> None:
    if not isinstance(value, list):
        raise invalid(path, "must be a list")
    for index, element in enumerate(value):
        here = f"{path}[{index}]"
        if element is None:
            raise invalid(here, "must not be null")
        if field.message_type is not None:
            _fill_message(target.add(), element, here)
        else:
            target.append(_scalar(field, element, here))


def _fill_map(target: Any, entry: Any, value: object, path: str) -> None:
    if not isinstance(value, dict):
        raise invalid(path, "must be an object")
    if isinstance(value, _Repeated):
        raise invalid(f"{path}[{shown(value.key)}]", "is given twice")
    values = entry.fields_by_name["value"]
    if entry.fields_by_name["key"].cpp_type != FieldDescriptor.CPPTYPE_STRING:
        raise NotImplementedError(f"{entry.full_name}: only maps with text keys are read")
    for key, element in value.items():
        here = f"{path}[{shown(key)}]"
        check_text(key, here)
        if element is None:
            raise invalid(here, "must not be null")
        if values.message_type is not None:
            _fill_message(target[key], element, here)
        else:
            target[key] = _scalar(values, element, here)


def _fill_message(target: Message, value: object, path: str) -> None:
    if isinstance(target, Timestamp):
        _fill_timestamp(target, value, path)
    elif isinstance(value, dict):
        _fill(target, value, f"{path}.")
    else:
        raise invalid(path, "must be an object")


def _fill_timestamp(target: Timestamp, value: object, path: str) -> None:
    """Read a full RFC 3339 instant; a bare date is refused (F188)."""
    found = _INSTANT.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise invalid(path, "must be a full RFC 3339 instant such as 2026-05-01T00:00:00Z")
    day, time, fraction, zone = found.groups()
    try:
        whole = datetime.fromisoformat(f"{day}T{time}{'+00:00' if zone in 'Zz' else zone}")
    except ValueError as error:
        raise invalid(path, "is not a date and time that exists") from error
    # A difference, not astimezone(): the first hours of year 1 have no UTC datetime in every zone.
    since = whole - _EPOCH
    target.seconds = since.days * 86_400 + since.seconds
    target.nanos = int((fraction or "0").ljust(9, "0"))


def _scalar(field: FieldDescriptor, value: object, path: str) -> Any:
    return _READERS[field.cpp_type](field, value, path)


def _read_text(field: FieldDescriptor, value: object, path: str) -> str | bytes:
    if not isinstance(value, str):
        raise invalid(path, "must be a string")
    if field.type == FieldDescriptor.TYPE_BYTES:
        return _read_bytes(value, path)
    check_text(value, path)
    return value


def _read_bytes(value: str, path: str) -> bytes:
    """Read base64 of either alphabet, with or without padding."""
    standard = value.translate({ord("-"): "+", ord("_"): "/"})
    try:
        return base64.b64decode(standard + "=" * (-len(standard) % 4), validate=True)
    except ValueError as error:
        raise invalid(path, "must be base64") from error


def _read_bool(_field: FieldDescriptor, value: object, path: str) -> bool:
    if not isinstance(value, bool):
        raise invalid(path, "must be true or false")
    return value


def _read_integer(field: FieldDescriptor, value: object, path: str) -> int:
    if isinstance(value, str):
        # The longest 64-bit number has 20 characters.
        whole = len(value) <= 20 and _INTEGER_TEXT.fullmatch(value) is not None
    else:
        whole = isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1
    if not whole:
        raise invalid(path, "must be a whole number")
    number: int = int(value)  # type: ignore[call-overload]
    lowest, highest = _BOUNDS[field.cpp_type]
    if not lowest <= number <= highest:
        raise invalid(path, f"must be between {lowest} and {highest}")
    return number


def _read_double(_field: FieldDescriptor, value: object, path: str) -> float:
    number: float | None = None
    if isinstance(value, str):
        number = _NOT_FINITE.get(value)
        if number is None and len(value) <= 400 and _NUMBER_TEXT.fullmatch(value):
            number = float(value)
    elif isinstance(value, float | int) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = float("inf")
    if number is None:
        raise invalid(path, "must be a number")
    if number != number or number in (float("inf"), float("-inf")):
        raise invalid(path, "must be a finite number")
    return number


def _read_enum(field: FieldDescriptor, value: object, path: str) -> int:
    enum: Any = field.enum_type
    if isinstance(value, int) and not isinstance(value, bool):
        if value in enum.values_by_number:
            return value
    elif isinstance(value, str):
        found = _names_of(enum).get(value.upper())
        if found is not None:
            return found
    else:
        raise invalid(path, "must be the name of a value")
    prefix = _prefix(enum)
    known = ", ".join(entry.name.removeprefix(prefix) for entry in enum.values if entry.number)
    raise BursarError(
        Reason.UNKNOWN_ENUM_VALUE, f"{path}: no such value {shown(str(value))}; one of {known}", field=path
    )


@cache
def _names_of(enum: Any) -> dict[str, int]:
    """Return an enum's numbers by each name that JSON may call them, in upper case: full, without prefix, synonyms."""
    prefix = _prefix(enum)
    names: dict[str, int] = {entry.name.removeprefix(prefix): entry.number for entry in enum.values}
    for synonym, name in SYNONYMS.get(enum.full_name, {}).items():
        names[synonym] = names[name]
    return names | {entry.name: entry.number for entry in enum.values}


def _prefix(enum: Any) -> str:
    return str(enum.values_by_number[0].name).removesuffix("UNSPECIFIED")


_READERS: Mapping[int, Callable[[FieldDescriptor, object, str], Any]] = {
    FieldDescriptor.CPPTYPE_STRING: _read_text,
    FieldDescriptor.CPPTYPE_BOOL: _read_bool,
    FieldDescriptor.CPPTYPE_INT32: _read_integer,
    FieldDescriptor.CPPTYPE_INT64: _read_integer,
    FieldDescriptor.CPPTYPE_UINT32: _read_integer,
    FieldDescriptor.CPPTYPE_UINT64: _read_integer,
    FieldDescriptor.CPPTYPE_DOUBLE: _read_double,
    FieldDescriptor.CPPTYPE_FLOAT: _read_double,
    FieldDescriptor.CPPTYPE_ENUM: _read_enum,
}
