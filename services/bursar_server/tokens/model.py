"""What an access token is."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from bursar_server.kit.caller import Role


@dataclass(frozen=True, slots=True)
class AccessToken:
    """A person's or a program's access; only the sha256 of the secret is stored.

    `tenant_ids` None is every tenant. A person's token has the person's role of the moment; `role` is what it was when
    the token was made.
    """

    token_id: UUID
    name: str
    role: Role
    tenant_ids: frozenset[UUID] | None
    user_tenant_id: UUID | None
    user_id: UUID | None
    create_time: datetime
    expire_time: datetime | None = None
    revoke_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Bearer:
    """What is stored of who sent a secret: a token (with its person, if it is one's) or a user's own key."""

    name: str
    role: Role
    tenant_ids: frozenset[UUID] | None
    user_tenant_id: UUID | None
    user_id: UUID | None
    expire_time: datetime | None
    revoke_time: datetime | None
    # Of a person; "" where there is none, or where it does not exist any more.
    user_email: str
    user_status: str
    user_role: str
    is_key: bool = False
