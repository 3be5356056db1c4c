"""The endings of the matrix: how each way an answer can end is sent, and what must be charged for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from support.codings import CODINGS
from support.endings_apis import Api, Doc, Framing
from support.odd_upstream import LAST_CHUNK, Script, chunk, head


class End(Enum):
    """What the provider, or the app, does to an answer."""

    WHOLE = "it comes as a whole"
    BYTES = "it comes byte by byte"
    RESET = "the connection is reset half way"
    STALL = "nothing comes after half of it"
    SILENT = "nothing comes at all"
    GONE_EARLY = "the app leaves before the first byte"
    GONE_LATE = "the app leaves half way"
    DEAF = "there is nobody to connect to"


class Patience(Enum):
    """Which sidecar a cell needs."""

    USUAL = "the defaults"
    CANCELS = "BURSAR_ON_DISCONNECT=CANCEL"
    SHORT = "short timeouts"
    ALONE = "upstreams where nobody listens"


Body = Callable[[Api], "Sequence[Doc] | None"]


@dataclass(frozen=True)
class Ending:
    """One way to end: what is sent of each API (None: it has no such thing), and what must be charged."""

    title: str
    charged: str
    body: Body
    status: int = 200
    figures: bool = True
    nulls: bool = False
    coding: str = ""
    line: str = "\n"
    comments: bool = False
    end: End = End.WHOLE
    patience: Patience = Patience.USUAL


def of(api: Api, said: Sequence[Doc] | None) -> Sequence[Doc] | None:
    return None if said is None else [*api.begin, *said, *api.close, *api.tail, *api.marker]


def spoken(api: Api) -> Sequence[Doc] | None:
    return of(api, api.texts)


def without_end(api: Api) -> Sequence[Doc] | None:
    whole = spoken(api)
    return whole[:-1] if whole is not None and api.streams else None


def with_error(api: Api) -> Sequence[Doc] | None:
    if api.error is None:
        return None
    return [*api.begin, *api.texts[:2], api.error] if api.streams else [api.error]


def failed(api: Api) -> Sequence[Doc] | None:
    return [api.failure]


def streamed(api: Api) -> Sequence[Doc] | None:
    return spoken(api) if api.streams else None


def lined(api: Api) -> Sequence[Doc] | None:
    return None if api.framing is Framing.FRAMES else spoken(api)


def commented(api: Api) -> Sequence[Doc] | None:
    return spoken(api) if api.framing is Framing.EVENTS else None


def nothing_said(api: Api) -> Sequence[Doc] | None:
    return of(api, api.nothing) if api.streams or api.nothing else None


def without_figures(api: Api) -> Sequence[Doc] | None:
    whole = spoken(api)
    return None if whole is None else [doc for doc in whole if doc not in api.tail]


BROKEN = "estimate, partial"

SECTIONS: dict[str, list[Ending]] = {
    "whole": [
        Ending("complete", "exact", spoken),
        Ending("tool call", "exact", lambda api: of(api, api.tool)),
        Ending("refusal", "exact", lambda api: of(api, api.refusal)),
        Ending("nothing said", "exact", nothing_said),
        Ending("usage null until the last part", "exact", streamed, nulls=True),
        Ending("no usage", "estimate", without_figures, figures=False),
        Ending("last part missing", "", without_end),
    ],
    "broken": [
        Ending("app leaves before the answer", "exact, cancelled", spoken, end=End.GONE_EARLY),
        Ending("app leaves half way", "exact, cancelled", spoken, end=End.GONE_LATE),
        Ending(
            "app leaves, CANCEL", "estimate, cancelled", spoken, end=End.GONE_LATE, patience=Patience.CANCELS
        ),
        Ending("reset half way", BROKEN, spoken, end=End.RESET),
        Ending("silence half way", BROKEN, spoken, end=End.STALL, patience=Patience.SHORT),
        Ending("no answer in time", BROKEN, spoken, end=End.SILENT, patience=Patience.SHORT),
        Ending("no connection", "nothing, released", spoken, end=End.DEAF, patience=Patience.ALONE),
    ],
    "failed": [
        Ending("400", "nothing, failed", failed, status=400, figures=False),
        Ending("400 with usage", "exact, failed", failed, status=400),
        Ending("500", "nothing, failed", failed, status=500, figures=False),
        Ending("500 with usage", "exact, failed", failed, status=500),
        Ending("error in a 200 answer", "estimate, failed", with_error, figures=False),
    ],
    "wire": [
        *(Ending(coding, "exact", spoken, coding=coding) for coding in CODINGS),
        Ending("cut at every byte", "exact", spoken, end=End.BYTES),
        Ending("CRLF", "exact", lined, line="\r\n"),
        Ending("comment lines", "exact", commented, comments=True),
    ],
}


@dataclass(frozen=True)
class Cell:
    """An API and an ending."""

    api: Api
    ending: Ending

    @property
    def name(self) -> str:
        return f"{self.api.title}/{self.ending.title}"

    def _body(self, *, seen: bool) -> list[bytes]:
        """Return the parts as the provider sends them, or as the app must see them."""
        api, ending = self.api, self.ending
        docs = ending.body(api) or ()
        figures, nulls = ending.figures, ending.nulls
        if api.asks_itself and ending.status == 200:
            docs = [doc for doc in docs if not (seen and doc in api.tail)]
            figures, nulls = figures and not seen, not seen
        parts = (
            api.rendered(docs, figures, nulls, ending.line) if ending.status == 200 else failure(api, figures)
        )
        if ending.comments:
            parts = [b": keep-alive\n\n", parts[0], b": still here\n:\n\n", *parts[1:]]
        return parts

    @property
    def sent(self) -> list[bytes]:
        """The parts that the provider sends, half of them before what happens half way; a JSON answer is cut in two."""
        return cut(self._body(seen=False))

    @property
    def whole(self) -> bytes:
        """What the app gets where nothing breaks off."""
        return b"".join(self._body(seen=True))

    def script(self, left: Callable[[], Awaitable[None]]) -> Script:
        """Return what the provider does; where the app leaves, `left` is awaited until it has."""
        ending, parts = self.ending, self.sent
        body = b"".join(parts)
        if ending.coding:
            parts = [CODINGS[ending.coding](body)]
        if ending.end is End.BYTES:
            parts = [body[at : at + 1] for at in range(len(body))]
        media = self.api.framing.value if ending.status == 200 else Framing.JSON.value
        lines = [f"content-type: {media}", "transfer-encoding: chunked"]
        lines += [f"content-encoding: {ending.coding}"] if ending.coding else []
        status = f"{ending.status} {'OK' if ending.status == 200 else 'Refused'}"
        return played(ending.end, head(status, *lines), parts, left)


def failure(api: Api, figures: bool) -> list[bytes]:
    """Return the JSON body of a refused call."""
    as_json = Api(api.title, api.path, {}, Framing.JSON, (), None, {})
    return as_json.rendered([api.failure], figures, nulls=False)


def cut(parts: list[bytes]) -> list[bytes]:
    """Return the parts, a lone one in two."""
    if len(parts) != 1:
        return parts
    middle = len(parts[0]) // 2
    return [parts[0][:middle], parts[0][middle:]]


def played(end: End, opening: bytes, parts: list[bytes], left: Callable[[], Awaitable[None]]) -> Script:
    """Return the script that sends the parts, and does half way what the ending says."""
    half = len(parts) // 2

    async def half_way(writer: asyncio.StreamWriter) -> None:
        await writer.drain()
        if end is End.GONE_LATE:
            await left()
        elif end is End.STALL:
            await asyncio.sleep(30)
        else:
            await asyncio.sleep(0.05)
            writer.transport.abort()

    async def run(_: object, writer: asyncio.StreamWriter) -> None:
        if end is End.SILENT:
            await asyncio.sleep(30)
        if end is End.GONE_EARLY:
            await left()
        writer.write(opening)
        for at, part in enumerate(parts):
            if at == half and end in (End.RESET, End.STALL, End.GONE_LATE):
                await half_way(writer)
                if end is End.RESET:
                    return
            writer.write(chunk(part))
            if end is End.BYTES:
                await asyncio.sleep(0)
        writer.write(LAST_CHUNK)
        await writer.drain()

    return run
