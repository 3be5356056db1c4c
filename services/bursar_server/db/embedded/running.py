"""The server that another process of this machine runs: a command that ends by itself joins it instead of starting one."""

from pathlib import Path
from urllib.parse import quote

import psycopg

from bursar_server.db.embedded import cluster
from bursar_server.db.embedded.directory import SocketFolder

_CONNECT_TIMEOUT_S = 3


def url_of_running(directory: Path) -> str | None:
    """Return the address of the server that runs in a folder, or None where none answers; it holds the password."""
    try:
        directory = directory.resolve(strict=True)
        password = cluster.password_file(directory, cluster.ROLE).read_text(encoding="utf-8").strip()
        # Its link, where the path is too long for a socket, stays: it is the other process's too.
        socket_folder = SocketFolder(directory / "data").path
    except OSError:
        return None
    url = (
        f"postgresql://{cluster.ROLE}:{quote(password)}@/{cluster.DATABASE}"
        f"?host={quote(str(socket_folder))}&port=5432"
    )
    try:
        psycopg.connect(url, connect_timeout=_CONNECT_TIMEOUT_S).close()
    except psycopg.OperationalError:
        return None
    return url
