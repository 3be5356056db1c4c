"""The SQL of the proof. Statements are put together from constants of the program; values are always parameters."""
# ruff: noqa: S608

from bursar_server.db.tables import ROLLUP_COUNTERS

# What a call posts (S19): rollups tie to these kinds, balances to all.
_CALL_KINDS = "('CHARGE', 'EXPIRY', 'ADJUSTMENT')"

_COUNTERS = range(len(ROLLUP_COUNTERS))
_PROVED = [f"proved_{index}" for index in _COUNTERS]
_SAID = [f"said_{index}" for index in _COUNTERS]

# Sums by account, and by quarter-hour for what tenants are charged; what a row says beside what its entries come to.
# `known` tells the accounts that exist. Sums are numeric: what somebody wrote by hand can be too large for 64 bits.
MAKE_TABLES = (
    "DROP TABLE IF EXISTS pg_temp.verify_accounts",
    "DROP TABLE IF EXISTS pg_temp.verify_rollups",
    "DROP TABLE IF EXISTS pg_temp.verify_summed",
    """CREATE TEMP TABLE verify_accounts (tenant_id uuid, kind text, account_id uuid, period_key text,
    known boolean NOT NULL DEFAULT false, said_nanos numeric NOT NULL DEFAULT 0, said_tokens numeric NOT NULL DEFAULT 0,
    proved_nanos numeric NOT NULL DEFAULT 0, proved_tokens numeric NOT NULL DEFAULT 0,
    PRIMARY KEY (tenant_id, kind, account_id, period_key))""",
    f"""CREATE TEMP TABLE verify_rollups (tenant_id uuid, bucket_time timestamptz, user_id uuid, api_key_id uuid,
    provider text, model text, {", ".join(f"{name} numeric NOT NULL DEFAULT 0" for name in _SAID + _PROVED)},
    PRIMARY KEY (tenant_id, bucket_time, user_id, api_key_id, provider, model))""",
    # Until when the entries of a tenant are in its sums.
    "CREATE TEMP TABLE verify_summed (tenant_id uuid PRIMARY KEY, until timestamptz NOT NULL)",
)

TENANTS = "SELECT tenant_id, name FROM tenants WHERE tenant_id > %(after)s ORDER BY tenant_id LIMIT %(limit)s"
TENANT_NAMED = (
    "SELECT tenant_id, name FROM tenants WHERE tenant_id::text = %(name)s OR name = %(name)s LIMIT 1"
)
TENANT_COUNT = "SELECT count(*) FROM tenants"


def _strangers(table: str) -> str:
    # One look into the index for each tenant, instead of reading all rows.
    return f"""
WITH RECURSIVE found(tenant_id) AS ((SELECT tenant_id FROM {table} ORDER BY tenant_id LIMIT 1) UNION ALL
    SELECT (SELECT t.tenant_id FROM {table} t WHERE t.tenant_id > f.tenant_id ORDER BY t.tenant_id LIMIT 1)
    FROM found f WHERE f.tenant_id IS NOT NULL)
SELECT f.tenant_id FROM found f WHERE f.tenant_id IS NOT NULL
    AND NOT EXISTS (SELECT 1 FROM tenants t WHERE t.tenant_id = f.tenant_id)"""


# Rows of tenants that do not exist, by table.
STRANGERS = {
    table: _strangers(table)
    for table in ("ledger_entries", "usage_records", "balances", "grants", "rollup_quarters")
}

# -- accounts: I1, I3, I4, I12 ------------------------------------------------------------------------


def _edge(table: str, column: str) -> str:
    return f"""
SELECT n.{column} FROM {table} n WHERE n.tenant_id = %(tenant_id)s AND n.{column} < %(high)s AND n.{column} > (
    SELECT o.{column} FROM {table} o WHERE o.tenant_id = %(tenant_id)s AND o.{column} >= %(low)s AND o.{column} < %(high)s
    ORDER BY o.{column} OFFSET %(size)s LIMIT 1)
ORDER BY n.{column} LIMIT 1"""


# Where the next page begins: at the first key after the one that lies `size` rows on, so that no key is cut in two.
EDGE_OF_ENTRIES = _edge("ledger_entries", "op_id")
EDGE_OF_RECORDS = _edge("usage_records", "request_id")
EDGE_OF_BALANCES = _edge("balances", "budget_id")
EDGE_OF_GRANTS = _edge("grants", "grant_id")
EDGE_OF_QUARTERS = _edge("rollup_quarters", "bucket_time")

# What a tenant is charged is summed by quarter-hour, as the rollups do; all else by account.
_KIND = "CASE e.account WHEN 'TENANT' THEN 'QUARTER' ELSE e.account END"
_BUCKET = (
    """to_char(date_bin('15 minutes', e.usage_time, 'epoch') AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI"Z"')"""
)
_PERIOD = f"CASE e.account WHEN 'TENANT' THEN {_BUCKET} ELSE e.period_key END"


def _entry_sums(tables: str, condition: str, summed: str = "true") -> str:
    return f"""SELECT e.account_tenant_id AS tenant_id, {_KIND} AS kind, e.account_id, {_PERIOD} AS period_key,
    coalesce(sum(e.amount_nanos) FILTER (WHERE {summed}), 0) AS nanos,
    coalesce(sum(e.amount_tokens) FILTER (WHERE {summed}), 0) AS tokens, count(*) AS entries FROM {tables}
    WHERE (e.account <> 'TENANT' OR e.usage_time >= %(since)s) AND {condition} GROUP BY 1, 2, 3, 4"""


_OF_TENANT = "e.tenant_id = %(tenant_id)s AND e.op_id >= %(low)s AND e.op_id < %(high)s"
REMEMBER_SUMMED = """
INSERT INTO verify_summed (tenant_id, until) VALUES (%(tenant_id)s, %(until)s)
ON CONFLICT (tenant_id) DO UPDATE SET until = excluded.until"""
# Accounts that were posted to since then are noted too, with what they come to until then.
ADD_ENTRIES = f"""
WITH sums AS MATERIALIZED ({_entry_sums("ledger_entries e", _OF_TENANT, "e.posted_time <= %(until)s")}),
added AS (
    INSERT INTO verify_accounts AS a (tenant_id, kind, account_id, period_key, known, proved_nanos, proved_tokens)
    SELECT s.tenant_id, s.kind, s.account_id, s.period_key, s.kind = 'QUARTER' AND s.account_id = s.tenant_id,
        s.nanos, s.tokens FROM sums s
    ON CONFLICT (tenant_id, kind, account_id, period_key) DO UPDATE
    SET proved_nanos = a.proved_nanos + excluded.proved_nanos, proved_tokens = a.proved_tokens + excluded.proved_tokens)
SELECT coalesce(sum(entries), 0) FROM sums"""


def _say(source: str) -> str:
    return f"""
WITH said AS (INSERT INTO verify_accounts AS a (tenant_id, kind, account_id, period_key, known, said_nanos, said_tokens)
    {source} ON CONFLICT (tenant_id, kind, account_id, period_key) DO UPDATE
    SET known = true, said_nanos = excluded.said_nanos, said_tokens = excluded.said_tokens RETURNING 1)
SELECT count(*) FROM said"""


_BALANCES = """SELECT b.tenant_id, 'BUDGET', b.budget_id, b.period_key, EXISTS (SELECT 1 FROM budgets x
        WHERE x.tenant_id = b.tenant_id AND x.budget_id = b.budget_id), b.spent_nanos, b.spent_tokens
    FROM balances b WHERE b.tenant_id = %(tenant_id)s"""
_GRANTS = """SELECT g.tenant_id, 'GRANT', g.grant_id, '', true, g.spent_nanos, 0
    FROM grants g WHERE g.tenant_id = %(tenant_id)s"""
_QUARTERS = f"""SELECT e.tenant_id, 'QUARTER', e.tenant_id, {_BUCKET.replace("usage_time", "bucket_time")}, true,
        sum(e.cost_nanos), sum(e.input_tokens + e.output_tokens)
    FROM rollup_quarters e WHERE e.tenant_id = %(tenant_id)s"""

SAY_BALANCES = _say(
    f"{_BALANCES} AND b.budget_id >= %(low)s AND b.budget_id < %(high)s AND b.period_start >= %(since)s"
).replace("SET known = true", "SET known = excluded.known")
SAY_GRANTS = _say(
    f"{_GRANTS} AND g.grant_id >= %(low)s AND g.grant_id < %(high)s AND g.create_time >= %(since)s"
)
SAY_QUARTERS = _say(
    f"{_QUARTERS} AND e.bucket_time >= %(start)s AND e.bucket_time < %(end)s GROUP BY e.tenant_id, e.bucket_time"
)

# What began before the first instant that is asked about is left out.
LEAVE_OUT_EARLIER = """
DELETE FROM verify_accounts a WHERE a.tenant_id = %(tenant_id)s AND NOT a.known AND (
    a.kind = 'BUDGET' AND EXISTS (SELECT 1 FROM balances b WHERE b.tenant_id = a.tenant_id AND b.budget_id = a.account_id
        AND b.period_key = a.period_key AND b.period_start < %(since)s)
    OR a.kind = 'GRANT' AND EXISTS (SELECT 1 FROM grants g WHERE g.tenant_id = a.tenant_id AND g.grant_id = a.account_id
        AND g.create_time < %(since)s))"""

# What is left after this is under suspicion.
FORGET_EQUAL_ACCOUNTS = """
DELETE FROM verify_accounts a WHERE a.tenant_id = %(tenant_id)s AND a.known AND a.said_nanos = a.proved_nanos
    AND a.said_tokens = a.proved_tokens"""
ANY_ACCOUNTS = "SELECT EXISTS (SELECT 1 FROM verify_accounts WHERE tenant_id = %(tenant_id)s)"
ACCOUNTS_LEFT = """
SELECT kind, account_id, period_key, known, said_nanos, said_tokens, proved_nanos, proved_tokens FROM verify_accounts
WHERE tenant_id = %(tenant_id)s AND (kind, account_id, period_key) > (%(kind)s, %(account_id)s, %(period_key)s)
ORDER BY kind, account_id, period_key LIMIT %(limit)s"""


def _say_again(source: str, kind: str) -> str:
    return f"""
UPDATE verify_accounts a SET known = s.known, said_nanos = s.nanos, said_tokens = s.tokens
FROM ({source}) AS s(tenant_id, kind, account_id, period_key, known, nanos, tokens)
WHERE a.tenant_id = %(tenant_id)s AND a.kind = '{kind}' AND a.account_id = s.account_id AND a.period_key = s.period_key"""


SAY_AGAIN = (
    _say_again(
        f"{_BALANCES} AND (b.budget_id, b.period_key) IN (SELECT v.account_id, v.period_key FROM verify_accounts v"
        " WHERE v.tenant_id = %(tenant_id)s AND v.kind = 'BUDGET')",
        "BUDGET",
    ),
    _say_again(
        f"{_GRANTS} AND g.grant_id IN (SELECT v.account_id FROM verify_accounts v"
        " WHERE v.tenant_id = %(tenant_id)s AND v.kind = 'GRANT')",
        "GRANT",
    ),
    _say_again(
        f"{_QUARTERS} AND e.bucket_time IN (SELECT v.period_key::timestamptz FROM verify_accounts v"
        " WHERE v.tenant_id = %(tenant_id)s AND v.kind = 'QUARTER') GROUP BY e.tenant_id, e.bucket_time",
        "QUARTER",
    ),
)


def _add_again(owner: str, tables: str, condition: str) -> str:
    return f"""
UPDATE verify_accounts a SET proved_nanos = a.proved_nanos + s.nanos, proved_tokens = a.proved_tokens + s.tokens
FROM ({_entry_sums(tables, f"{owner} AND {condition}")}) s
WHERE a.tenant_id = s.tenant_id AND a.kind = s.kind AND a.account_id = s.account_id AND a.period_key = s.period_key"""


_SINCE_SUMMED = "e.op_id >= %(near)s AND e.posted_time > coalesce(v.until, '-infinity')"
_WITH_SUMMED = "ledger_entries e LEFT JOIN verify_summed v ON v.tenant_id = e.tenant_id"
# What was posted since the entries were summed, by calls whose ids are not old; and all that ever was.
ADD_LATER_ENTRIES = _add_again("e.tenant_id = %(tenant_id)s", _WITH_SUMMED, _SINCE_SUMMED)
ADD_LATER_ENTRIES_OF_ALL = _add_again("e.account_tenant_id = %(tenant_id)s", _WITH_SUMMED, _SINCE_SUMMED)
START_AGAIN = "UPDATE verify_accounts SET proved_nanos = 0, proved_tokens = 0 WHERE tenant_id = %(tenant_id)s"
ADD_ALL_ENTRIES = _add_again("e.tenant_id = %(tenant_id)s", "ledger_entries e", "true")
ADD_ALL_ENTRIES_OF_ALL = _add_again("e.account_tenant_id = %(tenant_id)s", "ledger_entries e", "true")

# -- holds: I2, I3, I11 -------------------------------------------------------------------------------


def _held(owner: str) -> str:
    return f"""
WITH legs AS (SELECT l.budget_id, l.period_key, sum(l.nanos) AS nanos, sum(l.tokens) AS tokens
    FROM holds h, unnest(h.leg_tenant_ids, h.leg_budget_ids, h.leg_period_keys, h.leg_nanos, h.leg_tokens)
        AS l(tenant_id, budget_id, period_key, nanos, tokens)
    WHERE {owner} AND l.tenant_id = %(tenant_id)s GROUP BY 1, 2),
held AS (SELECT b.budget_id, b.period_key, b.held_nanos, b.held_tokens FROM balances b
    WHERE b.tenant_id = %(tenant_id)s AND (b.held_nanos <> 0 OR b.held_tokens <> 0))
SELECT budget_id, period_key, coalesce(h.held_nanos, 0), coalesce(h.held_tokens, 0), coalesce(l.nanos, 0), coalesce(l.tokens, 0)
FROM held h FULL JOIN legs l USING (budget_id, period_key)
WHERE coalesce(h.held_nanos, 0) <> coalesce(l.nanos, 0) OR coalesce(h.held_tokens, 0) <> coalesce(l.tokens, 0)
ORDER BY budget_id, period_key"""


HELD_ON_BALANCES = _held("h.tenant_id = %(tenant_id)s")
HELD_ON_BALANCES_BY_ALL = _held("true")
HELD_ON_GRANTS = """
WITH legs AS (SELECT l.grant_id, sum(l.nanos) AS nanos FROM holds h, unnest(h.grant_ids, h.grant_nanos) AS l(grant_id, nanos)
    WHERE h.tenant_id = %(tenant_id)s GROUP BY 1),
held AS (SELECT g.grant_id, g.held_nanos FROM grants g WHERE g.tenant_id = %(tenant_id)s AND g.held_nanos <> 0)
SELECT grant_id, coalesce(h.held_nanos, 0), coalesce(l.nanos, 0) FROM held h FULL JOIN legs l USING (grant_id)
WHERE coalesce(h.held_nanos, 0) <> coalesce(l.nanos, 0) ORDER BY grant_id"""
OVERDRAWN_GRANTS = """
SELECT grant_id, spent_nanos, amount_nanos FROM grants WHERE tenant_id = %(tenant_id)s
    AND (spent_nanos > amount_nanos OR spent_nanos < 0) ORDER BY grant_id"""
OPEN_HOLDS = "SELECT count(*) FROM holds WHERE tenant_id = %(tenant_id)s"
# A Check and the end of its call can cross in two processes: what the Check held is removed when its lease ends.
HOLDS_OF_ENDED_CALLS = """
SELECT h.request_id, h.lease_expire_time, r.revision, r.source FROM holds h JOIN LATERAL (
    SELECT x.revision, x.source FROM usage_records x WHERE x.tenant_id = h.tenant_id AND x.request_id = h.request_id
    ORDER BY x.revision DESC LIMIT 1) r ON true
WHERE h.tenant_id = %(tenant_id)s AND h.lease_expire_time < clock_timestamp() - %(grace)s ORDER BY h.request_id"""

# -- calls: I5, I6, I8 --------------------------------------------------------------------------------

_RECORDS_IN_RANGE = "r.tenant_id = %(tenant_id)s AND r.request_id >= %(low)s AND r.request_id < %(high)s"
_ENTRIES_IN_RANGE = "e.tenant_id = %(tenant_id)s AND e.op_id >= %(low)s AND e.op_id < %(high)s"
_LIST = "CASE jsonb_typeof(r.postings) WHEN 'array' THEN r.postings ELSE '[]' END"

POSTINGS_DIFFER = f"""
WITH said AS (
    SELECT r.request_id, r.revision, 'TENANT' AS account, r.tenant_id AS owner, r.tenant_id AS account_id, '' AS period_key,
        r.cost_nanos AS nanos, r.input_tokens + r.output_tokens AS tokens, r.usage_time,
        CASE r.source WHEN 'EXPIRY' THEN '{{EXPIRY}}'::text[] ELSE '{{CHARGE,ADJUSTMENT}}' END AS kinds
    FROM usage_records r WHERE {_RECORDS_IN_RANGE} AND r.source <> 'RELEASE'
    UNION ALL
    SELECT r.request_id, r.revision, l.account, l.tenant_id, l.id, l.period_key, l.nanos, l.tokens, r.usage_time,
        CASE r.source WHEN 'EXPIRY' THEN '{{EXPIRY}}'::text[] ELSE '{{CHARGE,ADJUSTMENT}}' END
    FROM usage_records r, jsonb_to_recordset({_LIST})
        AS l(account text, tenant_id uuid, id uuid, period_key text, nanos bigint, tokens bigint)
    WHERE {_RECORDS_IN_RANGE} AND (l.nanos <> 0 OR l.tokens <> 0)),
posted AS (
    SELECT e.op_id AS request_id, e.revision, e.account, e.account_tenant_id AS owner, e.account_id, e.period_key,
        sum(e.amount_nanos) AS nanos, sum(e.amount_tokens) AS tokens, min(e.usage_time) AS usage_time, min(e.kind) AS kind
    FROM ledger_entries e WHERE {_ENTRIES_IN_RANGE} AND e.kind IN {_CALL_KINDS} GROUP BY 1, 2, 3, 4, 5, 6)
SELECT request_id, revision, account, owner, account_id, period_key, s.nanos, s.tokens, s.usage_time, s.kinds,
    p.nanos, p.tokens, p.usage_time, p.kind
FROM said s FULL JOIN posted p USING (request_id, revision, account, owner, account_id, period_key)
WHERE s.nanos IS DISTINCT FROM p.nanos OR s.tokens IS DISTINCT FROM p.tokens OR s.usage_time <> p.usage_time
    OR p.kind <> ALL (s.kinds)
ORDER BY request_id, revision, account, account_id, period_key"""

COSTS_NOT_BORNE = f"""
SELECT r.request_id, r.revision, l.tenant_id, l.id, l.period_key, l.user_scoped, l.nanos, g.nanos, r.cost_nanos, l.tokens,
    r.input_tokens + r.output_tokens
FROM usage_records r,
    LATERAL (SELECT coalesce(sum((x ->> 'nanos')::bigint), 0) AS nanos FROM jsonb_array_elements({_LIST}) x
        WHERE x ->> 'account' = 'GRANT') g,
    LATERAL jsonb_to_recordset({_LIST}) AS l(account text, tenant_id uuid, id uuid, period_key text, user_scoped boolean,
        nanos bigint, tokens bigint)
WHERE {_RECORDS_IN_RANGE} AND l.account = 'BUDGET' AND (
    l.nanos + CASE WHEN l.user_scoped THEN g.nanos ELSE 0 END IS DISTINCT FROM r.cost_nanos
    OR l.tokens IS DISTINCT FROM r.input_tokens + r.output_tokens)
ORDER BY r.request_id, r.revision, l.id"""

PARTS_DIFFER = f"""
SELECT r.request_id, r.revision, r.cost_nanos, r.input_cost_nanos::numeric + r.output_cost_nanos + r.other_cost_nanos
FROM usage_records r WHERE {_RECORDS_IN_RANGE}
    AND r.cost_nanos <> r.input_cost_nanos::numeric + r.output_cost_nanos + r.other_cost_nanos
ORDER BY r.request_id, r.revision"""

REVISIONS_DIFFER = f"""
SELECT r.request_id, array_agg(r.revision ORDER BY r.revision), count(*) FILTER (WHERE r.source = 'DEDUCT')
FROM usage_records r WHERE {_RECORDS_IN_RANGE} GROUP BY r.request_id
HAVING min(r.revision) <> 0 OR max(r.revision) <> count(*) - 1 OR count(*) FILTER (WHERE r.source = 'DEDUCT') > 1
ORDER BY r.request_id"""

RELEASES_THAT_COST = f"""
SELECT r.request_id, r.revision, r.cost_nanos, r.input_tokens + r.output_tokens FROM usage_records r
WHERE {_RECORDS_IN_RANGE} AND r.source = 'RELEASE' AND (r.cost_nanos <> 0 OR r.input_tokens <> 0 OR r.output_tokens <> 0)
ORDER BY r.request_id, r.revision"""

# A correction needs what the expiry charged; for the many records that are none, the inner query is not run.
_RECORD_COLUMNS = """
SELECT r.request_id, r.revision, r.source, r.user_id, r.api_key_id, r.provider, r.model, r.usage_time, r.posted_time, r.items,
    r.input_tokens, r.output_tokens, r.input_cost_nanos, r.output_cost_nanos, r.other_cost_nanos, r.cost_nanos, r.unpriced,
    r.estimated, CASE WHEN r.revision > 0 THEN (
        SELECT jsonb_build_array(b.provider, b.items, b.input_cost_nanos, b.output_cost_nanos, b.other_cost_nanos)
        FROM usage_records b WHERE b.tenant_id = r.tenant_id AND b.request_id = r.request_id AND b.source = 'EXPIRY'
            AND b.revision < r.revision ORDER BY b.revision LIMIT 1) END,
    r.provider_cost_nanos
FROM usage_records r"""
_LATER = "AND (%(after)s::timestamptz IS NULL OR r.posted_time > %(after)s)"
RECORDS = f"{_RECORD_COLUMNS} WHERE {_RECORDS_IN_RANGE} {_LATER} ORDER BY r.request_id, r.revision"
RECORDS_OF_SUSPECTS = f"""{_RECORD_COLUMNS} WHERE {_RECORDS_IN_RANGE} {_LATER}
    AND date_bin('15 minutes', r.usage_time, 'epoch') IN
        (SELECT v.bucket_time FROM verify_rollups v WHERE v.tenant_id = %(tenant_id)s)
ORDER BY r.request_id, r.revision"""
PRICES = """
SELECT tenant_id, price_id, source, model_pattern, provider, service_tier, rates, tiers, max_output_tokens, effective_time,
    create_time, update_time, version FROM prices WHERE price_id = ANY(%(price_ids)s::uuid[])"""

# -- rollups: I4, I12 ---------------------------------------------------------------------------------

_ROLLUP_KEY = "bucket_time, user_id, api_key_id, provider, model"
_NAMES = ", ".join(ROLLUP_COUNTERS)
FIRST_QUARTER = """
SELECT min(bucket_time) FROM (SELECT min(bucket_time) AS bucket_time FROM rollup_quarters WHERE tenant_id = %(tenant_id)s
    AND bucket_time >= %(start)s UNION ALL SELECT min(bucket_day)::timestamp AT TIME ZONE 'UTC' FROM rollup_days
    WHERE tenant_id = %(tenant_id)s AND bucket_day >= (%(start)s::timestamptz AT TIME ZONE 'UTC')::date) q"""
ANY_ROLLUP_BEFORE = (
    "SELECT EXISTS (SELECT 1 FROM rollup_days WHERE tenant_id = %(tenant_id)s AND bucket_day < %(day)s)"
)

DAYS_DIFFER = f"""
WITH quarters AS (SELECT (q.bucket_time AT TIME ZONE 'UTC')::date AS bucket_day, q.user_id, q.api_key_id, q.provider, q.model,
        {", ".join(f"sum(q.{name}) AS {name}" for name in ROLLUP_COUNTERS)}
    FROM rollup_quarters q WHERE q.tenant_id = %(tenant_id)s AND q.bucket_time >= %(start)s AND q.bucket_time < %(end)s
    GROUP BY 1, 2, 3, 4, 5),
days AS (SELECT * FROM rollup_days d WHERE d.tenant_id = %(tenant_id)s
    AND d.bucket_day >= (%(start)s::timestamptz AT TIME ZONE 'UTC')::date
    AND d.bucket_day < (%(end)s::timestamptz AT TIME ZONE 'UTC')::date)
SELECT bucket_day, user_id, api_key_id, provider, model,
    {", ".join(f"coalesce(d.{name}, 0)" for name in ROLLUP_COUNTERS)},
    {", ".join(f"coalesce(q.{name}, 0)" for name in ROLLUP_COUNTERS)}
FROM days d FULL JOIN quarters q USING (bucket_day, user_id, api_key_id, provider, model)
WHERE {" OR ".join(f"coalesce(d.{name}, 0) <> coalesce(q.{name}, 0)" for name in ROLLUP_COUNTERS)}
ORDER BY bucket_day, user_id, api_key_id, provider, model"""

_ADDITIONS = f"""SELECT x.bucket_time, x.user_id, x.api_key_id, x.provider, x.model, {", ".join(f"x.c{i}" for i in _COUNTERS)}
    FROM jsonb_to_recordset(%(rows)s::jsonb) AS x(bucket_time timestamptz, user_id uuid, api_key_id uuid, provider text,
        model text, {", ".join(f"c{i} numeric" for i in _COUNTERS)})"""
ADD_TO_ROLLUPS = f"""
INSERT INTO verify_rollups AS v (tenant_id, {_ROLLUP_KEY}, {", ".join(_PROVED)})
SELECT %(tenant_id)s::uuid, a.* FROM ({_ADDITIONS}) a
ON CONFLICT (tenant_id, {_ROLLUP_KEY}) DO UPDATE SET {", ".join(f"{name} = v.{name} + excluded.{name}" for name in _PROVED)}"""
ADD_TO_KNOWN_ROLLUPS = f"""
UPDATE verify_rollups v SET {", ".join(f"proved_{i} = v.proved_{i} + a.c{i}" for i in _COUNTERS)} FROM ({_ADDITIONS}) a
WHERE v.tenant_id = %(tenant_id)s AND v.bucket_time = a.bucket_time AND v.user_id = a.user_id
    AND v.api_key_id = a.api_key_id AND v.provider = a.provider AND v.model = a.model"""
SAY_ROLLUPS = f"""
WITH said AS (INSERT INTO verify_rollups AS v (tenant_id, {_ROLLUP_KEY}, {", ".join(_SAID)})
    SELECT tenant_id, {_ROLLUP_KEY}, {_NAMES} FROM rollup_quarters
    WHERE tenant_id = %(tenant_id)s AND bucket_time >= %(start)s AND bucket_time < %(end)s
    ON CONFLICT (tenant_id, {_ROLLUP_KEY}) DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in _SAID)}
    RETURNING 1) SELECT count(*) FROM said"""
SAY_ROLLUPS_AGAIN = f"""
UPDATE verify_rollups v SET {", ".join(f"{said} = q.{name}" for said, name in zip(_SAID, ROLLUP_COUNTERS, strict=True))}
FROM rollup_quarters q WHERE v.tenant_id = %(tenant_id)s AND q.tenant_id = v.tenant_id AND q.bucket_time = v.bucket_time
    AND q.user_id = v.user_id AND q.api_key_id = v.api_key_id AND q.provider = v.provider AND q.model = v.model"""
START_ROLLUPS_AGAIN = f"UPDATE verify_rollups SET {', '.join(f'{name} = 0' for name in _PROVED)} WHERE tenant_id = %(tenant_id)s"
LEAVE_OUT_EARLIER_ROLLUPS = (
    "DELETE FROM verify_rollups WHERE tenant_id = %(tenant_id)s AND bucket_time < %(start)s"
)
_EQUAL = " AND ".join(f"{said} = {proved}" for said, proved in zip(_SAID, _PROVED, strict=True))
FORGET_EQUAL_ROLLUPS = f"DELETE FROM verify_rollups WHERE tenant_id = %(tenant_id)s AND {_EQUAL}"
ANY_ROLLUPS = "SELECT EXISTS (SELECT 1 FROM verify_rollups WHERE tenant_id = %(tenant_id)s)"
ROLLUPS_LEFT = f"""
SELECT {_ROLLUP_KEY}, {", ".join(_SAID)}, {", ".join(_PROVED)} FROM verify_rollups
WHERE tenant_id = %(tenant_id)s ORDER BY {_ROLLUP_KEY} OFFSET %(offset)s LIMIT %(limit)s"""

# The first model of a call bears what rounding leaves: of sixteen models at most a nano for each of the others.
_COSTS = [name for name in ROLLUP_COUNTERS if name.endswith("_nanos")]
_NUMBERS = [name for name in ROLLUP_COUNTERS if not name.endswith("_nanos")]
_NEGATIVE = " OR ".join(
    [f"{name} < 0" for name in _NUMBERS] + [f"{name} < -15 * requests" for name in _COSTS]
)
NEGATIVE_ROLLUPS = {
    table: f"""
SELECT {bucket}::text, user_id, api_key_id, provider, model, {_NAMES} FROM {table}
WHERE tenant_id = %(tenant_id)s AND {bucket} >= %(start)s AND {bucket} < %(end)s AND ({_NEGATIVE})
ORDER BY {bucket}, user_id, api_key_id, provider, model"""
    for table, bucket in (("rollup_quarters", "bucket_time"), ("rollup_days", "bucket_day"))
}

# -- proof: I9, I10 -----------------------------------------------------------------------------------

AUDIT_HEAD = "SELECT sequence, hash FROM audit_heads WHERE tenant_id = %(tenant_id)s"
AUDIT_EVENTS = """
SELECT sequence, action, actor, user_id, resource, details, create_time, previous_hash, hash FROM audit_events
WHERE tenant_id = %(tenant_id)s AND sequence > %(after)s ORDER BY sequence LIMIT %(limit)s"""
AUDIT_EVENT_BEFORE = """
SELECT b.sequence, b.hash FROM audit_events b WHERE b.tenant_id = %(tenant_id)s AND b.sequence < (
    SELECT coalesce(min(f.sequence), 9223372036854775807) FROM audit_events f
    WHERE f.tenant_id = %(tenant_id)s AND f.create_time >= %(since)s)
ORDER BY b.sequence DESC LIMIT 1"""
REPORT_CONTENT = (
    "SELECT content FROM chargeback_reports WHERE tenant_id = %(tenant_id)s AND report_id = %(report_id)s"
)
CHARGED = f"""
SELECT coalesce(sum(e.amount_nanos), 0) FROM ledger_entries e WHERE {_ENTRIES_IN_RANGE} AND e.account = 'TENANT'
    AND e.kind IN {_CALL_KINDS} AND e.usage_time >= %(start)s AND e.usage_time < %(end)s AND e.posted_time <= %(cutoff)s"""
