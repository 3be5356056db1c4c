"""Alembic's entry: runs the migrations on the connection that `bursar_server.db.migrate` hands over."""

from alembic import context
from sqlalchemy import Connection, event

from bursar_server.db.tables import metadata

# A migration that waits for a lock makes everybody queue behind it: it gives up instead, and the next start tries again.
_LOCK_TIMEOUT = "5s"


def _run(connection: Connection) -> None:
    @event.listens_for(connection, "begin")
    def _limit_waits(connection: Connection) -> None:
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")

    context.configure(connection=connection, target_metadata=metadata, transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()


_connection = context.config.attributes.get("connection")
if not isinstance(_connection, Connection):
    raise TypeError("run migrations with bursar_server.db.migrate.upgrade(url)")
_run(_connection)
