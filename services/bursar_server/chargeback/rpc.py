"""ChargebackService on the wire."""

from collections.abc import AsyncIterator
from typing import Any

from connectrpc.request import RequestContext

from bursar.v1 import chargeback_service_pb2 as pb
from bursar.v1 import report_pb2
from bursar_server.chargeback.model import ReportHead
from bursar_server.chargeback.rules import filename_of, pieces_of
from bursar_server.chargeback.service import ChargebackService, DownloadFormat
from bursar_server.kit.ids import PLATFORM_TENANT_ID
from bursar_server.kit.money import usd_of_nanos
from bursar_server.rpc import fields
from bursar_server.rpc.auth import caller_of

Context = RequestContext[Any, Any]

_MAX_NAME_LENGTH = 200
_CONTENT_TYPES = {
    DownloadFormat.JSON: "application/json",
    DownloadFormat.CSV: "text/csv; charset=utf-8",
}


class ChargebackRpc:
    """Answers bursar.v1.ChargebackService."""

    def __init__(self, *, chargeback: ChargebackService) -> None:
        self._chargeback = chargeback

    async def generate_report(
        self, request: pb.ChargebackServiceGenerateReportRequest, ctx: Context
    ) -> pb.ChargebackServiceGenerateReportResponse:
        """Generate a report."""
        given = fields.time_range(request)
        tenant_ref = _tenant(request.tenant_id)
        head = await self._chargeback.generate(caller_of(ctx), tenant_ref, start=given.start, end=given.end)
        return pb.ChargebackServiceGenerateReportResponse(report=_message(head))

    async def get_report(
        self, request: pb.ChargebackServiceGetReportRequest, ctx: Context
    ) -> pb.ChargebackServiceGetReportResponse:
        """Return a report's head."""
        head = await self._chargeback.get(caller_of(ctx), fields.uuid(request.report_id, "report_id"))
        return pb.ChargebackServiceGetReportResponse(report=_message(head))

    async def list_reports(
        self, request: pb.ChargebackServiceListReportsRequest, ctx: Context
    ) -> pb.ChargebackServiceListReportsResponse:
        """List reports, latest first."""
        found, token = await self._chargeback.list(
            caller_of(ctx),
            _tenant(request.tenant_id),
            page_size=request.page_size,
            page_token=request.page_token,
        )
        return pb.ChargebackServiceListReportsResponse(reports=map(_message, found), next_page_token=token)

    async def delete_report(
        self, request: pb.ChargebackServiceDeleteReportRequest, ctx: Context
    ) -> pb.ChargebackServiceDeleteReportResponse:
        """Delete a report."""
        await self._chargeback.delete(caller_of(ctx), fields.uuid(request.report_id, "report_id"))
        return pb.ChargebackServiceDeleteReportResponse()

    async def download_report(
        self, request: pb.ChargebackServiceDownloadReportRequest, ctx: Context
    ) -> AsyncIterator[pb.ChargebackServiceDownloadReportResponse]:
        """Stream a report's file; its name and type come with the first piece."""
        report_id = fields.uuid(request.report_id, "report_id")
        chosen = fields.choice(request.format, report_pb2.ReportFormat, DownloadFormat, "format")
        wanted = chosen or DownloadFormat.JSON
        head, data = await self._chargeback.download(caller_of(ctx), report_id, wanted)
        filename, content_type = filename_of(head, wanted.lower()), _CONTENT_TYPES[wanted]
        for piece in pieces_of(data):
            yield pb.ChargebackServiceDownloadReportResponse(
                data=piece, filename=filename, content_type=content_type
            )
            filename = content_type = ""


def _tenant(value: str) -> str:
    return fields.text(value, "tenant_id", max_length=_MAX_NAME_LENGTH).strip()


def _message(head: ReportHead) -> report_pb2.ChargebackReport:
    return report_pb2.ChargebackReport(
        report_id=str(head.report_id),
        tenant_id="" if head.tenant_id == PLATFORM_TENANT_ID else str(head.tenant_id),
        from_time=fields.timestamp_of(head.start),
        to_time=fields.timestamp_of(head.end),
        generated_time=fields.timestamp_of(head.generated_time),
        generated_by=head.generated_by,
        total_usd=usd_of_nanos(head.total_nanos),
        content_sha256=head.content_sha256,
        cutoff_time=fields.timestamp_of(head.cutoff_time),
        total_nanos=head.total_nanos,
        requests=head.requests,
        tenant_name=head.tenant_name,
    )
