"""The SQL of chargeback reports: rows are added and deleted, never changed."""

from collections.abc import Collection
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row, Select, delete, func, insert, select

from bursar_server.chargeback.model import KeyName, Names, ReportHead
from bursar_server.db.connection import Connection
from bursar_server.db.partitions import oldest_partition_start
from bursar_server.db.tables import api_keys, chargeback_reports, ledger_entries, tenants, users
from bursar_server.kit.ids import PLATFORM_TENANT_ID

_HEAD = [column for column in chargeback_reports.c if column.name != "content"]

# The kinds of entries that rollups tie to (S19, S26).
_CHARGES = ("CHARGE", "EXPIRY", "ADJUSTMENT")

oldest_kept = oldest_partition_start


async def charged_nanos(
    conn: Connection, tenant_id: UUID | None, start: datetime, end: datetime, ids: tuple[UUID, UUID] | None
) -> int:
    """Return what the ledger charged a tenant (None: all) for calls of a range.

    With `ids` only entries of operations with ids between these are read: months outside are not looked at.
    """
    table = ledger_entries.c
    query = select(func.coalesce(func.sum(table.amount_nanos), 0)).where(
        table.account == "TENANT",
        table.kind.in_(_CHARGES),
        table.usage_time >= start,
        table.usage_time < end,
    )
    if tenant_id is not None:
        query = query.where(table.tenant_id == tenant_id)
    if ids is not None:
        query = query.where(table.op_id >= ids[0], table.op_id < ids[1])
    return int((await conn.execute(query)).scalar_one())


async def names_of(
    conn: Connection, tenant_ids: Collection[UUID], key_ids: Collection[UUID], user_ids: Collection[UUID]
) -> Names:
    """Return what tenants, keys and users are called now, and the owners of the keys."""
    of_tenants = select(tenants.c.tenant_id, tenants.c.name).where(
        tenants.c.tenant_id == func.any(list(tenant_ids))
    )
    of_keys = select(api_keys.c.api_key_id, api_keys.c.name, api_keys.c.masked_key, api_keys.c.user_id).where(
        api_keys.c.tenant_id == func.any(list(tenant_ids)), api_keys.c.api_key_id == func.any(list(key_ids))
    )
    keys = {
        str(row.api_key_id): KeyName(row.name, row.masked_key, row.user_id)
        for row in await conn.execute(of_keys)
    }
    wanted = {*user_ids, *(key.user_id for key in keys.values() if key.user_id)}
    of_users = select(users.c.user_id, users.c.email).where(
        users.c.tenant_id == func.any(list(tenant_ids)), users.c.user_id == func.any(list(wanted))
    )
    return Names(
        {str(row.tenant_id): row.name for row in await conn.execute(of_tenants)},
        keys,
        {str(row.user_id): row.email for row in await conn.execute(of_users)},
    )


async def preceding(conn: Connection, tenant_id: UUID, start: datetime) -> tuple[ReportHead, bytes] | None:
    """Return the report of the same scope whose end is the last one not after `start`; of several the latest fixed."""
    table = chargeback_reports.c
    query = (
        select(chargeback_reports)
        .where(table.tenant_id == tenant_id, table.to_time <= start)
        .order_by(table.to_time.desc(), table.cutoff_time.desc(), table.report_id.desc())
        .limit(1)
    )
    row = (await conn.execute(query)).one_or_none()
    return (_head(row), bytes(row.content)) if row else None


async def add(conn: Connection, head: ReportHead, content: bytes) -> None:
    """Keep a report."""
    await conn.execute(
        insert(chargeback_reports).values(
            tenant_id=head.tenant_id,
            report_id=head.report_id,
            tenant_name=head.tenant_name,
            from_time=head.start,
            to_time=head.end,
            cutoff_time=head.cutoff_time,
            generated_time=head.generated_time,
            generated_by=head.generated_by,
            total_nanos=head.total_nanos,
            requests=head.requests,
            content_sha256=head.content_sha256,
            content=content,
        )
    )


async def find(conn: Connection, report_id: UUID) -> ReportHead | None:
    """Return a report's head."""
    row = (await conn.execute(_by_id(report_id, *_HEAD))).one_or_none()
    return _head(row) if row else None


async def content_of(conn: Connection, head: ReportHead) -> bytes:
    """Return the bytes of a report that `find` returned in the same transaction; empty if it is gone since."""
    query = _by_id(head.report_id, chargeback_reports.c.content)
    return bytes((await conn.execute(query)).scalar_one_or_none() or b"")


async def remove(conn: Connection, report_id: UUID) -> ReportHead | None:
    """Delete a report for good and return its head, or None where there is none (any more)."""
    statement = (
        delete(chargeback_reports).where(chargeback_reports.c.report_id == report_id).returning(*_HEAD)
    )
    row = (await conn.execute(statement)).one_or_none()
    return _head(row) if row else None


async def list_reports(
    conn: Connection,
    tenant_ids: Collection[UUID] | None,
    *,
    with_all_tenants: bool,
    before: UUID | None,
    limit: int,
) -> list[ReportHead]:
    """Return reports, latest first; `tenant_ids` None is all. Those on all tenants only `with_all_tenants`."""
    table = chargeback_reports.c
    query = select(*_HEAD).order_by(table.report_id.desc()).limit(limit)
    if tenant_ids is not None:
        query = query.where(table.tenant_id.in_(tenant_ids))
    if not with_all_tenants:
        query = query.where(table.tenant_id != PLATFORM_TENANT_ID)
    if before is not None:
        query = query.where(table.report_id < before)
    return [_head(row) for row in await conn.execute(query)]


def _by_id(report_id: UUID, *columns: Any) -> Select[Any]:
    return select(*columns).where(chargeback_reports.c.report_id == report_id)


def _head(row: Row[Any]) -> ReportHead:
    return ReportHead(
        tenant_id=row.tenant_id,
        report_id=row.report_id,
        tenant_name=row.tenant_name,
        start=row.from_time,
        end=row.to_time,
        cutoff_time=row.cutoff_time,
        generated_time=row.generated_time,
        generated_by=row.generated_by,
        total_nanos=row.total_nanos,
        requests=row.requests,
        content_sha256=row.content_sha256,
    )
