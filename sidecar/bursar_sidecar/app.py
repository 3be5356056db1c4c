"""Builds one sidecar out of its settings, starts it, and stops it without losing a charge."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from aiohttp import web

from bursar_sidecar.background import Background
from bursar_sidecar.channel import Channel
from bursar_sidecar.clock import Clock, SystemClock
from bursar_sidecar.config import Config
from bursar_sidecar.control_plane import ControlPlane, Token
from bursar_sidecar.degraded import Degraded
from bursar_sidecar.door import Door
from bursar_sidecar.exchange import Terms
from bursar_sidecar.gate import Gate
from bursar_sidecar.ids import RequestIds, sha256_hex
from bursar_sidecar.inquiry import Inquirer
from bursar_sidecar.outbox import Outbox
from bursar_sidecar.proxy import Proxy
from bursar_sidecar.replay import Replayer
from bursar_sidecar.routes import Router
from bursar_sidecar.telemetry import METRICS_TYPE, Counts, Gauge, metrics_text
from bursar_sidecar.upstream_channel import Connector, UpstreamChannel, sending_noticed
from bursar_sidecar.upstreams import Upstream
from bursar_sidecar.watch import Limits

_TICK_S = 0.25
_FLUSH_EVERY_TICKS = 4
_CONTROL_PLANE_CONNECT_S = 2.0
_LINE_MAX_BYTES = 64 << 10
#: Idle connections to providers are kept for so long; most close theirs only later.
_UPSTREAM_KEEPALIVE_S = 30.0
_APP_KEEPALIVE_S = 3600.0
_DRAIN_S = 5.0
#: Headers that aiohttp would add where the app sent none.
_AUTO_HEADERS = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")


class Sidecar:
    """One sidecar; `start` brings it to where apps can call, `stop` finishes what is open.

    Raises OutboxInUseError when another process uses the outbox, OSError when it or the address cannot be used.
    """

    def __init__(self, config: Config, logger: logging.Logger, clock: Clock | None = None) -> None:
        clock = clock or SystemClock()
        self._config = config
        self._logger = logger
        self.counts = Counts()
        self.outbox = Outbox(config.outbox_dir, config.outbox_max_bytes)
        ids = RequestIds(clock)
        self._channel = Channel(config.control_plane_url, _CONTROL_PLANE_CONNECT_S, _trust(config))
        self.control_plane = ControlPlane(
            self._channel,
            Token(config.sidecar_token, config.token_file),
            clock,
            self.counts,
            logger,
            config.check_timeout_ms / 1000,
        )
        self.replayer = Replayer(self.outbox, self.control_plane, self.counts, logger)
        self.gate = Gate(
            self.control_plane,
            self.outbox,
            self.replayer,
            ids,
            clock,
            self.counts,
            logger,
            Degraded(
                config.on_unreachable,
                config.last_known_max_age_ms / 1000,
                ids,
                clock,
                self.counts,
                logger,
            ),
            open_calls_max=config.open_calls_max,
            deduct_wait_s=config.deduct_wait_ms / 1000,
        )
        self._session = _session(config)
        terms = self._terms(clock)
        self._background = terms.background
        self._proxy = Proxy(
            terms,
            Router(config.upstreams, config.upstreams_missing),
            ids,
            carried_key_sha256=sha256_hex(config.api_key) if config.api_key else None,
            request_max_bytes=config.request_max_bytes,
            body_timeout_s=config.body_timeout_ms / 1000,
        )
        self._gauges = self._make_gauges(ids)
        self._pages = {"/healthz": self._health, "/readyz": self._ready, "/metrics": self._metrics}
        self._server = Door(
            self._handle,
            self._proxy.unreadable,
            access_log=None,
            logger=logging.getLogger("bursar_sidecar.http"),
            auto_decompress=False,
            keepalive_timeout=_APP_KEEPALIVE_S,
            max_line_size=_LINE_MAX_BYTES,
            max_field_size=_LINE_MAX_BYTES,
        )
        self._listener: asyncio.Server | None = None
        self._loops: list[asyncio.Task[None]] = []

    def _terms(self, clock: Clock) -> Terms:
        config, proxies = self._config, _proxies(self._config.upstreams)
        background = Background(
            self.gate,
            Inquirer(self._session, proxies),
            clock,
            self.counts,
            self._logger,
            true_up_s=config.true_up_ms / 1000,
        )
        return Terms(
            channel=UpstreamChannel(self._session, proxies, _LINE_MAX_BYTES),
            gate=self.gate,
            background=background,
            clock=clock,
            counts=self.counts,
            logger=self._logger,
            limits=_limits(config),
        )

    async def start(self) -> str:
        """Take over what an earlier process left, listen, and return the address (`host:port`) apps can call."""
        self._report_recovery()
        self.control_plane.on_return = self._on_return
        self.replayer.add(self.outbox.recovered.owed)
        host, port = self._config.sidecar_listen
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(self._server, host, port, backlog=1024)
        self._loops = [loop.create_task(self._tick_forever()), loop.create_task(self._keep_up_forever())]
        bound = self._listener.sockets[0].getsockname()
        return f"[{bound[0]}]:{bound[1]}" if ":" in bound[0] else f"{bound[0]}:{bound[1]}"

    async def stop(self) -> None:
        """Take no more calls, let open ones finish for a bounded time, and leave the rest to the outbox."""
        self.gate.stopping = True
        self._background.stop()
        self.outbox.stopping()
        if self._listener is not None:
            self._listener.close()
        self._server.pre_shutdown()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.shutdown_timeout_ms / 1000):
                await self.gate.all_closed()
        await self._server.shutdown(0.5)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_S):
                await self.gate.drained()
        for task in self._loops:
            task.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        await self.replayer.stop()
        await self._channel.close()
        await self._session.close()
        self.outbox.close()

    # -- requests ------------------------------------------------------------------------------------

    def _handle(self, request: web.BaseRequest) -> Awaitable[web.StreamResponse]:
        page = self._pages.get(request.raw_path)
        return self._proxy.handle(request) if page is None else self._page(page)

    async def _page(self, page: Callable[[], web.Response]) -> web.Response:
        return page()

    def _health(self) -> web.Response:
        return web.Response(text="ok\n")

    def _metrics(self) -> web.Response:
        body = metrics_text(self.counts, self._gauges).encode()
        return web.Response(body=body, headers={"Content-Type": METRICS_TYPE})

    def _ready(self) -> web.Response:
        reasons = []
        if self.gate.stopping:
            reasons.append("the sidecar is stopping")
        if self.control_plane.token_refused:
            reasons.append("the control plane refuses the sidecar's token")
        elif not self.control_plane.reachable:
            reasons.append("the control plane does not answer")
        if self.outbox.full:
            reasons.append("the outbox is full or cannot be written")
        if not reasons:
            return web.Response(text="ready\n")
        return web.Response(status=503, text="".join(f"{reason}\n" for reason in reasons))

    # -- now and then --------------------------------------------------------------------------------

    async def _tick_forever(self) -> None:
        ticks = 0
        while True:
            await asyncio.sleep(_TICK_S)
            ticks += 1
            try:
                self._proxy.tick()
                self.gate.tick()
                self._background.tick()
                if ticks % _FLUSH_EVERY_TICKS == 0:
                    self.outbox.flush()
            except Exception:
                self._logger.exception("a defect of the sidecar")

    async def _keep_up_forever(self) -> None:
        while True:
            try:
                await self.gate.keep_up()
            except Exception:
                self._logger.exception("a defect of the sidecar")
            await asyncio.sleep(self.gate.keep_up_every_s)

    def _on_return(self) -> None:
        self.replayer.hurry()
        self.gate.renew_now()

    def _report_recovery(self) -> None:
        found = self.outbox.recovered
        self.counts.sent_without_end += found.sent
        self.counts.outbox_torn_bytes += found.torn_bytes
        self.counts.outbox_damaged_bytes += found.damaged_bytes
        fields = {
            "owed": len(found.owed),
            "sent": found.sent,
            "torn_bytes": found.torn_bytes,
            "damaged_bytes": found.damaged_bytes,
        }
        if any(fields.values()):
            self._logger.warning("an earlier process left something in the outbox", extra={"fields": fields})

    def _make_gauges(self, ids: RequestIds) -> list[Gauge]:
        outbox, gate, control_plane = self.outbox, self.gate, self.control_plane
        return [
            ("open_calls", "Calls that are open now.", lambda: gate.open_calls),
            ("outbox_depth", "Deducts and releases that are not acknowledged.", lambda: outbox.depth),
            ("outbox_bytes", "Space that the outbox takes.", lambda: outbox.size_bytes),
            ("outbox_full", "1 when new calls are refused for want of room.", lambda: int(outbox.full)),
            (
                "control_plane_reachable",
                "1 when the control plane answered lately.",
                lambda: int(control_plane.reachable),
            ),
            ("clock_offset_ms", "How far the control plane's clock is ahead.", lambda: ids.offset_ms),
        ]


def _session(config: Config) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=Connector(limit=0, keepalive_timeout=_UPSTREAM_KEEPALIVE_S),
        trace_configs=[sending_noticed()],
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=config.upstream_connect_timeout_ms / 1000),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        requote_redirect_url=False,
        skip_auto_headers=_AUTO_HEADERS,
        max_line_size=_LINE_MAX_BYTES,
        max_field_size=_LINE_MAX_BYTES,
    )


def _limits(config: Config) -> Limits:
    return Limits(
        on_disconnect=config.on_disconnect,
        read_on_max_s=config.read_on_max_ms / 1000,
        read_on_max_bytes=config.read_on_max_bytes,
        answer_timeout_s=config.upstream_answer_timeout_ms / 1000,
        idle_timeout_s=config.upstream_idle_timeout_ms / 1000,
    )


def _trust(config: Config) -> ssl.SSLContext | None:
    if config.control_plane_ca is None:
        return None
    return ssl.create_default_context(cafile=str(config.control_plane_ca))


def _proxies(upstreams: Mapping[str, Upstream]) -> dict[str, str]:
    """Return the proxy of each origin, as HTTP_PROXY, HTTPS_PROXY and NO_PROXY say."""
    given = getproxies()
    found: dict[str, str] = {}
    for upstream in upstreams.values():
        parts = urlsplit(upstream.origin)
        proxy = given.get(parts.scheme)
        if proxy and not proxy_bypass(parts.netloc):
            found[upstream.origin] = proxy
    return found
