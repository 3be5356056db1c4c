"""What a call costs, worked out from the price and the tokens alone, by other means than the product's."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

from bursar_sidecar.providers.base import Usage


def cost_nanos(price: Mapping[str, Any], usage: Usage) -> int:
    """Return a call's cost by a price as LookupPrice shows it: dollars per million, rounded once, half to even (S15)."""
    rates = {name: value for name, value in price.items() if name.endswith("UsdPerMillion")}
    for tier in sorted(price.get("tiers", []), key=lambda tier: int(tier["fromInputTokens"])):
        if int(tier["fromInputTokens"]) <= usage.input_tokens:
            rates |= tier

    def dollars(tokens: int, *names: str) -> Fraction:
        rate = next((rates[name] for name in names if name in rates), 0)
        return tokens * Fraction(Decimal(repr(rate))) / 1_000_000

    written = usage.cache_write_5m_tokens
    fresh = usage.input_tokens - usage.cache_read_tokens - written
    total = (
        dollars(fresh, "inputUsdPerMillion")
        + dollars(usage.cache_read_tokens, "cacheReadUsdPerMillion", "inputUsdPerMillion")
        + dollars(written, "cacheWriteUsdPerMillion", "inputUsdPerMillion")
        + dollars(usage.output_tokens, "outputUsdPerMillion")
        + Fraction(Decimal(repr(price.get("requestUsd", 0))))
    )
    return round(total * 1_000_000_000)
