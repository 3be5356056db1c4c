"""What `bursar verify` says when somebody writes into the books: each tampering, and exactly the differences that it makes."""

import asyncio
from collections.abc import Iterator

import psycopg
import pytest

from bursar_server.kit.ids import DEFAULT_TENANT_ID, PLATFORM_TENANT_ID
from support.database import DatabaseServer
from support.proofs import fill, prove

DEFAULT, PLATFORM, STRANGE = DEFAULT_TENANT_ID, PLATFORM_TENANT_ID, "00000000-0000-7000-8000-0000000000ff"
# One row each, the same in every run.
CALL = """(SELECT min(request_id::text)::uuid FROM usage_records WHERE source = 'DEDUCT' AND revision = 0 AND NOT unchecked
    AND user_id = (SELECT user_id FROM users WHERE email = 'bob@example.com'))"""
TENANT_ENTRY = f"op_id = {CALL} AND account = 'TENANT'"
BUDGET_ENTRY = f"op_id = {CALL} AND leg = (SELECT max(leg) FROM ledger_entries WHERE op_id = {CALL} AND account = 'BUDGET')"
CORRECTED = """(SELECT min(request_id::text)::uuid FROM usage_records WHERE source = 'DEDUCT' AND revision = 1
    AND jsonb_array_length(items) = 2)"""
RELEASED = (
    "(SELECT min(request_id::text)::uuid FROM usage_records WHERE source = 'RELEASE' AND postings = '[]')"
)
MOST_SPENT = "ctid = (SELECT ctid FROM balances ORDER BY spent_nanos DESC LIMIT 1)"
MOST_HELD = "ctid = (SELECT ctid FROM balances ORDER BY held_nanos DESC LIMIT 1)"
GRANT = "ctid = (SELECT ctid FROM grants ORDER BY amount_nanos LIMIT 1)"
QUARTER = (
    "ctid = (SELECT ctid FROM rollup_quarters WHERE model = 'test-model' ORDER BY cost_nanos DESC LIMIT 1)"
)
DAY = "ctid = (SELECT ctid FROM rollup_days WHERE model = 'test-model' ORDER BY cost_nanos DESC LIMIT 1)"
EVENT = f"tenant_id = '{DEFAULT}' AND sequence"
REPORT = (
    "report_id = (SELECT report_id FROM chargeback_reports WHERE total_nanos > 0 ORDER BY report_id LIMIT 1)"
)


def row(said_by: str) -> list[str]:
    """Return that all counters of a row of sums differ."""
    tokens = ["requests", "input_tokens", "output_tokens"]
    return [
        f"I4 {name} by {said_by}" for name in (*tokens, "input_cost_nanos", "output_cost_nanos", "cost_nanos")
    ]


# What was done, and what is said: invariant, figure, and which row says it.
TAMPERED: dict[str, tuple[str, list[str]]] = {
    "a balance's money": (
        f"UPDATE balances SET spent_nanos = spent_nanos + 7 WHERE {MOST_SPENT}",
        ["I1 spent_nanos by balance"],
    ),
    "a balance's tokens": (
        "UPDATE balances SET spent_tokens = spent_tokens + 7 WHERE ctid = (SELECT ctid FROM balances ORDER BY spent_nanos LIMIT 1)",
        ["I1 spent_tokens by balance"],
    ),
    "the balance of everybody's budget": (
        f"UPDATE balances SET spent_nanos = spent_nanos - 7 WHERE tenant_id = '{PLATFORM}'",
        ["I1 spent_nanos by balance"],
    ),
    "an opening": (
        "UPDATE ledger_entries SET amount_nanos = amount_nanos + 7 WHERE kind = 'OPENING'",
        ["I1 spent_nanos by balance"],
    ),
    "a reset": (
        "DELETE FROM ledger_entries WHERE kind = 'RESET'",
        ["I1 spent_nanos by balance", "I1 spent_tokens by balance"],
    ),
    "an entry": (
        f"UPDATE ledger_entries SET amount_nanos = amount_nanos + 7 WHERE {BUDGET_ENTRY}",
        ["I1 spent_nanos by balance", "I5 posted_nanos by record"],
    ),
    "an entry's tokens": (
        f"UPDATE ledger_entries SET amount_tokens = amount_tokens + 7 WHERE {BUDGET_ENTRY}",
        ["I1 spent_tokens by balance", "I5 posted_tokens by record"],
    ),
    "an entry taken out": (
        f"DELETE FROM ledger_entries WHERE {BUDGET_ENTRY}",
        ["I1 spent_nanos by balance", "I1 spent_tokens by balance", "I5 posted_nanos by record"],
    ),
    "a charge": (
        f"UPDATE ledger_entries SET amount_nanos = amount_nanos + 7 WHERE {TENANT_ENTRY}",
        ["I4 charged_nanos by rollup", "I5 posted_nanos by record", "I10 total_nanos by report"],
    ),
    "a charge taken out": (
        f"DELETE FROM ledger_entries WHERE {TENANT_ENTRY}",
        [
            "I4 charged_nanos by rollup",
            "I4 charged_tokens by rollup",
            "I5 posted_nanos by record",
            "I10 total_nanos by report",
        ],
    ),
    "a charge's time": (
        f"UPDATE ledger_entries SET usage_time = date_bin('15 minutes', usage_time, 'epoch') WHERE {TENANT_ENTRY}",
        ["I5 usage_time by record"],
    ),
    "a charge's kind": (
        f"UPDATE ledger_entries SET kind = 'EXPIRY' WHERE {TENANT_ENTRY}",
        ["I5 kind by record"],
    ),
    "a charge's cut-off": (
        f"UPDATE ledger_entries SET posted_time = now() + interval '1 day' WHERE {TENANT_ENTRY}",
        ["I10 total_nanos by report"],
    ),
    "an entry on no account": (
        f"UPDATE ledger_entries SET account_id = '{STRANGE}' WHERE {BUDGET_ENTRY}",
        [
            "I1 spent_nanos by balance",
            "I1 spent_tokens by balance",
            "I5 posted_nanos by record",
            "I12 account by ledger",
        ],
    ),
    "an entry of no tenant": (
        f"UPDATE ledger_entries SET tenant_id = '{STRANGE}' WHERE {BUDGET_ENTRY}",
        [
            "I1 spent_nanos by balance",
            "I1 spent_tokens by balance",
            "I5 posted_nanos by record",
            "I12 tenant by ledger_entries",
        ],
    ),
    "a balance of no budget": (
        f"INSERT INTO balances (tenant_id, budget_id, period_key, period_start, period_end) VALUES ('{DEFAULT}', '{STRANGE}', 'x', now(), now())",
        ["I12 account by ledger"],
    ),
    "what a balance holds": (
        f"UPDATE balances SET held_nanos = held_nanos + 7 WHERE {MOST_HELD}",
        ["I2 held_nanos by balance"],
    ),
    "held tokens": (
        "UPDATE balances SET held_tokens = held_tokens + 7 WHERE ctid = (SELECT ctid FROM balances ORDER BY held_nanos LIMIT 1)",
        ["I2 held_tokens by balance"],
    ),
    "what everybody's budget holds": (
        f"UPDATE balances SET held_nanos = held_nanos + 7 WHERE tenant_id = '{PLATFORM}'",
        ["I2 held_nanos by balance"],
    ),
    "a hold's leg": (
        "UPDATE holds SET leg_nanos[1] = leg_nanos[1] + 7 WHERE ctid = (SELECT ctid FROM holds ORDER BY request_id LIMIT 1)",
        ["I2 held_nanos by balance"],
    ),
    "a hold's grant": (
        "UPDATE holds SET grant_nanos[1] = grant_nanos[1] + 7 WHERE ctid = (SELECT ctid FROM holds WHERE grant_ids <> '{}' LIMIT 1)",
        ["I3 held_nanos by grant"],
    ),
    "a hold taken out": (
        "DELETE FROM holds WHERE ctid = (SELECT ctid FROM holds WHERE grant_ids <> '{}' LIMIT 1)",
        ["I2 held_nanos by balance", "I3 held_nanos by grant"],
    ),
    "a grant's money": (
        f"UPDATE grants SET spent_nanos = spent_nanos - 7 WHERE {GRANT}",
        ["I3 spent_nanos by grant"],
    ),
    "a grant's amount": (
        f"UPDATE grants SET amount_nanos = spent_nanos - 7 WHERE {GRANT}",
        ["I3 spent_nanos by grant"],
    ),
    "what a grant holds": (
        f"UPDATE grants SET held_nanos = held_nanos + 7 WHERE {GRANT}",
        ["I3 held_nanos by grant"],
    ),
    "a day's cost": (
        f"UPDATE rollup_days SET cost_nanos = cost_nanos + 7 WHERE {DAY}",
        ["I4 cost_nanos by day"],
    ),
    "a day's requests": (
        f"UPDATE rollup_days SET requests = requests + 7 WHERE {DAY}",
        ["I4 requests by day"],
    ),
    "a day taken out": (f"DELETE FROM rollup_days WHERE {DAY}", [*row("day")]),
    "a quarter-hour's cost": (
        f"UPDATE rollup_quarters SET cost_nanos = cost_nanos + 7 WHERE {QUARTER}",
        ["I4 charged_nanos by rollup", "I4 cost_nanos by day", "I4 cost_nanos by quarter-hour"],
    ),
    "a quarter-hour's cached tokens": (
        f"UPDATE rollup_quarters SET cache_read_tokens = 7 WHERE {QUARTER}",
        ["I4 cache_read_tokens by day", "I4 cache_read_tokens by quarter-hour"],
    ),
    "a quarter-hour taken out": (
        f"DELETE FROM rollup_quarters WHERE {QUARTER}",
        ["I4 charged_nanos by rollup", "I4 charged_tokens by rollup", *row("day"), *row("quarter-hour")],
    ),
    "both sums": (
        f"UPDATE rollup_quarters SET output_tokens = output_tokens + 7 WHERE {QUARTER}; UPDATE rollup_days SET output_tokens = output_tokens + 7 WHERE {DAY}",
        ["I4 charged_tokens by rollup", "I4 output_tokens by quarter-hour"],
    ),
    "sums below zero": (
        f"UPDATE rollup_quarters SET estimated_requests = -7 WHERE {QUARTER}; UPDATE rollup_days SET estimated_requests = -7 WHERE {DAY}",
        [
            "I4 estimated_requests by quarter-hour",
            "I12 estimated_requests by rollup_days",
            "I12 estimated_requests by rollup_quarters",
        ],
    ),
    "a record's cost": (
        f"UPDATE usage_records SET cost_nanos = cost_nanos + 7 WHERE request_id = {CALL}",
        [
            "I5 borne_nanos by budget",
            "I5 borne_nanos by grants and budget",
            "I5 posted_nanos by record",
            "I6 cost_nanos by record",
        ],
    ),
    "a part of a record's cost": (
        f"UPDATE usage_records SET input_cost_nanos = input_cost_nanos + 7, output_cost_nanos = output_cost_nanos - 7 WHERE request_id = {CALL}",
        [
            "I4 input_cost_nanos by quarter-hour",
            "I4 output_cost_nanos by quarter-hour",
            "I7 input_cost_nanos by record",
            "I7 output_cost_nanos by record",
        ],
    ),
    "a record's posting": (
        f"UPDATE usage_records SET postings = jsonb_set(postings, '{{0,nanos}}', '7') WHERE request_id = {CALL}",
        ["I5 borne_nanos by budget", "I5 posted_nanos by record"],
    ),
    "a record's tokens": (
        f"UPDATE usage_records SET input_tokens = input_tokens + 7 WHERE request_id = {CALL}",
        ["I5 borne_tokens by budget", "I5 posted_tokens by record", "I7 input_tokens by record"],
    ),
    "a record's flag": (
        f"UPDATE usage_records SET unpriced = true WHERE request_id = {CALL}",
        ["I7 unpriced by record"],
    ),
    "a record's key": (
        f"UPDATE usage_records SET api_key_id = NULL WHERE request_id = {CALL}",
        [*row("quarter-hour")],
    ),
    "a record's usage": (
        f"UPDATE usage_records SET items = jsonb_set(items, '{{0,usage,reasoning_tokens}}', '7') WHERE request_id = {CALL}",
        ["I4 reasoning_tokens by quarter-hour"],
    ),
    "a record's items": (
        f"UPDATE usage_records SET items = '[{{\"model\": 1}}]' WHERE request_id = {CALL}",
        ["I7 items by record", *row("quarter-hour")],
    ),
    "no items": (
        f"UPDATE usage_records SET items = '7' WHERE request_id = {CALL}",
        ["I7 items by record", *row("quarter-hour")],
    ),
    "a record taken out": (
        f"DELETE FROM usage_records WHERE request_id = {CALL}",
        ["I5 posted_nanos by record", *row("quarter-hour")],
    ),
    "a correction that takes nothing back": (
        f"UPDATE usage_records SET items = items - 1 WHERE revision = 1 AND request_id = {CORRECTED}",
        ["I4 input_tokens by quarter-hour", "I4 output_tokens by quarter-hour", "I7 cost_nanos by record"],
    ),
    "an expiry taken out": (
        f"DELETE FROM usage_records WHERE revision = 0 AND request_id = {CORRECTED}",
        [
            "I4 cost_nanos by quarter-hour",
            "I4 input_cost_nanos by quarter-hour",
            "I4 input_tokens by quarter-hour",
            "I4 output_cost_nanos by quarter-hour",
            "I4 output_tokens by quarter-hour",
            "I5 posted_nanos by record",
            "I8 revisions by records",
        ],
    ),
    "two Deducts": (
        f"UPDATE usage_records SET source = 'DEDUCT' WHERE revision = 0 AND request_id = {CORRECTED}",
        [
            "I4 estimated_requests by quarter-hour",
            "I4 requests by quarter-hour",
            "I5 kind by record",
            "I8 Deducts by records",
        ],
    ),
    "a release's place": (
        f"UPDATE usage_records SET revision = 7 WHERE request_id = {RELEASED}",
        ["I8 revisions by records"],
    ),
    "a release that costs": (
        f"UPDATE usage_records SET cost_nanos = 7, other_cost_nanos = 7 WHERE request_id = {RELEASED}",
        ["I7 cost_nanos by record", "I8 cost_nanos by record"],
    ),
    "a price": (
        "UPDATE prices SET rates = rates || '{\"input\": 7000000}' WHERE model_pattern = 'test-model'",
        ["I7 cost_nanos by record"],
    ),
    "a price taken out": (
        "DELETE FROM prices WHERE model_pattern = 'test-model'",
        ["I7 cost_nanos by record"],
    ),
    "an event's details": (
        f"UPDATE audit_events SET details = '{{}}' WHERE {EVENT} = 2",
        ["I9 hash by event"],
    ),
    "an event's time": (
        f"UPDATE audit_events SET create_time = create_time + interval '1 microsecond' WHERE {EVENT} = 2",
        ["I9 hash by event"],
    ),
    "an event's link": (
        f"UPDATE audit_events SET previous_hash = repeat('0', 64) WHERE {EVENT} = 2",
        ["I9 hash by event", "I9 previous_hash by event"],
    ),
    "an event taken out": (f"DELETE FROM audit_events WHERE {EVENT} = 2", ["I9 place by event"]),
    "the last event taken out": (
        f"DELETE FROM audit_events WHERE {EVENT} = (SELECT max(sequence) FROM audit_events WHERE tenant_id = '{DEFAULT}')",
        ["I9 sequence by head"],
    ),
    "the end of the chain": (
        f"UPDATE audit_heads SET hash = repeat('7', 64) WHERE tenant_id = '{DEFAULT}'",
        ["I9 hash by head"],
    ),
    "a report's content": (
        f"UPDATE chargeback_reports SET content = content || ' ' WHERE {REPORT}",
        ["I10 content_sha256 by report"],
    ),
    "a report's hash too": (
        f"UPDATE chargeback_reports SET content = '{{}}', content_sha256 = encode(sha256('{{}}'), 'hex') WHERE {REPORT}",
        ["I10 content by report"],
    ),
    "a report's total": (
        f"UPDATE chargeback_reports SET total_nanos = total_nanos + 7 WHERE {REPORT}",
        ["I10 total_nanos by report"],
    ),
    "a report's requests": (
        f"UPDATE chargeback_reports SET requests = requests + 7 WHERE {REPORT}",
        ["I10 requests by report"],
    ),
    "a hold of an ended call": (
        f"UPDATE holds SET request_id = {CALL}, lease_expire_time = now() - interval '1 hour' WHERE ctid = (SELECT ctid FROM holds h WHERE grant_ids <> '{{}}' LIMIT 1)",
        ["I11 hold by holds"],
    ),
}


@pytest.fixture(scope="module")
def filled_database(database_server: DatabaseServer, template_database: str) -> Iterator[str]:
    """The name of a database with full books that is only copied."""
    name = database_server.create(template=template_database)
    asyncio.run(fill(database_server.url(name)))
    yield name
    database_server.drop(name)


@pytest.fixture
def books_url(database_server: DatabaseServer, filled_database: str) -> Iterator[str]:
    """Full books of this test's own."""
    name = database_server.create(template=filled_database)
    yield database_server.url(name)
    database_server.drop(name)


@pytest.mark.parametrize("what", TAMPERED)
async def test_tampering_is_seen(books_url: str, what: str) -> None:
    """S14–S19, S24, S26, F176: whatever somebody changes, takes out or puts in is said, with both figures."""
    statement, expected = TAMPERED[what]
    with psycopg.connect(books_url, autocommit=True) as connection:
        for part in statement.split("; "):
            assert connection.execute(part).rowcount >= 1
    proof = await prove(books_url)
    assert proof.told == set(expected)
    assert proof.outcome is not None
    assert not proof.outcome.clean
    assert all(found.said != found.proved for found in proof.differences)
