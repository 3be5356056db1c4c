"""What calls cost lately: the 95th percentile that EXPECTED budgets hold (S11). A memory, not a record of anything."""

from collections import OrderedDict, deque
from collections.abc import Iterable
from uuid import UUID

# The last calls of a key and model (or of a model alone) that count, and how many it takes to speak of a percentile.
SAMPLES = 200
FEWEST_SAMPLES = 20
MAX_SERIES = 20_000

Series = tuple[UUID, UUID | None, str]
"""Tenant, key (None: all keys) and model."""


class CostHistory:
    """The last costs by key and model, in nanos. Belongs to one lane; not shared between threads. Bounded."""

    def __init__(self) -> None:
        self._costs: OrderedDict[Series, deque[int]] = OrderedDict()
        self._tenants: set[UUID] = set()

    def has_read(self, tenant_id: UUID) -> bool:
        """Whether the tenant's recent calls were read from the database."""
        return tenant_id in self._tenants

    def note_read(self, tenant_id: UUID) -> None:
        """Note that they were."""
        if len(self._tenants) >= MAX_SERIES:
            self._tenants.clear()
        self._tenants.add(tenant_id)

    def add(self, calls: Iterable[tuple[UUID, UUID | None, str, int]]) -> None:
        """Remember what calls cost: tenant, key, model and nanos, in the order they were made."""
        for tenant_id, api_key_id, model, nanos in calls:
            self._add((tenant_id, None, model), nanos)
            if api_key_id is not None:
                self._add((tenant_id, api_key_id, model), nanos)

    def _add(self, series: Series, nanos: int) -> None:
        costs = self._costs.get(series)
        if costs is None:
            costs = self._costs[series] = deque(maxlen=SAMPLES)
            while len(self._costs) > MAX_SERIES:
                self._costs.popitem(last=False)
        costs.append(nanos)
        self._costs.move_to_end(series)

    def expected_nanos(self, tenant_id: UUID, api_key_id: UUID | None, model: str) -> int | None:
        """Return the 95th percentile for a key and model, else for the model, else None where too little is known."""
        for series in ((tenant_id, api_key_id, model), (tenant_id, None, model)):
            costs = self._costs.get(series)
            if costs is not None and len(costs) >= FEWEST_SAMPLES:
                return sorted(costs)[-(-len(costs) * 95 // 100) - 1]
        return None
