"""Brings a database to the schema that this version of Bursar needs."""

import functools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from bursar_server.db.engine import connection_parameters
from bursar_server.db.preconditions import DatabaseStartError, check_server_settings

_MIGRATIONS = Path(__file__).with_name("migrations")

# Any number will do as long as it stays the same: who migrates holds this lock of the database.
_ADVISORY_LOCK = 0x6275_7273_6172
_WAIT_FOR_OTHER_S = 300

_REVISION = re.compile(r"^(down_revision|revision)\b[^=\n]*=\s*(.+)$", re.MULTILINE)
_NAME = re.compile(r"[\"']([^\"']+)[\"']")


def prepare(url: str) -> None:
    """Refuse a server on which a charge could be lost, then bring the database to the schema that is needed.

    Raises:
        DatabaseStartError: as `upgrade` and `check_server_settings`.

    """
    with _connected(url) as connection:
        check_server_settings(connection)
    upgrade(url)


def require_current(url: str) -> None:
    """Refuse a database whose schema is not that of this version, without changing anything.

    Raises:
        DatabaseStartError: it is another one, or the database cannot be reached.

    """
    current, head = current_revision(url), head_revision()
    if current != head:
        _refuse_unknown(current)
        raise DatabaseStartError(
            f"the database's schema is at {current or 'nothing'}, and this version of Bursar needs {head}:"
            " run `bursar migrate` first"
        )


def upgrade(url: str) -> str | None:
    """Apply the migrations that the database lacks, one transaction each; return its revision.

    A database that has them all costs one connection and one query, and does not even load Alembic. Of several
    processes one migrates, and the others wait for it.

    Raises:
        DatabaseStartError: the database was migrated by a newer Bursar, or cannot be reached.

    """
    head = head_revision()
    with _connected(url) as connection:
        current = _read_revision(connection)
        if current == head:
            return current
        _refuse_unknown(current)
        with connection.transaction():
            # A lock of this transaction: it ends with the connection, and works through a pooler.
            connection.execute(f"SET LOCAL lock_timeout = '{_WAIT_FOR_OTHER_S}s'")
            connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_ADVISORY_LOCK,))
            current = _read_revision(connection)
            _refuse_unknown(current)
            if current != head:
                _run_alembic(url)
                current = _read_revision(connection)
    return current


def current_revision(url: str) -> str | None:
    """Return the revision of the database's schema, or None for a database that was never migrated."""
    with _connected(url) as connection:
        return _read_revision(connection)


def head_revision() -> str | None:
    """Return the newest revision that this version of Bursar knows, or None if there is none.

    Read from the text of the migrations, because loading Alembic takes longer than everything else at a start.
    """
    revisions, parents = _known_revisions()
    heads = revisions - parents
    if len(heads) > 1:
        raise DatabaseStartError(f"the migrations have {len(heads)} heads: {', '.join(sorted(heads))}")
    return next(iter(heads), None)


@functools.cache
def _known_revisions() -> tuple[frozenset[str], frozenset[str]]:
    """Return all revisions, and those that another one follows."""
    revisions: set[str] = set()
    parents: set[str] = set()
    for path in (_MIGRATIONS / "versions").glob("*.py"):
        for kind, value in _REVISION.findall(path.read_text(encoding="utf-8")):
            (revisions if kind == "revision" else parents).update(_NAME.findall(value))
    return frozenset(revisions), frozenset(parents)


def _refuse_unknown(current: str | None) -> None:
    if current is not None and current not in _known_revisions()[0]:
        raise DatabaseStartError(
            f"the database is at revision {current}, which this version of Bursar does not know;"
            " a newer one has migrated it: use that, or restore a backup from before"
        )


def _read_revision(connection: psycopg.Connection[Any]) -> str | None:
    try:
        with connection.transaction():  # a savepoint where a transaction is open
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except psycopg.errors.UndefinedTable:
        return None
    return None if row is None else str(row[0])


@contextmanager
def _connected(url: str) -> Iterator[psycopg.Connection[Any]]:
    parameters = connection_parameters(url, application_name="bursar-migrate", settings={})
    try:
        with psycopg.connect(autocommit=True, **parameters) as connection:
            yield connection
    except psycopg.OperationalError as error:
        raise DatabaseStartError(f"cannot reach the database: {error}") from error
    except psycopg.Error as error:
        raise DatabaseStartError(f"the database cannot be migrated: {error}") from error


def _run_alembic(url: str) -> None:
    # Only where there is something to migrate: see head_revision().
    import sqlalchemy
    from alembic import command
    from alembic.config import Config

    parameters = connection_parameters(url, application_name="bursar-migrate", settings={})
    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://",
        connect_args=parameters,
        poolclass=sqlalchemy.NullPool,
        use_native_hstore=False,
    )
    try:
        with engine.connect() as connection:
            config = Config()
            config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except sqlalchemy.exc.DBAPIError as error:
        raise DatabaseStartError(f"a migration failed: {error.orig}") from error
    finally:
        engine.dispose()
