"""Every setting of the sidecar in one table: name, flag, default, unit, meaning."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

E = TypeVar("E", bound=enum.Enum)


class OnUnreachable(enum.Enum):
    """What happens to a call while the control plane cannot be asked."""

    CLOSED = "CLOSED"
    OPEN = "OPEN"
    LAST_KNOWN_GOOD = "LAST_KNOWN_GOOD"


class OnDisconnect(enum.Enum):
    """What happens to the provider's answer when the app goes away."""

    READ_ON = "READ_ON"
    CANCEL = "CANCEL"


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: its environment variable, flag, default as a person would write it, unit, meaning, and reader."""

    name: str
    flag: str
    default: str | None
    unit: str
    help: str
    parse: Callable[[str], Any]
    secret: bool = False

    @property
    def key(self) -> str:
        """Its name in the YAML file: the variable's without the prefix, in lower case."""
        return self.name.removeprefix("BURSAR_").lower()


def _whole(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9_]{1,18}", text) or not least <= int(text) <= most:
            raise ValueError(f"must be a whole number from {least:,} to {most:,}")
        return int(text)

    return parse


def _listen(text: str) -> tuple[str, int]:
    host, separator, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not separator or not host or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError("must be host:port, for example 127.0.0.1:4000 (port 0 takes a free one)")
    return host, int(port)


def _url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("must be http://host:port or https://host:port")
    return text.rstrip("/")


def _one_of(kind: type[E], text: str) -> E:
    try:
        return kind[text.upper()]
    except KeyError:
        raise ValueError(f"must be one of {', '.join(kind.__members__)}") from None


def _key(text: str) -> str:
    if not text.startswith("bur_") or not text.isascii() or not text.isprintable() or len(text) > 200:
        raise ValueError("must be an API key of Bursar, which begins with bur_")
    return text


def _level(text: str) -> str:
    if text.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise ValueError("must be DEBUG, INFO, WARNING or ERROR")
    return text.upper()


_MINUTE_MS = 60_000
_HOUR_MS = 60 * _MINUTE_MS
_MEBIBYTE = 1 << 20

SETTINGS: tuple[Setting, ...] = (
    Setting(
        "BURSAR_SIDECAR_LISTEN",
        "--listen",
        "127.0.0.1:4000",
        "host:port",
        "Where apps reach the sidecar. Port 0 takes a free one, which the ready line names.",
        _listen,
    ),
    Setting(
        "BURSAR_CONTROL_PLANE_URL",
        "--control-plane-url",
        "http://127.0.0.1:8080",
        "URL",
        "Where the sidecar asks whether a call may be made, and reports what it cost.",
        _url,
    ),
    Setting(
        "BURSAR_CONTROL_PLANE_CA",
        "--control-plane-ca",
        None,
        "path",
        "Certificates (PEM) to trust for an https control plane; the system's when unset.",
        Path,
    ),
    Setting(
        "BURSAR_SIDECAR_TOKEN",
        "--token",
        None,
        "text",
        "The sidecar's access token. When unset it is read from the file sidecar-token in the data directory.",
        str,
        secret=True,
    ),
    Setting(
        "BURSAR_DATA_DIR",
        "--data-dir",
        "./.bursar",
        "path",
        "Where the control plane writes its tokens.",
        Path,
    ),
    Setting(
        "BURSAR_OUTBOX_DIR",
        "--outbox-dir",
        None,
        "path",
        "Where charges wait for the control plane; one sidecar for each. When unset: outbox in the data directory.",
        Path,
    ),
    Setting(
        "BURSAR_OUTBOX_MAX_BYTES",
        "--outbox-max-bytes",
        str(256 * _MEBIBYTE),
        "bytes",
        "How large the outbox may grow. When it is full, new calls get 503; nothing that waits is dropped.",
        _whole(_MEBIBYTE, 1 << 40),
    ),
    Setting(
        "BURSAR_API_KEY",
        "--api-key",
        None,
        "bur_ key",
        "One key for an app that has none: its own provider credential then passes through untouched.",
        _key,
        secret=True,
    ),
    Setting(
        "BURSAR_ON_UNREACHABLE",
        "--on-unreachable",
        "CLOSED",
        "policy",
        "While the control plane cannot be asked: CLOSED answers 503, OPEN lets calls through and charges them later, "
        "LAST_KNOWN_GOOD lets through what was left. A budget's own on_unreachable goes before it.",
        lambda text: _one_of(OnUnreachable, text),
    ),
    Setting(
        "BURSAR_LAST_KNOWN_MAX_AGE_MS",
        "--last-known-max-age-ms",
        str(_HOUR_MS),
        "ms",
        "For how long after a principal's last Check LAST_KNOWN_GOOD goes by its answer; then calls get 503.",
        _whole(0, 7 * 24 * _HOUR_MS),
    ),
    Setting(
        "BURSAR_ON_DISCONNECT",
        "--on-disconnect",
        "READ_ON",
        "policy",
        "When the app goes away: READ_ON reads the answer on to learn its usage, CANCEL stops it and estimates.",
        lambda text: _one_of(OnDisconnect, text),
    ),
    Setting(
        "BURSAR_READ_ON_MAX_MS",
        "--read-on-max-ms",
        str(2 * _MINUTE_MS),
        "ms",
        "How long an answer is read on after the app went away; then it is stopped and estimated.",
        _whole(0, _HOUR_MS),
    ),
    Setting(
        "BURSAR_READ_ON_MAX_BYTES",
        "--read-on-max-bytes",
        str(16 * _MEBIBYTE),
        "bytes",
        "How much of an answer is read on after the app went away; then it is stopped and estimated.",
        _whole(0, 1 << 40),
    ),
    Setting(
        "BURSAR_REQUEST_MAX_BYTES",
        "--request-max-bytes",
        str(50 * _MEBIBYTE),
        "bytes",
        "The largest request body that is accepted; larger ones get 413.",
        _whole(1024, 1 << 32),
    ),
    Setting(
        "BURSAR_OPEN_CALLS_MAX",
        "--open-calls-max",
        "4096",
        "calls",
        "How many calls may be open at a time; more get 503.",
        _whole(1, 1_000_000),
    ),
    Setting(
        "BURSAR_BODY_TIMEOUT_MS",
        "--body-timeout-ms",
        str(_MINUTE_MS),
        "ms",
        "How long an app may take to send a request's body; then it gets 408.",
        _whole(100, _HOUR_MS),
    ),
    Setting(
        "BURSAR_CHECK_TIMEOUT_MS",
        "--check-timeout-ms",
        "7000",
        "ms",
        "How long a Check may take. One that waits for other calls' holds may take 65 s, whatever this says.",
        _whole(10, _HOUR_MS),
    ),
    Setting(
        "BURSAR_DEDUCT_WAIT_MS",
        "--deduct-wait-ms",
        "2000",
        "ms",
        "How long the end of an answer waits for its Deduct; then it goes out, the charge being safe in the outbox.",
        _whole(0, _HOUR_MS),
    ),
    Setting(
        "BURSAR_UPSTREAM_CONNECT_TIMEOUT_MS",
        "--upstream-connect-timeout-ms",
        "10000",
        "ms",
        "How long connecting to a provider may take; then the app gets 504 and nothing is charged.",
        _whole(10, _HOUR_MS),
    ),
    Setting(
        "BURSAR_UPSTREAM_ANSWER_TIMEOUT_MS",
        "--upstream-answer-timeout-ms",
        str(10 * _MINUTE_MS),
        "ms",
        "How long a provider may take to begin its answer; then the app gets 504 and the input is charged, estimated.",
        _whole(10, 24 * _HOUR_MS),
    ),
    Setting(
        "BURSAR_UPSTREAM_IDLE_TIMEOUT_MS",
        "--upstream-idle-timeout-ms",
        str(5 * _MINUTE_MS),
        "ms",
        "How long an answer may pause; then it is broken off, and what came is charged.",
        _whole(10, 24 * _HOUR_MS),
    ),
    Setting(
        "BURSAR_TRUE_UP_MS",
        "--true-up-ms",
        str(_MINUTE_MS),
        "ms",
        "How long a provider is asked what a call consumed whose answer broke off; then it is charged with its estimate. "
        "0 never asks.",
        _whole(0, _HOUR_MS),
    ),
    Setting(
        "BURSAR_SHUTDOWN_TIMEOUT_MS",
        "--shutdown-timeout-ms",
        "30000",
        "ms",
        "How long open calls may take to finish after SIGTERM; what is left is charged as far as it came.",
        _whole(0, _HOUR_MS),
    ),
    Setting("BURSAR_LOG_LEVEL", "--log-level", "INFO", "level", "DEBUG, INFO, WARNING or ERROR.", _level),
)
