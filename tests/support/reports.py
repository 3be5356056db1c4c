"""Asking for chargeback reports, and what stands behind them."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any
from uuid import UUID

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import text

from bursar.v1 import chargeback_service_pb2 as pb
from bursar.v1 import report_pb2
from bursar_server.audit.service import AuditService
from bursar_server.chargeback.rpc import ChargebackRpc
from bursar_server.chargeback.service import ChargebackService
from bursar_server.db.unit_of_work import UnitOfWork
from bursar_server.kit.caller import Caller, Role
from bursar_server.kit.clock import Clock
from bursar_server.kit.errors import BursarError
from bursar_server.kit.ids import DEFAULT_TENANT_ID
from bursar_server.tenants.service import TenantService
from support.called import called_by
from support.spending import add_key, add_tenant, add_user, charge, usage_service, utc

OTHER_TENANT = UUID("00000000-0000-7000-8000-0000000000aa")
ALICE, KEY = UUID("00000000-0000-7000-8000-0000000000a1"), UUID("00000000-0000-7000-8000-0000000000c0")
OPERATOR = Caller(Role.BILLING_ADMIN, "operator")
ADMIN = Caller(Role.TENANT_ADMIN, "admin@example.com", frozenset({DEFAULT_TENANT_ID}))
STRANGER = Caller(Role.TENANT_ADMIN, "stranger@example.com", frozenset({OTHER_TENANT}))
MARCH, APRIL, MAY, JUNE = utc(2026, 3, 1), utc(2026, 4, 1), utc(2026, 5, 1), utc(2026, 6, 1)


async def chargeback(unit_of_work: UnitOfWork, clock: Clock) -> ChargebackRpc:
    """Return the service on a database with a second tenant, a user and a key of hers."""
    audit = AuditService(clock=clock)
    tenants = TenantService(audit=audit, clock=clock)
    async with unit_of_work.begin() as conn:
        await add_tenant(conn, OTHER_TENANT, "Acme")
        await add_user(conn, ALICE, "alice@example.com")
        await add_key(conn, KEY, "ci", user_id=ALICE)
    usage = usage_service(tenants, audit, clock)
    return ChargebackRpc(
        chargeback=ChargebackService(unit_of_work=unit_of_work, tenants=tenants, usage=usage, audit=audit)
    )


def stamp(instant: datetime) -> Timestamp:
    return Timestamp(seconds=int(instant.timestamp()))


async def generate(
    reports: ChargebackRpc,
    caller: Caller = ADMIN,
    start: datetime | None = APRIL,
    end: datetime | None = MAY,
    **more: Any,
) -> report_pb2.ChargebackReport:
    request = pb.ChargebackServiceGenerateReportRequest(
        from_time=stamp(start) if start else None, to_time=stamp(end) if end else None, **more
    )
    return (await reports.generate_report(request, called_by(caller))).report


async def download(
    reports: ChargebackRpc, report_id: str, chosen: str = "REPORT_FORMAT_JSON", caller: Caller = ADMIN
) -> list[pb.ChargebackServiceDownloadReportResponse]:
    request = pb.ChargebackServiceDownloadReportRequest(report_id=report_id, format=chosen)
    return [piece async for piece in reports.download_report(request, called_by(caller))]


async def content(reports: ChargebackRpc, report_id: str, caller: Caller = ADMIN) -> dict[str, Any]:
    pieces = await download(reports, report_id, caller=caller)
    found: dict[str, Any] = json.loads(b"".join(piece.data for piece in pieces))
    return found


async def listed(reports: ChargebackRpc, caller: Caller = ADMIN, **asked: Any) -> list[str]:
    request = pb.ChargebackServiceListReportsRequest(**asked)
    return [report.report_id for report in (await reports.list_reports(request, called_by(caller))).reports]


async def rows(unit_of_work: UnitOfWork, statement: str) -> list[Any]:
    async with unit_of_work.begin() as conn:
        return list(await conn.execute(text(statement)))


async def refused(awaitable: Any) -> BursarError:
    with pytest.raises(BursarError) as caught:
        await awaitable
    return caught.value


async def spend(unit_of_work: UnitOfWork, at: datetime, nanos: int, **more: Any) -> UUID:
    async with unit_of_work.begin() as conn:
        return await charge(conn, at, nanos, **more)
