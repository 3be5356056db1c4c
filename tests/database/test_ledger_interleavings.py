"""Any sequence of calls and changes, through real lanes and services, against a ledger kept with plain dictionaries.

The suite tries the same 30 sequences, of 25 steps each, every time. BURSAR_TEST_INTERLEAVINGS=300 tries so many random
ones instead, and shortens what it finds.
"""

import asyncio
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule, run_state_machine_as_test

from bursar_server.kit.errors import BursarError, Reason
from bursar_server.metering import history
from bursar_server.metering.model import DeductAnswer, DeductItem, ExpireCall, PrincipalRef, ReleaseCall
from bursar_server.pricing.model import Usage
from support.database import DatabaseServer
from support.interleaving_changes import Changes
from support.interleavings import PRICES, UNPRICED, Person, Told
from support.metering import TENANT, Ledger, new_id

MODELS = (*PRICES, UNPRICED)
LEASE = timedelta(minutes=1)
NOBODY = PrincipalRef()
# How long ago a call without a hold was sent; the first one does not say.
STARTS = (None, timedelta(0), timedelta(hours=5), timedelta(hours=26), timedelta(days=20))

small = st.integers(0, 60)
one_call = st.tuples(
    st.sampled_from(("check", "check", "deduct", "deduct", "again", "release", "expire")),
    st.integers(0, 7),  # which call: 0 is a new one, else so many calls ago
    st.integers(0, 7),  # who says so: mostly its own principal
    st.integers(0, len(MODELS) - 1),
    small,
    small,
    st.sampled_from((0, 1, 20, 60, 2_000, None)),
    st.integers(0, len(STARTS) - 1),
)


class Interleavings(Changes):
    """Calls, in any order and any batches, between any changes; every answer and all the books are foreseen."""

    @rule(calls=st.lists(one_call, min_size=1, max_size=6), plane=st.integers(0, 1))
    def calls_together(self, calls: list[tuple[Any, ...]], plane: int) -> None:
        """Ask several things at once: they are answered in their order, whatever batches they fall into."""
        self.tenants_of_id = {
            request_id: {tenant_id for tenant_id, known in self.model.calls if known == request_id}
            for request_id in self.ids
        }
        self.unnamed: set[UUID] = set()
        asked = [self._asked(self.planes[plane], *call) for call in calls]
        asked = [call for call in asked if call is not None]

        async def together() -> list[Any]:
            return await asyncio.gather(*(work for work, _ in asked), return_exceptions=True)

        for answer, (_, expect) in zip(self.run(together()), asked, strict=True):
            expect(answer)

    def _asked(self, ledger: Ledger, kind: str, ago: int, who: int, *rest: Any) -> Any:
        """Return what to ask, and what compares its answer with the model; None for what has no one answer."""
        if ago == 0 or not self.ids:
            self.ids.append(new_id())
            self.whose[self.ids[-1]] = who % len(self.people)
        request_id = self.ids[max(-ago, -len(self.ids))] if ago else self.ids[-1]
        ref, person = self.people[self.whose[request_id] if who < 5 else who % len(self.people)]
        owners = self.tenants_of_id.setdefault(request_id, set())
        if kind == "again" and request_id in self.said:
            ref, person, *_ = self.said[request_id]
        elif kind in ("deduct", "again", "release") and who == 4:
            ref = NOBODY
        if ref == NOBODY:
            # It is the call of whoever has it by then; with two tenants to choose from there is no one answer.
            self.unnamed.add(request_id)
            if len(owners) > 1:
                return None
        else:
            owners.add(person.tenant_id)
            if request_id in self.unnamed and (person.tenant_id, request_id) not in self.model.calls:
                return None
        if kind == "again" and request_id in self.said:
            return self._deduct(ledger, request_id, *self.said[request_id])
        model, inputs, outputs, most, start = rest
        if kind == "check":
            return self._check(ledger, request_id, ref, person, (MODELS[model], inputs, most))
        if kind == "release":
            return self._release(ledger, request_id, ref, person)
        if kind == "expire":
            return self._expire(ledger, request_id, person)
        ago_s = STARTS[start]
        self.said[request_id] = (
            ref, person, (MODELS[model], inputs, outputs), datetime.now(UTC) - ago_s if ago_s is not None else None,
        )  # fmt: skip
        return self._deduct(ledger, request_id, *self.said[request_id])

    def _check(
        self, ledger: Ledger, request_id: UUID, ref: PrincipalRef, person: Person, asked: tuple[Any, ...]
    ) -> Any:
        model, inputs, most = asked
        given = {"model": model, "input_tokens_estimate": inputs, "max_output_tokens": most}

        def expect(answer: Any) -> None:
            now = datetime.now(UTC)
            if not isinstance(answer, BaseException) and answer.allowed and answer.hold_expire_time:
                now = answer.hold_expire_time - LEASE
            told = self.model.check(person, request_id, (model, inputs, most), now)
            if told.word == "REUSED":
                assert _reason(answer) is Reason.REQUEST_ID_REUSED
                return
            codes = tuple(sorted(denial.code for denial in answer.denials))
            assert ("DENY" if codes else "ALLOW", codes) == (told.word, told.codes)

        return ledger.check(ref, request_id, **given), expect

    def _deduct(
        self,
        ledger: Ledger,
        request_id: UUID,
        ref: PrincipalRef,
        person: Person,
        used: tuple[str, int, int],
        start: datetime | None,
    ) -> Any:
        item = DeductItem(used[0], "", Usage(input_tokens=used[1], output_tokens=used[2]))

        def expect(answer: Any) -> None:
            at = start or datetime.now(UTC)
            if isinstance(answer, DeductAnswer) and answer.record and answer.unchecked:
                at = answer.record.usage_time
                assert start in (None, at)
            whose = self._owner(request_id, ref, person)
            self._compare(answer, self.model.deduct(whose, request_id, used, (used, start), at), used)

        return ledger.deduct(ref, request_id, items=(item,), start_time=start), expect

    def _compare(self, answer: Any, told: Told, used: tuple[str, int, int]) -> None:
        if told.word == "REUSED":
            assert _reason(answer) is Reason.REQUEST_ID_REUSED
            return
        assert isinstance(answer, DeductAnswer), answer
        assert (answer.cost.total_nanos, answer.duplicate) == (told.cost, told.word == "DUPLICATE")
        postings = {(line.account_id, line.nanos) for line in answer.postings}
        assert postings == set(told.postings)
        assert answer.unchecked == told.unchecked
        assert answer.unpriced == (used[0] == UNPRICED)
        assert told.overage in (None, answer.overage_nanos)

    def _owner(self, request_id: UUID, ref: PrincipalRef, person: Person) -> Person:
        """Return who a call counts for that is named by nothing but its id: its own tenant, else the default one."""
        if ref != NOBODY:
            return person
        owners = {tenant_id for tenant_id, known in self.model.calls if known == request_id}
        return Person(owners.pop() if owners else TENANT)

    def _release(self, ledger: Ledger, request_id: UUID, ref: PrincipalRef, person: Person) -> Any:
        def expect(answer: Any) -> None:
            whose = self._owner(request_id, ref, person)
            assert answer.released == self.model.release(whose, request_id, datetime.now(UTC))

        return ledger.service.release(ReleaseCall(request_id, ref, None)), expect

    def _expire(self, ledger: Ledger, request_id: UUID, person: Person) -> Any:
        ledger.sql(
            "UPDATE holds SET lease_expire_time = now() - interval '1 second' WHERE request_id = %s",
            request_id,
        )
        for (_, known), call in self.model.calls.items():
            if known == request_id:
                call.lease_ended = True

        def expect(answer: Any) -> None:
            expired = self.model.expire(person.tenant_id, request_id, datetime.now(UTC))
            assert answer.released == expired

        return ledger.service._submit(ExpireCall(person.tenant_id, request_id)), expect

    @rule(plane=st.integers(0, 1))
    def renew_and_sweep(self, plane: int) -> None:
        """S9: what is renewed does not expire."""
        service = self.planes[plane].service
        self.run(service.renew(self.ids[-1_000:], None))
        for call in self.model.calls.values():
            call.lease_ended = False
        assert self.run(service.sweep_once()) == 0

    @invariant()
    def the_books_are_right(self) -> None:
        """S26, S14, S10: the database's own sums agree, and say what the model says."""
        ledger = self.planes[0]
        ledger.assert_books()
        rows = ledger.sql(
            "SELECT budget_id, period_key, spent_nanos, held_nanos, spent_tokens, held_tokens FROM balances"
        )
        stored = {(row[0], row[1]): list(row[2:]) for row in rows if any(row[2:])}
        assert stored == {key: amounts for key, amounts in self.model.balances.items() if any(amounts)}
        grants = {
            row[0]: row[1:] for row in ledger.sql("SELECT grant_id, spent_nanos, held_nanos FROM grants")
        }
        assert grants == {grant.grant_id: (grant.spent, grant.held) for grant in self.model.grants.values()}
        calls = self.model.calls.items()
        assert set(ledger.sql("SELECT tenant_id, request_id FROM holds")) == {
            key for key, call in calls if call.state == "OPEN"
        }
        costs = ledger.sql(
            "SELECT tenant_id, request_id, sum(cost_nanos)::bigint, sum(input_tokens + output_tokens)::bigint"
            " FROM usage_records GROUP BY 1, 2"
        )
        assert {row[:2]: row[2:] for row in costs} == {
            key: (call.cost, call.tokens) for key, call in calls if call.state != "OPEN"
        }


def _reason(answer: Any) -> Reason | None:
    return answer.reason if isinstance(answer, BursarError) else None


@pytest.fixture
def without_history() -> Iterator[None]:
    """What calls usually cost is of no account here: EXPECTED holds by the price list."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(history, "FEWEST_SAMPLES", 10**9)
        yield


@pytest.mark.usefixtures("without_history")
def test_the_books_are_right_after_any_sequence(
    database_server: DatabaseServer, template_database: str
) -> None:
    """S1–S19, S26, C03: calls, repeats, expiries, grants, budgets and periods in any order, on two control planes."""

    class Machine(Interleavings):
        server, template = database_server, template_database

    campaign = os.environ.get("BURSAR_TEST_INTERLEAVINGS")
    quick = [phase for phase in Phase if phase not in (Phase.shrink, Phase.explain)]
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=int(campaign or "30"),
            stateful_step_count=25,
            deadline=None,
            derandomize=not campaign,
            # A failure is told at once; only a campaign takes the minutes that it takes to shorten it.
            phases=list(Phase) if campaign else quick,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
