"""The database's clock steps back or ahead, by seconds or by weeks: no call is charged twice, lost, or locks others out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from bursar_server.kit.errors import BursarError, Reason
from support.database_clock import make_settable, pass_by, set_clock
from support.metering import Ledger, ledger_on, new_id

DAY = timedelta(days=1)


@pytest.fixture
async def ledger(database_url: str) -> AsyncIterator[Ledger]:
    make_settable(database_url)
    async with ledger_on(database_url) as ledger:
        yield ledger
        ledger.assert_books()


def later(ahead: timedelta) -> datetime:
    return datetime.now(UTC) + ahead


def spent(ledger: Ledger) -> int:
    return int(ledger.sql("SELECT sum(spent_nanos) FROM balances")[0][0])


async def test_a_repeat_is_one_after_the_clock_went_back(ledger: Ledger) -> None:
    """S16: the id of a call that is in the books counts, however far ahead it seems."""
    key = ledger.key()
    ledger.budget("TENANT", 10**6, period="TOTAL")
    check = await ledger.check(key)
    await ledger.deduct(key, check.request_id)
    set_clock(ledger, -2 * DAY)
    await pass_by(ledger, -2 * DAY)
    assert (await ledger.deduct(key, check.request_id)).duplicate
    assert spent(ledger) == 100


async def test_an_open_call_is_charged_once_after_the_clock_went_back(ledger: Ledger, other: Ledger) -> None:
    key = ledger.key()
    ledger.budget("TENANT", 10**6, period="TOTAL", admission="UPPER_BOUND")
    check = await ledger.check(key)
    set_clock(ledger, -2 * DAY)
    answer = await other.deduct(key, check.request_id)
    assert (answer.request_id, answer.unchecked) == (check.request_id, False)
    assert ledger.sql("SELECT count(*) FROM holds") == [(0,)]
    assert spent(ledger) == 100


async def test_a_call_of_a_moment_in_the_future_is_charged(ledger: Ledger, other: Ledger) -> None:
    """The clock was weeks ahead for a moment: what was checked then holds nothing for weeks."""
    key = ledger.key()
    ledger.budget("TENANT", 150, period="TOTAL", admission="UPPER_BOUND", max_wait_ms=0)
    set_clock(ledger, 40 * DAY)
    check = await ledger.check(key, new_id(later(40 * DAY)))
    set_clock(ledger, 0 * DAY)
    await other.deduct(key, check.request_id, 1, 1)
    assert (await other.check(key)).allowed


async def test_a_call_can_be_released_after_the_clock_went_back(ledger: Ledger) -> None:
    """S17: a release of an open call is taken whatever its id says of the time."""
    key = ledger.key()
    ledger.budget("TENANT", 10**6, period="TOTAL", admission="UPPER_BOUND")
    check = await ledger.check(key)
    set_clock(ledger, -2 * DAY)
    assert (await ledger.release(key, check.request_id)).released
    assert not (await ledger.release(key, check.request_id)).released
    assert ledger.sql("SELECT held_nanos FROM balances") == [(0,)]


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_an_id_that_was_mapped_stays_so(ledger: Ledger, other: Ledger, elsewhere: bool) -> None:
    """S16: mapped for ever, also once the id's own time has come and it could be placed."""
    key = ledger.key()
    ledger.budget("TENANT", 10**6, period="TOTAL")
    request_id = new_id(later(2 * DAY))
    first = await ledger.deduct(key, request_id)
    assert first.request_id != request_id
    set_clock(ledger, 2 * DAY)
    again = await (other if elsewhere else ledger).deduct(key, request_id)
    assert (again.duplicate, again.request_id) == (True, first.request_id)
    assert spent(ledger) == 100


@pytest.mark.parametrize("ahead", [-60 * DAY, 150 * DAY])
async def test_nothing_begins_in_a_month_that_nothing_can_be_written_in(
    ledger: Ledger, ahead: timedelta
) -> None:
    """A Check is refused where its Deduct could not be recorded; another time, when the month is there, it is not."""
    key = ledger.key()
    ledger.budget("TENANT", 10**6, period="TOTAL", admission="UPPER_BOUND")
    await ledger.call(key)
    set_clock(ledger, ahead)
    for _ in range(2):
        with pytest.raises(BursarError) as raised:
            await ledger.check(key, new_id(later(ahead)))
        assert raised.value.reason is Reason.DATABASE_UNAVAILABLE
    assert ledger.sql("SELECT count(*) FROM holds") == [(0,)]
    await ledger.make_months()
    await ledger.deduct(key, (await ledger.check(key, new_id(later(ahead)))).request_id)
    assert spent(ledger) == 200


async def test_a_dead_client_s_hold_ends_after_the_clock_went_back(ledger: Ledger) -> None:
    """S18: a lease ends a lease's time later at the latest, not when the old time comes round again."""
    key = ledger.key()
    ledger.budget("TENANT", 150, period="TOTAL", admission="UPPER_BOUND", max_wait_ms=0)
    await ledger.check(key)
    set_clock(ledger, -DAY)
    await ledger.service.tidy_once()
    assert await ledger.service.sweep_once() == 0
    set_clock(ledger, -DAY + timedelta(minutes=2))
    assert await ledger.service.sweep_once() == 1
    assert ledger.sql("SELECT count(*) FROM holds") == [(0,)]


async def test_requests_of_the_future_are_not_counted_again(ledger: Ledger) -> None:
    """F093: a minute that comes twice begins anew."""
    user_id = ledger.user("alice@example.com", rate_limit=2)
    key = ledger.key(user_id)
    for _ in range(2):
        assert (await ledger.check(key)).allowed
    set_clock(ledger, -DAY)
    await ledger.service.tidy_once()
    assert ledger.sql("SELECT count(*) FROM rate_windows") == [(0,)]


async def test_a_grant_is_not_forgotten_because_the_clock_was_ahead(ledger: Ledger) -> None:
    user_id = ledger.user("alice@example.com")
    key = ledger.key(user_id)
    ledger.budget("USER", 0, user_id=user_id)
    ledger.grant(user_id, 10**6, expires_in=20 * DAY)
    set_clock(ledger, 40 * DAY)
    assert not (await ledger.check(key, new_id(later(40 * DAY)))).allowed
    set_clock(ledger, 0 * DAY)
    await pass_by(ledger, 0 * DAY)
    assert (await ledger.check(key)).allowed


@pytest.mark.parametrize("known", [True, False])
async def test_a_grant_pays_for_a_late_call_of_its_time(ledger: Ledger, other: Ledger, known: bool) -> None:
    """S7, S12: a call of ten minutes ago, made in an outage, on a grant that ended since."""
    user_id = ledger.user("alice@example.com")
    key = ledger.key(user_id)
    ledger.budget("USER", 10**6, user_id=user_id)
    ledger.grant(user_id, 10**6, expires_in=timedelta(minutes=-5))
    ago = later(timedelta(minutes=-10))
    if known:
        set_clock(ledger, timedelta(minutes=-10))
        await ledger.release(key, new_id(ago))
        set_clock(ledger, 0 * DAY)
    await ledger.deduct(key, new_id(ago), start_time=ago)
    assert ledger.sql("SELECT spent_nanos FROM grants") == [(100,)]


async def test_open_calls_go_on_over_a_step_of_an_hour(ledger: Ledger) -> None:
    """Calls before, across and after steps both ways are each charged once, in the period of their Check (S12)."""
    key = ledger.key()
    ledger.budget("TENANT", 10**6, period="TOTAL", admission="UPPER_BOUND")
    for hours in (0, 1, -1, 0):
        ahead = timedelta(hours=hours)
        opened = [(await ledger.check(key, new_id(later(ahead)))).request_id for _ in range(3)]
        set_clock(ledger, ahead + timedelta(hours=1))
        await asyncio.gather(*(ledger.deduct(key, request_id) for request_id in opened))
        set_clock(ledger, ahead)
        for request_id in opened:
            assert (await ledger.deduct(key, request_id)).duplicate
        set_clock(ledger, {0: timedelta(hours=1), 1: timedelta(hours=-1)}.get(hours, 0 * DAY))
    assert spent(ledger) == 1200
