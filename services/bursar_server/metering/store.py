"""The SQL of metering: who calls and what limits them, rate windows, and the small statements around a batch."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import orjson
from psycopg import Connection

from bursar_server.audit.model import AuditHead, ChainedEvent
from bursar_server.budgets.model import (
    Admission,
    Budget,
    Enforcement,
    LeaseExpiry,
    ManagedBy,
    OnUnreachable,
    Scope,
    ScopeKind,
)
from bursar_server.kit.periods import PeriodKind
from bursar_server.metering.waits import WaitKey
from bursar_server.pricing.model import Price, PriceSource, PriceTier

Row = tuple[Any, ...]
RateKey = tuple[UUID, UUID, datetime]
"""Tenant, user and the minute's start."""

SET_LOCK_TIMEOUT = "SELECT set_config('lock_timeout', %s, true)"
LOCK_TENANTS = (
    "SELECT pg_advisory_xact_lock_shared(k) FROM (SELECT unnest(%s::bigint[]) AS k ORDER BY 1) AS o"
)
READ_MAPPED_IDS = """
SELECT o.tenant_id, o.given_id, o.request_id
FROM unnest(%s::uuid[], %s::uuid[]) AS k(t, r) JOIN odd_request_ids o ON o.tenant_id = k.t AND o.given_id = k.r::text"""
READ_VERSIONS = (
    "SELECT tenant_id, version, clock_timestamp() FROM config_versions WHERE tenant_id = ANY(%s::uuid[])"
)
# These fail with a division by zero unless what a batch took for granted is so: see `ahead`.
CONFIRM_VERSIONS = """
SELECT clock_timestamp(),
    1 / (count(*) = %s::bigint AND abs(extract(epoch FROM clock_timestamp() - %s::timestamptz)) < 1)::int
FROM unnest(%s::uuid[], %s::bigint[]) AS k(t, v) JOIN config_versions c ON c.tenant_id = k.t AND c.version = k.v"""
CONFIRM_NO_WAITS = """
SELECT 1 / (NOT EXISTS (
    SELECT FROM unnest(%s::uuid[], %s::uuid[]) AS k(t, b)
        JOIN check_waits w ON w.tenant_id = k.t AND w.budget_id = k.b
    WHERE w.expire_time > clock_timestamp()))::int"""
LOCK_RATES = """
SELECT r.tenant_id, r.user_id, r.window_start, r.requests
FROM unnest(%s::uuid[], %s::uuid[], %s::timestamptz[]) AS k(t, u, w)
    JOIN rate_windows r ON r.tenant_id = k.t AND r.user_id = k.u AND r.window_start = k.w
ORDER BY r.tenant_id, r.user_id, r.window_start FOR UPDATE OF r"""
READ_WAITS = """
SELECT w.budget_id, w.wait_since, w.request_id
FROM unnest(%s::uuid[], %s::uuid[]) AS k(t, b) JOIN check_waits w ON w.tenant_id = k.t AND w.budget_id = k.b
WHERE w.expire_time > clock_timestamp() ORDER BY w.budget_id, w.wait_since, w.request_id LIMIT 5000"""
JOIN_WAITS = """
INSERT INTO check_waits SELECT * FROM json_populate_recordset(NULL::check_waits, %s)
ON CONFLICT (tenant_id, budget_id, request_id) DO UPDATE SET expire_time = excluded.expire_time"""
LEAVE_WAITS = """
DELETE FROM check_waits w USING unnest(%s::uuid[], %s::uuid[], %s::uuid[]) AS k(t, b, r)
WHERE w.tenant_id = k.t AND w.budget_id = k.b AND w.request_id = k.r"""
UPDATE_RATES = """
UPDATE rate_windows r SET requests = x.requests
FROM json_populate_recordset(NULL::rate_windows, %s) AS x
WHERE r.tenant_id = x.tenant_id AND r.user_id = x.user_id AND r.window_start = x.window_start"""
INSERT_RATES = "INSERT INTO rate_windows SELECT * FROM json_populate_recordset(NULL::rate_windows, %s)"
LOCK_AUDIT_HEADS = """
SELECT h.tenant_id, h.sequence, h.hash FROM audit_heads h WHERE h.tenant_id = ANY(%s::uuid[])
ORDER BY h.tenant_id FOR UPDATE OF h"""
UPDATE_AUDIT_HEADS = """
UPDATE audit_heads h SET sequence = x.sequence, hash = x.hash
FROM json_populate_recordset(NULL::audit_heads, %s) AS x WHERE h.tenant_id = x.tenant_id"""
INSERT_AUDIT_EVENTS = "INSERT INTO audit_events SELECT * FROM json_populate_recordset(NULL::audit_events, %s)"

_BUDGET_COLUMNS = """tenant_id, budget_id, name, scope_kind, group_id, user_id, api_key_id, tag_key, tag_value, period,
    anchor_day, timezone, limit_nanos, limit_tokens, soft_limit_pct, alert_thresholds_pct, enforcement, admission,
    max_wait_ms, fit_output, shadow, on_lease_expiry, enabled, managed_by, owners, reason, definition_revision, version,
    create_time, update_time, on_unreachable, guard_streams"""


def rate_rows(windows: Iterable[tuple[RateKey, int]]) -> str:
    """Return rows of `rate_windows` as JSON."""
    return _json(
        {"tenant_id": key[0], "user_id": key[1], "window_start": key[2], "requests": requests}
        for key, requests in windows
    )


def wait_rows(waits: Iterable[tuple[WaitKey, tuple[datetime, datetime]]]) -> str:
    """Return rows of `check_waits` as JSON."""
    return _json(
        {
            "tenant_id": key[0],
            "budget_id": key[1],
            "request_id": key[2],
            "wait_since": since,
            "expire_time": expire,
        }
        for key, (since, expire) in waits
    )


def audit_rows(events: Iterable[ChainedEvent]) -> str:
    """Return rows of `audit_events` as JSON."""
    return _json(
        {
            "tenant_id": chained.tenant_id,
            "sequence": chained.sequence,
            "action": chained.event.action,
            "actor": chained.event.actor,
            "user_id": chained.event.user_id,
            "resource": chained.event.resource,
            "details": chained.event.details,
            "create_time": chained.event.create_time,
            "previous_hash": chained.previous_hash,
            "hash": chained.hash,
        }
        for chained in events
    )


def audit_head_rows(heads: Iterable[tuple[UUID, AuditHead]]) -> str:
    """Return rows of `audit_heads` as JSON."""
    return _json(
        {"tenant_id": tenant_id, "sequence": head.sequence, "hash": head.hash} for tenant_id, head in heads
    )


def _json(payload: Iterable[dict[str, object]]) -> str:
    return orjson.dumps(list(payload)).decode()


def read_versions(connection: Connection[Row]) -> dict[UUID, int]:
    """Return the configuration version of every tenant."""
    return dict(connection.execute("SELECT tenant_id, version FROM config_versions").fetchall())


def versions_of(connection: Connection[Row], tenant_ids: Sequence[UUID]) -> dict[UUID, int]:
    """Return the configuration versions of some tenants."""
    rows = connection.execute(READ_VERSIONS, (list(tenant_ids),)).fetchall()
    return {row[0]: row[1] for row in rows}


def keys_by_sha256(connection: Connection[Row], digests: Sequence[str]) -> dict[str, Row]:
    """Return rows by key hash.

    Each has tenant, key, masked key, user, service account, act for users, default tags, revoked, trust user field.
    """
    rows = connection.execute(
        "SELECT key_sha256, tenant_id, api_key_id, masked_key, user_id, service_account, act_for_users, default_tags,"
        " revoke_time IS NOT NULL, trust_user_field FROM api_keys WHERE key_sha256 = ANY(%s)",
        (list(digests),),
    ).fetchall()
    return {row[0]: row[1:] for row in rows}


def tenants_named(
    connection: Connection[Row], ids: Sequence[UUID], names: Sequence[str]
) -> list[tuple[UUID, str, str]]:
    """Return (id, name, status) of the tenants with these ids or names."""
    return connection.execute(
        "SELECT tenant_id, name, status FROM tenants WHERE tenant_id = ANY(%s::uuid[]) OR name = ANY(%s)",
        (list(ids), list(names)),
    ).fetchall()


def users_named(
    connection: Connection[Row], wanted: Sequence[tuple[UUID, str]]
) -> dict[tuple[UUID, str], Row]:
    """Return (user, e-mail, status, service account, rate limit) by tenant and id or e-mail."""
    rows = connection.execute(
        "SELECT w.t, w.u, u.user_id, u.email, u.status, u.service_account, u.rate_limit"
        " FROM unnest(%s::uuid[], %s::text[]) AS w(t, u) JOIN users u ON u.tenant_id = w.t"
        " AND ((u.email = w.u AND u.status <> 'DELETED') OR u.user_id::text = w.u)",
        ([tenant_id for tenant_id, _ in wanted], [user for _, user in wanted]),
    ).fetchall()
    return {(row[0], row[1]): row[2:] for row in rows}


def groups_of(connection: Connection[Row], users: Sequence[tuple[UUID, UUID]]) -> dict[UUID, list[UUID]]:
    """Return the groups of users, those above them included, by user."""
    rows = connection.execute(
        "WITH RECURSIVE above(tenant_id, user_id, group_id) AS ("
        " SELECT m.tenant_id, m.user_id, m.group_id FROM unnest(%s::uuid[], %s::uuid[]) AS w(t, u)"
        " JOIN group_members m ON m.tenant_id = w.t AND m.user_id = w.u"
        " UNION SELECT a.tenant_id, a.user_id, g.parent_group_id FROM above a"
        " JOIN groups g ON g.tenant_id = a.tenant_id AND g.group_id = a.group_id WHERE g.parent_group_id IS NOT NULL)"
        " SELECT user_id, group_id FROM above ORDER BY user_id, group_id",
        ([tenant_id for tenant_id, _ in users], [user_id for _, user_id in users]),
    ).fetchall()
    groups: dict[UUID, list[UUID]] = {}
    for user_id, group_id in rows:
        groups.setdefault(user_id, []).append(group_id)
    return groups


def budgets_matching(
    connection: Connection[Row],
    tenant_ids: Sequence[UUID],
    user_ids: Sequence[UUID],
    key_ids: Sequence[UUID],
    group_ids: Sequence[UUID],
) -> list[Budget]:
    """Return the enabled budgets that can match any of these principals; those of scope tenant, tag and global too."""
    rows = connection.execute(
        f"SELECT {_BUDGET_COLUMNS} FROM budgets WHERE tenant_id = ANY(%s::uuid[]) AND enabled AND delete_time IS NULL AND"
        " (scope_kind IN ('TENANT', 'TAG', 'GLOBAL') OR user_id = ANY(%s::uuid[]) OR api_key_id = ANY(%s::uuid[])"
        " OR group_id = ANY(%s::uuid[])) ORDER BY tenant_id, budget_id",
        (list(tenant_ids), list(user_ids), list(key_ids), list(group_ids)),
    ).fetchall()
    return [budget_of(row) for row in rows]


def budgets_by_id(connection: Connection[Row], keys: Sequence[tuple[UUID, UUID]]) -> list[Budget]:
    """Return budgets by tenant and id, disabled and deleted ones included."""
    rows = connection.execute(
        f"SELECT {_BUDGET_COLUMNS} FROM budgets WHERE (tenant_id, budget_id) IN"
        " (SELECT t, i FROM unnest(%s::uuid[], %s::uuid[]) AS k(t, i))",
        ([key[0] for key in keys], [key[1] for key in keys]),
    ).fetchall()
    return [budget_of(row) for row in rows]


def budget_of(row: Row) -> Budget:
    """Return the budget that a row of `budgets` holds."""
    scope = Scope(ScopeKind(row[3]), *row[4:9])
    return Budget(
        row[0], row[1], row[2], scope, PeriodKind(row[9]), row[10], row[11], row[12], row[13], row[14], tuple(row[15]),
        Enforcement(row[16]), Admission(row[17]), row[18], row[19], row[20], LeaseExpiry(row[21]), row[22],
        ManagedBy(row[23]), tuple(row[24]), row[25], row[26], row[27], row[28], row[29],
        OnUnreachable(row[30]), row[31],
    )  # fmt: skip


def grants_of(connection: Connection[Row], users: Sequence[tuple[UUID, UUID]]) -> dict[UUID, list[UUID]]:
    """Return the grants of users that are not revoked, by user; a correction can give money back to one that is spent.

    Those that are just over too: they pay for calls of their time that come late, after an outage (S7, S12).
    """
    rows = connection.execute(
        "SELECT g.user_id, g.grant_id FROM unnest(%s::uuid[], %s::uuid[]) AS w(t, u)"
        " JOIN grants g ON g.tenant_id = w.t AND g.user_id = w.u"
        " WHERE g.revoke_time IS NULL AND g.expires_at > now() - interval '1 day'",
        ([tenant_id for tenant_id, _ in users], [user_id for _, user_id in users]),
    ).fetchall()
    grants: dict[UUID, list[UUID]] = {}
    for user_id, grant_id in rows:
        grants.setdefault(user_id, []).append(grant_id)
    return grants


def prices_of(connection: Connection[Row], tenant_id: UUID) -> list[Price]:
    """Return the prices stored under a tenant (the platform's include the catalogue)."""
    rows = connection.execute(
        "SELECT tenant_id, price_id, source, model_pattern, provider, service_tier, rates, tiers, max_output_tokens,"
        " effective_time, create_time, update_time, version FROM prices WHERE tenant_id = %s AND delete_time IS NULL",
        (tenant_id,),
    ).fetchall()
    return [
        Price(
            row[0], row[1], PriceSource(row[2]), row[3], row[4], row[5], row[6],
            tuple(PriceTier(tier["from_input_tokens"], tier["rates"]) for tier in row[7]), *row[8:],
        )
        for row in rows
    ]  # fmt: skip


def recent_costs(
    connection: Connection[Row], tenant_id: UUID, limit: int
) -> list[tuple[UUID, UUID | None, str, int]]:
    """Return (tenant, key, model, nanos) of a tenant's latest calls, in the order they were made."""
    rows = connection.execute(
        "SELECT tenant_id, api_key_id, model, cost_nanos FROM usage_records WHERE tenant_id = %s AND source = 'DEDUCT'"
        " AND revision = 0 ORDER BY request_id DESC LIMIT %s",
        (tenant_id, limit),
    ).fetchall()
    return rows[::-1]


def tenants_of_calls(connection: Connection[Row], request_ids: Sequence[UUID]) -> dict[UUID, UUID]:
    """Return the tenants of calls that are open or recorded, where a request names nothing but the call."""
    asked = list(request_ids)
    rows = connection.execute(
        "SELECT request_id, tenant_id FROM holds WHERE request_id = ANY(%s::uuid[])", (asked,)
    ).fetchall()
    found: dict[UUID, UUID] = dict(rows)
    unknown = [request_id for request_id in asked if request_id not in found]
    if unknown:
        # One look into the primary key for each tenant: it begins with the tenant.
        recorded = connection.execute(
            "SELECT r.request_id, r.tenant_id FROM unnest(%s::uuid[]) AS c(id) CROSS JOIN tenants t"
            " JOIN usage_records r ON r.tenant_id = t.tenant_id AND r.request_id = c.id AND r.revision = 0",
            (unknown,),
        ).fetchall()
        found.update(recorded)
    return found


def odd_request_id(
    connection: Connection[Row], tenant_id: UUID, given_id: str, made: UUID, now: datetime
) -> UUID:
    """Return the id that stands for one that cannot be placed; the first one made for it counts for ever (S16)."""
    connection.execute(
        "INSERT INTO odd_request_ids VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING",
        (tenant_id, given_id, made, now),
    )
    row = connection.execute(
        "SELECT request_id FROM odd_request_ids WHERE tenant_id = %s AND given_id = %s", (tenant_id, given_id)
    ).fetchone()
    return row[0] if row else made


def is_known(connection: Connection[Row], tenant_id: UUID, request_id: UUID) -> bool:
    """Return whether a call is open, or was."""
    row = connection.execute(
        "SELECT EXISTS (SELECT FROM holds WHERE tenant_id = %s AND request_id = %s)"
        " OR EXISTS (SELECT FROM usage_records WHERE tenant_id = %s AND request_id = %s)",
        (tenant_id, request_id) * 2,
    ).fetchone()
    return bool(row and row[0])


def expire_in_time(connection: Connection[Row], lease_ms: int, most_ms: int) -> None:
    """Have holds expire after `lease_ms` that would only after more than `most_ms`: the database's clock was set back."""
    connection.execute(
        "WITH far AS (SELECT tenant_id, request_id FROM holds"
        " WHERE lease_expire_time > clock_timestamp() + %s * interval '1 millisecond'"
        " ORDER BY tenant_id, request_id FOR UPDATE SKIP LOCKED)"
        " UPDATE holds h SET lease_expire_time = clock_timestamp() + %s * interval '1 millisecond' FROM far f"
        " WHERE h.tenant_id = f.tenant_id AND h.request_id = f.request_id",
        (most_ms, lease_ms),
    )


def renew_holds(
    connection: Connection[Row], request_ids: Sequence[UUID], tenant_ids: Sequence[UUID] | None, lease_ms: int
) -> tuple[datetime, set[UUID]]:
    """Renew the leases of open calls; return when they end, and the calls that were open."""
    rows = connection.execute(
        "WITH open AS (SELECT tenant_id, request_id FROM holds WHERE request_id = ANY(%s::uuid[])"
        " AND (%s::uuid[] IS NULL OR tenant_id = ANY(%s::uuid[])) ORDER BY tenant_id, request_id FOR UPDATE),"
        " renewed AS (UPDATE holds h SET lease_expire_time = clock_timestamp() + %s * interval '1 millisecond' FROM open o"
        " WHERE h.tenant_id = o.tenant_id AND h.request_id = o.request_id RETURNING h.request_id)"
        " SELECT clock_timestamp() + %s * interval '1 millisecond', (SELECT array_agg(request_id) FROM renewed)",
        (list(request_ids), tenant_ids, tenant_ids, lease_ms, lease_ms),
    ).fetchall()
    return rows[0][0], set(rows[0][1] or ())


def expired_holds(connection: Connection[Row], limit: int) -> list[tuple[UUID, UUID]]:
    """Return open calls whose lease has ended, the longest ago first."""
    return connection.execute(
        "SELECT tenant_id, request_id FROM holds WHERE lease_expire_time < clock_timestamp()"
        " ORDER BY lease_expire_time LIMIT %s",
        (limit,),
    ).fetchall()


def purge_rate_windows(connection: Connection[Row]) -> None:
    """Delete the rate windows that are older than two minutes (F093), and those of a clock that was set back since."""
    connection.execute(
        "DELETE FROM rate_windows WHERE window_start NOT BETWEEN now() - interval '2 minutes' AND now() + interval '2 minutes'"
    )


def leave_waits(connection: Connection[Row], keys: Sequence[WaitKey]) -> None:
    """Delete waits by their keys."""
    connection.execute(LEAVE_WAITS, [[key[part] for key in keys] for part in range(3)])


def renew_waits(connection: Connection[Row], keys: Sequence[WaitKey], lasts: timedelta) -> None:
    """Let waits last this long from now."""
    connection.execute(
        "UPDATE check_waits w SET expire_time = clock_timestamp() + %s"
        " FROM unnest(%s::uuid[], %s::uuid[], %s::uuid[]) AS k(t, b, r)"
        " WHERE w.tenant_id = k.t AND w.budget_id = k.b AND w.request_id = k.r",
        (lasts, *([key[part] for key in keys] for part in range(3))),
    )


def purge_waits(connection: Connection[Row]) -> None:
    """Delete the waits that nobody ended: their process went away."""
    connection.execute("DELETE FROM check_waits WHERE expire_time < now() - interval '1 minute'")


def partition_names(connection: Connection[Row]) -> tuple[str, str] | None:
    """Return the names of the oldest and the newest partition of records; None where there is none."""
    row = connection.execute(
        "SELECT min(c.relname), max(c.relname) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
        " JOIN pg_class p ON p.oid = i.inhparent WHERE p.relname = 'usage_records'"
    ).fetchone()
    return (row[0], row[1]) if row and row[0] else None
