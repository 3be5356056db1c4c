"""A real PostgreSQL for the tests: one server for the session, one template, a clone for each test that commits."""

import contextlib
import os
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

import psycopg
from psycopg import sql

from bursar_server.db import migrate
from bursar_server.db.embedded import EmbeddedPostgres
from bursar_server.db.embedded.directory import DirectoryLock
from bursar_server.db.engine import build_engine
from bursar_server.db.partitions import ensure_partitions
from bursar_server.db.preconditions import DatabaseStartError, check_server_settings

SERVER_VARIABLE = "BURSAR_TEST_DATABASE_URL"

_FOLDER_PREFIX = "bursar-test-"
_MEMORY = Path("/dev/shm")
_NEEDED_BYTES = 2 << 30
_ABANDONED_S = 600.0

# A database is dropped some tests later, when its connections are surely gone: PostgreSQL waits 100 ms for them.
_DROPS_BEHIND = 4


class DatabaseServer:
    """Makes and drops databases on one server.

    `maintenance_url` may create databases; the tests work as the role of `role_url`. Copying files is the fastest way
    to a database where they lie `in_memory`; its two checkpoints make it the slowest on a busy disk.
    """

    def __init__(self, maintenance_url: str, role_url: str, *, in_memory: bool = False) -> None:
        self._strategy = "FILE_COPY" if in_memory else "WAL_LOG"
        self._connection = psycopg.connect(maintenance_url, autocommit=True)
        self._role_url = role_url
        with psycopg.connect(role_url, autocommit=True) as connection:
            check_server_settings(connection)
            self._role = connection.info.user
        self._prefix = f"bursar_test_{os.getpid()}_"
        self._made = 0
        self._dropped: deque[str] = deque()

    def create(self, *, template: str | None = None, encoding: str = "UTF8") -> str:
        """Make a database, empty or as a copy of `template`; return its name."""
        self._made += 1
        name = f"{self._prefix}{self._made}"
        statement = sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE {} STRATEGY {}").format(
            sql.Identifier(name),
            sql.Identifier(self._role),
            sql.Identifier(template or "template0"),
            sql.Identifier(self._strategy.lower()),
        )
        if template is None:
            statement += sql.SQL(" ENCODING {} LOCALE_PROVIDER libc LOCALE 'C'").format(encoding)
        self._connection.execute(statement)
        return name

    def drop(self, name: str) -> None:
        """Drop a database, soon."""
        self._dropped.append(name)
        while len(self._dropped) > _DROPS_BEHIND:
            self._drop_oldest()

    def url(self, name: str) -> str:
        """Return the URL of a database on this server."""
        return urlunsplit(urlsplit(self._role_url)._replace(path=f"/{quote(name)}"))

    def close(self) -> None:
        """Drop what is left to drop."""
        while self._dropped:
            self._drop_oldest()
        self._connection.close()

    def _drop_oldest(self) -> None:
        name = sql.Identifier(self._dropped.popleft())
        self._connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))


@contextlib.contextmanager
def running_server() -> Iterator[DatabaseServer]:
    """Give the server that BURSAR_TEST_DATABASE_URL names, or one of our own for as long as it is needed."""
    given = os.environ.get(SERVER_VARIABLE)
    with contextlib.ExitStack() as stack:
        if given:
            server = DatabaseServer(given, given)
        else:
            folder = stack.enter_context(memory_folder())
            embedded = stack.enter_context(EmbeddedPostgres(folder))
            in_memory = folder.is_relative_to(_MEMORY)
            server = DatabaseServer(embedded.superuser_url, embedded.url, in_memory=in_memory)
        stack.callback(server.close)
        yield server


async def migrated_template(server: DatabaseServer) -> str:
    """Make a database as a started Bursar leaves it (schema and this time's partitions); return its name."""
    name = server.create()
    migrate.upgrade(server.url(name))
    engine = build_engine(server.url(name), pool_size=1)
    try:
        async with engine.begin() as connection:
            await ensure_partitions(connection)
    finally:
        await engine.dispose()
    return name


@contextlib.contextmanager
def memory_folder() -> Iterator[Path]:
    """Give a folder, in memory where there is enough: fsync stays on, since Bursar refuses a server without it."""
    room = Path(tempfile.gettempdir())
    with contextlib.suppress(OSError):
        status = os.statvfs(_MEMORY)
        if status.f_bavail * status.f_frsize >= _NEEDED_BYTES and os.access(_MEMORY, os.W_OK):
            room = _MEMORY
    _remove_abandoned(room)
    folder = Path(tempfile.mkdtemp(prefix=_FOLDER_PREFIX, dir=room))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _remove_abandoned(room: Path) -> None:
    """Remove the folders of test sessions that were killed."""
    for folder in room.glob(f"{_FOLDER_PREFIX}*"):
        with contextlib.suppress(OSError, DatabaseStartError):
            if time.time() - folder.stat().st_mtime > _ABANDONED_S:
                lock = DirectoryLock(folder)
                shutil.rmtree(folder, ignore_errors=True)
                lock.release()
