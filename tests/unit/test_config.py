"""How the control plane's settings are read, and that their documentation is what the table says."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from tools import configuration_docs

from bursar_server.config import Config, ConfigError, load, read_file
from bursar_server.kit.addresses import Address, Tls
from bursar_server.settings import SETTINGS
from bursar_sidecar.upstreams import KNOWN
from support.certificates import make_certificate


def test_the_defaults_are_the_contracts() -> None:
    config = load({}, {}, {})
    assert config == Config(
        data_dir=Path(".bursar"), listen=Address("127.0.0.1", 8080), grpc_listen=Address("127.0.0.1", 50051)
    )
    assert config.admin_token_file == Path(".bursar/admin-token")


def test_flags_win_over_environment_over_file() -> None:
    file: dict[str, object] = {"lanes": 2, "listen": ":1", "hold_lease_ms": 5000}
    environ = {"BURSAR_LANES": "3", "BURSAR_LISTEN": "localhost:2", "BURSAR_HOLD_LEASE_MS": ""}
    config = load({"BURSAR_LANES": "4"}, environ, file)
    assert (config.lanes, config.listen, config.hold_lease_ms) == (4, Address("localhost", 2), 5000)


def test_the_default_budget_of_new_users(tmp_path: Path) -> None:
    """F043: users.default_daily_budget_usd in the server's configuration; 0 is a limit, absent is none."""
    path = tmp_path / "bursar.yaml"
    path.write_text("users:\n  default_daily_budget_usd: 5.00\npricing:\n  on_missing: block\n")
    config = load({}, {}, read_file(path))
    assert (config.default_daily_budget_nanos, config.pricing_on_missing) == (5_000_000_000, "BLOCK")
    assert load({}, {"BURSAR_DEFAULT_DAILY_BUDGET_USD": "0"}, {}).default_daily_budget_nanos == 0
    assert load({}, {}, {}).default_daily_budget_nanos is None


def test_a_fallback_price() -> None:
    """C19."""
    config = load({}, {"BURSAR_PRICING_ON_MISSING": "3.00/15"}, {})
    assert config.pricing_on_missing == "FALLBACK_PRICE"
    assert config.fallback_rates == {"input": 3_000_000_000, "output": 15_000_000_000}


def test_what_happens_without_a_budget() -> None:
    """C10."""
    assert load({}, {"BURSAR_NO_BUDGET_POLICY": "deny"}, {}).no_budget_policy == "DENY"


def test_tls_needs_both_files(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    environ = {"BURSAR_TLS_CERT": str(certificate), "BURSAR_TLS_KEY": str(key)}
    assert load({}, environ, {}).tls == Tls(certificate, key)
    with pytest.raises(ConfigError, match="give both or neither"):
        load({}, {"BURSAR_TLS_CERT": str(certificate)}, {})
    with pytest.raises(ConfigError, match=r"BURSAR_TLS_KEY: .*no such file"):
        load({}, {**environ, "BURSAR_TLS_KEY": str(tmp_path / "none")}, {})


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:0", Address("127.0.0.1", 0)),
        (":8080", Address("", 8080)),
        ("[::1]:443", Address("::1", 443)),
        ("bursar.example:65535", Address("bursar.example", 65535)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert load({"BURSAR_LISTEN": text}, {}, {}).listen == address
    assert str(address) == text


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("BURSAR_LISTEN", "8080", "host:port"),
        ("BURSAR_LISTEN", "http://127.0.0.1:8080", "host:port"),
        ("BURSAR_GRPC_LISTEN", "127.0.0.1:65536", "host:port"),
        ("BURSAR_DATABASE_URL", "mysql://x/y", "postgresql://"),
        ("BURSAR_HOLD_LEASE_MS", "1s", "whole number from 1000 to"),
        ("BURSAR_HOLD_LEASE_MS", "999", "whole number from 1000 to"),
        ("BURSAR_DEFAULT_DAILY_BUDGET_USD", "-1", "between 0"),
        ("BURSAR_DEFAULT_DAILY_BUDGET_USD", "NaN", "between 0"),
        ("BURSAR_DEFAULT_DAILY_BUDGET_USD", "0.0000000001", "9 decimals"),
        ("BURSAR_DEFAULT_DAILY_BUDGET_USD", "five", "number of US dollars"),
        ("BURSAR_NO_BUDGET_POLICY", "MAYBE", "ALLOW or DENY"),
        ("BURSAR_PRICING_ON_MISSING", "FREE", "RECORD_ZERO, BLOCK or a fallback price"),
        ("BURSAR_PRICING_ON_MISSING", "3/x", "number of US dollars"),
        ("BURSAR_HTTP2", "maybe", "on or off"),
        ("BURSAR_LANES", "0", "from 1 to 64"),
        ("BURSAR_LOG_LEVEL", "LOUD", "DEBUG, INFO, WARNING or ERROR"),
        ("BURSAR_ADMIN_TOKEN", "short", "16 to 512"),
    ],
)
def test_a_wrong_setting_is_named_with_what_it_may_be(name: str, value: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as error:
        load({}, {name: value}, {})
    flag = next(setting.flag for setting in SETTINGS if setting.name == name)
    assert str(error.value).startswith(f"{name} ({flag}): ")


def test_a_secret_is_never_shown() -> None:
    secrets = {
        "BURSAR_ADMIN_TOKEN": "bat_" + "s" * 43,
        "BURSAR_SIDECAR_TOKEN": "bat_" + "s" * 43,
        "BURSAR_DATABASE_URL": "postgresql://u:sssssss@h/db",
    }
    assert "sss" not in repr(load({}, secrets, {}))
    with pytest.raises(ConfigError) as error:
        load({}, {"BURSAR_DATABASE_URL": "mysql://u:sssssss@h/db"}, {})
    assert "sss" not in str(error.value)
    assert {setting.name for setting in SETTINGS if setting.secret} == set(secrets)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("lisen: ':1'", "does not exist: lisen"),
        ("users:\n  rate_limit: 5", "does not exist: users.rate_limit"),
        ("lanes: [1]", "lanes must be a text or a number"),
        ("lanes: 1\nBURSAR_LANES: 2", "BURSAR_LANES twice"),
        ("- lanes", "name: value"),
        ("a: b: c", "--config"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "bursar.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=problem):
        load({}, {}, read_file(path))


def test_files_say_switches_and_numbers_as_yaml_does(tmp_path: Path) -> None:
    path = tmp_path / "bursar.yaml"
    path.write_text("http2: off\nhold_lease_ms: 90000\nBURSAR_LISTEN: 127.0.0.1:9\nlanes:\n")
    config = load({}, {}, read_file(path))
    assert (config.http2, config.hold_lease_ms, config.listen.port, config.lanes) == (False, 90000, 9, 1)
    assert read_file(None) == {}
    with pytest.raises(ConfigError, match="nowhere"):
        read_file(tmp_path / "nowhere.yaml")


def test_names_are_unique_and_every_value_arrives() -> None:
    for names in ([s.name for s in SETTINGS], [s.flag for s in SETTINGS]):
        assert len(set(names)) == len(names)
    renamed = {"tls_cert", "tls_key", "default_daily_budget_usd"}
    arriving = {field.name for field in dataclasses.fields(Config)}
    assert {setting.key for setting in SETTINGS} - arriving == renamed


def test_the_documentation_is_what_the_tables_say() -> None:
    """Every setting with its default and unit; `python tools/configuration_docs.py` writes it."""
    text = configuration_docs.DOCUMENT.read_text(encoding="utf-8")
    assert text == configuration_docs.document()
    assert all(f"| `{setting.name}` | `{setting.flag}` |" in text for setting in SETTINGS)


def test_every_usual_variable_of_a_provider_counts_as_a_key() -> None:
    from bursar_server.up import PROVIDER_KEYS

    assert set(PROVIDER_KEYS) == {name for known in KNOWN.values() for name in known.keys}
