"""Very many calls, written by SQL as lanes would have written them: each costs 100 nanos and 55 tokens."""

import json
from uuid import UUID

from support.metering import MODEL, PLATFORM, TENANT, Ledger

USERS = 50


def write_calls(ledger: Ledger, calls: int, *, days: int = 10) -> None:
    """Write calls of the days before now: a record, and entries on the tenant, two of its budgets, one of everybody."""
    price: UUID = ledger.sql("SELECT price_id FROM prices WHERE model_pattern = %s", MODEL)[0][0]
    for name in range(USERS):
        ledger.user(f"user{name}@example.com")
    ledger.budget("TENANT", 10**12)
    ledger.budget("TENANT", 10**12, period="TOTAL")
    ledger.budget("GLOBAL", 10**12, tenant_id=PLATFORM, period="MONTHLY")
    usage = {"input_tokens": 10, "output_tokens": 45}
    item = [{"model": MODEL, "service_tier": "", "price_id": str(price), "usage": usage}]
    ledger.sql(_LEGS)
    ledger.sql(_CALLS, f"{days} days", calls, calls, TENANT)
    ledger.sql(_RECORDS, TENANT, MODEL, json.dumps(item), price)
    ledger.sql(_CHARGES, TENANT, TENANT, TENANT)
    ledger.sql(_POSTINGS, TENANT)
    ledger.sql(_BALANCES)
    for table, bucket, value in (
        ("rollup_quarters", "bucket_time", "date_bin('15 minutes', at, 'epoch')"),
        ("rollup_days", "bucket_day", "(at AT TIME ZONE 'UTC')::date"),
    ):
        ledger.sql(_ROLLUPS.format(table=table, bucket=bucket, value=value), TENANT, MODEL)
    ledger.sql("ANALYZE")


# The budgets, and how their periods are cut.
_LEGS = """
CREATE TABLE many_legs AS SELECT b.tenant_id, b.budget_id, b.period,
    (row_number() OVER (ORDER BY b.tenant_id, b.budget_id))::int AS leg FROM budgets b"""
_CALLS = """
CREATE TABLE many_calls AS SELECT n, at, u.user_id,
    (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7' || substr(md5(n::text), 1, 3) || '8'
        || substr(md5(n::text), 4, 15))::uuid AS id
FROM (SELECT n, clock_timestamp() - %s::interval * n / %s - interval '1 minute' AS at FROM generate_series(1, %s) n) c
JOIN (SELECT user_id, row_number() OVER (ORDER BY user_id) - 1 AS place FROM users WHERE tenant_id = %s) u
    ON u.place = c.n %% (SELECT count(*) FROM users)"""
_PERIOD = """CASE l.period WHEN 'DAILY' THEN date_trunc('day', at, 'UTC') WHEN 'MONTHLY' THEN date_trunc('month', at, 'UTC')
    ELSE 'epoch' END"""
_KEY = f"""to_char({_PERIOD} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z#1"')"""
_RECORDS = f"""
INSERT INTO usage_records SELECT %s, id, 0, 'DEDUCT', md5(n::text), at, at, NULL, NULL, NULL, user_id, '', '{{}}', '{{}}', '',
    'openai', %s, '', 'SUCCESS', %s, %s, 10, 45, 10, 90, 0, 100, NULL, 0, 0, false, false, false, false,
    (SELECT jsonb_agg(jsonb_build_object('account', 'BUDGET', 'tenant_id', l.tenant_id, 'id', l.budget_id, 'period_key', {_KEY},
        'user_scoped', false, 'nanos', 100, 'tokens', 55)) FROM many_legs l)
FROM many_calls"""
_CHARGES = "INSERT INTO ledger_entries SELECT %s, id, 0, 0, 'CHARGE', 'TENANT', %s, %s, '', 100, 55, at, at FROM many_calls"
_POSTINGS = f"""
INSERT INTO ledger_entries SELECT %s, id, 0, leg, 'CHARGE', 'BUDGET', l.tenant_id, l.budget_id, {_KEY}, 100, 55, at, at
FROM many_calls, many_legs l"""
_BALANCES = f"""
INSERT INTO balances (tenant_id, budget_id, period_key, period_start, period_end, spent_nanos, spent_tokens)
SELECT l.tenant_id, l.budget_id, {_KEY}, min({_PERIOD}), '9999-01-01Z', count(*) * 100, count(*) * 55
FROM many_calls, many_legs l GROUP BY 1, 2, 3"""
_ROLLUPS = """
INSERT INTO {table} (tenant_id, {bucket}, user_id, api_key_id, provider, model, requests, input_tokens, output_tokens,
    input_cost_nanos, output_cost_nanos, cost_nanos)
SELECT %s, {value}, user_id, '00000000-0000-0000-0000-000000000000', 'openai', %s, count(*), count(*) * 10, count(*) * 45,
    count(*) * 10, count(*) * 90, count(*) * 100 FROM many_calls GROUP BY 1, 2, 3"""
