"""Changes of budgets, grants and people between calls, as steps of a sequence that hypothesis makes."""

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from bursar_server.bootstrap import Rooms, build_rooms
from bursar_server.budgets.model import (
    Admission,
    Budget,
    BudgetDraft,
    Enforcement,
    LeaseExpiry,
    Scope,
    ScopeKind,
)
from bursar_server.db.connection import Connection
from bursar_server.db.engine import build_engine
from bursar_server.kit.clock import SystemClock
from bursar_server.kit.periods import PeriodKind
from bursar_server.metering.model import PrincipalRef
from support.admin import OPERATOR
from support.database import DatabaseServer
from support.interleavings import PRICES, BudgetPlan, GrantPlan, Model, Person
from support.metering import PLATFORM, TENANT, Ledger, ledger_on

SCOPES = ("GLOBAL", "TENANT", "GROUP", "USER", "KEY", "TAG")
ADMISSIONS = (Admission.ANY_REMAINING, Admission.UPPER_BOUND, Admission.EXPECTED)


def zones() -> list[str]:
    """Return time zones in which no day begins while a test runs."""
    names = ("UTC", "Asia/Tokyo", "America/Los_Angeles", "Asia/Kolkata", "Pacific/Auckland")
    around = [datetime.now(UTC) + timedelta(minutes=minutes) for minutes in (-20, 20)]
    return [name for name in names if len({time.astimezone(ZoneInfo(name)).date() for time in around}) == 1]


class Changes(RuleBasedStateMachine):
    """Two control planes on one database, and what the admin side changes there; the model changes with it."""

    server: DatabaseServer
    template: str

    def __init__(self) -> None:
        super().__init__()
        self.database = self.server.create(template=self.template)
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.model = Model()
        self.ids: list[UUID] = []
        self.whose: dict[UUID, int] = {}
        self.said: dict[UUID, tuple[Any, ...]] = {}
        self.people: list[tuple[PrincipalRef, Person]] = []
        self.zones = zones()
        self.runner.run(self._start(self.server.url(self.database)))

    async def _start(self, url: str) -> None:
        engine = build_engine(url, pool_size=2)
        self.stack.push_async_callback(engine.dispose)
        self.rooms: Rooms = build_rooms(engine, SystemClock())
        self.planes: list[Ledger] = [await self.stack.enter_async_context(ledger_on(url)) for _ in range(2)]

    def teardown(self) -> None:
        self.runner.run(self.stack.aclose())
        self.runner.close()
        self.server.drop(self.database)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    def change(self, what: Any) -> Any:
        """Do something in a transaction of the admin side."""

        async def work() -> Any:
            async with self.rooms.unit_of_work.begin() as conn:
                return await what(conn)

        return self.run(work())

    @initialize()
    def begin(self) -> None:
        ledger = self.planes[0]
        acme = ledger.tenant("acme")
        alice, bob = ledger.user("alice@example.com"), ledger.user("bob@example.com")
        carol = ledger.user("carol@example.com", tenant_id=acme)
        company = ledger.group("company")
        team = ledger.group("team", alice, bob, parent=company)
        self.model.groups[team] = {alice, bob}
        self.model.above[team] = company
        self.users, self.groups, self.acme = [alice, bob], [company, team], acme
        for number, (user, tenant, tags) in enumerate(
            ((alice, TENANT, {}), (bob, TENANT, {"team": "core"}), (None, TENANT, {}), (carol, acme, {}))
        ):
            ref = ledger.key(user, secret=f"bur_{number}", tenant_id=tenant, default_tags=tags)
            sha = ref.api_key_sha256
            [(key_id,)] = ledger.sql("SELECT api_key_id FROM api_keys WHERE key_sha256 = %s", sha)
            self.people.append((ref, Person(tenant, user, key_id, tuple(tags.items()))))
        for model, (of_input, of_output) in list(PRICES.items())[1:]:
            ledger.price(model, {"input": int(of_input * 1_000_000), "output": int(of_output * 1_000_000)})

    @rule(
        scope=st.sampled_from(SCOPES), which=st.integers(0, 3), limit=st.integers(0, 400), tokens=st.booleans(),
        admission=st.sampled_from(ADMISSIONS), mood=st.sampled_from(("HARD", "HARD", "SOFT", "SHADOW")),
        period=st.sampled_from((PeriodKind.TOTAL, PeriodKind.DAILY, PeriodKind.MONTHLY)), zone=st.integers(0, 4),
        releases=st.booleans(),
    )  # fmt: skip
    def make_budget(
        self, scope: str, which: int, limit: int, tokens: bool, admission: Admission, mood: str,
        period: PeriodKind, zone: int, releases: bool,
    ) -> None:  # fmt: skip
        """S4: it begins with what its scope spent in the period."""
        _, person = self.people[which]
        subject: Any = {
            "USER": person.user_id, "KEY": person.api_key_id, "GROUP": self.groups[which % 2], "TAG": ("team", "core"),
        }.get(scope)  # fmt: skip
        if scope == "USER" and subject is None:
            return
        tenant_id = {"GLOBAL": PLATFORM, "GROUP": TENANT}.get(scope, person.tenant_id)
        name = self.zones[zone % len(self.zones)]
        fields = {"USER": "user_id", "KEY": "api_key_id", "GROUP": "group_id"}
        where = {fields[scope]: subject} if scope in fields else {}
        if scope == "TAG":
            where = {"tag_key": subject[0], "tag_value": subject[1]}
        draft = BudgetDraft(
            scope=Scope(ScopeKind(scope), **where), period=period, timezone=name,
            limit_nanos=None if tokens else limit, limit_tokens=limit if tokens else None, admission=admission,
            enforcement=Enforcement.SOFT if mood == "SOFT" else Enforcement.HARD, shadow=mood == "SHADOW",
            on_lease_expiry=LeaseExpiry.RELEASE if releases else LeaseExpiry.CHARGE_ESTIMATE,
        )  # fmt: skip
        made: Budget = self.change(lambda conn: self.rooms.budgets.create(conn, OPERATOR, tenant_id, draft))
        plan = BudgetPlan(
            made.budget_id, tenant_id, scope, subject, limit, tokens, admission.value, mood != "SOFT", mood == "SHADOW",
            period.value, name, 1, releases,
        )  # fmt: skip
        self.model.budgets[made.budget_id] = plan
        self.model.open_balance(plan, datetime.now(UTC))

    def _budget(self, which: int) -> BudgetPlan | None:
        kept = [budget for budget in self.model.budgets.values() if not budget.deleted]
        return kept[which % len(kept)] if kept else None

    def _update(self, plan: BudgetPlan, draft: BudgetDraft, **changed: Any) -> None:
        after = replace(plan, **changed)
        definition = ("period", "zone", "anchor")
        redefined = any(getattr(after, name) != getattr(plan, name) for name in definition)
        if redefined or (after.enabled and not plan.enabled):
            after.revision += 1
        made: Budget = self.change(
            lambda conn: self.rooms.budgets.update(conn, OPERATOR, plan.budget_id, plan.version, draft)
        )
        assert made.definition_revision == after.revision
        after.version = made.version
        self.model.budgets[plan.budget_id] = after
        if after.enabled and after.revision != plan.revision:
            self.model.open_balance(after, datetime.now(UTC))

    @rule(which=st.integers(0, 9), limit=st.integers(0, 1_000))
    def move_limit(self, which: int, limit: int) -> None:
        """S13: a limit moves up or down; it binds with the next call."""
        if plan := self._budget(which):
            draft = BudgetDraft(limit_tokens=limit) if plan.tokens else BudgetDraft(limit_nanos=limit)
            self._update(plan, draft, limit=limit)

    @rule(which=st.integers(0, 9))
    def turn_on_or_off(self, which: int) -> None:
        """S4: a disabled budget neither counts nor denies; enabling it opens it anew."""
        if plan := self._budget(which):
            self._update(plan, BudgetDraft(enabled=not plan.enabled), enabled=not plan.enabled)

    @rule(which=st.integers(0, 9), zone=st.integers(0, 4), anchor=st.integers(1, 28), daily=st.booleans())
    def move_period(self, which: int, zone: int, anchor: int, daily: bool) -> None:
        """S4, S12: another zone, anchor or period is another definition; open calls stay in the old one."""
        if plan := self._budget(which):
            name, period = (
                self.zones[zone % len(self.zones)],
                PeriodKind.DAILY if daily else PeriodKind.MONTHLY,
            )
            draft = BudgetDraft(timezone=name, period=period, anchor_day=None if daily else anchor)
            self._update(plan, draft, zone=name, period=period.value, anchor=1 if daily else anchor)

    @rule(which=st.integers(0, 9))
    def delete_budget(self, which: int) -> None:
        if plan := self._budget(which):
            self.change(lambda conn: self.rooms.budgets.delete(conn, OPERATOR, plan.budget_id))
            plan.deleted = True

    @rule(user=st.integers(0, 1))
    def reset(self, user: int) -> None:
        """S19: spent is 0; what is held and what is recorded stays."""
        user_id = self.users[user]
        if not any(b.subject == user_id and b.enabled and not b.deleted for b in self.model.budgets.values()):
            return

        async def work(conn: Connection) -> None:
            found = await self.rooms.users.resolve(conn, OPERATOR, str(user_id))
            await self.rooms.budgets.reset(conn, OPERATOR, found)

        self.change(work)
        self.model.reset(user_id, datetime.now(UTC))

    @rule(
        user=st.integers(0, 1), amount=st.integers(1, 200), days=st.integers(1, 3), later=st.booleans(),
    )  # fmt: skip
    def give_grant(self, user: int, amount: int, days: int, later: bool) -> None:
        """S6, S7: the earliest expiry first, ties by creation; one that begins later is not there yet."""
        start = datetime.now(UTC) + timedelta(hours=6) if later else None
        end = (datetime.now(UTC) + timedelta(days=days)).replace(hour=0, minute=0, second=0, microsecond=0)

        async def work(conn: Connection) -> Any:
            found = await self.rooms.users.resolve(conn, OPERATOR, str(self.users[user]))
            return await self.rooms.grants.create(
                conn,
                OPERATOR,
                found,
                amount_nanos=amount,
                starts_at=start,
                expires_at=end + timedelta(days=1),
            )

        made = self.change(work)
        rank = (days, len(self.model.grants))
        self.model.grants[made.grant_id] = GrantPlan(
            made.grant_id, self.users[user], amount, rank, made.starts_at
        )

    @rule(which=st.integers(0, 9))
    def revoke_grant(self, which: int) -> None:
        """S8: what open calls hold of it stays theirs."""
        kept = [grant for grant in self.model.grants.values() if not grant.revoked]
        if kept:
            grant = kept[which % len(kept)]
            self.change(lambda conn: self.rooms.grants.revoke(conn, OPERATOR, grant.grant_id))
            grant.revoked = True

    @rule(members=st.sets(st.integers(0, 1)), group=st.integers(0, 1))
    def move_members(self, members: set[int], group: int) -> None:
        """S1: open calls keep the groups they were made in."""
        group_id, user_ids = self.groups[group], {self.users[number] for number in members}
        self.change(lambda conn: self.rooms.groups.set_members(conn, OPERATOR, group_id, user_ids))
        self.model.groups[group_id] = user_ids

    @rule(user=st.integers(0, 1))
    def switch_user(self, user: int) -> None:
        """F098: who is deactivated is denied, and what it used is charged."""
        user_id = self.users[user]
        switch = (
            self.rooms.users.reactivate if user_id in self.model.inactive else self.rooms.users.deactivate
        )
        self.change(lambda conn: switch(conn, OPERATOR, str(user_id)))
        self.model.inactive ^= {user_id}
