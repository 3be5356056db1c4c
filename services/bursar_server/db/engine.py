"""Connections to PostgreSQL: a pool for the admin side, and single ones for the lanes of the hot path."""

from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from bursar_server.db.preconditions import DatabaseStartError

Engine = AsyncEngine
"""A pool of connections, as bootstrap hands it on."""

_CONNECT_TIMEOUT_S = 10
# Spellings of a PostgreSQL URL that people bring along from other programs.
_SCHEMES = ("postgresql+psycopg://", "postgres://")

# A peer that went away without a word is noticed after about 30 s.
_KEEPALIVES = {
    "keepalives": 1,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}

_LANE_SETTINGS = {
    "idle_in_transaction_session_timeout": "2s",
    "statement_timeout": "5s",
    "lock_timeout": "500ms",
    # Every statement of a lane finds its rows by their keys, however large or badly estimated the tables are.
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
}


def connection_parameters(url: str, *, application_name: str, settings: dict[str, str]) -> dict[str, Any]:
    """Return what psycopg needs to connect to `url`, with the session's settings and time zone UTC.

    `url` is a `postgresql://` URL (or a `key=value` string) as libpq reads it; what it says itself wins over the
    defaults here, but not over `settings`. They go along with the start of the connection and cost no round trip.

    Raises:
        DatabaseStartError: `url` is none; the message does not repeat it, because it may hold a password.

    """
    for scheme in _SCHEMES:
        if url.startswith(scheme):
            url = "postgresql://" + url.removeprefix(scheme)
    if not url.strip():
        raise DatabaseStartError("the database URL is empty")
    try:
        given = conninfo_to_dict(url)
        _check_ports(str(given.get("port") or ""))
    except (psycopg.ProgrammingError, ValueError):
        raise DatabaseStartError(
            "the database URL cannot be read; it looks like postgresql://user:password@host:5432/database,"
            " with special characters percent-encoded"
        ) from None
    options = [str(given.get("options") or "")]
    options += [f"-c {name}={value}" for name, value in {"TimeZone": "UTC", **settings}.items()]
    return {
        "connect_timeout": _CONNECT_TIMEOUT_S,
        "application_name": application_name,
        "client_encoding": "UTF8",
        **_KEEPALIVES,
        **given,
        "options": " ".join(part for part in options if part),
    }


def _check_ports(ports: str) -> None:
    """Raise ValueError unless these are port numbers with commas between them; libpq looks at them too late."""
    for port in ports.split(","):
        if port and not 0 < int(port) < 65_536:
            raise ValueError("no port")


def build_engine(
    url: str,
    *,
    pool_size: int = 10,
    pool_timeout_s: float = 5.0,
    statement_timeout_ms: int = 30_000,
    lock_timeout_ms: int = 5_000,
    application_name: str = "bursar",
) -> AsyncEngine:
    """Return an engine for `url`; it opens no connection yet, at most `pool_size`, and none beyond.

    Who finds all of them busy waits `pool_timeout_s`. A transaction that its client left open is ended after a
    minute. The URL and its password appear in no text of the engine and in none of its errors.
    """
    parameters = connection_parameters(
        url,
        application_name=application_name,
        settings={
            "statement_timeout": f"{statement_timeout_ms}ms",
            "lock_timeout": f"{lock_timeout_ms}ms",
            "idle_in_transaction_session_timeout": "60s",
        },
    )
    return create_async_engine(
        "postgresql+psycopg://",
        connect_args=parameters,
        isolation_level="READ COMMITTED",
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=pool_timeout_s,
        pool_pre_ping=True,
        use_native_hstore=False,
        hide_parameters=True,
    )


def connect_lane(url: str, *, application_name: str = "bursar-lane") -> psycopg.Connection[tuple[Any, ...]]:
    """Return a blocking connection for one lane of the hot path: autocommit, UTC, with the lane's short timeouts.

    A statement has 5 s, a lock 500 ms, and a transaction that waits for its client 2 s.

    Raises:
        psycopg.OperationalError: the server does not answer; the text has no password.

    """
    parameters = connection_parameters(url, application_name=application_name, settings=_LANE_SETTINGS)
    return psycopg.connect(autocommit=True, **parameters)
