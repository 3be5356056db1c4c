"""What was used and what it cost, for whoever may know."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from uuid import UUID

from bursar_server.db.connection import Connection, database_now
from bursar_server.kit import paging
from bursar_server.kit.caller import Caller
from bursar_server.kit.errors import invalid
from bursar_server.tenants.service import TenantService
from bursar_server.usage import rules, store
from bursar_server.usage.model import CostRecord, Dimension, Group, RecordFilter, SumFilter, Summary, Totals
from bursar_server.users.service import UserService

MAX_GROUPS = 10_000
MAX_DIMENSIONS = 4


class UsageService:
    """Lists calls and sums them up. Every method takes the connection of a transaction; a snapshot will do."""

    def __init__(self, *, tenants: TenantService, users: UserService) -> None:
        self._tenants = tenants
        self._users = users

    async def list_records(
        self,
        conn: Connection,
        caller: Caller,
        tenant_ref: str,
        user_ref: str,
        wanted: RecordFilter,
        *,
        page_size: int = 0,
        page_token: str = "",
    ) -> tuple[Sequence[CostRecord], str]:
        """Return calls newest first, corrections included, and the next page's token (F102, F122).

        `wanted` says all but whose calls; those are the tenant's that is named, else all that the caller may see.
        """
        size = paging.page_size_of(page_size)
        tenant_ids = await self._tenants.visible(conn, caller, tenant_ref)
        user_id = await self._user(conn, caller, user_ref, tenant_ref)
        wanted = replace(wanted, tenant_ids=tenant_ids, user_id=user_id)
        query = ["records", sorted(map(str, tenant_ids)) if tenant_ids is not None else None, *_asked(wanted)]
        token = paging.decode_page_token(page_token, query, 2)
        after = (paging.position_uuid(token[0]), paging.position_uuid(token[1])) if token else None
        bounds = rules.id_bounds(wanted.start, wanted.end)
        found = await store.newest_calls(conn, wanted, bounds, after=after, limit=size + 1)
        calls, next_token = paging.cut_page(found, size, query, lambda call: [str(call[0]), str(call[1])])
        revisions = await store.revisions_of(conn, calls)
        return [rules.folded(revisions[call]) for call in calls], next_token

    async def summarize(
        self,
        conn: Connection,
        caller: Caller,
        tenant_ref: str,
        user_ref: str,
        *,
        start: datetime | None = None,
        end: datetime | None = None,
        group_by: Sequence[Dimension] = (),
        api_key_id: UUID | None = None,
        provider: str = "",
        model: str = "",
    ) -> Summary:
        """Return sums over a range, widened to quarter-hours; by default the current month in UTC (F187, S25)."""
        if len(group_by) > MAX_DIMENSIONS:
            raise invalid("group_by", f"must have at most {MAX_DIMENSIONS} entries")
        if len(set(group_by)) != len(group_by):
            raise invalid("group_by", "must not have the same entry twice")
        tenant_ids = await self._tenants.visible(conn, caller, tenant_ref)
        user_id = await self._user(conn, caller, user_ref, tenant_ref)
        start, end = rules.summed_range(start, end, await database_now(conn))
        wanted = SumFilter(tenant_ids, start, end, user_id, api_key_id, provider, model)
        totals = await self.totals(conn, wanted)
        if not group_by:
            return Summary(start, end, totals)
        groups = await self.groups(conn, wanted, group_by, MAX_GROUPS + 1)
        return Summary(start, end, totals, tuple(groups[:MAX_GROUPS]), len(groups) > MAX_GROUPS)

    async def totals(self, conn: Connection, wanted: SumFilter) -> Totals:
        """Return the sums of everything in a range; zeros where there is nothing."""
        found = await store.sums(conn, wanted, rules.segments(wanted.start, wanted.end), (), 1)
        return found[0].totals if found else Totals()

    async def groups(
        self, conn: Connection, wanted: SumFilter, dimensions: Sequence[Dimension], limit: int
    ) -> Sequence[Group]:
        """Return the sums of a range by group, the costliest first, at most `limit`."""
        return await store.sums(conn, wanted, rules.segments(wanted.start, wanted.end), dimensions, limit)

    async def _user(self, conn: Connection, caller: Caller, user_ref: str, tenant_ref: str) -> UUID | None:
        if not user_ref:
            return None
        return (await self._users.resolve(conn, caller, user_ref, tenant_ref)).user_id


def _asked(wanted: RecordFilter) -> list[object]:
    return [
        wanted.request_id,
        wanted.user_id,
        wanted.api_key_id,
        wanted.provider,
        wanted.model,
        wanted.start,
        wanted.end,
    ]
