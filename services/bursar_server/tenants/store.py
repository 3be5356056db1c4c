"""The SQL of tenants and of the versions of their configuration."""

from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row, func, insert, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import IntegrityError

from bursar_server.db.connection import Connection, lock_tenant
from bursar_server.db.tables import config_versions, tenants
from bursar_server.kit.errors import BursarError, Reason
from bursar_server.kit.ids import PLATFORM_TENANT_ID
from bursar_server.tenants.model import Tenant, TenantStatus


async def bump_version(conn: Connection, tenant_id: UUID) -> datetime | None:
    """Raise the version of a tenant's configuration, and keep its metering out until the transaction ends.

    Returns the database's clock from then on, or None where there is no such tenant.
    """
    await lock_tenant(conn, tenant_id)
    now = await conn.execute(
        update(config_versions)
        .where(config_versions.c.tenant_id == tenant_id)
        .values(version=config_versions.c.version + 1)
        .returning(func.clock_timestamp())
    )
    found: datetime | None = now.scalar_one_or_none()
    return found.astimezone(UTC) if found is not None else None


async def find(conn: Connection, *, tenant_id: UUID | None = None, name: str = "") -> Tenant | None:
    """Return a tenant by its id or its exact name; the platform's own row is none."""
    query = select(tenants).where(tenants.c.tenant_id != PLATFORM_TENANT_ID)
    query = query.where(tenants.c.tenant_id == tenant_id if tenant_id else tenants.c.name == name)
    row = (await conn.execute(query)).one_or_none()
    return _tenant(row) if row else None


async def list_tenants(
    conn: Connection, tenant_ids: Collection[UUID] | None, *, after: tuple[str, UUID] | None, limit: int
) -> list[Tenant]:
    """Return tenants by name; `tenant_ids` None is all. The platform's own row is not among them."""
    query = select(tenants).where(tenants.c.tenant_id != PLATFORM_TENANT_ID)
    if tenant_ids is not None:
        query = query.where(tenants.c.tenant_id.in_(tenant_ids))
    if after is not None:
        query = query.where(tuple_(tenants.c.name, tenants.c.tenant_id) > tuple_(*after))
    query = query.order_by(tenants.c.name, tenants.c.tenant_id).limit(limit)
    return [_tenant(row) for row in await conn.execute(query)]


async def add(conn: Connection, tenant: Tenant) -> bool:
    """Add a tenant and its first version; return False where the name is taken."""
    added = await conn.execute(
        upsert(tenants)
        .values(_columns(tenant))
        .on_conflict_do_nothing(index_elements=[tenants.c.name])
        .returning(tenants.c.tenant_id)
    )
    if added.scalar_one_or_none() is None:
        return False
    await conn.execute(insert(config_versions).values(tenant_id=tenant.tenant_id, version=1))
    return True


async def write(conn: Connection, tenant: Tenant) -> None:
    """Write a tenant's fields. Raises ALREADY_EXISTS where the name is taken; the transaction is over then."""
    try:
        await conn.execute(
            update(tenants).where(tenants.c.tenant_id == tenant.tenant_id).values(_columns(tenant))
        )
    except IntegrityError as error:
        raise BursarError(
            Reason.ALREADY_EXISTS, f"name: a tenant {tenant.name!r} exists already", field="name"
        ) from error


def _columns(tenant: Tenant) -> dict[str, object]:
    return {
        "tenant_id": tenant.tenant_id,
        "name": tenant.name,
        "status": tenant.status.value,
        "region": tenant.region,
        "metadata": dict(tenant.metadata),
        "create_time": tenant.create_time,
        "update_time": tenant.update_time,
    }


def _tenant(row: Row[Any]) -> Tenant:
    return Tenant(
        row.tenant_id,
        row.name,
        TenantStatus(row.status),
        row.region,
        row.metadata,
        row.create_time,
        row.update_time,
    )
