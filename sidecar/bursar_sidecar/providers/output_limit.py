"""Lowers the output limit of a request whose budget pays for a shorter answer than it asks for.

Only the limit's own bytes change; a limit that is low enough already stays as the app wrote it.
"""

from __future__ import annotations

from bursar_sidecar.providers.json_edit import Edit, Member, applied, members


def lowered(body: bytes, names: tuple[str, ...], limit: int, parents: tuple[str, ...] = ()) -> bytes:
    """Return `body` with no member of `names` above `limit`, and at least one of them set.

    Where none is set, the first name is inserted. `parents` are the spellings of the member that holds the limit;
    without it the limit stands in the outermost object. What stands there twice is lowered twice: which of the two a
    server heeds is its own affair.
    """
    if not parents:
        return applied(body, _edits(body, 0, names, limit))
    present = members(body)
    holders = [member for member in present if member.key in parents]
    fresh = b'{"%b":%d}' % (names[0].encode(), limit)
    if not holders:
        return applied(body, [_inserted(body, 0, parents[0], fresh, present)])
    objects = [one for one in holders if body[one.value_start : one.value_start + 1] == b"{"]
    saying = {one.key for one in objects} or {holders[0].key}
    edits = [edit for one in objects for edit in _edits(body, one.value_start, names, limit)]
    edits += [
        Edit(one.value_start, one.end, fresh)
        for one in holders
        if one.key in saying and body[one.value_start : one.end] == b"null"
    ]
    return applied(body, edits)


def _edits(body: bytes, start: int, names: tuple[str, ...], limit: int) -> list[Edit]:
    """Return the edits to the object that begins at `start`."""
    present = members(body, start)
    limits = [member for member in present if member.key in names]
    # A name that is only ever null says nothing, and some servers refuse two names that both say something.
    saying = {one.key for one in limits if body[one.value_start : one.end] != b"null"}
    if not saying and any(one.key == names[0] for one in limits):
        saying = {names[0]}
    if not saying:
        return [_inserted(body, start, names[0], b"%d" % limit, present)]
    return [
        Edit(one.value_start, one.end, b"%d" % limit)
        for one in limits
        if one.key in saying and not _low_enough(body[one.value_start : one.end], limit)
    ]


def _low_enough(value: bytes, limit: int) -> bool:
    return value.isdigit() and len(value) <= len(str(limit)) and 0 < int(value) <= limit


def _inserted(body: bytes, start: int, name: str, value: bytes, present: list[Member]) -> Edit:
    at = body.index(b"{", start) + 1
    return Edit(at, at, b'"%b":%b%b' % (name.encode(), value, b"," if present else b""))
