"""The SQL of API keys."""

from collections.abc import Collection
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row, insert, select, tuple_, update

from bursar_server.db.connection import Connection
from bursar_server.db.tables import api_keys
from bursar_server.keys.model import ApiKey


async def add(conn: Connection, key: ApiKey, sha256: str) -> None:
    """Add a key; `sha256` is what is kept of its secret."""
    await conn.execute(
        insert(api_keys).values(
            tenant_id=key.tenant_id,
            api_key_id=key.api_key_id,
            name=key.name,
            key_sha256=sha256,
            masked_key=key.masked_key,
            user_id=key.user_id,
            service_account=key.service_account,
            act_for_users=key.act_for_users,
            trust_user_field=key.trust_user_field,
            default_tags=dict(key.default_tags),
            create_time=key.create_time,
            revoke_time=key.revoke_time,
        )
    )


async def find(conn: Connection, api_key_id: UUID) -> ApiKey | None:
    """Return a key by its id, revoked or not."""
    row = (await conn.execute(select(api_keys).where(api_keys.c.api_key_id == api_key_id))).one_or_none()
    return _key(row) if row else None


async def list_keys(
    conn: Connection,
    tenant_ids: Collection[UUID] | None,
    *,
    user_id: UUID | None,
    include_revoked: bool,
    after: tuple[datetime, UUID] | None,
    limit: int | None,
) -> list[ApiKey]:
    """Return keys, latest first."""
    query = select(api_keys)
    if tenant_ids is not None:
        query = query.where(api_keys.c.tenant_id.in_(tenant_ids))
    if user_id is not None:
        query = query.where(api_keys.c.user_id == user_id)
    if not include_revoked:
        query = query.where(api_keys.c.revoke_time.is_(None))
    if after is not None:
        query = query.where(tuple_(api_keys.c.create_time, api_keys.c.api_key_id) < tuple_(*after))
    query = query.order_by(api_keys.c.create_time.desc(), api_keys.c.api_key_id.desc()).limit(limit)
    return [_key(row) for row in await conn.execute(query)]


async def revoke(conn: Connection, key: ApiKey, at: datetime) -> None:
    """Mark a key as revoked."""
    await conn.execute(
        update(api_keys)
        .where(api_keys.c.tenant_id == key.tenant_id, api_keys.c.api_key_id == key.api_key_id)
        .values(revoke_time=at)
    )


def _key(row: Row[Any]) -> ApiKey:
    return ApiKey(
        row.tenant_id,
        row.api_key_id,
        row.name,
        row.masked_key,
        row.user_id,
        row.service_account,
        row.act_for_users,
        row.trust_user_field,
        row.default_tags,
        row.create_time,
        row.revoke_time,
    )
