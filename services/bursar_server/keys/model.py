"""What an API key is."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key that apps call with. Of the secret itself only the sha256 is stored, and it stays in the database."""

    tenant_id: UUID
    api_key_id: UUID
    name: str
    masked_key: str
    user_id: UUID | None
    service_account: bool
    act_for_users: bool
    trust_user_field: bool
    default_tags: Mapping[str, str]
    create_time: datetime
    revoke_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class KeyDraft:
    """A key to make."""

    name: str
    service_account: bool = False
    act_for_users: bool = False
    trust_user_field: bool = False
    default_tags: Mapping[str, str] | None = None
