"""Running as a process: the event loop, signals, the ready line, and what is said when it cannot start."""

import asyncio
import gc
import json
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import uvloop

from bursar_server.bootstrap import (
    POSTGRES_FOLDER,
    Rooms,
    database_of,
    proof_of,
    rooms_of,
    running_control_plane,
)
from bursar_server.config import Config
from bursar_server.db.embedded.directory import DirectoryInUseError
from bursar_server.db.embedded.running import url_of_running
from bursar_server.db.migrate import current_revision
from bursar_server.db.preconditions import DatabaseStartError
from bursar_server.kit.addresses import Address
from bursar_server.kit.caller import Caller, Role
from bursar_server.kit.clock import SystemClock
from bursar_server.kit.errors import BursarError
from bursar_server.rpc.listen import AddressInUseError, bind
from bursar_server.telemetry import set_up_logging, telemetry_of
from bursar_server.tokens.model import AccessToken
from bursar_server.verify.model import Scope
from bursar_server.verify.screen import Screen

# Objects that live as long as the process are left out of every collection, and collections are rare.
_GC_THRESHOLD = 50_000
_INTERRUPTED = 130

# What a process can fail to start with. Each says what is wrong; ssl.SSLError is an OSError.
START_ERRORS = (DatabaseStartError, AddressInUseError, BursarError, OSError)


def run(work: Coroutine[Any, Any, int]) -> int:
    """Run until the work ends; return its exit code."""
    return uvloop.run(work)


def stop_signal() -> asyncio.Event:
    """Return an event that SIGTERM or SIGINT sets; the second of them ends the process at once."""
    stop = asyncio.Event()

    def heed() -> None:
        if stop.is_set():
            os._exit(_INTERRUPTED)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, heed)
    return stop


def announce(line: Mapping[str, object]) -> None:
    """Print the ready line on stdout, where nothing else is ever printed."""
    sys.stdout.write(json.dumps({"event": "ready", **line}) + "\n")
    sys.stdout.flush()


def settle_memory() -> None:
    """Let the garbage collector pass over what has been loaded."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD, 10, 10)


def try_ports(*addresses: Address) -> None:
    """Raise AddressInUseError now, before a database is started, where a port is taken."""
    for address in addresses:
        if address.port:
            bind(address).close()


def why_not_started(
    error: BaseException, config: Config, settings: Mapping[str, Address] | None = None
) -> str:
    """Return what to tell a person whose process could not start."""
    if isinstance(error, AddressInUseError):
        known = {"BURSAR_LISTEN": config.listen, "BURSAR_GRPC_LISTEN": config.grpc_listen, **(settings or {})}
        name = next((name for name, address in known.items() if address == error.address), "BURSAR_LISTEN")
        return f"cannot listen on {error}; is Bursar running already? Else choose another with {name}"
    if isinstance(error, DirectoryInUseError):
        return f"{error}; is Bursar running already?"
    return str(error)


async def _end_of(stop: asyncio.Event, failed: asyncio.Event) -> int:
    """Wait until the process is told to stop, or cannot go on; return the exit code."""
    waits = [asyncio.create_task(event.wait()) for event in (stop, failed)]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for task in waits:
        task.cancel()
    return 1 if failed.is_set() else 0


async def serve(config: Config, environ: Mapping[str, str], tell: Callable[[str], None]) -> int:
    """Run the control plane until SIGTERM or SIGINT, finishing what was accepted; return the exit code.

    `tell` says a line to the person who started it.
    """
    set_up_logging(config.log_level)
    telemetry = telemetry_of(environ)
    stop = stop_signal()
    ready = False
    try:
        try_ports(config.listen, config.grpc_listen)
        async with running_control_plane(config, telemetry) as plane:
            ready = True
            settle_memory()
            announce({"listen": str(plane.listen), "grpc_listen": str(plane.grpc_listen)})
            return await _end_of(stop, plane.failed)
    except START_ERRORS as error:
        if ready:
            raise
        tell(f"bursar: {why_not_started(error, config)}")
        return 1
    finally:
        telemetry.close()
    return 0


def joined(config: Config) -> Config:
    """Return the configuration for a command beside a running Bursar: with the embedded database that it runs, if any."""
    if config.database_url:
        return config
    url = url_of_running(config.data_dir / POSTGRES_FOLDER)
    return config if url is None else replace(config, database_url=url)


async def migrate(config: Config, tell: Callable[[str], None]) -> int:
    """Bring the database to the schema of this version."""
    async with database_of(joined(config)) as url:
        tell(f"The database is at revision {current_revision(url)}.")
    return 0


async def reported(work: Coroutine[Any, Any, int], config: Config, tell: Callable[[str], None]) -> int:
    """Do the work of a command that ends by itself; say an error in one line instead of a traceback."""
    try:
        return await work
    except START_ERRORS as error:
        tell(f"bursar: {why_not_started(error, config)}")
        return 1


async def make_token(
    config: Config,
    *,
    role: Role | None,
    user: str,
    tenants: tuple[str, ...],
    name: str,
    lifetime: timedelta | None,
    tell: Callable[[str], None],
) -> int:
    """Make an access token and print it on stdout; what to do with it goes to the person by `tell`."""
    operator = Caller(Role.PLATFORM_ADMIN, "bursar token create")
    expire_time = None if lifetime is None else SystemClock().now() + lifetime
    async with rooms_of(joined(config)) as rooms:
        token, secret = await rooms.tokens.create(
            operator, role=role, name=name, tenants=tenants, user=user, expire_time=expire_time
        )
        made = await _made_with(rooms, operator, token)
    sys.stdout.write(secret + "\n")
    until = "for good" if token.expire_time is None else f"until {token.expire_time:%Y-%m-%d %H:%M} UTC"
    tell(f"A token with the role {token.role.lower()}, {until}. It is shown this once; send it as a header:")
    tell("  Authorization: Bearer <token>")
    if made:
        tell(
            f"There was no user {made}: it was made. If that is a slip, delete it with UserService/DeleteUser."
        )
    return 0


async def _made_with(rooms: Rooms, operator: Caller, token: AccessToken) -> str:
    """Return the e-mail of the person that a token was made for, where the person was made with it; else ""."""
    if token.user_id is None:
        return ""
    async with rooms.unit_of_work.begin() as conn:
        person = await rooms.users.resolve(conn, operator, str(token.user_id))
    return person.email if person.create_time >= token.create_time else ""


async def verify(config: Config, scope: Scope, screen: Screen) -> int:
    """Check the books against themselves; return 0 where they are clean, 1 where not, 2 where it could not be done."""
    joined_config = joined(config)
    folder = config.data_dir / POSTGRES_FOLDER
    if not joined_config.database_url and not folder.exists():
        screen.failure(f"there is no database in {config.data_dir}; name one with BURSAR_DATABASE_URL")
        return 2
    try:
        async with proof_of(joined_config) as proof:
            outcome = await proof.run(scope, screen.difference, screen.progress)
    except START_ERRORS as error:
        screen.failure(why_not_started(error, config))
        return 2
    screen.outcome(outcome)
    return 0 if outcome.clean else 1
