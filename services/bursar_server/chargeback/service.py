"""Chargeback reports: generated from one snapshot, fixed for ever, proved against the ledger."""

import asyncio
import hashlib
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from enum import StrEnum
from uuid import UUID

from bursar_server.audit.service import AuditService
from bursar_server.chargeback import rules, store
from bursar_server.chargeback.model import EarlierPeriods, Figures, Names, ReportHead
from bursar_server.db.connection import Connection, database_now
from bursar_server.db.unit_of_work import UnitOfWork
from bursar_server.kit import ids, paging
from bursar_server.kit.caller import Caller
from bursar_server.kit.errors import BursarError, Reason, not_found
from bursar_server.kit.money import usd_text
from bursar_server.tenants.service import TenantService
from bursar_server.usage.model import Dimension, Group, SumFilter
from bursar_server.usage.rules import id_bounds
from bursar_server.usage.service import UsageService

MAX_LINE_ITEMS = 100_000
# Adding up the ledger takes a second for some millions of entries. Beyond that `bursar verify` proves it.
MAX_PROVED_REQUESTS = 2_000_000

_ITEM = (Dimension.TENANT, Dimension.USER, Dimension.API_KEY, Dimension.PROVIDER, Dimension.MODEL)
_MONTH = (Dimension.TENANT, Dimension.MONTH)


class DownloadFormat(StrEnum):
    """How a report is downloaded."""

    JSON = "JSON"
    CSV = "CSV"


class ChargebackService:
    """Generates, keeps, lists and deletes reports. Its transactions are its own: a report needs several."""

    def __init__(
        self, *, unit_of_work: UnitOfWork, tenants: TenantService, usage: UsageService, audit: AuditService
    ) -> None:
        self._unit_of_work = unit_of_work
        self._tenants = tenants
        self._usage = usage
        self._audit = audit
        # A report holds two connections for a moment: many at once would wait for one another until the pool gives up.
        self._one_at_a_time = asyncio.Lock()

    async def generate(
        self,
        caller: Caller,
        tenant_ref: str,
        *,
        start: datetime | None = None,
        end: datetime | None = None,
    ) -> ReportHead:
        """Generate a report, keep it, and return its head (F129–F134).

        It covers the tenant named; without one all tenants where the caller speaks for the operator, else the caller's
        own. What was posted until its cut-off is in it, and nothing else: the batches under way are waited for, and new
        ones wait until the snapshot is taken. Raises INTERNAL rather than state a sum that the ledger does not have.
        """
        async with self._unit_of_work.begin() as conn:
            tenant_id, tenant_name = await self._scope(conn, caller, tenant_ref)
            start, end = rules.reported_range(start, end, await database_now(conn))
        async with self._one_at_a_time, AsyncExitStack() as stack:
            snapshot = await stack.enter_async_context(self._unit_of_work.snapshot())
            async with self._unit_of_work.begin() as gate:
                # A new version too: a batch that was evaluated before the lock is evaluated again, and dated after it.
                await self._tenants.begin_change(gate, tenant_id)
                # The snapshot's first statement: from here on it sees what is committed now, and nothing later.
                cutoff = await database_now(snapshot)
            figures = await self._figures(snapshot, tenant_id, start, end)
        report_id = ids.uuid7_at(cutoff)
        content = await asyncio.to_thread(
            rules.content_of, tenant_id, tenant_name, report_id, (start, end), cutoff, caller.actor, figures
        )
        totals = figures.totals
        head = ReportHead(
            tenant_id, report_id, tenant_name, start, end, cutoff, cutoff, caller.actor, totals.cost_nanos,
            totals.requests, hashlib.sha256(content).hexdigest(),
        )  # fmt: skip
        async with self._unit_of_work.begin() as conn:
            await store.add(conn, head, content)
            await self._record(conn, caller, "CHARGEBACK_REPORT_GENERATED", head)
        return head

    async def get(self, caller: Caller, report_id: UUID) -> ReportHead:
        """Return a report's head. Raises NOT_FOUND for one that the caller may not see."""
        async with self._unit_of_work.begin() as conn:
            return _visible(caller, report_id, await store.find(conn, report_id))

    async def list(
        self, caller: Caller, tenant_ref: str, *, page_size: int = 0, page_token: str = ""
    ) -> tuple[Sequence[ReportHead], str]:
        """Return the heads of reports, latest first (F136), and the next page's token."""
        size = paging.page_size_of(page_size)
        async with self._unit_of_work.begin() as conn:
            tenant_ids = await self._tenants.visible(conn, caller, tenant_ref)
            query = ["reports", sorted(map(str, tenant_ids)) if tenant_ids is not None else None]
            token = paging.decode_page_token(page_token, query, 1)
            before = paging.position_uuid(token[0]) if token else None
            found = await store.list_reports(
                conn, tenant_ids, with_all_tenants=caller.is_platform, before=before, limit=size + 1
            )
        return paging.cut_page(found, size, query, lambda head: [str(head.report_id)])

    async def delete(self, caller: Caller, report_id: UUID) -> None:
        """Delete a report; its hash stays in the audit trail (F135, C16)."""
        async with self._unit_of_work.begin() as conn:
            _visible(caller, report_id, await store.find(conn, report_id))
            head = _visible(caller, report_id, await store.remove(conn, report_id))
            await self._record(conn, caller, "CHARGEBACK_REPORT_DELETED", head)

    async def download(
        self, caller: Caller, report_id: UUID, wanted: DownloadFormat
    ) -> tuple[ReportHead, bytes]:
        """Return a report's head and file (F138). Nothing is written, nothing is audited (F140)."""
        async with self._unit_of_work.begin() as conn:
            head = _visible(caller, report_id, await store.find(conn, report_id))
            content = await store.content_of(conn, head)
        if not content:
            raise not_found("report", str(report_id))
        if wanted is DownloadFormat.CSV:
            return head, await asyncio.to_thread(rules.csv_of, content)
        return head, content

    async def _scope(self, conn: Connection, caller: Caller, tenant_ref: str) -> tuple[UUID, str]:
        """Return whose calls to report on, and what that is called; the platform tenant is all of them."""
        if not tenant_ref and caller.is_platform and caller.tenant_ids is None:
            return ids.PLATFORM_TENANT_ID, rules.ALL_TENANTS
        tenant = await self._tenants.resolve(conn, caller, tenant_ref)
        return tenant.tenant_id, tenant.name

    async def _figures(self, conn: Connection, tenant_id: UUID, start: datetime, end: datetime) -> Figures:
        """Return all that the report says, from the snapshot."""
        of_all = tenant_id == ids.PLATFORM_TENANT_ID
        tenant_ids = None if of_all else [tenant_id]
        span = SumFilter(tenant_ids, start, end)
        items = await self._groups(conn, span, _ITEM)
        days = await self._groups(conn, span, (Dimension.DAY,))
        months_start = rules.month_start(end, -rules.MONTHS_REMEMBERED)
        earlier = await self._earlier(conn, tenant_id, tenant_ids, start)
        figures = Figures(
            items=tuple(items),
            days=tuple(days),
            months_start=months_start,
            months=tuple(await self._groups(conn, SumFilter(tenant_ids, months_start, end), _MONTH)),
            names=await self._names(conn, [*items, *(earlier.lines if earlier else ())]),
            proved=await self._proved(conn, None if of_all else tenant_id, start, end, items),
            earlier=earlier,
        )
        if sum(day.totals.cost_nanos for day in days) != figures.totals.cost_nanos:
            raise BursarError(Reason.INTERNAL, "the sums of the days differ from those of the line items")
        return figures

    async def _groups(
        self, conn: Connection, span: SumFilter, dimensions: Sequence[Dimension]
    ) -> Sequence[Group]:
        found = await self._usage.groups(conn, span, dimensions, MAX_LINE_ITEMS + 1)
        if len(found) > MAX_LINE_ITEMS:
            raise BursarError(
                Reason.REQUEST_TOO_LARGE,
                f"more than {MAX_LINE_ITEMS} line items: report on one tenant, or on a shorter range",
            )
        return found

    async def _earlier(
        self, conn: Connection, tenant_id: UUID, tenant_ids: Sequence[UUID] | None, start: datetime
    ) -> EarlierPeriods | None:
        """Return what was posted since the preceding report for what it stated; None where there is no such report."""
        found = await store.preceding(conn, tenant_id, start)
        if found is None:
            return None
        head, content = found
        months_start, stated = rules.months_stated(content)
        now = await self._groups(conn, SumFilter(tenant_ids, months_start, head.end), _MONTH)
        return EarlierPeriods(head.report_id, head.end, head.cutoff_time, rules.difference(now, stated))

    async def _names(self, conn: Connection, groups: Sequence[Group]) -> Names:
        def named(dimension: Dimension) -> set[UUID]:
            return {UUID(value) for group in groups if (value := group.key.get(dimension))}

        return await store.names_of(
            conn, named(Dimension.TENANT), named(Dimension.API_KEY), named(Dimension.USER)
        )

    async def _proved(
        self,
        conn: Connection,
        tenant_id: UUID | None,
        start: datetime,
        end: datetime,
        items: Sequence[Group],
    ) -> bool:
        """Return True where the ledger's charges come to the same sum, False where it cannot be asked.

        It is not asked of very many calls, nor of months whose entries are dropped. Raises INTERNAL where the sums
        differ: a wrong bill is not printed.
        """
        oldest = await store.oldest_kept(conn)
        requests = sum(item.totals.requests for item in items)
        if requests > MAX_PROVED_REQUESTS or oldest is None or start < oldest.astimezone(UTC):
            return False
        total = sum(item.totals.cost_nanos for item in items)
        low, high = id_bounds(start, end)
        near = (low, high) if low is not None and high is not None else None
        if await store.charged_nanos(conn, tenant_id, start, end, near) == total:
            return True
        # An operation's id can be far from its call's time (a Deduct that came much later): look everywhere.
        charged = await store.charged_nanos(conn, tenant_id, start, end, None)
        if charged != total:
            raise BursarError(
                Reason.INTERNAL,
                f"the rollups say {usd_text(total)} USD and the ledger {usd_text(charged)} USD: no report;"
                " `bursar verify` says where they differ",
            )
        return True

    async def _record(self, conn: Connection, caller: Caller, action: str, head: ReportHead) -> None:
        details: dict[str, object] = {
            "report_id": str(head.report_id),
            "from": head.start.astimezone(UTC).isoformat(),
            "to": head.end.astimezone(UTC).isoformat(),
            "cutoff_time": head.cutoff_time.astimezone(UTC).isoformat(),
            "total_usd": usd_text(head.total_nanos),
            "content_sha256": head.content_sha256,
        }
        await self._audit.record(
            conn,
            head.tenant_id,
            action,
            actor=caller.actor,
            resource=f"chargeback_report/{head.report_id}",
            details=details,
        )


def _visible(caller: Caller, report_id: UUID, head: ReportHead | None) -> ReportHead:
    """Return the head, or raise NOT_FOUND: a report on all tenants is the operator's."""
    if head is None or not caller.may_see(head.tenant_id):
        raise not_found("report", str(report_id))
    if head.tenant_id == ids.PLATFORM_TENANT_ID and not caller.is_platform:
        raise not_found("report", str(report_id))
    return head
