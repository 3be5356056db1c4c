"""What the fake provider remembers of the calls it served, and writes into its log."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TextIO

import orjson

from bursar_sidecar.providers.base import Usage

_CREDENTIALS = ("authorization", "x-api-key", "x-goog-api-key", "api-key")
_REMEMBERED = 1000
_BODY_SHOWN_MAX_BYTES = 64 << 10


@dataclass(slots=True)
class Call:
    """One call: what came, and what was sent of the answer. Of the credential only a hash is kept."""

    number: int
    method: str
    path: str
    query: str
    headers: dict[str, str]
    credential_sha256: str
    body: bytes
    model: str = ""
    stream: bool = False
    status: int = 0
    usage: Usage | None = None
    sent_bytes: int = 0
    completed: bool = False

    @property
    def request_id(self) -> str:
        """The id that the answer carries."""
        return f"req_fake_{self.number:08d}"

    def line(self) -> dict[str, object]:
        """Return what the log says of the call."""
        return {
            "n": self.number,
            "id": self.request_id,
            "method": self.method,
            "path": self.path,
            "model": self.model,
            "stream": self.stream,
            "status": self.status,
            "request_bytes": len(self.body),
            "request_sha256": hashlib.sha256(self.body).hexdigest(),
            "credential_sha256": self.credential_sha256,
            "header_names": sorted(self.headers),
            "sent_bytes": self.sent_bytes,
            "completed": self.completed,
            "usage": self.usage._asdict() if self.usage is not None else None,
        }

    def shown(self) -> dict[str, object]:
        """Return what `/__served` says of the call: the line, the headers, and the body as text."""
        body = self.body[:_BODY_SHOWN_MAX_BYTES].decode(errors="replace")
        return {**self.line(), "query": self.query, "headers": self.headers, "body": body}


@dataclass(slots=True)
class Served:
    """The calls served, the last ones kept; each written to `log` as it ends."""

    log: TextIO | None = None
    count: int = 0
    calls: deque[Call] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))

    def begin(self, method: str, path: str, query: Mapping[str, str], headers: Mapping[str, str]) -> Call:
        """Return a new call, remembered from now on."""
        self.count += 1
        names = {name.lower(): value for name, value in headers.items()}
        credential = credential_of(names, query)
        shown = {name: value for name, value in names.items() if name not in _CREDENTIALS}
        call = Call(
            number=self.count,
            method=method,
            path=path,
            query="&".join(f"{name}={value}" for name, value in query.items() if name != "key"),
            headers=shown,
            credential_sha256=hashlib.sha256(credential.encode()).hexdigest() if credential else "",
            body=b"",
        )
        self.calls.append(call)
        return call

    def end(self, call: Call) -> None:
        """Write the call's line."""
        if self.log is not None:
            self.log.write(orjson.dumps(call.line()).decode() + "\n")
            self.log.flush()


def credential_of(headers: Mapping[str, str], query: Mapping[str, str]) -> str:
    """Return the credential in any of the places the three APIs take it from, "" without one."""
    bearer = headers.get("authorization", "")
    places = [bearer.removeprefix("Bearer ").strip(), *(headers.get(name, "") for name in _CREDENTIALS[1:])]
    return next(filter(None, places), query.get("key", ""))
