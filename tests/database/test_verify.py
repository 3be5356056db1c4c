"""`bursar verify` on living books: clean whatever is going on, bounded in time and memory, and no false alarm."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from bursar.v1 import user_service_pb2 as user_pb
from bursar_server.db.engine import build_engine
from bursar_server.db.unit_of_work import UnitOfWork
from bursar_server.kit.clock import SystemClock
from bursar_server.kit.errors import BursarError, Reason
from bursar_server.kit.ids import PLATFORM_TENANT_ID
from bursar_server.metering.model import PrincipalRef
from bursar_server.verify.model import Difference, Progress, Scope
from bursar_server.verify.service import VerifyService
from bursar_server.verify.work import Sizes
from support.admin import OPERATOR, admin_side
from support.called import called_by
from support.database import DatabaseServer
from support.many_calls import write_calls
from support.metering import Ledger, ledger_on, new_id
from support.proofs import EXPIRE, TINY, fill, prove

SMALL = Sizes(entries=200, records=50, rows=20)
SPENT = "UPDATE balances SET spent_nanos = spent_nanos + 7"


@pytest.fixture(scope="module")
def filled_database(database_server: DatabaseServer, template_database: str) -> Iterator[str]:
    """The name of a database with full books that is only copied."""
    name = database_server.create(template=template_database)
    asyncio.run(fill(database_server.url(name)))
    yield name
    database_server.drop(name)


@pytest.fixture
def books_url(database_server: DatabaseServer, filled_database: str) -> Iterator[str]:
    """Full books of this test's own."""
    name = database_server.create(template=filled_database)
    yield database_server.url(name)
    database_server.drop(name)


@pytest.fixture
async def ledger(database_url: str) -> AsyncIterator[Ledger]:
    async with ledger_on(database_url, lanes=2) as ledger:
        yield ledger


@pytest.mark.parametrize("sizes", [None, TINY], ids=["large pages", "tiny pages"])
async def test_full_books_are_clean(books_url: str, sizes: object) -> None:
    """S26: every kind of call, grant, budget, correction, reset, event and report leaves books that add up."""
    proof = await prove(books_url, sizes=TINY if sizes else None)
    assert proof.differences == []
    assert proof.outcome is not None
    assert proof.outcome.clean
    assert proof.outcome.tenants == 3
    looked_at = proof.outcome.counts
    assert min(looked_at.values()) >= 2, "everything was looked at"
    assert looked_at["entries"] > 3 * looked_at["calls"] > 100
    assert "entries again" in proof.progress, "what moves is looked at again"


async def test_empty_books_are_clean(database_url: str) -> None:
    """S26: a new installation has nothing to say."""
    proof = await prove(database_url)
    assert proof.differences == []


async def test_one_tenant(books_url: str) -> None:
    """S26: with a tenant named, by name or id, only its books are looked at; the others' are not."""
    with psycopg.connect(books_url, autocommit=True) as connection:
        row = connection.execute("SELECT tenant_id FROM tenants WHERE name = 'acme'").fetchone()
        assert row is not None
        connection.execute(f"{SPENT} WHERE tenant_id = %s", row)
    for name, differences in (("acme", 1), (str(row[0]), 1), ("default", 0)):
        proof = await prove(books_url, Scope(name))
        assert len(proof.differences) == differences
        assert proof.outcome is not None
        assert (proof.outcome.tenants, len(proof.outcome.left_out)) == (1, 1)
    with pytest.raises(BursarError) as unknown:
        await prove(books_url, Scope("nowhere"))
    assert unknown.value.reason is Reason.NOT_FOUND


async def test_since(books_url: str) -> None:
    """S26: with `since` what began before it is left out, and what began later is proved."""
    with psycopg.connect(books_url, autocommit=True) as connection:
        connection.execute(f"{SPENT} WHERE period_start < now() - interval '2 days'")
        connection.execute("UPDATE audit_events SET create_time = '2026-01-01Z' WHERE sequence = 1")
        first = connection.execute("SELECT min(create_time) FROM audit_events WHERE sequence > 1").fetchone()
    assert first is not None
    assert {found.invariant for found in (await prove(books_url)).differences} == {"I1", "I9"}
    assert (await prove(books_url, Scope(since=first[0]))).differences == []
    now = datetime.now(UTC)
    yesterday = now.replace(hour=0, minute=0, second=0, microsecond=0)
    later = await prove(books_url, Scope(since=yesterday))
    assert later.differences == []
    with psycopg.connect(books_url, autocommit=True) as connection:
        changed = connection.execute(f"{SPENT} WHERE period_start >= %s", (yesterday,)).rowcount
    found = (await prove(books_url, Scope(since=yesterday))).differences
    assert [difference.invariant for difference in found] == ["I1"] * changed
    assert (await prove(books_url, Scope(since=now + timedelta(days=1)))).differences == []


async def test_busy_lanes_raise_no_false_alarm(ledger: Ledger, database_url: str) -> None:
    """S20, S26: while calls are made, expire and are corrected, grants are given and budgets reset, the books add up."""
    engine = build_engine(database_url, pool_size=2)
    admin = admin_side(UnitOfWork(engine))
    alice = ledger.user("alice@example.com")
    acme = ledger.tenant("acme")
    keys = [ledger.key(alice), ledger.key(tenant_id=acme, secret="bur_acme")]
    ledger.budget("USER", 10**9, user_id=alice, admission="UPPER_BOUND")
    ledger.budget("TENANT", 10**9, period="TOTAL")
    ledger.budget("TENANT", None, limit_tokens=10**9, tenant_id=acme)
    ledger.budget("GLOBAL", 10**9, tenant_id=PLATFORM_TENANT_ID)
    stop = asyncio.Event()
    made = 0

    async def calls(key: PrincipalRef, place: int) -> None:
        nonlocal made
        while not stop.is_set():
            check = await ledger.check(key)
            if made % 7 == place:
                ledger.sql(EXPIRE, check.request_id)
                await ledger.service.sweep_once()
            await ledger.deduct(key, check.request_id, made % 50)
            made += 1

    async def changes() -> None:
        while not stop.is_set():
            ledger.grant(alice, 1_000)
            await admin.user_rpc.reset_spend(
                user_pb.ResetSpendRequest(user_id=str(alice)), called_by(OPERATOR)
            )
            await asyncio.sleep(0.05)

    at_work = [asyncio.create_task(calls(key, place)) for place in range(4) for key in keys]
    at_work.append(asyncio.create_task(changes()))
    runs, until = 0, time.monotonic() + 4
    while time.monotonic() < until:
        proof = await prove(database_url, sizes=SMALL if runs % 2 else None)
        assert proof.differences == []
        runs += 1
    stop.set()
    await asyncio.gather(*at_work)
    await engine.dispose()
    assert runs >= 2
    assert made > 50
    assert (await prove(database_url)).differences == []


async def test_a_call_posted_days_late_is_no_difference(ledger: Ledger, database_url: str) -> None:
    """S16, S24: a Deduct whose id is old is found, though sums were nearly complete without it."""
    key = ledger.key()
    ledger.budget("TENANT", 10**9, period="TOTAL")
    await ledger.call(key)
    for table in ("ledger_entries", "usage_records"):
        ledger.sql(f"UPDATE {table} SET posted_time = posted_time - interval '1 hour'")
    old = datetime.now(UTC) - timedelta(days=9)
    await ledger.deduct(key, new_id(old))
    await ledger.deduct(key, new_id(old), start_time=old)
    for scope in (None, Scope(since=datetime.now(UTC) - timedelta(hours=1))):
        assert (await prove(database_url, scope)).differences == []
    ledger.sql(SPENT)
    assert (await prove(database_url)).told == {"I1 spent_nanos by balance"}


async def test_dropped_months_of_records_are_left_out(ledger: Ledger, database_url: str) -> None:
    """S26: sums and entries of months whose records are dropped are no differences; it is said that they were left out."""
    now = datetime.now(UTC)
    write_calls(ledger, 400, days=now.day + 3)
    last_month = now.replace(day=1) - timedelta(days=1)
    assert (await prove(database_url)).differences == []
    ledger.sql(f"DROP TABLE usage_records_{last_month:%Y_%m}")
    proof = await prove(database_url)
    assert proof.differences == []
    assert proof.outcome is not None
    assert [text for text in proof.outcome.left_out if "months are dropped" in text]
    assert proof.outcome.counts["entries"] == 4 * 400


async def test_rows_that_nobody_can_read_end_the_run_with_their_place(books_url: str) -> None:
    """S26: what is not even well-formed is not passed over in silence."""
    with psycopg.connect(books_url, autocommit=True) as connection:
        connection.execute(
            """UPDATE usage_records SET postings = '[{"tenant_id": "x"}]' WHERE source = 'DEDUCT'"""
        )
    with pytest.raises(
        BursarError, match="default, calls: the database says: invalid input syntax for type uuid"
    ) as error:
        await prove(books_url)
    assert error.value.reason is Reason.DATABASE_UNAVAILABLE


class SlowClock(SystemClock):
    """A clock on which every look takes long, from the moment that it is slow."""

    slow = False
    late = 0.0

    def monotonic(self) -> float:
        """Return a second that is ever farther away."""
        self.late += 10.0 if self.slow else 0.0
        return super().monotonic() + self.late


async def test_what_one_snapshot_cannot_hold_is_said_as_unconfirmed(books_url: str) -> None:
    """S26: no snapshot lasts longer than ten seconds; a difference that it was too short for is told nevertheless."""
    with psycopg.connect(books_url, autocommit=True) as connection:
        connection.execute(f"{SPENT} WHERE spent_nanos > 0")
    clock = SlowClock()
    found: list[Difference] = []

    def on_progress(progress: Progress) -> None:
        clock.slow = progress.doing.endswith("again")

    engine = build_engine(books_url, pool_size=1)
    await VerifyService(engine=engine, clock=clock).run(Scope(), found.append, on_progress)
    await engine.dispose()
    told = {(difference.invariant, difference.figure) for difference in found}
    assert ("I1", "spent_nanos") in told
    assert all("not confirmed" in difference.note for difference in found)


MEASURED = """
import resource, sys
from click.testing import CliRunner
from bursar_server.cli import command
done = CliRunner().invoke(command, ["verify", "--json", "--database-url", sys.argv[1]])
print(done.stdout.splitlines()[-1])
print(done.exit_code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def measured(url: str) -> tuple[dict[str, object], int, int]:
    """Return the summary of `bursar verify`, its exit code, and the most memory that it used, in KiB."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, url], capture_output=True, text=True, check=True, timeout=100
    )
    summary, last = done.stdout.splitlines()
    code, peak = last.split()
    return json.loads(summary), int(code), int(peak)


async def test_200_000_entries_take_seconds_and_little_memory(
    ledger: Ledger, database_url: str, empty_books_peak: int
) -> None:
    """S26: a large ledger is proved in seconds; memory does not grow with it."""
    await asyncio.to_thread(write_calls, ledger, 50_000)
    summary, code, peak = await asyncio.to_thread(measured, database_url)
    assert (code, summary["clean"]) == (0, True)
    looked_at = summary["looked_at"]
    assert isinstance(looked_at, dict)
    assert (looked_at["calls"], looked_at["entries"]) == (50_000, 200_000)
    assert float(str(summary["seconds"])) < 40, "about 4 s on two cores with nothing else to do"
    assert peak - empty_books_peak < 64 * 1024
    ledger.sql(
        "UPDATE usage_records SET other_cost_nanos = 7 WHERE request_id = (SELECT id FROM many_calls WHERE n = 25000)"
    )
    proof = await prove(database_url)
    assert {difference.invariant for difference in proof.differences} == {"I4", "I6", "I7"}
    assert len({difference.ids.get("request_id") for difference in proof.differences}) == 2


@pytest.fixture
def empty_books_peak(database_server: DatabaseServer, template_database: str) -> Iterator[int]:
    """What proving empty books takes, in KiB."""
    name = database_server.create(template=template_database)
    yield measured(database_server.url(name))[2]
    database_server.drop(name)
