"""Who waits for other calls' holds: first come, first served on each budget, in every process (S10)."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

WaitKey = tuple[UUID, UUID, UUID]
"""Tenant, budget and request."""

# How long a place lasts that nobody renews: so long a process that was killed stays in the way of others.
PLACE_LASTS = timedelta(seconds=3)


@dataclass
class Waits:
    """The waiting calls of a batch's budgets, earliest first, and what the batch changes of them."""

    queues: dict[UUID, list[tuple[datetime, UUID]]] = field(default_factory=dict)
    joined: dict[WaitKey, tuple[datetime, datetime]] = field(default_factory=dict)
    left: set[WaitKey] = field(default_factory=set)
    _gone: set[tuple[UUID, UUID]] = field(default_factory=set)

    def is_behind(self, budget_id: UUID, wait_since: datetime, request_id: UUID) -> bool:
        """Whether another call has waited for a budget longer than this one."""
        for place in self.queues.get(budget_id, ()):
            if (budget_id, place[1]) not in self._gone:
                return place < (wait_since, request_id)
        return False

    def join(self, key: WaitKey, wait_since: datetime, expire_time: datetime) -> None:
        """Queue a call for a budget; a call that is there already keeps its place. `expire_time` is without renewal."""
        queue = self.queues.setdefault(key[1], [])
        place = (wait_since, key[2])
        if place not in queue:
            queue.append(place)
            queue.sort()
            self.joined[key] = (wait_since, expire_time)

    def leave(self, keys: list[WaitKey]) -> None:
        """Take a call out of the queues of budgets."""
        self.left.update(keys)
        self._gone.update((key[1], key[2]) for key in keys)
