"""Prices as people set them, and the catalogue that ships with Bursar."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

from bursar_server.audit.service import AuditService
from bursar_server.db.connection import Connection, database_now
from bursar_server.kit import ids, paging
from bursar_server.kit.caller import Caller
from bursar_server.kit.errors import BursarError, Reason, invalid, not_found
from bursar_server.pricing import catalogue, rules, store
from bursar_server.pricing.model import Price, PriceDraft, PriceSource, Rates
from bursar_server.tenants.service import TenantService

_CATALOGUE_ACTOR = "bursar"
_ALWAYS = datetime(1970, 1, 1, tzinfo=UTC)


class PricingService:
    """Makes, changes, ends and finds prices. Every method takes the connection of the caller's transaction."""

    def __init__(self, *, tenants: TenantService, audit: AuditService) -> None:
        self._tenants = tenants
        self._audit = audit

    async def create(self, conn: Connection, caller: Caller, tenant_ref: str, draft: PriceDraft) -> Price:
        """Make a price and return it (F109). Without a date it counts from now.

        `tenant_ref` empty is for all tenants where the caller speaks for the operator, else the caller's own tenant.
        """
        draft = rules.checked_draft(draft)
        if not tenant_ref and caller.is_platform and caller.may_see(ids.PLATFORM_TENANT_ID):
            owner, source = ids.PLATFORM_TENANT_ID, PriceSource.PLATFORM
        else:
            owner = (await self._tenants.resolve(conn, caller, tenant_ref)).tenant_id
            source = PriceSource.TENANT
        now = await self._tenants.begin_change(conn, owner)
        price = _from_draft(draft, owner, source, now)
        await store.add(conn, [price])
        await self._record(conn, caller, "create_price", price, details_of(price))
        return price

    async def update(
        self,
        conn: Connection,
        caller: Caller,
        price_id: UUID,
        version: int,
        tenant_ref: str,
        draft: PriceDraft,
    ) -> Price:
        """Replace a price and return what it is now, under a new id.

        Records name the price that they were charged by, so its row stays as it was and ends; the new one counts from
        the draft's date, or from the old one's, for calls settled from now on. Raises VERSION_STALE where `version` is
        neither 0 nor the current one.
        """
        draft = rules.checked_draft(draft)
        old = await self._changeable(conn, caller, price_id)
        if version not in (0, old.version):
            raise BursarError(
                Reason.VERSION_STALE, f"price.version: the price is at version {old.version}, not {version}"
            )
        if tenant_ref:
            owner = (await self._tenants.resolve(conn, caller, tenant_ref)).tenant_id
            if owner != old.tenant_id:
                raise invalid("price.tenant_id", "a price cannot move to another tenant")
        now = await self._tenants.begin_change(conn, old.tenant_id)
        new = replace(
            _from_draft(draft, old.tenant_id, old.source, now),
            effective_time=draft.effective_time or old.effective_time,
            create_time=old.create_time,
            version=old.version + 1,
        )
        await store.end(conn, [old.price_id], now)
        await store.add(conn, [new])
        details = {"replaces": str(old.price_id), "old": details_of(old), "new": details_of(new)}
        await self._record(conn, caller, "update_price", new, details)
        return new

    async def delete(self, conn: Connection, caller: Caller, price_id: UUID) -> None:
        """End a price: it counts no more; records that name it keep their cost."""
        price = await self._changeable(conn, caller, price_id)
        now = await self._tenants.begin_change(conn, price.tenant_id)
        await store.end(conn, [price_id], now)
        await self._record(conn, caller, "delete_price", price, details_of(price))

    async def list(
        self,
        conn: Connection,
        caller: Caller,
        tenant_ref: str,
        *,
        provider: str = "",
        model: str = "",
        source: PriceSource | None = None,
        page_size: int = 0,
        page_token: str = "",
    ) -> tuple[Sequence[Price], str]:
        """Return prices, a tenant's own first, then by pattern (F110), and the next page's token.

        Whoever speaks for the operator and names no tenant sees what all tenants share; others see their own as well.
        """
        size = paging.page_size_of(page_size)
        owners = await self._tenants.visible(conn, caller, tenant_ref) or frozenset()
        provider = provider.strip().lower()
        query = ["prices", sorted(map(str, owners)), provider, model, source]
        token = paging.decode_page_token(page_token, query, 6)
        after = None
        if token is not None:
            strength, pattern, named, tier, at, price_id = token
            instant = paging.position_instant(at)
            after = (strength, pattern, named, tier, instant, paging.position_uuid(price_id))
        wanted = store.PriceFilter(owners, provider, model.strip(), source)
        found = await store.list_prices(conn, wanted, after=after, limit=size + 1)
        return paging.cut_page(found, size, query, _position)

    async def lookup(
        self,
        conn: Connection,
        caller: Caller,
        tenant_ref: str,
        *,
        provider: str,
        model: str,
        service_tier: str = "",
        at: datetime | None = None,
        reported: bool = False,
    ) -> Price:
        """Return the price that a call of the tenant would be charged by (S15); `at` None is now.

        `reported` is whether the provider says itself what such a call cost.

        Raises PRICE_NOT_FOUND where the model has none: such calls are recorded at 0 and flagged (F106, F202).
        """
        if not model.strip():
            raise invalid("model", "is needed")
        tenant = await self._tenants.resolve(conn, caller, tenant_ref)
        provider, model = provider.strip().lower(), model.strip()
        instant = at or await database_now(conn)
        found = await store.candidates(
            conn, tenant.tenant_id, provider, rules.names_of(provider, model), instant
        )
        price = rules.pick(found, provider, model, service_tier.strip(), instant, reported)
        if price is None:
            raise BursarError(
                Reason.PRICE_NOT_FOUND,
                f"no price for model {model!r} of provider {provider!r}: make one with CreatePrice",
            )
        return price

    async def _changeable(self, conn: Connection, caller: Caller, price_id: UUID) -> Price:
        """Return a price locked for a change, or raise why this caller cannot change it."""
        price = await store.lock(conn, price_id)
        if price is None or (price.source is PriceSource.TENANT and not caller.may_see(price.tenant_id)):
            raise not_found("price", str(price_id))
        if price.source is PriceSource.CATALOGUE:
            raise BursarError(
                Reason.MANAGED_ELSEWHERE,
                "catalogue prices are read-only: a price of your own with the same pattern wins over it",
            )
        if price.source is PriceSource.PLATFORM and not (
            caller.is_platform and caller.may_see(ids.PLATFORM_TENANT_ID)
        ):
            raise BursarError(
                Reason.MANAGED_ELSEWHERE,
                "this price is the operator's: a price of your own with the same pattern wins over it",
            )
        return price

    async def _record(
        self, conn: Connection, caller: Caller, action: str, price: Price, details: Mapping[str, object]
    ) -> None:
        resource = f"price/{price.price_id}"
        await self._audit.record(
            conn, price.tenant_id, action, actor=caller.actor, resource=resource, details=details
        )


class CatalogueService:
    """Keeps the catalogue's prices as the installed data says (F111)."""

    def __init__(self, *, tenants: TenantService, audit: AuditService) -> None:
        self._tenants = tenants
        self._audit = audit

    async def ensure(self, conn: Connection) -> bool:
        """Bring the stored catalogue to the installed data; return whether anything was imported.

        One short query where nothing has changed. Several processes may do it at once: one imports, the others wait
        and find it done. Prices that records can name are never rewritten; see `catalogue.changes`.
        """
        fingerprint = catalogue.installed_fingerprint()
        if await store.catalogue_fingerprint(conn) == fingerprint:
            return False
        wanted = catalogue.read_catalogue()
        now = await self._tenants.begin_change(conn, ids.PLATFORM_TENANT_ID)
        if await store.catalogue_fingerprint(conn) == fingerprint:
            return False
        found = catalogue.changes(await store.stored_catalogue(conn), wanted.rows, now)
        await store.end(conn, found.ended, now)
        await store.add(conn, found.added)
        await store.remember_catalogue(conn, fingerprint)
        await self._audit.record(
            conn,
            ids.PLATFORM_TENANT_ID,
            "import_price_catalogue",
            actor=_CATALOGUE_ACTOR,
            resource="price_catalogue",
            details={"data": fingerprint, "added": len(found.added), "ended": len(found.ended)},
        )
        return True

    async def ensure_fallback(self, conn: Connection, rates: Rates | None) -> None:
        """Make the fallback price what the configuration says (C19), or end it where there is none.

        It is the weakest price there is: any model, any provider, in the catalogue. Records name it like any other.
        """
        found = [
            price
            for price in await store.stored_catalogue(conn)
            if (price.model_pattern, price.provider) == ("*", "")
        ]
        if [dict(price.rates) for price in found] == ([dict(rates)] if rates is not None else []):
            return
        now = await self._tenants.begin_change(conn, ids.PLATFORM_TENANT_ID)
        await store.end(conn, [price.price_id for price in found], now)
        if rates is not None:
            price = Price(
                ids.PLATFORM_TENANT_ID, ids.uuid7_at(now), PriceSource.CATALOGUE, "*", "", "", rates, (), None, _ALWAYS,
                now, now, 1,
            )  # fmt: skip
            await store.add(conn, [price])
        await self._audit.record(
            conn,
            ids.PLATFORM_TENANT_ID,
            "set_fallback_price",
            actor=_CATALOGUE_ACTOR,
            resource="price_catalogue",
            details={"nanos_per_million": dict(rates) if rates is not None else {}},
        )


def details_of(price: Price) -> dict[str, object]:
    """Return a price as the audit trail shows it: exact amounts, by unit."""
    return {
        "source": price.source.value,
        "model_pattern": price.model_pattern,
        "provider": price.provider,
        "service_tier": price.service_tier,
        "nanos_per_million": dict(price.rates),
        "tiers": [
            {"from_input_tokens": tier.from_input_tokens, "nanos_per_million": dict(tier.rates)}
            for tier in price.tiers
        ],
        "max_output_tokens": price.max_output_tokens,
        "effective_time": price.effective_time.isoformat(),
    }


def _position(price: Price) -> Sequence[str]:
    *texts, effective_time, price_id = store.position_of(price)
    return [*map(str, texts), effective_time.isoformat(), str(price_id)]


def _from_draft(draft: PriceDraft, owner: UUID, source: PriceSource, now: datetime) -> Price:
    return Price(
        tenant_id=owner,
        price_id=ids.uuid7_at(now),
        source=source,
        model_pattern=draft.model_pattern,
        provider=draft.provider,
        service_tier=draft.service_tier,
        rates=draft.rates,
        tiers=draft.tiers,
        max_output_tokens=draft.max_output_tokens,
        effective_time=draft.effective_time or now,
        create_time=now,
        update_time=now,
        version=1,
    )
