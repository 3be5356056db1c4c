"""The SQL of groups and their members."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

from sqlalchemy import Row, delete, exists, insert, select, tuple_, update

from bursar_server.db.connection import Connection
from bursar_server.db.tables import group_members, groups
from bursar_server.groups.model import Group


async def add(conn: Connection, group: Group) -> None:
    """Add a group and its members."""
    await conn.execute(insert(groups).values(_columns(group)))
    await _add_members(conn, group, group.user_ids)


async def write(conn: Connection, group: Group) -> None:
    """Write a group's own fields; its members stay."""
    await conn.execute(
        update(groups)
        .where(groups.c.tenant_id == group.tenant_id, groups.c.group_id == group.group_id)
        .values(_columns(group))
    )


async def replace_members(conn: Connection, group: Group, user_ids: Collection[UUID]) -> None:
    """Make these the members of a group."""
    gone = set(group.user_ids) - set(user_ids)
    if gone:
        await conn.execute(
            delete(group_members).where(
                group_members.c.tenant_id == group.tenant_id,
                group_members.c.group_id == group.group_id,
                group_members.c.user_id.in_(gone),
            )
        )
    await _add_members(conn, group, sorted(set(user_ids) - set(group.user_ids)))


async def remove(conn: Connection, group: Group) -> None:
    """Remove a group and its memberships."""
    of_group = (group_members.c.tenant_id == group.tenant_id) & (group_members.c.group_id == group.group_id)
    await conn.execute(delete(group_members).where(of_group))
    await conn.execute(
        delete(groups).where(groups.c.tenant_id == group.tenant_id, groups.c.group_id == group.group_id)
    )


async def remove_user(conn: Connection, tenant_id: UUID, user_id: UUID) -> None:
    """Take a user out of all groups."""
    await conn.execute(
        delete(group_members).where(
            group_members.c.tenant_id == tenant_id, group_members.c.user_id == user_id
        )
    )


async def find(conn: Connection, group_id: UUID) -> Group | None:
    """Return a group with its members."""
    row = (await conn.execute(select(groups).where(groups.c.group_id == group_id))).one_or_none()
    return (await _with_members(conn, [_group(row)]))[0] if row else None


async def name_taken(conn: Connection, tenant_id: UUID, name: str) -> bool:
    """Say whether a tenant has a group of this name."""
    query = select(exists().where(groups.c.tenant_id == tenant_id, groups.c.name == name))
    return bool((await conn.execute(query)).scalar_one())


async def list_groups(
    conn: Connection, tenant_id: UUID, *, after: tuple[str, UUID] | None, limit: int
) -> list[Group]:
    """Return a tenant's groups by name, with their members."""
    query = select(groups).where(groups.c.tenant_id == tenant_id)
    if after is not None:
        query = query.where(tuple_(groups.c.name, groups.c.group_id) > tuple_(*after))
    query = query.order_by(groups.c.name, groups.c.group_id).limit(limit)
    return await _with_members(conn, [_group(row) for row in await conn.execute(query)])


async def parents(conn: Connection, tenant_id: UUID) -> dict[UUID, UUID | None]:
    """Return what each of a tenant's groups is a part of."""
    query = select(groups.c.group_id, groups.c.parent_group_id).where(groups.c.tenant_id == tenant_id)
    return {row.group_id: row.parent_group_id for row in await conn.execute(query)}


async def groups_of(conn: Connection, tenant_id: UUID, user_id: UUID) -> list[UUID]:
    """Return the groups that a user is in itself."""
    query = select(group_members.c.group_id).where(
        group_members.c.tenant_id == tenant_id, group_members.c.user_id == user_id
    )
    return list((await conn.execute(query)).scalars())


async def _add_members(conn: Connection, group: Group, user_ids: Sequence[UUID]) -> None:
    if user_ids:
        rows = [
            {"tenant_id": group.tenant_id, "group_id": group.group_id, "user_id": user_id}
            for user_id in user_ids
        ]
        await conn.execute(insert(group_members), rows)


async def _with_members(conn: Connection, found: Sequence[Group]) -> list[Group]:
    members: dict[UUID, list[UUID]] = {group.group_id: [] for group in found}
    if found:
        query = select(group_members.c.group_id, group_members.c.user_id).where(
            group_members.c.tenant_id.in_({group.tenant_id for group in found}),
            group_members.c.group_id.in_(members),
        )
        for row in await conn.execute(query):
            members[row.group_id].append(row.user_id)
    return [replace(group, user_ids=tuple(sorted(members[group.group_id]))) for group in found]


def _columns(group: Group) -> dict[str, object]:
    return {
        "tenant_id": group.tenant_id,
        "group_id": group.group_id,
        "name": group.name,
        "parent_group_id": group.parent_group_id,
        "create_time": group.create_time,
        "update_time": group.update_time,
    }


def _group(row: Row[Any]) -> Group:
    return Group(row.tenant_id, row.group_id, row.name, row.parent_group_id, row.create_time, row.update_time)
