"""Every setting of the control plane in one table: flags, environment, file and docs/configuration.md come from it."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bursar_server.kit.addresses import Address
from bursar_server.kit.errors import BursarError
from bursar_server.kit.money import nanos_of_text

PREFIX = "BURSAR_"


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: its variable, flag, default as a person would write it, unit, meaning, and reader.

    `parse` returns the value or raises ValueError saying what it must be. `path` is a further name in the YAML file,
    dotted for nested maps; a secret's value is never shown.
    """

    name: str
    flag: str
    default: str | None
    unit: str
    help: str
    parse: Callable[[str], Any]
    secret: bool = False
    path: str = ""

    @property
    def key(self) -> str:
        """Its name in the YAML file and in Config: the variable's without the prefix, in lower case."""
        return self.name.removeprefix(PREFIX).lower()


def parse_address(text: str) -> Address:
    """Return what `host:port` says; `:8080` is every interface."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535 or re.search(r"[\s/@]", host):
        raise ValueError("must be host:port, such as 127.0.0.1:8080 (port 0 takes a free one)")
    return Address(host, int(port))


def _whole(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,18}", text) or not least <= int(text) <= most:
            raise ValueError(f"must be a whole number from {least} to {most}")
        return int(text)

    return parse


def _one_of(*names: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.upper() not in names:
            raise ValueError(f"must be {' or '.join((', '.join(names[:-1]), names[-1]))}")
        return text.upper()

    return parse


def _switch(text: str) -> bool:
    known = {
        "on": True,
        "true": True,
        "1": True,
        "yes": True,
        "off": False,
        "false": False,
        "0": False,
        "no": False,
    }
    if text.lower() not in known:
        raise ValueError("must be on or off")
    return known[text.lower()]


def _usd(text: str) -> int:
    try:
        return nanos_of_text(text, "it")
    except BursarError as error:
        raise ValueError(error.message.removeprefix("it: ")) from error


def _database_url(text: str) -> str:
    if not urlsplit(text).scheme.startswith("postgres"):
        raise ValueError("must be postgresql://user:password@host:5432/database")
    return text


def _token(text: str) -> str:
    if not re.fullmatch(r"[!-~]{16,512}", text):
        raise ValueError("must be 16 to 512 printable ASCII characters without spaces")
    return text


@dataclass(frozen=True, slots=True)
class OnMissing:
    """What happens to a model without a price: a policy, and with a fallback its nanos per million tokens."""

    policy: str
    fallback_rates: Mapping[str, int] | None = None


def _on_missing(text: str) -> OnMissing:
    if text.upper() in ("RECORD_ZERO", "BLOCK"):
        return OnMissing(text.upper())
    inputs, slash, outputs = text.partition("/")
    if not slash:
        raise ValueError("must be RECORD_ZERO, BLOCK or a fallback price such as 3.00/15.00")
    return OnMissing("FALLBACK_PRICE", {"input": _usd(inputs.strip()), "output": _usd(outputs.strip())})


SETTINGS: tuple[Setting, ...] = (
    Setting(
        "BURSAR_DATABASE_URL",
        "--database-url",
        None,
        "URL",
        "The PostgreSQL (15 or newer) to use. Without it Bursar runs one of its own in the data directory.",
        _database_url,
        secret=True,
    ),
    Setting(
        "BURSAR_DATA_DIR",
        "--data-dir",
        "./.bursar",
        "path",
        "Where the embedded database and the generated tokens are.",
        Path,
    ),
    Setting(
        "BURSAR_LISTEN",
        "--listen",
        "127.0.0.1:8080",
        "host:port",
        "Connect, gRPC-Web and gRPC, `/healthz`, `/readyz`, `/metrics`. Port 0 takes a free one.",
        parse_address,
    ),
    Setting(
        "BURSAR_GRPC_LISTEN",
        "--grpc-listen",
        "127.0.0.1:50051",
        "host:port",
        "The native gRPC door. Port 0 takes a free one.",
        parse_address,
    ),
    Setting(
        "BURSAR_ADMIN_TOKEN",
        "--admin-token",
        None,
        "text",
        "The access token of the operator (role platform_admin). Without it one is made at the first start, in the "
        "file admin-token of the data directory (mode 0600).",
        _token,
        secret=True,
    ),
    Setting(
        "BURSAR_SIDECAR_TOKEN",
        "--sidecar-token",
        None,
        "text",
        "The access token of sidecars. Without it one is made at the first start, in the file sidecar-token of the "
        "data directory (mode 0600).",
        _token,
        secret=True,
    ),
    Setting(
        "BURSAR_TLS_CERT",
        "--tls-cert",
        None,
        "path",
        "A certificate chain (PEM) turns TLS on, on both doors; with BURSAR_TLS_KEY.",
        Path,
    ),
    Setting("BURSAR_TLS_KEY", "--tls-key", None, "path", "The certificate's key (PEM).", Path),
    Setting(
        "BURSAR_HTTP2",
        "--http2",
        "on",
        "on or off",
        "HTTP/2 beside HTTP/1.1 on BURSAR_LISTEN. Off, gRPC and reflection are on the gRPC door only.",
        _switch,
    ),
    Setting(
        "BURSAR_HOLD_LEASE_MS",
        "--hold-lease-ms",
        "60000",
        "ms",
        "How long a hold lives unless the sidecar renews it while its call is open.",
        _whole(1000, 3_600_000),
    ),
    Setting(
        "BURSAR_SWEEP_DELAY_MS",
        "--sweep-delay-ms",
        "60000",
        "ms",
        "How long after a start holds whose lease has ended are left alone, so that sidecars can report first what "
        "their calls really cost.",
        _whole(0, 3_600_000),
    ),
    Setting(
        "BURSAR_DEFAULT_DAILY_BUDGET_USD",
        "--default-daily-budget-usd",
        None,
        "USD",
        "A daily budget that every new user gets. 0 is a limit of nothing; without it new users have no budget.",
        _usd,
        path="users.default_daily_budget_usd",
    ),
    Setting(
        "BURSAR_NO_BUDGET_POLICY",
        "--no-budget-policy",
        "ALLOW",
        "policy",
        "For a principal that no budget of scope user, key, group or tenant matches: ALLOW or DENY.",
        _one_of("ALLOW", "DENY"),
    ),
    Setting(
        "BURSAR_PRICING_ON_MISSING",
        "--pricing-on-missing",
        "RECORD_ZERO",
        "policy",
        "For a model without a price: RECORD_ZERO, BLOCK, or a fallback price in US dollars for a million input and "
        "a million output tokens, such as 3.00/15.00.",
        _on_missing,
        path="pricing.on_missing",
    ),
    Setting(
        "BURSAR_LANES",
        "--lanes",
        "1",
        "lanes",
        "How many batches of Checks and Deducts run at a time; tenants are spread over them.",
        _whole(1, 64),
    ),
    Setting(
        "BURSAR_SHUTDOWN_TIMEOUT_MS",
        "--shutdown-timeout-ms",
        "20000",
        "ms",
        "How long accepted calls may take to finish after SIGTERM.",
        _whole(0, 3_600_000),
    ),
    Setting(
        "BURSAR_LOG_LEVEL",
        "--log-level",
        "INFO",
        "level",
        "DEBUG, INFO, WARNING or ERROR. Logs are lines of JSON on stderr.",
        _one_of("DEBUG", "INFO", "WARNING", "ERROR"),
    ),
)
