"""UsageService on the wire."""

from typing import Any

from connectrpc.request import RequestContext

from bursar.v1 import metering_pb2, usage_pb2
from bursar.v1 import usage_service_pb2 as pb
from bursar_server.db.unit_of_work import UnitOfWork
from bursar_server.kit.errors import invalid
from bursar_server.kit.money import usd_of_nanos
from bursar_server.pricing.model import Usage
from bursar_server.rpc import fields
from bursar_server.rpc.auth import caller_of
from bursar_server.usage.model import CostRecord, Dimension, RecordFilter, Totals
from bursar_server.usage.rules import total_usage
from bursar_server.usage.service import UsageService

Context = RequestContext[Any, Any]

_MAX_NAME_LENGTH = 200
_USAGE_FIELDS = Usage._fields

# What the key of a group calls each dimension.
_KEYS = {
    Dimension.TENANT: "tenant_id",
    Dimension.USER: "user_id",
    Dimension.API_KEY: "api_key_id",
    Dimension.PROVIDER: "provider",
    Dimension.MODEL: "model",
    Dimension.DAY: "day",
}


class UsageRpc:
    """Answers bursar.v1.UsageService."""

    def __init__(self, *, unit_of_work: UnitOfWork, usage: UsageService) -> None:
        self._unit_of_work = unit_of_work
        self._usage = usage

    async def list_cost_records(
        self, request: pb.ListCostRecordsRequest, ctx: Context
    ) -> pb.ListCostRecordsResponse:
        """List calls, newest first."""
        given = fields.time_range(request)
        wanted = RecordFilter(
            request_id=fields.optional_uuid(request.request_id, "request_id"),
            api_key_id=fields.optional_uuid(request.api_key_id, "api_key_id"),
            provider=_name(request.provider, "provider"),
            model=_name(request.model, "model"),
            start=given.start,
            end=given.end,
        )
        user_ref = fields.optional_user_ref(request.user_id, "user_id")
        async with self._unit_of_work.snapshot() as conn:
            found, token = await self._usage.list_records(
                conn,
                caller_of(ctx),
                _name(request.tenant_id, "tenant_id"),
                str(user_ref or ""),
                wanted,
                page_size=request.page_size,
                page_token=request.page_token,
            )
        return pb.ListCostRecordsResponse(records=map(record_message, found), next_page_token=token)

    async def get_cost_summary(
        self, request: pb.GetCostSummaryRequest, ctx: Context
    ) -> pb.GetCostSummaryResponse:
        """Sum a range."""
        given = fields.time_range(request)
        group_by = [_dimension(value, index) for index, value in enumerate(request.group_by)]
        user_ref = fields.optional_user_ref(request.user_id, "user_id")
        async with self._unit_of_work.snapshot() as conn:
            found = await self._usage.summarize(
                conn,
                caller_of(ctx),
                _name(request.tenant_id, "tenant_id"),
                str(user_ref or ""),
                start=given.start,
                end=given.end,
                group_by=group_by,
                api_key_id=fields.optional_uuid(request.api_key_id, "api_key_id"),
                provider=_name(request.provider, "provider"),
                model=_name(request.model, "model"),
            )
        return pb.GetCostSummaryResponse(
            totals=_totals_message(found.totals),
            groups=[
                usage_pb2.CostGroup(
                    key={_KEYS[dimension]: value for dimension, value in group.key.items()},
                    totals=_totals_message(group.totals),
                )
                for group in found.groups
            ],
            from_time=fields.timestamp_of(found.start),
            to_time=fields.timestamp_of(found.end),
            truncated=found.truncated,
        )


def _name(value: str, field: str) -> str:
    return fields.text(value, field, max_length=_MAX_NAME_LENGTH).strip()


def _dimension(value: int, index: int) -> Dimension:
    path = f"group_by[{index}]"
    found = fields.choice(value, usage_pb2.CostDimension, Dimension, path)
    if found is None:
        raise invalid(path, "is needed: one of " + ", ".join(Dimension))
    return found


def _totals_message(totals: Totals) -> usage_pb2.CostTotals:
    return usage_pb2.CostTotals(
        requests=totals.requests,
        input_tokens=totals.input_tokens,
        output_tokens=totals.output_tokens,
        cost_usd=usd_of_nanos(totals.cost_nanos),
        cost_nanos=totals.cost_nanos,
        cache_read_tokens=totals.cache_read_tokens,
        estimated_requests=totals.estimated_requests,
        unpriced_requests=totals.unpriced_requests,
    )


def _usage_message(usage: Usage) -> metering_pb2.Usage:
    return metering_pb2.Usage(**{name: getattr(usage, name) for name in _USAGE_FIELDS})


def record_message(record: CostRecord) -> usage_pb2.CostRecord:
    """Return a call as the protocol says it; the key's secret was never stored, only its mask (F104)."""
    provider_cost = record.provider_cost_nanos
    return usage_pb2.CostRecord(
        request_id=str(record.request_id),
        usage_time=fields.timestamp_of(record.usage_time),
        tenant_id=str(record.tenant_id),
        user_id=str(record.user_id) if record.user_id else "",
        api_key_id=str(record.api_key_id) if record.api_key_id else "",
        masked_key=record.masked_key,
        group_ids=map(str, record.group_ids),
        tags=record.tags,
        provider=record.provider,
        model=record.model,
        service_tier=record.service_tier,
        usage=_usage_message(total_usage(record.items)),
        input_cost_usd=usd_of_nanos(record.input_cost_nanos),
        output_cost_usd=usd_of_nanos(record.output_cost_nanos),
        other_cost_usd=usd_of_nanos(record.other_cost_nanos),
        cost_usd=usd_of_nanos(record.cost_nanos),
        provider_cost_usd=None if provider_cost is None else usd_of_nanos(provider_cost),
        cost_nanos=record.cost_nanos,
        price_id=str(record.price_id) if record.price_id else "",
        estimated=record.estimated,
        unpriced=record.unpriced,
        outcome=f"OUTCOME_{record.outcome or 'UNSPECIFIED'}",
        create_time=fields.timestamp_of(record.posted_time),
        lease_expired=record.lease_expired,
        unchecked=record.unchecked,
        session_id=record.session_id,
        items=[
            metering_pb2.UsageItem(
                model=item.model, service_tier=item.service_tier, usage=_usage_message(item.usage)
            )
            for item in record.items
        ],
        revision=record.revision,
        input_cost_nanos=record.input_cost_nanos,
        output_cost_nanos=record.output_cost_nanos,
        other_cost_nanos=record.other_cost_nanos,
    )
