"""What a lane of the hot path knows of its database: a blocking connection, round trips, and which errors mean what."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import psycopg
from psycopg import adapt, errors, generators
from psycopg.abc import PQGen, Transformer
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGconn, PGresult
from psycopg.waiting import Ready, Wait

from bursar_server.db import binary

LaneConnection = psycopg.Connection[Any]
"""A lane's own connection: blocking, in autocommit; its batches go through a `Pipeline`."""

DatabaseError = psycopg.Error
"""Anything that the database or the way to it says."""

ConnectionLostError = psycopg.OperationalError
"""The database went away, or did not answer in time; what was under way may or may not be committed."""

LOCKED_ERROR = errors.LockNotAvailable
"""Somebody else holds the rows for longer than the lane waits."""

REPEATABLE_ERRORS = (errors.UniqueViolation, errors.DeadlockDetected, errors.SerializationFailure)
"""Another transaction came first: the same batch can be repeated at once."""

UNCONFIRMED_ERROR = errors.DivisionByZero
"""Something is not as the batch took it to be: `1 / (what was taken for granted)::int` of one of its statements."""

FOLLOWS_ERROR = errors.InFailedSqlTransaction
"""The batch before it failed, in whose transaction it would have been."""

_FAILED = (ExecStatus.FATAL_ERROR, ExecStatus.BAD_RESPONSE, ExecStatus.PIPELINE_ABORTED)


class Rows(NamedTuple):
    """Rows of one of the types that the connection was given, in binary: a parameter."""

    row_type: str
    rows: Sequence[bytes]


class Send(Protocol):
    """Queues a statement with its parameters: texts, arrays in binary, or rows. Its answer can be read after the round trip."""

    def __call__(self, statement: str, *parameters: str | bytes | Rows | None) -> "Answer":
        """Queue it."""


class Answer:
    """What the server says to one statement."""

    def __init__(self, transformer: Transformer) -> None:
        self._transformer = transformer
        self.result: PGresult | None = None

    def rows(self) -> list[tuple[Any, ...]]:
        """Return the rows; there are none before the round trip."""
        if self.result is None or not self.result.ntuples:
            return []
        self._transformer.set_pgresult(self.result)
        return self._transformer.load_rows(0, self.result.ntuples, tuple)


class Pipeline:
    """Statements that are sent together and answered together: one round trip, whatever their number.

    A statement (parameters as `%s`) is prepared when its connection sees it first. Parameters are sent as text, which the
    statement casts where the server cannot know better, bytes as the binary format of what it casts them to. `row_types` are
    the types of rows by name, made for this connection alone, each with its columns as a declaration has them. psycopg's own
    pipeline costs ten times as much for each statement, which is most of what a batch of one takes.
    """

    def __init__(self, connection: LaneConnection, row_types: Mapping[str, str] | None = None) -> None:
        self.connection = connection
        self._row_types = _made_types(connection, row_types) if row_types else {}
        self._transformer: Transformer = adapt.Transformer(connection)
        self._names: dict[str, bytes] = {}
        self._commands: list[Callable[[], None]] = []
        # What the commands are answered into: by statement, where it is being prepared, or by its answer.
        self._waiting: list[Answer | tuple[str, bytes]] = []
        self._launched: deque[list[Answer | tuple[str, bytes]]] = deque()
        # What is taken in of the answers to what was launched first, and all of them.
        self._exchange: PQGen[list[list[PGresult]]] | None = None
        self._results: list[list[PGresult]] | None = None

    def send(self, statement: str, *parameters: str | bytes | Rows | None) -> Answer:
        """Queue a statement."""
        pgconn = self.connection.pgconn
        name = self._names.get(statement)
        if name is None:
            name = f"lane_{len(self._names)}".encode()
            # Known from now on; forgotten again where the round trip fails before the server has seen it.
            self._names[statement] = name
            self._commands.append(partial(pgconn.send_prepare, name, _numbered(statement)))
            self._waiting.append((statement, name))
        values: list[bytes | None] = []
        formats: list[int] = []
        for value in parameters:
            if value is None or isinstance(value, str):
                values.append(None if value is None else value.encode())
                formats.append(0)
            else:
                made = (
                    value
                    if isinstance(value, bytes)
                    else binary.rows(self._row_types[value.row_type], value.rows)
                )
                values.append(made)
                formats.append(1)
        self._commands.append(partial(pgconn.send_query_prepared, name, values, formats))
        answer = Answer(self._transformer)
        self._waiting.append(answer)
        return answer

    def run(self) -> None:
        """Send what is queued, and wait for all of the answers. Raises the first error that the server reports."""
        self.launch()
        self.land()

    def launch(self) -> None:
        """Send what is queued, to be answered together; others may be launched before it has landed."""
        pgconn = self.connection.pgconn
        if not self._launched:
            pgconn.enter_pipeline_mode()
        self._launched.append(self._waiting)
        commands, self._commands, self._waiting = self._commands, [], []
        # libpq keeps them until the sync sends them all at once: not a system call and a wait for each.
        for command in commands:
            command()
        pgconn.pipeline_sync()

    def flushed(self) -> bool:
        """Whether all that was launched has gone out; sends what the connection takes, and does not wait."""
        return not self.connection.pgconn.flush()

    def arrived(self) -> bool:
        """Take in what the server has sent, without waiting; whether all answers to what was launched first are here.

        Where they are not, the connection's file is readable when there is more. Raises DatabaseError where the
        connection is lost.
        """
        if self._results is not None:
            return True
        if not self._launched:
            self.connection.pgconn.consume_input()
            return False
        try:
            if self._exchange is None:
                self._exchange = _exchanged(self.connection.pgconn, len(self._launched[0]) + 1)
                next(self._exchange)
            self._exchange.send(Ready.R)
        except StopIteration as ended:
            self._exchange, self._results = None, ended.value
            return True
        except psycopg.Error:
            self._exchange = None
            raise
        return False

    @property
    def failed(self) -> bool:
        """Whether the server refused something of what has arrived."""
        return any(not found or found[0].status in _FAILED for found in self._results or ())

    def land(self) -> None:
        """Wait for the answers of what was launched first. Raises the first error that the server reports."""
        pgconn = self.connection.pgconn
        try:
            while not self.arrived():
                self.connection.wait(_once(Wait.RW if pgconn.flush() else Wait.R))
            results, self._results = self._results or [], None
            waiting = self._launched.popleft()
        finally:
            if not self._launched and pgconn.status == psycopg.pq.ConnStatus.OK:
                pgconn.exit_pipeline_mode()
        failure: PGresult | None = None
        for entry, (result, *_) in zip(waiting, results[:-1], strict=True):
            failed = result.status in _FAILED
            if failed and (failure is None or failure.status == ExecStatus.PIPELINE_ABORTED):
                failure = result
            if isinstance(entry, Answer):
                entry.result = result
            elif failed:
                self._names.pop(entry[0], None)
        if failure is not None:
            raise errors.error_from_result(failure, encoding="utf-8")


def _once(wanted: Wait) -> PQGen[None]:
    """Wait until the connection's file is ready."""
    yield wanted


def _exchanged(pgconn: PGconn, expected: int) -> PQGen[list[list[PGresult]]]:
    """Send what is queued, and return so many results."""
    while pgconn.flush():  # the server may have to get rid of answers before it reads on
        if (yield Wait.RW) & Ready.R:
            pgconn.consume_input()
    results: list[list[PGresult]] = []
    while len(results) < expected:
        results.append((yield from generators.fetch_many(pgconn)))
    return results


def _made_types(connection: LaneConnection, row_types: Mapping[str, str]) -> dict[str, int]:
    """Make types that end with the connection; return their numbers."""
    query = "SELECT typname, oid FROM pg_catalog.pg_type WHERE typnamespace = pg_catalog.pg_my_temp_schema()"
    made = dict(connection.execute(query).fetchall())
    missing = [
        f"CREATE TYPE pg_temp.{name} AS ({columns})"
        for name, columns in row_types.items()
        if name not in made
    ]
    if missing:
        connection.execute(";".join(missing).encode())
        made = dict(connection.execute(query).fetchall())
    return {name: made[name] for name in row_types}


def _numbered(statement: str) -> bytes:
    """Return a statement with its parameters as the server numbers them."""
    first, *others = statement.split("%s")
    return "".join([first, *(f"${number}{part}" for number, part in enumerate(others, 1))]).encode()
