"""Who sent a request, and which tenants it may speak of."""

from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from bursar_server.kit.errors import BursarError, Reason, not_found


class Role(StrEnum):
    """What a token may do (C11); the names of `bursar.v1.Role` without their prefix."""

    PLATFORM_ADMIN = "PLATFORM_ADMIN"
    BILLING_ADMIN = "BILLING_ADMIN"
    TENANT_ADMIN = "TENANT_ADMIN"
    TENANT_DEVELOPER = "TENANT_DEVELOPER"
    GROUP_LEAD = "GROUP_LEAD"
    MEMBER = "MEMBER"
    SIDECAR = "SIDECAR"


# The roles that speak for the operator: they see every tenant, and what they set is managed by PLATFORM (F025).
PLATFORM_ROLES = frozenset({Role.PLATFORM_ADMIN, Role.BILLING_ADMIN})


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated caller. `tenant_ids` None means every tenant; `actor` is the name that audit events carry."""

    role: Role
    actor: str
    tenant_ids: frozenset[UUID] | None = None
    user_id: UUID | None = None
    user_tenant_id: UUID | None = None
    group_ids: frozenset[UUID] = frozenset()

    @property
    def is_platform(self) -> bool:
        """Whether the caller speaks for the operator."""
        return self.role in PLATFORM_ROLES

    def may_see(self, tenant_id: UUID) -> bool:
        """Whether the caller may speak of this tenant."""
        return self.tenant_ids is None or tenant_id in self.tenant_ids

    def require_tenant(self, tenant_id: UUID) -> None:
        """Raise NOT_FOUND for a tenant that the caller may not see: its existence is not told."""
        if not self.may_see(tenant_id):
            raise not_found("tenant", str(tenant_id))

    def require_role(self, *roles: Role) -> None:
        """Raise PERMISSION_DENIED unless the caller has one of `roles`."""
        if self.role not in roles:
            wanted = ", ".join(role.lower() for role in roles)
            raise BursarError(
                Reason.PERMISSION_DENIED,
                f"needs one of the roles {wanted}; this token is {self.role.lower()}",
            )
