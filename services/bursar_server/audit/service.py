"""The audit trail: what was done, by whom, chained so that nothing can be taken out unseen."""

from collections.abc import Collection, Mapping, Sequence
from uuid import UUID

from bursar_server.audit import rules, store
from bursar_server.audit.model import AuditEvent, ChainedEvent
from bursar_server.db.connection import Connection
from bursar_server.kit import paging
from bursar_server.kit.clock import Clock


class AuditService:
    """Appends to the trail of each tenant, and lists it."""

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock

    async def append(self, conn: Connection, tenant_id: UUID, events: Sequence[AuditEvent]) -> None:
        """Add events to a tenant's chain, in order (F176).

        Locks the end of the chain until the transaction ends: every money transaction locks it last.
        """
        if events:
            head = await store.lock_head(conn, tenant_id)
            chained, head = rules.chain(tenant_id, head, events)
            await store.append(conn, tenant_id, chained, head)

    async def record(
        self,
        conn: Connection,
        tenant_id: UUID,
        action: str,
        *,
        actor: str,
        resource: str,
        user_id: UUID | None = None,
        details: Mapping[str, object] | None = None,
    ) -> None:
        """Append one event that happens now. `resource` is `kind/id`; details hold no float and no secret."""
        event = AuditEvent(action, actor, resource, self._clock.now(), user_id, details or {})
        await self.append(conn, tenant_id, [event])

    async def list(
        self,
        conn: Connection,
        tenant_ids: Collection[UUID] | None,
        *,
        user_id: UUID | None = None,
        action: str = "",
        limit: int = 0,
        page_token: str = "",
    ) -> tuple[Sequence[ChainedEvent], str]:
        """Return events newest first and the next page's token (F175). `tenant_ids` None is every tenant.

        Raises INVALID_FIELD for a negative limit or a token of another list.
        """
        size = paging.page_size_of(limit, "limit")
        query = ["audit", sorted(map(str, tenant_ids)) if tenant_ids is not None else None, user_id, action]
        token = paging.decode_page_token(page_token, query, 3)
        after = None
        if token is not None:
            after = (
                paging.position_instant(token[0]),
                paging.position_uuid(token[1]),
                paging.position_integer(token[2]),
            )
        found = await store.list_events(
            conn, tenant_ids, user_id=user_id, action=action, after=after, limit=size + 1
        )
        return paging.cut_page(found, size, query, _position)


def _position(chained: ChainedEvent) -> Sequence[str]:
    return [chained.event.create_time.isoformat(), str(chained.tenant_id), str(chained.sequence)]
