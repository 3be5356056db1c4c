"""What a PostgreSQL server must be like before a ledger is kept on it."""

from typing import Any

import psycopg

MINIMUM_MAJOR_VERSION = 15

# A server with one of these off acknowledges commits that a crash takes back (design: storage).
_DURABILITY_SETTINGS = ("fsync", "full_page_writes", "synchronous_commit")

_QUERY = """
SELECT current_setting('server_version_num')::int,
       current_setting('server_version'),
       pg_is_in_recovery(),
       current_setting('fsync', true),
       current_setting('full_page_writes', true),
       current_setting('synchronous_commit', true),
       has_database_privilege(current_database(), 'TEMPORARY')
"""


class DatabaseStartError(Exception):
    """The database cannot be used; the message says why and what to do, and carries no secret."""


class ServerRefusedError(DatabaseStartError):
    """The server answers, but Bursar does not keep money on a server like this."""


def check_server_settings(connection: psycopg.Connection[Any]) -> None:
    """Refuse a server on which an acknowledged charge could be lost, or on which the schema does not work.

    Looks at the settings as `connection` has them, so that a value set for its role or database counts too. Leaves
    no transaction open on a connection that had none.

    Raises:
        ServerRefusedError: fsync, full_page_writes or synchronous_commit is off; PostgreSQL is older than 15; the
            database is not UTF8; the server is a standby, which takes no writes; the role may not make temporary objects.

    """
    was_idle = connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    row = connection.execute(_QUERY).fetchone()
    if was_idle and not connection.autocommit:
        connection.rollback()
    if row is None:  # a SELECT without FROM has one row
        raise ServerRefusedError("the database server did not say what it is")
    version_number, version, is_standby, *durability, may_make_temporary = row
    if version_number < MINIMUM_MAJOR_VERSION * 10_000:
        raise ServerRefusedError(
            f"PostgreSQL {MINIMUM_MAJOR_VERSION} or newer is needed; this server is PostgreSQL {version}"
        )
    if is_standby:
        raise ServerRefusedError("this PostgreSQL server is a standby and takes no writes; name the primary")
    # As the protocol reports it: in another encoding the driver returns bytes for texts.
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise ServerRefusedError(
            f"the database's encoding is {encoding}; create it with ENCODING 'UTF8' TEMPLATE template0"
        )
    if not may_make_temporary:
        raise ServerRefusedError(
            "the role may not make temporary objects in this database, which rows are written with;"
            " GRANT TEMPORARY ON DATABASE … TO it"
        )
    for name, value in zip(_DURABILITY_SETTINGS, durability, strict=True):
        if value == "off":
            raise ServerRefusedError(
                f"{name} is off on this PostgreSQL server, so a crash could lose acknowledged charges;"
                f" set {name} = on (for the server, and for this role and database)"
            )
