"""What is to be known of a database before one trusts it: for `bursar doctor`, which changes nothing."""

from dataclasses import dataclass
from datetime import datetime

import psycopg

from bursar_server.db.engine import connection_parameters
from bursar_server.db.migrate import head_revision
from bursar_server.db.preconditions import DatabaseStartError, ServerRefusedError, check_server_settings


@dataclass(frozen=True, slots=True)
class DatabaseState:
    """A database as it was found. `revision` None: never migrated; `prices` None: there is no such table yet."""

    version: str
    refusal: str
    revision: str | None
    needed_revision: str | None
    now: datetime
    prices: int | None


def examine(url: str) -> DatabaseState:
    """Look at a database without changing it. Raises DatabaseStartError where it cannot be reached."""
    try:
        parameters = connection_parameters(url, application_name="bursar-doctor", settings={})
        with psycopg.connect(**parameters, autocommit=True) as connection:
            return _state(connection)
    except psycopg.OperationalError as error:
        raise DatabaseStartError(f"the database cannot be reached: {str(error).strip()}") from error


def _state(connection: psycopg.Connection[tuple[object, ...]]) -> DatabaseState:
    refusal = ""
    try:
        check_server_settings(connection)
    except ServerRefusedError as error:
        refusal = str(error)
    row = connection.execute(
        "SELECT current_setting('server_version'), clock_timestamp(),"
        " to_regclass('alembic_version') IS NOT NULL, to_regclass('prices') IS NOT NULL"
    ).fetchone()
    if row is None:  # a SELECT without FROM has one row
        raise DatabaseStartError("the database server did not say what it is")
    version, now, is_migrated, has_prices = row
    revision = prices = None
    if is_migrated:
        found = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        revision = str(found[0]) if found else None
    if has_prices:
        counted = connection.execute("SELECT count(*) FROM prices").fetchone()
        prices = int(str(counted[0])) if counted else 0
    if not isinstance(now, datetime):
        raise DatabaseStartError("the database server did not say what time it is")
    return DatabaseState(str(version), refusal, revision, head_revision(), now, prices)
