"""A database whose clock a test sets: it steps, as a server's does that is set by hand or replaced by another."""

from datetime import UTC, datetime, timedelta

import psycopg

from support.metering import Ledger, new_id

#: Found before PostgreSQL's own by every connection made from now on.
_FUNCTIONS = (
    "CREATE TABLE public.clock_steps (step interval NOT NULL)",
    "INSERT INTO public.clock_steps VALUES ('0')",
    "CREATE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS"
    " 'SELECT pg_catalog.clock_timestamp() + step FROM public.clock_steps'",
    "CREATE FUNCTION public.now() RETURNS timestamptz LANGUAGE sql VOLATILE AS"
    " 'SELECT pg_catalog.now() + step FROM public.clock_steps'",
)


def make_settable(url: str) -> None:
    """Let the clock of a database be set with `set_clock`, for connections made from now on."""
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in _FUNCTIONS:
            connection.execute(statement)
        name = connection.execute("SELECT current_database()").fetchone()
        assert name is not None
        connection.execute(f'ALTER DATABASE "{name[0]}" SET search_path = public, pg_catalog')


def set_clock(ledger: Ledger, ahead: timedelta) -> None:
    """Set the database's clock so far ahead of this machine's, or behind it."""
    ledger.sql("UPDATE public.clock_steps SET step = %s", ahead)


async def pass_by(ledger: Ledger, ahead: timedelta) -> None:
    """Have some other call made, from which the process learns the new time."""
    tenant_id = ledger.tenant(f"passing-{new_id()}")
    key = ledger.key(tenant_id=tenant_id, secret=f"bur_{new_id()}")
    check = await ledger.check(key, new_id(datetime.now(UTC) + ahead))
    await ledger.release(key, check.request_id)
