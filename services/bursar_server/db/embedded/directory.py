"""The folder of an embedded database: who has it, and the short name that a client can use for its socket."""

import contextlib
import fcntl
import hashlib
import os
import stat
import tempfile
import time
from pathlib import Path

from bursar_server.db.embedded.leftovers import SOCKET_NAME
from bursar_server.db.preconditions import DatabaseStartError

# sockaddr_un holds 108 bytes on Linux and 104 on macOS, with the NUL at the end.
_LONGEST_SOCKET_PATH_BYTES = 103
_LOCK_NAME = "lock"
_PATIENCE_S = 0.5
_POLL_S = 0.005


class DirectoryInUseError(DatabaseStartError):
    """Another process has the database's folder; `pid` is its number where it is known."""

    def __init__(self, directory: Path, pid: int | None) -> None:
        super().__init__(f"{directory} is in use by pid {pid if pid is not None else 'of another process'}")
        self.pid = pid


class DirectoryLock:
    """Holds a folder for this process until it is released or the process ends, however it ends."""

    def __init__(self, directory: Path) -> None:
        """Take the folder, within half a second.

        Raises:
            DirectoryInUseError: another process has it, or another object of this process.

        """
        # The folder itself and not a file in it: it cannot be deleted from under its holder.
        self._handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        note = directory / _LOCK_NAME
        try:
            is_ours = _lock(self._handle)
        except OSError as error:
            self.release()
            raise DatabaseStartError(f"{directory} cannot be locked: {error.strerror}") from error
        if not is_ours:
            self.release()
            raise DirectoryInUseError(directory, _noted_pid(note))
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = os.open(note, flags, 0o600)
        try:
            give_to_holder(handle, directory)
            os.write(handle, f"{os.getpid()}\n".encode())
        finally:
            os.close(handle)

    def release(self) -> None:
        """Let the folder go; a second call does nothing."""
        handle, self._handle = self._handle, -1
        if handle >= 0:
            os.close(handle)


class SocketFolder:
    """A path by which a client reaches the socket in a folder: its own, or a short link where that is too long."""

    def __init__(self, pgdata: Path) -> None:
        self._handle = -1
        self._link: Path | None = None
        if len(os.fsencode(pgdata / SOCKET_NAME)) <= _LONGEST_SOCKET_PATH_BYTES:
            self.path = pgdata
        else:
            self.path = self._link = self._make_link(pgdata)

    def close(self) -> None:
        """Remove the link, if there is one."""
        if self._link is not None:
            self._link.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self._link.parent.rmdir()
            self._link = None
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _make_link(self, pgdata: Path) -> Path:
        digest = hashlib.sha256(os.fsencode(pgdata)).hexdigest()[:16]
        name = f"bursar-{os.geteuid()}-{digest}"
        for room in (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"):  # noqa: S108  (checked)
            if not room or len(os.fsencode(f"{room}/{name}/s/{SOCKET_NAME}")) > _LONGEST_SOCKET_PATH_BYTES:
                continue
            try:
                folder = _private_folder(Path(room) / name)
            except OSError:
                continue
            # Who cleans temporary folders by age passes over those that are locked (tmpfiles.d).
            self._handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            with contextlib.suppress(OSError):
                fcntl.flock(self._handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            link = folder / "s"
            link.unlink(missing_ok=True)
            link.symlink_to(pgdata)
            return link
        raise DatabaseStartError(
            f"{pgdata} is too long for a socket's path, and no temporary folder takes a link to it; use a shorter one"
        )


def _lock(handle: int) -> bool:
    """Lock an open folder; return False if somebody keeps it."""
    # A killed process lets go only when the kernel has cleared it away.
    for _ in range(round(_PATIENCE_S / _POLL_S)):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_POLL_S)
        else:
            return True
    return False


def give_to_holder(handle: int, directory: Path) -> None:
    """Where root works in somebody's folder, give that person the open file."""
    if os.geteuid() == 0:
        holder = directory.stat()
        os.fchown(handle, holder.st_uid, holder.st_gid)


def _private_folder(wanted: Path) -> Path:
    """Make a folder that is this process's alone: `wanted`, or one with a random name if somebody else has that."""
    with contextlib.suppress(FileExistsError):
        wanted.mkdir(mode=0o700)
    status = wanted.lstat()
    if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077:
        return wanted
    return Path(tempfile.mkdtemp(prefix="bursar-", dir=wanted.parent))


def _noted_pid(note: Path) -> int | None:
    try:
        text = note.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None
