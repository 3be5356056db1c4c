"""Every API in every way that an answer can end, through a real sidecar: what is charged, and what the app gets.

`docs/metering-matrix.md` has the tables that come out of it: `make matrix` writes them.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import tracemalloc
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
from yarl import URL

from bursar.v1 import metering_pb2
from bursar.v1.metering_service_pb2 import DeductRequest
from support.endings import SECTIONS, Cell, End, Ending, Patience
from support.endings_apis_more import APIS
from support.fake_control_plane import Served, fake_control_plane
from support.odd_upstream import Heard, OddUpstream, deaf_address, head, json_answer, odd_upstream
from support.sidecars import AUTHORIZED, RunningSidecar, environment, running_sidecar, until

PAGE = Path(__file__).parents[2] / "docs" / "metering-matrix.md"
WRITE = "BURSAR_WRITE_MATRIX"
AT_ONCE = 48
UPSTREAMS = ("openai", "lab", "anthropic", "gemini", "bedrock", "cohere", "ollama")
INPUT_TOKENS, REFUSED = 7, {End.DEAF: 502, End.SILENT: 504}

#: Settings of the sidecar that a cell needs.
SETTINGS = {
    Patience.USUAL: {},
    Patience.CANCELS: {"BURSAR_ON_DISCONNECT": "CANCEL"},
    Patience.SHORT: {"BURSAR_UPSTREAM_ANSWER_TIMEOUT_MS": "2000", "BURSAR_UPSTREAM_IDLE_TIMEOUT_MS": "2000"},
    Patience.ALONE: {},
}

#: Where an API has its usage in the very last part, its loss is the loss of the usage.
WITHOUT_LAST_PART = "estimate, partial"
USAGE_BEFORE_THE_END = {
    "OpenAI chat",
    "OpenAI chat, usage asked for by Bursar",
    "OpenAI completions",
    "OpenAI-compatible, any other",
    "Anthropic Messages",
    "Cohere v2 chat",
}
#: Where an API departs from what its ending usually comes to.
OTHERWISE = {
    ("Bedrock converse-stream", "last part missing"): "estimate",  # `messageStop` has come
}


def expected(cell: Cell) -> str:
    """Return what must be charged."""
    api, ending = cell.api, cell.ending
    if (api.title, ending.title) in OTHERWISE:
        return OTHERWISE[api.title, ending.title]
    if ending.title == "last part missing":
        return "exact" if api.title in USAGE_BEFORE_THE_END else WITHOUT_LAST_PART
    if ending.title == "error in a 200 answer" and not api.streams:
        return "nothing, failed"
    return ending.charged


@dataclass
class Bench:
    """The sidecars, what they talk to, and the cells' scripts by name."""

    plane: Served
    upstream: OddUpstream
    sidecars: dict[Patience, RunningSidecar]
    cells: dict[str, Cell] = field(default_factory=dict)
    reached: dict[str, asyncio.Event] = field(default_factory=lambda: defaultdict(asyncio.Event))
    left: dict[str, asyncio.Event] = field(default_factory=lambda: defaultdict(asyncio.Event))
    leaving: Counter[Patience] = field(default_factory=Counter)

    async def answer(self, heard: Heard, writer: asyncio.StreamWriter) -> None:
        """Answer as the cell says that the request names; nobody is told afterwards what it came to."""
        if heard.method == "GET":
            writer.write(json_answer(b"{}", "410 Gone"))
            return
        cell = self.cells[heard.header("x-cell") or ""]
        sidecar = self.sidecars[cell.ending.patience].sidecar

        async def app_left() -> None:
            self.reached[cell.name].set()
            await self.left[cell.name].wait()
            await until(lambda: sidecar.counts.app_disconnects >= self.leaving[cell.ending.patience], 30)

        await cell.script(app_left)(heard, writer)

    async def charged(self, cell: Cell) -> tuple[DeductRequest | None, str]:
        """Return the cell's only Deduct (None where the hold was released), and its problem if it has another number."""
        service = self.plane.service

        def ids() -> list[str]:
            return [check.request_id for check in service.checks if check.session_id == cell.name]

        with suppress(TimeoutError):
            await until(lambda: any(one in service.records or one in service.released for one in ids()), 10)
        found = ids()
        records = [service.records[one] for one in found if one in service.records]
        released = [one for one in found if one in service.released]
        problem = (
            "" if len(found) == len(records) + len(released) == 1 else f"{len(records)} Deducts of {found}"
        )
        if any(one in service.duplicates for one in found):
            problem = "deducted twice"
        return (records[0] if records else None), problem


@asynccontextmanager
async def bench(directory: Path) -> AsyncIterator[Bench]:
    """Run a sidecar for each kind of cell."""
    async with AsyncExitStack() as stack:
        plane = await stack.enter_async_context(fake_control_plane())
        upstream = await stack.enter_async_context(odd_upstream())
        deaf = deaf_address()
        sidecars = {}
        for patience, settings in SETTINGS.items():
            url = deaf if patience is Patience.ALONE else upstream.url
            own = directory / patience.name
            own.mkdir()
            known = environment(plane.url, own, **dict.fromkeys(UPSTREAMS, url))
            known |= {"BURSAR_UPSTREAM_LAB_INCLUDE_USAGE": "off", **settings}
            sidecars[patience] = await stack.enter_async_context(running_sidecar(known))
        bench = Bench(plane, upstream, sidecars)
        upstream.script = bench.answer
        yield bench
        for sidecar in sidecars.values():
            await until(lambda outbox=sidecar.sidecar.outbox: outbox.depth == 0, 10)  # type: ignore[misc]


@dataclass
class Got:
    """What an app has got so far; without a status nothing at all."""

    status: int = 0
    body: bytes = b""
    broken: bool = False


async def ask(bench: Bench, cell: Cell, got: Got) -> None:
    """Call as an app does."""
    sidecar = bench.sidecars[cell.ending.patience]
    url = URL(sidecar.url + cell.api.path, encoded=True)
    headers = {**AUTHORIZED, "x-cell": cell.name, "x-bursar-session": cell.name}
    calling = sidecar.client.post(url, json=cell.api.request, headers=headers, auto_decompress=False)
    async with asyncio.timeout(60), calling as response:
        got.status = response.status
        try:
            async for piece in response.content.iter_any():
                got.body += piece
        except aiohttp.ClientPayloadError:
            got.broken = True


async def asked(bench: Bench, cell: Cell) -> Got:
    """Call as an app does that leaves where the ending says so."""
    got = Got()
    asking = asyncio.ensure_future(ask(bench, cell, got))
    if cell.ending.end in (End.GONE_EARLY, End.GONE_LATE):
        await bench.reached[cell.name].wait()
        if cell.ending.end is End.GONE_LATE:
            await until(lambda: got.body != b"" or not cell.api.streams, 30)
            await asyncio.sleep(0.05)
        asking.cancel()
        with suppress(asyncio.CancelledError):
            await asking
        bench.leaving[cell.ending.patience] += 1
        bench.left[cell.name].set()
    else:
        await asking
    return got


def figures_problem(cell: Cell, record: DeductRequest) -> str:
    """Return what is wrong with the usage that was charged."""
    if not record.items:
        return "" if not record.estimated else "an estimate of nothing"
    (item,) = record.items
    given, generated = item.usage.input_tokens, item.usage.output_tokens
    if not record.estimated:
        right = (given, generated) == (INPUT_TOKENS, cell.api.output_tokens)
        return "" if right else f"exact, but {given} in and {generated} out"
    said = cell.ending.end not in (End.SILENT, End.GONE_EARLY)
    if not 1 <= given <= 200 or generated > 150 or (said and not generated and cell.api.output_tokens):
        return f"estimated as {given} in and {generated} out"
    return ""


def bytes_problem(cell: Cell, seen: Got) -> str:
    """Return what is wrong with what the app got."""
    status, got, broken = seen.status, seen.body, seen.broken
    end, api = cell.ending.end, cell.api
    if end in (End.GONE_EARLY, End.GONE_LATE):
        return "" if cell.whole.startswith(got) else f"got {got!r}"
    if end in (End.WHOLE, End.BYTES):
        right = status == cell.ending.status and got == cell.whole and not broken
    elif (
        end in REFUSED or not api.streams
    ):  # nothing had been sent to the app yet: it is told in its API's words
        right = status == REFUSED.get(end, 504 if end is End.STALL else 502) and bool(json.loads(got))
    else:
        right = status == 200 and broken and b"" != got != cell.whole and cell.whole.startswith(got)
    return (
        ""
        if right
        else f"status {status}, {'broken off' if broken else 'whole'}: {got!r}, not {cell.whole!r}"
    )


async def played(bench: Bench, cell: Cell) -> tuple[str, list[str]]:
    """Play one cell; return what was charged, and what is wrong."""
    bench.cells[cell.name] = cell
    got = await asked(bench, cell)
    record, problem = await bench.charged(cell)
    problems = [problem, bytes_problem(cell, got)]
    charged = "nothing, released"
    if record is not None:
        problems.append(figures_problem(cell, record))
        outcome = metering_pb2.Outcome.Name(record.outcome).removeprefix("OUTCOME_").lower()
        kind = "nothing" if not record.items else "estimate" if record.estimated else "exact"
        charged = kind if outcome == "success" else f"{kind}, {outcome}"
    if charged != expected(cell):
        problems.append(f"{charged}, not {expected(cell)}")
    return charged, [one for one in problems if one]


def summary(endings: list[Ending], charged: dict[tuple[str, str], str]) -> list[str]:
    """Return a table of what each ending usually comes to, and where it does not."""
    lines = ["| Ending | Charged | Except |", "|---|---|---|"]
    for ending in endings:
        cells = {
            api.title: charged[api.title, ending.title]
            for api in APIS
            if (api.title, ending.title) in charged
        }
        ((usual, _),) = Counter(cells.values()).most_common(1)
        others = sorted(set(cells.values()) - {usual})
        excepted = [
            f"{other}: {'; '.join(title for title in cells if cells[title] == other)}" for other in others
        ]
        lines.append(f"| {ending.title} | {usual} | {'<br>'.join(excepted)} |")
    return lines


def table(endings: list[Ending], charged: dict[tuple[str, str], str]) -> str:
    """Return a section's tables: the summary, then an API a row and an ending a column."""
    lines = [
        *summary(endings, charged),
        "",
        "| API | " + " | ".join(ending.title for ending in endings) + " |",
        "|---" * (len(endings) + 1) + "|",
    ]
    for api in APIS:
        cells = [charged.get((api.title, ending.title), "–") for ending in endings]
        lines.append(f"| {api.title} | " + " | ".join(cells) + " |")
    return "\n".join(["", *lines, "", ""])


def placed(page: str, section: str, text: str) -> str:
    """Return the page with a section's table in its place."""
    between = re.compile(rf"(?<=<!-- {section} -->\n).*?(?=<!-- /{section} -->)", re.DOTALL)
    assert between.search(page), f"no place for {section}"
    return between.sub(lambda _: text, page)


@pytest.mark.parametrize("section", SECTIONS)
async def test_every_ending_of_every_api(section: str, tmp_path: Path) -> None:
    """F099, F102, F103, S17: the bytes, one Deduct, the right usage and outcome; and the matrix says just that."""
    endings = SECTIONS[section]
    cells = [Cell(api, ending) for ending in endings for api in APIS if ending.body(api) is not None]
    charged: dict[tuple[str, str], str] = {}
    wrong: dict[str, list[str]] = {}
    async with bench(tmp_path) as running:
        running.plane.service.account.limit_nanos = 10**15
        waiting = iter(cells)

        async def worker() -> None:
            for cell in waiting:
                kind, problems = await played(running, cell)
                charged[cell.api.title, cell.ending.title] = kind
                if problems:
                    wrong[cell.name] = problems

        await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
    assert wrong == {}
    page = PAGE.read_text(encoding="utf-8")
    made = placed(page, section, table(endings, charged))
    if os.environ.get(WRITE):
        PAGE.write_text(made, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == made, (
        "docs/metering-matrix.md is not what is charged: make matrix"
    )


async def test_a_json_answer_of_50_mb_takes_constant_memory_and_is_read(tmp_path: Path) -> None:
    """F099, F103: its figures are read out of it as it goes by."""
    size = 50 << 20
    opening = b'{"model":"gpt-4o-mini-2024-07-18","choices":[{"message":{"content":"'
    closing = b'"},"finish_reason":"stop"}],"usage":{"prompt_tokens":7,"completion_tokens":5}}'

    async def flood(_: Heard, writer: asyncio.StreamWriter) -> None:
        length = len(opening) + size + len(closing)
        writer.write(head("200 OK", "content-type: application/json", f"content-length: {length}") + opening)
        for _mebibyte in range(size >> 20):
            writer.write(b"x" * (1 << 20))
            await writer.drain()
        writer.write(closing)

    async with bench(tmp_path) as running:
        running.upstream.script = flood
        tracemalloc.start()
        got = 0
        async with await running.sidecars[Patience.USUAL].post() as response:
            async for piece in response.content.iter_any():
                got += len(piece)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        (record,) = running.plane.service.records.values()
    assert got == len(opening) + size + len(closing)
    assert peak < 16 << 20
    assert not record.estimated
    assert (record.items[0].usage.input_tokens, record.items[0].usage.output_tokens) == (7, 5)
