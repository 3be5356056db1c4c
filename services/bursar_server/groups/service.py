"""Groups: people who share a budget, nested, with names unique in their tenant."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from uuid import UUID

from bursar_server.audit.service import AuditService
from bursar_server.budgets.service import BudgetService
from bursar_server.db.connection import Connection
from bursar_server.groups import rules, store
from bursar_server.groups.model import Group
from bursar_server.kit import ids, paging
from bursar_server.kit.caller import Caller
from bursar_server.kit.clock import Clock
from bursar_server.kit.errors import BursarError, Reason, not_found
from bursar_server.tenants.service import TenantService


class GroupService:
    """Makes, changes and removes groups. Every method takes the connection of the caller's transaction.

    Users are given by id: whoever calls has made sure that they are the tenant's.
    """

    def __init__(
        self, *, tenants: TenantService, budgets: BudgetService, audit: AuditService, clock: Clock
    ) -> None:
        self._tenants = tenants
        self._budgets = budgets
        self._audit = audit
        self._clock = clock

    async def create(
        self,
        conn: Connection,
        caller: Caller,
        tenant_id: UUID,
        *,
        name: str,
        parent_group_id: UUID | None = None,
        user_ids: Collection[UUID] = (),
    ) -> Group:
        """Make a group. Raises ALREADY_EXISTS where the tenant has one of the name, NOT_FOUND for a foreign parent."""
        caller.require_tenant(tenant_id)
        await self._tenants.begin_change(conn, tenant_id)
        now = self._clock.now()
        group = Group(
            tenant_id,
            ids.uuid7_at(now),
            rules.group_name(name),
            parent_group_id,
            now,
            now,
            tuple(sorted(set(user_ids))),
        )
        await self._check(conn, group, name_is_new=True)
        await store.add(conn, group)
        await self._record(conn, "create_group", caller, group, _details(group))
        return group

    async def get(self, conn: Connection, caller: Caller, group_id: UUID) -> Group:
        """Return a group with its members. Raises NOT_FOUND for one that the caller may not see."""
        group = await store.find(conn, group_id)
        if group is None or not caller.may_see(group.tenant_id):
            raise not_found("group", str(group_id))
        return group

    async def list(
        self, conn: Connection, tenant_id: UUID, *, page_size: int = 0, page_token: str = ""
    ) -> tuple[Sequence[Group], str]:
        """Return a tenant's groups by name, and the next page's token."""
        size = paging.page_size_of(page_size)
        query = ["groups", tenant_id]
        token = paging.decode_page_token(page_token, query, 2)
        after = (token[0], paging.position_uuid(token[1])) if token else None
        found = await store.list_groups(conn, tenant_id, after=after, limit=size + 1)
        return paging.cut_page(found, size, query, lambda group: [group.name, str(group.group_id)])

    async def update(
        self,
        conn: Connection,
        caller: Caller,
        group_id: UUID,
        *,
        name: str | None = None,
        parent_group_id: UUID | None = None,
        take_out: bool = False,
    ) -> Group:
        """Change a group's name, or what it is a part of; `take_out` makes it a part of nothing.

        Raises INVALID_FIELD where groups would lie in a circle.
        """
        before = await self._locked(conn, caller, group_id)
        parent = None if take_out else parent_group_id or before.parent_group_id
        after = replace(
            before,
            name=before.name if name is None else rules.group_name(name),
            parent_group_id=parent,
            update_time=self._clock.now(),
        )
        await self._check(conn, after, name_is_new=after.name != before.name)
        await store.write(conn, after)
        await self._record(
            conn, "update_group", caller, after, {"old": _details(before), "new": _details(after)}
        )
        return after

    async def delete(self, conn: Connection, caller: Caller, group_id: UUID) -> None:
        """Remove a group. Raises WRONG_STATE where groups lie below it, or an enabled budget counts it."""
        group = await self._locked(conn, caller, group_id)
        parents = await store.parents(conn, group.tenant_id)
        if group_id in parents.values():
            raise BursarError(Reason.WRONG_STATE, f"other groups are a part of {group.name!r}")
        if await self._budgets.counts_group(conn, group.tenant_id, group_id):
            raise BursarError(
                Reason.WRONG_STATE, f"an enabled budget counts {group.name!r}: delete or disable it first"
            )
        await store.remove(conn, group)
        await self._record(conn, "delete_group", caller, group, _details(group))

    async def set_members(
        self, conn: Connection, caller: Caller, group_id: UUID, user_ids: Collection[UUID]
    ) -> Group:
        """Replace a group's members; calls made before keep the groups they were made in (F108)."""
        before = await self._locked(conn, caller, group_id)
        after = replace(before, user_ids=tuple(sorted(set(user_ids))), update_time=self._clock.now())
        await store.replace_members(conn, before, after.user_ids)
        await store.write(conn, after)
        details = {
            "added": [str(user_id) for user_id in after.user_ids if user_id not in before.user_ids],
            "removed": [str(user_id) for user_id in before.user_ids if user_id not in after.user_ids],
        }
        await self._record(conn, "set_group_members", caller, after, details)
        return after

    async def counting(self, conn: Connection, tenant_id: UUID, user_id: UUID) -> frozenset[UUID]:
        """Return the groups that a user's calls count for: its own, and all that those are a part of (S1)."""
        own = await store.groups_of(conn, tenant_id, user_id)
        return rules.with_those_above(own, await store.parents(conn, tenant_id) if own else {})

    async def led_by(self, conn: Connection, tenant_id: UUID, user_id: UUID) -> frozenset[UUID]:
        """Return the groups that a group lead reads: those it is in, and all that are a part of them (F013)."""
        own = await store.groups_of(conn, tenant_id, user_id)
        return rules.with_those_below(own, await store.parents(conn, tenant_id) if own else {})

    async def forget_user(self, conn: Connection, tenant_id: UUID, user_id: UUID) -> None:
        """Take a deleted user out of all groups; the caller has begun the change."""
        await store.remove_user(conn, tenant_id, user_id)

    async def _locked(self, conn: Connection, caller: Caller, group_id: UUID) -> Group:
        """Begin a change of the group's tenant, and return the group as nobody else can change it now."""
        group = await self.get(conn, caller, group_id)
        await self._tenants.begin_change(conn, group.tenant_id)
        return await self.get(conn, caller, group_id)

    async def _check(self, conn: Connection, group: Group, *, name_is_new: bool) -> None:
        if name_is_new and await store.name_taken(conn, group.tenant_id, group.name):
            raise BursarError(
                Reason.ALREADY_EXISTS, f"name: a group {group.name!r} exists already", field="name"
            )
        if group.parent_group_id is not None:
            parents = await store.parents(conn, group.tenant_id)
            if group.parent_group_id not in parents:
                raise BursarError(
                    Reason.NOT_FOUND,
                    f"parent_group_id: no such group: {group.parent_group_id}",
                    field="parent_group_id",
                )
            rules.check_parent(group.group_id, group.parent_group_id, parents)

    async def _record(
        self, conn: Connection, action: str, caller: Caller, group: Group, details: Mapping[str, object]
    ) -> None:
        resource = f"group/{group.group_id}"
        await self._audit.record(
            conn, group.tenant_id, action, actor=caller.actor, resource=resource, details=details
        )


def _details(group: Group) -> dict[str, object]:
    return {
        "name": group.name,
        "parent_group_id": str(group.parent_group_id) if group.parent_group_id else "",
        "members": len(group.user_ids),
    }
