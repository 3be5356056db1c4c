"""What a report says and how it is written: JSON that is fixed for ever, and CSV made from it. Pure."""

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from bursar_server.chargeback.model import EarlierPeriods, Figures, Names, ReportHead
from bursar_server.kit.errors import invalid
from bursar_server.kit.ids import PLATFORM_TENANT_ID
from bursar_server.kit.money import usd_text
from bursar_server.kit.periods import ceil_quarter_hour, quarter_hour_of
from bursar_server.usage.model import Dimension, Group, Totals

FORMAT = "bursar.chargeback/1"
ALL_TENANTS = "All tenants"
# How many months before its end a report remembers: a little more than the months that can still be posted to.
MONTHS_REMEMBERED = 14
MAX_PIECE_BYTES = 64 * 1024

# A spreadsheet takes a text that starts with one of these for a formula.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")

_CSV_COLUMNS = (
    "section", "from", "to", "tenant_id", "tenant", "user_id", "user", "api_key_id", "api_key", "masked_key", "provider",
    "model", "requests", "input_tokens", "output_tokens", "cache_read_tokens", "input_cost_usd", "output_cost_usd",
    "other_cost_usd", "cost_usd",
)  # fmt: skip
_CSV_TEXTS = frozenset({"tenant", "user", "api_key", "masked_key", "provider", "model"})


def month_start(instant: datetime, months: int) -> datetime:
    """Return the first instant in UTC of the month that lies `months` after that of `instant`."""
    utc = instant.astimezone(UTC)
    index = max(12, utc.year * 12 + utc.month - 1 + months)
    return datetime(index // 12, index % 12 + 1, 1, tzinfo=UTC)


def reported_range(start: datetime | None, end: datetime | None, now: datetime) -> tuple[datetime, datetime]:
    """Return the range to report on: by default the calendar month before `now` in UTC (F129).

    A range that is given widens to quarter-hours (S25). Raises INVALID_FIELD where only one end of it is, or where it
    goes beyond the year 9998.
    """
    if start is None and end is None:
        return month_start(now, -1), month_start(now, 0)
    if start is None:
        raise invalid("from_time", "is needed where `to` is given")
    if end is None:
        raise invalid("to_time", "is needed where `from` is given")
    if end.year > 9998:
        raise invalid("to_time", "must be before the year 9999")
    return quarter_hour_of(start), ceil_quarter_hour(end)


def difference(now: Iterable[Group], stated: Iterable[Group]) -> tuple[Group, ...]:
    """Return what was posted since: today's sums less those stated then, by the same key; zeros are left out."""
    before = {tuple(group.key.values()): group.totals for group in stated}
    keys = {tuple(group.key.values()): group.key for group in stated}
    after = {}
    for group in now:
        after[tuple(group.key.values())] = group.totals
        keys[tuple(group.key.values())] = group.key
    lines = []
    for key in sorted(keys):
        changed = _minus(after.get(key, Totals()), before.get(key, Totals()))
        if changed != Totals():
            lines.append(Group(keys[key], changed))
    return tuple(lines)


def _minus(one: Totals, other: Totals) -> Totals:
    return Totals(*(getattr(one, name) - getattr(other, name) for name in Totals.__slots__))


# -- the content ------------------------------------------------------------------------------------


def content_of(
    tenant_id: UUID,
    tenant_name: str,
    report_id: UUID,
    span: tuple[datetime, datetime],
    cutoff: datetime,
    generated_by: str,
    figures: Figures,
) -> bytes:
    """Return the report as JSON in UTF-8, the bytes that its hash is of: a fixed order of keys, no white space.

    Amounts are exact: `cost_nanos` as an integer, `cost_usd` as decimal text. Every section sums to the totals.
    """
    names = figures.names
    content: dict[str, object] = {
        "format": FORMAT,
        "report_id": str(report_id),
        "tenant_id": "" if tenant_id == PLATFORM_TENANT_ID else str(tenant_id),
        "tenant_name": tenant_name,
        "from": _instant(span[0]),
        "to": _instant(span[1]),
        "cutoff_time": _instant(cutoff),
        "generated_time": _instant(cutoff),
        "generated_by": generated_by,
        "currency": "USD",
        "proved_against_ledger": figures.proved,
        "totals": _totals(figures.totals),
        "tenants": _tenants(figures, names),
        "api_keys": _api_keys(figures, names),
        "models": _section(figures.items, {"provider": Dimension.PROVIDER, "model": Dimension.MODEL}),
        "providers": _section(figures.items, {"provider": Dimension.PROVIDER}),
        "days": [{"day": day.key[Dimension.DAY]} | _totals(day.totals) for day in _by_key(figures.days)],
    }
    due = figures.totals.cost_nanos
    if figures.earlier is not None:
        content["earlier_periods"] = _earlier(figures.earlier, names)
        due += figures.earlier.totals.cost_nanos
    content["amount_due"] = {"cost_usd": usd_text(due), "cost_nanos": due}
    content["line_items"] = [_line_item(item, names) for item in figures.items]
    content["months_to_date"] = {
        "from": _instant(figures.months_start),
        "months": [_month(group) for group in _by_key(figures.months)],
    }
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def _instant(value: datetime) -> str:
    text = f"{value.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}".rstrip("0").rstrip(".")
    return text + "Z"


def _totals(totals: Totals) -> dict[str, object]:
    return {
        **{name: getattr(totals, name) for name in Totals.__slots__},
        "input_cost_usd": usd_text(totals.input_cost_nanos),
        "output_cost_usd": usd_text(totals.output_cost_nanos),
        "other_cost_usd": usd_text(totals.other_cost_nanos),
        "cost_usd": usd_text(totals.cost_nanos),
    }


def _by_key(groups: Iterable[Group]) -> list[Group]:
    return sorted(groups, key=lambda group: tuple(group.key.values()))


def _summed(items: Iterable[Group], dimensions: Sequence[Dimension]) -> list[tuple[tuple[str, ...], Totals]]:
    """Return the sums of items by some of their dimensions, the costliest first (F142)."""
    sums: dict[tuple[str, ...], Totals] = {}
    for item in items:
        key = tuple(item.key[dimension] for dimension in dimensions)
        sums[key] = sums.get(key, Totals()) + item.totals
    return sorted(sums.items(), key=lambda each: (-each[1].cost_nanos, each[0]))


def _section(items: Iterable[Group], keys: Mapping[str, Dimension]) -> list[dict[str, object]]:
    return [
        {**dict(zip(keys, key, strict=True)), **_totals(totals)}
        for key, totals in _summed(items, tuple(keys.values()))
    ]


def _tenants(figures: Figures, names: Names) -> list[dict[str, object]]:
    return [
        {"tenant_id": tenant_id, "tenant_name": names.tenants.get(tenant_id, ""), **_totals(totals)}
        for (tenant_id,), totals in _summed(figures.items, (Dimension.TENANT,))
    ]


def _api_keys(figures: Figures, names: Names) -> list[dict[str, object]]:
    return [
        {"tenant_id": tenant_id, **_key(api_key_id, names), **_totals(totals)}
        for (tenant_id, api_key_id), totals in _summed(figures.items, (Dimension.TENANT, Dimension.API_KEY))
    ]


def _key(api_key_id: str, names: Names) -> dict[str, object]:
    key = names.keys.get(api_key_id)
    user_id = str(key.user_id) if key and key.user_id else ""
    return {
        "api_key_id": api_key_id,
        "api_key_name": key.name if key else "",
        "masked_key": key.masked_key if key else "",
        "user_id": user_id,
        "user": names.users.get(user_id, ""),
    }


def _line_item(item: Group, names: Names) -> dict[str, object]:
    tenant_id, user_id = item.key[Dimension.TENANT], item.key[Dimension.USER]
    key = names.keys.get(item.key[Dimension.API_KEY])
    return {
        "tenant_id": tenant_id,
        "tenant_name": names.tenants.get(tenant_id, ""),
        "user_id": user_id,
        "user": names.users.get(user_id, ""),
        "api_key_id": item.key[Dimension.API_KEY],
        "api_key_name": key.name if key else "",
        "masked_key": key.masked_key if key else "",
        "provider": item.key[Dimension.PROVIDER],
        "model": item.key[Dimension.MODEL],
        **_totals(item.totals),
    }


def _earlier(earlier: EarlierPeriods, names: Names) -> dict[str, object]:
    return {
        "since_report_id": str(earlier.report_id),
        "since_cutoff_time": _instant(earlier.cutoff_time),
        "until": _instant(earlier.until),
        "totals": _totals(earlier.totals),
        "lines": [
            {
                "month": line.key[Dimension.MONTH],
                "tenant_id": line.key[Dimension.TENANT],
                "tenant_name": names.tenants.get(line.key[Dimension.TENANT], ""),
                **_totals(line.totals),
            }
            for line in earlier.lines
        ],
    }


def _month(group: Group) -> dict[str, object]:
    counters = {name: getattr(group.totals, name) for name in Totals.__slots__}
    return {"tenant_id": group.key[Dimension.TENANT], "month": group.key[Dimension.MONTH], **counters}


def months_stated(content: bytes) -> tuple[datetime, tuple[Group, ...]]:
    """Return from when on a report remembers months, and what it stated of each."""
    stated = json.loads(content)["months_to_date"]
    groups = tuple(
        Group(
            {Dimension.TENANT: row["tenant_id"], Dimension.MONTH: row["month"]},
            Totals(*(row[name] for name in Totals.__slots__)),
        )
        for row in stated["months"]
    )
    return datetime.fromisoformat(stated["from"]), groups


# -- downloads --------------------------------------------------------------------------------------


def csv_of(content: bytes) -> bytes:
    """Return a report's line items as CSV (RFC 4180, UTF-8, with a header), made from the fixed JSON alone (F138).

    The costs of the section `usage` sum to the report's total, to the nano; what was posted since the preceding report
    follows as `earlier_periods`, and all of it sums to the amount due. A text that a spreadsheet would take for a formula
    gets an apostrophe in front.
    """
    report = json.loads(content)
    rows = [
        {**item, "section": "usage", "from": report["from"], "to": report["to"]}
        for item in report["line_items"]
    ]
    if "earlier_periods" in report:
        until = report["earlier_periods"]["until"]
        rows += [
            {**line, "section": "earlier_periods", "from": first, "to": min(last, until)}
            for line in report["earlier_periods"]["lines"]
            for first, last in [_month_bounds(line["month"])]
        ]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(_CSV_COLUMNS)
    for row in rows:
        named = {**row, "tenant": row["tenant_name"], "api_key": row.get("api_key_name", "")}
        writer.writerow([_cell(column, named.get(column, "")) for column in _CSV_COLUMNS])
    return text.getvalue().encode()


def _cell(column: str, value: Any) -> str:
    text = str(value)
    return f"'{text}" if column in _CSV_TEXTS and text.startswith(_FORMULA_STARTS) else text


def _month_bounds(month: str) -> tuple[str, str]:
    first = datetime.strptime(month, "%Y-%m").replace(tzinfo=UTC)
    return _instant(first), _instant(month_start(first, 1))


def filename_of(head: ReportHead, extension: str) -> str:
    """Return what a downloaded report is called: letters, digits, dots and dashes only."""
    name = re.sub(r"[^a-z0-9]+", "-", head.tenant_name.lower()).strip("-")[:40] or "tenant"
    last = head.end - timedelta(microseconds=1)
    return f"chargeback-{name}-{head.start:%Y-%m-%d}-to-{last:%Y-%m-%d}.{extension}"


def pieces_of(data: bytes) -> Iterable[bytes]:
    """Yield the data in pieces of at most 64 KiB, at least one."""
    yield data[:MAX_PIECE_BYTES]
    for start in range(MAX_PIECE_BYTES, len(data), MAX_PIECE_BYTES):
        yield data[start : start + MAX_PIECE_BYTES]
