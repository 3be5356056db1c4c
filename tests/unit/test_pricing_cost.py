"""What a call costs."""

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bursar_server.pricing.model import RATE_UNITS, CallCost, Price, PriceTier, Usage
from bursar_server.pricing.rules import call_cost, is_free, rates_at, upper_bound_nanos
from support.prices import a_price


def cost(usage: Usage, price: Price) -> tuple[int, int, int]:
    parts = call_cost([(usage, price)])
    return parts.input_nanos, parts.output_nanos, parts.other_nanos


def test_tokens_times_price_is_the_cost() -> None:
    """F101: 1,000 inputs at 2.50 USD and 500 outputs at 10 USD per million are 0.0025 + 0.005 USD."""
    price = a_price(input=2_500_000_000, output=10_000_000_000)
    assert cost(Usage(input_tokens=1000, output_tokens=500), price) == (2_500_000, 5_000_000, 0)


def test_a_call_without_a_price_costs_nothing() -> None:
    """F106."""
    assert call_cost([(Usage(input_tokens=1000), None)]) == CallCost(0, 0, 0)
    assert call_cost([]) == CallCost(0, 0, 0)


def test_cached_audio_and_image_tokens_are_parts_of_the_whole_at_their_own_rates() -> None:
    price = a_price(
        input=1000,
        output=2000,
        cache_read=100,
        cache_write=1250,
        cache_write_1h=2000,
        input_audio=30_000,
        input_image=500,
        output_audio=60_000,
        output_image=7000,
    )
    usage = Usage(
        input_tokens=10_000_000,
        cache_read_tokens=1_000_000,
        cache_write_5m_tokens=1_000_000,
        cache_write_1h_tokens=1_000_000,
        input_audio_tokens=1_000_000,
        input_image_tokens=1_000_000,
        output_tokens=4_000_000,
        reasoning_tokens=2_000_000,
        output_audio_tokens=1_000_000,
        output_image_tokens=1_000_000,
    )
    inputs = 5 * 1000 + 100 + 1250 + 2000 + 30_000 + 500
    assert cost(usage, price) == (inputs, 2 * 2000 + 60_000 + 7000, 0)


def test_a_part_without_a_rate_costs_what_its_whole_costs() -> None:
    million = 1_000_000
    plain = a_price(input=10, output=20)
    everything_cached = Usage(
        input_tokens=4 * million,
        cache_read_tokens=million,
        cache_write_5m_tokens=million,
        cache_write_1h_tokens=million,
        input_audio_tokens=million,
        output_tokens=million,
        output_audio_tokens=million,
    )
    assert cost(everything_cached, plain) == (40, 20, 0)
    hour = Usage(input_tokens=million, cache_write_1h_tokens=million)
    assert cost(hour, a_price(input=10, cache_write=12)) == (12, 0, 0)


def test_parts_larger_than_their_whole_are_cut_to_it() -> None:
    million = 1_000_000
    price = a_price(input=10, cache_read=1, cache_write=12, output=5, output_audio=50)
    usage = Usage(input_tokens=million, cache_read_tokens=3 * million, cache_write_5m_tokens=9 * million)
    assert cost(usage, price) == (1, 0, 0)
    assert cost(Usage(output_tokens=million, output_audio_tokens=2 * million), price) == (0, 50, 0)


def test_audio_that_can_only_have_come_from_the_cache_costs_the_cached_audio_rate() -> None:
    million = 1_000_000
    usage = Usage(
        input_tokens=10 * million, cache_read_tokens=8 * million, input_audio_tokens=5 * million
    )  # 3 million are both
    price = a_price(input=10, cache_read=1, input_audio=100, cache_audio_read=20)
    assert cost(usage, price) == (5 * 1 + 3 * 20 + 2 * 100, 0, 0)
    without = a_price(input=10, cache_read=1, input_audio=100)
    assert cost(usage, without) == (8 * 1 + 2 * 100, 0, 0)


def test_requests_images_and_searches_are_the_other_part_and_no_request_counts_as_one() -> None:
    price = a_price(request=5_000_000 * 10**6, image=40_000_000 * 10**6, web_search=10_000_000 * 10**6)
    assert cost(Usage(images=2, web_searches=3), price) == (0, 0, 5_000_000 + 80_000_000 + 30_000_000)
    assert cost(Usage(requests=4), price) == (0, 0, 20_000_000)
    assert cost(Usage(), a_price(input=1)) == (0, 0, 0)


def test_the_highest_tier_reached_prices_the_whole_call_and_keeps_what_it_does_not_name() -> None:
    tiers = (PriceTier(500_000, {"input": 40}), PriceTier(200_000, {"input": 20, "output": 30}))
    price = a_price(input=10, output=15, cache_read=1, tiers=tiers)
    assert rates_at(price, 199_999) == {"input": 10, "output": 15, "cache_read": 1}
    assert rates_at(price, 200_000) == {"input": 20, "output": 30, "cache_read": 1}
    assert rates_at(price, 500_000) == {"input": 40, "output": 30, "cache_read": 1}
    million = Usage(input_tokens=10**6, output_tokens=10**6)
    assert cost(million, price) == (40, 30, 0)


def test_a_cost_is_rounded_once_half_to_even() -> None:
    """S15: three items of half a nano each are 1.5 nanos, which is 2, not three times 0."""
    price = a_price(input=500_000, output=500_000)
    one = Usage(input_tokens=1)
    assert [call_cost([(one, price)] * n).total_nanos for n in range(1, 6)] == [0, 1, 2, 2, 2]


def test_no_part_is_ever_negative_where_the_parts_round_up_alone() -> None:
    """S15: 0.6 + 0.6 nanos is 1 nano, not 1 + 1 less an output of one."""
    price = a_price(input=600_000, request=600_000, output=1)
    assert cost(Usage(input_tokens=1), price) == (1, 0, 0)
    assert cost(Usage(input_tokens=1, output_tokens=1), price) == (1, 0, 0)


rates = st.dictionaries(st.sampled_from(RATE_UNITS), st.integers(0, 10**14), max_size=6)
price_tiers = st.lists(
    st.builds(PriceTier, st.integers(1, 2000), rates),
    max_size=3,
    unique_by=lambda tier: tier.from_input_tokens,
).map(tuple)
counts = st.integers(0, 3000)
usages = st.builds(
    Usage,
    input_tokens=counts,
    output_tokens=counts,
    cache_read_tokens=counts,
    cache_write_5m_tokens=counts,
    cache_write_1h_tokens=counts,
    input_audio_tokens=counts,
    output_audio_tokens=counts,
    input_image_tokens=counts,
    output_image_tokens=counts,
    images=st.integers(0, 3),
    web_searches=st.integers(0, 3),
    requests=st.integers(0, 3),
)
prices = st.builds(lambda rates, tiers: replace(a_price(tiers=tiers), rates=rates), rates, price_tiers)


def by_the_token(usage: Usage, price: Price) -> tuple[Fraction, Fraction, Fraction]:
    """The same cost the slow way: give every token a kind, then a rate, and add fractions of a dollar up."""
    named = dict(price.rates)
    for tier in sorted(price.tiers, key=lambda tier: tier.from_input_tokens):
        if usage.input_tokens >= tier.from_input_tokens:
            named.update(tier.rates)

    def rate(*names: str) -> Fraction:
        return Fraction(next((named[name] for name in names if name in named), 0), 10**6)

    n = usage.input_tokens
    cached = ["read"] * usage.cache_read_tokens
    cached += ["write"] * usage.cache_write_5m_tokens + ["write_1h"] * usage.cache_write_1h_tokens
    cached = (cached + [""] * n)[:n]
    # Kinds of content are laid out from the other end, so that they meet the cached ones only where they must; images
    # next to the end, so that audio meets them first.
    kinds = (["audio"] * usage.input_audio_tokens + ["image"] * usage.input_image_tokens)[:n]
    audio, image = kinds.count("audio"), kinds.count("image")
    used = sum(1 for how in cached if how)
    both = max(0, used + audio + image - n)
    audio_read = min(both, audio, cached.count("read"))
    image_cached = min(both - audio_read, image)
    audio_written = both - audio_read - image_cached
    reads, plain = cached.count("read"), n - used
    plain_audio, plain_image = audio - audio_read - audio_written, image - image_cached
    inputs = [rate("cache_audio_read", "cache_read", "input_audio", "input")] * audio_read
    inputs += [rate("cache_read", "input")] * (reads - audio_read)
    inputs += [rate("cache_write", "input")] * cached.count("write")
    inputs += [rate("cache_write_1h", "cache_write", "input")] * cached.count("write_1h")
    inputs += [rate("input_audio", "input")] * plain_audio + [rate("input_image", "input")] * plain_image
    inputs += [rate("input")] * (plain - plain_audio - plain_image)
    assert len(inputs) == n

    outputs = (["audio"] * usage.output_audio_tokens + ["image"] * usage.output_image_tokens)[
        : usage.output_tokens
    ]
    outputs += [""] * (usage.output_tokens - len(outputs))
    output = sum(
        (rate(f"output_{kind}", "output") if kind else rate("output") for kind in outputs), Fraction()
    )
    other = max(usage.requests, 1) * rate("request") + usage.images * rate("image")
    return sum(inputs, Fraction()), output, other + usage.web_searches * rate("web_search")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(usages, st.one_of(st.none(), prices)), max_size=3))
def test_a_cost_is_the_exact_sum_rounded_once_and_its_parts_sum_to_it(
    items: list[tuple[Usage, Price | None]],
) -> None:
    """S15, F101: against an independent calculation in fractions."""
    exact = [by_the_token(usage, price) for usage, price in items if price is not None]
    result = call_cost(items)
    assert result.total_nanos == round(sum((sum(parts) for parts in exact), Fraction()))
    parts = (result.input_nanos, result.output_nanos, result.other_nanos)
    for index, part in enumerate(parts):
        precise = sum((each[index] for each in exact), Fraction())
        assert part >= 0
        assert abs(part - precise) <= 1
        assert precise != 0 or part == 0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(usages, prices), min_size=1, max_size=3), st.integers(0, 1000))
def test_more_output_never_costs_less(items: list[tuple[Usage, Price]], more: int) -> None:
    text_only = [(u._replace(output_audio_tokens=0, output_image_tokens=0), p) for u, p in items]
    longer = [(usage._replace(output_tokens=usage.output_tokens + more), price) for usage, price in text_only]
    assert call_cost(longer).total_nanos >= call_cost(text_only).total_nanos


@settings(max_examples=100, deadline=None)
@given(usages, prices, st.integers(0, 500), st.integers(0, 500))
def test_no_usage_within_the_bound_costs_more_than_the_bound(
    usage: Usage, price: Price, more_input: int, more_output: int
) -> None:
    """S11: UPPER_BOUND holds the most that the call can cost, whatever is cached, whatever tier it ends in."""
    bound = upper_bound_nanos(price, usage.input_tokens + more_input, usage.output_tokens + more_output)
    asked = usage._replace(images=0, web_searches=0, requests=1)
    assert call_cost([(asked, price)]).total_nanos <= bound


@pytest.mark.parametrize(
    ("price", "free"),
    [
        (a_price(input=0, output=0), True),
        (a_price(), True),
        (a_price(input=0, output=1), False),
        (a_price(input=0, tiers=(PriceTier(10, {"input": 1}),)), False),
    ],
)
def test_only_a_price_of_nothing_at_all_is_free(price: Price, free: bool) -> None:
    """S10: a model priced at 0 always passes."""
    assert is_free(price) is free


# -- what the provider says itself ------------------------------------------------------------------


def test_a_price_can_be_what_the_provider_reports() -> None:
    """S15: to the nano, whatever the tokens; times the price's factor; as the other part."""
    a = a_price(provider_cost=1_000_000)
    usage = Usage(input_tokens=1000, output_tokens=1000)
    assert call_cost([(usage, a)], 105_200) == CallCost(0, 0, 105_200)
    assert call_cost([(usage, a), (usage, a)], 105_201) == CallCost(0, 0, 105_201)
    assert call_cost([(usage, a_price(provider_cost=1_055_000))], 1_001) == CallCost(0, 0, 1_056)
    assert call_cost([(usage, a)]) == CallCost(0, 0, 0)
    assert call_cost([], 5) == CallCost(0, 0, 0)


def test_a_reported_cost_is_only_kept_where_the_price_is_another() -> None:
    assert call_cost([(Usage(input_tokens=3), a_price(input=1_000_000))], 105_200) == CallCost(3, 0, 0)
