"""The prices that ship with Bursar: the data of the package genai-prices as rows of our own (F111; docs/prices.md)."""

import hashlib
import importlib.metadata
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING
from uuid import UUID

from bursar_server.kit.ids import PLATFORM_TENANT_ID
from bursar_server.pricing.model import Price, PriceSource, PriceTier, Rates
from bursar_server.pricing.patterns import globs_of
from bursar_server.pricing.rules import PREPAID_TIERS, glob_matches

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice, PriceVariant, Provider, TieredPrices

# Goes up when the same data gives other rows: the rows are made anew at the next start.
CONVERSION = 2

# When a price counts that the data gives no date for.
ALWAYS = datetime(1970, 1, 1, tzinfo=UTC)

# The data's names of providers where calls carry others; the rest go by the data's own name.
PROVIDERS: Mapping[str, tuple[str, ...]] = {
    "google": ("gemini", "vertex"),
    "aws": ("bedrock",),
    "x-ai": ("xai",),
}
_HUGGINGFACE = "huggingface_"

# The data's units, ours, and how many of the data's prices make the price of a million.
_UNITS: Mapping[str, tuple[str, int]] = {
    "input_mtok": ("input", 1),
    "output_mtok": ("output", 1),
    "cache_read_mtok": ("cache_read", 1),
    "cache_write_mtok": ("cache_write", 1),
    "cache_write_1h_mtok": ("cache_write_1h", 1),
    "input_audio_mtok": ("input_audio", 1),
    "output_audio_mtok": ("output_audio", 1),
    "cache_audio_read_mtok": ("cache_audio_read", 1),
    "input_image_mtok": ("input_image", 1),
    "output_image_mtok": ("output_image", 1),
    "requests_kcount": ("request", 1000),
    "web_searches_kcount": ("web_search", 1000),
}

# What the data's variants are called, by what they are for: the service tier that a call carries.
_TIER_KEYS = ("service_tier", "processing", "speed")


@dataclass(frozen=True, slots=True)
class CatalogueRow:
    """A price as the data has it, before it is a row in the database."""

    provider: str
    model_pattern: str
    service_tier: str
    effective_time: datetime
    rates: Rates
    tiers: tuple[PriceTier, ...]

    @property
    def key(self) -> tuple[str, str, str]:
        """What the price is for: rows of the same key follow one another in time."""
        return self.provider, self.model_pattern, self.service_tier


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The data as rows, and what of it could not be said in rows, for people."""

    rows: Sequence[CatalogueRow]
    left_out: Sequence[str]


@dataclass(frozen=True, slots=True)
class CatalogueChanges:
    """What brings the stored catalogue to the data's: rows to add, and stored ones that no longer count."""

    added: Sequence[Price]
    ended: Sequence[UUID]


def installed_fingerprint() -> str:
    """Return what the rows depend on: the data's version and how it is converted. Does not load the data."""
    return f"genai-prices {importlib.metadata.version('genai-prices')}, conversion {CONVERSION}"


def read_catalogue() -> Catalogue:
    """Return the installed data as rows. Takes a good part of a second: only when the fingerprint has changed."""
    from genai_prices.data import providers

    return convert(providers)


def convert(providers: Sequence["Provider"]) -> Catalogue:
    """Return the data of these providers as rows: the first model of a provider that names a pattern has it."""
    by_id = {provider.id: provider for provider in providers}
    rows: list[CatalogueRow] = []
    left_out: list[str] = []
    for provider in providers:
        others = [by_id[other] for other in provider.fallback_model_providers or () if other in by_id]
        for name in _names_of(provider.id):
            problems: list[str] = []
            seen: set[str] = set()
            for model in provider.models:
                rows += _rows_of_model(provider.id, name, model, seen, problems)
            own = tuple(seen)
            for other in others:
                for model in other.models:
                    rows += _rows_of_model(other.id, name, model, seen, [], own)
            left_out += [problem for problem in problems if problem not in left_out]
    # Models that run on one's own machine, and capacity that was paid for beforehand: nobody sends a bill for the tokens.
    free = [("ollama", "*", ""), ("bedrock", "*:provisioned-model/*", "")]
    free += [("", "*", tier) for tier in sorted(PREPAID_TIERS)]
    rows += [CatalogueRow(*each, ALWAYS, {"input": 0, "output": 0}, ()) for each in free]
    return Catalogue(rows, left_out)


def _names_of(provider_id: str) -> tuple[str, ...]:
    return (
        ("huggingface",)
        if provider_id.startswith(_HUGGINGFACE)
        else PROVIDERS.get(provider_id, (provider_id,))
    )


def _rows_of_model(
    home: str, name: str, model: "ModelInfo", seen: set[str], left_out: list[str], own: Sequence[str] = ()
) -> list[CatalogueRow]:
    """Return the rows of a model of `home` for calls to `name`; patterns in `seen`, or within `own`, are taken."""
    globs, unsaid = globs_of(model.match)
    problems = [f"names that match {text}" for text in unsaid]
    if home.startswith(_HUGGINGFACE):
        # The router is told which of its providers serves after a colon.
        globs = [f"{glob}:{home.removeprefix(_HUGGINGFACE)}" for glob in globs]
    if name == "bedrock" and model.id.endswith("-1:0"):
        # Bedrock's other address, for APIs compatible with OpenAI's, has the same models without their version.
        globs.append("*" + model.id.removesuffix("-1:0"))
    if name == "gemini":
        # The data's `google` is Vertex AI too, which also serves other makers' models.
        globs = [glob for glob in globs if "claude" not in glob]
    globs = [glob for glob in globs if glob not in seen and not _within(glob, own)]
    seen.update(globs)

    standard = _standard(model, problems)
    prices = [("", at, price) for at, price in standard]
    prices += _variants(model, standard, problems)
    rows = []
    for tier, at, price in prices:
        converted = _rates_of(model.id, price, problems)
        if converted is not None:
            rows += [CatalogueRow(name, glob, tier, at, *converted) for glob in globs]
    left_out += [f"{home} {model.id}: {problem}" for problem in dict.fromkeys(problems)]
    return rows


def _within(glob: str, others: Sequence[str]) -> bool:
    """Whether one of the other globs matches what this one is about: the provider's own entry for it comes first."""
    text = glob.replace("*", "").replace("?", "0")
    return any(glob_matches(other, text) for other in others)


_Dated = tuple[datetime, Mapping[str, "Decimal | TieredPrices"]]


def _standard(model: "ModelInfo", problems: list[str]) -> list[_Dated]:
    """Return a model's prices and from when each counts, in order of time; of a day's several the dearest."""
    if not isinstance(model.prices, list):
        return [(ALWAYS, _named(model.prices))]
    dated: list[_Dated] = []
    hourly: list[Mapping[str, Decimal | TieredPrices]] = []
    for index, conditional in enumerate(model.prices):
        start = getattr(conditional.constraint, "start_date", None)
        if start is None and conditional.constraint is not None and index:
            hourly.append(_named(conditional.prices))
        else:
            dated.append((_midnight(start) if index and start else ALWAYS, _named(conditional.prices)))
    dated.sort(key=lambda each: each[0])
    if hourly:
        problems.append("prices by the hour of the day: the dearest counts all day")
        at, last = dated[-1]
        dated[-1] = at, max([last, *hourly], key=_dearness)
    return dated


def _variants(
    model: "ModelInfo", standard: Sequence[_Dated], problems: list[str]
) -> list[tuple[str, datetime, Mapping[str, "Decimal | TieredPrices"]]]:
    """Return what each service tier costs and from when: the standard price with what the tier changes."""
    by_tier: dict[str, list[PriceVariant]] = {}
    for variant in model.price_variants or ():
        (key, tier), *more = variant.when.items()
        if more or key not in _TIER_KEYS:
            problems.append(f"prices for {variant.when}")
        elif tier != "default":
            by_tier.setdefault(tier, []).append(variant)
    found: list[tuple[str, datetime, Mapping[str, Decimal | TieredPrices]]] = []
    for tier, variants in by_tier.items():
        starts = [_start_of(variant) for variant in variants]
        instants = {*starts, *(at for at, _ in standard if at > min(starts))}
        for at in sorted(instants):
            merged = dict(next(prices for since, prices in reversed(standard) if since <= at))
            for variant, start in reversed(list(zip(variants, starts, strict=True))):
                if start <= at:
                    merged.update(_named(variant.prices))
            found.append((tier, at, merged))
    return found


def _start_of(variant: "PriceVariant") -> datetime:
    start = getattr(variant.constraint, "start_date", None)
    return _midnight(start) if start is not None else ALWAYS


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _named(price: "ModelPrice") -> Mapping[str, "Decimal | TieredPrices"]:
    return {key: value for key, value in vars(price).items() if value is not None}


def _dearness(prices: Mapping[str, "Decimal | TieredPrices"]) -> Decimal:
    return sum((_base_and_tiers(value)[0] for value in prices.values()), Decimal())


def _base_and_tiers(value: "Decimal | TieredPrices") -> tuple[Decimal, list[tuple[int, Decimal]]]:
    if isinstance(value, Decimal):
        return value, []
    # The data's tiers begin above their start, ours at it.
    return value.base, [(tier.start + 1, tier.price) for tier in value.tiers]


def _rates_of(
    model_id: str, prices: Mapping[str, "Decimal | TieredPrices"], problems: list[str]
) -> tuple[Rates, tuple[PriceTier, ...]] | None:
    """Return rates and tiers, or None where the data names no price in units of ours."""
    rates: dict[str, int] = {}
    tiers: dict[int, dict[str, int]] = {}
    for key, value in prices.items():
        if key not in _UNITS:
            problems.append(f"prices in {key}")
            continue
        unit, factor = _UNITS[key]
        base, above = _base_and_tiers(value)
        rates[unit] = _nanos(base * factor)
        for start, price in above:
            tiers.setdefault(start, {})[unit] = _nanos(price * factor)
    if not rates and not prices and model_id.endswith(":free"):
        rates = {"input": 0, "output": 0}
    if not rates:
        problems.append("no price in units of ours: its calls are unpriced")
        return None
    return rates, tuple(PriceTier(start, tiers[start]) for start in sorted(tiers))


def _nanos(usd: Decimal) -> int:
    """Return nanos, half to even: some of the data carries the noise of a double in its last decimals."""
    return round(usd.scaleb(9))


# -- from one version of the data to the next ---------------------------------------------------------


def changes(existing: Iterable[Price], wanted: Sequence[CatalogueRow], now: datetime) -> CatalogueChanges:
    """Return what to add and what to end, so that calls from `now` on are charged by the data as it is.

    Rows that records can name are never rewritten. A price that the data dates later than the stored one counts from
    its date; one that replaces a price without a later date counts from `now`. A pattern that the data no longer has,
    or a future price that it took back, ends.
    """
    have: dict[tuple[str, str, str], list[Price]] = {}
    for price in existing:
        have.setdefault((price.provider, price.model_pattern, price.service_tier), []).append(price)
    want: dict[tuple[str, str, str], list[CatalogueRow]] = {}
    for row in wanted:
        want.setdefault(row.key, []).append(row)
    added: list[CatalogueRow] = []
    ended = [price.price_id for key, prices in have.items() if key not in want for price in prices]
    for key, rows in want.items():
        new, old = _follow(have[key], rows, now) if key in have else (rows, [])
        added += new
        ended += [price.price_id for price in old]
    return CatalogueChanges([_price_of(row, now) for row in added], ended)


def _follow(
    prices: Sequence[Price], rows: Sequence[CatalogueRow], now: datetime
) -> tuple[list[CatalogueRow], list[Price]]:
    """Return the rows to add and the prices to end, of one key."""
    added = []
    current = max(
        (price for price in prices if price.effective_time <= now),
        key=lambda price: (price.effective_time, price.create_time),
        default=None,
    )
    row = max((row for row in rows if row.effective_time <= now), key=_effective, default=None)
    if row is not None and (current is None or (current.rates, current.tiers) != (row.rates, row.tiers)):
        later = current is None or row.effective_time > current.effective_time
        added.append(row if later else replace(row, effective_time=now))
    ahead = [row for row in rows if row.effective_time > now]
    stored = [price for price in prices if price.effective_time > now]
    planned = {(price.effective_time, _content(price)) for price in stored}
    added += [row for row in ahead if (row.effective_time, _content(row)) not in planned]
    kept = {(row.effective_time, _content(row)) for row in ahead}
    return added, [price for price in stored if (price.effective_time, _content(price)) not in kept]


def _effective(row: CatalogueRow) -> datetime:
    return row.effective_time


def _content(row: CatalogueRow | Price) -> str:
    """Return what a row charges, as text that is the same for the same content."""
    tiers = [[tier.from_input_tokens, tier.rates] for tier in row.tiers]
    return json.dumps([row.rates, tiers], sort_keys=True, separators=(",", ":"))


def _uuid8(digest: bytes) -> UUID:
    """Return the UUID of the custom kind (RFC 9562, version 8) that the first 122 bits of a digest make."""
    value = int.from_bytes(digest[:16])
    value = value & ~(0xF << 76) | 0x8 << 76
    return UUID(int=value & ~(0x3 << 62) | 0x2 << 62)


def _price_of(row: CatalogueRow, now: datetime) -> Price:
    """Return the price that a row is stored as; its id is made of its content: the same row is the same price."""
    identity = [*row.key, row.effective_time.isoformat(), _content(row)]
    digest = hashlib.sha256(json.dumps(identity, separators=(",", ":")).encode()).digest()
    return Price(
        tenant_id=PLATFORM_TENANT_ID,
        price_id=_uuid8(digest),
        source=PriceSource.CATALOGUE,
        model_pattern=row.model_pattern,
        provider=row.provider,
        service_tier=row.service_tier,
        rates=row.rates,
        tiers=row.tiers,
        max_output_tokens=None,
        effective_time=row.effective_time,
        create_time=now,
        update_time=now,
        version=1,
    )
