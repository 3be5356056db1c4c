"""What a recording costs, to the nano, from the price data read by other means than the product's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from functools import cache
from typing import Any

from genai_prices import types as data
from genai_prices.data import providers

from bursar_server.pricing.catalogue import changes, convert
from bursar_server.pricing.model import Usage
from bursar_server.pricing.rules import PriceIndex, call_cost
from bursar_sidecar.providers.base import Metered
from support.corpus import NAMES

NOW = datetime(2026, 11, 1, tzinfo=UTC)
MILLION = 1_000_000

#: What the sidecar calls a provider where the price data's name is another.
HOMES = {"gemini": "google", "vertex": "google", "bedrock": "aws", "xai": "x-ai"}

#: Names that the wire has for a model the data knows by another name only: a Bedrock model at its other address.
ALIASES = {
    ("bedrock", "openai.gpt-oss-120b"): "openai.gpt-oss-120b-1:0",
    ("bedrock", "openai.gpt-oss-20b"): "openai.gpt-oss-20b-1:0",
}

Unit = Mapping[str, Decimal | data.TieredPrices]


def known(name: str, model: str) -> data.ModelInfo | None:
    """Return what the data has for a model, as its own matching finds it."""
    home = next((each for each in providers if each.id == HOMES.get(name, name)), None)
    return home.find_model(ALIASES.get((name, model), model), all_providers=providers) if home else None


def prices_of(info: data.ModelInfo, tier: str) -> Unit:
    """Return a model's prices: where they change with the hour, the day's dearest (docs/prices.md)."""
    context = {"service_tier": tier} if tier else None
    day = [vars(info.get_prices(NOW + timedelta(hours=hour), context)) for hour in range(24)]
    named = [{unit: price for unit, price in hour.items() if price is not None} for hour in day]
    return max(named, key=lambda each: sum(price for price in each.values() if isinstance(price, Decimal)))


def expected_dollars(unit: Unit, counts: Mapping[str, int]) -> Fraction:
    """Return what the counts cost, in exact dollars: each kind of token at its own rate, else at its whole's."""

    def dollars(count: int, *names: str, per: int = MILLION) -> Fraction:
        price = next((unit[name] for name in names if name in unit), Decimal())
        if isinstance(price, data.TieredPrices):
            reached = [tier.price for tier in price.tiers if counts["input_tokens"] > tier.start]
            price = reached[-1] if reached else price.base
        return Fraction(count) * Fraction(price) / per

    read_back = min(counts["cache_read_tokens"], counts["input_tokens"])
    written, hour = counts["cache_write_5m_tokens"], counts["cache_write_1h_tokens"]
    # Sound and pictures without a price of their own are tokens like others, be they cached or not.
    heard = counts["input_audio_tokens"] if "input_audio_mtok" in unit else 0
    seen = counts["input_image_tokens"] if "input_image_mtok" in unit else 0
    said, drawn = counts["output_audio_tokens"], counts["output_image_tokens"]
    rest = counts["input_tokens"] - read_back - written - hour - heard - seen
    assert rest >= 0
    return (
        dollars(rest, "input_mtok")
        + dollars(read_back, "cache_read_mtok", "input_mtok")
        + dollars(written, "cache_write_mtok", "input_mtok")
        + dollars(hour, "cache_write_1h_mtok", "cache_write_mtok", "input_mtok")
        + dollars(heard, "input_audio_mtok", "input_mtok")
        + dollars(seen, "input_image_mtok", "input_mtok")
        + dollars(counts["output_tokens"] - said - drawn, "output_mtok")
        + dollars(said, "output_audio_mtok", "output_mtok")
        + dollars(drawn, "output_image_mtok", "output_mtok")
        + dollars(1, "requests_kcount", per=1000)
        + dollars(counts["web_search_requests"], "web_searches_kcount", per=1000)
    )


COUNTS = (
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_5m_tokens",
    "cache_write_1h_tokens",
    "input_audio_tokens",
    "output_audio_tokens",
    "input_image_tokens",
    "output_image_tokens",
    "web_search_requests",
)


def counts_of(told: Mapping[str, Any]) -> dict[str, int]:
    counts = {name: int(told.get(name) or 0) for name in COUNTS}
    if not counts["cache_write_5m_tokens"] and not counts["cache_write_1h_tokens"]:
        counts["cache_write_5m_tokens"] = int(told.get("cache_write_tokens") or 0)
    return counts


def bills(case: dict[str, Any]) -> Iterator[tuple[str, str, Mapping[str, int]]]:
    """Yield model, service tier and counts of what a recording's own reading says was billed."""
    expected = case["expected"]
    others = dict(expected.get("billable_by_model") or {})
    main = expected | others.pop("(request model)", {})
    tier = expected.get("service_tier")
    yield expected["model"] or "", tier if isinstance(tier, str) else "", counts_of(main)
    for model, told in others.items():
        yield model, tier or "", counts_of(told)


@cache
def catalogue() -> PriceIndex:
    """Return the product's prices."""
    return PriceIndex(changes([], convert(providers).rows, NOW).added)


@dataclass
class Priced:
    """How many items had a price, how many none, and which recordings cost other than they should."""

    priced: int = 0
    unpriced: int = 0
    wrong: list[str] = field(default_factory=list)

    def add(self, case: dict[str, Any], metered: Metered) -> None:
        """Price what was metered of a recording that is strict, billable and has usage; others count for nothing."""
        if not (case["strict"] and case["expected"]["billable"] and case["expected"]["usage_present"]):
            return
        name = NAMES.get(case["provider"], case["provider"])
        items = [
            (
                Usage(**{unit: getattr(item.usage, unit) for unit in Usage._fields}),
                catalogue().pick(name, item.model, item.service_tier, NOW),
            )
            for item in metered.items
        ]
        exact = Fraction()
        for (model, tier, counts), item, (_, price) in zip(bills(case), metered.items, items, strict=True):
            if counts["input_tokens"] == 0 and metered.estimated:
                counts = {**counts, "input_tokens": item.usage.input_tokens}
            info = known(name, model or item.model)
            unit = prices_of(info, tier) if info else {}
            exact += expected_dollars(unit, counts)
            self.priced += price is not None
            self.unpriced += price is None
            free = name == "ollama" or item.model.endswith(":free")
            if (price is None) != (not unit) and not free:
                self.wrong.append(
                    f"{case['id']}: {item.model} is {'un' * (price is None)}priced, the data has {unit}"
                )
        cost = call_cost(items)
        if cost.total_nanos != round(exact * 10**9):
            self.wrong.append(f"{case['id']}: {metered.items} cost {cost}, not {float(exact)} USD")
