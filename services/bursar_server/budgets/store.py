"""The SQL of budgets, and of the balances and entries that changing one touches."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields
from datetime import UTC, datetime, time, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    Row,
    Select,
    cast,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    tuple_,
    union_all,
    update,
)

from bursar_server.budgets.model import (
    Admission,
    Balance,
    Budget,
    BudgetFilter,
    Enforcement,
    LeaseExpiry,
    ManagedBy,
    OnUnreachable,
    Scope,
    ScopeKind,
)
from bursar_server.db.connection import Connection
from bursar_server.db.tables import (
    alert_states,
    balances,
    budgets,
    grants,
    groups,
    ledger_entries,
    rollup_days,
    rollup_quarters,
    usage_records,
)
from bursar_server.db.tables.columns import UuidArray
from bursar_server.kit.ids import PLATFORM_TENANT_ID, floor_uuid7
from bursar_server.kit.periods import Period, PeriodKind

BalanceKey = tuple[UUID, UUID, str]
"""Tenant, budget and period key."""

Amounts = tuple[int, int]
"""Nanos and tokens."""

# A call's id is at most a day older than its Check (S16); twice that for calls that were never checked.
_ID_BEFORE_USE = timedelta(days=2)

_kept = budgets.c.delete_time.is_(None)


async def add(conn: Connection, budget: Budget) -> None:
    """Add a budget."""
    await conn.execute(insert(budgets).values(_columns(budget)))


async def write(conn: Connection, budget: Budget, *, delete_time: datetime | None = None) -> None:
    """Write a budget's fields; with `delete_time` it is gone, and only the history names it."""
    await conn.execute(
        update(budgets)
        .where(budgets.c.tenant_id == budget.tenant_id, budgets.c.budget_id == budget.budget_id)
        .values(**_columns(budget), delete_time=delete_time)
    )


async def find(conn: Connection, budget_id: UUID) -> Budget | None:
    """Return a budget that is not deleted."""
    row = (await conn.execute(select(budgets).where(budgets.c.budget_id == budget_id, _kept))).one_or_none()
    return _budget(row) if row else None


async def list_budgets(
    conn: Connection,
    wanted: BudgetFilter,
    *,
    with_global: bool,
    led_groups: Collection[UUID] | None,
    after: tuple[str, UUID] | None,
    limit: int,
) -> list[Budget]:
    """Return budgets by name; `led_groups` None is every scope, else only the budgets of these groups."""
    query: Select[Any] = select(budgets).where(_kept)
    if wanted.tenant_ids is not None:
        query = query.where(budgets.c.tenant_id.in_(wanted.tenant_ids))
    if not with_global:
        query = query.where(budgets.c.tenant_id != PLATFORM_TENANT_ID)
    if led_groups is not None:
        query = query.where(budgets.c.group_id.in_(led_groups))
    for column, value in (
        (budgets.c.user_id, wanted.user_id),
        (budgets.c.group_id, wanted.group_id),
        (budgets.c.api_key_id, wanted.api_key_id),
    ):
        if value is not None:
            query = query.where(column == value)
    if after is not None:
        query = query.where(tuple_(budgets.c.name, budgets.c.budget_id) > tuple_(*after))
    return await _select(conn, query.order_by(budgets.c.name, budgets.c.budget_id).limit(limit))


async def ceilings(conn: Connection, tenant_id: UUID) -> list[Budget]:
    """Return the enabled PLATFORM budgets of scope tenant (F029)."""
    return await _select(
        conn,
        select(budgets).where(
            budgets.c.tenant_id == tenant_id,
            budgets.c.scope_kind == ScopeKind.TENANT.value,
            budgets.c.managed_by == ManagedBy.PLATFORM.value,
            budgets.c.enabled,
            _kept,
        ),
    )


async def of_user(conn: Connection, tenant_id: UUID, user_id: UUID) -> list[Budget]:
    """Return a user's own budgets, the oldest first."""
    query = select(budgets).where(budgets.c.tenant_id == tenant_id, budgets.c.user_id == user_id, _kept)
    return await _select(conn, query.order_by(budgets.c.create_time, budgets.c.budget_id))


async def applicable(
    conn: Connection, tenant_id: UUID, user_id: UUID, group_ids: Collection[UUID]
) -> list[Budget]:
    """Return the enabled budgets that count every call of a user: its own, its groups', the tenant's, the operator's."""
    scope = budgets.c.scope_kind
    own = budgets.c.tenant_id == tenant_id
    query = select(budgets).where(
        or_(
            own & (scope == ScopeKind.TENANT.value),
            own & (budgets.c.user_id == user_id),
            own & budgets.c.group_id.in_(group_ids),
            (budgets.c.tenant_id == PLATFORM_TENANT_ID) & (scope == ScopeKind.GLOBAL.value),
        ),
        budgets.c.tenant_id.in_([tenant_id, PLATFORM_TENANT_ID]),
        budgets.c.enabled,
        _kept,
    )
    return await _select(conn, query.order_by(budgets.c.tenant_id, budgets.c.budget_id))


async def counts_group(conn: Connection, tenant_id: UUID, group_id: UUID) -> bool:
    """Say whether an enabled budget counts a group."""
    query = select(
        exists().where(
            budgets.c.tenant_id == tenant_id, budgets.c.group_id == group_id, budgets.c.enabled, _kept
        )
    )
    return bool((await conn.execute(query)).scalar_one())


async def read_balances(
    conn: Connection, keys: Iterable[BalanceKey], *, lock: bool = False
) -> dict[BalanceKey, tuple[Balance, int]]:
    """Return the balances that exist, each with the highest threshold that fired; locked in the order of their keys."""
    wanted = sorted(keys)
    if not wanted:
        return {}
    key = tuple_(balances.c.tenant_id, balances.c.budget_id, balances.c.period_key)
    query = select(balances).where(key.in_(wanted)).order_by(*key)
    if lock:
        query = query.with_for_update()
    found = {}
    for row in await conn.execute(query):
        balance = Balance(*(getattr(row, field.name) for field in fields(Balance)))
        found[row.tenant_id, row.budget_id, row.period_key] = (balance, row.alerted_pct)
    return found


async def open_balance(conn: Connection, key: BalanceKey, period: Period, spent: Amounts) -> None:
    """Add the balance of a new definition of a budget, with what was spent before it began."""
    tenant_id, budget_id, period_key = key
    await conn.execute(
        insert(balances).values(
            tenant_id=tenant_id,
            budget_id=budget_id,
            period_key=period_key,
            period_start=period.start,
            period_end=period.end,
            spent_nanos=spent[0],
            spent_tokens=spent[1],
        )
    )


async def clear_spent(conn: Connection, key: BalanceKey) -> None:
    """Bring a locked balance's spent to 0; the entry that says so is the caller's to post."""
    await conn.execute(update(balances).where(_is(balances, key)).values(spent_nanos=0, spent_tokens=0))


async def rearm(conn: Connection, key: BalanceKey, alerted_pct: int) -> None:
    """Let the thresholds above `alerted_pct` fire again in a period."""
    await conn.execute(update(balances).where(_is(balances, key)).values(alerted_pct=alerted_pct))
    await conn.execute(
        delete(alert_states).where(_is(alert_states, key), alert_states.c.threshold_pct > alerted_pct)
    )


async def post_entry(
    conn: Connection, op_id: UUID, kind: str, key: BalanceKey, amounts: Amounts, now: datetime
) -> None:
    """Post an entry to a balance that no call made: OPENING (S4) or RESET (S19)."""
    tenant_id, budget_id, period_key = key
    await conn.execute(
        insert(ledger_entries).values(
            tenant_id=tenant_id,
            op_id=op_id,
            revision=0,
            leg=0,
            kind=kind,
            account="BUDGET",
            account_tenant_id=tenant_id,
            account_id=budget_id,
            period_key=period_key,
            amount_nanos=amounts[0],
            amount_tokens=amounts[1],
            usage_time=now,
            posted_time=now,
        )
    )


async def recorded(conn: Connection, budget: Budget, period: Period) -> Amounts:
    """Return what the ledger recorded for a budget's scope in a period, in nanos and tokens (S4).

    Of scope user only what grants did not bear counts (S6).
    """
    if budget.scope.kind in (ScopeKind.GROUP, ScopeKind.TAG):
        return await _of_records(conn, budget, period)
    nanos, tokens = await _of_rollups(conn, budget, period)
    if budget.scope.kind is ScopeKind.USER:
        drawn = await _of_grants(conn, budget, period)
        return nanos - drawn[0], tokens - drawn[1]
    return nanos, tokens


async def _of_rollups(conn: Connection, budget: Budget, period: Period) -> Amounts:
    """Sum whole UTC days by the day, and the quarter-hours at both ends; both grains are exact (S25)."""
    first_day = (period.start + timedelta(days=1) - timedelta(microseconds=1)).astimezone(UTC).date()
    last_day = max(period.end.astimezone(UTC).date(), first_day)
    days, quarters = rollup_days.c, rollup_quarters.c
    parts = []
    for table, inside in (
        (rollup_days, (days.bucket_day >= first_day) & (days.bucket_day < last_day)),
        (
            rollup_quarters,
            (quarters.bucket_time >= period.start)
            & (quarters.bucket_time < period.end)
            & (
                (quarters.bucket_time < datetime.combine(first_day, time(), UTC))
                | (quarters.bucket_time >= datetime.combine(last_day, time(), UTC))
            ),
        ),
    ):
        part = select(
            table.c.cost_nanos.label("nanos"), (table.c.input_tokens + table.c.output_tokens).label("tokens")
        ).where(inside)
        if budget.scope.kind is not ScopeKind.GLOBAL:
            part = part.where(table.c.tenant_id == budget.tenant_id)
        if budget.scope.kind is ScopeKind.USER:
            part = part.where(table.c.user_id == budget.scope.user_id)
        if budget.scope.kind is ScopeKind.KEY:
            part = part.where(table.c.api_key_id == budget.scope.api_key_id)
        parts.append(part)
    lines = union_all(*parts).subquery()
    return await _sums(conn, select(func.sum(lines.c.nanos), func.sum(lines.c.tokens)))


async def _of_records(conn: Connection, budget: Budget, period: Period) -> Amounts:
    """Sum the records of a group or a tag, as they were attributed when the calls were made."""
    records = usage_records.c
    query = select(
        func.sum(records.cost_nanos), func.sum(records.input_tokens + records.output_tokens)
    ).where(
        records.tenant_id == budget.tenant_id,
        records.request_id >= _first_id(period),
        records.usage_time >= period.start,
        records.usage_time < period.end,
    )
    if budget.scope.kind is ScopeKind.GROUP:
        subtree = cast(await _subtree(conn, budget), UuidArray)
        query = query.where(records.group_ids.bool_op("&&")(subtree))
    else:
        query = query.where(records.tags.contains({budget.scope.tag_key: budget.scope.tag_value}))
    return await _sums(conn, query)


async def _of_grants(conn: Connection, budget: Budget, period: Period) -> Amounts:
    """Sum what a user's grants bore in a period."""
    query = select(grants.c.grant_id).where(
        grants.c.tenant_id == budget.tenant_id,
        grants.c.user_id == budget.scope.user_id,
        grants.c.spent_nanos != 0,
    )
    used = list((await conn.execute(query)).scalars())
    if not used:
        return 0, 0
    entries = ledger_entries.c
    return await _sums(
        conn,
        select(func.sum(entries.amount_nanos), func.sum(entries.amount_tokens)).where(
            entries.tenant_id == budget.tenant_id,
            entries.op_id >= _first_id(period),
            entries.account == "GRANT",
            entries.account_id.in_(used),
            entries.usage_time >= period.start,
            entries.usage_time < period.end,
        ),
    )


async def _subtree(conn: Connection, budget: Budget) -> list[UUID]:
    """Return a budget's group and all groups below it."""
    below = (
        select(groups.c.group_id)
        .where(groups.c.tenant_id == budget.tenant_id, groups.c.group_id == budget.scope.group_id)
        .cte("below", recursive=True)
    )
    children = select(groups.c.group_id).where(
        groups.c.tenant_id == budget.tenant_id, groups.c.parent_group_id == below.c.group_id
    )
    return list((await conn.execute(select(below.union(children).c.group_id))).scalars())


def _first_id(period: Period) -> UUID:
    """Return an id before all calls of a period, so that only the months that can hold them are read."""
    return floor_uuid7(max(period.start - _ID_BEFORE_USE, datetime(1970, 1, 1, tzinfo=UTC)))


async def _sums(conn: Connection, query: Select[Any]) -> Amounts:
    nanos, tokens = (await conn.execute(query)).one()
    return int(nanos or 0), int(tokens or 0)


async def _select(conn: Connection, query: Select[Any]) -> list[Budget]:
    return [_budget(row) for row in await conn.execute(query)]


def _is(table: Any, key: BalanceKey) -> Any:
    return tuple_(table.c.tenant_id, table.c.budget_id, table.c.period_key) == tuple_(*key)


def _columns(budget: Budget) -> Mapping[str, Any]:
    values: dict[str, Any] = {
        name: getattr(budget, name)
        for name in (
            "tenant_id", "budget_id", "name", "anchor_day", "timezone", "limit_nanos", "limit_tokens", "soft_limit_pct",
            "max_wait_ms", "fit_output", "guard_streams", "shadow", "enabled", "reason", "definition_revision", "version", "create_time",
            "update_time",
        )
    }  # fmt: skip
    scope = budget.scope
    return values | {
        "scope_kind": scope.kind.value,
        "group_id": scope.group_id,
        "user_id": scope.user_id,
        "api_key_id": scope.api_key_id,
        "tag_key": scope.tag_key,
        "tag_value": scope.tag_value,
        "period": budget.period.value,
        "alert_thresholds_pct": list(budget.alert_thresholds_pct),
        "enforcement": budget.enforcement.value,
        "admission": budget.admission.value,
        "on_lease_expiry": budget.on_lease_expiry.value,
        "on_unreachable": budget.on_unreachable.value,
        "managed_by": budget.managed_by.value,
        "owners": list(budget.owners),
    }


def _budget(row: Row[Any]) -> Budget:
    scope = Scope(
        ScopeKind(row.scope_kind), row.group_id, row.user_id, row.api_key_id, row.tag_key, row.tag_value
    )
    return Budget(
        row.tenant_id, row.budget_id, row.name, scope, PeriodKind(row.period), row.anchor_day, row.timezone,
        row.limit_nanos, row.limit_tokens, row.soft_limit_pct, tuple(row.alert_thresholds_pct),
        Enforcement(row.enforcement), Admission(row.admission), row.max_wait_ms, row.fit_output, row.shadow,
        LeaseExpiry(row.on_lease_expiry), row.enabled, ManagedBy(row.managed_by), tuple(row.owners), row.reason,
        row.definition_revision, row.version, row.create_time, row.update_time, OnUnreachable(row.on_unreachable), row.guard_streams,
    )  # fmt: skip
