"""Builds the control plane: the only place that makes objects and hands them to each other."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

from bursar_server.audit.service import AuditService
from bursar_server.budgets.rpc import BudgetRpc
from bursar_server.budgets.service import BudgetService
from bursar_server.chargeback.rpc import ChargebackRpc
from bursar_server.chargeback.service import ChargebackService
from bursar_server.config import Config
from bursar_server.db import migrate
from bursar_server.db.embedded import EmbeddedPostgres
from bursar_server.db.engine import Engine, build_engine, connect_lane
from bursar_server.db.partitions import ensure_partitions
from bursar_server.db.unit_of_work import UnitOfWork
from bursar_server.grants.service import GrantService
from bursar_server.groups.service import GroupService
from bursar_server.keys.service import KeyService
from bursar_server.kit import ids
from bursar_server.kit.addresses import Address
from bursar_server.kit.caller import Role
from bursar_server.kit.clock import Clock, SystemClock
from bursar_server.kit.errors import BursarError
from bursar_server.metering.lane import Lane
from bursar_server.metering.model import NoBudgetPolicy, Policy, PricingOnMissing
from bursar_server.metering.observer import MeteringObserver
from bursar_server.metering.rpc import MeteringRpc
from bursar_server.metering.service import MeteringService
from bursar_server.notify.service import NotifyService
from bursar_server.pricing.rpc import PricingRpc
from bursar_server.pricing.service import CatalogueService, PricingService
from bursar_server.rpc.app import ConnectDoor, ReadinessReport
from bursar_server.rpc.grpc_door import serve_grpc
from bursar_server.rpc.http_server import serve_http
from bursar_server.rpc.pipeline import Pipeline
from bursar_server.rpc.services import Services
from bursar_server.secrets import ensure_secret_file
from bursar_server.telemetry import Telemetry
from bursar_server.tenants.rpc import TenantRpc
from bursar_server.tenants.service import TenantService
from bursar_server.tokens.service import TokenService
from bursar_server.usage.rpc import UsageRpc
from bursar_server.usage.service import UsageService
from bursar_server.users.rpc import UserRpc
from bursar_server.users.service import UserService
from bursar_server.verify.service import SNAPSHOT_MS, VerifyService

POSTGRES_FOLDER = "postgres"
PARTITION_INTERVAL_S = 60.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rooms:
    """The services of the admin side, on one database."""

    unit_of_work: UnitOfWork
    audit: AuditService
    tenants: TenantService
    budgets: BudgetService
    keys: KeyService
    groups: GroupService
    users: UserService
    grants: GrantService
    tokens: TokenService
    pricing: PricingService
    catalogue: CatalogueService
    usage: UsageService
    chargeback: ChargebackService


@dataclass(frozen=True, slots=True)
class ControlPlane:
    """A control plane that answers. `failed` is set when it cannot go on: its embedded database ended by itself."""

    listen: Address
    grpc_listen: Address
    database_url: str
    sidecar_token: str
    rooms: Rooms
    telemetry: Telemetry
    failed: asyncio.Event


def build_rooms(engine: Engine, clock: Clock, default_daily_budget_nanos: int | None = None) -> Rooms:
    """Return the admin side's services; nothing is read or written yet."""
    unit_of_work = UnitOfWork(engine)
    audit = AuditService(clock=clock)
    tenants = TenantService(audit=audit, clock=clock)
    budgets = BudgetService(tenants=tenants, audit=audit, clock=clock)
    keys = KeyService(tenants=tenants, audit=audit, clock=clock)
    groups = GroupService(tenants=tenants, budgets=budgets, audit=audit, clock=clock)
    users = UserService(
        tenants=tenants, budgets=budgets, keys=keys, groups=groups, audit=audit, clock=clock,
        default_daily_budget_nanos=default_daily_budget_nanos,
    )  # fmt: skip
    usage = UsageService(tenants=tenants, users=users)
    return Rooms(
        unit_of_work=unit_of_work,
        audit=audit,
        tenants=tenants,
        budgets=budgets,
        keys=keys,
        groups=groups,
        users=users,
        grants=GrantService(tenants=tenants, audit=audit, clock=clock),
        tokens=TokenService(
            unit_of_work=unit_of_work, tenants=tenants, users=users, groups=groups, audit=audit, clock=clock
        ),
        pricing=PricingService(tenants=tenants, audit=audit),
        catalogue=CatalogueService(tenants=tenants, audit=audit),
        usage=usage,
        chargeback=ChargebackService(unit_of_work=unit_of_work, tenants=tenants, usage=usage, audit=audit),
    )


@asynccontextmanager
async def database_of(
    config: Config,
    on_exit: Callable[[int], None] | None = None,
    prepare: Callable[[str], None] = migrate.prepare,
) -> AsyncIterator[str]:
    """Give the URL of the database to use: the one named, or the embedded one, started and stopped here.

    It is migrated, unless `prepare` does something else.
    """
    if config.database_url:
        await asyncio.to_thread(prepare, config.database_url)
        yield config.database_url
        return
    config.data_dir.mkdir(parents=True, exist_ok=True)
    server = EmbeddedPostgres(config.data_dir / POSTGRES_FOLDER, on_exit=on_exit)
    url = await asyncio.to_thread(server.start)
    try:
        await asyncio.to_thread(prepare, url)
        yield url
    finally:
        await asyncio.to_thread(server.stop)


@asynccontextmanager
async def rooms_of(config: Config) -> AsyncIterator[Rooms]:
    """Give the admin side's services on a migrated database: for commands that need no doors."""
    async with database_of(config) as url:
        engine = build_engine(url, pool_size=2)
        try:
            yield build_rooms(engine, SystemClock(), config.default_daily_budget_nanos)
        finally:
            await engine.dispose()


@asynccontextmanager
async def proof_of(config: Config) -> AsyncIterator[VerifyService]:
    """Give the proof of a database's books; nothing is migrated, and a schema of another version is refused."""
    async with database_of(config, prepare=migrate.require_current) as url:
        engine = build_engine(
            url,
            pool_size=1,
            statement_timeout_ms=SNAPSHOT_MS,
            application_name="bursar-verify",
        )
        try:
            yield VerifyService(engine=engine, clock=SystemClock())
        finally:
            await engine.dispose()


@asynccontextmanager
async def running_control_plane(config: Config, telemetry: Telemetry) -> AsyncIterator[ControlPlane]:
    """Run a control plane: it answers on both doors while the context is open, and finishes what it accepted after.

    Raises DatabaseStartError, DirectoryInUseError or AddressInUseError where it cannot start; each says what to do.
    """
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        failed = asyncio.Event()
        url = await stack.enter_async_context(database_of(config, on_exit=_failure(failed)))
        engine = build_engine(url)
        stack.push_async_callback(engine.dispose)
        rooms = build_rooms(engine, clock, config.default_daily_budget_nanos)
        await _first_rows(config, rooms)
        sidecar_token = await _tokens(config, rooms.tokens)
        metering, lanes = _metering(config, url, rooms, clock, telemetry)
        for lane in lanes:
            lane.start()
        stack.push_async_callback(_stop_lanes, lanes)
        readiness = _readiness(rooms.unit_of_work, lanes)
        services = _services(rooms, metering)
        pipeline = Pipeline(rooms.tokens, telemetry, clock)
        http = await serve_http(
            ConnectDoor(services, pipeline, telemetry, readiness),
            config.listen,
            tls=config.tls,
            http2=config.http2,
        )
        stack.push_async_callback(http.close, config.shutdown_timeout_ms / 1000)
        grpc = await serve_grpc(services, pipeline, readiness, config.grpc_listen, tls=config.tls)
        stack.push_async_callback(grpc.close, config.shutdown_timeout_ms / 1000)
        for work in (
            metering.sweep(config.sweep_delay_ms / 1000),
            _keep_partitions(rooms.unit_of_work),
        ):
            stack.push_async_callback(_cancel, asyncio.create_task(work))
        telemetry.start()
        yield ControlPlane(http.address, grpc.address, url, sidecar_token, rooms, telemetry, failed)


async def _first_rows(config: Config, rooms: Rooms) -> None:
    """Make what every installation has from the start: partitions, the catalogue's prices, the fallback price."""
    async with rooms.unit_of_work.begin() as conn:
        await ensure_partitions(conn)
    async with rooms.unit_of_work.begin() as conn:
        await rooms.catalogue.ensure(conn)
    async with rooms.unit_of_work.begin() as conn:
        await rooms.catalogue.ensure_fallback(conn, config.fallback_rates)


async def _tokens(config: Config, tokens: TokenService) -> str:
    """Make sure that the admin's and the sidecar's tokens exist; return the sidecar's."""
    admin = config.admin_token or ensure_secret_file(config.admin_token_file, ids.new_token_secret)
    sidecar = config.sidecar_token or ensure_secret_file(config.sidecar_token_file, ids.new_token_secret)
    await tokens.ensure_token(admin, Role.PLATFORM_ADMIN, "admin")
    await tokens.ensure_token(sidecar, Role.SIDECAR, "sidecar")
    return sidecar


def _metering(
    config: Config, url: str, rooms: Rooms, clock: Clock, telemetry: Telemetry
) -> tuple[MeteringService, list[Lane]]:
    policy = Policy(
        hold_lease_ms=config.hold_lease_ms,
        no_budget=NoBudgetPolicy(config.no_budget_policy),
        on_missing=PricingOnMissing.BLOCK
        if config.pricing_on_missing == "BLOCK"
        else PricingOnMissing.RECORD_ZERO,
    )
    observer = MeteringObserver(telemetry, NotifyService())
    lanes = [
        Lane(f"bursar-lane-{number}", lambda: connect_lane(url), policy, clock, observer.batch_committed)
        for number in range(config.lanes)
    ]
    telemetry.metrics.gauge(
        "bursar.metering.waiting", "Calls that wait for a lane.", lambda: sum(lane.depth for lane in lanes)
    )

    async def ensure_user(tenant_id: UUID, email: str) -> None:
        async with rooms.unit_of_work.begin() as conn:
            await rooms.users.ensure(conn, tenant_id, email, "system")

    return MeteringService(lanes, ensure_user, policy, clock), lanes


def _services(rooms: Rooms, metering: MeteringService) -> Services:
    work = rooms.unit_of_work
    return Services(
        users=UserRpc(
            unit_of_work=work, users=rooms.users, budgets=rooms.budgets, grants=rooms.grants, audit=rooms.audit,
            tenants=rooms.tenants, groups=rooms.groups,
        ),
        tenants=TenantRpc(
            unit_of_work=work, tenants=rooms.tenants, keys=rooms.keys, groups=rooms.groups, users=rooms.users
        ),
        budgets=BudgetRpc(
            unit_of_work=work, budgets=rooms.budgets, tenants=rooms.tenants, users=rooms.users, groups=rooms.groups,
            keys=rooms.keys,
        ),
        metering=MeteringRpc(metering),
        pricing=PricingRpc(unit_of_work=work, pricing=rooms.pricing),
        usage=UsageRpc(unit_of_work=work, usage=rooms.usage),
        chargeback=ChargebackRpc(chargeback=rooms.chargeback),
    )  # fmt: skip


def _readiness(
    unit_of_work: UnitOfWork, lanes: list[Lane]
) -> Callable[[], "asyncio.Future[ReadinessReport]"]:
    async def report() -> ReadinessReport:
        database = "ok"
        try:
            async with asyncio.timeout(2), unit_of_work.begin():
                pass
        except (BursarError, TimeoutError):
            database = "does not answer"
        metering = "ok" if all(lane.alive for lane in lanes) else "a lane has ended"
        return ReadinessReport({"database": database, "metering": metering})

    return report  # type: ignore[return-value]


async def _keep_partitions(unit_of_work: UnitOfWork) -> None:
    while True:
        await asyncio.sleep(PARTITION_INTERVAL_S)
        try:
            async with unit_of_work.begin() as conn:
                made = await ensure_partitions(conn)
        except BursarError:
            continue  # the database is away, which others say
        except Exception:
            logger.exception(
                "partitions cannot be made; calls are refused when the months that exist are over"
            )
            continue
        if made:
            logger.info("partitions made", extra={"partitions": made})


async def _stop_lanes(lanes: list[Lane]) -> None:
    await asyncio.gather(*(lane.stop() for lane in lanes))


async def _cancel(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _failure(failed: asyncio.Event) -> Callable[[int], None]:
    """Return what the embedded database calls, from another thread, when it ends without being asked to."""
    loop = asyncio.get_running_loop()

    def ended(status: int) -> None:
        logger.critical("the embedded database ended; stopping", extra={"status": status})
        loop.call_soon_threadsafe(failed.set)

    return ended
