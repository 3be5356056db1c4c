"""The short version of `make chaos`, and that its comparison sees what it is there to see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bursar_sidecar.providers.base import Usage
from chaos.books import Record, Served, Verdict, judge
from chaos.load import WAYS, Call
from chaos.plan import Do, long_plan, short_plan
from chaos.run import run
from support.costs import cost_nanos

SEED = 5
PRICE = {"inputUsdPerMillion": 2.5, "outputUsdPerMillion": 10.0}
USAGE = Usage(input_tokens=100, output_tokens=10, requests=1)
COST_NANOS = 350_000
CALL = Call(1, WAYS[0], False, "")
ID, OTHER_ID = "0190a000-0000-7000-8000-000000000001", "0190a000-0000-7000-8000-000000000002"


async def test_kills_and_faults_under_load_lose_and_double_nothing(folder: Path) -> None:
    """S16–S18, S20, S26: every call served is on the books once, as it was or flagged; no hold is left."""
    result = await run(folder, short_plan(SEED), apps=8, rest_s=0.1)
    found = result.verdict
    assert (found.lost, found.doubled, found.wrong, result.trouble) == ([], [], [], [])
    assert result.kills == result.plan.kills >= 10
    assert result.ends["answered"] >= 30
    assert found.exact >= 30


def test_a_seed_repeats_a_plan() -> None:
    """The same things are done in the same order; every kind is among them, and enough are killed."""
    plan = long_plan(7, 300, 60)
    assert plan == long_plan(7, 300, 60)
    assert plan.actions != long_plan(8, 300, 60).actions
    assert {action.what for action in plan.actions} == set(Do)
    assert 300 <= plan.kills < 305
    assert max(action.down_s for action in plan.actions) == 60


def a_record(**fields: Any) -> Record:
    found = {
        "session_id": "chaos-1",
        "request_id": ID,
        "revision": 0,
        "source": "DEDUCT",
        "cost_nanos": COST_NANOS,
        "estimated": False,
        "lease_expired": False,
        "unchecked": False,
        "outcome": "SUCCESS",
    }
    return Record(**{**found, **fields})


ANSWERED = Served(begun=1, ended=True, completed=True, status=200, model="gpt-4o", usage=USAGE)
FAILED = Served(begun=1, ended=True, completed=True, status=500, model="gpt-4o")
KILLED = Served(begun=1)
EXPIRED = a_record(source="EXPIRY", cost_nanos=1_000, estimated=True, lease_expired=True)


@pytest.mark.parametrize(
    ("served", "records", "in_doubt", "seen"),
    [
        (ANSWERED, [a_record()], set(), "exact"),
        (ANSWERED, [], set(), "lost"),
        (ANSWERED, [a_record(), a_record(request_id=OTHER_ID)], set(), "doubled"),
        (ANSWERED, [a_record(), a_record(revision=1)], set(), "wrong"),
        (ANSWERED, [a_record(cost_nanos=COST_NANOS + 1)], {ID}, "wrong"),
        (ANSWERED, [a_record(estimated=True)], set(), "wrong"),
        (ANSWERED, [EXPIRED], set(), "wrong"),
        (ANSWERED, [EXPIRED], {ID}, "estimated"),
        (ANSWERED, [EXPIRED, a_record(revision=1, cost_nanos=COST_NANOS - 1_000)], set(), "exact"),
        (Served(begun=2), [a_record()], set(), "doubled"),
        (FAILED, [a_record(cost_nanos=0)], set(), "exact"),
        (FAILED, [a_record()], set(), "wrong"),
        (FAILED, [], set(), "lost"),
        (KILLED, [a_record(estimated=True)], set(), "partial"),
        (KILLED, [a_record()], set(), "wrong"),
        (KILLED, [a_record(cost_nanos=cost_nanos(PRICE, CALL.usage()))], set(), "partial"),
        (KILLED, [], set(), "lost"),
        (Served(), [], set(), ""),
        (Served(), [a_record(cost_nanos=0)], set(), ""),
        (Served(), [EXPIRED], {ID}, "unseen"),
        (Served(), [EXPIRED], set(), "wrong"),
    ],
)
def test_the_comparison_sees_what_is_lost_doubled_or_made_up(
    served: Served, records: list[Record], in_doubt: set[str], seen: str
) -> None:
    """S16, S18: an estimate is right only where nobody can know better."""
    verdict = Verdict()
    judge(verdict, CALL, served, records, in_doubt, lambda _provider, _model: PRICE)
    found = {
        name: value if isinstance(value, int) else len(value)
        for name in ("exact", "estimated", "unseen", "partial", "lost", "doubled", "wrong")
        if (value := getattr(verdict, name))
    }
    if seen == "wrong":
        assert found.pop("wrong") == 1
        assert not {"exact", "lost", "doubled"} & set(found)
    else:
        assert found == ({seen: 1} if seen else {})
