"""The prices that ship with Bursar."""

from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal

import pytest
from genai_prices import types as data
from genai_prices.data import providers
from hypothesis import given
from hypothesis import strategies as st

from bursar_server.pricing.catalogue import ALWAYS, CatalogueRow, changes, convert
from bursar_server.pricing.model import Price, PriceTier, Usage
from bursar_server.pricing.patterns import globs_of
from bursar_server.pricing.rules import PriceIndex, call_cost

NOW = datetime(2026, 11, 1, tzinfo=UTC)
MILLION = 1_000_000


@pytest.fixture(scope="module")
def shipped() -> list[Price]:
    return list(changes([], convert(providers).rows, NOW).added)


@pytest.fixture(scope="module")
def index(shipped: list[Price]) -> PriceIndex:
    return PriceIndex(shipped)


# -- what ships -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("provider", "model", "input_usd", "output_usd"),
    [
        ("openai", "gpt-4o-2024-08-06", "2.5", "10"),
        ("openai", "gpt-4o-mini", "0.15", "0.6"),
        ("anthropic", "claude-sonnet-4-5-20250929", "3", "15"),
        ("bedrock", "global.anthropic.claude-sonnet-4-5-20250929-v1:0", "3", "15"),
        ("azure", "gpt-4o", "2.5", "10"),
        ("vertex", "claude-sonnet-4-5@20250929", "3", "15"),
        ("gemini", "gemini-2.5-pro", "1.25", "10"),
        ("vertex", "gemini-2.5-pro", "1.25", "10"),
        ("ollama", "llama3.2:latest", "0", "0"),
        ("zai", "glm-4.7", "0.6", "2.2"),
        ("bedrock", "us.anthropic.claude-haiku-4-5-20251001-v1:0", "1.1", "5.5"),
        (
            "bedrock",
            "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.anthropic.claude-haiku-4-5-20251001-v1:0",
            "1.1",
            "5.5",
        ),
        (
            "bedrock",
            "arn:aws:bedrock:us-east-1::foundation-model/anthropic.claude-3-haiku-20240307-v1:0",
            "0.25",
            "1.25",
        ),
        ("bedrock", "openai.gpt-oss-20b-1:0", "0.07", "0.3"),
        ("bedrock", "openai.gpt-oss-20b", "0.07", "0.3"),
        ("bedrock", "arn:aws:bedrock:us-east-1:123456789012:provisioned-model/a1b2c3d4e5f6", "0", "0"),
        ("gemini", "models/gemini-2.5-flash", "0.3", "2.5"),
        ("vertex", "publishers/google/models/gemini-2.5-flash", "0.3", "2.5"),
        ("vertex", "google/gemini-2.5-flash", "0.3", "2.5"),
        (
            "bedrock",
            "arn:aws:bedrock:eu-west-1:123456789012:inference-profile/us.anthropic.claude-sonnet-5",
            "2.2",
            "11",
        ),
        ("vertex", "publishers/anthropic/models/claude-sonnet-4-5@20250929", "3", "15"),
    ],
)
def test_the_major_providers_have_prices(
    index: PriceIndex, provider: str, model: str, input_usd: str, output_usd: str
) -> None:
    """F111: per million tokens, as the providers' lists say it."""
    price = index.pick(provider, model, "", NOW)
    assert price is not None
    assert Decimal(price.rates["input"]).scaleb(-9) == Decimal(input_usd)
    assert Decimal(price.rates["output"]).scaleb(-9) == Decimal(output_usd)


def test_every_provider_that_calls_can_name_has_prices(shipped: list[Price]) -> None:
    """F111: of the upstreams that the sidecar knows, and of the other providers that the data has."""
    assert {price.provider for price in shipped} >= {
        "openai", "anthropic", "gemini", "vertex", "bedrock", "azure", "mistral", "groq", "deepseek", "xai", "cohere",
        "openrouter", "together", "cerebras", "perplexity", "huggingface", "ollama", "fireworks", "moonshotai", "zai",
    }  # fmt: skip


def test_a_batch_is_charged_at_the_batch_price_and_what_that_does_not_name_at_the_standard_one(
    index: PriceIndex,
) -> None:
    batch = index.pick("openai", "gpt-4o", "batch", NOW)
    assert batch is not None
    assert (batch.service_tier, batch.rates["input"], batch.rates["cache_read"]) == (
        "batch",
        1_250_000_000,
        1_250_000_000,
    )
    default = index.pick("openai", "gpt-4o", "default", NOW)
    assert default is not None
    assert default.service_tier == ""


def test_a_large_input_is_charged_at_its_tier_from_one_token_above_the_start(index: PriceIndex) -> None:
    price = index.pick("anthropic", "claude-sonnet-4-5", "", NOW)
    assert price is not None
    at = call_cost([(Usage(input_tokens=200_000), price)]).total_nanos
    above = call_cost([(Usage(input_tokens=200_001), price)]).total_nanos
    assert (at, above) == (600_000_000, 200_001 * 6000)


def names_in(match: data.MatchLogic) -> list[str]:
    """Names that a clause is about, and names like them."""
    inner = getattr(match, "or_", None) or getattr(match, "and_", None)
    if inner:
        return [name for clause in inner for name in names_in(clause)]
    for kind, likes in {
        "equals": ("{}", "{}-2025-11-11", "{}-latest", "{}-preview", "{}-thinking", "{}-mini"),
        "starts_with": ("{}", "{}x", "{}-20251111", "{}-latest", "{}-mini"),
        "ends_with": ("{}", "x/{}"),
        "contains": ("{}", "us.{}-v1:0", "{}-20250101", "x{}y"),
    }.items():
        value = getattr(match, kind, None)
        if value is not None:
            return [like.format(value.lower()) for like in likes]
    dated = match.regex.strip("^$") if isinstance(match, data.ClauseRegex) else ""
    if "(?" in dated:
        return []
    for said, example in (
        (r"\d{8}", "20260101"),
        (r"\d{4}-\d{2}-\d{2}", "2026-01-01"),
        (r"\d", "7"),
        ("\\", ""),
    ):
        dated = dated.replace(said, example)
    return [dated.replace("[-@]", "@")]


def test_rows_say_what_the_data_says_of_every_name_in_it_and_names_like_them(index: PriceIndex) -> None:
    """F111: but for speech variants of Gemini models that the data leaves unpriced (docs/prices.md)."""
    differing, asked = [], 0
    named = {"x-ai": "xai", "google": "vertex", "aws": "bedrock"}
    ours = {"openai", "anthropic", "google", "aws", "azure", "mistral", "groq", "deepseek", "x-ai", "cohere",
            "openrouter", "together", "cerebras", "perplexity"}  # fmt: skip
    for provider in providers:
        if provider.id not in ours:
            continue
        every = list(provider.models)
        every += [m for p in providers if p.id in (provider.fallback_model_providers or ()) for m in p.models]
        for name in sorted({name for model in every for name in names_in(model.match)}):
            asked += 1
            model = provider.find_model(name, all_providers=providers)
            price = index.pick(named.get(provider.id, provider.id), name, "", NOW)
            expected = None
            if model is not None and not hourly(model):
                expected = plain_input(model.get_prices(NOW))
            elif model is not None:
                continue
            found = Decimal(price.rates.get("input", 0)).scaleb(-9) if price else None
            if (found or 0) != (expected or 0) and "-tts" not in name:
                differing.append(f"{provider.id} {name}: {found} instead of {expected}")
    assert asked > 5000
    assert differing == []


def hourly(model: data.ModelInfo) -> bool:
    return isinstance(model.prices, list) and any(
        isinstance(each.constraint, data.TimeOfDateConstraint) for each in model.prices
    )


def plain_input(price: data.ModelPrice) -> Decimal | None:
    value = vars(price).get("input_mtok")
    base = value.base if isinstance(value, data.TieredPrices) else value
    return round(base, 9) if base is not None else None


# -- patterns ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clause", "globs"),
    [
        (data.ClauseEquals("GPT-4"), ["gpt-4"]),
        (data.ClauseStartsWith("gpt-"), ["gpt-*"]),
        (data.ClauseEndsWith("-free"), ["*-free"]),
        (data.ClauseContains("claude"), ["*claude*"]),
        (data.ClauseOr([data.ClauseEquals("a-1"), data.ClauseStartsWith("a"), data.ClauseEquals("b")]), ["a*", "b"]),
        (data.ClauseRegex(r"^a-5[-@]\d{8}$"), ["a-5-20??????", "a-5@20??????"]),
        (data.ClauseRegex(r"^a\.5-\d{4}-\d{2}-\d{2}$"), ["a.5-20??-??-??"]),
        (data.ClauseRegex(r"^a-\d"), [f"a-{digit}*" for digit in range(10)]),
        (data.ClauseAnd([data.ClauseStartsWith("a"), data.ClauseRegex(r"^(?!.*-tts$)")]), ["a*"]),
    ],
)  # fmt: skip
def test_clauses_become_globs(clause: data.MatchLogic, globs: list[str]) -> None:
    assert globs_of(clause) == (globs, [])


@pytest.mark.parametrize(
    "clause",
    [
        data.ClauseRegex(r"^a(b|c)$"),
        data.ClauseRegex("a"),
        data.ClauseEquals("a*"),
        data.ClauseAnd([data.ClauseContains("a"), data.ClauseContains("b")]),
    ],
)
def test_a_clause_that_no_glob_can_say_is_left_out_and_named(clause: data.MatchLogic) -> None:
    globs, problems = globs_of(clause)
    assert globs == []
    assert len(problems) == 1


# -- prices -----------------------------------------------------------------------------------------


def convert_one(prices: object, **more: object) -> list[CatalogueRow]:
    model = data.ModelInfo(id="m", match=data.ClauseEquals("m"), prices=prices, **more)  # type: ignore[arg-type]
    found = convert([data.Provider(id="openai", name="", api_pattern="", models=[model])])
    return [row for row in found.rows if row.provider == "openai"]


def usd(amount: str) -> data.ModelPrice:
    return data.ModelPrice(input_mtok=Decimal(amount))


def test_each_dated_price_counts_from_its_day() -> None:
    rows = convert_one(
        [
            data.ConditionalPrice(prices=usd("1")),
            data.ConditionalPrice(data.StartDateConstraint(date(2026, 5, 1)), prices=usd("2")),
        ]
    )
    assert [(row.effective_time, row.rates) for row in rows] == [
        (ALWAYS, {"input": 1_000_000_000}),
        (datetime(2026, 5, 1, tzinfo=UTC), {"input": 2_000_000_000}),
    ]


def test_of_prices_by_the_hour_the_dearest_counts_all_day() -> None:
    night = data.TimeOfDateConstraint(time(0), time(8))
    rows = convert_one(
        [data.ConditionalPrice(prices=usd("1")), data.ConditionalPrice(night, prices=usd("0.5"))]
    )
    assert [row.rates for row in rows] == [{"input": 1_000_000_000}]


def test_a_tiers_price_follows_the_standard_one_from_the_tiers_day_on() -> None:
    rows = convert_one(
        [
            data.ConditionalPrice(prices=data.ModelPrice(input_mtok=Decimal(1), output_mtok=Decimal(4))),
            data.ConditionalPrice(
                data.StartDateConstraint(date(2026, 6, 1)),
                prices=data.ModelPrice(input_mtok=Decimal(2), output_mtok=Decimal(8)),
            ),
        ],
        price_variants=[
            data.PriceVariant(
                {"processing": "batch"}, usd("0.5"), data.StartDateConstraint(date(2026, 5, 1))
            ),
            data.PriceVariant({"service_tier": "default"}, data.ModelPrice()),
        ],
    )
    assert [
        (row.effective_time.month, row.rates["input"] // 10**6, row.rates["output"] // 10**6)
        for row in rows
        if row.service_tier == "batch"
    ] == [(5, 500, 4000), (6, 500, 8000)]
    assert {row.service_tier for row in rows} == {"", "batch"}


def test_pieces_are_priced_per_million_and_units_that_calls_do_not_report_are_left_out() -> None:
    rows = convert_one(
        data.ModelPrice(requests_kcount=Decimal(12), input_mtok=Decimal(1), audio_hours=Decimal(3))
    )
    assert rows[0].rates == {"request": 12_000 * 10**9, "input": 10**9}
    assert convert_one(data.ModelPrice(audio_hours=Decimal(3))) == []


def test_a_model_without_a_price_is_free_only_if_its_name_says_so() -> None:
    """S10: unpriced is not free."""
    models = [
        data.ModelInfo(id=name, match=data.ClauseEquals(name), prices=data.ModelPrice())
        for name in ("a:free", "b")
    ]
    found = convert([data.Provider(id="openrouter", name="", api_pattern="", models=models)])
    assert [(row.model_pattern, row.rates) for row in found.rows if row.provider == "openrouter"] == [
        ("a:free", {"input": 0, "output": 0})
    ]
    assert found.left_out == ["openrouter b: no price in units of ours: its calls are unpriced"]


# -- from one version of the data to the next -------------------------------------------------------


def row(nanos: int, at: datetime = ALWAYS, pattern: str = "m") -> CatalogueRow:
    return CatalogueRow("p", pattern, "", at, {"input": nanos}, ())


def stored(*rows: CatalogueRow) -> list[Price]:
    return list(changes([], rows, NOW - timedelta(days=30)).added)


def test_the_same_data_changes_nothing_and_makes_the_same_ids() -> None:
    rows = [row(1), row(2, NOW - timedelta(days=3)), row(3, NOW + timedelta(days=3)), row(4, pattern="n")]
    assert changes(stored(*rows), rows, NOW).added == []
    assert changes(stored(*rows), rows, NOW).ended == []
    assert [price.price_id for price in stored(*rows)] == [price.price_id for price in stored(*rows)]
    assert len({price.price_id for price in stored(*rows)}) == 4


def test_a_corrected_price_counts_from_now_and_the_old_row_stays() -> None:
    """Never rewritten: records name the old one, and calls before now were charged by it."""
    found = changes(stored(row(1)), [row(2)], NOW)
    assert [(price.rates, price.effective_time) for price in found.added] == [({"input": 2}, NOW)]
    assert found.ended == []


def test_a_price_that_the_data_dates_later_counts_from_its_date() -> None:
    from_may = row(2, datetime(2026, 5, 1, tzinfo=UTC))
    assert [
        price.effective_time.month for price in changes(stored(row(1)), [row(1), from_may], NOW).added
    ] == [5]


def test_a_pattern_that_is_gone_ends_and_so_does_a_future_price_that_is_taken_back() -> None:
    before = stored(row(1), row(2, NOW + timedelta(days=3)), row(3, pattern="n"))
    found = changes(before, [row(1)], NOW)
    assert found.added == []
    assert set(found.ended) == {before[1].price_id, before[2].price_id}


def test_a_price_that_goes_back_is_a_new_row() -> None:
    before = [*stored(row(1)), *(replace(p, effective_time=NOW - timedelta(days=1)) for p in stored(row(2)))]
    found = changes(before, [row(1)], NOW)
    assert [(price.rates, price.effective_time) for price in found.added] == [({"input": 1}, NOW)]
    assert found.added[0].price_id not in {price.price_id for price in before}


futures = st.lists(
    st.tuples(st.integers(1, 4), st.sampled_from([-9, -3, 3, 9])), max_size=3, unique_by=lambda each: each[1]
)


@given(st.lists(futures, min_size=1, max_size=4))
def test_after_any_series_of_versions_every_instant_from_now_on_is_priced_as_the_last_one_says(
    versions: list[list[tuple[int, int]]],
) -> None:
    """F113: and no price of the past is rewritten on the way."""
    start = NOW
    live: dict[object, Price] = {}
    rows: list[CatalogueRow] = []
    for step, version in enumerate(versions):
        now = start + timedelta(hours=step)
        rows = [row(9)] + [row(nanos, start + timedelta(days=days)) for nanos, days in version]
        found = changes(live.values(), rows, now)
        for price_id in found.ended:
            del live[price_id]
        live |= {price.price_id: price for price in found.added}
    index = PriceIndex(live.values())
    for days in (0, 1, 2, 4, 8, 10):
        at = start + timedelta(days=days, hours=len(versions))
        price = index.pick("p", "m", "", at)
        expected = max(
            (each for each in rows if each.effective_time <= at), key=lambda each: each.effective_time
        )
        assert price is not None
        assert price.rates == expected.rates


def test_tiers_are_part_of_what_a_row_charges() -> None:
    tiered = replace(row(1), tiers=(PriceTier(10, {"input": 2}),))
    assert changes(stored(row(1)), [tiered], NOW).added[0].tiers == tiered.tiers
