"""The database of those who name none: it starts, keeps what it was told, lets nobody in, and stops."""

import os
import signal
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from bursar_server.db.embedded import DirectoryInUseError, EmbeddedPostgres
from bursar_server.db.embedded.processes import process
from bursar_server.db.preconditions import DatabaseStartError, check_server_settings
from support.database import memory_folder
from support.embedded import copied, execute, is_running, wait_until

pytestmark = pytest.mark.usefixtures("_no_stray_settings")


@pytest.fixture
def _no_stray_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a person's shell says about other databases must not matter."""
    monkeypatch.setenv("PGDATA", "/nowhere")
    monkeypatch.setenv("PGPORT", "1")
    monkeypatch.setenv("TZ", "Asia/Kathmandu")


@pytest.fixture(scope="module")
def running() -> Iterator[EmbeddedPostgres]:
    with memory_folder() as folder, EmbeddedPostgres(folder / "postgresql") as server:
        yield server


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder that only this account can walk, in memory where there is enough of it."""
    with memory_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def made() -> Iterator[Path]:
    with memory_folder() as folder:
        yield made_in(folder / "made")


def made_in(directory: Path) -> Path:
    EmbeddedPostgres(directory).__enter__().stop()
    return directory


@pytest.fixture
def database(made: Path, tmp_path: Path) -> Path:
    """The folder of a server that was started once, and stopped."""
    return copied(made, tmp_path / "database")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_server_is_one_that_bursar_accepts(running: EmbeddedPostgres) -> None:
    """Durable, PostgreSQL 15 or newer, UTF8."""
    with psycopg.connect(running.url) as connection:
        check_server_settings(connection)
    assert execute(running.url, "SHOW TimeZone") == ["UTC"]
    assert execute(running.url, "SHOW data_checksums") == ["on"]


def test_texts_sort_the_same_on_every_machine(running: EmbeddedPostgres) -> None:
    assert execute(running.url, "SELECT x FROM (VALUES ('b'), ('Ä'), ('a'), ('B')) v(x) ORDER BY x") == [
        *("B", "a", "b", "Ä")
    ]
    assert execute(running.url, "SELECT lower('ÄÉ')") == ["äé"]


def test_bursar_works_as_a_role_that_owns_its_database_and_nothing_else(running: EmbeddedPostgres) -> None:
    assert execute(running.url, "SELECT current_user || '@' || current_database()") == ["bursar@bursar"]
    assert execute(running.url, "SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = user") == [
        False
    ]
    execute(running.url, "CREATE TABLE anything (x int)", "DROP TABLE anything")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        execute(running.url, "COPY (SELECT 1) TO PROGRAM 'true'")


@pytest.mark.parametrize("role", ["bursar", "postgres"])
def test_nobody_gets_in_without_the_password(running: EmbeddedPostgres, role: str) -> None:
    for secret in ("", ":wrong"):
        url = running.url.replace(running.url.split("@")[0], f"postgresql://{role}{secret}")
        with pytest.raises(psycopg.OperationalError, match="password"):
            execute(url, "SELECT 1")


def test_the_server_listens_nowhere_on_a_network(running: EmbeddedPostgres) -> None:
    assert execute(running.superuser_url, "SHOW listen_addresses") == [""]


def test_only_the_owner_may_look_into_the_files(running: EmbeddedPostgres) -> None:
    directory = Path(execute(running.superuser_url, 'SHOW "bursar.directory"')[0]).parent
    assert mode(directory) == 0o700
    assert mode(directory / "data") == 0o700
    assert mode(directory / "data" / ".s.PGSQL.5432") & 0o077 == 0
    for name in ("bursar.password", "postgres.password", "postgres.log", "lock"):
        assert mode(directory / name) == 0o600


def test_nobody_reads_the_password_in_a_list_of_processes_or_in_the_log(running: EmbeddedPostgres) -> None:
    directory = Path(execute(running.superuser_url, 'SHOW "bursar.directory"')[0]).parent
    listed = process(running.pid or 0)
    assert listed is not None
    seen = " ".join(listed.arguments) + (directory / "postgres.log").read_text()
    for role in ("bursar", "postgres"):
        assert (directory / f"{role}.password").read_text().strip() not in seen


def test_what_a_statement_did_wrong_is_not_kept_in_the_log(running: EmbeddedPostgres) -> None:
    with pytest.raises(psycopg.errors.SyntaxError):
        execute(running.url, "SELECT nonsense of alice@example.com")
    directory = Path(execute(running.superuser_url, 'SHOW "bursar.directory"')[0]).parent
    assert "alice@example.com" not in (directory / "postgres.log").read_text()


@pytest.mark.parametrize("open_mode", [0o755, 0o700])
def test_the_mode_of_a_folder_that_was_there_stays(database: Path, open_mode: int) -> None:
    database.chmod(open_mode)
    with EmbeddedPostgres(database):
        assert mode(database) == open_mode
        assert mode(database / "data") == 0o700
    assert mode(database) == open_mode


def test_what_was_committed_is_there_after_a_restart(database: Path) -> None:
    server = EmbeddedPostgres(database)
    url = server.start()
    execute(url, "CREATE TABLE notes (note text)", "INSERT INTO notes VALUES ('kept')")
    pid = server.pid
    assert pid is not None
    server.stop()
    assert not is_running(pid)
    assert server.pid is None
    assert server.start() == url
    assert execute(url, "SELECT note FROM notes") == ["kept"]
    server.stop()
    server.stop()


def test_stopping_ends_open_transactions(database: Path) -> None:
    server = EmbeddedPostgres(database)
    with psycopg.connect(server.start()) as connection:
        connection.execute("SELECT 1")
        server.stop()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")


def test_a_second_server_in_the_folder_is_refused(database: Path) -> None:
    with EmbeddedPostgres(database) as first:
        with pytest.raises(DirectoryInUseError, match=f"in use by pid {os.getpid()}$") as caught:
            EmbeddedPostgres(database).start()
        assert caught.value.pid == os.getpid()
        assert execute(first.url, "SELECT 1") == [1]
        with pytest.raises(DatabaseStartError, match="already started"):
            first.start()
        assert execute(first.url, "SELECT 1") == [1]


def test_a_url_is_asked_of_a_started_server_only(tmp_path: Path) -> None:
    with pytest.raises(DatabaseStartError, match="not started"):
        _ = EmbeddedPostgres(tmp_path).url


@pytest.mark.parametrize(
    "name",
    [
        "/".join(["deep" * 10] * 6),
        "quo'te\"s and $HOME `id` %41 ;&| gehört mir 💶",
    ],
)
def test_any_folder_that_the_system_takes_will_do(tmp_path: Path, name: str) -> None:
    """A socket's path has a hundred bytes, and initdb writes paths into shell commands."""
    with EmbeddedPostgres(tmp_path / name) as server:
        assert execute(server.url, "SELECT 1") == [1]


def test_a_short_name_for_a_long_path_is_private_and_goes_away(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = database.rename(database.with_name("x" * 150))
    room = Path("/tmp") / f"bursar-{os.getpid()}"
    room.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(room))
    try:
        with EmbeddedPostgres(directory) as server:
            (folder,) = room.iterdir()
            assert mode(folder) == 0o700
            assert f"host={folder}" in server.url
        # Somebody else's folder of that name is left alone.
        folder.symlink_to("/etc")
        with EmbeddedPostgres(directory) as server:
            assert f"host={folder}/" not in server.url
            assert execute(server.url, "SELECT 1") == [1]
        assert [path.name for path in room.iterdir()] == [folder.name]
        folder.unlink()
    finally:
        room.rmdir()


def test_the_server_outlives_the_thread_that_started_it(database: Path) -> None:
    """The kernel ties a child to its parent's thread, and an event loop starts servers from threads."""
    server = EmbeddedPostgres(database)
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    threading.Event().wait(0.2)
    assert execute(server.url, "SELECT 1") == [1]
    server.stop()


def test_an_end_that_nobody_asked_for_is_told(database: Path) -> None:
    told: list[int] = []
    server = EmbeddedPostgres(database, on_exit=told.append)
    server.start()
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    wait_until(lambda: bool(told), "on_exit")
    assert told == [-9]
    assert server.pid is None
    server.stop()
    url = server.start()
    assert execute(url, "SELECT 1") == [1]
    server.stop()
    assert told == [-9]


def test_a_lost_password_is_replaced(database: Path) -> None:
    with EmbeddedPostgres(database) as server:
        before = server.url
        execute(before, "CREATE TABLE notes (note text)")
    (database / "bursar.password").unlink()
    with EmbeddedPostgres(database) as server:
        assert server.url != before
        assert execute(server.url, "SELECT count(*) FROM notes") == [0]
        assert execute(server.superuser_url, "SELECT 1") == [1]


def test_a_wrong_password_is_explained_and_the_folder_let_go(database: Path) -> None:
    (database / "bursar.password").write_text("guessed\n")
    for _ in range(2):
        with pytest.raises(DatabaseStartError, match=r"delete .*/bursar\.password") as caught:
            EmbeddedPostgres(database).start()
        assert "guessed" not in str(caught.value)


def test_a_first_start_that_was_cut_off_is_done_again(tmp_path: Path) -> None:
    half = tmp_path / "data.new-abcd"
    (half / "base").mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    (tmp_path / "data").mkdir()
    with EmbeddedPostgres(tmp_path) as server:
        assert execute(server.url, "SELECT 1") == [1]
    assert not half.exists()


def test_somebody_elses_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.txt").write_text("important")
    with pytest.raises(DatabaseStartError, match="no PostgreSQL database; move them away"):
        EmbeddedPostgres(tmp_path).start()
    assert (tmp_path / "data" / "thesis.txt").read_text() == "important"


def test_a_database_of_another_version_is_explained(database: Path) -> None:
    (database / "data" / "PG_VERSION").write_text("17\n")
    with pytest.raises(DatabaseStartError, match=r"made by PostgreSQL 17, .* brings only 18; .*pg_dump"):
        EmbeddedPostgres(database).start()


def test_a_setting_that_postgres_does_not_understand_is_shown(database: Path) -> None:
    with (database / "data" / "postgresql.conf").open("a") as settings:
        settings.write("max_connections = many\n")
    with pytest.raises(DatabaseStartError, match='invalid value for parameter "max_connections": "many"'):
        EmbeddedPostgres(database).start()


def test_a_large_log_is_set_aside(database: Path) -> None:
    (database / "postgres.log").write_bytes(b"old\n" * (2 << 20))
    with EmbeddedPostgres(database):
        assert (database / "postgres.log").stat().st_size < 10_000
    assert (database / "postgres.log.1").stat().st_size == 8 << 20


def test_a_folder_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DatabaseStartError, match=r"cannot start: .*file"):
        EmbeddedPostgres(tmp_path / "file" / "database").start()
