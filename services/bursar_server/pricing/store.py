"""The SQL of prices. Rows are added and ended, never rewritten: records name them."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Row, bindparam, case, func, literal, or_, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import JSONB

from bursar_server.db.connection import Connection
from bursar_server.db.tables import prices, tenants
from bursar_server.kit.ids import PLATFORM_TENANT_ID
from bursar_server.pricing.model import Price, PriceSource, PriceTier

# Where the platform tenant's row remembers what the catalogue was made of.
_FINGERPRINT = "price_catalogue"

_STRENGTH = {PriceSource.TENANT: "0", PriceSource.PLATFORM: "1", PriceSource.CATALOGUE: "2"}

Position = tuple[str, str, str, str, datetime, UUID]
"""Where a price stands in a list: strength, pattern, provider, tier, effective time, id."""

_ADD = text(
    "INSERT INTO prices (tenant_id, price_id, source, model_pattern, provider, service_tier, rates, tiers,"
    " max_output_tokens, effective_time, create_time, update_time, version)"
    " SELECT tenant_id, price_id, source, model_pattern, provider, service_tier, rates, tiers,"
    " max_output_tokens, effective_time, create_time, update_time, version FROM jsonb_to_recordset(:rows)"
    " AS r(tenant_id uuid, price_id uuid, source text, model_pattern text, provider text, service_tier text,"
    " rates jsonb, tiers jsonb, max_output_tokens bigint, effective_time timestamptz, create_time timestamptz,"
    " update_time timestamptz, version bigint)"
    # The id of a catalogue row is made of its content: one that ended and comes back is the same row.
    " ON CONFLICT (tenant_id, price_id) DO UPDATE SET delete_time = NULL, update_time = excluded.update_time"
).bindparams(bindparam("rows", type_=JSONB))


@dataclass(frozen=True, slots=True)
class PriceFilter:
    """Which prices to list; empty texts and None are any. The platform's are always among them."""

    tenant_ids: Collection[UUID] = ()
    provider: str = ""
    model: str = ""
    source: PriceSource | None = None


async def add(conn: Connection, new: Iterable[Price]) -> None:
    """Add prices, however many, in one statement."""
    rows = [_columns(price) for price in new]
    if rows:
        await conn.execute(_ADD, {"rows": rows})


async def end(conn: Connection, price_ids: Collection[UUID], now: datetime) -> None:
    """End prices: they are picked and listed no more, and stay for the records that name them."""
    if price_ids:
        await conn.execute(
            update(prices)
            .where(prices.c.price_id == func.any(list(price_ids)), prices.c.delete_time.is_(None))
            .values(delete_time=now, update_time=now, version=prices.c.version + 1)
        )


async def lock(conn: Connection, price_id: UUID) -> Price | None:
    """Return a price that has not ended, locked until the transaction ends."""
    query = select(prices).where(prices.c.price_id == price_id, prices.c.delete_time.is_(None))
    row = (await conn.execute(query.with_for_update())).one_or_none()
    return _price(row) if row else None


async def list_prices(
    conn: Connection, wanted: PriceFilter, *, after: Position | None, limit: int
) -> list[Price]:
    """Return prices, strongest source first, then by pattern, provider, tier and effective time."""
    query = select(prices).where(
        prices.c.delete_time.is_(None),
        prices.c.tenant_id.in_([PLATFORM_TENANT_ID, *wanted.tenant_ids]),
    )
    if wanted.provider:
        query = query.where(prices.c.provider == wanted.provider)
    if wanted.model:
        query = query.where(_matches(wanted.model))
    if wanted.source is not None:
        query = query.where(prices.c.source == wanted.source.value)
    strength = case({source.value: rank for source, rank in _STRENGTH.items()}, value=prices.c.source)
    table = prices.c
    order = (
        strength,
        table.model_pattern,
        table.provider,
        table.service_tier,
        table.effective_time,
        table.price_id,
    )
    if after is not None:
        query = query.where(tuple_(*order) > tuple_(*after))
    return [_price(row) for row in await conn.execute(query.order_by(*order).limit(limit))]


def position_of(price: Price) -> Position:
    """Return where a price stands in a list."""
    return (
        _STRENGTH[price.source],
        price.model_pattern,
        price.provider,
        price.service_tier,
        price.effective_time,
        price.price_id,
    )


async def candidates(
    conn: Connection, tenant_id: UUID, provider: str, models: Collection[str], at: datetime
) -> list[Price]:
    """Return the prices of a tenant and of the platform that could count for a call of a model by any of its names."""
    query = select(prices).where(
        prices.c.delete_time.is_(None),
        prices.c.tenant_id.in_([tenant_id, PLATFORM_TENANT_ID]),
        prices.c.provider.in_(["", provider]),
        prices.c.effective_time <= at,
        or_(*map(_matches, models)),
    )
    return [_price(row) for row in await conn.execute(query)]


async def catalogue_fingerprint(conn: Connection) -> str:
    """Return what the stored catalogue was made of; empty before the first import."""
    query = select(tenants.c.metadata[_FINGERPRINT].astext).where(tenants.c.tenant_id == PLATFORM_TENANT_ID)
    return (await conn.execute(query)).scalar_one_or_none() or ""


async def remember_catalogue(conn: Connection, fingerprint: str) -> None:
    """Note what the stored catalogue is made of."""
    noted = literal({_FINGERPRINT: fingerprint}, JSONB)
    await conn.execute(
        update(tenants)
        .where(tenants.c.tenant_id == PLATFORM_TENANT_ID)
        .values(metadata=tenants.c.metadata.op("||")(noted))
    )


async def stored_catalogue(conn: Connection) -> list[Price]:
    """Return the catalogue's prices that have not ended."""
    query = select(prices).where(
        prices.c.tenant_id == PLATFORM_TENANT_ID,
        prices.c.source == PriceSource.CATALOGUE.value,
        prices.c.delete_time.is_(None),
    )
    return [_price(row) for row in await conn.execute(query)]


def _matches(model: str) -> ColumnElement[bool]:
    """Return whether a row's glob matches a model: the glob as a LIKE pattern, case left aside."""
    pattern: ColumnElement[str] = func.lower(prices.c.model_pattern)
    for plain, escaped in (("\\", "\\\\"), ("%", "\\%"), ("_", "\\_"), ("*", "%"), ("?", "_")):
        pattern = func.replace(pattern, plain, escaped)
    return literal(model.lower()).like(pattern)


def _columns(price: Price) -> dict[str, object]:
    return {
        "tenant_id": str(price.tenant_id),
        "price_id": str(price.price_id),
        "source": price.source.value,
        "model_pattern": price.model_pattern,
        "provider": price.provider,
        "service_tier": price.service_tier,
        "rates": dict(price.rates),
        "tiers": [
            {"from_input_tokens": tier.from_input_tokens, "rates": dict(tier.rates)} for tier in price.tiers
        ],
        "max_output_tokens": price.max_output_tokens,
        "effective_time": price.effective_time.isoformat(),
        "create_time": price.create_time.isoformat(),
        "update_time": price.update_time.isoformat(),
        "version": price.version,
    }


def _price(row: Row[Any]) -> Price:
    return Price(
        tenant_id=row.tenant_id,
        price_id=row.price_id,
        source=PriceSource(row.source),
        model_pattern=row.model_pattern,
        provider=row.provider,
        service_tier=row.service_tier,
        rates=row.rates,
        tiers=tuple(PriceTier(tier["from_input_tokens"], tier["rates"]) for tier in row.tiers),
        max_output_tokens=row.max_output_tokens,
        effective_time=row.effective_time,
        create_time=row.create_time,
        update_time=row.update_time,
        version=row.version,
    )
