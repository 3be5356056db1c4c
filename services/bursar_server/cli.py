"""The command `bursar`. What a command needs is imported when it runs: `--help` and a wrong setting answer at once."""

import os
import shutil
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from bursar_server.config import Config, ConfigError, load, read_file
from bursar_server.settings import SETTINGS, parse_address

_TEACHES = """Govern what an organisation spends on LLM calls: budgets decided before each call, an exact ledger after it.

\b
On one machine, to try it or to run it:
  bursar up                       everything: database, control plane, sidecar
  bursar demo                     a guided walk on a throw-away installation
In production, one command a process:
  bursar migrate                  bring a database to this version's schema (a start does it too)
  bursar serve                    the control plane alone, any number of them on one database
  bursar-sidecar                  the reverse proxy beside an app
And then:
  bursar token create --role billing_admin
  bursar doctor                   what is wrong here, and how to mend it
  bursar verify                   proof that the books add up, while they are used

Every setting is a flag, an environment variable and a name in the file that --config names; flags win over the
environment, the environment over the file. docs/configuration.md lists them all.
"""

_WIDE = {"max_content_width": 110, "help_option_names": ["-h", "--help"]}


def main() -> None:
    """Run the command line."""
    command(prog_name="bursar")


def tell(text: str) -> None:
    """Say a line to a person: on stderr, because stdout is for programs."""
    click.echo(text, err=True)


@click.group(help=_TEACHES, context_settings=_WIDE)
@click.version_option(package_name="bursar")
def command() -> None:
    """Hold the subcommands."""


def configured(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the flags of the named settings (all where none is named) and hand it the Config."""
    wanted = [setting for setting in SETTINGS if not names or setting.name in names]

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        def with_config(config_file: Path | None, **given: Any) -> None:
            flags = {setting.name: given.pop(setting.key) or "" for setting in wanted}
            try:
                config = load(flags, os.environ, read_file(config_file))
            except ConfigError as error:
                tell(f"bursar: {error}")
                sys.exit(2)
            function(config, **given)

        with_config.__doc__ = function.__doc__
        with_config.__name__ = function.__name__
        decorated: Callable[..., None] = with_config
        for setting in reversed(wanted):
            text = f"{setting.help} [{setting.name}; {setting.unit}; default {setting.default or 'none'}]"
            decorated = click.option(setting.flag, setting.key, metavar="TEXT", help=text)(decorated)
        return click.option(
            "--config", "config_file", type=click.Path(path_type=Path), envvar="BURSAR_CONFIG",
            help="A YAML file of settings. [BURSAR_CONFIG]",
        )(decorated)  # fmt: skip

    return decorate


@command.command(short_help="The control plane alone.")
@configured()
def serve(config: Config) -> None:
    """Run the control plane alone.

    When it answers it prints one line of JSON on stdout: {"event":"ready","listen":"…","grpc_listen":"…"}.
    SIGTERM or Ctrl-C stops it after what was accepted is finished.
    """
    from bursar_server import process

    sys.exit(process.run(process.serve(config, os.environ, tell)))


@command.command(short_help="Everything on this machine, until Ctrl-C.")
@click.option(
    "--sidecar-listen",
    envvar="BURSAR_SIDECAR_LISTEN",
    default="127.0.0.1:4000",
    metavar="TEXT",
    help="Where apps reach the sidecar. [BURSAR_SIDECAR_LISTEN; host:port; default 127.0.0.1:4000]",
)
@configured()
def up(config: Config, sidecar_listen: str) -> None:
    """Run everything on this machine: database, control plane, sidecar; and a fake provider without a provider's key.

    A provider's key in its usual variable (OPENAI_API_KEY, ANTHROPIC_API_KEY, GEMINI_API_KEY …) makes calls real.
    When all of it answers, one line of JSON on stdout says where, and stderr says what to try next. Ctrl-C stops it.
    """
    try:
        address = parse_address(sidecar_listen)
    except ValueError as error:
        tell(f"bursar: BURSAR_SIDECAR_LISTEN (--sidecar-listen): {error}; it is {sidecar_listen!r}")
        sys.exit(2)
    # gRPC would tell of every child that is started beside it; its own state never reaches one.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    from bursar_server import process
    from bursar_server.up import run_up

    sys.exit(process.run(run_up(config, address, os.environ, tell)))


@command.command(short_help="Bring the database to this version's schema.")
@configured("BURSAR_DATABASE_URL", "BURSAR_DATA_DIR")
def migrate(config: Config) -> None:
    """Bring the database to the schema of this version; a start of the control plane does it too."""
    from bursar_server import process

    sys.exit(process.run(process.reported(process.migrate(config, tell), config, tell)))


@command.group(short_help="Access tokens for people and programs.")
def token() -> None:
    """Access tokens: for people, for automation and for sidecars."""


@token.command("create")
@click.option(
    "--role",
    help="platform_admin, billing_admin, tenant_admin, tenant_developer, group_lead, member or sidecar.",
)
@click.option(
    "--user", default="", help="The e-mail or id of the person it is for; the role is then the person's."
)
@click.option(
    "--tenant", "tenants", multiple=True, help="Bind it to a tenant (name or id); may be given several times."
)
@click.option("--name", default="", help="What it is for; shown in the audit trail.")
@click.option("--expires-in-days", type=click.IntRange(1, 3650), help="When it ends; without it, never.")
@configured("BURSAR_DATABASE_URL", "BURSAR_DATA_DIR")
def create_token(
    config: Config,
    role: str | None,
    user: str,
    tenants: tuple[str, ...],
    name: str,
    expires_in_days: int | None,
) -> None:
    r"""Make an access token and print it on stdout: it is shown this once, only its hash is kept.

    An e-mail that was not seen before makes the user, and says so.

    \b
    bursar token create --role billing_admin
    bursar token create --user alice@example.com
    bursar token create --role sidecar --tenant acme --name "sidecar of acme"
    """
    from bursar_server import process
    from bursar_server.kit.caller import Role

    wanted = None
    if role is not None:
        wanted = Role.__members__.get(role.upper().removeprefix("ROLE_"))
        if wanted is None:
            raise click.BadParameter(
                f"one of {', '.join(known.lower() for known in Role)}", param_hint="--role"
            )
    if (wanted is None) == (not user):
        raise click.UsageError("Give either --role or --user.")
    lifetime = None if expires_in_days is None else timedelta(days=expires_in_days)
    work = process.make_token(
        config, role=wanted, user=user, tenants=tenants, name=name, lifetime=lifetime, tell=tell
    )
    sys.exit(process.run(process.reported(work, config, tell)))


@command.command(short_help="What is wrong here, and how to mend it.")
@configured()
def doctor(config: Config) -> None:
    """Look for what is wrong with this installation, and say how to mend it; ends with 1 where something is.

    It changes nothing. An embedded database that does not run is started for the look, and stopped again.
    """
    from bursar_server.doctor import run_doctor
    from bursar_server.kit.clock import SystemClock

    sys.exit(run_doctor(config, SystemClock(), click.echo))


def _instant(_context: click.Context, _parameter: click.Parameter, value: str | None) -> datetime | None:
    """Read an instant: a day or a time as ISO 8601 has them, in UTC where no zone is given."""
    if value is None:
        return None
    try:
        instant = datetime.fromisoformat(value)
    except ValueError:
        raise click.BadParameter("a day or a time such as 2026-11-01 or 2026-11-01T12:00Z") from None
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)


@command.command(short_help="Proof that the books add up, while they are used.")
@click.option("--tenant", default="", metavar="TEXT", help="Only this tenant (name or id).")
@click.option(
    "--since", callback=_instant, metavar="TIME", help="Only what began then or later: 2026-11-01, say; UTC."
)
@click.option(
    "--json", "as_json", is_flag=True, help="Lines of JSON: one a difference, and a last one for all."
)
@configured("BURSAR_DATABASE_URL", "BURSAR_DATA_DIR")
def verify(config: Config, tenant: str, since: datetime | None, as_json: bool) -> None:
    """Prove that the books add up: every invariant of the ledger, the audit trail and the reports.

    It only reads, in short snapshots, and stops nobody. Each difference is a line on stdout with both figures and what
    they are of; nothing is repaired. docs/verify.md says what to do about them.

    Ends with 0 where everything holds, 1 where something differs, 2 where it could not look.
    """
    from bursar_server import process
    from bursar_server.kit.clock import SystemClock
    from bursar_server.verify.model import Scope
    from bursar_server.verify.screen import Screen

    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    width = shutil.get_terminal_size().columns
    screen = Screen(sys.stdout, sys.stderr, SystemClock(), as_json=as_json, colour=colour, width=width)
    try:
        code = process.run(process.verify(config, Scope(tenant, since), screen))
    except KeyboardInterrupt:
        screen.failure("interrupted: what was not looked at may differ")
        code = 2
    sys.exit(code)


@command.command(short_help="A guided walk on a throw-away installation.")
def demo() -> None:
    """Walk through it on a throw-away installation: budget, calls, alert, 402, grant, call again, statement."""
    from bursar_server.demo import run_demo

    sys.exit(run_demo(sys.stdout))
