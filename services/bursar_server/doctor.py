"""`bursar doctor`: looks for what is wrong with an installation and says how to mend it; changes nothing."""

import contextlib
import json
import os
import ssl
import stat
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from bursar_server.bootstrap import POSTGRES_FOLDER
from bursar_server.config import Config
from bursar_server.db.diagnosis import DatabaseState, examine
from bursar_server.db.embedded import EmbeddedPostgres
from bursar_server.db.embedded.running import url_of_running
from bursar_server.db.preconditions import DatabaseStartError
from bursar_server.kit.addresses import Address
from bursar_server.kit.clock import Clock
from bursar_server.rpc.http_server import ssl_context
from bursar_server.rpc.listen import AddressInUseError, bind

MOST_CLOCK_DIFFERENCE = timedelta(seconds=5)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `remedy` is empty where all is well."""

    subject: str
    state: str
    remedy: str = ""


def run_doctor(config: Config, clock: Clock, tell: Callable[[str], None]) -> int:
    """Tell every finding, a line each; return 1 where something has to be mended, else 0."""
    mend = 0
    for finding in findings(config, clock):
        tell(f"{'ok  ' if not finding.remedy else 'MEND'}  {finding.subject}: {finding.state}")
        if finding.remedy:
            mend += 1
            tell(f"      -> {finding.remedy}")
    tell("All is well." if not mend else f"{mend} to mend.")
    return 1 if mend else 0


def findings(config: Config, clock: Clock) -> Iterator[Finding]:
    """Yield what there is to say, from the files to the database."""
    yield _data_directory(config.data_dir)
    for given, path in (
        (config.admin_token, config.admin_token_file),
        (config.sidecar_token, config.sidecar_token_file),
    ):
        yield _secret(given, path)
    if config.tls is not None:
        yield _certificate(config)
    answers = _answers(config)
    for name, address in (("BURSAR_LISTEN", config.listen), ("BURSAR_GRPC_LISTEN", config.grpc_listen)):
        yield _port(name, address, answers)
    yield from _database(config, clock)


def _data_directory(path: Path) -> Finding:
    subject = f"data directory {path}"
    if not path.exists():
        return Finding(subject, "is not there yet; the first start makes it")
    if not path.is_dir() or not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        return Finding(
            subject, "cannot be written", f"make it a directory of the user that runs Bursar: {path}"
        )
    return Finding(subject, "is there")


def _secret(given: str | None, path: Path) -> Finding:
    subject = f"token {path.name}"
    if given:
        return Finding(subject, "is given by the configuration")
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        return Finding(subject, "is not there yet; the first start makes it")
    if mode & 0o077:
        return Finding(subject, f"can be read by others (mode {mode:04o})", f"chmod 600 {path}")
    return Finding(subject, "is there, for its owner alone")


def _certificate(config: Config) -> Finding:
    if config.tls is None:
        return Finding("certificate", "is not configured")
    try:
        ssl_context(config.tls, http2=config.http2)
    except OSError as error:
        return Finding(
            "certificate",
            f"cannot be used: {error.strerror or error}",
            "BURSAR_TLS_CERT needs the PEM chain, BURSAR_TLS_KEY the key that belongs to it, without a password",
        )
    return Finding("certificate", "fits its key")


def _answers(config: Config) -> str:
    """Return what a Bursar at the configured address says of itself, or nothing where none answers."""
    scheme = "http" if config.tls is None else "https"
    url = f"{scheme}://{config.listen.reachable}/readyz"
    context = None
    if config.tls is not None:
        # It is asked whether somebody is there, not who: nothing is sent, and the name may be another's.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    try:
        with contextlib.closing(urllib.request.urlopen(url, timeout=3, context=context)) as answer:  # noqa: S310
            body = answer.read(10_000)
    except urllib.error.HTTPError as error:
        with error:
            body = error.read(10_000)
    except OSError:
        return ""
    try:
        return str(json.loads(body)["status"])
    except (ValueError, KeyError, TypeError):
        return ""


def _port(name: str, address: Address, answers: str) -> Finding:
    subject = f"{name} {address}"
    if not address.port:
        return Finding(subject, "takes any free port")
    try:
        bind(address).close()
    except AddressInUseError as error:
        if answers:
            return Finding(subject, f"a Bursar is running here, and is {answers}")
        return Finding(subject, str(error), f"end the program that uses it, or choose another with {name}")
    return Finding(subject, "is free")


def _database(config: Config, clock: Clock) -> Iterator[Finding]:
    if config.database_url:
        yield from _examined("database", config.database_url, clock)
        return
    subject = "embedded database"
    directory = config.data_dir / POSTGRES_FOLDER
    if not directory.exists():
        yield Finding(subject, "is not there yet; the first start makes it")
        return
    running = url_of_running(directory)
    if running is not None:
        yield from _examined(f"{subject} (running)", running, clock)
        return
    server = EmbeddedPostgres(directory)
    try:
        url = server.start()
    except DatabaseStartError as error:
        yield Finding(subject, str(error), f"see the log in {directory}")
    else:
        try:
            yield from _examined(subject, url, clock)
        finally:
            server.stop()


def _examined(subject: str, url: str, clock: Clock) -> Iterator[Finding]:
    try:
        state = examine(url)
    except DatabaseStartError as error:
        yield Finding(
            subject, str(error), "check BURSAR_DATABASE_URL, and that the server runs and lets us in"
        )
        return
    yield Finding(subject, f"PostgreSQL {state.version}")
    if state.refusal:
        yield Finding("settings of the server", "unfit for a ledger", state.refusal)
    yield _schema(state)
    difference = abs(state.now - clock.now())
    if difference > MOST_CLOCK_DIFFERENCE:
        seconds = difference.total_seconds()
        yield Finding("clock", f"differs from the database's by {seconds:.0f} s", "let NTP set both clocks")
    else:
        yield Finding("clock", "agrees with the database's")


def _schema(state: DatabaseState) -> Finding:
    if state.revision != state.needed_revision:
        found = f"is at {state.revision or 'nothing'}, this version needs {state.needed_revision}"
        return Finding("schema", found, "bursar migrate (a start does it too)")
    if not state.prices:
        return Finding("prices", "there are none", "start the control plane once: it imports the catalogue")
    return Finding("schema", f"is at {state.revision}, with {state.prices} prices")
