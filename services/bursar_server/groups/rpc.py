"""Groups on the wire; TenantService serves them."""

from bursar.v1 import tenant_pb2
from bursar_server.groups.model import Group
from bursar_server.rpc import fields


def group_message(group: Group) -> tenant_pb2.Group:
    """Return a group as the wire has it, with its own members."""
    return tenant_pb2.Group(
        group_id=str(group.group_id),
        tenant_id=str(group.tenant_id),
        name=group.name,
        parent_group_id=str(group.parent_group_id or ""),
        user_ids=[str(user_id) for user_id in group.user_ids],
        create_time=fields.timestamp_of(group.create_time),
        update_time=fields.timestamp_of(group.update_time),
    )
