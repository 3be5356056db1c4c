"""One transaction per request, on a real server."""

import asyncio
from collections.abc import AsyncIterator

import psycopg
import pytest
import sqlalchemy
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from bursar_server.db.engine import build_engine
from bursar_server.db.unit_of_work import UnitOfWork
from bursar_server.kit.errors import BursarError, Reason


@pytest.fixture
async def notes(engine: AsyncEngine) -> AsyncEngine:
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE notes (note int PRIMARY KEY)"))
    return engine


@pytest.fixture
async def impatient(database_url: str) -> AsyncIterator[UnitOfWork]:
    engine = build_engine(
        database_url, pool_size=1, pool_timeout_s=0.1, statement_timeout_ms=200, lock_timeout_ms=100
    )
    yield UnitOfWork(engine)
    await engine.dispose()


async def count(engine: AsyncEngine) -> int:
    async with engine.connect() as connection:
        return int((await connection.execute(text("SELECT count(*) FROM notes"))).scalar_one())


async def end_session_of(tx: AsyncConnection, database_url: str) -> None:
    pid = (await tx.execute(text("SELECT pg_backend_pid()"))).scalar_one()
    with psycopg.connect(database_url, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))


async def test_what_is_done_in_it_is_there_afterwards(notes: AsyncEngine) -> None:
    """S20: effects commit together."""
    async with UnitOfWork(notes).begin() as tx:
        await tx.execute(text("INSERT INTO notes VALUES (1)"))
        await tx.execute(text("INSERT INTO notes VALUES (2)"))
    assert await count(notes) == 2


async def test_an_exception_takes_all_of_it_back_and_stays_itself(notes: AsyncEngine) -> None:
    """S20: or not at all."""

    async def request() -> None:
        async with UnitOfWork(notes).begin() as tx:
            await tx.execute(text("INSERT INTO notes VALUES (1)"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await request()
    assert await count(notes) == 0


async def test_a_unique_violation_passes_through(notes: AsyncEngine) -> None:
    with pytest.raises(sqlalchemy.exc.IntegrityError):
        async with UnitOfWork(notes).begin() as tx:
            await tx.execute(text("INSERT INTO notes VALUES (1), (1)"))


async def test_isolation_levels_and_time_zone(unit_of_work: UnitOfWork) -> None:
    """S23: instants are UTC; also right after the other kind of transaction used the same connection."""
    query = text(
        "SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only'),"
        " current_setting('TimeZone')"
    )
    for _ in range(2):
        async with unit_of_work.begin() as tx:
            assert tuple((await tx.execute(query)).one()) == ("read committed", "off", "UTC")
        async with unit_of_work.snapshot() as tx:
            assert tuple((await tx.execute(query)).one()) == ("repeatable read", "on", "UTC")


async def test_a_snapshot_sees_one_moment_and_changes_nothing(notes: AsyncEngine) -> None:
    work = UnitOfWork(notes)
    async with work.snapshot() as tx:
        before = (await tx.execute(text("SELECT count(*) FROM notes"))).scalar_one()
        async with work.begin() as other:
            await other.execute(text("INSERT INTO notes VALUES (1)"))
        assert (await tx.execute(text("SELECT count(*) FROM notes"))).scalar_one() == before
    with pytest.raises(sqlalchemy.exc.InternalError):
        async with work.snapshot() as tx:
            await tx.execute(text("INSERT INTO notes VALUES (2)"))


async def test_no_free_connection_is_unavailable(impatient: UnitOfWork) -> None:
    async with impatient.begin() as tx:
        await tx.execute(text("SELECT 1"))
        with pytest.raises(BursarError, match="busy") as caught:
            async with impatient.begin():
                pass
    assert caught.value.reason is Reason.DATABASE_UNAVAILABLE


async def test_a_statement_out_of_time_is_unavailable(impatient: UnitOfWork) -> None:
    with pytest.raises(BursarError) as caught:
        async with impatient.begin() as tx:
            await tx.execute(text("SELECT pg_sleep(5)"))
    assert caught.value.reason is Reason.DATABASE_UNAVAILABLE


async def test_a_lock_out_of_time_is_unavailable(notes: AsyncEngine, impatient: UnitOfWork) -> None:
    async with UnitOfWork(notes).begin() as holder:
        await holder.execute(text("LOCK TABLE notes"))
        with pytest.raises(BursarError) as caught:
            async with impatient.begin() as tx:
                await tx.execute(text("SELECT * FROM notes"))
    assert caught.value.reason is Reason.DATABASE_UNAVAILABLE


async def test_a_lost_connection_is_unavailable_and_the_next_request_works(
    notes: AsyncEngine, database_url: str
) -> None:
    async def request() -> None:
        async with UnitOfWork(notes).begin() as tx:
            await end_session_of(tx, database_url)
            await tx.execute(text("INSERT INTO notes VALUES (1)"))

    with pytest.raises(BursarError) as caught:
        await request()
    assert caught.value.reason is Reason.DATABASE_UNAVAILABLE
    assert await count(notes) == 0


async def test_a_connection_lost_at_the_commit_says_that_the_outcome_is_unknown(
    notes: AsyncEngine, database_url: str
) -> None:
    with pytest.raises(BursarError, match="look whether it is there") as caught:
        async with UnitOfWork(notes).begin() as tx:
            await end_session_of(tx, database_url)
    assert caught.value.reason is Reason.DATABASE_UNAVAILABLE


async def test_an_unreachable_server_is_unavailable_and_the_password_is_in_no_text() -> None:
    engine = build_engine("postgresql://bursar:hunter2@127.0.0.1:1/bursar")
    assert "hunter2" not in repr(engine) + str(engine.url)
    with pytest.raises(BursarError) as caught:
        async with UnitOfWork(engine).begin():
            pass
    await engine.dispose()
    assert caught.value.reason is Reason.DATABASE_UNAVAILABLE
    error: BaseException | None = caught.value
    while error is not None:
        assert "hunter2" not in f"{error!s}{error!r}"
        error = error.__cause__ or error.__context__


async def test_a_cancelled_request_leaves_nothing_behind(notes: AsyncEngine, impatient: UnitOfWork) -> None:
    started = asyncio.Event()

    async def request() -> None:
        async with impatient.begin() as tx:
            await tx.execute(text("INSERT INTO notes VALUES (1)"))
            started.set()
            await tx.execute(text("SELECT pg_sleep(0.15)"))
            await asyncio.sleep(60)

    task = asyncio.create_task(request())
    await started.wait()
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    # The pool has one connection only: it has to be free again.
    async with impatient.begin() as tx:
        assert (await tx.execute(text("SELECT count(*) FROM notes"))).scalar_one() == 0
