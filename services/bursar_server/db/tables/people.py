"""Who: tenants, users, keys, groups and access tokens."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Index,
    Integer,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from bursar_server.db.tables.columns import Instant, UuidArray, metadata, optional, required

tenants = Table(
    "tenants",
    metadata,
    required("tenant_id", Uuid),
    required("name", Text),
    required("status", Text),
    required("region", Text, "''"),
    required("metadata", JSONB, "'{}'"),
    required("create_time", Instant),
    required("update_time", Instant),
    PrimaryKeyConstraint("tenant_id"),
    UniqueConstraint("name"),
)

# A tenant's row goes up with every change to what a Check reads of it; processes reload what is newer.
config_versions = Table(
    "config_versions",
    metadata,
    required("tenant_id", Uuid),
    required("version", BigInteger),
    PrimaryKeyConstraint("tenant_id"),
)

users = Table(
    "users",
    metadata,
    required("tenant_id", Uuid),
    required("user_id", Uuid),
    required("email", Text),
    required("display_name", Text, "''"),
    required("role", Text),
    required("status", Text),
    required("service_account", Boolean, "false"),
    required("rate_limit", Integer),
    required("create_time", Instant),
    required("update_time", Instant),
    PrimaryKeyConstraint("tenant_id", "user_id"),
    # A deleted user's e-mail is free again; its row stays for the history.
    Index(
        "uq_users_tenant_id_email",
        "tenant_id",
        "email",
        unique=True,
        postgresql_where=text("status <> 'DELETED'"),
    ),
    Index("ix_users_email", "email"),
    Index("ix_users_user_id", "user_id"),
)

api_keys = Table(
    "api_keys",
    metadata,
    required("tenant_id", Uuid),
    required("api_key_id", Uuid),
    required("name", Text),
    required("key_sha256", Text),
    required("masked_key", Text),
    optional("user_id", Uuid),
    required("service_account", Boolean, "false"),
    required("act_for_users", Boolean, "false"),
    required("trust_user_field", Boolean, "false"),
    required("default_tags", JSONB, "'{}'"),
    required("create_time", Instant),
    optional("revoke_time", Instant),
    PrimaryKeyConstraint("tenant_id", "api_key_id"),
    UniqueConstraint("key_sha256"),
    Index("ix_api_keys_tenant_id_user_id", "tenant_id", "user_id"),
    Index("ix_api_keys_api_key_id", "api_key_id"),
)

groups = Table(
    "groups",
    metadata,
    required("tenant_id", Uuid),
    required("group_id", Uuid),
    required("name", Text),
    optional("parent_group_id", Uuid),
    required("create_time", Instant),
    required("update_time", Instant),
    PrimaryKeyConstraint("tenant_id", "group_id"),
    UniqueConstraint("tenant_id", "name"),
    Index("ix_groups_group_id", "group_id"),
)

group_members = Table(
    "group_members",
    metadata,
    required("tenant_id", Uuid),
    required("group_id", Uuid),
    required("user_id", Uuid),
    PrimaryKeyConstraint("tenant_id", "group_id", "user_id"),
    Index("ix_group_members_tenant_id_user_id", "tenant_id", "user_id"),
)

# Access tokens of people and programs; only the sha256 is stored.
access_tokens = Table(
    "access_tokens",
    metadata,
    required("token_id", Uuid),
    required("token_sha256", Text),
    required("name", Text),
    required("role", Text),
    optional("tenant_ids", UuidArray),
    optional("user_tenant_id", Uuid),
    optional("user_id", Uuid),
    required("create_time", Instant),
    optional("expire_time", Instant),
    optional("revoke_time", Instant),
    PrimaryKeyConstraint("token_id"),
    UniqueConstraint("token_sha256"),
)
