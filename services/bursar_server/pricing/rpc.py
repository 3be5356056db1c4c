"""PricingService on the wire: doubles in US dollars outside, nanos per million units inside."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from connectrpc.request import RequestContext

from bursar.v1 import price_pb2
from bursar.v1 import pricing_service_pb2 as pb
from bursar_server.db.unit_of_work import UnitOfWork
from bursar_server.kit.errors import invalid
from bursar_server.kit.ids import PLATFORM_TENANT_ID
from bursar_server.pricing.model import Price, PriceDraft, PriceSource, PriceTier, Rates
from bursar_server.pricing.rules import PROVIDER_COST
from bursar_server.pricing.service import PricingService
from bursar_server.rpc import fields
from bursar_server.rpc.auth import caller_of

Context = RequestContext[Any, Any]

_MAX_NAME_LENGTH = 200

_TOKEN_FIELDS: Mapping[str, str] = {
    "input_usd_per_million": "input",
    "output_usd_per_million": "output",
    "cache_read_usd_per_million": "cache_read",
    "cache_write_usd_per_million": "cache_write",
    "cache_write_1h_usd_per_million": "cache_write_1h",
    "input_audio_usd_per_million": "input_audio",
    "output_audio_usd_per_million": "output_audio",
}
_IMAGE_FIELDS: Mapping[str, str] = {
    "input_image_usd_per_million": "input_image",
    "output_image_usd_per_million": "output_image",
}
_PIECE_FIELDS: Mapping[str, str] = {
    "request_usd": "request",
    "image_usd": "image",
    "web_search_usd": "web_search",
}
_MILLION = 1_000_000
_FACTOR = "provider_cost_factor"


class PricingRpc:
    """Answers bursar.v1.PricingService."""

    def __init__(self, *, unit_of_work: UnitOfWork, pricing: PricingService) -> None:
        self._unit_of_work = unit_of_work
        self._pricing = pricing

    async def create_price(self, request: pb.CreatePriceRequest, ctx: Context) -> pb.CreatePriceResponse:
        """Make a price."""
        draft = _draft(request.price)
        async with self._unit_of_work.begin() as conn:
            price = await self._pricing.create(conn, caller_of(ctx), _tenant(request.price.tenant_id), draft)
        return pb.CreatePriceResponse(price=message_of(price))

    async def list_prices(self, request: pb.ListPricesRequest, ctx: Context) -> pb.ListPricesResponse:
        """List prices."""
        source = fields.choice(request.source, price_pb2.PriceSource, PriceSource, "source")
        async with self._unit_of_work.begin() as conn:
            found, token = await self._pricing.list(
                conn,
                caller_of(ctx),
                _tenant(request.tenant_id, "tenant_id"),
                provider=_name(request.provider, "provider"),
                model=_name(request.model, "model"),
                source=source,
                page_size=request.page_size,
                page_token=request.page_token,
            )
        return pb.ListPricesResponse(prices=map(message_of, found), next_page_token=token)

    async def update_price(self, request: pb.UpdatePriceRequest, ctx: Context) -> pb.UpdatePriceResponse:
        """Replace a price."""
        given = request.price
        draft = _draft(given)
        price_id = fields.uuid(given.price_id, "price.price_id")
        version = fields.integer(given.version, "price.version")
        async with self._unit_of_work.begin() as conn:
            price = await self._pricing.update(
                conn, caller_of(ctx), price_id, version, _tenant(given.tenant_id), draft
            )
        return pb.UpdatePriceResponse(price=message_of(price))

    async def delete_price(self, request: pb.DeletePriceRequest, ctx: Context) -> pb.DeletePriceResponse:
        """End a price."""
        price_id = fields.uuid(request.price_id, "price_id")
        async with self._unit_of_work.begin() as conn:
            await self._pricing.delete(conn, caller_of(ctx), price_id)
        return pb.DeletePriceResponse()

    async def lookup_price(self, request: pb.LookupPriceRequest, ctx: Context) -> pb.LookupPriceResponse:
        """Say which price a call would be charged by."""
        at = fields.instant(request, "at_time")
        async with self._unit_of_work.begin() as conn:
            price = await self._pricing.lookup(
                conn,
                caller_of(ctx),
                _tenant(request.tenant_id, "tenant_id"),
                provider=_name(request.provider, "provider"),
                model=_name(request.model, "model"),
                service_tier=_name(request.service_tier, "service_tier"),
                at=at,
                reported=request.provider_cost_reported,
            )
        return pb.LookupPriceResponse(price=message_of(price))


def _name(value: str, field: str) -> str:
    return fields.text(value, field, max_length=_MAX_NAME_LENGTH)


def _tenant(value: str, field: str = "price.tenant_id") -> str:
    return fields.text(value, field, max_length=_MAX_NAME_LENGTH)


def _draft(price: price_pb2.Price) -> PriceDraft:
    """Return the price that a request gives; id, source, times of change and version are the server's."""
    return PriceDraft(
        model_pattern=_name(price.model_pattern, "price.model_pattern"),
        provider=_name(price.provider, "price.provider"),
        service_tier=_name(price.service_tier, "price.service_tier"),
        rates=_rates(price, "price.", {**_TOKEN_FIELDS, **_IMAGE_FIELDS, **_PIECE_FIELDS}),
        tiers=tuple(
            PriceTier(tier.from_input_tokens, _rates(tier, f"price.tiers[{index}].", _TOKEN_FIELDS))
            for index, tier in enumerate(price.tiers)
        ),
        max_output_tokens=fields.optional_integer(price, "max_output_tokens", path="price."),
        effective_time=fields.instant(price, "effective_time", path="price."),
    )


def _rates(message: price_pb2.Price | price_pb2.PriceTier, path: str, names: Mapping[str, str]) -> Rates:
    rates = {}
    for field, unit in names.items():
        nanos = fields.usd(message, field, path=path)
        if nanos is not None:
            rates[unit] = nanos * _MILLION if field in _PIECE_FIELDS else nanos
    if (
        isinstance(message, price_pb2.Price)
        and (billionths := fields.usd(message, _FACTOR, path=path)) is not None
    ):
        millionths, rest = divmod(billionths, 1000)
        if rest:
            raise invalid(path + _FACTOR, "must have at most 6 decimals")
        rates[PROVIDER_COST] = millionths
    return rates


def message_of(price: Price) -> price_pb2.Price:
    """Return a price as the protocol says it."""
    message = price_pb2.Price(
        price_id=str(price.price_id),
        tenant_id="" if price.tenant_id == PLATFORM_TENANT_ID else str(price.tenant_id),
        model_pattern=price.model_pattern,
        provider=price.provider,
        service_tier=price.service_tier,
        tiers=[_tier_message(tier) for tier in price.tiers],
        max_output_tokens=price.max_output_tokens,
        effective_time=fields.timestamp_of(price.effective_time),
        source=f"PRICE_SOURCE_{price.source.value}",
        create_time=fields.timestamp_of(price.create_time),
        update_time=fields.timestamp_of(price.update_time),
        version=price.version,
    )
    if PROVIDER_COST in price.rates:
        message.provider_cost_factor = float(Decimal(price.rates[PROVIDER_COST]).scaleb(-6))
    _set_rates(message, price.rates, {**_TOKEN_FIELDS, **_IMAGE_FIELDS, **_PIECE_FIELDS})
    return message


def _tier_message(tier: PriceTier) -> price_pb2.PriceTier:
    message = price_pb2.PriceTier(from_input_tokens=tier.from_input_tokens)
    _set_rates(message, tier.rates, _TOKEN_FIELDS)
    return message


def _set_rates(
    message: price_pb2.Price | price_pb2.PriceTier, rates: Rates, names: Mapping[str, str]
) -> None:
    for field, unit in names.items():
        if unit in rates:
            setattr(message, field, float(Decimal(rates[unit]).scaleb(-15 if field in _PIECE_FIELDS else -9)))
