"""Both doors on free ports, with services that need no database: what the doors themselves do is seen without one."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar
from uuid import UUID

import uvloop

from bursar.v1 import budget_pb2, chargeback_service_pb2, metering_pb2
from bursar.v1 import metering_service_pb2 as metering
from bursar.v1 import user_service_pb2 as user
from bursar.v1.budget_service_connect import BudgetService
from bursar.v1.chargeback_service_connect import ChargebackService
from bursar.v1.metering_service_connect import MeteringService
from bursar.v1.pricing_service_connect import PricingService
from bursar.v1.tenant_service_connect import TenantService
from bursar.v1.usage_service_connect import UsageService
from bursar.v1.user_service_connect import UserService
from bursar_server.kit.caller import Caller, Role
from bursar_server.kit.clock import SystemClock
from bursar_server.kit.errors import invalid, not_found
from bursar_server.kit.money import usd_of_nanos
from bursar_server.rpc import fields
from bursar_server.rpc.app import ConnectDoor, ReadinessReport
from bursar_server.rpc.auth import call_of, caller_of
from bursar_server.rpc.grpc_door import GrpcDoor, serve_grpc
from bursar_server.rpc.http_server import HttpDoor, serve_http
from bursar_server.rpc.listen import Address, AddressInUseError, Tls
from bursar_server.rpc.pipeline import Pipeline
from bursar_server.rpc.services import Services
from bursar_server.telemetry import Telemetry

ROOT = Path(__file__).resolve().parents[2]
BUF = Path(sys.executable).parent / "buf"
ALICE = UUID("0190a1b2-0000-7000-8000-00000000a11c")
T = TypeVar("T")


class Tokens:
    """Knows `<role>-token`, the token of alice, and her `bur_` key."""

    async def authenticate(self, bearer: str) -> Caller | None:
        role = bearer.removesuffix("-token").replace("-", "_").upper()
        if bearer.endswith("-token") and role in Role.__members__:
            return Caller(Role[role], f"token:{role}")
        if bearer in ("alice", "bur_alice"):
            return Caller(Role.MEMBER, "alice@example.com", user_id=ALICE)
        if bearer == "breaks":
            raise RuntimeError("the secret text of a defect")
        return None


@dataclass
class Users(UserService):
    """SetBudget answers what it was asked; some e-mails make it do something else."""

    seen: list[str] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    seconds: float = 1

    async def set_budget(self, request: user.SetBudgetRequest, ctx: Any, /) -> user.SetBudgetResponse:
        caller_of(ctx)
        email = str(fields.user_ref(request.user_id, "user_id"))
        self.seen.append(email)
        match email.split("@")[0]:
            case "missing":
                raise not_found("user", email)
            case "broken":
                raise RuntimeError("the secret text of a defect")
            case "slow":
                await asyncio.sleep(self.seconds)
            case "headers":
                ctx.response_headers["x-extra"] = "1"
        nanos = fields.required_usd(request, "limit_usd")
        fields.text(request.reason, "reason", max_length=1000)
        self.finished.append(email)
        budget = budget_pb2.Budget(
            name=email, period=request.period, limit_usd=usd_of_nanos(nanos), limit_nanos=nanos
        )
        return user.SetBudgetResponse(budget=budget)

    async def get_my_budget(self, request: user.GetMyBudgetRequest, ctx: Any, /) -> user.GetMyBudgetResponse:
        return user.GetMyBudgetResponse(period_key=caller_of(ctx).actor, total_remaining_usd=0)

    async def create_grant(self, request: user.CreateGrantRequest, ctx: Any, /) -> user.CreateGrantResponse:
        response = user.CreateGrantResponse()
        starts_at = fields.instant(request, "starts_at")
        if starts_at is not None:
            response.grant.starts_at.CopyFrom(fields.timestamp_of(starts_at))
        return response


class Metering(MeteringService):
    """Allows everything, and says how long the caller wanted to wait."""

    async def check(self, request: metering.CheckRequest, ctx: Any, /) -> metering.CheckResponse:
        call = call_of(ctx)
        wait = None if call.deadline is None else round((call.deadline - call.started) * 1000)
        return metering.CheckResponse(
            request_id=request.request_id,
            decision=metering_pb2.Decision.DECISION_ALLOW,
            retry_after_ms=wait,
            denials=[metering_pb2.Denial(message=call.request_id)],
        )


class Reports(ChargebackService):
    """Streams three pieces; the report `half` fails after the first."""

    async def download_report(
        self, request: chargeback_service_pb2.ChargebackServiceDownloadReportRequest, ctx: Any, /
    ) -> AsyncIterator[chargeback_service_pb2.ChargebackServiceDownloadReportResponse]:
        answer = chargeback_service_pb2.ChargebackServiceDownloadReportResponse
        yield answer(data=b"one", filename="report.json")
        if request.report_id == "half":
            raise RuntimeError("the secret text of a defect")
        if request.report_id == "wrong":
            raise invalid("report_id", "is wrong")
        yield answer(data=b"two")
        yield answer(data=b"three")


def services_without_a_database(users: Users) -> Services:
    """Return one implementation of each service; those without a class here answer UNIMPLEMENTED."""
    return Services(
        users=users,
        tenants=type("Tenants", (TenantService,), {})(),
        budgets=type("Budgets", (BudgetService,), {})(),
        metering=Metering(),
        pricing=type("Prices", (PricingService,), {})(),
        usage=type("Usage", (UsageService,), {})(),
        chargeback=Reports(),
    )


@dataclass
class Doors:
    """Both doors in a thread of their own, on the event loop that the process uses too."""

    tls: Tls | None = None
    http2: bool = True
    users: Users = field(default_factory=Users)
    checks: dict[str, str] = field(default_factory=lambda: {"database": "ok"})
    telemetry: Telemetry = field(default_factory=Telemetry)

    def __enter__(self) -> Self:
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="doors")
        self._thread.start()
        self.run(self._open())
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self.close(5))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)

    async def close(self, grace_seconds: float) -> None:
        await asyncio.gather(self._http.close(grace_seconds), self._grpc.close(grace_seconds))

    async def _open(self) -> None:
        self.pipeline = Pipeline(Tokens(), self.telemetry, SystemClock())
        services = services_without_a_database(self.users)
        door = ConnectDoor(services, self.pipeline, self.telemetry, self._readiness)
        self._app, self._services = door, services
        anywhere = Address("127.0.0.1", 0)
        self._http = await self._open_http(anywhere)
        self._grpc = await self._open_grpc(anywhere)
        scheme = "http" if self.tls is None else "https"
        self.url = f"{scheme}://{self._http.address}"
        self.grpc_url = f"{scheme}://{self._grpc.address}"
        self.grpc_address = str(self._grpc.address)

    async def _open_http(self, address: Address) -> HttpDoor:
        return await serve_http(self._app, address, tls=self.tls, http2=self.http2)

    async def _open_grpc(self, address: Address) -> GrpcDoor:
        return await serve_grpc(self._services, self.pipeline, self._readiness, address, tls=self.tls)

    async def open_at(self, address: Address) -> None:
        """Try to open both doors at an address."""
        errors = await asyncio.gather(
            self._open_http(address), self._open_grpc(address), return_exceptions=True
        )
        assert [type(error) for error in errors] == [AddressInUseError] * 2
        raise AddressInUseError(address, "in use")

    async def _readiness(self) -> ReadinessReport:
        return ReadinessReport(self.checks)


@dataclass(frozen=True)
class Curl:
    """What `buf curl` printed and how it ended."""

    code: int
    out: str
    err: str

    @property
    def answer(self) -> dict[str, Any]:
        assert self.code == 0, self.err
        return dict(json.loads(self.out))

    @property
    def error(self) -> dict[str, Any]:
        assert self.code != 0, self.out
        return dict(json.loads(self.err[self.err.index("{") :]))


def buf_curl(
    url: str,
    rpc: str,
    body: object = None,
    *,
    protocol: str = "connect",
    token: str | None = "platform-admin-token",
    schema: bool = False,
    authority: Path | None = None,
    options: tuple[str, ...] = (),
    stdin: str | None = None,
) -> Curl:
    """Call an RPC (`UserService/SetBudget`) with the real `buf curl`, finding the services by reflection unless `schema`."""
    command = [str(BUF), "curl", "--protocol", protocol, *options]
    if schema:
        command += ["--schema", str(ROOT / "proto")]
    if protocol == "grpc" and url.startswith("http:"):
        command.append("--http2-prior-knowledge")
    if authority is not None:
        command += ["--cacert", str(authority)]
    if token is not None:
        command += ["-H", f"Authorization: Bearer {token}"]
    if body is not None:
        command += ["-d", body if isinstance(body, str) else json.dumps(body)]
    done = subprocess.run(
        [*command, f"{url}/bursar.v1.{rpc}"],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    return Curl(done.returncode, done.stdout, done.stderr)
