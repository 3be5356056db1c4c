"""The command line: what it teaches, and how it refuses."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from bursar_server.cli import command
from bursar_server.config import Config, load
from bursar_server.kit.addresses import Address, Tls
from bursar_server.settings import SETTINGS


def invoke(*arguments: str, **environ: str) -> Result:
    return CliRunner().invoke(command, list(arguments), env=environ)


def test_help_teaches_what_to_run_first() -> None:
    text = invoke("--help").stdout
    for name in (
        "bursar up",
        "bursar demo",
        "bursar serve",
        "bursar-sidecar",
        "bursar token create",
        "bursar doctor",
        "bursar verify",
    ):
        assert name in text
    assert set(command.commands) == {"up", "serve", "migrate", "token", "doctor", "verify", "demo"}


@pytest.mark.parametrize("name", ["up", "serve", "doctor"])
def test_every_setting_is_a_flag(name: str) -> None:
    text = invoke(name, "--help").stdout
    for setting in SETTINGS:
        assert setting.flag in text
        assert f"[{setting.name};" in " ".join(text.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve", "--listen", "8080"], "bursar: BURSAR_LISTEN (--listen): must be host:port"),
        (
            ["up", "--sidecar-listen", "x"],
            "bursar: BURSAR_SIDECAR_LISTEN (--sidecar-listen): must be host:port",
        ),
        (["serve", "--config", "nowhere.yaml"], "bursar: --config nowhere.yaml: "),
        (["token", "create"], "Give either --role or --user"),
        (["token", "create", "--role", "member", "--user", "a@b"], "Give either --role or --user"),
        (["token", "create", "--role", "boss"], "one of platform_admin, billing_admin"),
        (["token", "create", "--role", "member", "--expires-in-days", "0"], "1<=x<=3650"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments: list[str], message: str) -> None:
    done = invoke(*arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_variable_is_named() -> None:
    done = invoke("serve", BURSAR_LANES="many")
    assert done.exit_code == 2
    assert done.stderr.startswith("bursar: BURSAR_LANES (--lanes): must be a whole number from 1 to 64")


def test_help_does_not_load_the_server() -> None:
    """A wrong setting answers at once: neither a database driver nor gRPC is loaded for it."""
    script = (
        "import sys; sys.argv = ['bursar', 'serve', '--lanes', 'x']\n"
        "try:\n    import bursar_server.cli as c; c.main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('sqlalchemy', 'psycopg', 'grpc', 'uvicorn', 'bursar') if m in sys.modules])"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert time.monotonic() - began < 5


class Plane:
    """As much of a control plane as the sidecar's environment needs."""

    listen = Address("0.0.0.0", 41234)
    sidecar_token = "bat_sidecar"


def environ_of(config: Config, environ: dict[str, str], fake: str | None = None) -> dict[str, str]:
    from bursar_server.up import sidecar_environ

    plane: Any = Plane()
    return sidecar_environ(environ, config, plane, Address("127.0.0.1", 0), fake)


def test_the_sidecar_is_told_where_the_control_plane_is(tmp_path: Path) -> None:
    config = load({}, {"BURSAR_DATA_DIR": str(tmp_path)}, {})
    given = {"PATH": "/bin", "BURSAR_ADMIN_TOKEN": "secret", "BURSAR_DATABASE_URL": "secret"}
    assert environ_of(config, given) == {
        "PATH": "/bin",
        "BURSAR_CONTROL_PLANE_URL": "http://127.0.0.1:41234",
        "BURSAR_SIDECAR_TOKEN": "bat_sidecar",
        "BURSAR_DATA_DIR": str(tmp_path),
        "BURSAR_LOG_LEVEL": "INFO",
        "BURSAR_SIDECAR_LISTEN": "127.0.0.1:0",
    }
    own = environ_of(config, {"BURSAR_CONTROL_PLANE_URL": "https://bursar.example"})
    assert own["BURSAR_CONTROL_PLANE_URL"] == "https://bursar.example"


def test_the_sidecar_trusts_the_certificate() -> None:
    config = Config(Path("d"), Plane.listen, Plane.listen, tls=Tls(Path("a.crt"), Path("a.key")))
    found = environ_of(config, {})
    assert found["BURSAR_CONTROL_PLANE_URL"] == "https://127.0.0.1:41234"
    assert found["BURSAR_CONTROL_PLANE_CA"] == "a.crt"


def test_the_fake_provider_stands_for_all_three() -> None:
    found = environ_of(load({}, {}, {}), {}, fake="127.0.0.1:5")
    for name in ("OPENAI", "ANTHROPIC", "GEMINI"):
        assert found[f"BURSAR_UPSTREAM_{name}_URL"] == "http://127.0.0.1:5"
        assert found[f"BURSAR_UPSTREAM_{name}_API_KEY"]


@pytest.mark.parametrize(
    ("environ", "real"),
    [
        ({}, False),
        ({"OPENAI_API_KEY": ""}, False),
        ({"OPENAI_API_KEY": "sk-x"}, True),
        ({"GOOGLE_API_KEY": "x"}, True),
        ({"BURSAR_UPSTREAM_VLLM_URL": "http://10.0.0.7"}, True),
        ({"BURSAR_UPSTREAM_IDLE_TIMEOUT_MS": "5000", "BURSAR_API_KEY": "bur_x"}, False),
    ],
)
def test_a_providers_key_makes_calls_real(environ: dict[str, str], real: bool) -> None:
    from bursar_server.up import has_provider

    assert has_provider(environ) is real


def test_the_hints_have_the_real_addresses(tmp_path: Path) -> None:
    from bursar_server.up import hints

    config = load({}, {"BURSAR_DATA_DIR": str(tmp_path)}, {})
    line = {
        "listen": ":41234",
        "grpc_listen": "127.0.0.1:5",
        "sidecar_listen": "127.0.0.1:6",
        "admin_token_file": f"{tmp_path}/a b/admin-token",
        "fake_provider_listen": "127.0.0.1:7",
    }
    text = hints(line, config)
    assert "http://127.0.0.1:41234/bursar.v1.UserService/SetBudget -H" in text
    assert " http://127.0.0.1:6/openai/v1/chat/completions -H" in text
    assert f"TOKEN=$(cat '{tmp_path}/a b/admin-token')" in text
    assert "a fake one at 127.0.0.1:7; set OPENAI_API_KEY" in text
    given = hints({**line, "admin_token_file": None, "fake_provider_listen": None}, config)
    assert 'TOKEN="$BURSAR_ADMIN_TOKEN"' in given


def test_a_port_in_use_names_the_setting() -> None:
    from bursar_server.process import why_not_started
    from bursar_server.rpc.listen import AddressInUseError

    config = load({}, {}, {})
    for address, name in ((config.listen, "BURSAR_LISTEN"), (config.grpc_listen, "BURSAR_GRPC_LISTEN")):
        text = why_not_started(AddressInUseError(address, "address already in use"), config)
        assert str(address) in text
        assert text.endswith(name)
