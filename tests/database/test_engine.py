"""Connections as the hot path and the admin side get them."""

import select
import time

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from bursar_server.db.engine import build_engine, connect_lane
from bursar_server.db.lane import UNCONFIRMED_ERROR, Pipeline
from bursar_server.db.preconditions import DatabaseStartError


def shown(connection: psycopg.Connection[tuple[object, ...]], name: str) -> str:
    row = connection.execute("SELECT current_setting(%s)", (name,)).fetchone()
    assert row is not None
    return str(row[0])


def test_a_lane_gives_up_soon(database_url: str) -> None:
    with connect_lane(database_url) as lane:
        assert lane.autocommit
        assert shown(lane, "idle_in_transaction_session_timeout") == "2s"
        assert shown(lane, "statement_timeout") == "5s"
        assert shown(lane, "lock_timeout") == "500ms"
        assert shown(lane, "TimeZone") == "UTC"
        assert shown(lane, "application_name") == "bursar-lane"


def test_a_lane_runs_pipelines(database_url: str) -> None:
    with connect_lane(database_url) as lane, lane.pipeline(), lane.transaction():
        cursors = [lane.execute("SELECT %s::bigint", (number,)) for number in range(10)]
        assert [cursor.fetchone() for cursor in cursors] == [(number,) for number in range(10)]


def test_a_round_trip_carries_more_than_sockets_hold(database_url: str) -> None:
    """Megabytes both ways: neither side waits for the other to read."""
    text = "x" * (4 << 20)
    with connect_lane(database_url) as lane:
        pipeline = Pipeline(lane)
        for _ in range(2):
            answers = [pipeline.send("SELECT %s::text", text) for _ in range(3)]
            pipeline.run()
            assert [answer.rows() for answer in answers] == [[(text,)]] * 3


def test_what_has_arrived_is_told_without_waiting(database_url: str) -> None:
    """Round trips that overlap: what is read with the first is not waited for again."""
    with connect_lane(database_url) as lane:
        pipeline = Pipeline(lane)
        assert not pipeline.arrived()
        answers = []
        for number in range(3):
            answers.append(
                pipeline.send("SELECT pg_sleep(%s::float8 / 20), %s::int", str(number), str(number))
            )
            pipeline.launch()
        assert not pipeline.arrived()
        time.sleep(0.4)
        for number, answer in enumerate(answers):
            assert pipeline.arrived()
            assert not pipeline.failed
            pipeline.land()
            assert answer.rows()[0][1] == number
        assert not pipeline.arrived()


def test_what_was_refused_is_told_before_it_is_landed(database_url: str) -> None:
    with connect_lane(database_url) as lane:
        pipeline = Pipeline(lane)
        pipeline.send("SELECT 1 / %s::int", "0")
        pipeline.launch()
        while not pipeline.arrived():
            select.select([lane], [], [], 1)
        assert pipeline.failed
        with pytest.raises(UNCONFIRMED_ERROR):
            pipeline.land()
        assert not pipeline.failed


def test_a_round_trip_that_was_begun_without_waiting_is_waited_for(database_url: str) -> None:
    """More than sockets hold: what has not gone out and what has been read of the answer are both gone on with."""
    text = "x" * (8 << 20)
    with connect_lane(database_url) as lane:
        pipeline = Pipeline(lane)
        answer = pipeline.send("SELECT %s::text", text)
        pipeline.launch()
        assert not pipeline.flushed()
        assert not pipeline.arrived()
        pipeline.land()
        assert answer.rows() == [(text,)]
        assert pipeline.flushed()


@pytest.mark.parametrize("waiting", [False, True])
def test_a_connection_that_is_lost_is_told_without_waiting(database_url: str, waiting: bool) -> None:
    with connect_lane(database_url) as lane:
        pipeline = Pipeline(lane)
        if waiting:
            pipeline.send("SELECT pg_sleep(60)")
            pipeline.launch()
            assert not pipeline.arrived()
        with psycopg.connect(database_url, autocommit=True) as somebody:
            somebody.execute("SELECT pg_terminate_backend(%s, 5000)", [lane.info.backend_pid])
        with pytest.raises(psycopg.OperationalError):  # noqa: PT012  (it comes with the end of what was sent)
            while not pipeline.failed:
                pipeline.arrived()
            pipeline.land()


def test_megabytes_go_both_ways_while_round_trips_overlap(database_url: str) -> None:
    text = "x" * (4 << 20)
    with connect_lane(database_url) as lane:
        pipeline = Pipeline(lane)
        answers = []
        for _ in range(2):
            answers.append(pipeline.send("SELECT %s::text", text))
            pipeline.launch()
        for answer in answers:
            pipeline.land()
            assert answer.rows() == [(text,)]


async def test_the_pool_has_an_end(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        settings = (
            "statement_timeout",
            "lock_timeout",
            "idle_in_transaction_session_timeout",
            "application_name",
        )
        query = text("SELECT " + ", ".join(f"current_setting('{name}')" for name in settings))
        assert tuple((await connection.execute(query)).one()) == ("30s", "5s", "1min", "bursar")


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
async def test_the_usual_spellings_of_a_url_are_understood(database_url: str, scheme: str) -> None:
    url = scheme + database_url.removeprefix("postgresql")
    connect_lane(url).close()
    engine = build_engine(url)
    async with engine.connect() as connection:
        assert (await connection.execute(text("SELECT 1"))).scalar_one() == 1
    await engine.dispose()


def test_what_the_url_says_itself_is_kept(database_url: str) -> None:
    with connect_lane(f"{database_url}&options=-c%20work_mem%3D5MB&application_name=mine") as lane:
        assert shown(lane, "work_mem") == "5MB"
        assert shown(lane, "lock_timeout") == "500ms"
        assert shown(lane, "application_name") == "mine"


@pytest.mark.parametrize(
    "url",
    [
        "",
        " ",
        "postgresql://bursar:hunter2@localhost:port/bursar",
        "postgresql://bursar:hunter2@localhost/bursar?nonsense=hunter2",
        "postgresql://bursar:hunter2%@localhost/bursar",
        "mysql://bursar:hunter2@localhost/bursar",
        "/var/lib/bursar/hunter2.db",
    ],
)
def test_what_is_no_url_is_refused_without_repeating_the_password(url: str) -> None:
    for connect in (connect_lane, build_engine):
        with pytest.raises(DatabaseStartError) as caught:
            connect(url)
        assert "hunter2" not in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__ or caught.value.__context__ is None
