"""What every test may ask for. Without PostgreSQL these fail: nothing is skipped."""

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from tools.compile import current, products

from bursar_server.db.engine import build_engine
from bursar_server.db.unit_of_work import UnitOfWork
from support import database
from support.clock import FakeClock


def pytest_sessionstart() -> None:
    """What is compiled is what the tests would test: it has to be of these sources."""
    if products() and not current():
        pytest.exit(
            "sources have changed since they were compiled: `make compile` (COMPILE=no: run them as they are)",
            4,
        )


@pytest.fixture(scope="module", autouse=True)
def _nothing_left_open() -> Iterator[None]:
    """Sockets and files that nobody closed fail the module that left them, not a later one."""
    yield
    gc.collect()


@pytest.fixture
def clock() -> FakeClock:
    """A clock that stands still."""
    return FakeClock()


@pytest.fixture(scope="session")
def database_server() -> Iterator[database.DatabaseServer]:
    """The session's PostgreSQL server (with pytest-xdist: one for each worker)."""
    with database.running_server() as server:
        yield server


@pytest.fixture(scope="session")
def template_database(database_server: database.DatabaseServer) -> Iterator[str]:
    """The name of a migrated database that is only copied."""
    name = asyncio.run(database.migrated_template(database_server))
    yield name
    database_server.drop(name)


@pytest.fixture
def empty_database_url(database_server: database.DatabaseServer) -> Iterator[str]:
    """A database of this test's own without any table."""
    name = database_server.create()
    yield database_server.url(name)
    database_server.drop(name)


@pytest.fixture
def database_url(database_server: database.DatabaseServer, template_database: str) -> Iterator[str]:
    """A migrated database of this test's own, which several connections and processes can share."""
    name = database_server.create(template=template_database)
    yield database_server.url(name)
    database_server.drop(name)


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """An engine on this test's own migrated database."""
    engine = build_engine(database_url, pool_size=5)
    yield engine
    await engine.dispose()


@pytest.fixture
def unit_of_work(engine: AsyncEngine) -> UnitOfWork:
    """Transactions on this test's own migrated database."""
    return UnitOfWork(engine)
