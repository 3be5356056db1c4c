"""Balances, grants and charges against the entries, and what is held against the open holds (I1 to I4, I12)."""

from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import UUID

from bursar_server.kit.ids import PLATFORM_TENANT_ID, floor_uuid7
from bursar_server.kit.periods import ceil_quarter_hour
from bursar_server.verify import statements as sql
from bursar_server.verify.model import EPOCH, FIRST_ID, Difference, Tenant
from bursar_server.verify.store import TooLongError
from bursar_server.verify.work import ID_MARGIN, NEAR, SETTLED, Work

_WORDS = {
    "BUDGET": ("I1", "balance", "budget_id", "spent"),
    "GRANT": ("I3", "grant", "grant_id", "spent"),
    "QUARTER": ("I4", "quarter-hour", "", "charged"),
}


class AccountsCheck:
    """Proves what is spent from the entries.

    Entries are summed page by page, each page in a snapshot of its own, and so are balances. Where both agree all is
    well: an entry never changes, and is never taken away. Accounts that were used meanwhile differ; for those the sum
    is brought up to date in the one snapshot that their balances are read from. What still differs is summed once more
    as a whole, in one snapshot too, so that a call that was posted very late is no difference.
    """

    async def of_tenant(self, work: Work, tenant: Tenant) -> AsyncIterator[Difference]:
        """Yield the differences of a tenant; those of budgets for everybody come with the platform's own tenant."""
        await self._sum_up(work, tenant)
        if tenant.tenant_id != PLATFORM_TENANT_ID or work.all_tenants:
            async for difference in self._look_again(work, tenant):
                yield difference
        async for difference in self._holds(work, tenant):
            yield difference

    async def _sum_up(self, work: Work, tenant: Tenant) -> None:
        books, parameters = work.books, self._parameters(work, tenant)
        await books.rows(sql.REMEMBER_SUMMED, parameters)
        low = floor_uuid7(max(EPOCH, work.scope.first_instant - ID_MARGIN)) if work.scope.since else FIRST_ID
        work.show("entries")
        async for start, end in books.pages(sql.EDGE_OF_ENTRIES, parameters, work.sizes.entries, low=low):
            found = await books.rows(sql.ADD_ENTRIES, parameters | {"low": start, "high": end})
            work.count("entries", int(found[0][0]))
        work.show("balances")
        for edge, say, what in (
            (sql.EDGE_OF_BALANCES, sql.SAY_BALANCES, "balances"),
            (sql.EDGE_OF_GRANTS, sql.SAY_GRANTS, "grants"),
        ):
            async for start, end in books.pages(edge, parameters, work.sizes.rows):
                found = await books.rows(say, parameters | {"low": start, "high": end})
                work.count(what, int(found[0][0]))
        async for first, last in work.days(tenant):
            span = {"start": max(first, ceil_quarter_hour(work.scope.first_instant)), "end": last}
            await books.rows(sql.SAY_QUARTERS, parameters | span)
        if work.scope.since:
            await books.rows(sql.LEAVE_OUT_EARLIER, parameters)
        await books.rows(sql.FORGET_EQUAL_ACCOUNTS, parameters)

    def _parameters(self, work: Work, tenant: Tenant) -> dict[str, object]:
        return {
            "tenant_id": tenant.tenant_id,
            "until": work.now - SETTLED,
            "near": floor_uuid7(work.started - SETTLED - NEAR),
            "since": ceil_quarter_hour(work.scope.first_instant),
        }

    async def _look_again(self, work: Work, tenant: Tenant) -> AsyncIterator[Difference]:
        """Look at what seems to differ once more, first at what was posted since, then at everything."""
        of_all = tenant.tenant_id == PLATFORM_TENANT_ID
        parameters = self._parameters(work, tenant)
        later = sql.ADD_LATER_ENTRIES_OF_ALL if of_all else sql.ADD_LATER_ENTRIES
        everything = sql.ADD_ALL_ENTRIES_OF_ALL if of_all else sql.ADD_ALL_ENTRIES
        note = ""
        for statements in ((later,), (sql.START_AGAIN, everything)):
            if not (await work.books.rows(sql.ANY_ACCOUNTS, parameters))[0][0]:
                return
            work.show("entries again")
            try:
                async with work.books.snapshot():
                    for statement in (*sql.SAY_AGAIN, *statements, sql.FORGET_EQUAL_ACCOUNTS):
                        await work.books.rows(statement, parameters)
                note = ""
            except TooLongError:
                note = "not confirmed: one snapshot was too short to sum everything"
        async for difference in self._left(work, tenant, note):
            yield difference

    async def _left(self, work: Work, tenant: Tenant, note: str) -> AsyncIterator[Difference]:
        last: dict[str, object] = {"kind": "", "account_id": FIRST_ID, "period_key": ""}
        while True:
            page = {"tenant_id": tenant.tenant_id, "limit": work.sizes.rows}
            found = await work.books.rows(sql.ACCOUNTS_LEFT, page | last)
            for kind, account_id, period_key, known, *figures in found:
                for difference in _account_differences(
                    tenant.tenant_id, kind, account_id, period_key, known, figures
                ):
                    yield _noted(difference, note)
            if len(found) < work.sizes.rows:
                return
            last = {"kind": found[-1][0], "account_id": found[-1][1], "period_key": found[-1][2]}

    async def _holds(self, work: Work, tenant: Tenant) -> AsyncIterator[Difference]:
        of_all = tenant.tenant_id == PLATFORM_TENANT_ID
        if of_all and not work.all_tenants:
            return
        work.show("holds")
        owner = {"tenant_id": tenant.tenant_id}
        async with work.books.snapshot():
            work.count("open holds", (await work.books.rows(sql.OPEN_HOLDS, owner))[0][0])
            balances = await work.books.rows(
                sql.HELD_ON_BALANCES_BY_ALL if of_all else sql.HELD_ON_BALANCES, owner
            )
            grants = await work.books.rows(sql.HELD_ON_GRANTS, owner)
            overdrawn = await work.books.rows(sql.OVERDRAWN_GRANTS, owner)
        for budget_id, period_key, nanos, tokens, leg_nanos, leg_tokens in balances:
            ids = {"budget_id": str(budget_id), "period_key": period_key}
            for unit, said, proved in (("nanos", nanos, leg_nanos), ("tokens", tokens, leg_tokens)):
                if said != proved:
                    yield Difference(
                        "I2", tenant.tenant_id, "balance", ids, f"held_{unit}", "balance", int(said), "open holds",
                        int(proved),
                    )  # fmt: skip
        for grant_id, held, legs in grants:
            yield Difference(
                "I3", tenant.tenant_id, "grant", {"grant_id": str(grant_id)}, "held_nanos", "grant", int(held), "open holds",
                int(legs),
            )  # fmt: skip
        for grant_id, spent, amount in overdrawn:
            yield Difference(
                "I3", tenant.tenant_id, "grant", {"grant_id": str(grant_id)}, "spent_nanos", "grant", spent,
                "its whole amount", amount, "" if spent > amount else "spent is negative",
            )  # fmt: skip


def _account_differences(
    tenant_id: UUID, kind: str, account_id: UUID, period_key: str, known: bool, figures: list[object]
) -> list[Difference]:
    invariant, subject, id_name, verb = _WORDS.get(kind, ("I12", "account", "account_id", "posted"))
    if kind == "QUARTER" and account_id == tenant_id:
        ids = {"quarter_hour": period_key}
    else:
        ids = {id_name or "account_id": str(account_id)} | ({"period_key": period_key} if period_key else {})
    said_nanos, said_tokens, nanos, tokens = (int(str(figure)) for figure in figures)
    if not known:
        return [
            Difference(
                "I12", tenant_id, subject, ids, "account", "ledger", f"entries of {nanos} nanos", "accounts", "none such"
            )
        ]  # fmt: skip
    by = "rollup" if kind == "QUARTER" else subject
    pairs = (("nanos", said_nanos, nanos), ("tokens", said_tokens, tokens))
    return [
        Difference(invariant, tenant_id, subject, ids, f"{verb}_{unit}", by, said, "entries", proved)
        for unit, said, proved in pairs
        if said != proved
    ]


def _noted(difference: Difference, note: str) -> Difference:
    return replace(difference, note=note) if note else difference
