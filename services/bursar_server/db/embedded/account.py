"""Whom the embedded server runs as: PostgreSQL refuses to be root."""

import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from bursar_server.db.preconditions import DatabaseStartError

# A packager may make an account of this name; without it root's server runs as nobody.
_PREFERRED_NAME = "bursar"
_FALLBACK_NAME = "nobody"


@dataclass(frozen=True)
class ServerAccount:
    """The owner of the database's files and processes.

    `leaves_root` is whether this process is root, so that the programs have to leave it; `uid` and `gid` are this
    process's own otherwise.
    """

    uid: int
    gid: int
    leaves_root: bool


def choose_account(directory: Path, pgdata: Path) -> ServerAccount:
    """Return the account for the database in `pgdata`, a folder of `directory`.

    Not root: this process's own. Root: the owner of `pgdata` if that is another, else the owner of `directory`, and where
    that is root, or nobody that this machine knows, the account `bursar` or, without one, `nobody`.

    Raises:
        DatabaseStartError: `pgdata` belongs to somebody else than the account that has to open it.

    """
    owner = pgdata.stat() if pgdata.exists() else None
    if os.geteuid() != 0:
        if owner is not None and owner.st_uid != os.geteuid():
            raise DatabaseStartError(
                f"{pgdata} belongs to uid {owner.st_uid} and this process is uid {os.geteuid()};"
                " start Bursar as that user, or as root"
            )
        return ServerAccount(os.geteuid(), os.getegid(), leaves_root=False)
    if owner is not None and owner.st_uid != 0:
        return ServerAccount(owner.st_uid, owner.st_gid, leaves_root=True)
    if (pgdata / "PG_VERSION").exists():
        raise DatabaseStartError(
            f"{pgdata} belongs to root, and PostgreSQL does not run as root;"
            f" give it to an ordinary account: chown -R {_FALLBACK_NAME} {pgdata}"
        )
    holder = directory.stat()
    if holder.st_uid != 0 and has_name(holder.st_uid):
        return ServerAccount(holder.st_uid, holder.st_gid, leaves_root=True)
    return _unprivileged_account()


def has_name(uid: int) -> bool:
    """Whether the machine knows the account; `initdb` insists on it, the server does not."""
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _unprivileged_account() -> ServerAccount:
    for name in (_PREFERRED_NAME, _FALLBACK_NAME):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid != 0:
            return ServerAccount(entry.pw_uid, entry.pw_gid, leaves_root=True)
    raise DatabaseStartError(
        "PostgreSQL does not run as root, and this machine has no account `nobody` or `bursar`;"
        " start Bursar as an ordinary user, or name a server with BURSAR_DATABASE_URL"
    )
