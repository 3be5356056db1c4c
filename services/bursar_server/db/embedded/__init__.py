"""The database of those who name none: a PostgreSQL server that Bursar starts and stops (design: storage).

See docs/adr/0002-embedded-postgresql.md. `EmbeddedPostgres` is the door; the other modules are its parts.
"""

from bursar_server.db.embedded.directory import DirectoryInUseError
from bursar_server.db.embedded.server import EmbeddedPostgres

__all__ = ["DirectoryInUseError", "EmbeddedPostgres"]
