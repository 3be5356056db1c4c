"""Prices in the database: who may set them, what they cover, and that records' prices are never rewritten."""

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import text

from bursar.v1 import price_pb2
from bursar.v1 import pricing_service_pb2 as pb
from bursar_server.audit.service import AuditService
from bursar_server.db.unit_of_work import UnitOfWork
from bursar_server.kit.caller import Caller, Role
from bursar_server.kit.errors import BursarError, Reason
from bursar_server.kit.ids import DEFAULT_TENANT_ID, PLATFORM_TENANT_ID
from bursar_server.pricing import catalogue
from bursar_server.pricing.rpc import PricingRpc
from bursar_server.pricing.service import CatalogueService, PricingService
from bursar_server.tenants.service import TenantService
from support.called import called_by
from support.clock import FakeClock

OPERATOR = Caller(Role.PLATFORM_ADMIN, "operator")
ADMIN = Caller(Role.TENANT_ADMIN, "admin@example.com", frozenset({DEFAULT_TENANT_ID}))
OTHER_TENANT = UUID("00000000-0000-7000-8000-0000000000aa")
STRANGER = Caller(Role.TENANT_ADMIN, "stranger@example.com", frozenset({OTHER_TENANT}))
SOURCES = price_pb2.PriceSource


@pytest.fixture
async def prices(unit_of_work: UnitOfWork, clock: FakeClock) -> PricingRpc:
    audit = AuditService(clock=clock)
    tenants = TenantService(audit=audit, clock=clock)
    async with unit_of_work.begin() as conn:
        await conn.execute(
            text(
                "INSERT INTO tenants (tenant_id, name, status, create_time, update_time)"
                " VALUES (:id, 'other', 'ACTIVE', now(), now())"
            ),
            {"id": OTHER_TENANT},
        )
        await conn.execute(
            text("INSERT INTO config_versions (tenant_id, version) VALUES (:id, 1)"), {"id": OTHER_TENANT}
        )
    return PricingRpc(unit_of_work=unit_of_work, pricing=PricingService(tenants=tenants, audit=audit))


@pytest.fixture
def catalogue_service(clock: FakeClock) -> CatalogueService:
    audit = AuditService(clock=clock)
    return CatalogueService(tenants=TenantService(audit=audit, clock=clock), audit=audit)


async def create(prices: PricingRpc, caller: Caller = OPERATOR, **fields: Any) -> price_pb2.Price:
    given: dict[str, Any] = {
        "model_pattern": "gpt-4o*",
        "input_usd_per_million": 2.5,
        "output_usd_per_million": 10.0,
    } | fields
    response = await prices.create_price(
        pb.CreatePriceRequest(price=price_pb2.Price(**given)), called_by(caller)
    )
    return response.price


async def lookup(prices: PricingRpc, model: str, caller: Caller = ADMIN, **fields: Any) -> price_pb2.Price:
    request = pb.LookupPriceRequest(model=model, **({"provider": "openai"} | fields))
    return (await prices.lookup_price(request, called_by(caller))).price


async def listed(prices: PricingRpc, caller: Caller = ADMIN, **fields: Any) -> Sequence[price_pb2.Price]:
    return (await prices.list_prices(pb.ListPricesRequest(**fields), called_by(caller))).prices


async def rows(unit_of_work: UnitOfWork, statement: str, **values: object) -> list[Any]:
    async with unit_of_work.begin() as conn:
        return list(await conn.execute(text(statement), values))


async def refused(awaitable: Any) -> BursarError:
    with pytest.raises(BursarError) as caught:
        await awaitable
    return caught.value


async def test_a_price_comes_back_as_it_was_given_with_what_the_server_adds(
    prices: PricingRpc, clock: FakeClock
) -> None:
    """F109, F112: pattern, provider, prices per million, effective date; 0.1 stays 0.1."""
    price = await create(
        prices,
        provider="OpenAI",
        input_usd_per_million=0.1,
        cache_read_usd_per_million=0.0,
        request_usd=0.005,
        max_output_tokens=16384,
        effective_time=Timestamp(seconds=1_767_225_600),
        tiers=[
            price_pb2.PriceTier(from_input_tokens=200_001, input_usd_per_million=0.2),
        ],
        price_id="ignored",
    )
    assert (price.model_pattern, price.provider, price.source) == (
        "gpt-4o*",
        "openai",
        SOURCES.PRICE_SOURCE_PLATFORM,
    )
    assert (price.input_usd_per_million, price.output_usd_per_million, price.request_usd) == (
        0.1,
        10.0,
        0.005,
    )
    assert price.HasField("cache_read_usd_per_million")
    assert not price.HasField("image_usd")
    assert price.tiers[0].input_usd_per_million == 0.2
    assert (price.version, price.max_output_tokens, price.tenant_id) == (1, 16384, "")
    assert price.effective_time.seconds == 1_767_225_600
    assert UUID(price.price_id).version == 7
    assert (await listed(prices)) == [price]


async def test_a_price_without_a_date_counts_from_now_on(
    prices: PricingRpc, unit_of_work: UnitOfWork
) -> None:
    before = (await rows(unit_of_work, "SELECT clock_timestamp()"))[0][0]
    price = await create(prices)
    assert before <= price.effective_time.ToDatetime(before.tzinfo) <= before + timedelta(seconds=30)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model_pattern": " "}, "price.model_pattern"),
        ({"model_pattern": "a b"}, "price.model_pattern"),
        ({"model_pattern": "x" * 201}, "price.model_pattern"),
        ({"input_usd_per_million": -1.0}, "price.input_usd_per_million"),
        ({"input_usd_per_million": float("nan")}, "price.input_usd_per_million"),
        ({"input_usd_per_million": 0.0000000001}, "price.input_usd_per_million"),
        ({"input_usd_per_million": 2e6}, "price"),
        ({"request_usd": 1001.0}, "price"),
        ({"max_output_tokens": 0}, "price.max_output_tokens"),
        ({"tiers": [price_pb2.PriceTier(from_input_tokens=5)]}, "price.tiers[0]"),
        ({"tiers": [price_pb2.PriceTier(input_usd_per_million=5)]}, "price.tiers[0].from_input_tokens"),
        ({"tiers": [price_pb2.PriceTier(from_input_tokens=5, input_usd_per_million=5)] * 2}, "price.tiers"),
    ],
)
async def test_what_is_no_price_is_refused_with_the_field_named(
    prices: PricingRpc, fields: dict[str, Any], named: str
) -> None:
    """F109."""
    error = await refused(create(prices, **fields))
    assert (error.reason, error.field) == (Reason.INVALID_FIELD, named)


async def test_a_price_needs_at_least_one_rate_and_0_is_one(prices: PricingRpc) -> None:
    """S10: free is said, never meant by silence."""
    empty = pb.CreatePriceRequest(price=price_pb2.Price(model_pattern="m"))
    assert (await refused(prices.create_price(empty, called_by(OPERATOR)))).field == "price"
    free = pb.CreatePriceRequest(price=price_pb2.Price(model_pattern="m", input_usd_per_million=0))
    assert (await prices.create_price(free, called_by(OPERATOR))).price.input_usd_per_million == 0


async def test_a_tenants_price_is_its_own_and_wins(prices: PricingRpc) -> None:
    """S15, F013: the tenant's row, then the operator's; nobody else sees it."""
    shared = await create(prices, model_pattern="gpt-4o")
    own = await create(prices, ADMIN, model_pattern="*", input_usd_per_million=1.0)
    assert (own.source, own.tenant_id) == (SOURCES.PRICE_SOURCE_TENANT, str(DEFAULT_TENANT_ID))
    assert (await lookup(prices, "gpt-4o")).price_id == own.price_id
    assert (await lookup(prices, "gpt-4o", STRANGER)).price_id == shared.price_id
    assert [price.price_id for price in await listed(prices)] == [own.price_id, shared.price_id]
    assert [price.price_id for price in await listed(prices, STRANGER)] == [shared.price_id]
    assert [price.price_id for price in await listed(prices, OPERATOR)] == [shared.price_id]
    assert len(await listed(prices, OPERATOR, tenant_id="default")) == 2


async def test_the_operator_can_set_a_price_for_one_tenant(prices: PricingRpc) -> None:
    price = await create(prices, tenant_id=str(OTHER_TENANT))
    assert (price.source, price.tenant_id) == (SOURCES.PRICE_SOURCE_TENANT, str(OTHER_TENANT))


async def test_a_tenant_admin_sets_no_price_of_another_tenant_or_the_operator(prices: PricingRpc) -> None:
    """F005, C11."""
    shared = await create(prices)
    theirs = await create(prices, STRANGER)
    assert (await refused(create(prices, ADMIN, tenant_id=str(OTHER_TENANT)))).reason is Reason.NOT_FOUND
    ctx = called_by(ADMIN)
    for price_id, reason in (
        (theirs.price_id, Reason.NOT_FOUND),
        (shared.price_id, Reason.MANAGED_ELSEWHERE),
    ):
        changed = price_pb2.Price(price_id=price_id, model_pattern="x", input_usd_per_million=0)
        assert (
            await refused(prices.update_price(pb.UpdatePriceRequest(price=changed), ctx))
        ).reason is reason
        deletion = prices.delete_price(pb.DeletePriceRequest(price_id=price_id), ctx)
        assert (await refused(deletion)).reason is reason


async def test_an_update_is_a_new_row_and_the_old_one_stays_for_the_records_that_name_it(
    prices: PricingRpc, unit_of_work: UnitOfWork
) -> None:
    """F113: what was charged is charged; the price of a record can always be read again."""
    old = await create(prices)
    new = price_pb2.Price()
    new.CopyFrom(old)
    new.input_usd_per_million = 3.0
    updated = (await prices.update_price(pb.UpdatePriceRequest(price=new), called_by(OPERATOR))).price
    assert updated.price_id != old.price_id
    assert (updated.version, updated.input_usd_per_million) == (2, 3.0)
    assert (updated.effective_time, updated.create_time) == (old.effective_time, old.create_time)
    assert [price.price_id for price in await listed(prices)] == [updated.price_id]
    assert (await lookup(prices, "gpt-4o")).price_id == updated.price_id
    stored = await rows(
        unit_of_work, "SELECT rates, delete_time FROM prices WHERE price_id = :id", id=UUID(old.price_id)
    )
    assert stored[0].rates == {"input": 2_500_000_000, "output": 10_000_000_000}
    assert stored[0].delete_time is not None


async def test_a_stale_update_is_aborted(prices: PricingRpc) -> None:
    price = await create(prices)
    price.version = 7
    error = await refused(prices.update_price(pb.UpdatePriceRequest(price=price), called_by(OPERATOR)))
    assert error.reason is Reason.VERSION_STALE
    price.version = 0
    await prices.update_price(pb.UpdatePriceRequest(price=price), called_by(OPERATOR))
    again = await refused(prices.update_price(pb.UpdatePriceRequest(price=price), called_by(OPERATOR)))
    assert again.reason is Reason.NOT_FOUND


async def test_a_deleted_price_counts_no_more(prices: PricingRpc) -> None:
    """F110."""
    price = await create(prices)
    await prices.delete_price(pb.DeletePriceRequest(price_id=price.price_id), called_by(OPERATOR))
    assert await listed(prices) == []
    error = await refused(lookup(prices, "gpt-4o"))
    assert error.reason is Reason.PRICE_NOT_FOUND
    assert "gpt-4o" in error.message
    assert "openai" in error.message


async def test_every_change_is_in_the_trail_and_goes_to_every_process(
    prices: PricingRpc, unit_of_work: UnitOfWork
) -> None:
    """F128, S13."""
    price = await create(prices)
    price.input_usd_per_million = 3.0
    updated = (await prices.update_price(pb.UpdatePriceRequest(price=price), called_by(OPERATOR))).price
    await prices.delete_price(pb.DeletePriceRequest(price_id=updated.price_id), called_by(OPERATOR))
    events = await rows(
        unit_of_work,
        "SELECT action, actor, resource, details FROM audit_events WHERE tenant_id = :id ORDER BY sequence",
        id=PLATFORM_TENANT_ID,
    )
    assert [event.action for event in events] == ["create_price", "update_price", "delete_price"]
    assert {event.actor for event in events} == {"operator"}
    assert events[1].details["old"]["nanos_per_million"]["input"] == 2_500_000_000
    assert events[1].details["new"]["nanos_per_million"]["input"] == 3_000_000_000
    version = await rows(
        unit_of_work, "SELECT version FROM config_versions WHERE tenant_id = :id", id=PLATFORM_TENANT_ID
    )
    assert version[0].version == 4


async def test_lookup_says_the_price_at_an_instant_and_for_a_tier(prices: PricingRpc) -> None:
    """F109, F202."""
    first = await create(prices, effective_time=Timestamp(seconds=1000))
    second = await create(prices, effective_time=Timestamp(seconds=2000))
    batch = await create(prices, effective_time=Timestamp(seconds=1000), service_tier="batch")
    at = [
        (await lookup(prices, "GPT-4o-mini", at_time=Timestamp(seconds=instant))).price_id
        for instant in (1000, 1999, 2000)
    ]
    assert at == [first.price_id, first.price_id, second.price_id]
    assert (await lookup(prices, "gpt-4o", service_tier="Batch")).price_id == batch.price_id
    error = await refused(lookup(prices, "gpt-4o", at_time=Timestamp(seconds=999)))
    assert error.reason is Reason.PRICE_NOT_FOUND


async def test_a_list_can_be_filtered_and_turned_page_by_page(prices: PricingRpc) -> None:
    """F110, F123."""
    for pattern in ("a_c*", "abc", "a?c", "b%", "abcd"):
        await create(prices, model_pattern=pattern, provider="openai" if pattern == "abc" else "")
    matching = await listed(prices, model="ABC")
    assert {price.model_pattern for price in matching} == {"abc", "a?c"}
    assert {price.model_pattern for price in await listed(prices, model="a_cx")} == {"a_c*"}
    assert {price.model_pattern for price in await listed(prices, provider="openai")} == {"abc"}
    assert await listed(prices, source=SOURCES.PRICE_SOURCE_TENANT) == []
    seen, token = [], ""
    while True:
        page = await prices.list_prices(pb.ListPricesRequest(page_size=2, page_token=token), called_by(ADMIN))
        seen += [price.price_id for price in page.prices]
        token = page.next_page_token
        if not token:
            break
    assert seen == [price.price_id for price in await listed(prices)]
    assert len(seen) == 5


# -- the catalogue ----------------------------------------------------------------------------------


async def test_the_catalogue_is_imported_once_and_quickly(
    prices: PricingRpc, catalogue_service: CatalogueService, unit_of_work: UnitOfWork
) -> None:
    """F111: prices ship for the major providers."""
    catalogue.read_catalogue()
    started = time.perf_counter()
    async with unit_of_work.begin() as conn:
        assert await catalogue_service.ensure(conn)
    first = time.perf_counter() - started
    started = time.perf_counter()
    async with unit_of_work.begin() as conn:
        assert not await catalogue_service.ensure(conn)
    again = time.perf_counter() - started
    count = (await rows(unit_of_work, "SELECT count(*) FROM prices"))[0][0]
    assert count > 4000
    assert first < 3
    assert again < 0.2
    price = await lookup(prices, "gpt-4o-mini")
    assert (price.source, price.input_usd_per_million) == (SOURCES.PRICE_SOURCE_CATALOGUE, 0.15)


async def test_the_catalogue_can_be_read_but_not_changed(
    prices: PricingRpc, catalogue_service: CatalogueService, unit_of_work: UnitOfWork
) -> None:
    async with unit_of_work.begin() as conn:
        await catalogue_service.ensure(conn)
    price = await lookup(prices, "gpt-4o-mini")
    ctx = called_by(OPERATOR)
    deletion = await refused(prices.delete_price(pb.DeletePriceRequest(price_id=price.price_id), ctx))
    assert deletion.reason is Reason.MANAGED_ELSEWHERE
    update = await refused(prices.update_price(pb.UpdatePriceRequest(price=price), ctx))
    assert update.reason is Reason.MANAGED_ELSEWHERE
    own = await create(prices, model_pattern="gpt-4o-mini")
    assert (await lookup(prices, "gpt-4o-mini")).price_id == own.price_id
    assert (await listed(prices))[0].price_id == own.price_id


async def test_new_data_adds_rows_and_rewrites_none(
    catalogue_service: CatalogueService, unit_of_work: UnitOfWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F113: a record that names a catalogue price can be recomputed for ever."""

    def ships(version: str, *shipped: tuple[str, int]) -> None:
        found = [
            catalogue.CatalogueRow("openai", pattern, "", catalogue.ALWAYS, {"input": nanos}, ())
            for pattern, nanos in shipped
        ]
        monkeypatch.setattr(catalogue, "installed_fingerprint", lambda: version)
        monkeypatch.setattr(catalogue, "read_catalogue", lambda: catalogue.Catalogue(found, []))

    async def ensure() -> bool:
        async with unit_of_work.begin() as conn:
            return await catalogue_service.ensure(conn)

    ships("one", ("a", 1), ("b", 2), ("c", 3))
    assert await ensure()
    before = await rows(unit_of_work, "SELECT * FROM prices ORDER BY price_id")
    ships("two", ("a", 1), ("b", 5))
    assert await ensure()
    after = {row.price_id: row for row in await rows(unit_of_work, "SELECT * FROM prices")}
    assert len(after) == 4
    for row in before:
        kept = after[row.price_id]
        assert (kept.rates, kept.effective_time) == (row.rates, row.effective_time)
        assert (kept.delete_time is not None) == (row.model_pattern == "c")
    ships("one", ("a", 1), ("b", 5), ("c", 3))
    assert await ensure()
    back = await rows(unit_of_work, "SELECT * FROM prices WHERE model_pattern = 'c'")
    assert [row.delete_time for row in back] == [None]
    assert not await ensure()
    events = await rows(
        unit_of_work, "SELECT action, details FROM audit_events WHERE action = 'import_price_catalogue'"
    )
    assert [(event.details["added"], event.details["ended"]) for event in events] == [(3, 0), (1, 1), (1, 0)]


async def test_a_price_can_be_the_cost_that_the_provider_reports(prices: PricingRpc) -> None:
    """S15: chosen for an upstream by its name; it says nothing else, and LookupPrice says when it counts."""
    await create(prices)
    alone: dict[str, Any] = {"input_usd_per_million": None, "output_usd_per_million": None}
    made = await create(prices, model_pattern="*", provider="openai", provider_cost_factor=1.055, **alone)
    assert (made.provider_cost_factor, made.HasField("input_usd_per_million")) == (1.055, False)
    assert await lookup(prices, "gpt-4o", provider_cost_reported=True) == made
    assert (await lookup(prices, "gpt-4o")).model_pattern == "gpt-4o*"
    for factor, more in ((1.0, {"input_usd_per_million": 1.0}), (100.000001, {}), (0.0000001, {})):
        with pytest.raises(BursarError) as refused:
            await create(prices, **(alone | {"provider_cost_factor": factor} | more))
        assert refused.value.reason is Reason.INVALID_FIELD
