"""A control plane in memory: a real implementation of the metering service, for whoever talks to one.

One budget for each key, prices of 1,000 nanos a token, holds without amounts. Idempotent as S16 says, releases win over
Checks that arrive later (S17). A test can make it slow, refuse, fail, or vanish and come back on the same port.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from connectrpc.code import Code
from connectrpc.errors import ConnectError

from bursar.v1 import budget_pb2, errors_pb2, metering_pb2
from bursar.v1 import metering_service_pb2 as pb
from bursar.v1.metering_service_connect import MeteringService, MeteringServiceASGIApplication
from bursar_sidecar.ids import sha256_hex

NANOS_PER_TOKEN = 1000
TOKEN = "bat_sidecar"
KEY = "bur_" + "k" * 43
INVALID_ARGUMENT, ALREADY_EXISTS, UNAVAILABLE = 3, 6, 14
HELD = metering_pb2.Denial(code="BUDGET_HELD", reason="insufficient_budget", retryable=True)


@dataclass
class Account:
    """What one key may spend, and what it has."""

    limit_nanos: int = 10**12
    spent_nanos: int = 0
    denial: metering_pb2.Denial | None = None
    on_unreachable: int = budget_pb2.ON_UNREACHABLE_UNSPECIFIED

    @property
    def remaining_nanos(self) -> int:
        return max(self.limit_nanos - self.spent_nanos, 0)


@dataclass
class FakeControlPlane(MeteringService):
    """The service and its books; tests read the lists and set the knobs."""

    lease_s: float = 60.0
    token: str = TOKEN
    accounts: dict[str, Account] = field(default_factory=lambda: {sha256_hex(KEY): Account()})
    holds: dict[str, pb.CheckRequest] = field(default_factory=dict)
    checks: list[pb.CheckRequest] = field(default_factory=list)
    check_batches: list[int] = field(default_factory=list)
    deduct_batches: list[int] = field(default_factory=list)
    records: dict[str, pb.DeductRequest] = field(default_factory=dict)
    charges: dict[str, int] = field(default_factory=dict)
    held: bool = False  # BatchCheck answers BUDGET_HELD; Check waits for `freed`
    freed: asyncio.Event = field(default_factory=asyncio.Event)
    waits: list[pb.CheckRequest] = field(default_factory=list)
    wait_timeouts_ms: list[str | None] = field(default_factory=list)
    fit_output_tokens: int | None = None
    guard_output_tokens: int | None = None
    duplicates: list[str] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
    unsound_users: set[str] = field(default_factory=set)
    releases_denied: bool = False  # the token is not for the tenants of these calls
    refused: list[pb.ReleaseHoldRequest] = field(default_factory=list)  # reports of calls that were refused
    renewed: list[list[str]] = field(default_factory=list)
    check_delay_s: float = 0.0
    deduct_delay_s: float = 0.0
    down: bool = False  # answers UNAVAILABLE
    clock_ahead_s: float = 0.0
    item_errors: dict[str, metering_pb2.ItemError] = field(default_factory=dict)  # by model

    @property
    def account(self) -> Account:
        return self.accounts[sha256_hex(KEY)]

    async def batch_check(self, request: pb.BatchCheckRequest, ctx: Any, /) -> pb.BatchCheckResponse:
        self._admit(ctx)
        self.check_batches.append(len(request.checks))
        await asyncio.sleep(self.check_delay_s)
        return pb.BatchCheckResponse(results=[self._check(one) for one in request.checks])

    async def check(self, request: pb.CheckRequest, ctx: Any, /) -> pb.CheckResponse:
        self._admit(ctx)
        self.waits.append(request)
        self.wait_timeouts_ms.append(ctx.request_headers.get("connect-timeout-ms"))
        if self.held:
            await self.freed.wait()
            self._admit(ctx)
        response = pb.CheckResponse()
        self._decide(request, response)
        return response

    async def batch_deduct(self, request: pb.BatchDeductRequest, ctx: Any, /) -> pb.BatchDeductResponse:
        self._admit(ctx)
        self.deduct_batches.append(len(request.deducts))
        await asyncio.sleep(self.deduct_delay_s)
        return pb.BatchDeductResponse(results=[self._deduct(one) for one in request.deducts])

    async def renew_holds(self, request: pb.RenewHoldsRequest, ctx: Any, /) -> pb.RenewHoldsResponse:
        self._admit(ctx)
        if request.request_ids:
            self.renewed.append(list(request.request_ids))
        missing = [one for one in request.request_ids if one not in self.holds]
        response = pb.RenewHoldsResponse(missing_request_ids=missing)
        response.hold_expire_time.FromNanoseconds(self._now_ns() + int(self.lease_s * 1e9))
        return response

    async def release_hold(self, request: pb.ReleaseHoldRequest, ctx: Any, /) -> pb.ReleaseHoldResponse:
        self._admit(ctx)
        if request.HasField("refused"):
            if request.refused.user_id in self.unsound_users:
                raise ConnectError(Code.INVALID_ARGUMENT, "user_id: is no user")
            self.refused.append(request)
            return pb.ReleaseHoldResponse()
        if self.releases_denied:
            raise ConnectError(Code.PERMISSION_DENIED, "this token is not bound to the call's tenant")
        self.released.append(request.request_id)
        return pb.ReleaseHoldResponse(released=self.holds.pop(request.request_id, None) is not None)

    def _admit(self, ctx: Any) -> None:
        if self.down:
            raise ConnectError(Code.UNAVAILABLE, "the database cannot be reached")
        if ctx.request_headers.get("authorization") != f"Bearer {self.token}":
            raise ConnectError(Code.UNAUTHENTICATED, "unknown token")

    def _now_ns(self) -> int:
        return time.time_ns() + int(self.clock_ahead_s * 1e9)

    def _check(self, request: pb.CheckRequest) -> pb.BatchCheckResult:
        self.checks.append(request)
        result = pb.BatchCheckResult()
        if request.model in self.item_errors:
            result.error.CopyFrom(self.item_errors[request.model])
            return result
        made_ms = int(request.request_id.replace("-", "")[:12], 16)
        if abs(made_ms - self._now_ns() // 10**6) > 300_000:
            error = result.error
            error.code = INVALID_ARGUMENT
            error.reason = errors_pb2.ERROR_REASON_REQUEST_ID_MISPLACED
            error.server_time.FromNanoseconds(self._now_ns())
            return result
        if self.held and request.model != "free":
            result.check.request_id = request.request_id
            result.check.decision = metering_pb2.DECISION_DENY
            result.check.denials.append(HELD)
        else:
            self._decide(request, result.check)
        return result

    def _decide(self, request: pb.CheckRequest, response: pb.CheckResponse) -> None:
        response.request_id = request.request_id
        account = self.accounts.get(request.api_key_sha256)
        denial = account.denial if account else None
        if account is not None:
            response.on_unreachable = account.on_unreachable  # type: ignore[assignment]
            if request.with_budgets or account.on_unreachable == budget_pb2.ON_UNREACHABLE_LAST_KNOWN_GOOD:
                left = metering_pb2.BudgetLeft(budget_id=request.api_key_sha256)
                left.remaining_nanos = account.limit_nanos - account.spent_nanos
                response.budgets.append(left)
        if account is None:
            denial = metering_pb2.Denial(code="KEY_UNKNOWN", reason="authentication")
        elif denial is None and account.remaining_nanos == 0:
            denial = metering_pb2.Denial(code="BUDGET_CAP_HARD", reason="insufficient_budget", scope="user")
        elif request.request_id in self.released:
            denial = metering_pb2.Denial(code="REQUEST_RELEASED", retryable=True)
        if denial is not None:
            response.decision = metering_pb2.DECISION_DENY
            response.denials.append(denial)
            return
        assert account is not None
        self.holds[request.request_id] = request
        response.decision = metering_pb2.DECISION_ALLOW
        response.remaining_nanos = account.remaining_nanos
        if request.can_fit_output and self.fit_output_tokens is not None:
            response.fit_output_tokens = self.fit_output_tokens
        if self.guard_output_tokens is not None:
            response.guard_output_tokens = self.guard_output_tokens
        response.hold_expire_time.FromNanoseconds(self._now_ns() + int(self.lease_s * 1e9))

    def _deduct(self, request: pb.DeductRequest) -> pb.BatchDeductResult:
        result = pb.BatchDeductResult()
        for item in request.items:
            if item.model in self.item_errors:
                result.error.CopyFrom(self.item_errors[item.model])
                return result
        known = self.records.get(request.request_id)
        if known is not None and known != request:
            result.error.code = ALREADY_EXISTS
            result.error.reason = errors_pb2.ERROR_REASON_REQUEST_ID_REUSED
            return result
        account = self.accounts[request.api_key_sha256]
        if known is None:
            tokens = sum(item.usage.input_tokens + item.usage.output_tokens for item in request.items)
            self.charges[request.request_id] = tokens * NANOS_PER_TOKEN
            account.spent_nanos += tokens * NANOS_PER_TOKEN
            self.records[request.request_id] = request
        else:
            self.duplicates.append(request.request_id)
        unchecked = self.holds.pop(request.request_id, None) is None
        result.deduct.request_id = request.request_id
        result.deduct.duplicate = known is not None
        result.deduct.unchecked = unchecked
        result.deduct.cost_nanos = self.charges[request.request_id]
        of_input = sum(item.usage.input_tokens for item in request.items) * NANOS_PER_TOKEN
        result.deduct.input_cost_nanos = of_input
        result.deduct.output_cost_nanos = result.deduct.cost_nanos - of_input
        result.deduct.remaining_nanos = account.remaining_nanos
        return result


@dataclass
class Served:
    """A fake control plane on a port; it can vanish and come back."""

    service: FakeControlPlane
    port: int
    _server: uvicorn.Server | None = None
    _task: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def come_back(self) -> None:
        """Listen on the port."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(
            MeteringServiceASGIApplication(self.service),
            log_config=None,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._task = asyncio.create_task(self._server._serve([listener]))
        while not self._server.started:  # noqa: ASYNC110  (uvicorn has no event for it)
            await asyncio.sleep(0.005)

    async def vanish(self) -> None:
        """Close the port and every connection."""
        if self._server is not None and self._task is not None:
            self._server.should_exit = self._server.force_exit = True
            await self._task
            self._server = None


@asynccontextmanager
async def fake_control_plane(service: FakeControlPlane | None = None) -> AsyncIterator[Served]:
    """Run a fake control plane for as long as the block lasts."""
    served = Served(service or FakeControlPlane(), 0)
    await served.come_back()
    try:
        yield served
    finally:
        await served.vanish()
