"""The PostgreSQL that everything here runs on, on a real disk, and pgbench on the same server."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit, urlunsplit

import psycopg
from psycopg import sql

from bench.figures import percentile
from bench.machine import tree_cpu_s
from bursar_server.db.embedded import EmbeddedPostgres
from bursar_server.db.embedded.binaries import find_binaries

# As many branches as there are clients at most, or pgbench would wait for its own locks more than for the server.
SCALE = 32
PGBENCH_DATABASE = "pgbench"
ONE_ROW = "UPDATE one_row SET amount = amount + 1 WHERE id = 1;\n"


@dataclass(frozen=True)
class Transactions:
    """What pgbench measured: transactions a second, and how long they took in milliseconds."""

    per_s: float
    mean_ms: float
    p99_ms: float = 0.0


class Server:
    """A running server; databases are made on it, pgbench's own among them."""

    def __init__(self, embedded: EmbeddedPostgres, folder: Path) -> None:
        self._embedded = embedded
        self._folder = folder
        self._logs = 0
        self._prepared = False
        self.program = find_binaries(None).home / "bin" / "pgbench"

    def cpu_s(self) -> float:
        """Return the processor time of the server and all of its processes, in seconds."""
        return tree_cpu_s(self._embedded.pid or 0)

    def create(self, name: str) -> str:
        """Make an empty database; return its URL."""
        with psycopg.connect(self._embedded.superuser_url, autocommit=True) as connection:
            owner = sql.Identifier(urlsplit(self._embedded.url).username or "")
            connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(name), owner))
        return urlunsplit(urlsplit(self._embedded.url)._replace(path=f"/{quote(name)}"))

    async def pgbench(
        self, clients: int, seconds: float, *, one_row: bool = False, percentiles: bool = False
    ) -> Transactions:
        """Run pgbench for so long: its TPC-B-like script with prepared statements, or updates of one row."""
        if not self._prepared:
            await self._prepare()
        self._logs += 1
        prefix = self._folder / f"log-{self._logs}"
        # pgbench takes whole seconds; a fraction is a number of transactions instead.
        length = ["-T", str(round(seconds))] if seconds >= 1 else ["-t", "20"]
        arguments = ["-n", "-M", "prepared", "-c", str(clients), "-j", str(min(2, clients)), *length]
        if one_row:
            arguments += ["-f", str(self._script())]
        if percentiles:
            arguments += ["--log", f"--log-prefix={prefix}"]
        output = await self._run(*arguments)
        rate = re.search(r"tps = ([0-9.]+)", output)
        mean = re.search(r"latency average = ([0-9.]+) ms", output)
        if rate is None or mean is None:
            raise RuntimeError(f"pgbench said:\n{output}")
        p99 = _p99_ms(prefix) if percentiles else 0.0
        return Transactions(float(rate[1]), float(mean[1]), p99)

    async def _prepare(self) -> None:
        url = self.create(PGBENCH_DATABASE)
        await self._run("-i", "-q", "-s", str(SCALE))
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE TABLE one_row (id int PRIMARY KEY, amount bigint NOT NULL)")
            connection.execute("INSERT INTO one_row VALUES (1, 0)")
        self._prepared = True

    def _script(self) -> Path:
        path = self._folder / "one-row.sql"
        path.write_text(ONE_ROW)
        return path

    async def _run(self, *arguments: str) -> str:
        url = urlsplit(self._embedded.url)
        environment = {
            "PGHOST": parse_qs(url.query)["host"][0],
            "PGPORT": "5432",
            "PGUSER": url.username or "",
            "PGPASSWORD": unquote(url.password or ""),
            "PGDATABASE": PGBENCH_DATABASE,
        }
        process = await asyncio.create_subprocess_exec(
            str(self.program), *arguments, env=environment, cwd=self._folder,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        output, _ = await process.communicate()
        if process.returncode:
            sys.stderr.write(output.decode())
            raise RuntimeError(f"pgbench ended with {process.returncode}")
        return output.decode()


def _p99_ms(prefix: Path) -> float:
    """Return the 99th percentile of pgbench's logs: the third field of each line is how long it took, in µs."""
    times = [
        int(line.split(" ", 3)[2])
        for log in prefix.parent.glob(f"{prefix.name}.*")
        for line in log.read_text().splitlines()
    ]
    return percentile(times, 99) / 1000


@contextmanager
def running_server(folder: Path) -> Iterator[Server]:
    """Run a server in `folder`, which lies on a disk: what is durable here survives the machine."""
    with EmbeddedPostgres(folder / "postgres") as embedded:
        logs = folder / "pgbench"
        logs.mkdir()
        yield Server(embedded, logs)
