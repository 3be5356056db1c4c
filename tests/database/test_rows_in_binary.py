"""Rows in binary say what they are meant to, and name every column of their tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import errors

from bursar_server.db import binary
from bursar_server.db.engine import connect_lane
from bursar_server.db.lane import Pipeline, Rows
from bursar_server.ledger.rows import COLUMNS, names_of

INT8 = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
TIME = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC))
VALUES: dict[str, tuple[Callable[[Any], bytes], st.SearchStrategy[Any]]] = {
    "uuid": (binary.uuid, st.none() | st.uuids()),
    "text": (binary.text, TEXT),
    "boolean": (binary.boolean, st.booleans()),
    "smallint": (binary.int2, st.integers(-(2**15), 2**15 - 1)),
    "integer": (binary.int4, st.integers(-(2**31), 2**31 - 1)),
    "bigint": (binary.int8, st.none() | INT8),
    "timestamptz": (binary.timestamp, st.none() | TIME),
    "date": (binary.day, st.dates(date(1, 1, 1), date(9999, 12, 31))),
    "jsonb": (
        lambda value: binary.jsonb(json.dumps(value).encode()),
        st.dictionaries(TEXT, INT8 | TEXT, max_size=3),
    ),
    "uuid[]": (binary.uuids, st.lists(st.uuids(), max_size=4)),
    "text[]": (binary.texts, st.lists(TEXT, max_size=4)),
    "bigint[]": (binary.int8s, st.lists(INT8, max_size=4)),
    "boolean[]": (binary.booleans, st.lists(st.booleans(), max_size=4)),
}
EVERYTHING = {
    "every_row": ", ".join(f"c{number} {name}" for number, name in enumerate(VALUES))
    + ", n1 bigint, n2 bigint, n3 bigint, n4 bigint"
}
ROW = st.tuples(*(strategy for _, strategy in VALUES.values()), INT8, INT8, INT8, INT8)
TABLES = {
    "hold_row": "holds",
    "record_row": "usage_records",
    "entry_row": "ledger_entries",
    "quarter_row": "rollup_quarters",
    "day_row": "rollup_days",
}


@pytest.fixture
def lane(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    connection = connect_lane(database_url)
    yield connection
    connection.close()


def encoded(row: tuple[Any, ...]) -> bytes:
    columns = [encode(value) for (encode, _), value in zip(VALUES.values(), row, strict=False)]
    return binary.row_head(len(row)) + b"".join(columns) + binary.four_int8s(*row[-4:])


@pytest.fixture
def pipeline(lane: psycopg.Connection[Any]) -> Pipeline:
    return Pipeline(lane, EVERYTHING)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(ROW, max_size=4))
def test_what_is_written_is_read(pipeline: Pipeline, rows: list[tuple[Any, ...]]) -> None:
    answer = pipeline.send(
        "SELECT * FROM unnest(%s::pg_temp.every_row[])", Rows("every_row", [encoded(row) for row in rows])
    )
    pipeline.run()
    assert answer.rows() == rows


@pytest.mark.parametrize("row_type", TABLES)
def test_a_type_has_every_column_of_its_table(lane: psycopg.Connection[Any], row_type: str) -> None:
    query = (
        "SELECT attname || ' ' || CASE format_type(atttypid, NULL) WHEN 'timestamp with time zone' THEN 'timestamptz'"
        " ELSE format_type(atttypid, NULL) END FROM pg_attribute"
        " WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped"
    )
    columns = {row[0] for row in lane.execute(query, (TABLES[row_type],)).fetchall()}
    assert sorted(columns) == sorted(COLUMNS[row_type].split(", "))
    assert len(names_of(row_type).split(", ")) == len(columns)


def test_a_number_that_has_outgrown_64_bits_is_refused(lane: psycopg.Connection[Any]) -> None:
    """As the number itself would be: the connection goes on."""
    five = ", ".join(f"{name} bigint" for name in "abcde")
    pipeline = Pipeline(lane, {"amounts": "amount bigint, others bigint[]", "five": five})
    for amount, others in ((2**63, []), (0, [2**63])):
        row = binary.row_head(2) + binary.int8(amount) + binary.int8s(others)
        pipeline.send("SELECT * FROM unnest(%s::pg_temp.amounts[])", Rows("amounts", [row]))
        with pytest.raises(errors.DataError):
            pipeline.run()
    row = binary.row_head(5) + binary.four_int8s(1, 2, 3, 2**70) + binary.int8(0)
    pipeline.send("SELECT * FROM unnest(%s::pg_temp.five[])", Rows("five", [row]))
    with pytest.raises(errors.DataError):
        pipeline.run()
    assert lane.execute("SELECT 1").fetchone() == (1,)


def test_types_are_the_connection_s_own(lane: psycopg.Connection[Any], database_url: str) -> None:
    """Two processes of different versions have different ones at the same time; a second pipeline uses the first's."""
    made = Pipeline(lane, {"some_row": "a bigint"})
    assert Pipeline(lane, {"some_row": "a bigint"})._row_types == made._row_types
    other = connect_lane(database_url)
    pipeline = Pipeline(other, {"some_row": "a bigint, b uuid"})
    row = binary.row_head(2) + binary.int8(7) + binary.uuid(UUID(int=1))
    answer = pipeline.send("SELECT * FROM unnest(%s::pg_temp.some_row[])", Rows("some_row", [row]))
    pipeline.run()
    assert answer.rows() == [(7, UUID(int=1))]
    other.close()
