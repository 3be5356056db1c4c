"""Asks a provider afterwards what one of its answers consumed, where and as the call itself was made."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aiohttp
from multidict import CIMultiDict, istr
from yarl import URL

from bursar_sidecar import headers as header
from bursar_sidecar.credentials import provider_credential, without_credentials
from bursar_sidecar.decoding import DecodingError, decoder_for
from bursar_sidecar.providers.base import ApiCall, Later, Metered, Outcome
from bursar_sidecar.signing import Signer, SigningError

if TYPE_CHECKING:
    from bursar_sidecar.exchange import Forward

#: One asking takes no longer than this, and reads no more than this; a stored answer is as long as the answer was.
ASK_TIMEOUT_S = 10.0
ANSWER_MAX_BYTES = 64 << 20

#: What an id may be that becomes part of an address: no separators, no dots, no escapes.
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,255}")
#: Statuses, beside the 500s, that another time may change; 404 is what providers say of what is not ready.
_AGAIN = frozenset({404, 408, 409, 425, 429})
_ACCEPT = istr("Accept")
#: What says something of the call's body, or asks for less than the whole answer.
_OF_THE_CALL = (
    header.CONTENT_TYPE,
    header.CONTENT_ENCODING,
    istr("Range"),
    istr("If-Range"),
    istr("If-Match"),
    istr("If-None-Match"),
)
#: What asks for a stream in a query (Google's `alt=sse`): the answer is read as one JSON object.
_STREAMED = ("alt=", "stream=")

#: What a provider is taken to say that will not say anything.
_NOTHING = Metered((), True, None, Outcome.PARTIAL)


@dataclass(slots=True)
class Inquiry:
    """One question: what the answer called `answer_id` consumed. `heard` is what last came of asking, for the log."""

    answer_id: str
    origin: str
    url: str
    headers: CIMultiDict[str]
    signer: Signer | None
    later: Later
    asked: ApiCall
    heard: str = ""


def inquiry_about(forward: Forward, metered: Metered, headers: Mapping[str, str]) -> Inquiry | None:
    """Return the question about a call's answer, which has these headers; None where nobody can be asked.

    The address is the call's own: of the answer only the id is in it, and that only if it cannot be anything else.
    """
    later = forward.later
    if later is None:
        return None
    answer_id = (headers.get(later.header) if later.header else None) or metered.work_id
    path, _, query = forward.url.removeprefix(forward.origin).partition("?")
    if later.after:
        before, found, _ = path.rpartition(f"{later.after}/")
        path = f"{before}{later.after}" if found else ""
    if not path or _ID.fullmatch(answer_id) is None:
        return None
    path = path.rstrip("/") + later.path.replace("{id}", answer_id)
    kept_query = "&".join(one for one in query.split("&") if not one.startswith(_STREAMED))
    query = later.query.replace("{id}", answer_id) or kept_query
    kept = CIMultiDict(forward.headers)
    for name in _OF_THE_CALL:
        kept.popall(name, None)
    kept[_ACCEPT] = "application/json"
    asked = forward.asked._replace(body=b"", stream=False, usage_inserted=False)
    url = f"{forward.origin}{path}{'?' if query else ''}{query}"
    return Inquiry(answer_id, forward.origin, url, kept, forward.signer, later, asked)


class Inquirer:
    """Asks over the session that calls are made with; `proxies` are by the origin that is reached through them."""

    def __init__(self, session: aiohttp.ClientSession, proxies: Mapping[str, str]) -> None:
        self._session = session
        self._proxies = proxies

    async def ask(self, inquiry: Inquiry) -> Metered | None:
        """Return what the provider says was consumed; None where it may say more another time.

        Without items, or estimated, where it knows of no usage and never will. Nothing but a defect raises.
        """
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                return await self._asked(inquiry)
        except (aiohttp.ClientError, OSError, ValueError, SigningError) as error:
            inquiry.heard = type(error).__name__
            return None

    async def _asked(self, inquiry: Inquiry) -> Metered | None:
        headers = inquiry.headers
        if inquiry.signer is not None:
            made = await inquiry.signer.headers("GET", inquiry.url, headers, b"")
            without_credentials(headers)
            provider_credential(made, headers)
        async with self._session.get(
            URL(inquiry.url, encoded=True),
            headers=headers,
            allow_redirects=False,
            proxy=self._proxies.get(inquiry.origin),
        ) as answer:
            inquiry.heard = str(answer.status)
            if answer.status == 200:
                return await _read(answer, inquiry)
            return None if answer.status in _AGAIN or answer.status >= 500 else _NOTHING


async def _read(answer: aiohttp.ClientResponse, inquiry: Inquiry) -> Metered | None:
    """Return what an answer says, read in constant memory. Raises DecodingError, which is a ValueError."""
    reader = inquiry.later.reader(inquiry.asked, answer.status)
    coding = answer.headers.get(header.CONTENT_ENCODING)
    decoder = decoder_for(coding) if coding else None
    size = 0
    async for chunk in answer.content.iter_any():
        for piece in (chunk,) if decoder is None else decoder.feed(chunk):
            size += len(piece)
            if size > ANSWER_MAX_BYTES:
                return _NOTHING
            reader.feed(piece)
    reader.end()
    if not reader.complete:
        raise DecodingError("the answer is no JSON object")
    found = reader.metered()
    return found if found.items or found.outcome is Outcome.FAILED else None
