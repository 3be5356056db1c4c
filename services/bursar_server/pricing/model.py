"""What a price is, and what it is applied to."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID


class PriceSource(StrEnum):
    """Where a price comes from, strongest first."""

    TENANT = "TENANT"
    PLATFORM = "PLATFORM"
    CATALOGUE = "CATALOGUE"


class Usage(NamedTuple):
    """What one model consumed in a call: inputs include the cached parts, outputs include reasoning."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0
    reasoning_tokens: int = 0
    input_audio_tokens: int = 0
    output_audio_tokens: int = 0
    input_image_tokens: int = 0
    output_image_tokens: int = 0
    images: int = 0
    web_searches: int = 0
    requests: int = 0


# The units that a price can name; nanos per million units each.
RATE_UNITS = (
    "input",
    "output",
    "cache_read",
    "cache_write",
    "cache_write_1h",
    "input_audio",
    "output_audio",
    "input_image",
    "output_image",
    "cache_audio_read",
    "request",
    "image",
    "web_search",
    # The cost that the provider itself reports: millionths of it. Such a price names nothing else.
    "provider_cost",
)

Rates = Mapping[str, int]
"""Nanos per million units, by the names of RATE_UNITS; an absent part costs what the whole it is a part of costs."""


@dataclass(frozen=True)
class PriceTier:
    """Rates that replace the price's own for the whole call once its input reaches a size."""

    from_input_tokens: int
    rates: Rates


@dataclass(frozen=True)
class Price:
    """What the models that a pattern matches cost from a date on. `tenant_id` is the platform tenant unless source is TENANT."""

    tenant_id: UUID
    price_id: UUID
    source: PriceSource
    model_pattern: str
    provider: str
    service_tier: str
    rates: Rates
    tiers: tuple[PriceTier, ...]
    max_output_tokens: int | None
    effective_time: datetime
    create_time: datetime
    update_time: datetime
    version: int


class CallCost(NamedTuple):
    """The cost of a call in nanos; the parts sum to it (S15)."""

    input_nanos: int
    output_nanos: int
    other_nanos: int

    @property
    def total_nanos(self) -> int:
        """The cost: what is charged."""
        return self.input_nanos + self.output_nanos + self.other_nanos


@dataclass(frozen=True)
class PriceDraft:
    """What somebody says a price is to be; `effective_time` None is now, or as it was."""

    model_pattern: str
    provider: str
    service_tier: str
    rates: Rates
    tiers: tuple[PriceTier, ...]
    max_output_tokens: int | None
    effective_time: datetime | None
