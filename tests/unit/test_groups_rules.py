"""How groups nest."""

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bursar_server.groups.rules import MAX_DEPTH, check_parent, with_those_above, with_those_below
from bursar_server.kit.errors import BursarError

A, B, C, D = (UUID(int=number) for number in range(1, 5))
# D is a part of C, C of B, B of A.
CHAIN = {A: None, B: A, C: B, D: C}


def test_a_members_calls_count_for_its_groups_and_all_above() -> None:
    """S1: all of a user's groups, nested ones included."""
    assert with_those_above([C], CHAIN) == {A, B, C}
    assert with_those_above([], CHAIN) == frozenset()


def test_a_lead_reads_its_groups_and_all_below() -> None:
    """F013: never those above."""
    assert with_those_below([B], CHAIN) == {B, C, D}


@pytest.mark.parametrize("parent", [A, B, C, D])
def test_a_group_cannot_come_to_lie_under_itself(parent: UUID) -> None:
    with pytest.raises(BursarError, match="parent_group_id"):
        check_parent(A, parent, CHAIN)


def test_a_group_may_move_elsewhere() -> None:
    check_parent(D, A, CHAIN)
    check_parent(UUID(int=9), D, CHAIN)


def test_groups_nest_so_deep_and_no_deeper() -> None:
    groups = [UUID(int=number) for number in range(1, MAX_DEPTH + 2)]
    parents = {group: groups[index - 1] if index else None for index, group in enumerate(groups[:-1])}
    check_parent(groups[MAX_DEPTH - 1], groups[MAX_DEPTH - 2], parents)
    with pytest.raises(BursarError, match="deep"):
        check_parent(groups[MAX_DEPTH], groups[MAX_DEPTH - 1], parents)
    # A whole subtree counts: two levels do not fit where one does.
    two = {**parents, UUID(int=100): None, UUID(int=101): UUID(int=100)}
    with pytest.raises(BursarError, match="deep"):
        check_parent(UUID(int=100), groups[MAX_DEPTH - 2], two)


@given(st.dictionaries(st.sampled_from([A, B, C, D]), st.sampled_from([None, A, B, C, D])))
def test_walking_ends_even_where_groups_lie_in_a_circle(parents: dict[UUID, UUID | None]) -> None:
    assert A in with_those_above([A], parents)
    assert A in with_those_below([A], parents)
