"""Compares what the provider served with what the books have: nothing lost, nothing twice, nothing made up."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row

from bursar_sidecar import outbox_log
from bursar_sidecar.ids import unpacked
from bursar_sidecar.outbox_log import Kind
from bursar_sidecar.providers.base import Usage
from chaos.load import SESSION_PREFIX, Call
from support.costs import cost_nanos

_FOUND = """
    SELECT session_id, request_id::text AS request_id, revision, source, cost_nanos, estimated, lease_expired,
           unchecked, outcome
    FROM usage_records ORDER BY request_id, revision
"""
Prices = Callable[[str, str], dict[str, Any]]


@dataclass(slots=True)
class Served:
    """What the provider's log says of one call."""

    begun: int = 0
    ended: bool = False
    completed: bool = False
    status: int = 0
    model: str = ""
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """One revision of a usage record."""

    session_id: str
    request_id: str
    revision: int
    source: str
    cost_nanos: int
    estimated: bool
    lease_expired: bool
    unchecked: bool
    outcome: str


@dataclass
class Doubts:
    """The calls whose real usage nobody knows any more: what the outboxes of killed sidecars said of them.

    `owed`: whose Deduct was on the disk; those are never in doubt, unless the outbox was lost.
    """

    calls: set[str] = field(default_factory=set)
    owed: int = 0

    def note(self, directory: Path, *, lost: bool) -> None:
        """Read the outbox that a killed sidecar left, before another takes it over or it is `lost`."""
        scans = [outbox_log.scan(path.read_bytes()) for _, path in outbox_log.segments(directory)]
        for record in outbox_log.last_of_each(scans):
            if lost or record.kind is Kind.SENT:
                self.calls.add(unpacked(record.call))
            elif record.kind is Kind.DEDUCT:
                self.owed += 1


@dataclass
class Verdict:
    """What was found; everything in `wrong` must not be."""

    requests: int = 0
    served: int = 0
    exact: int = 0
    estimated: int = 0
    corrected: int = 0
    unseen: int = 0
    partial: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def served_calls(log: Path) -> dict[int, Served]:
    """Return what the provider served, by the number of the call."""
    found: dict[int, Served] = defaultdict(Served)
    for text in log.read_text().splitlines():
        line = json.loads(text)
        one = found[int(line["call"])]
        if "begun" in line:
            one.begun += 1
            continue
        one.ended, one.completed, one.status, one.model = (
            True,
            line["completed"],
            line["status"],
            line["model"],
        )
        one.usage = Usage(**line["usage"]) if line["usage"] else None
    return dict(found)


def compare(
    database_url: str, log: Path, calls: dict[int, Call], in_doubt: Collection[str], prices: Prices
) -> Verdict:
    """Compare, call by call."""
    records: dict[int, list[Record]] = defaultdict(list)
    verdict = Verdict(requests=len(calls))
    with psycopg.connect(database_url) as connection, connection.cursor(row_factory=dict_row) as cursor:
        for row in cursor.execute(_FOUND):
            record = Record(**row)
            if record.session_id.startswith(SESSION_PREFIX):
                records[int(record.session_id.removeprefix(SESSION_PREFIX))].append(record)
            elif record.cost_nanos:
                verdict.wrong.append(f"{record.request_id}: nobody's call has a cost")
    served = served_calls(log)
    verdict.served = len(served)
    for number, call in calls.items():
        rows = [row for row in records.get(number, []) if row.source != "RELEASE"]
        judge(verdict, call, served.get(number, Served()), rows, in_doubt, prices)
    return verdict


def judge(
    verdict: Verdict,
    call: Call,
    served: Served,
    rows: list[Record],
    in_doubt: Collection[str],
    prices: Prices,
) -> None:
    """Judge one call; `rows` are the revisions of its record."""
    ids = {row.request_id for row in rows}
    what = f"call {call.number} ({call.way.provider}, {'streamed' if call.stream else 'whole'}, {call.trouble or 'no trouble'}, app: {call.end}): {served}, {rows}"
    if len(ids) > 1 or served.begun > 1:
        verdict.doubled.append(what)
        return
    net = sum(row.cost_nanos for row in rows)
    doubtful = bool(ids & set(in_doubt)) if rows else False
    flagged = bool(rows) and rows[-1].estimated
    if not served.begun:
        if net == 0:
            return
        verdict.unseen += 1
        if not (doubtful and flagged):
            verdict.wrong.append(what)
    elif not rows:
        verdict.lost.append(what)
    elif served.completed and served.usage is not None:
        expected = cost_nanos(prices(call.way.provider, served.model), served.usage)
        verdict.corrected += len(rows) > 1
        if net == expected and not flagged:
            verdict.exact += 1
        elif doubtful and flagged and net > 0:
            verdict.estimated += 1
        else:
            verdict.wrong.append(f"expected {expected}: {what}")
    elif served.ended and served.status >= 400:
        verdict.exact += net == 0
        verdict.estimated += net != 0
        if net and not (doubtful and flagged):
            verdict.wrong.append(what)
    else:  # the provider was killed, or its answer broke off: what came is charged, as an estimate where that says no usage
        verdict.partial += 1
        # The usage can have come before the end; and what was cut off after the last byte was whole.
        if net and not flagged and net != cost_nanos(prices(call.way.provider, call.way.model), call.usage()):
            verdict.wrong.append(what)
