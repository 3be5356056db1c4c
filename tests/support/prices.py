"""Prices for tests that need no database."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

from bursar_server.kit.ids import PLATFORM_TENANT_ID
from bursar_server.pricing.model import Price, PriceSource, PriceTier

DAY = datetime(2026, 1, 1, tzinfo=UTC)
TENANT = UUID(int=7)


def a_price(
    pattern: str = "m",
    *,
    source: PriceSource = PriceSource.CATALOGUE,
    provider: str = "",
    tier: str = "",
    at: datetime = DAY,
    number: int = 1,
    tiers: tuple[PriceTier, ...] = (),
    **rates: int,
) -> Price:
    return Price(
        tenant_id=TENANT if source is PriceSource.TENANT else PLATFORM_TENANT_ID,
        price_id=UUID(int=number),
        source=source,
        model_pattern=pattern,
        provider=provider,
        service_tier=tier,
        rates=rates,
        tiers=tiers,
        max_output_tokens=None,
        effective_time=at,
        create_time=DAY,
        update_time=DAY,
        version=1,
    )
