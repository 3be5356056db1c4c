"""One forwarded call: from the provider's first byte to the app's last, with the Deduct before it."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

import aiohttp
from aiohttp import web
from multidict import CIMultiDict

from bursar.v1.metering_service_pb2 import DeductResponse
from bursar_sidecar import denial
from bursar_sidecar import headers as header
from bursar_sidecar.background import Background
from bursar_sidecar.clock import Clock
from bursar_sidecar.decoding import Decoder, DecodingError, OpaqueReader, UnknownCodingError, decoder_for
from bursar_sidecar.gate import Gate, OpenCall
from bursar_sidecar.messages import unheard
from bursar_sidecar.money import usd_text
from bursar_sidecar.outbox import OutboxWriteError
from bursar_sidecar.providers.base import ApiCall, Dialect, Later, Outcome, Problem, Reader
from bursar_sidecar.signing import Signer
from bursar_sidecar.stream_guard import error_event, outgrown
from bursar_sidecar.telemetry import Counts
from bursar_sidecar.upstream_channel import UpstreamAnswer, UpstreamChannel
from bursar_sidecar.watch import Limits, Stop, Watch

#: What streams are called: events, Amazon's frames, an object a line (Ollama's name and Cohere's).
_STREAMS = (
    "text/event-stream",
    "application/vnd.amazon.eventstream",
    "application/x-ndjson",
    "application/stream+json",
)
#: A larger one is let go once it has been sent.
_KEPT_BODY_MAX_BYTES = 64 << 10
#: How long after the terminal marker of a stream its end is waited for.
_END_WAIT_S = 2.0


@dataclass(frozen=True, slots=True)
class Terms:
    """What every exchange of one sidecar has in common."""

    channel: UpstreamChannel
    gate: Gate
    background: Background
    clock: Clock
    counts: Counts
    logger: logging.Logger
    limits: Limits


@dataclass(slots=True)
class Forward:
    """A request as it goes to the provider, and what is known of it. `comment`: a stream's app wants to read its cost.

    `later` is how the provider is asked afterwards, `signer` what made the request's credential, where there are such.
    """

    upstream: str
    dialect: Dialect
    method: str
    origin: str
    url: str
    headers: CIMultiDict[str]
    asked: ApiCall
    comment: bool
    later: Later | None = None
    signer: Signer | None = None


def refusal(dialect: Dialect, problem: Problem, request_id: str, stream: bool = False) -> web.Response:
    """Return the sidecar's own answer in the words of the API that was called."""
    status, headers, body = denial.answer(dialect, problem, stream)
    headers[header.REQUEST_ID] = request_id
    return web.Response(status=status, headers=headers, body=body)


class Exchange:
    """Forwards one open call and answers the app; whatever happens, the call is closed or released at its end."""

    __slots__ = (
        "_call",
        "_decoder",
        "_forward",
        "_reader",
        "_request",
        "_response",
        "_sent",
        "_spent",
        "_terms",
        "_upstream",
        "watch",
    )

    def __init__(self, terms: Terms, request: web.BaseRequest, forward: Forward, call: OpenCall) -> None:
        self._terms = terms
        self._request = request
        self._forward = forward
        self._call = call
        self._reader: Reader | None = None
        self._decoder: Decoder | None = None
        self._response: web.StreamResponse | None = None
        self._sent = False  # something may have reached the provider
        self._spent = False  # the stream brought more than its budget bears
        self._upstream: UpstreamAnswer | None = None
        self.watch = Watch(request, terms.limits, terms.clock, terms.counts)

    async def run(self) -> web.StreamResponse:
        """Forward the call and return the app's answer, sent as far as it could be."""
        gate, call = self._terms.gate, self._call
        if self.watch.app_left:
            gate.release(call)  # it went away while the Check was out: nothing need be spent
            self.watch.went_away()
            return web.Response()
        try:
            gate.sent(call)
        except OutboxWriteError:
            return self._refuse(denial.control_plane_unavailable())
        try:
            problem = await self._send()
            return self._refuse(problem) if problem is not None else await self._answer()
        finally:
            # Still open where the sidecar is stopping, or has a defect.
            if not self._sent:
                gate.release(call)
            elif not call.closed and not self._terms.background.keeps(call):
                self._settle()
            if self._upstream is not None and not self._upstream.content.at_eof():
                self._upstream.close()

    def _settle(self) -> None:
        """Charge what is known; where even that has a defect, what is charged of which nothing is."""
        try:
            self._terms.gate.settle(self._call, self._read_so_far().metered(Outcome.PARTIAL))
        except Exception:
            self._terms.logger.exception("a defect of the sidecar")
            self._terms.gate.settle(self._call, unheard(self._call.ask))

    # -- to the provider -----------------------------------------------------------------------------

    async def _send(self) -> Problem | None:
        """Send the request and wait for the answer's head; return what the app is told where there is none."""
        forward, terms, body = self._forward, self._terms, self._forward.asked.body
        terms.counts.calls[forward.upstream] += 1
        self.watch.begin()
        try:
            self._upstream = await terms.channel.request(
                forward.method, forward.origin, forward.url, forward.headers, body, self._sending
            )
            if self._upstream.status < 200:  # another protocol, which nobody asked for
                self._upstream.close()
                raise aiohttp.ServerDisconnectedError
        except asyncio.CancelledError:
            if not self.watch.interrupted():
                raise
            return await self._unanswered()
        except (aiohttp.ClientError, OSError, ValueError) as error:
            self.watch.end()
            if not self._sent:  # the provider has seen nothing (S17)
                terms.gate.release(self._call)
                late = isinstance(error, aiohttp.ConnectionTimeoutError)
                self._note("connect_timeout" if late else "connect", error)
                return (denial.upstream_timeout if late else denial.upstream_unreachable)(forward.upstream)
            self._note("no_answer", error)
            # The connection ended without a word: a call that failed without usage (S17).
            reader = forward.dialect.reader(forward.asked, 502, "application/json")
            await terms.gate.close_call(self._call, reader.metered(Outcome.FAILED))
            return denial.upstream_unreachable(forward.upstream)
        self.watch.progress()
        if len(body) > _KEPT_BODY_MAX_BYTES:
            forward.asked = forward.asked._replace(body=b"")  # streams can last, and be many
        return None

    def _sending(self) -> None:
        self._sent = True

    async def _unanswered(self) -> Problem:
        """Close a call that was cut short before the provider answered: what was sent may be billed, so its input is charged."""
        gone = self.watch.stop is Stop.GONE
        if not gone:
            self._note("answer_timeout" if self._sent else "connect_timeout", None)
        if self._sent:
            metered = self._read_so_far().metered(Outcome.CANCELLED if gone else Outcome.PARTIAL)
            await self._terms.gate.close_call(self._call, metered)
        else:
            self._terms.gate.release(self._call)
        return denial.upstream_timeout(self._forward.upstream)

    # -- back to the app -----------------------------------------------------------------------------

    async def _answer(self) -> web.StreamResponse:
        """Pass the answer on, charge it, and only then let its end go."""
        upstream = self._upstream
        assert upstream is not None  # noqa: S101  (there is one when `_send` returns no problem)
        content_type = upstream.headers.get(header.CONTENT_TYPE, "")
        self._reader = reader = self._forward.dialect.reader(
            self._forward.asked, upstream.status, content_type, upstream.headers
        )
        streams = content_type.lower().startswith(_STREAMS)
        coding = upstream.headers.get(header.CONTENT_ENCODING)
        if coding:
            reader = self._open_coding(coding, reader)
        whole = await self._relay(upstream, reader, streams)
        reader = self._reader  # another one, where the answer turned out not to be what its coding says
        self.watch.end()
        gone = self.watch.gone
        metered = reader.metered(Outcome.CANCELLED if gone else Outcome.PARTIAL if self._spent else None)
        charged = await self._terms.background.charge(self._forward, self._call, metered, upstream.headers)
        if gone:
            return self._response or web.Response()
        if self._spent:
            return await self._cut_short()
        if whole or (streams and reader.complete):
            return await self._finish(reader, charged, streams)
        return self._broken_off()

    async def _relay(self, upstream: UpstreamAnswer, reader: Reader, streams: bool) -> bool:
        """Pass on what comes until the end; return whether the end came."""
        content, watch = upstream.content, self.watch
        guard = self._call.guard_output_tokens if self._forward.asked.stream else None
        try:
            if streams and self._decoder is None:
                await self._begin(keep_length=False)
            while chunk := await content.readany():
                watch.progress()
                if watch.gone and not watch.read_on(len(chunk)):
                    return False
                if self._decoder is None:
                    passed = reader.feed(chunk)
                    if passed:
                        await self._pass(passed)
                else:
                    reader = await self._decoded(self._decoder, chunk, reader)
                if guard is not None and outgrown(reader, guard):
                    self._spent = True
                    upstream.close()
                    return False
                if streams and reader.complete:
                    watch.progress(_END_WAIT_S)
                if content.at_eof():
                    break
            await self._pass(reader.end())
        except asyncio.CancelledError:
            if not watch.interrupted():
                raise
            if watch.stop is Stop.LATE and not (streams and reader.complete):
                self._note("idle_timeout", None)
            return False
        except (aiohttp.ClientError, OSError, DecodingError) as error:
            self._note("broken_off", error)
            return False
        return True

    def _open_coding(self, coding: str, reader: Reader) -> Reader:
        """Make the decoder of an answer; return who reads it: one that passes it on as it is, where the coding is not known."""
        try:
            self._decoder = decoder_for(coding)
        except UnknownCodingError as error:
            return self._opaque(error)
        return reader

    async def _decoded(self, decoder: Decoder, chunk: bytes, reader: Reader) -> Reader:
        """Pass on what a compressed piece becomes; return who reads the rest.

        An answer of which the app has nothing yet is passed on as it came where it cannot be decoded.
        """
        try:
            for piece in decoder.feed(chunk):
                await self._pass(reader.feed(piece))
        except DecodingError as error:
            if self._response is not None or decoder.raw is None:
                raise
            self._decoder = None
            opaque = self._opaque(error)
            await self._pass(opaque.feed(decoder.raw))
            return opaque
        return reader

    def _opaque(self, error: DecodingError) -> Reader:
        assert self._upstream is not None  # noqa: S101
        self._note("content_encoding", error)
        self._reader = OpaqueReader(self._forward.asked, self._upstream.status)
        return self._reader

    async def _pass(self, data: bytes, *, last: bool = False) -> None:
        """Write to the app, unless it has gone; the last piece and the mark of the end with one write."""
        watch = self.watch
        if not data or watch.gone:
            return
        watch.writing = True
        try:
            if self._response is None:
                same = self._decoder is None and not self._forward.asked.usage_inserted
                await self._begin(keep_length=same)
            if self._response is not None:
                await (self._response.write_eof(data) if last else self._response.write(data))
        except ConnectionResetError:
            watch.went_away()
        watch.writing = False

    async def _begin(self, *, keep_length: bool) -> None:
        """Send the head of an answer whose body follows in pieces; `keep_length` where not a byte of it changes."""
        upstream = self._upstream
        assert upstream is not None  # noqa: S101
        self._response = web.StreamResponse(
            status=upstream.status, reason=upstream.reason, headers=self._head(keep_length=keep_length)
        )
        try:
            await self._response.prepare(self._request)
        except ConnectionResetError:
            self.watch.went_away()

    async def _finish(
        self, reader: Reader, charged: DeductResponse | None, streams: bool
    ) -> web.StreamResponse:
        """Send the end of the answer; the call is charged."""
        held, response, upstream = reader.held, self._response, self._upstream
        if response is not None:
            if charged is not None and self._forward.comment and streams and reader.complete:
                held = _comment(charged) + held
            await self._pass(held, last=True)
            return response
        assert upstream is not None  # noqa: S101
        if self._request.method == "HEAD" or upstream.status in (204, 304):
            headers = self._head(keep_length=True)
            return web.StreamResponse(status=upstream.status, reason=upstream.reason, headers=headers)
        headers = self._head(keep_length=False)
        if charged is not None:
            headers[header.COST_USD] = usd_text(charged.cost_nanos)
            if charged.HasField("remaining_nanos"):
                headers[header.REMAINING_USD] = usd_text(charged.remaining_nanos)
        return web.Response(status=upstream.status, reason=upstream.reason, headers=headers, body=held)

    async def _cut_short(self) -> web.StreamResponse:
        """Tell the app that its budget is spent; what it has received is charged."""
        assert self._upstream is not None  # noqa: S101
        self._terms.counts.streams_ended += 1
        kind = self._upstream.headers.get(header.CONTENT_TYPE, "")
        event = error_event(self._forward.dialect, self._forward.asked, denial.spent_on_the_way(), kind)
        if not event or self._response is None:
            return self._broken_off()
        await self._pass(event)
        return self._response

    def _broken_off(self) -> web.StreamResponse:
        """Let the app see that the answer broke off: an error where nothing was sent yet, else a cut connection."""
        if self._response is None:
            late = self.watch.stop is Stop.LATE
            problem = denial.upstream_timeout if late else denial.upstream_unreachable
            return self._refuse(problem(self._forward.upstream))
        if self._request.transport is not None:
            self._request.transport.abort()
        return self._response

    # -- small parts ---------------------------------------------------------------------------------

    def _head(self, *, keep_length: bool) -> CIMultiDict[str]:
        assert self._upstream is not None  # noqa: S101
        headers = header.app_headers(
            self._upstream.headers,
            self._call.request_id,
            keep_length=keep_length,
            decoded=self._decoder is not None,
        )
        if self._call.fit_output_tokens is not None:
            headers[header.FIT_OUTPUT_TOKENS] = str(self._call.fit_output_tokens)
        return headers

    def _read_so_far(self) -> Reader:
        """Return the answer's reader, or one that has seen nothing."""
        return self._reader or self._forward.dialect.reader(self._forward.asked, 200, "application/json")

    def _refuse(self, problem: Problem) -> web.Response:
        self._terms.counts.refused[problem.code] += 1
        return refusal(self._forward.dialect, problem, self._call.request_id, self._forward.asked.stream)

    def _note(self, kind: str, error: BaseException | None) -> None:
        """Count and log what went wrong with the provider; of the error its type only, the rest may quote the request."""
        self._terms.counts.upstream_errors[kind] += 1
        fields = {
            "upstream": self._forward.upstream,
            "kind": kind,
            "error": type(error).__name__ if error is not None else "",
            "request_id": self._call.request_id,
        }
        self._terms.logger.info("a provider failed", extra={"fields": fields})


def _comment(charged: DeductResponse) -> bytes:
    """Return the block that tells a stream's reader what it cost, to be passed over by any that does not look."""
    text = f": bursar cost_usd={usd_text(charged.cost_nanos)}"
    if charged.HasField("remaining_nanos"):
        text += f" remaining_usd={usd_text(charged.remaining_nanos)}"
    return f"{text}\n\n".encode()
