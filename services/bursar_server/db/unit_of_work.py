"""One transaction per request, and errors that a caller can act on."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import sqlalchemy.exc
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from bursar_server.kit.errors import BursarError, Reason

_UNAVAILABLE = "the database does not answer in time; try again"
_UNKNOWN_OUTCOME = (
    "the database went away while the change was being stored; look whether it is there before trying again"
)


class UnitOfWork:
    """Opens the transaction of a request.

    Whatever keeps the database from answering (no connection free or to be had, connection lost, a statement or lock
    out of time, a deadlock) is raised as a BursarError with DATABASE_UNAVAILABLE. Errors about what a statement says,
    such as a unique violation, pass through as SQLAlchemy raises them.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        """Give a connection in a READ COMMITTED transaction: committed at the end, rolled back by any exception."""
        with _translated(_UNAVAILABLE):
            async with self._engine.connect() as connection, connection.begin() as transaction:
                yield connection
                if transaction.is_active:
                    with _translated(_UNKNOWN_OUTCOME):
                        await transaction.commit()

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[AsyncConnection]:
        """Give a connection that sees the database as of its first statement, and can change nothing: for reports."""
        with _translated(_UNAVAILABLE):
            async with self._engine.connect() as connection:
                options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
                await connection.execution_options(**options)
                async with connection.begin():
                    yield connection


@contextmanager
def _translated(message: str) -> Iterator[None]:
    try:
        yield
    except sqlalchemy.exc.TimeoutError as error:
        raise BursarError(
            Reason.DATABASE_UNAVAILABLE, "every database connection is busy; try again"
        ) from error
    except (sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError) as error:
        raise BursarError(Reason.DATABASE_UNAVAILABLE, message) from error
