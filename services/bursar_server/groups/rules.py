"""What a group may be, and how groups nest."""

from collections.abc import Collection, Mapping
from uuid import UUID

from bursar_server.kit.errors import invalid

MAX_DEPTH = 20


def group_name(name: str) -> str:
    """Return a name without surrounding space. Raises INVALID_FIELD for none."""
    trimmed = name.strip()
    if not trimmed:
        raise invalid("name", "is needed")
    return trimmed


def check_parent(group_id: UUID, parent_group_id: UUID, parents: Mapping[UUID, UUID | None]) -> None:
    """Raise INVALID_FIELD where a group would come to lie under itself, or too deep.

    `parents` says what each of the tenant's groups is a part of now.
    """
    height = _height(group_id, parents)
    above: UUID | None = parent_group_id
    depth = 0
    while above is not None:
        if above == group_id:
            raise invalid("parent_group_id", "a group cannot be a part of itself")
        above = parents.get(above)
        depth += 1
        if depth + height > MAX_DEPTH:
            raise invalid("parent_group_id", f"groups nest at most {MAX_DEPTH} deep")


def _height(group_id: UUID, parents: Mapping[UUID, UUID | None]) -> int:
    """Return how many levels a group and those below it make."""
    level, height = {group_id}, 0
    while level:
        height += 1
        level = {child for child, parent in parents.items() if parent in level} - {group_id}
    return height


def with_those_above(group_ids: Collection[UUID], parents: Mapping[UUID, UUID | None]) -> frozenset[UUID]:
    """Return the groups and all that they are a part of: what a member's calls count for (S1)."""
    found: set[UUID] = set()
    for group_id in group_ids:
        above: UUID | None = group_id
        while above is not None and above not in found:
            found.add(above)
            above = parents.get(above)
    return frozenset(found)


def with_those_below(group_ids: Collection[UUID], parents: Mapping[UUID, UUID | None]) -> frozenset[UUID]:
    """Return the groups and all that are a part of them: what a lead of them reads (F013)."""
    found = set(group_ids)
    level = set(group_ids)
    while level:
        level = {child for child, parent in parents.items() if parent in level} - found
        found |= level
    return frozenset(found)
