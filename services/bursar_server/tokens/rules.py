"""Who a token makes its bearer."""

from collections.abc import Collection
from datetime import datetime
from uuid import UUID

from bursar_server.kit.caller import PLATFORM_ROLES, Caller, Role
from bursar_server.kit.errors import invalid
from bursar_server.tokens.model import Bearer
from bursar_server.users.model import UserStatus


def check_new(role: Role, tenant_ids: Collection[UUID] | None) -> None:
    """Raise INVALID_FIELD where the role and the tenants of a program's token do not fit together.

    An operator's token and the sidecar's are for every tenant unless they name some; the tenant roles need one.
    """
    if role in (Role.MEMBER, Role.GROUP_LEAD):
        raise invalid("role", f"a {role.lower()} is a person: name the user")
    if not tenant_ids and role in (Role.TENANT_ADMIN, Role.TENANT_DEVELOPER):
        raise invalid("tenant_ids", f"is needed for a {role.lower()}")


def caller_of(bearer: Bearer, now: datetime) -> Caller | None:
    """Return who a bearer is now, without the groups it leads, or None where its token or its person is no good.

    A key makes its user a MEMBER, whatever the user's role: it lies in the configuration of apps.
    """
    if bearer.revoke_time is not None or (bearer.expire_time is not None and bearer.expire_time <= now):
        return None
    if bearer.user_id is None:
        # A key without a user says nothing of who asks.
        return None if bearer.is_key else Caller(bearer.role, bearer.name, bearer.tenant_ids)
    if bearer.user_status != UserStatus.ACTIVE or bearer.user_tenant_id is None:
        return None
    role = Role.MEMBER if bearer.is_key else Role(bearer.user_role)
    tenant_ids = None if role in PLATFORM_ROLES else frozenset({bearer.user_tenant_id})
    return Caller(role, bearer.user_email, tenant_ids, bearer.user_id, bearer.user_tenant_id)
