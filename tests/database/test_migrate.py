"""A database becomes what this version needs, once, whoever starts first."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from bursar_server.db import migrate
from bursar_server.db.preconditions import DatabaseStartError


def tables(url: str) -> list[str]:
    with psycopg.connect(url, autocommit=True) as connection:
        rows = connection.execute("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace")
        return sorted(row[0] for row in rows)


def scripts(folder: Path) -> ScriptDirectory:
    config = Config()
    config.set_main_option("script_location", str(folder))
    return ScriptDirectory.from_config(config)


def test_an_empty_database_gets_the_newest_schema(empty_database_url: str) -> None:
    assert migrate.current_revision(empty_database_url) is None
    assert migrate.upgrade(empty_database_url) == migrate.head_revision()
    assert migrate.current_revision(empty_database_url) == migrate.head_revision()
    assert "ledger_entries" in tables(empty_database_url)


def test_the_quick_look_for_the_newest_revision_agrees_with_alembic() -> None:
    folder = Path(migrate.__file__).with_name("migrations")
    assert migrate.head_revision() == scripts(folder).get_current_head()


def test_a_second_time_changes_nothing_and_does_not_load_alembic(database_url: str) -> None:
    before = tables(database_url)
    program = (
        "import sys; from bursar_server.db import migrate; print(migrate.upgrade(sys.argv[1]));"
        "assert 'alembic' not in sys.modules, 'alembic was loaded'"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, database_url], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == migrate.head_revision()
    assert tables(database_url) == before


def test_processes_that_start_at_once_migrate_once(empty_database_url: str) -> None:
    together = threading.Barrier(4)

    def start() -> str | None:
        together.wait()
        return migrate.upgrade(empty_database_url)

    with ThreadPoolExecutor(4) as pool:
        revisions = [future.result() for future in [pool.submit(start) for _ in range(4)]]
    assert set(revisions) == {migrate.head_revision()}


def test_who_comes_second_waits_for_who_migrates(empty_database_url: str) -> None:
    with (
        psycopg.connect(empty_database_url) as first,
        psycopg.connect(empty_database_url, autocommit=True) as observer,
        ThreadPoolExecutor(1) as pool,
    ):
        first.execute("SELECT pg_advisory_xact_lock(%s)", (migrate._ADVISORY_LOCK,))
        waiting = pool.submit(migrate.upgrade, empty_database_url)
        while observer.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchone() is None:
            time.sleep(0.005)
        assert tables(empty_database_url) == []
        first.rollback()
        assert waiting.result(30) == migrate.head_revision()


def test_a_database_of_a_newer_version_is_left_alone(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999_future'")
    with pytest.raises(DatabaseStartError, match=r"revision 9999_future.* newer one has migrated it"):
        migrate.upgrade(database_url)
    assert migrate.current_revision(database_url) == "9999_future"


def test_a_server_that_does_not_answer_is_named_without_the_password() -> None:
    with pytest.raises(DatabaseStartError, match=r"127\.0\.0\.1") as caught:
        migrate.upgrade("postgresql://bursar:hunter2@127.0.0.1:1/bursar")
    assert "hunter2" not in str(caught.value)


@pytest.fixture
def other_migrations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Migrations of the test's own: `versions` starts empty."""
    (tmp_path / "versions").mkdir()
    env = Path(migrate.__file__).with_name("migrations") / "env.py"
    (tmp_path / "env.py").write_text(env.read_text())
    monkeypatch.setattr(migrate, "_MIGRATIONS", tmp_path)
    migrate._known_revisions.cache_clear()
    yield tmp_path
    migrate._known_revisions.cache_clear()


def add_migration(folder: Path, revision: str, parent: str | None, statement: str) -> None:
    (folder / "versions" / f"{revision}.py").write_text(
        f"from alembic import op\n\nrevision: str = '{revision}'\ndown_revision = {parent!r}\n\n\n"
        f"def upgrade() -> None:\n    op.execute({statement!r})\n"
    )


def test_a_failed_migration_leaves_what_came_before_it(
    empty_database_url: str, other_migrations: Path
) -> None:
    add_migration(other_migrations, "a1", None, "CREATE TABLE first (x int)")
    add_migration(other_migrations, "b2", "a1", "CREATE TABLE second (x int); SELECT 1 / 0")
    with pytest.raises(DatabaseStartError, match="division by zero"):
        migrate.upgrade(empty_database_url)
    assert migrate.current_revision(empty_database_url) == "a1"
    assert tables(empty_database_url) == ["alembic_version", "alembic_version_pkc", "first"]


def test_a_migration_does_not_wait_long_for_a_lock(empty_database_url: str, other_migrations: Path) -> None:
    """Everybody else would queue behind it."""
    add_migration(
        other_migrations, "a1", None, "CREATE TABLE shown AS SELECT current_setting('lock_timeout')"
    )
    add_migration(other_migrations, "b2", "a1", "INSERT INTO shown SELECT current_setting('lock_timeout')")
    migrate.upgrade(empty_database_url)
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        assert connection.execute("SELECT * FROM shown").fetchall() == [("5s",), ("5s",)]


def test_migrations_that_fork_are_refused(other_migrations: Path) -> None:
    add_migration(other_migrations, "a1", None, "SELECT 1")
    add_migration(other_migrations, "b2", "a1", "SELECT 1")
    add_migration(other_migrations, "b3", "a1", "SELECT 1")
    with pytest.raises(DatabaseStartError, match="2 heads: b2, b3"):
        migrate.head_revision()
