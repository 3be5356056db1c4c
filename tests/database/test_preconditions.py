"""Bursar keeps no money on a server that can forget it."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from bursar_server.db.embedded import EmbeddedPostgres
from bursar_server.db.preconditions import ServerRefusedError, check_server_settings
from support.database import DatabaseServer

Connection = psycopg.Connection[tuple[object, ...]]


@pytest.fixture
def connection(empty_database_url: str) -> Iterator[Connection]:
    with psycopg.connect(empty_database_url) as connection:
        yield connection


@pytest.fixture(scope="module")
def superuser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    """A server whose settings these tests may spoil."""
    directory: Path = tmp_path_factory.mktemp("spoilt")
    with (
        EmbeddedPostgres(directory) as server,
        psycopg.connect(server.superuser_url, autocommit=True) as connection,
    ):
        yield connection


def answer_instead(connection: Connection, function: str, arguments: str, answer: str) -> None:
    """Let a function of the server's catalogue give another answer, to this session."""
    connection.execute("CREATE SCHEMA IF NOT EXISTS other")
    connection.execute(f"CREATE FUNCTION other.{function}({arguments}) {answer}")
    connection.execute("SET search_path = other, pg_catalog")


def test_a_good_server_is_accepted_and_no_transaction_left_open(connection: Connection) -> None:
    check_server_settings(connection)
    assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


@pytest.mark.parametrize("name", ["fsync", "full_page_writes"])
def test_a_server_that_forgets_is_refused(superuser: Connection, name: str) -> None:
    superuser.execute(sql.SQL("ALTER SYSTEM SET {} = off").format(sql.Identifier(name)))
    superuser.execute("SELECT pg_reload_conf()")
    with psycopg.connect(superuser.info.dsn, password=superuser.info.password) as fresh:
        while (fresh.execute("SELECT current_setting(%s)", (name,)).fetchone() or [""])[0] != "off":
            fresh.rollback()
        with pytest.raises(ServerRefusedError, match=rf"\b{name} is off\b"):
            check_server_settings(fresh)
    superuser.execute(sql.SQL("ALTER SYSTEM RESET {}").format(sql.Identifier(name)))
    superuser.execute("SELECT pg_reload_conf()")


def test_asynchronous_commits_of_the_role_or_database_are_refused(empty_database_url: str) -> None:
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        name = sql.Identifier(connection.info.dbname)
        connection.execute(sql.SQL("ALTER DATABASE {} SET synchronous_commit = off").format(name))
    with (
        psycopg.connect(empty_database_url) as connection,
        pytest.raises(ServerRefusedError, match="synchronous_commit is off"),
    ):
        check_server_settings(connection)


@pytest.mark.parametrize("value", ["local", "remote_write", "remote_apply", "on"])
def test_every_commit_that_waits_for_the_disk_is_accepted(connection: Connection, value: str) -> None:
    connection.execute("SELECT set_config('synchronous_commit', %s, false)", (value,))
    check_server_settings(connection)


def test_an_old_server_is_refused(connection: Connection) -> None:
    answer_instead(
        connection,
        "current_setting",
        "text",
        "RETURNS text LANGUAGE sql AS $$ SELECT CASE $1 WHEN 'server_version_num' THEN '140011'"
        " WHEN 'server_version' THEN '14.11' ELSE pg_catalog.current_setting($1, false) END $$",
    )
    with pytest.raises(ServerRefusedError, match=r"15 or newer .* PostgreSQL 14\.11"):
        check_server_settings(connection)


def test_a_standby_is_refused(connection: Connection) -> None:
    answer_instead(connection, "pg_is_in_recovery", "", "RETURNS boolean LANGUAGE sql AS 'SELECT true'")
    with pytest.raises(ServerRefusedError, match="standby"):
        check_server_settings(connection)


def test_a_database_of_another_encoding_is_refused(database_server: DatabaseServer) -> None:
    name = database_server.create(encoding="SQL_ASCII")
    try:
        with (
            psycopg.connect(database_server.url(name)) as connection,
            pytest.raises(ServerRefusedError, match="encoding is SQL_ASCII"),
        ):
            check_server_settings(connection)
    finally:
        database_server.drop(name)


def test_a_role_that_may_make_nothing_temporary_is_refused(connection: Connection) -> None:
    answer = "RETURNS boolean LANGUAGE sql AS 'SELECT false'"
    answer_instead(connection, "has_database_privilege", "name, text", answer)
    with pytest.raises(ServerRefusedError, match="GRANT TEMPORARY"):
        check_server_settings(connection)
