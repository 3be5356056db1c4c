"""Calls on their way through a lane: those that wait for holds, and those whose rows somebody else has locked."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from bursar_server.metering.model import Answer, Call, CheckCall, Waiting
from bursar_server.metering.waits import WaitKey

# How often calls that wait for holds look again: holds of other processes are removed without a word (S10, S13).
LOOK_AGAIN_S = 0.05
# How often the places of those who wait are renewed: well within what they last (waits.PLACE_LASTS).
RENEW_S = 1.0
# How many calls are decided again at a time, and how many of those that wait for one budget: the first stop the others.
MAX_LOOKS = 128
MAX_LOOKS_OF_ONE = 32
# How long a call whose rows are locked by somebody else is tried again, and how often.
LOCKED_PATIENCE_S = 8.0
LOCKED_AGAIN_S = 0.2


@dataclass
class Ticket:
    """A call that waits for its answer. `waiting` is what holds let it wait for."""

    call: Call
    future: "asyncio.Future[Answer]"
    waiting: Waiting | None = None
    wait_ends: float = 0.0
    # Since when its rows are found locked; monotonic seconds.
    locked_since: float = 0.0

    @property
    def abandoned(self) -> bool:
        """Whether it is a Check whose caller went away: it leaves no hold. What was spent is charged all the same."""
        return isinstance(self.call, CheckCall) and self.future.cancelled()

    @property
    def keys(self) -> list[WaitKey]:
        """The places of a waiting call in the queues of its budgets."""
        if not isinstance(self.call, CheckCall):
            return []
        return [(*budget, self.call.request_id) for budget in self.call.waits_for]


class WaitingRoom:
    """Calls that wait for other calls' holds, by the budget they wait for first, in the order of `check_waits`."""

    def __init__(self) -> None:
        self._by_budget: dict[UUID, deque[Ticket]] = {}
        self._look_at = 0.0
        self._renew_at = 0.0

    def __bool__(self) -> bool:
        """Whether anybody waits."""
        return bool(self._by_budget)

    def look_now(self) -> None:
        """Decide again with the next batch: holds were removed."""
        self._look_at = 0.0

    def seconds_to_look(self, now: float) -> float:
        """Return how long it is until those who wait are to be decided again; below 0 when it is time."""
        return self._look_at - now

    def take_over(self, now: float) -> list[Ticket]:
        """Take out those that have waited long enough (they get the answer that says so), and those who went away."""
        over: list[Ticket] = []
        for budget_id, waiters in list(self._by_budget.items()):
            ended = [ticket for ticket in waiters if ticket.wait_ends <= now or ticket.abandoned]
            if ended:
                over += ended
                gone = {id(ticket) for ticket in ended}
                self._put(budget_id, deque(ticket for ticket in waiters if id(ticket) not in gone))
        return over

    def take_due(self, now: float) -> list[Ticket]:
        """Take out those to decide again, the first of each budget; whose turn it is not is first the next time."""
        if now < self._look_at:
            return []
        self._look_at = now + LOOK_AGAIN_S
        due: list[Ticket] = []
        for budget_id in list(self._by_budget):
            room = min(MAX_LOOKS_OF_ONE, MAX_LOOKS - len(due))
            if room <= 0:
                break
            waiters = self._by_budget.pop(budget_id)
            due += [waiters.popleft() for _ in range(min(room, len(waiters)))]
            self._put(budget_id, waiters)
        return due

    def take_renewals(self, now: float) -> list[WaitKey]:
        """Return the places of everybody who waits, when it is time to renew them."""
        if now < self._renew_at:
            return []
        self._renew_at = now + RENEW_S
        return [key for waiters in self._by_budget.values() for ticket in waiters for key in ticket.keys]

    def take_all(self) -> list[Ticket]:
        """Take everybody out."""
        everybody = [ticket for waiters in self._by_budget.values() for ticket in waiters]
        self._by_budget.clear()
        return everybody

    def _put(self, budget_id: UUID, waiters: deque[Ticket]) -> None:
        if waiters:
            self._by_budget[budget_id] = waiters
        else:
            self._by_budget.pop(budget_id, None)

    def keep(
        self, tickets: Sequence[Ticket], results: Sequence[object], now: float
    ) -> list[tuple[Ticket, object]]:
        """Put those that have to wait (again) into their places, and return the answers of the others."""
        answers: list[tuple[Ticket, object]] = []
        back: dict[UUID, list[Ticket]] = {}
        for ticket, result in zip(tickets, results, strict=True):
            if not isinstance(result, Waiting) or not isinstance(ticket.call, CheckCall):
                answers.append((ticket, result))
                continue
            if ticket.waiting is None:
                ends = now + (result.until - result.wait_since).total_seconds()
                deadline = ticket.call.deadline
                ticket.wait_ends = ends if deadline is None else min(ends, deadline)
            ticket.waiting = result
            ticket.locked_since = 0.0
            ticket.call = ticket.call._replace(wait_since=result.wait_since, waits_for=result.waits_for)
            back.setdefault(result.budget_id, []).append(ticket)
        for budget_id, waiters in back.items():
            queued = self._by_budget.get(budget_id, deque())
            # The same order as in `check_waits`: else the first there could be one that is never looked at here.
            self._by_budget[budget_id] = deque(sorted([*waiters, *queued], key=_place))
        return answers


def _place(ticket: Ticket) -> tuple[datetime, UUID]:
    """Return a waiting call's place: since when it waits, then its id."""
    assert ticket.waiting is not None  # noqa: S101  (only calls that wait have a place)
    return ticket.waiting.wait_since, ticket.waiting.answer.request_id


class LockedOut:
    """Calls whose rows somebody else has locked: tried again aside, so that they freeze nobody (design: hot path).

    They are kept by tenant (or what stands for it), and the calls of a tenant that come meanwhile wait behind them.
    """

    def __init__(self) -> None:
        self._by_tenant: dict[object, list[Ticket]] = {}
        self._again_at: dict[object, float] = {}

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._by_tenant)

    def __contains__(self, tenant: object) -> bool:
        """Whether calls of a tenant are set aside."""
        return tenant in self._by_tenant

    def seconds_to_try(self, now: float) -> float:
        """Return how long it is until the first are to be tried again; below 0 when it is time."""
        return min(self._again_at.values()) - now

    def put(self, tenant: object, tickets: Sequence[Ticket], now: float) -> list[Ticket]:
        """Put calls of a tenant aside, and return those that have been tried for long enough."""
        given_up: list[Ticket] = []
        kept: list[Ticket] = []
        for ticket in tickets:
            ticket.locked_since = ticket.locked_since or now
            patient = now - ticket.locked_since <= LOCKED_PATIENCE_S
            (kept if patient else given_up).append(ticket)
        if kept:
            self._again_at.setdefault(tenant, now + LOCKED_AGAIN_S)
            waiting = [*self._by_tenant.get(tenant, ()), *kept]
            self._by_tenant[tenant] = sorted(waiting, key=lambda ticket: ticket.locked_since)
        return given_up

    def take_due(self, now: float, most: int) -> list[Ticket]:
        """Take out the first calls of the tenant that is to be tried again, at most so many."""
        tenant = min(self._again_at, key=self._again_at.__getitem__, default=None)
        if tenant is None or self._again_at[tenant] > now:
            return []
        tickets = self._by_tenant.pop(tenant)
        del self._again_at[tenant]
        tickets, rest = tickets[:most], tickets[most:]
        if rest:
            # Where the first find their rows free, the others follow at once.
            self._by_tenant[tenant], self._again_at[tenant] = rest, now
        return tickets

    def take_all(self) -> list[Ticket]:
        """Take all out."""
        everybody = [ticket for tickets in self._by_tenant.values() for ticket in tickets]
        self._by_tenant.clear()
        self._again_at.clear()
        return everybody


Deliver = Callable[[list[tuple[Ticket, object]]], None]
"""Hands answers to those who wait for them."""


def settle(future: "asyncio.Future[Any]", result: object, loop: asyncio.AbstractEventLoop | None) -> None:
    """Hand one result to who waits for it; the loop is named by a thread other than its own."""
    _hand([(future, result)], loop)


def deliver(answers: list[tuple[Ticket, object]], loop: asyncio.AbstractEventLoop | None) -> None:
    """Hand answers to those who wait, with one wake-up of their loop, which is named by a thread other than its own."""
    _hand([(ticket.future, answer) for ticket, answer in answers], loop)


def _hand(pairs: list[tuple["asyncio.Future[Any]", object]], loop: asyncio.AbstractEventLoop | None) -> None:
    if loop is None:
        _set(pairs)
        return
    with suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(_set, pairs)


def _set(pairs: list[tuple["asyncio.Future[Any]", object]]) -> None:
    for future, answer in pairs:
        if future.done():
            continue
        if isinstance(answer, BaseException):
            future.set_exception(answer)
        else:
            future.set_result(answer)
