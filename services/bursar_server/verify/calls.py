"""Calls against their entries, their prices and one another (I5 to I8, I11)."""

from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from uuid import UUID

from bursar_server.kit.ids import floor_uuid7
from bursar_server.verify import rules
from bursar_server.verify import statements as sql
from bursar_server.verify.model import Difference, IdRange, StoredRecord, Tenant
from bursar_server.verify.rollups import RecordSums
from bursar_server.verify.store import Prices, Row
from bursar_server.verify.work import Work

# A hold that crossed the end of its call goes when its lease ends; the sweep is given that long.
SWEPT_WITHIN = timedelta(minutes=10)


class CallsCheck:
    """Proves every call by itself, page by page; a lane commits all of a call's effects together.

    The same pass adds up what the records come to, for the sums that are compared with it at the end (I4).
    """

    async def of_tenant(self, work: Work, tenant: Tenant) -> AsyncIterator[Difference]:
        """Yield the differences in a tenant's calls, then those between its records and its sums."""
        sums = RecordSums(work, tenant, Prices(work.books))
        if work.records_kept_from is not None:
            async for difference in self._calls(work, tenant, sums):
                yield difference
        async for difference in sums.differences():
            yield difference
        async for difference in self._ended_calls(work, tenant):
            yield difference

    async def _calls(self, work: Work, tenant: Tenant, sums: RecordSums) -> AsyncIterator[Difference]:
        low = floor_uuid7(max(sums.first_id_time, work.records_kept_from or sums.first_id_time))
        work.show("calls")
        owner = {"tenant_id": tenant.tenant_id}
        async for ids in work.books.pages(sql.EDGE_OF_RECORDS, owner, work.sizes.records, low=low):
            for difference in await self._page(work, tenant, ids, sums):
                yield difference

    async def _page(self, work: Work, tenant: Tenant, ids: IdRange, sums: RecordSums) -> list[Difference]:
        parameters = {"tenant_id": tenant.tenant_id, "low": ids[0], "high": ids[1]}
        async with work.books.snapshot():
            records, unreadable = await work.books.records(tenant.tenant_id, ids)
            found = {
                statement: await work.books.rows(statement, parameters)
                for statement in (
                    sql.POSTINGS_DIFFER,
                    sql.COSTS_NOT_BORNE,
                    sql.PARTS_DIFFER,
                    sql.REVISIONS_DIFFER,
                    sql.RELEASES_THAT_COST,
                )
            }
            await sums.prices.load(
                {price_id for record in records for price_id in rules.named_prices(record)}
            )
        await sums.add(records)
        work.count("calls", sum(record.revision == 0 for record in records))
        return list(_differences(tenant.tenant_id, records, unreadable, found, sums.prices))

    async def _ended_calls(self, work: Work, tenant: Tenant) -> AsyncIterator[Difference]:
        parameters = {"tenant_id": tenant.tenant_id, "grace": SWEPT_WITHIN}
        for request_id, lease_expire_time, revision, source in await work.books.rows(
            sql.HOLDS_OF_ENDED_CALLS, parameters
        ):
            yield Difference(
                "I11", tenant.tenant_id, "hold", {"request_id": str(request_id)}, "hold", "holds",
                f"held until {rules.instant_text(lease_expire_time)}", "records", f"ended by revision {revision} ({source})",
            )  # fmt: skip


def _differences(
    tenant_id: UUID,
    records: list[StoredRecord],
    unreadable: list[tuple[UUID, int, str]],
    found: dict[str, list[Row]],
    prices: Prices,
) -> Iterator[Difference]:
    for row in found[sql.POSTINGS_DIFFER]:
        yield from _posting_differences(tenant_id, row)
    for row in found[sql.COSTS_NOT_BORNE]:
        yield from _cost_differences(tenant_id, row)
    for request_id, revision, cost, parts in found[sql.PARTS_DIFFER]:
        ids = _call(request_id, revision)
        yield Difference(
            "I6", tenant_id, "record", ids, "cost_nanos", "record", cost, "its parts", int(parts)
        )
    for record in records:
        yield from rules.record_differences(tenant_id, record, prices.get)
    for request_id, revision, why in unreadable:
        ids = _call(request_id, revision)
        yield Difference(
            "I7", tenant_id, "record", ids, "items", "record", why, "Bursar", "a list of priced items"
        )
    for request_id, revisions, deducts in found[sql.REVISIONS_DIFFER]:
        ids = {"request_id": str(request_id)}
        whole = list(range(len(revisions)))
        if revisions != whole:
            yield Difference(
                "I8",
                tenant_id,
                "call",
                ids,
                "revisions",
                "records",
                _listed(revisions),
                "counting",
                _listed(whole),
            )
        if deducts > 1:
            yield Difference("I8", tenant_id, "call", ids, "Deducts", "records", deducts, "at most", 1)
    for request_id, revision, cost, tokens in found[sql.RELEASES_THAT_COST]:
        ids = _call(request_id, revision)
        for figure, amount in (("cost_nanos", cost), ("tokens", tokens)):
            if amount:
                yield Difference("I8", tenant_id, "release", ids, figure, "record", amount, "a release", 0)


def _posting_differences(tenant_id: UUID, row: Row) -> Iterator[Difference]:
    """Yield what a record says of one account, and what was posted to it."""
    request_id, revision, account, owner, account_id, period_key, *figures = row
    said_nanos, said_tokens, said_time, kinds, nanos, tokens, posted_time, kind = figures
    ids = _call(request_id, revision) | {"account": f"{account} {account_id}"}
    if period_key:
        ids["period_key"] = period_key
    if owner != tenant_id:
        ids["account_tenant_id"] = str(owner)

    def differs(figure: str, said: int | str, proved: int | str) -> Difference:
        return Difference("I5", tenant_id, "call", ids, figure, "record", said, "entry", proved)

    if said_nanos is None or nanos is None:
        said = "none" if said_nanos is None else int(said_nanos)
        yield differs("posted_nanos", said, "none" if nanos is None else int(nanos))
        return
    if said_nanos != nanos:
        yield differs("posted_nanos", int(said_nanos), int(nanos))
    if said_tokens != tokens:
        yield differs("posted_tokens", int(said_tokens), int(tokens))
    if said_time != posted_time:
        yield differs("usage_time", rules.instant_text(said_time), rules.instant_text(posted_time))
    if kind not in kinds:
        yield differs("kind", " or ".join(kinds), kind)


def _cost_differences(tenant_id: UUID, row: Row) -> Iterator[Difference]:
    """Yield where a budget did not bear what the call cost (S14)."""
    (
        request_id,
        revision,
        owner,
        budget_id,
        period_key,
        user_scoped,
        nanos,
        on_grants,
        cost,
        tokens,
        all_tokens,
    ) = row
    ids = _call(request_id, revision) | {"budget_id": str(budget_id), "period_key": period_key}
    if owner != tenant_id:
        ids["account_tenant_id"] = str(owner)
    borne = int(nanos or 0) + (int(on_grants) if user_scoped else 0)
    by = "grants and budget" if user_scoped else "budget"
    if borne != cost:
        yield Difference("I5", tenant_id, "call", ids, "borne_nanos", by, borne, "its cost", cost)
    if tokens != all_tokens:
        yield Difference(
            "I5", tenant_id, "call", ids, "borne_tokens", "budget", int(tokens or 0), "its tokens", all_tokens
        )


def _call(request_id: UUID, revision: int) -> dict[str, str]:
    return {"request_id": str(request_id), "revision": str(revision)}


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"
