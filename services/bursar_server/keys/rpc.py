"""API keys on the wire; TenantService serves them."""

from bursar.v1 import tenant_pb2
from bursar_server.keys.model import ApiKey
from bursar_server.rpc import fields


def key_message(key: ApiKey) -> tenant_pb2.ApiKey:
    """Return a key as the wire has it: masked (F104)."""
    return tenant_pb2.ApiKey(
        key_id=str(key.api_key_id),
        tenant_id=str(key.tenant_id),
        name=key.name,
        masked_key=key.masked_key,
        user_id=str(key.user_id or ""),
        service_account=key.service_account,
        act_for_users=key.act_for_users,
        trust_user_field=key.trust_user_field,
        default_tags=key.default_tags,
        create_time=fields.timestamp_of(key.create_time),
        revoke_time=fields.optional_timestamp(key.revoke_time),
    )
