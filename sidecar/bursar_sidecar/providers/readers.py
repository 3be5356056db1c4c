"""The readers that every dialect builds on: of JSON answers, of event streams, and of anything else."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal

import orjson

from bursar_sidecar.providers.base import (
    BYTES_PER_TOKEN,
    HELD_MAX_BYTES,
    ApiCall,
    Metered,
    Outcome,
    Reader,
)
from bursar_sidecar.providers.json_scan import MemberScanner
from bursar_sidecar.usage import CUT_ANSWER_TOKENS_MAX, Findings, settle

Document = dict[str, object]


def document(data: bytes) -> Document | None:
    """Return the JSON object in `data`, or None where there is none.

    Where amounts of money may be in it, every fraction is a Decimal: a float would not be what the provider wrote.
    """
    if b'"cost' in data or b'_cost"' in data:
        found = exact_value(data)
        return found if isinstance(found, dict) else None
    return plain_document(data)


def plain_document(data: bytes) -> Document | None:
    """Return the JSON object in `data`, in which nobody looks for amounts of money, or None where there is none."""
    try:
        found = orjson.loads(data)
    except ValueError:
        found = exact_value(data)  # NaN or a lone surrogate, which orjson refuses and some APIs send
    return found if isinstance(found, dict) else None


def exact_value(data: bytes) -> object:
    """Return the JSON value in `data` with every fraction as a Decimal, or None where there is none."""
    try:
        return json.loads(data.decode(), parse_float=Decimal)
    except (ValueError, RecursionError):
        return None


def is_json(data: bytes) -> bool:
    """Return whether `data` is a whole JSON text."""
    try:
        orjson.loads(data)
    except ValueError:
        return False
    return True


class PassReader:
    """Passes every byte at once and finds nothing: for answers that are neither JSON nor an event stream."""

    def __init__(self, call: ApiCall, status: int) -> None:
        self._call = call
        self._status = status
        self._ended = False
        self._found = Findings()

    def feed(self, data: bytes) -> bytes:
        """Return `data`."""
        return data

    def end(self) -> bytes:
        """Note the end; nothing is left."""
        self._ended = True
        return b""

    @property
    def complete(self) -> bool:
        """Whether the body has ended."""
        return self._ended

    @property
    def held(self) -> bytes:
        """Nothing is ever held."""
        return b""

    def metered(self, outcome: Outcome | None = None) -> Metered:
        """Return an estimate from the request alone (nothing for a call that is not metered)."""
        return settle(self._call, self._status, self._found, self._ended, outcome)


def place_at_root(found: Document, key: str, depth: int, value: object) -> None:  # noqa: ARG001
    """Put a member that was picked out of a large answer where a whole document would have it."""
    found[key] = value


@dataclass(frozen=True, slots=True)
class JsonShape:
    """How one API's JSON answers are read.

    `read` takes a whole document. Of an answer too large to keep only the members in `wanted` (see MemberScanner) are
    seen; `place` puts each into a document that `read` understands.
    """

    read: Callable[[Document, Findings], None]
    wanted: Mapping[bytes, int]
    place: Callable[[Document, str, int, object], None] = place_at_root


class JsonReader:
    """A JSON answer: held whole up to HELD_MAX_BYTES; of a larger one only the piece that came last."""

    def __init__(self, call: ApiCall, status: int, shape: JsonShape) -> None:
        self._call = call
        self._status = status
        self._shape = shape
        self._found = Findings()
        self._pieces: list[bytes] = []
        self._size = 0
        self._scanner: MemberScanner | None = None
        self._picked: Document = {}
        self._looked_at_size = -1
        self._complete = False

    def feed(self, data: bytes) -> bytes:
        """Return nothing while the answer may fit; of a large one every piece but the last."""
        if not data:
            return b""
        self._size += len(data)
        self._pieces.append(data)
        if self._scanner is not None:
            self._scanner.feed(data)
        elif self._size <= HELD_MAX_BYTES:
            return b""
        else:
            self._scanner = MemberScanner(self._shape.wanted, self._pick)
            for piece in self._pieces:
                self._scanner.feed(piece)
        passed, self._pieces = self._pieces[:-1], [data]
        return b"".join(passed)

    def end(self) -> bytes:
        """Return nothing: what is left is held."""
        return b""

    @property
    def complete(self) -> bool:
        """Whether the whole answer has been seen."""
        self._look()
        return self._complete

    @property
    def held(self) -> bytes:
        """The whole answer, or the last piece of a large one."""
        return b"".join(self._pieces)

    def metered(self, outcome: Outcome | None = None) -> Metered:
        """Return the usage in the answer; of one cut off an estimate."""
        self._look()
        if not self._complete and self._found.usage is None:
            self._found.text_bytes = min(self._size, CUT_ANSWER_TOKENS_MAX * BYTES_PER_TOKEN)
        return settle(self._call, self._status, self._found, self._complete, outcome)

    def _pick(self, key: bytes, depth: int, value: bytes) -> None:
        self._shape.place(self._picked, key.decode(errors="replace"), depth, exact_value(value))

    def _look(self) -> None:
        """Read what has come, unless that has been done."""
        if self._looked_at_size == self._size:
            return
        self._looked_at_size = self._size
        self._found = Findings()
        if self._scanner is not None:
            self._complete = self._scanner.closed
            found: Document | None = self._picked
        else:
            body = self.held
            found = document(body)
            self._complete = found is not None or body.strip() == b"" or is_json(body)
        if found is not None:
            self._shape.read(found, self._found)
            self._found.final = self._found.usage is not None


#: What a line of an event stream begins with, and no JSON text does.
_STREAM_BEGINS = (b"data:", b"event:", b"id:", b"retry:", b":")

#: Answers that are neither text nor JSON by name, and have nothing to read in them.
_BINARY_MEDIA = ("audio/", "image/", "video/")


def _is_event_stream(first: bytes) -> bool | None:
    begins = first.lstrip()[:6]
    if len(begins) < 6 and any(line.startswith(begins) for line in _STREAM_BEGINS):
        return None
    return begins.startswith(_STREAM_BEGINS)


class UndecidedReader:
    """Becomes the reader of a stream or of a JSON answer by what comes first: some servers mislabel their streams.

    `streams` says of the first bytes whether they begin a stream; None where they are too few to tell.
    """

    def __init__(
        self,
        json_reader: Callable[[], Reader],
        stream_reader: Callable[[], Reader],
        streams: Callable[[bytes], bool | None] = _is_event_stream,
    ) -> None:
        self._json_reader = json_reader
        self._stream_reader = stream_reader
        self._streams = streams
        self._first = b""
        self._chosen: Reader | None = None

    def feed(self, data: bytes) -> bytes:
        """Return what the chosen reader passes; nothing before it is chosen."""
        if self._chosen is not None:
            return self._chosen.feed(data)
        self._first += data
        if self._streams(self._first) is None:
            return b""
        return self._choose().feed(self._first)

    def end(self) -> bytes:
        """Note the end of the body."""
        undecided = self._chosen is None
        reader = self._choose()
        passed = reader.feed(self._first) if undecided else b""
        return passed + reader.end()

    @property
    def complete(self) -> bool:
        """What the chosen reader says."""
        return self._chosen is not None and self._chosen.complete

    @property
    def held(self) -> bytes:
        """What the chosen reader holds, or what is not enough to choose by."""
        return self._chosen.held if self._chosen is not None else self._first

    def metered(self, outcome: Outcome | None = None) -> Metered:
        """Return what the chosen reader found; before there is one, that nothing worth reading has come."""
        return (self._chosen or self._json_reader()).metered(outcome)

    def _choose(self) -> Reader:
        if self._chosen is None:
            self._chosen = self._stream_reader() if self._streams(self._first) else self._json_reader()
        return self._chosen


def reader_for(
    call: ApiCall,
    status: int,
    content_type: str,
    shape: JsonShape,
    stream_reader: Callable[[ApiCall, int], Reader],
) -> Reader:
    """Return the reader for what the answer says it is, and of what is no event stream by name, for what it turns out to be.

    An unmetered stream passes straight through: nothing in it is waited for.
    """
    media = content_type.partition(";")[0].strip().lower()
    is_json = media == "application/json" or media.endswith("+json")
    if not call.metered:
        return JsonReader(call, status, shape) if is_json else PassReader(call, status)
    if media.startswith(_BINARY_MEDIA):
        return PassReader(call, status)
    if media == "text/event-stream":
        return stream_reader(call, status)
    return UndecidedReader(lambda: JsonReader(call, status, shape), lambda: stream_reader(call, status))


class ReadAgain:
    """Reads what is fetched by its id: its usage is that of the call that made it, and is not billed again.

    Where it is over, `metered` says so with what it consumed, for that call to be charged if it has not been.
    """

    def __init__(
        self,
        call: ApiCall,
        status: int,
        content_type: str,
        shape: JsonShape,
        stream_reader: Callable[[ApiCall, int], Reader],
    ) -> None:
        self._status = status
        self._work_id = call.work_id
        self._inner = reader_for(call._replace(metered=True), status, content_type, shape, stream_reader)

    def feed(self, data: bytes) -> bytes:
        """Return what may go to the app now."""
        return self._inner.feed(data)

    def end(self) -> bytes:
        """Return what is left and not held."""
        return self._inner.end()

    @property
    def complete(self) -> bool:
        """Whether the finishing event or the whole JSON body has been seen."""
        return self._inner.complete

    @property
    def held(self) -> bytes:
        """The finishing event, or the JSON answer."""
        return self._inner.held

    def metered(self, outcome: Outcome | None = None) -> Metered:
        """Return that nothing was consumed, and what the response consumed if it is over."""
        found = self._inner.metered()
        told = bool(found.items) and not found.estimated
        over = told or found.outcome in (Outcome.FAILED, Outcome.CANCELLED)
        nothing = Metered((), False, None, outcome or found.outcome)
        if not over or not 200 <= self._status < 300:
            return nothing
        return nothing._replace(work_id=self._work_id, ended=found)
