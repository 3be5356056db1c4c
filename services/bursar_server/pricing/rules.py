"""Which price counts for a call, and what the call costs by it (S15). Exact integers; rounded once per call."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import pairwise, product
from typing import NamedTuple
from uuid import UUID

from bursar_server.kit.errors import invalid
from bursar_server.kit.money import divide_half_even
from bursar_server.pricing.model import CallCost, Price, PriceDraft, PriceSource, Rates, Usage

# Rates are nanos per million units: units x rate is in millionths of a nano.
UNITS_PER_RATE = 1_000_000

MAX_PATTERN_LENGTH = 200
MAX_PRICE_TIERS = 16
MAX_OUTPUT_TOKENS = 1_000_000_000
MAX_REMEMBERED_NAMES = 1000
# 100,000 US dollars per million tokens, 1,000 per request or image: a call of sixteen models with a billion tokens each
# still costs what fits int64.
MAX_TOKEN_RATE = 10**14
MAX_PIECE_RATE = 10**18
# A hundred times what the provider says.
MAX_PROVIDER_COST_RATE = 10**8
PROVIDER_COST = "provider_cost"
_PIECES = frozenset({"request", "image", "web_search"})

# What providers call the service that has no name elsewhere, and what others call theirs.
_TIER_NAMES = {
    "default": "",
    "standard": "",
    "standard_only": "",
    "auto": "",
    "on_demand": "",
    "traffic_type_unspecified": "",
    "on_demand_flex": "flex",
    "on_demand_priority": "priority",
}
# Capacity that was bought beforehand: its tokens are on no bill, and only a row that names it is about it.
PREPAID_TIERS = frozenset({"provisioned_throughput", "reserved", "scale"})

_NAMED_BY_PATHS = frozenset({"gemini", "vertex", "bedrock"})

_STRENGTH = {PriceSource.CATALOGUE: 0, PriceSource.PLATFORM: 1, PriceSource.TENANT: 2}

# The rates that a token of input, or of output, can be charged at: an upper bound takes the dearest.
_INPUT_RATES = (
    "input",
    "cache_read",
    "cache_write",
    "cache_write_1h",
    "input_audio",
    "input_image",
    "cache_audio_read",
)
_OUTPUT_RATES = ("output", "output_audio", "output_image")

_Rank = tuple[int, bool, bool, int, datetime, datetime, UUID]


class CostParts(NamedTuple):
    """What one item costs, unrounded: millionths of a nano."""

    input: int
    output: int
    other: int


def glob_matches(pattern: str, text: str) -> bool:
    """Whether `text` matches a glob: `*` is any run of characters, `?` is any one; everything else is itself.

    Case counts: whoever compares names of models lower-cases both. Never worse than length x length steps.
    """
    head, *rest = pattern.split("*")
    if not rest:
        return len(head) == len(text) and _fits(head, text, 0)
    last = rest.pop()
    if len(text) < len(head) + len(last) or not _fits(head, text, 0):
        return False
    end = len(text) - len(last)
    if not _fits(last, text, end):
        return False
    position = len(head)
    for piece in rest:
        position = _find(piece, text, position, end)
        if position < 0:
            return False
        position += len(piece)
    return True


def _fits(piece: str, text: str, start: int) -> bool:
    """Whether `piece`, in which `?` is any character, stands in `text` at `start`."""
    if "?" not in piece:
        return text.startswith(piece, start)
    window = text[start : start + len(piece)]
    return len(window) == len(piece) and all(a in ("?", b) for a, b in zip(piece, window, strict=True))


def _find(piece: str, text: str, start: int, end: int) -> int:
    if "?" not in piece:
        return text.find(piece, start, end)
    places = range(start, end - len(piece) + 1)
    return next((place for place in places if _fits(piece, text, place)), -1)


def literals_of(pattern: str) -> int:
    """Return how many characters of a glob stand for themselves: the more, the more specific."""
    return len(pattern) - pattern.count("*") - pattern.count("?")


def tier_of(service_tier: str) -> str:
    """Return the service tier that a provider's name for it stands for, in lower case; empty is the standard one."""
    named = service_tier.lower()
    return _TIER_NAMES.get(named, named)


def names_of(provider: str, model: str) -> tuple[str, ...]:
    """Return the names by which a model's prices are found: where a provider names it by a path, the path's end as well.

    `publishers/google/models/gemini-2.5-flash`, `google/gemini-2.5-flash` and the ARN of an inference profile are such.
    """
    end = model.rpartition("/")[2] if provider.lower() in _NAMED_BY_PATHS else model
    return (model,) if end in ("", model) else (model, end)


def pick(
    prices: Iterable[Price],
    provider: str,
    model: str,
    service_tier: str,
    at: datetime,
    reported: bool = False,
) -> Price | None:
    """Return the price that counts for a call that starts `at`, or None (S15).

    Tenant rows win over platform rows, these over the catalogue; within those a row that names the provider, then one
    that names the service tier, then the pattern with most literal characters, then the newest effective date. A tier
    without a row of its own is charged by rows that name none, but for capacity bought beforehand (PREPAID_TIERS). Upper and lower case are the same. Of rows equal in all
    that, the one made last counts. A price that charges what the provider reports counts only where it `reported` a
    cost. `prices` holds no tenant's rows but the call's own.
    """
    return PriceIndex(prices).pick(provider, model, service_tier, at, reported)


class PriceIndex:
    """Prices arranged so that one of thousands is found in microseconds. Belongs to one thread.

    Its prices never change once it is built; it remembers which of them fit the names that were asked for last.
    """

    def __init__(self, prices: Iterable[Price]) -> None:
        self._exact: dict[tuple[str, str], list[tuple[_Rank, Price]]] = {}
        self._globs: dict[str, dict[str, list[tuple[str, _Rank, Price]]]] = {}
        for price in prices:
            pattern, provider = price.model_pattern.lower(), price.provider.lower()
            rank = _rank(price)
            if "*" not in pattern and "?" not in pattern:
                self._exact.setdefault((provider, pattern), []).append((rank, price))
                continue
            prefix = pattern.replace("?", "*").partition("*")[0]
            of_provider = self._globs.setdefault(provider, {})
            of_provider.setdefault(prefix, []).append((pattern, rank, price))
        self._fitting: dict[tuple[str, str], list[tuple[_Rank, str, Price]]] = {}
        self._lengths = {
            provider: sorted({len(prefix) for prefix in by_prefix})
            for provider, by_prefix in self._globs.items()
        }

    def pick(
        self, provider: str, model: str, service_tier: str, at: datetime, reported: bool = False
    ) -> Price | None:
        """Return the price that counts, or None: what `pick` says of the same prices."""
        provider, model, tier = provider.lower(), model.lower(), tier_of(service_tier)
        tiers = (tier,) if tier in PREPAID_TIERS else ("", tier)
        for _, named, price in self._fitting_best_first(provider, model):
            if price.effective_time > at or named not in tiers:
                continue
            if reported or PROVIDER_COST not in price.rates:
                return price
        return None

    def _fitting_best_first(self, provider: str, model: str) -> list[tuple[_Rank, str, Price]]:
        found = self._fitting.get((provider, model))
        if found is None:
            if len(self._fitting) >= MAX_REMEMBERED_NAMES:
                self._fitting.clear()
            fitting = self._candidates(provider, model)
            found = [(rank, tier_of(price.service_tier), price) for rank, price in fitting]
            found.sort(key=lambda each: each[0], reverse=True)
            self._fitting[provider, model] = found
        return found

    def _candidates(self, provider: str, model: str) -> Iterable[tuple[_Rank, Price]]:
        for named, name in product({provider, ""}, names_of(provider, model)):
            yield from self._exact.get((named, name), ())
            by_prefix = self._globs.get(named, {})
            for length in self._lengths.get(named, ()):
                for pattern, rank, price in by_prefix.get(name[:length], ()):
                    if glob_matches(pattern, name):
                        yield rank, price


def _rank(price: Price) -> _Rank:
    return (
        _STRENGTH[price.source],
        price.provider != "",
        tier_of(price.service_tier) != "",
        literals_of(price.model_pattern),
        price.effective_time,
        price.create_time,
        price.price_id,
    )


def rates_at(price: Price, input_tokens: int) -> Rates:
    """Return the rates for a whole call with that much input: each tier reached replaces what it names."""
    rates = price.rates
    if not price.tiers:
        return rates
    for tier in sorted(price.tiers, key=lambda tier: tier.from_input_tokens):
        if tier.from_input_tokens <= input_tokens:
            rates = {**rates, **tier.rates}
    return rates


def cost_parts(usage: Usage, price: Price) -> CostParts:
    """Return what one model's usage costs by a price, unrounded.

    Cached, audio and image tokens are *of which* parts: the base rate is for the rest. Parts that exceed their whole are
    cut to it, never refused: reads first, then writes; audio first, then images. A part without a rate costs what its
    whole costs (an hour's cache writes what other writes cost). Requests count 1 when 0.
    """
    rates = rates_at(price, usage.input_tokens)
    requests = usage.requests or 1
    other = (
        requests * rates.get("request", 0)
        + usage.images * rates.get("image", 0)
        + usage.web_searches * rates.get("web_search", 0)
    )
    return CostParts(_input_part(usage, rates), _output_part(usage, rates), other)


def _input_part(usage: Usage, rates: Rates) -> int:
    whole = usage.input_tokens
    read = min(usage.cache_read_tokens, whole)
    write = min(usage.cache_write_5m_tokens, whole - read)
    write_1h = min(usage.cache_write_1h_tokens, whole - read - write)
    cached = read + write + write_1h
    audio = min(usage.input_audio_tokens, whole)
    image = min(usage.input_image_tokens, whole - audio)
    # Usage does not say which of the audio was cached: none, as far as the whole has room for both.
    both = max(0, cached + audio + image - whole)
    audio_read = min(both, audio, read)
    image_cached = min(both - audio_read, image)
    audio -= both - image_cached
    image -= image_cached

    base = rates.get("input", 0)
    write_rate = rates.get("cache_write", base)
    audio_rate = rates.get("input_audio", base)
    read_rate = rates.get("cache_read", base)
    audio_read_rate = rates.get("cache_audio_read", rates.get("cache_read", audio_rate))
    return (
        (whole - cached - audio - image) * base
        + (read - audio_read) * read_rate
        + audio_read * audio_read_rate
        + write * write_rate
        + write_1h * rates.get("cache_write_1h", write_rate)
        + audio * audio_rate
        + image * rates.get("input_image", base)
    )


def _output_part(usage: Usage, rates: Rates) -> int:
    whole = usage.output_tokens
    audio = min(usage.output_audio_tokens, whole)
    image = min(usage.output_image_tokens, whole - audio)
    base = rates.get("output", 0)
    return (
        (whole - audio - image) * base
        + audio * rates.get("output_audio", base)
        + image * rates.get("output_image", base)
    )


def call_cost(
    items: Sequence[tuple[Usage, Price | None]], provider_cost_nanos: int | None = None
) -> CallCost:
    """Return what a call costs: the exact sum over its items, rounded once, half to even (S15).

    The input is rounded; the other part is what input and other together round to, less the input; the output is the
    remainder. So the parts sum to the total, none is negative, each is within a nano of its exact value, and one that
    costs nothing shows 0. An item without a price costs nothing. A call that the provider did not bill has no items. Where the first item's
    price is the cost that the provider reports, that is the other part.
    """
    parts = [cost_parts(usage, price) for usage, price in items if price is not None]
    inputs = sum(part.input for part in parts)
    others = sum(part.other for part in parts)
    if provider_cost_nanos is not None and items and items[0][1] is not None:
        others += provider_cost_nanos * items[0][1].rates.get(PROVIDER_COST, 0)
    outputs = sum(part.output for part in parts)
    upto_input = divide_half_even(inputs, UNITS_PER_RATE)
    upto_other = divide_half_even(inputs + others, UNITS_PER_RATE)
    total = divide_half_even(inputs + others + outputs, UNITS_PER_RATE)
    return CallCost(
        input_nanos=upto_input, output_nanos=total - upto_other, other_nanos=upto_other - upto_input
    )


def upper_bound_nanos(price: Price, input_tokens: int, output_tokens: int) -> int:
    """Return the most that one request with at most so many tokens can cost, in nanos, rounded up (S11).

    Every token is taken at the dearest rate of its side that the price names, in any tier that the input can reach.
    What is billed by the piece and made on the way (images, web searches) cannot be foreseen and is not in it.
    """
    reached = [tier.from_input_tokens for tier in price.tiers if tier.from_input_tokens <= input_tokens]
    levels = [rates_at(price, size) for size in (0, *reached)]
    inputs = max([_dearest(rates, _INPUT_RATES) for rates in levels])
    outputs = max([_dearest(rates, _OUTPUT_RATES) for rates in levels])
    requests = max([rates.get("request", 0) for rates in levels])
    numerator = input_tokens * inputs + output_tokens * outputs + requests
    return -(-numerator // UNITS_PER_RATE)


def affordable_output_tokens(price: Price, input_tokens: int, most: int, room_nanos: int) -> int:
    """Return the most output tokens, at most `most`, whose upper bound with the input fits `room_nanos`; -1 for none."""
    if upper_bound_nanos(price, input_tokens, 0) > room_nanos:
        return -1
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if upper_bound_nanos(price, input_tokens, middle) <= room_nanos:
            low = middle
        else:
            high = middle - 1
    return low


def _dearest(rates: Rates, names: Sequence[str]) -> int:
    return max([rates.get(name, 0) for name in names])


def is_free(price: Price) -> bool:
    """Whether nothing that the price names costs anything: such a model always passes a Check (S10)."""
    return not any(price.rates.values()) and not any(any(tier.rates.values()) for tier in price.tiers)


def checked_draft(draft: PriceDraft) -> PriceDraft:
    """Return a draft with its provider and tier in lower case and its size tiers in order.

    Raises INVALID_FIELD naming the field where it is no price: without a pattern or a rate, or beyond the bounds below.
    """
    pattern = draft.model_pattern.strip()
    if not pattern:
        raise invalid("price.model_pattern", "is needed: a model's name or a pattern such as gpt-4o*")
    if len(pattern) > MAX_PATTERN_LENGTH:
        raise invalid("price.model_pattern", f"must have at most {MAX_PATTERN_LENGTH} characters")
    if any(not letter.isprintable() or letter.isspace() for letter in pattern):
        raise invalid("price.model_pattern", "must have no spaces")
    _check_rates(draft.rates, "price")
    if PROVIDER_COST in draft.rates and (len(draft.rates) > 1 or draft.tiers):
        raise invalid("price.provider_cost_factor", "stands alone: such a price names nothing else")
    if len(draft.tiers) > MAX_PRICE_TIERS:
        raise invalid("price.tiers", f"must have at most {MAX_PRICE_TIERS} entries")
    for index, tier in enumerate(draft.tiers):
        if tier.from_input_tokens < 1:
            raise invalid(f"price.tiers[{index}].from_input_tokens", "must be at least 1")
        _check_rates(tier.rates, f"price.tiers[{index}]")
    tiers = tuple(sorted(draft.tiers, key=lambda tier: tier.from_input_tokens))
    if any(a.from_input_tokens == b.from_input_tokens for a, b in pairwise(tiers)):
        raise invalid("price.tiers", "must each begin at another size of the input")
    if draft.max_output_tokens is not None and not 1 <= draft.max_output_tokens <= MAX_OUTPUT_TOKENS:
        raise invalid("price.max_output_tokens", f"must be between 1 and {MAX_OUTPUT_TOKENS}")
    return replace(
        draft,
        model_pattern=pattern,
        provider=draft.provider.strip().lower(),
        service_tier=draft.service_tier.strip().lower(),
        tiers=tiers,
    )


def _check_rates(rates: Rates, path: str) -> None:
    if not rates:
        raise invalid(path, "needs at least one price: input_usd_per_million, say; 0 is free of charge")
    for unit, rate in rates.items():
        most = MAX_PIECE_RATE if unit in _PIECES else MAX_TOKEN_RATE
        if rate > (MAX_PROVIDER_COST_RATE if unit == PROVIDER_COST else most):
            raise invalid(path, f"the price of {unit.replace('_', ' ')} is too high")
