"""The wire fixtures: one folder for each shape of a request and its answer (tests/golden/wire/README.md)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bursar_sidecar.providers.base import ApiCall, Dialect, Metered, Reader
from bursar_sidecar.upstreams import resolve
from support.eventstream import frame

WIRE = Path(__file__).parent.parent / "golden" / "wire"
CASES = sorted(path.name for path in WIRE.iterdir() if path.is_dir())
UPSTREAMS, _ = resolve({name: {"URL": "https://provider.test"} for name in ("azure", "bedrock")}, {})


class Case:
    """One fixture folder."""

    def __init__(self, name: str) -> None:
        self.folder = WIRE / name
        self.call: dict[str, Any] = json.loads((self.folder / "call.json").read_text())
        self.expected: dict[str, Any] = self.call["expected"]
        self.request = next(self.folder.glob("request.*")).read_bytes()
        self.answer, self.held = self._body("answer")
        app = next(self.folder.glob("app.*"), None)
        self.app = app.read_bytes() if app is not None else self.answer
        if "held" in self.expected:
            self.held = self.expected["held"].encode()
        upstream = self.folder / "upstream_request.json"
        self.upstream_request = upstream.read_bytes() if upstream.exists() else self.request

    def _body(self, name: str) -> tuple[bytes, bytes]:
        """Return the body, and what of it is held unless the fixture says otherwise: all, or frames from the end."""
        file = next(self.folder.glob(f"{name}.*"))
        if file.suffix != ".frames":
            return file.read_bytes(), file.read_bytes()
        frames = [frame(**one) for one in json.loads(file.read_text())]
        kept = len(frames) - self.expected["held_frames"]
        cut = self.call.get("cut_bytes", 0)
        body = b"".join(frames)
        return body[: len(body) - cut], b"".join(frames[kept:])[: len(body) - cut]

    @property
    def dialect(self) -> Dialect:
        return UPSTREAMS[self.call["upstream"]].at(self.call["path"]).dialect

    def opened(self) -> ApiCall:
        query = self.call.get("query", "")
        return self.dialect.open(self.call["method"], self.call["path"], query, {}, self.request)

    def reader(self) -> Reader:
        call, headers = self.call, self.call.get("headers", {})
        return self.dialect.reader(self.opened(), call["status"], call["content_type"], headers)


def shown(metered: Metered) -> list[dict[str, Any]]:
    """Return the items as the fixtures write them: only counts that are not 0."""
    return [
        {
            "model": item.model,
            "service_tier": item.service_tier,
            "usage": {name: count for name, count in item.usage._asdict().items() if count},
        }
        for item in metered.items
    ]
