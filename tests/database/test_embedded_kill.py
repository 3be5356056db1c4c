"""`kill -9` of anything at any instant: the next start finds what was committed, and nothing in its way."""

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bursar_server.db.embedded import EmbeddedPostgres
from bursar_server.db.embedded.account import choose_account
from bursar_server.db.embedded.binaries import find_binaries
from bursar_server.db.embedded.leftovers import cluster_name, end_leftovers
from bursar_server.db.embedded.programs import data_argument, launch_command
from bursar_server.db.preconditions import DatabaseStartError
from support.database import memory_folder
from support.embedded import copied, execute, is_running, owner, servers_of, wait_until


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder that only this account can walk, in memory where there is enough of it."""
    with memory_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def made() -> Iterator[Path]:
    with memory_folder() as folder:
        yield made_in(folder / "made")


def made_in(directory: Path) -> Path:
    with EmbeddedPostgres(directory) as server:
        execute(server.url, "CREATE TABLE notes (note int)")
    return directory


@pytest.fixture
def database(made: Path) -> Iterator[Path]:
    """The folder of a server that was stopped; nothing runs in it when the test has ended."""
    yield made
    for pid in servers_in(made):
        os.kill(pid, signal.SIGKILL)


def servers_in(directory: Path) -> list[int]:
    return [one.pid for one in servers_of(directory)]


def notes(directory: Path) -> list[int]:
    """Start the server, take the notes out of it, and stop it."""
    with EmbeddedPostgres(directory) as server:
        taken = "WITH taken AS (DELETE FROM notes RETURNING note) SELECT note FROM taken ORDER BY note"
        return execute(server.url, taken)


def start_by_hand(directory: Path, *, mark: str) -> int:
    """Start a server in `directory` that nobody stops: its parent ends at once, and tells no kernel of itself."""
    pgdata = directory / "data"
    account = choose_account(directory, pgdata)
    command = [str(find_binaries(None).postgres), "-D", data_argument(pgdata), "-c", "listen_addresses="]
    command += ["-c", "unix_socket_directories=.", "-c", f"cluster_name={mark}"]
    program = (
        "import os, subprocess, sys; command = sys.argv[1:]; command[5] = str(os.getpid());"
        "quiet = dict.fromkeys(('stdin', 'stdout', 'stderr'), subprocess.DEVNULL);"
        "print(subprocess.Popen(command, start_new_session=True, **quiet).pid, flush=True);"
        "__import__('time').sleep(0.3)"
    )
    launch = launch_command(account, command, death_signal=None)
    done = subprocess.run(
        [sys.executable, "-c", program, *launch], cwd=pgdata, capture_output=True, text=True, check=True
    )
    pid = int(done.stdout)
    wait_until(lambda: "ready" in (pgdata / "postmaster.pid").read_text(), "a server started by hand")
    return pid


def test_a_second_process_is_told_who_has_the_folder(database: Path) -> None:
    with owner(database) as first:
        with owner(database) as second:
            assert second.error == f"{database} is in use by pid {first.process.pid}"
        assert execute(first.url, "SELECT 1") == [1]


def test_the_server_ends_with_its_killed_parent_and_the_next_start_is_immediate(database: Path) -> None:
    with owner(database) as killed:
        execute(killed.url, "INSERT INTO notes VALUES (1)")
        killed.process.kill()
        killed.process.wait()
        # No pause: the orphan may be in the middle of its shutdown.
        assert notes(database) == [1]
        assert not is_running(killed.postgres_pid)
        assert servers_in(database) == []


def test_a_killed_parent_alone_is_enough_to_end_the_server(database: Path) -> None:
    with owner(database) as killed:
        killed.process.kill()
        wait_until(lambda: servers_in(database) == [], "the orphan's end")


def test_where_the_kernel_does_not_tell_a_watchdog_does(database: Path) -> None:
    with owner(database, without_kernel=True) as killed:
        execute(killed.url, "INSERT INTO notes VALUES (1)")
        killed.process.kill()
        wait_until(lambda: servers_in(database) == [], "the orphan's end")
    assert notes(database) == [1]
    with owner(database, without_kernel=True) as stopped:
        children = children_of(stopped.process.pid)
        assert len(children) == 2
        stopped.process.communicate(timeout=20)
        assert stopped.process.returncode == 0
        assert not any(is_running(pid) for pid in children)


def children_of(pid: int) -> list[int]:
    listing = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True
    ).stdout
    pairs = [line.split() for line in listing.splitlines()]
    return [int(child) for child, parent in pairs if int(parent) == pid]


@pytest.mark.parametrize("with_children", [False, True])
def test_parent_and_server_killed_together(database: Path, with_children: bool) -> None:
    """What was acknowledged comes back from the log, and is there once."""
    with owner(database) as killed:
        for number in range(20):
            execute(killed.url, f"INSERT INTO notes VALUES ({number})")
        os.kill(killed.process.pid, signal.SIGKILL)
        for pid in servers_in(database) if with_children else [killed.postgres_pid]:
            os.kill(pid, signal.SIGKILL)
        assert notes(database) == list(range(20))


def test_the_server_killed_under_a_living_parent(database: Path) -> None:
    server = EmbeddedPostgres(database)
    execute(server.start(), "INSERT INTO notes VALUES (1)")
    os.kill(server.pid or 0, signal.SIGKILL)
    wait_until(lambda: server.pid is None, "its end")
    server.stop()
    assert notes(database) == [1]


def test_a_first_start_that_is_killed_is_simply_done_again(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from bursar_server.db.embedded import EmbeddedPostgres;"
        "EmbeddedPostgres(Path(sys.argv[1])).start()"
    )
    for moment in ("data.new-*/base/1", "bursar.password"):
        process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)])
        wait_until(lambda moment=moment: any(tmp_path.glob(moment)), moment)  # type: ignore[misc]
        process.kill()
        process.wait()
    with EmbeddedPostgres(tmp_path) as server:
        assert execute(server.url, "SELECT 1") == [1]
    assert not list(tmp_path.glob("data.new-*"))


def test_ctrl_c_in_a_terminal_leaves_the_server_to_its_parent(database: Path) -> None:
    """It goes to every process of the group; the parent still has work to finish."""
    with owner(database) as running:
        assert os.getsid(running.postgres_pid) == running.postgres_pid


def test_an_orphan_that_nothing_stops_is_stopped(database: Path) -> None:
    pid = start_by_hand(database, mark=cluster_name(database / "data"))
    assert notes(database) == []
    assert not is_running(pid)


def test_a_server_that_hears_nothing_any_more_is_killed(database: Path) -> None:
    with owner(database) as killed:
        execute(killed.url, "INSERT INTO notes VALUES (1)")
        os.kill(killed.postgres_pid, signal.SIGSTOP)
        killed.process.kill()
        seconds = itertools.count()  # every look at the clock is a second later
        end_leftovers(database / "data", timeout_s=600, monotonic=lambda: next(seconds))
        assert not is_running(killed.postgres_pid)
    assert notes(database) == [1]


def test_children_of_a_killed_server_that_still_work_are_stopped(database: Path) -> None:
    with owner(database) as killed:
        program = "import psycopg, sys; psycopg.connect(sys.argv[1]).execute(sys.argv[2])"
        statement = "SELECT count(*) FROM generate_series(1, 1e12) /* busy */"
        busy = subprocess.Popen(
            [sys.executable, "-c", program, killed.url, statement], stderr=subprocess.DEVNULL
        )
        query = "SELECT pid FROM pg_stat_activity WHERE query LIKE '%busy */' AND pid <> pg_backend_pid()"
        wait_until(lambda: execute(killed.url, query) != [], "a statement")
        (backend,) = execute(killed.url, query)
        os.kill(killed.postgres_pid, signal.SIGSTOP)  # or it would shut down before it is killed
        killed.process.kill()
        os.kill(killed.postgres_pid, signal.SIGKILL)
        assert is_running(backend)
        assert notes(database) == []
        assert not is_running(backend)
        busy.kill()
        busy.wait()


def test_a_server_that_somebody_else_started_is_not_touched(database: Path) -> None:
    pid = start_by_hand(database, mark="mine")
    with pytest.raises(DatabaseStartError, match=f"a postgres that Bursar did not start, pid {pid};"):
        EmbeddedPostgres(database).start()
    assert is_running(pid)
    os.kill(pid, signal.SIGINT)
    wait_until(lambda: not is_running(pid), "its end")
    assert notes(database) == []


def write_text(text: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_text(text)

    return write


@pytest.mark.parametrize(
    "spoil",
    [
        write_text(""),
        write_text("\n"),
        write_text("not a number\n/nowhere\n"),
        write_text("999999999999999999999999\n"),
        write_text("4194303\n/nowhere\n1\n5432\n.\n"),
        write_text("-4194303\n"),
        write_text("1\n/nowhere\n1\n5432\n.\n"),
        write_text(f"{os.getpid()}\n/nowhere\n1\n5432\n.\n"),
        lambda path: path.symlink_to("/etc/passwd"),
        lambda path: os.mkfifo(path),
    ],
    ids=["empty", "blank", "words", "huge", "dead", "dead-alone", "init", "ourselves", "link", "fifo"],
)
@pytest.mark.parametrize("name", ["postmaster.pid", ".s.PGSQL.5432.lock"])
def test_a_file_that_names_no_server_of_ours_is_cleared_away(
    made: Path, name: str, spoil: Callable[[Path], None]
) -> None:
    pgdata = made / "data"
    spoil(pgdata / name)
    end_leftovers(pgdata, timeout_s=5)
    assert not os.path.lexists(pgdata / name)


def test_a_start_gets_over_such_files(database: Path) -> None:
    for name in ("postmaster.pid", ".s.PGSQL.5432.lock"):
        (database / "data" / name).write_text(f"{os.getpid()}\n/nowhere\n1\n5432\n.\n")
    assert notes(database) == []


def test_another_server_of_the_same_account_is_told_apart(database: Path, tmp_path: Path) -> None:
    """A restored copy names a server that runs elsewhere: that one is not ours to stop or to wait for."""
    copy = copied(database, tmp_path / "copy")
    with EmbeddedPostgres(database) as elsewhere:
        (copy / "data" / "postmaster.pid").write_text((database / "data" / "postmaster.pid").read_text())
        assert notes(copy) == []
        assert execute(elsewhere.url, "SELECT 1") == [1]
