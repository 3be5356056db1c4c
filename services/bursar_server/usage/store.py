"""The SQL of usage: records by their ids, sums from the rollups alone."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Date,
    Row,
    Select,
    String,
    Table,
    and_,
    cast,
    exists,
    func,
    literal,
    literal_column,
    or_,
    select,
    true,
    tuple_,
    union_all,
)

from bursar_server.db.connection import Connection
from bursar_server.db.tables import ROLLUP_COUNTERS, rollup_days, rollup_quarters, tenants, usage_records
from bursar_server.kit.ids import PLATFORM_TENANT_ID
from bursar_server.pricing.model import Usage
from bursar_server.usage.model import (
    NOBODY,
    CostRecord,
    Dimension,
    Group,
    RecordFilter,
    RecordItem,
    Segments,
    SumFilter,
    Totals,
)

IdBounds = tuple[UUID | None, UUID | None]
"""Between which request ids to look, half-open; None is unbounded."""

CallKey = tuple[UUID, UUID]
"""Request and tenant: the order of a list, downwards."""


async def newest_calls(
    conn: Connection, wanted: RecordFilter, ids: IdBounds, *, after: CallKey | None, limit: int
) -> list[CallKey]:
    """Return calls newest first. Of a call with corrections, the latest revision is what filters look at.

    Each tenant's index is read from its end: as quick for all tenants as for one. What was only ever released, and so
    never sent to a provider, is no call.
    """
    latest, later = usage_records.alias("latest"), usage_records.alias("later")
    superseded = exists().where(
        later.c.tenant_id == latest.c.tenant_id,
        later.c.request_id == latest.c.request_id,
        later.c.revision == latest.c.revision + 1,
    )
    of_tenant = (
        select(latest.c.request_id)
        .where(latest.c.tenant_id == tenants.c.tenant_id, ~superseded, *_record_conditions(latest, wanted))
        .where(or_(latest.c.source != "RELEASE", latest.c.revision > 0))
    )
    if ids[0] is not None:
        of_tenant = of_tenant.where(latest.c.request_id >= ids[0])
    if ids[1] is not None:
        of_tenant = of_tenant.where(latest.c.request_id < ids[1])
    if after is not None:
        position = tuple_(latest.c.request_id, latest.c.tenant_id)
        # The first condition is the index's; the second keeps the tenants of one id apart.
        of_tenant = of_tenant.where(latest.c.request_id <= after[0], position < tuple_(*after))
    page = of_tenant.order_by(latest.c.request_id.desc()).limit(limit).lateral("page")
    query = select(page.c.request_id, tenants.c.tenant_id).select_from(tenants.join(page, true()))
    query = query.where(tenants.c.tenant_id != PLATFORM_TENANT_ID)
    if wanted.tenant_ids is not None:
        query = query.where(tenants.c.tenant_id.in_(wanted.tenant_ids))
    query = query.order_by(page.c.request_id.desc(), tenants.c.tenant_id.desc()).limit(limit)
    return [(row.request_id, row.tenant_id) for row in await conn.execute(query)]


def _record_conditions(table: Any, wanted: RecordFilter) -> list[ColumnElement[bool]]:
    columns = ("request_id", "user_id", "api_key_id", "provider", "model")
    conditions = [table.c[name] == value for name in columns if (value := getattr(wanted, name))]
    if wanted.start is not None:
        conditions.append(table.c.usage_time >= wanted.start)
    if wanted.end is not None:
        conditions.append(table.c.usage_time < wanted.end)
    return conditions


async def revisions_of(conn: Connection, calls: Sequence[CallKey]) -> dict[CallKey, list[CostRecord]]:
    """Return all revisions of some calls."""
    found: dict[CallKey, list[CostRecord]] = {call: [] for call in calls}
    if calls:
        table = usage_records.c
        ids = [request_id for request_id, _ in calls]
        query = select(usage_records).where(
            tuple_(table.request_id, table.tenant_id).in_(calls),
            # So that no month is read in which none of them can be.
            table.request_id.between(min(ids), max(ids)),
        )
        for row in await conn.execute(query):
            found[(row.request_id, row.tenant_id)].append(_record(row))
    return found


def _record(row: Row[Any]) -> CostRecord:
    return CostRecord(
        tenant_id=row.tenant_id,
        request_id=row.request_id,
        revision=row.revision,
        usage_time=row.usage_time,
        posted_time=row.posted_time,
        api_key_id=row.api_key_id,
        user_id=row.user_id,
        masked_key=row.masked_key,
        group_ids=tuple(row.group_ids),
        tags=row.tags,
        session_id=row.session_id,
        provider=row.provider,
        model=row.model,
        service_tier=row.service_tier,
        outcome=row.outcome,
        items=tuple(
            RecordItem(item["model"], item["service_tier"], Usage(**item["usage"])) for item in row.items
        ),
        price_id=row.price_id,
        input_cost_nanos=row.input_cost_nanos,
        output_cost_nanos=row.output_cost_nanos,
        other_cost_nanos=row.other_cost_nanos,
        cost_nanos=row.cost_nanos,
        provider_cost_nanos=row.provider_cost_nanos,
        estimated=row.estimated,
        unpriced=row.unpriced,
        lease_expired=row.lease_expired,
        unchecked=row.unchecked,
    )


async def sums(
    conn: Connection, wanted: SumFilter, segments: Segments, dimensions: Sequence[Dimension], limit: int
) -> list[Group]:
    """Return sums by group from the rollups, the costliest first; without dimensions one group, or none."""
    parts = _parts(wanted, segments)
    if not parts:
        return []
    rows = union_all(*parts).subquery("rows")
    columns = {
        Dimension.TENANT: rows.c.tenant_id,
        Dimension.USER: rows.c.user_id,
        Dimension.API_KEY: rows.c.api_key_id,
        Dimension.PROVIDER: rows.c.provider,
        Dimension.MODEL: rows.c.model,
        Dimension.DAY: rows.c.day,
        Dimension.MONTH: func.to_char(rows.c.day, literal_column("'YYYY-MM'")),
    }
    keys = [cast(columns[dimension], String).label(dimension.lower()) for dimension in dimensions]
    cost = func.sum(rows.c.cost_nanos)
    counted = [func.sum(rows.c[name]) for name in ROLLUP_COUNTERS]
    selected: list[ColumnElement[Any]] = [*keys, *counted]
    # A correction that moved a call elsewhere leaves zeros behind.
    query: Select[Any] = select(*selected).having(or_(*(counter != 0 for counter in counted)))
    query = query.group_by(*keys).order_by(cost.desc(), *keys).limit(limit)
    return [
        Group(
            {dimension: _key_text(row[index]) for index, dimension in enumerate(dimensions)},
            Totals(*map(int, row[len(dimensions) :])),
        )
        for row in await conn.execute(query)
    ]


def _key_text(value: str) -> str:
    return "" if value == str(NOBODY) else value


def _parts(wanted: SumFilter, segments: Segments) -> list[Select[Any]]:
    parts = []
    if segments.days is not None:
        bucket = rollup_days.c.bucket_day
        inside = and_(bucket >= segments.days[0], bucket < segments.days[1])
        parts.append(_part(rollup_days, bucket, inside, wanted))
    for start, end in segments.quarters:
        time = rollup_quarters.c.bucket_time
        day = cast(func.timezone(literal("UTC"), time), Date)
        parts.append(_part(rollup_quarters, day, and_(time >= start, time < end), wanted))
    return parts


def _part(
    table: Table, day: ColumnElement[Any], inside: ColumnElement[bool], wanted: SumFilter
) -> Select[Any]:
    c = table.c
    query = select(c.tenant_id, day.label("day"), c.user_id, c.api_key_id, c.provider, c.model).add_columns(
        *(c[name] for name in ROLLUP_COUNTERS)
    )
    query = query.where(inside)
    if wanted.tenant_ids is not None:
        query = query.where(c.tenant_id.in_(wanted.tenant_ids))
    if wanted.user_id is not None:
        query = query.where(c.user_id == wanted.user_id)
    if wanted.api_key_id is not None:
        query = query.where(c.api_key_id == wanted.api_key_id)
    if wanted.provider:
        query = query.where(c.provider == wanted.provider)
    if wanted.model:
        query = query.where(c.model == wanted.model)
    return query
