"""Service tiers: which price a provider's own name for one finds, and what is charged by no token at all."""

from datetime import UTC, datetime

import pytest
from genai_prices.data import providers

from bursar_server.pricing.catalogue import changes, convert
from bursar_server.pricing.model import PriceSource
from bursar_server.pricing.rules import PriceIndex, pick
from support.prices import a_price

NOW = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def index() -> PriceIndex:
    return PriceIndex(changes([], convert(providers).rows, NOW).added)


@pytest.mark.parametrize(
    ("provider", "model", "reported", "row"),
    [
        ("openai", "gpt-5", "default", ""),
        ("openai", "gpt-5", "auto", ""),
        ("openai", "gpt-5", "flex", "flex"),
        ("openai", "gpt-5", "priority", "priority"),
        ("anthropic", "claude-sonnet-4-5", "standard", ""),
        ("anthropic", "claude-sonnet-4-5", "batch", "batch"),
        ("anthropic", "claude-sonnet-4-5", "priority", ""),
        ("groq", "openai/gpt-oss-120b", "on_demand", ""),
        ("vertex", "gemini-3.1-pro-preview", "ON_DEMAND", ""),
        ("vertex", "gemini-3.8-flash-tts", "ON_DEMAND_FLEX", "flex"),
        ("vertex", "gemini-3.8-flash-tts", "ON_DEMAND_PRIORITY", "priority"),
        ("bedrock", "amazon.nova-lite-v1:0", "default", ""),
        ("openai", "gpt-5", "a tier of tomorrow", ""),
    ],
)
def test_each_providers_name_of_a_service_tier_finds_its_price(
    index: PriceIndex, provider: str, model: str, reported: str, row: str
) -> None:
    """S15: a tier without a price of its own is charged by the row that names none, and the record names both."""
    price = index.pick(provider, model, reported, NOW)
    assert price is not None
    assert price.service_tier == row


@pytest.mark.parametrize(
    ("provider", "model", "tier"),
    [
        ("vertex", "gemini-2.5-flash", "PROVISIONED_THROUGHPUT"),
        ("openai", "gpt-5", "scale"),
        ("bedrock", "amazon.nova-lite-v1:0", "reserved"),
    ],
)
def test_capacity_bought_beforehand_is_not_charged_by_the_token(
    index: PriceIndex, provider: str, model: str, tier: str
) -> None:
    """S15: nor by a row of one's own for the same model, unless it names the tier."""
    price = index.pick(provider, model, tier, NOW)
    assert price is not None
    assert (price.service_tier, dict(price.rates)) == (tier.lower(), {"input": 0, "output": 0})


def test_a_row_of_ones_own_is_about_prepaid_capacity_only_where_it_names_it() -> None:
    own = a_price(source=PriceSource.TENANT, input=5)
    catalogue = a_price("*", tier="provisioned_throughput", input=0, number=2)
    assert pick([own, catalogue], "vertex", "m", "PROVISIONED_THROUGHPUT", NOW) is catalogue
    named = a_price(source=PriceSource.TENANT, tier="provisioned_throughput", input=1, number=3)
    assert pick([own, catalogue, named], "vertex", "m", "PROVISIONED_THROUGHPUT", NOW) is named
    assert pick([own, catalogue, named], "vertex", "m", "ON_DEMAND", NOW) is own


def test_a_row_that_names_the_standard_tier_counts_for_calls_that_name_none() -> None:
    own = a_price(tier="default", input=5)
    assert pick([own], "openai", "m", "", NOW) is own
    assert pick([own], "openai", "m", "standard", NOW) is own
