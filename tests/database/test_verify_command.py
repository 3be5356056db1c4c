"""The command `bursar verify`: what it prints, and how it ends."""

import json
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner, Result

from bursar_server.cli import command


def verify(url: str, *arguments: str, **environ: str) -> Result:
    return CliRunner().invoke(command, ["verify", "--database-url", url, *arguments], env=environ)


@pytest.fixture
def tampered_url(database_url: str) -> str:
    """A database whose everybody's tenant has a balance of no budget."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("UPDATE audit_heads SET hash = repeat('7', 64)")
        connection.execute(
            "INSERT INTO balances (tenant_id, budget_id, period_key, period_start, period_end, held_nanos)"
            " SELECT tenant_id, gen_random_uuid(), 'x', now(), now(), 5 FROM tenants WHERE name = 'default'"
        )
    return database_url


def test_clean_books_end_with_0(database_url: str) -> None:
    done = verify(database_url)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1].startswith("Clean: every invariant holds. 2 tenants")
    assert done.stderr == ""


def test_differences_end_with_1(tampered_url: str) -> None:
    done = verify(tampered_url)
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines if "|" in line] == ["I12", "I2", "I9", "I9"]
    assert lines[-1].startswith("4 differences. ")
    as_json = verify(tampered_url, "--json", "--tenant", "default")
    *differences, summary = map(json.loads, as_json.stdout.splitlines())
    assert as_json.exit_code == 1
    assert [found["invariant"] for found in differences] == ["I12", "I2", "I9"]
    assert (summary["clean"], summary["tenants"], len(summary["left_out"])) == (False, 1, 1)
    later = verify(tampered_url, "--since", "2999-01-01")
    assert [line.split()[0] for line in later.stdout.splitlines() if "|" in line] == ["I2", "I9", "I9"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tenant", "nowhere"], "bursar: no such tenant: 'nowhere'"),
        (["--since", "yesterday"], "a day or a time such as 2026-11-01"),
        (["--database-url", "postgresql://nobody@127.0.0.1:1/none"], "bursar: cannot reach the database"),
    ],
)
def test_what_cannot_be_looked_at_ends_with_2(database_url: str, arguments: list[str], message: str) -> None:
    done = verify(database_url, *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_schema_of_another_version_is_left_as_it_is(empty_database_url: str) -> None:
    done = verify(empty_database_url)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "run `bursar migrate` first" in done.stderr
    with psycopg.connect(empty_database_url) as connection:
        tables = connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone()
    assert tables == (0,)


def test_no_database_is_made(tmp_path: Path) -> None:
    folder = tmp_path / "nothing"
    done = CliRunner().invoke(command, ["verify", "--data-dir", str(folder)])
    assert done.exit_code == 2
    assert "there is no database in" in done.stderr
    assert not folder.exists()
