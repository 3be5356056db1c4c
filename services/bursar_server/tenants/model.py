"""What a tenant is."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID


class TenantStatus(StrEnum):
    """Whether a tenant can call."""

    ACTIVE = "ACTIVE"
    SUSPENDED = "SUSPENDED"


@dataclass(frozen=True, slots=True)
class Tenant:
    """An organisation or workspace with people, keys, budgets and a ledger of its own (F178)."""

    tenant_id: UUID
    name: str
    status: TenantStatus
    region: str
    metadata: Mapping[str, str]
    create_time: datetime
    update_time: datetime


@dataclass(frozen=True, slots=True)
class TenantChange:
    """What to change of a tenant; None stays. An empty value in `metadata` removes the entry (F184)."""

    name: str | None = None
    status: TenantStatus | None = None
    region: str | None = None
    metadata: Mapping[str, str] | None = None
