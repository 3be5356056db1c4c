"""What no field of any request may hold, whatever it means: asked of every message on both doors while it is decoded."""

from functools import cache
from math import isfinite
from typing import Any, NamedTuple

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from bursar_server.kit.errors import BursarError, Reason, invalid

# No text of a request is longer; most fields allow much less. It bounds what an error, a log line or an index can meet.
MAX_TEXT_LENGTH = 8192

_NUMBERS = (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_ENUM)


def shown(name: str) -> str:
    """Return what a caller wrote where a name belongs, fit for messages and logs: short, printable ASCII."""
    return name[:100].encode("unicode_escape").decode("ascii")


def check_text(value: str, path: str) -> None:
    """Raise INVALID_FIELD for a text that PostgreSQL or protobuf could not hold, or that is longer than any may be."""
    if len(value) > MAX_TEXT_LENGTH:
        raise invalid(path, f"must have at most {MAX_TEXT_LENGTH} characters, not {len(value)}")
    if "\0" in value:
        raise invalid(path, "must not contain the character U+0000")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise invalid(path, "must not contain half of a surrogate pair") from error


def check_message(message: Message, data: bytes) -> None:
    """Raise INVALID_ARGUMENT naming the field where a message holds what no field may; `data` is what it was read from.

    That is NUL, a text that is too long, a number that is not finite, or an enum number that the enum does not have.
    """
    # Without a zero byte there is no NUL, and no text is longer than the message it is in: most need no closer look.
    _check_texts(message, "", passed_bytes=-1 if 0 in data else MAX_TEXT_LENGTH)
    _check_numbers(message, "")


def _check_texts(message: Message, path: str, *, passed_bytes: int) -> None:
    """Check the texts of a message; one of at most `passed_bytes` bytes is passed over."""
    if message.ByteSize() <= passed_bytes:
        return
    for field, value in message.ListFields():
        here = path + field.name
        if field.type == FieldDescriptor.TYPE_STRING:
            for index, part in enumerate(value) if field.is_repeated else ((None, value),):
                check_text(part, here if index is None else f"{here}[{index}]")
        elif _is_map(field):
            for key, entry in value.items():
                for part in (key, entry):
                    _check_part(part, f"{here}[{shown(str(key))}]", passed_bytes)
        elif field.message_type is not None:
            for index, part in enumerate(value) if field.is_repeated else ((None, value),):
                _check_part(part, here if index is None else f"{here}[{index}]", passed_bytes)


def _check_part(part: object, path: str, passed_bytes: int) -> None:
    if isinstance(part, str):
        check_text(part, path)
    elif isinstance(part, Message):
        _check_texts(part, f"{path}.", passed_bytes=passed_bytes)


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


class _NumberField(NamedTuple):
    """A field that holds doubles or enums, or messages that do; `known` are the numbers of its enum."""

    name: str
    is_repeated: bool
    is_message: bool
    known: frozenset[int] | None


@cache
def _number_fields(descriptor: Any) -> tuple[_NumberField, ...]:
    """Return the fields of a message that hold doubles or enums, or messages that do."""
    found = []
    for field in descriptor.fields:
        nested = field.message_type
        if field.cpp_type in _NUMBERS or (nested is not None and nested.fields and _number_fields(nested)):
            if _is_map(field):
                raise NotImplementedError(f"{field.full_name}: maps of numbers are not checked")
            known = field.enum_type and frozenset(field.enum_type.values_by_number)
            found.append(_NumberField(field.name, field.is_repeated, nested is not None, known))
    return tuple(found)


def _check_numbers(message: Message, path: str) -> None:
    for field in _number_fields(message.DESCRIPTOR):
        name, is_repeated, is_message, known = field
        value = getattr(message, name)
        if not is_message:
            for index, number in enumerate(value) if is_repeated else ((None, value),):
                if not isfinite(number) if known is None else number not in known:
                    here = path + name if index is None else f"{path}{name}[{index}]"
                    raise _wrong_number(number, here, is_enum=known is not None)
        elif is_repeated:
            for index, element in enumerate(value):
                _check_numbers(element, f"{path}{name}[{index}].")
        elif message.HasField(name):
            _check_numbers(value, f"{path}{name}.")


def _wrong_number(number: float, path: str, *, is_enum: bool) -> BursarError:
    if is_enum:
        return BursarError(Reason.UNKNOWN_ENUM_VALUE, f"{path}: no such value {number}", field=path)
    return invalid(path, "must be a finite number")
