"""Values in PostgreSQL's binary format, each as a column of a row is sent: its type, its length, its bytes.

The server reads such rows in half the time that it takes for JSON (docs/adr/0013-rows-in-binary.md).
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime
from struct import Struct, error
from typing import Any, Final
from uuid import UUID

# Types by the names that they have in a declaration; their numbers are PostgreSQL's for ever (pg_type.dat).
TYPES = {
    "boolean": 16, "bigint": 20, "smallint": 21, "integer": 23, "text": 25, "date": 1082, "timestamptz": 1184, "uuid": 2950,
    "jsonb": 3802, "boolean[]": 1000, "text[]": 1009, "bigint[]": 1016, "uuid[]": 2951,
}  # fmt: skip
_HEAD: Final = Struct(">Ii").pack
_COUNT: Final = Struct(">i").pack
_INT2: Final = Struct(">Iih").pack
_INT4: Final = Struct(">Iii").pack
_INT8: Final = Struct(">Iiq").pack
_ROWS: Final = Struct(">iiIii").pack
_EMPTY: Final = Struct(">iiI").pack
_ARRAY: Final = Struct(">IiiiIii").pack
_ARRAY_HEAD_BYTES: Final = 20
_INT8_ITEM: Final = Struct(">iq").pack
_FOUR_INT8S: Final = Struct(">" + 4 * "Iiq").pack
_UUID: Final = _HEAD(TYPES["uuid"], 16)
_UUID_ITEM: Final = _COUNT(16)
_NO_UUID: Final = _HEAD(TYPES["uuid"], -1)
_NO_INT8: Final = _HEAD(TYPES["bigint"], -1)
_NO_TIME: Final = _HEAD(TYPES["timestamptz"], -1)
_TRUE: Final = _HEAD(TYPES["boolean"], 1) + b"\x01"
_FALSE: Final = _HEAD(TYPES["boolean"], 1) + b"\x00"
_TRUE_ITEM: Final = _COUNT(1) + b"\x01"
_FALSE_ITEM: Final = _COUNT(1) + b"\x00"
_NO_UUIDS: Final = _HEAD(TYPES["uuid[]"], 12) + _EMPTY(0, 0, TYPES["uuid"])
_NO_TEXTS: Final = _HEAD(TYPES["text[]"], 12) + _EMPTY(0, 0, TYPES["text"])
_NO_INT8S: Final = _HEAD(TYPES["bigint[]"], 12) + _EMPTY(0, 0, TYPES["bigint"])
_NO_BOOLEANS: Final = _HEAD(TYPES["boolean[]"], 12) + _EMPTY(0, 0, TYPES["boolean"])
_JSONB_VERSION: Final = b"\x01"
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_EPOCH_DAY: Final = date(2000, 1, 1).toordinal()
# A byte too many: the server refuses it as it would the number, with the batch's other statements in place.
_NO_SUCH_INT8: Final = _HEAD(TYPES["bigint"], 9) + bytes(9)
_NO_SUCH_INT8S: Final = _HEAD(TYPES["bigint[]"], 13) + _EMPTY(0, 0, TYPES["bigint"]) + bytes(1)


def row_head(columns: int) -> bytes:
    """Return what a row of so many columns begins with."""
    return _COUNT(columns)


def rows(type_number: int, made: Sequence[bytes]) -> bytes:
    """Return an array of rows of a type."""
    parts = [_ROWS(1, 0, type_number, len(made), 1) if made else _EMPTY(0, 0, type_number)]
    for one in made:
        parts.append(_COUNT(len(one)))
        parts.append(one)
    return b"".join(parts)


def uuid(value: UUID | None) -> bytes:
    """Return a `uuid`."""
    return _NO_UUID if value is None else _UUID + value.int.to_bytes(16, "big")


def text(value: str) -> bytes:
    """Return a `text`."""
    data = value.encode()
    return _HEAD(25, len(data)) + data


def jsonb(value: bytes) -> bytes:
    """Return a `jsonb`, given as JSON."""
    return _HEAD(3802, len(value) + 1) + _JSONB_VERSION + value


def boolean(value: bool) -> bytes:
    """Return a `boolean`."""
    return _TRUE if value else _FALSE


def int2(value: int) -> bytes:
    """Return a `smallint`."""
    return _INT2(21, 2, value)


def int4(value: int) -> bytes:
    """Return an `integer`."""
    return _INT4(23, 4, value)


def int8(value: int | None) -> bytes:
    """Return a `bigint`; of a sum that has outgrown 64 bits, what the server takes for an error."""
    if value is None:
        return _NO_INT8
    try:
        return _INT8(20, 8, value)
    except error:
        return _NO_SUCH_INT8


def four_int8s(first: int, second: int, third: int, fourth: int) -> bytes:
    """Return four `bigint` columns at once, as `int8` does."""
    try:
        return _FOUR_INT8S(20, 8, first, 20, 8, second, 20, 8, third, 20, 8, fourth)
    except error:
        return _NO_SUCH_INT8


def timestamp(value: datetime | None) -> bytes:
    """Return a `timestamptz`: microseconds since 2000."""
    if value is None:
        return _NO_TIME
    since = value - _EPOCH
    return _INT8(1184, 8, (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds)


def day(value: date) -> bytes:
    """Return a `date`: days since 2000."""
    return _INT4(1082, 4, value.toordinal() - _EPOCH_DAY)


def _array(of: int, item: int, items: list[bytes]) -> bytes:
    body = b"".join(items)
    return _ARRAY(of, _ARRAY_HEAD_BYTES + len(body), 1, 0, item, len(items), 1) + body


def uuids(values: Sequence[UUID]) -> bytes:
    """Return a `uuid[]`."""
    if not values:
        return _NO_UUIDS
    items = []
    for value in values:
        items.append(_UUID_ITEM)
        items.append(value.int.to_bytes(16, "big"))
    body = b"".join(items)
    return _ARRAY(2951, _ARRAY_HEAD_BYTES + len(body), 1, 0, 2950, len(values), 1) + body


def texts(values: Sequence[str]) -> bytes:
    """Return a `text[]`."""
    if not values:
        return _NO_TEXTS
    items = []
    for value in values:
        data = value.encode()
        items.append(_COUNT(len(data)) + data)
    return _array(1009, 25, items)


def int8s(values: Sequence[int]) -> bytes:
    """Return a `bigint[]`, as `int8` does."""
    if not values:
        return _NO_INT8S
    try:
        return _array(1016, 20, [_INT8_ITEM(8, value) for value in values])
    except error:
        return _NO_SUCH_INT8S


def booleans(values: Sequence[bool]) -> bytes:
    """Return a `boolean[]`."""
    if not values:
        return _NO_BOOLEANS
    return _array(1000, 16, [_TRUE_ITEM if value else _FALSE_ITEM for value in values])


def array_of(ids: Iterable[UUID]) -> bytes:
    """Return ids as a parameter of their own, a `uuid[]`."""
    items = []
    for id_ in ids:
        items.append(_UUID_ITEM)
        items.append(id_.int.to_bytes(16, "big"))
    if not items:
        return _EMPTY(0, 0, 2950)
    return _ROWS(1, 0, 2950, len(items) // 2, 1) + b"".join(items)


def columns_of(keys: Sequence[tuple[Any, ...]], columns: int) -> list[bytes]:
    """Return the first columns of keys, ids all of them, each as an array of its own."""
    return [array_of([key[column] for key in keys]) for column in range(columns)]
