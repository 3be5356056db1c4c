"""The SQL of users."""

from collections.abc import Collection
from typing import Any
from uuid import UUID

from sqlalchemy import Row, Select, insert, select, tuple_, update

from bursar_server.db.connection import Connection
from bursar_server.db.tables import users
from bursar_server.kit.caller import Role
from bursar_server.users.model import User, UserStatus


async def find(conn: Connection, user_id: UUID, tenant_ids: Collection[UUID] | None) -> User | None:
    """Return a user by its id, deleted or not, where it is of one of the tenants (None is all)."""
    row = (await conn.execute(_of(tenant_ids).where(users.c.user_id == user_id))).one_or_none()
    return _user(row) if row else None


async def find_by_email(conn: Connection, email: str, tenant_ids: Collection[UUID] | None) -> list[User]:
    """Return the users that have an e-mail now: at most one of each tenant, and at most two."""
    query = _of(tenant_ids).where(users.c.email == email, users.c.status != UserStatus.DELETED.value)
    return [_user(row) for row in await conn.execute(query.order_by(users.c.tenant_id).limit(2))]


async def find_all(
    conn: Connection, tenant_id: UUID, user_ids: Collection[UUID], emails: Collection[str]
) -> list[User]:
    """Return the tenant's users, deleted ones left out, that have one of the ids or e-mails."""
    query = _of([tenant_id]).where(users.c.status != UserStatus.DELETED.value)
    query = query.where(users.c.user_id.in_(user_ids) | users.c.email.in_(emails))
    return [_user(row) for row in await conn.execute(query)]


async def list_users(
    conn: Connection,
    tenant_ids: Collection[UUID] | None,
    *,
    status: UserStatus | None,
    after: tuple[str, UUID] | None,
    limit: int,
) -> list[User]:
    """Return users by e-mail; without a status all but deleted ones."""
    query = _of(tenant_ids)
    if status is None:
        query = query.where(users.c.status != UserStatus.DELETED.value)
    else:
        query = query.where(users.c.status == status.value)
    if after is not None:
        query = query.where(tuple_(users.c.email, users.c.user_id) > tuple_(*after))
    query = query.order_by(users.c.email, users.c.user_id).limit(limit)
    return [_user(row) for row in await conn.execute(query)]


async def add(conn: Connection, user: User) -> None:
    """Add a user."""
    await conn.execute(insert(users).values(_columns(user)))


async def write(conn: Connection, user: User) -> None:
    """Write a user's fields."""
    await conn.execute(
        update(users)
        .where(users.c.tenant_id == user.tenant_id, users.c.user_id == user.user_id)
        .values(_columns(user))
    )


def _of(tenant_ids: Collection[UUID] | None) -> Select[Any]:
    query: Select[Any] = select(users)
    return query if tenant_ids is None else query.where(users.c.tenant_id.in_(tenant_ids))


def _columns(user: User) -> dict[str, object]:
    return {
        "tenant_id": user.tenant_id,
        "user_id": user.user_id,
        "email": user.email,
        "display_name": user.display_name,
        "role": user.role.value,
        "status": user.status.value,
        "service_account": user.service_account,
        "rate_limit": user.rate_limit,
        "create_time": user.create_time,
        "update_time": user.update_time,
    }


def _user(row: Row[Any]) -> User:
    return User(
        row.tenant_id,
        row.user_id,
        row.email,
        row.display_name,
        Role(row.role),
        UserStatus(row.status),
        row.service_account,
        row.rate_limit,
        row.create_time,
        row.update_time,
    )
