"""What a tenant may be called, and who may change what of it."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from bursar_server.kit.caller import Caller, Role
from bursar_server.kit.errors import BursarError, Reason, invalid
from bursar_server.kit.ids import parse_uuid
from bursar_server.tenants.model import Tenant, TenantChange

MAX_METADATA = 64


def tenant_name(name: str, field: str = "name") -> str:
    """Return a name without surrounding space. Raises INVALID_FIELD for none, and for one that reads as an id."""
    trimmed = name.strip()
    if not trimmed:
        raise invalid(field, "is needed")
    if parse_uuid(trimmed) is not None:
        raise invalid(field, "must not be a UUID: names work wherever ids do")
    return trimmed


def changed(tenant: Tenant, change: TenantChange, now: datetime) -> Tenant:
    """Return the tenant as it is after the change. Raises INVALID_FIELD for a bad name or too much metadata."""
    metadata = _merged(tenant.metadata, change.metadata or {})
    return replace(
        tenant,
        name=tenant.name if change.name is None else tenant_name(change.name),
        status=change.status or tenant.status,
        region=tenant.region if change.region is None else change.region,
        metadata=metadata,
        update_time=now,
    )


def check_may_change(caller: Caller, change: TenantChange) -> None:
    """Raise PERMISSION_DENIED unless the caller may: a tenant's own admin changes its metadata and nothing else."""
    if caller.role is Role.PLATFORM_ADMIN:
        return
    caller.require_role(Role.PLATFORM_ADMIN, Role.TENANT_ADMIN)
    if change.name is not None or change.status is not None or change.region is not None:
        raise BursarError(Reason.PERMISSION_DENIED, "name, status and region are the operator's to change")


def _merged(metadata: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    merged = {key: value for key, value in {**metadata, **given}.items() if value}
    if len(merged) > MAX_METADATA:
        raise invalid("metadata", f"must have at most {MAX_METADATA} entries")
    return merged
