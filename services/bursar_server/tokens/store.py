"""The SQL of access tokens, and of who a secret belongs to."""

from typing import Any
from uuid import UUID

from sqlalchemy import Row, and_, literal, null, select, update
from sqlalchemy.dialects.postgresql import insert

from bursar_server.db.connection import Connection
from bursar_server.db.tables import access_tokens, api_keys, users
from bursar_server.db.tables.columns import Instant, UuidArray
from bursar_server.kit.caller import Role
from bursar_server.tokens.model import AccessToken, Bearer


async def add(conn: Connection, token: AccessToken, sha256: str) -> bool:
    """Add a token; return False where one with this secret is there already."""
    added = await conn.execute(
        insert(access_tokens)
        .values(
            token_id=token.token_id,
            token_sha256=sha256,
            name=token.name,
            role=token.role.value,
            tenant_ids=sorted(token.tenant_ids) if token.tenant_ids is not None else None,
            user_tenant_id=token.user_tenant_id,
            user_id=token.user_id,
            create_time=token.create_time,
            expire_time=token.expire_time,
            revoke_time=token.revoke_time,
        )
        .on_conflict_do_nothing(index_elements=[access_tokens.c.token_sha256])
        .returning(access_tokens.c.token_id)
    )
    return added.scalar_one_or_none() is not None


async def find_by_sha256(conn: Connection, sha256: str) -> AccessToken | None:
    """Return the token with this secret, whatever state it is in."""
    query = select(access_tokens).where(access_tokens.c.token_sha256 == sha256)
    row = (await conn.execute(query)).one_or_none()
    return _token(row) if row else None


async def list_tokens(conn: Connection) -> list[AccessToken]:
    """Return all tokens, latest first."""
    query = select(access_tokens).order_by(
        access_tokens.c.create_time.desc(), access_tokens.c.token_id.desc()
    )
    return [_token(row) for row in await conn.execute(query)]


async def revoke(conn: Connection, token: AccessToken) -> None:
    """Write a token's end."""
    await conn.execute(
        update(access_tokens)
        .where(access_tokens.c.token_id == token.token_id)
        .values(revoke_time=token.revoke_time)
    )


async def find(conn: Connection, token_id: UUID) -> AccessToken | None:
    """Return a token by its id, locked until the transaction ends."""
    query = select(access_tokens).where(access_tokens.c.token_id == token_id).with_for_update()
    row = (await conn.execute(query)).one_or_none()
    return _token(row) if row else None


async def bearer_of_token(conn: Connection, sha256: str) -> Bearer | None:
    """Return who has a token's secret, with its person; one indexed query."""
    table = access_tokens.c
    person = and_(users.c.tenant_id == table.user_tenant_id, users.c.user_id == table.user_id)
    query = (
        select(
            table.name, table.role, table.tenant_ids, table.user_tenant_id, table.user_id, table.expire_time,
            table.revoke_time, users.c.email, users.c.status, users.c.role.label("user_role"), literal(False).label("is_key"),
        )
        .select_from(access_tokens.outerjoin(users, person))
        .where(table.token_sha256 == sha256)
    )  # fmt: skip
    return await _bearer(conn, query)


async def bearer_of_key(conn: Connection, sha256: str) -> Bearer | None:
    """Return who has an API key's secret, with its user; one indexed query."""
    table = api_keys.c
    person = and_(users.c.tenant_id == table.tenant_id, users.c.user_id == table.user_id)
    query = (
        select(
            table.name, literal(Role.MEMBER.value).label("role"), null().cast(UuidArray).label("tenant_ids"),
            table.tenant_id.label("user_tenant_id"), table.user_id, null().cast(Instant).label("expire_time"),
            table.revoke_time, users.c.email, users.c.status, users.c.role.label("user_role"), literal(True).label("is_key"),
        )
        .select_from(api_keys.outerjoin(users, person))
        .where(table.key_sha256 == sha256)
    )  # fmt: skip
    return await _bearer(conn, query)


async def _bearer(conn: Connection, query: Any) -> Bearer | None:
    row = (await conn.execute(query)).one_or_none()
    if row is None:
        return None
    return Bearer(
        name=row.name,
        role=Role(row.role),
        tenant_ids=frozenset(row.tenant_ids) if row.tenant_ids is not None else None,
        user_tenant_id=row.user_tenant_id,
        user_id=row.user_id,
        expire_time=row.expire_time,
        revoke_time=row.revoke_time,
        user_email=row.email or "",
        user_status=row.status or "",
        user_role=row.user_role or "",
        is_key=row.is_key,
    )


def _token(row: Row[Any]) -> AccessToken:
    return AccessToken(
        row.token_id,
        row.name,
        Role(row.role),
        frozenset(row.tenant_ids) if row.tenant_ids is not None else None,
        row.user_tenant_id,
        row.user_id,
        row.create_time,
        row.expire_time,
        row.revoke_time,
    )
