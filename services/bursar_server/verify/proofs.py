"""The audit trail against its hashes, and reports against theirs and the ledger at their cut-off (I9, I10)."""

from collections.abc import AsyncIterator
from datetime import datetime
from uuid import UUID

from bursar_server.audit.model import ZERO_HASH, AuditHead
from bursar_server.chargeback.model import ReportHead
from bursar_server.kit.ids import PLATFORM_TENANT_ID, floor_uuid7
from bursar_server.verify import rules
from bursar_server.verify import statements as sql
from bursar_server.verify.model import EPOCH, FIRST_ID, LAST_ID, Difference, IdRange, Tenant
from bursar_server.verify.work import ID_MARGIN, Work

PAGE_OF_REPORTS = 100
PAGE_OF_TENANTS = 500


class TrailCheck:
    """Proves each tenant's audit trail from its first event to the end of its chain."""

    async def of_tenant(self, work: Work, tenant: Tenant) -> AsyncIterator[Difference]:
        """Yield where the chain is broken. With `since` it is followed from the event before that on."""
        work.show("audit trail")
        books, tenant_id = work.books, tenant.tenant_id
        place = AuditHead(0, ZERO_HASH)
        if work.scope.since:
            place = await books.audit_event_before(tenant_id, work.scope.since) or place
        while True:
            async with books.snapshot():
                events = await books.audit_events(tenant_id, place.sequence, work.sizes.records)
                head = await books.audit_head(tenant_id) or AuditHead(0, ZERO_HASH)
            work.count("audit events", len(events))
            for difference in rules.chain_differences(tenant_id, place, events):
                yield difference
            if events:
                place = AuditHead(events[-1].sequence, events[-1].hash)
            if len(events) < work.sizes.records:
                # The last page and the end of the chain were seen at the same instant.
                for difference in rules.head_differences(tenant_id, head, place):
                    yield difference
                return


class ReportsCheck:
    """Proves each report from its own bytes, and its total from what was posted until its cut-off (S24)."""

    async def of_tenant(self, work: Work, tenant: Tenant) -> AsyncIterator[Difference]:
        """Yield where a tenant's reports are not what they were; those on all tenants come with the platform's own."""
        if tenant.tenant_id == PLATFORM_TENANT_ID and not work.all_tenants:
            return
        work.show("reports")
        after = FIRST_ID
        while True:
            heads = await work.books.reports(
                tenant.tenant_id, work.scope.first_instant, after, PAGE_OF_REPORTS
            )
            for head in heads:
                async for difference in self._of_report(work, head):
                    yield difference
            if len(heads) < PAGE_OF_REPORTS:
                return
            after = heads[-1].report_id

    async def _of_report(self, work: Work, head: ReportHead) -> AsyncIterator[Difference]:
        content = await work.books.report_content(head)
        if content is None:
            return
        work.count("reports", 1)
        for difference in rules.report_differences(head, content):
            yield difference
        first, last = head.start - ID_MARGIN, head.end + ID_MARGIN
        near = (floor_uuid7(max(first, EPOCH)), floor_uuid7(last))
        for ids in (near, (FIRST_ID, LAST_ID)):
            charged = await self._charged(work, head, ids)
            if charged == head.total_nanos:
                return
        yield Difference(
            "I10", head.tenant_id, "report", {"report_id": str(head.report_id)}, "total_nanos", "report", head.total_nanos,
            "entries until its cut-off", charged,
        )  # fmt: skip

    async def _charged(self, work: Work, head: ReportHead, ids: IdRange) -> int:
        """Return what was charged for calls of the report's range until its cut-off; it never changes after."""
        total = 0
        async for tenant_id in self._tenants(work, head):
            parameters: dict[str, UUID | datetime] = {
                "tenant_id": tenant_id, "start": head.start, "end": head.end, "cutoff": head.cutoff_time,
            }  # fmt: skip
            pages = work.books.pages(
                sql.EDGE_OF_ENTRIES, {"tenant_id": tenant_id}, work.sizes.entries, low=ids[0], high=ids[1]
            )
            async for low, high in pages:
                found = await work.books.rows(sql.CHARGED, parameters | {"low": low, "high": high})
                total += int(found[0][0])
        return total

    async def _tenants(self, work: Work, head: ReportHead) -> AsyncIterator[UUID]:
        if head.tenant_id != PLATFORM_TENANT_ID:
            yield head.tenant_id
            return
        yield PLATFORM_TENANT_ID
        after = PLATFORM_TENANT_ID
        while True:
            tenants = await work.books.tenants(after, PAGE_OF_TENANTS)
            for tenant in tenants:
                yield tenant.tenant_id
            if len(tenants) < PAGE_OF_TENANTS:
                return
            after = tenants[-1].tenant_id
