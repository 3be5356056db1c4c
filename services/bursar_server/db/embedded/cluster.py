"""Makes the database cluster: all of it or nothing, and never trusting anybody without a password."""

import os
import secrets
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bursar_server.db.embedded.account import ServerAccount, has_name
from bursar_server.db.embedded.binaries import Binaries
from bursar_server.db.embedded.leftovers import cluster_name
from bursar_server.db.embedded.programs import data_argument, run_program
from bursar_server.db.preconditions import DatabaseStartError

DATABASE = "bursar"
# Owns the database and nothing else; the one that Bursar works as.
ROLE = "bursar"
SUPERUSER = "postgres"
ROLES = (ROLE, SUPERUSER)

_STAGING_PREFIX = "data.new-"

# Written into postgresql.conf once: from then on they are the operator's. For a machine with two cores and 2 GB.
_SETTINGS = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "max_connections": "100",
    "shared_buffers": "128MB",
    "work_mem": "8MB",
    "random_page_cost": "1.1",
    "wal_compression": "on",
    "max_wal_size": "1GB",
    "checkpoint_timeout": "5min",
    "checkpoint_completion_target": "0.9",
    "autovacuum": "on",
    "autovacuum_naptime": "15s",
    "autovacuum_vacuum_scale_factor": "0.1",
    "io_method": "sync",  # no pool of I/O processes for a database that fits into memory
    "jit": "off",
    "max_locks_per_transaction": "128",  # a partition a month and table
    "max_logical_replication_workers": "0",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # What a statement did wrong goes to the one who sent it; a log of it would hold people's data and grow.
    "log_min_messages": "log",
    "log_checkpoints": "off",
}

_HOST_BASED_ACCESS = "# TYPE  DATABASE  USER  METHOD\nlocal   all       all   scram-sha-256\n"


def is_initialised(pgdata: Path) -> bool:
    """Whether `pgdata` holds a cluster; False also when it is missing or an empty folder.

    Raises:
        DatabaseStartError: there is something else in it.

    """
    if (pgdata / "PG_VERSION").is_file():
        return True
    if pgdata.exists() and any(pgdata.iterdir()):
        raise DatabaseStartError(f"{pgdata} has files in it but no PostgreSQL database; move them away")
    return False


def major_version(pgdata: Path) -> int:
    """Return the major version of PostgreSQL that made the cluster."""
    return int((pgdata / "PG_VERSION").read_text().strip())


def create_cluster(pgdata: Path, binaries: Binaries, account: ServerAccount) -> None:
    """Make the cluster with its roles and database, on disk for good; whoever dies in it leaves no `pgdata`.

    It is built beside, without syncs, synced once as a whole, and then renamed; the next call clears away what was
    left half built.
    """
    if not has_name(account.uid):
        raise DatabaseStartError(
            f"uid {account.uid} has no name on this machine, and PostgreSQL makes no database without one;"
            " add it to /etc/passwd, start Bursar as another user, or name a server with BURSAR_DATABASE_URL"
        )
    directory = pgdata.parent
    for abandoned in directory.glob(f"{_STAGING_PREFIX}*"):
        shutil.rmtree(abandoned, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=_STAGING_PREFIX, dir=directory))
    try:
        if account.leaves_root:
            _give_away(staging, account)
        _initialise(staging, binaries, account)
        set_passwords(staging, binaries, account, is_new=True)
        _sync_tree(staging)
        if pgdata.exists():
            pgdata.rmdir()  # is_initialised() saw it empty
        staging.rename(pgdata)
        _sync(directory)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _give_away(staging: Path, account: ServerAccount) -> None:
    try:
        os.chown(staging, account.uid, account.gid)
    except PermissionError as error:
        raise DatabaseStartError(
            f"PostgreSQL does not run as root, and this root may not give files to uid {account.uid};"
            " start Bursar as an ordinary user, or name a server with BURSAR_DATABASE_URL"
        ) from error


def _initialise(staging: Path, binaries: Binaries, account: ServerAccount) -> None:
    command = [
        str(binaries.initdb),
        "-D",
        data_argument(staging),
        f"--username={SUPERUSER}",
        "--auth=reject",  # until the file below is there
        "--encoding=UTF8",
        "--locale-provider=builtin",
        "--builtin-locale=C.UTF-8",
        "--locale=C",
        "--text-search-config=simple",
        "--data-checksums",
        "--no-sync",
        "--no-instructions",
    ]
    for name, value in _SETTINGS.items():
        command += ["-c", f"{name}={value}"]
    run_program(account, command, directory=staging)
    handle = os.open(staging / "pg_hba.conf", os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(handle, "w") as access:
        access.write(_HOST_BASED_ACCESS)


def set_passwords(pgdata: Path, binaries: Binaries, account: ServerAccount, *, is_new: bool) -> None:
    """Give the roles new random passwords, and keep them in files of mode 0600 beside `pgdata`.

    No server may run. `is_new` also makes Bursar's role and database, without syncs.
    """
    passwords = {role: secrets.token_urlsafe(32) for role in ROLES}
    for role in ROLES:  # a file that is there after a crash holds the password in force
        password_file(pgdata.parent, role).unlink(missing_ok=True)
    # A stand-alone backend reads statements up to a semicolon and an empty line.
    statements = [f"ALTER ROLE {SUPERUSER} PASSWORD '{passwords[SUPERUSER]}'"]
    if is_new:
        statements.append(f"CREATE ROLE {ROLE} LOGIN PASSWORD '{passwords[ROLE]}'")
        statements.append(f"CREATE DATABASE {DATABASE} OWNER {ROLE}")
    else:
        statements.append(f"ALTER ROLE {ROLE} PASSWORD '{passwords[ROLE]}'")
    backend = [str(binaries.postgres), "--single", "-j", "-D", data_argument(pgdata)]
    backend += ["-c", f"cluster_name={cluster_name(pgdata)}", "-c", "exit_on_error=on"]
    backend += ["-c", "log_min_messages=fatal", "-c", "log_min_error_statement=panic"]
    if is_new:
        backend.append("-F")
    given = "".join(f"{statement};\n\n" for statement in statements)
    run_program(account, [*backend, "template1"], directory=pgdata, given=given)
    for role, password in passwords.items():
        write_private(password_file(pgdata.parent, role), password + "\n")
    _sync(pgdata.parent)


def password_file(directory: Path, role: str) -> Path:
    """Return where a role's password lies."""
    return directory / f"{role}.password"


def write_private(path: Path, text: str) -> None:
    """Put `text` into a file of mode 0600 that belongs to the folder's owner: the old contents or the new, on disk."""
    holder = path.parent.stat()
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            if os.geteuid() == 0:
                os.fchown(file.fileno(), holder.st_uid, holder.st_gid)
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _sync_tree(folder: Path) -> None:
    """Put every file and folder on disk.

    A thousand files: one after the other (`initdb --sync-only`) they are a thousand flushes of the disk's cache, and
    `syncfs` would wait for whatever else somebody has just written. Side by side they share their flushes.
    """
    paths = [folder, *folder.rglob("*")]
    with ThreadPoolExecutor(8, thread_name_prefix="bursar-sync") as pool:
        for _ in pool.map(_sync, (path for path in paths if not path.is_symlink())):
            pass


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
