"""Grants on the wire; UserService serves them."""

from datetime import datetime

from bursar.v1 import grant_pb2
from bursar_server.grants.model import Grant
from bursar_server.kit.money import usd_of_nanos
from bursar_server.rpc import fields


def grant_message(grant: Grant, now: datetime) -> grant_pb2.Grant:
    """Return a grant as the wire has it; its status is that at `now`."""
    return grant_pb2.Grant(
        grant_id=str(grant.grant_id),
        tenant_id=str(grant.tenant_id),
        user_id=str(grant.user_id),
        amount_usd=usd_of_nanos(grant.amount_nanos),
        spent_usd=usd_of_nanos(grant.spent_nanos),
        held_usd=usd_of_nanos(grant.held_nanos),
        remaining_usd=usd_of_nanos(grant.remaining_nanos),
        amount_nanos=grant.amount_nanos,
        spent_nanos=grant.spent_nanos,
        reason=grant.reason,
        starts_at=fields.timestamp_of(grant.starts_at),
        expires_at=fields.timestamp_of(grant.expires_at),
        status=f"GRANT_STATUS_{grant.status_at(now)}",
        create_time=fields.timestamp_of(grant.create_time),
        created_by=grant.created_by,
        revoke_time=fields.optional_timestamp(grant.revoke_time),
        revoked_by=grant.revoked_by or "",
    )
