"""The reader of event streams that every dialect builds on."""

from __future__ import annotations

from typing import Protocol

from bursar_sidecar.providers.base import EVENT_MAX_BYTES, ApiCall, Metered, Outcome
from bursar_sidecar.providers.readers import Document, document
from bursar_sidecar.providers.sse import Raw, Splitter, data_of, is_error_line
from bursar_sidecar.usage import Findings, settle

#: Content events are kept unread up to this many bytes: an answer that ends with its usage never needs them parsed.
_PENDING_MAX_BYTES = 64 << 10


class Splits(Protocol):
    """Takes a stream in pieces cut anywhere, gives whole events; see `sse.Splitter`."""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the events that `data` completes."""
        ...

    def rest(self) -> bytes:
        """Return what came after the last event, and forget it."""
        ...


class StreamReader:
    """An event stream: every event is passed on as it comes, but the terminal marker.

    A subclass says in `_event` what becomes of each event, and in `_read_content` what a content event says. Content
    events are kept unread for a while: a stream that ends with its usage never needs them parsed; of any other their
    text is counted, a batch at a time, so that memory stays constant.
    """

    def __init__(self, call: ApiCall, status: int, splitter: Splits | None = None) -> None:
        self._call = call
        self._status = status
        self._found = Findings()
        self._splitter: Splits = splitter or Splitter()
        self._held = b""
        self._done = False  # the terminal marker has been seen: what follows is held too
        self._ended = False
        self._pending: list[bytes] = []
        self._pending_size = 0

    def feed(self, data: bytes) -> bytes:
        """Return the events that `data` completes, but for what is held or taken out."""
        return self._sorted(self._splitter.feed(data))

    def end(self) -> bytes:
        """Return what came behind the last whole event, unless it is held."""
        self._ended = True
        rest = self._splitter.rest()
        return self._sorted([rest]) if rest else b""

    @property
    def complete(self) -> bool:
        """Whether the terminal marker has been seen, or the body has ended with nothing missing."""
        if self._done or not self._ended:
            return self._done
        if not self._found.final:
            self._read_pending()
        return self._found.final or self._found.finished

    @property
    def held(self) -> bytes:
        """The terminal marker and whatever followed it."""
        return self._held

    def metered(self, outcome: Outcome | None = None) -> Metered:
        """Return the usage reported, or an estimate of what came."""
        if not (self._found.final and self._found.model):
            self._read_pending()
        return settle(self._call, self._status, self._found, self.complete, outcome)

    def _event(self, block: bytes) -> bytes:
        """Return what of this event goes to the app now; what is to be held goes into `_held`."""
        raise NotImplementedError

    def _read_content(self, event: Document) -> None:
        """Note what a content event says: model, text, finish."""
        raise NotImplementedError

    def _document(self, block: bytes) -> Document | None:
        """Return the JSON object in an event, None where there is none."""
        return document(data_of(block))

    def _sorted(self, blocks: list[bytes]) -> bytes:
        passed: list[bytes] = []
        for block in blocks:
            if self._done or (self._held and type(block) is Raw):
                self._held += block
                if len(self._held) > EVENT_MAX_BYTES:  # nobody sends this much behind a terminal marker
                    passed.append(self._held)
                    self._held = b""
            elif type(block) is Raw:
                passed.append(block)
            else:
                passed.append(self._event(block))
        return b"".join(passed)

    def _hold(self, block: bytes) -> bytes:
        """Hold the terminal marker; nothing passes from here on."""
        self._done, self._held = True, block
        return b""

    def _content(self, block: bytes) -> bytes:
        """Keep a content event for later reading, and pass it."""
        self._pending.append(block)
        self._pending_size += len(block)
        if self._pending_size > _PENDING_MAX_BYTES:
            self._read_pending()
        return block

    def _read_pending(self) -> None:
        pending, self._pending, self._pending_size = self._pending, [], 0
        for block in pending:
            event = self._document(block)
            if event is not None:
                self._read_content(event)

    def _read_error(self, block: bytes) -> None:
        """Note that the provider reported an error inside a stream, if this event is one."""
        event = self._document(block)
        if is_error_line(block) or (event is not None and event.get("error")):
            self._found.failed = True
