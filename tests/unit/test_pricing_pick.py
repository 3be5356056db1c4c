"""Which price counts for a call."""

import re
import time
from dataclasses import replace
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from bursar_server.pricing.model import Price, PriceSource
from bursar_server.pricing.rules import MAX_REMEMBERED_NAMES, PriceIndex, glob_matches, pick
from support.prices import DAY, a_price


def picked(prices: list[Price], model: str = "gpt-4o-mini", provider: str = "openai", tier: str = "") -> int:
    found = pick(prices, provider, model, tier, DAY + timedelta(days=100))
    return found.price_id.int if found else 0


def test_the_tenants_own_price_wins_over_the_operators_and_that_over_the_catalogue() -> None:
    """S15: however general it is."""
    catalogue = a_price("gpt-4o-mini", provider="openai", number=1)
    platform = a_price("gpt-4o*", source=PriceSource.PLATFORM, number=2)
    tenant = a_price("*", source=PriceSource.TENANT, number=3)
    assert picked([catalogue, platform, tenant]) == 3
    assert picked([catalogue, platform]) == 2
    assert picked([catalogue]) == 1


def test_a_row_that_names_the_provider_wins_then_one_that_names_the_tier_then_the_longest_pattern() -> None:
    """F109, S15: most literal characters, not the length with wildcards."""
    assert picked([a_price("gpt-4o-mini", number=1), a_price("*", provider="openai", number=2)]) == 2
    batch = a_price("gpt-*", tier="batch", number=1)
    assert picked([batch, a_price("gpt-4o-mini", number=2)], tier="batch") == 1
    assert picked([a_price("gpt-4*", number=1), a_price("gpt-4o*", number=2)]) == 2
    assert picked([a_price("gpt-??-????", number=1), a_price("gpt-4o*", number=2)]) == 2


def test_a_tier_without_a_row_of_its_own_is_charged_by_the_row_without_a_tier() -> None:
    plain, batch = a_price("*", number=1), a_price("*", tier="batch", number=2)
    assert picked([plain, batch], tier="flex") == 1
    assert picked([plain, batch]) == 1
    assert picked([batch]) == 0


def test_the_newest_effective_price_counts_and_a_later_one_does_not_count_yet() -> None:
    """F109: the effective date says when a price takes effect; its first instant is included."""
    old, new = a_price("m", number=1), a_price("m", at=DAY + timedelta(days=10), number=2)
    for prices in ([old, new], [new, old]):
        before = pick(prices, "x", "m", "", DAY + timedelta(days=10) - timedelta(microseconds=1))
        at = pick(prices, "x", "m", "", DAY + timedelta(days=10))
        assert (before, at) == (old, new)
    assert pick([new], "x", "m", "", DAY) is None


def test_of_equal_rows_the_one_made_last_counts() -> None:
    first = a_price("m", number=9)
    second = replace(a_price("m", number=1), create_time=DAY + timedelta(seconds=1))
    assert picked([first, second], model="m") == picked([second, first], model="m") == 1


def test_case_does_not_matter_and_another_providers_row_does_not_count() -> None:
    assert picked([a_price("Meta-Llama/*", provider="Together")], "meta-llama/LLAMA-3", "together") == 1
    assert picked([a_price("*", provider="azure")]) == 0


def as_regex(pattern: str) -> str:
    return "".join({"*": ".*", "?": "."}.get(letter, re.escape(letter)) for letter in pattern)


@given(st.text("ab.*?", max_size=8), st.text("ab.*?", max_size=10))
def test_globs_say_what_the_same_regular_expression_says(pattern: str, text: str) -> None:
    assert glob_matches(pattern, text) == bool(re.fullmatch(as_regex(pattern), text, re.DOTALL))


def test_a_hostile_glob_is_answered_at_once() -> None:
    started = time.monotonic()
    assert not glob_matches("a*" * 100 + "?b", "a" * 200)
    assert not glob_matches("*?a" * 66 + "b", "a" * 200)
    assert time.monotonic() - started < 0.1


names = st.sampled_from(
    ["gpt", "gpt-4", "gpt-4o", "o1", "gpt*", "gpt-4*", "*", "?pt-4", "g*4", "*o", "GPT-4"]
)


@given(
    st.lists(
        st.builds(
            a_price,
            names,
            source=st.sampled_from(PriceSource),
            provider=st.sampled_from(["", "openai", "azure"]),
            tier=st.sampled_from(["", "batch"]),
            at=st.sampled_from([DAY, DAY + timedelta(days=1)]),
            number=st.integers(1, 1000),
        ),
        max_size=12,
        unique_by=lambda price: price.price_id,
    ),
    st.sampled_from(["gpt-4", "gpt", "gpt-4o", "o1", "x"]),
    st.sampled_from(["openai", "azure", "groq"]),
    st.sampled_from(["", "batch", "flex"]),
)
def test_the_index_finds_what_looking_at_every_row_finds(
    prices: list[Price], model: str, provider: str, tier: str
) -> None:
    """S15, row by row."""
    strength = [PriceSource.CATALOGUE, PriceSource.PLATFORM, PriceSource.TENANT]
    fitting = [
        price
        for price in prices
        if re.fullmatch(as_regex(price.model_pattern.lower()), model)
        and price.provider in ("", provider)
        and price.service_tier in ("", tier)
        and price.effective_time <= DAY
    ]

    def order(price: Price) -> tuple[object, ...]:
        literals = len(re.sub(r"[*?]", "", price.model_pattern))
        return (
            strength.index(price.source),
            bool(price.provider),
            bool(price.service_tier),
            literals,
            price.price_id,
        )

    expected = max(fitting, key=order, default=None)
    assert PriceIndex(prices).pick(provider, model, tier, DAY) == expected


def test_one_of_thousands_of_rows_is_found_in_far_less_than_a_millisecond() -> None:
    prices = [a_price(f"model-{i}{'*' * (i % 2)}", provider=f"p{i % 9}", number=i + 1) for i in range(4000)]
    prices += [a_price(f"*name-{i}*", provider="p1", number=5000 + i) for i in range(50)]
    index = PriceIndex(prices)
    started = time.perf_counter()
    for _ in range(100):
        assert index.pick("p1", "other-1234", "batch", DAY) is None
        assert index.pick("p1", "model-3601-x", "", DAY) is not None
    assert (time.perf_counter() - started) / 200 < 0.001


def test_a_price_that_is_the_providers_own_counts_only_where_the_provider_says_one() -> None:
    """S15: calls without such a report are charged by the other prices."""
    theirs = a_price("*", source=PriceSource.PLATFORM, provider_cost=1_000_000)
    ours = a_price("m", input=5, number=2)
    assert pick([theirs, ours], "openrouter", "m", "", DAY, True) is theirs
    assert pick([theirs, ours], "openrouter", "m", "", DAY) is ours
    assert pick([theirs], "openrouter", "m", "", DAY) is None


def test_names_asked_for_before_are_found_as_at_first() -> None:
    """S15: whatever is remembered of a name, instant, tier and report are looked at in each call; memory is bounded."""
    index = PriceIndex([a_price("m*", input=1), a_price("m*", tier="batch", input=2, number=2)])
    for round_of in range(2):
        for name in range(MAX_REMEMBERED_NAMES + 10):
            assert index.pick("p", f"m{name}", "", DAY) == a_price("m*", input=1), round_of
    assert index.pick("p", "m0", "batch", DAY) == a_price("m*", tier="batch", input=2, number=2)
    assert index.pick("p", "m0", "", DAY - timedelta(days=1)) is None
    assert len(index._fitting) <= MAX_REMEMBERED_NAMES
