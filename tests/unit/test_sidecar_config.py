"""Settings: one table, flags over environment over file, and messages that say what is wrong."""

from __future__ import annotations

import pytest

from bursar_sidecar.config import Config, ConfigError, load
from bursar_sidecar.settings import SETTINGS, OnDisconnect, OnUnreachable


def test_the_defaults_are_the_contracts() -> None:
    config = load({}, {}, {})
    assert config.sidecar_listen == ("127.0.0.1", 4000)
    assert config.control_plane_url == "http://127.0.0.1:8080"
    assert str(config.outbox_dir) == ".bursar/outbox"
    assert config.on_unreachable is OnUnreachable.CLOSED
    assert config.on_disconnect is OnDisconnect.READ_ON
    assert config.request_max_bytes == 50 << 20
    assert str(config.token_file) == ".bursar/sidecar-token"


def test_flags_win_over_environment_over_file() -> None:
    file = {"sidecar_listen": "127.0.0.1:1", "BURSAR_OPEN_CALLS_MAX": 11, "shutdown_timeout_ms": 1}
    environment = {
        "BURSAR_SIDECAR_LISTEN": "127.0.0.1:2",
        "BURSAR_OPEN_CALLS_MAX": "22",
        "BURSAR_LOG_LEVEL": "",
    }
    config = load({"BURSAR_SIDECAR_LISTEN": "[::1]:3"}, environment, file)
    assert config.sidecar_listen == ("::1", 3)
    assert config.open_calls_max == 22
    assert config.shutdown_timeout_ms == 1
    assert config.log_level == "INFO"


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_every_setting_is_documented_and_read(setting: object) -> None:
    one = next(each for each in SETTINGS if each is setting)
    assert one.name.startswith("BURSAR_")
    assert one.flag.startswith("--")
    assert one.unit
    assert one.help.endswith(".")
    assert one.key in Config.__dataclass_fields__
    if one.default is not None:
        one.parse(one.default)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("BURSAR_SIDECAR_LISTEN", "4000", "host:port"),
        ("BURSAR_SIDECAR_LISTEN", "127.0.0.1:99999", "host:port"),
        ("BURSAR_CONTROL_PLANE_URL", "localhost:8080", "http://"),
        ("BURSAR_ON_UNREACHABLE", "MAYBE", "CLOSED, OPEN, LAST_KNOWN_GOOD"),
        ("BURSAR_LAST_KNOWN_MAX_AGE_MS", "1h", "whole number"),
        ("BURSAR_ON_DISCONNECT", "IGNORE", "READ_ON, CANCEL"),
        ("BURSAR_OUTBOX_MAX_BYTES", "1e9", "whole number"),
        ("BURSAR_OPEN_CALLS_MAX", "0", "whole number from 1"),
        ("BURSAR_READ_ON_MAX_MS", "-1", "whole number"),
        ("BURSAR_LOG_LEVEL", "LOUD", "DEBUG"),
        ("BURSAR_UPSTREAM_OPENAI_DIALECT", "klingon", "klingon"),
        ("BURSAR_UPSTREAM_OPENAI_URL", "ftp://x", "BURSAR_UPSTREAM_OPENAI_URL"),
        ("BURSAR_UPSTREAM_OPENAI_URL", "http://user:pw@x", "no user"),
        ("BURSAR_UPSTREAM_OPENAI_URL", "http://x?a=b", "query"),
        ("BURSAR_UPSTREAM_OPENAI_URL", "http://x:port", "BURSAR_UPSTREAM_OPENAI_URL"),
        ("BURSAR_UPSTREAM_OPENAI_INCLUDE_USAGE", "perhaps", "on, off or auto"),
        ("BURSAR_UPSTREAM_MINE_DIALECT", "openai", "BURSAR_UPSTREAM_MINE_URL"),
    ],
)
def test_a_wrong_value_is_named(name: str, value: str, says: str) -> None:
    with pytest.raises(ConfigError) as wrong:
        load({}, {name: value}, {})
    assert name.rpartition("_")[0] in str(wrong.value)
    assert says in str(wrong.value)


def test_a_wrong_secret_is_not_repeated() -> None:
    with pytest.raises(ConfigError) as wrong:
        load({}, {"BURSAR_API_KEY": "sk-proj-secret"}, {})
    assert "BURSAR_API_KEY" in str(wrong.value)
    assert "secret" not in str(wrong.value)


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ({"no_such": 1}, "no_such"),
        ({"open_calls_max": [1]}, "open_calls_max"),
        ({"open_calls_max": True}, "open_calls_max"),
        ({"upstreams": "openai"}, "upstreams"),
        ({"upstreams": {"openai": {"colour": "red"}}}, "upstreams"),
    ],
)
def test_a_wrong_file_is_named(file: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load({}, {}, file)


def test_upstreams_come_from_all_three_places() -> None:
    file: dict[str, object] = {
        "upstreams": {"a": {"url": "http://file", "include_usage": False}, "b": {"url": "http://b"}}
    }
    environment = {
        "BURSAR_UPSTREAM_A_URL": "https://environment:8443/base/",
        "BURSAR_UPSTREAM_A_API_KEY": "k",
    }
    config = load({}, environment, file, ("b.url=http://flag", "c.url=http://c", "c.dialect=anthropic"))
    a, b, c = (config.upstreams[name] for name in "abc")
    assert (a.origin, a.base_path) == ("https://environment:8443", "/base")
    assert a.credential_headers == {"authorization": "Bearer k"}
    assert b.origin == "http://flag"
    assert c.dialect.name == "anthropic"
    with pytest.raises(ConfigError, match=r"name\.field=value"):
        load({}, {}, {}, ("b=http://x",))


def test_known_providers_need_no_configuration() -> None:
    """F183: the providers' usual variables give their credentials."""
    environment = {
        "OPENAI_API_KEY": "sk-o",
        "ANTHROPIC_API_KEY": "sk-a",
        "GOOGLE_API_KEY": "g",
        "AZURE_OPENAI_API_KEY": "az",
        "BURSAR_UPSTREAM_AZURE_URL": "https://mine.openai.azure.com",
        "BURSAR_UPSTREAM_OPENAI_API_KEY": "sk-own",
    }
    upstreams = load({}, environment, {}).upstreams
    assert upstreams["openai"].origin == "https://api.openai.com"
    assert upstreams["openai"].credential_headers == {"authorization": "Bearer sk-own"}
    assert upstreams["anthropic"].credential_headers == {"x-api-key": "sk-a"}
    assert upstreams["gemini"].credential_headers == {"x-goog-api-key": "g"}
    assert {name for name, upstream in upstreams.items() if upstream.provider != name} == set()
    assert upstreams["azure"].credential_headers == {"api-key": "az"}
    assert upstreams["groq"].credential_headers == {}
    assert set(upstreams) >= {
        "openai", "anthropic", "gemini", "vertex", "mistral", "groq", "deepseek", "xai", "cohere", "openrouter",
        "together", "cerebras", "perplexity", "huggingface", "ollama",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "inserts"), [("openai", True), ("azure", True), ("mistral", False), ("own", False)]
)
def test_usage_is_asked_for_where_it_has_to_be(name: str, inserts: bool) -> None:
    """The contract: `include_usage` is inserted where the upstream needs it."""
    environment = {"BURSAR_UPSTREAM_AZURE_URL": "http://a", "BURSAR_UPSTREAM_OWN_URL": "http://b"}
    body = b'{"model":"m","stream":true,"messages":[]}'
    for switched, expected in ((None, inserts), ("on", True), ("off", False)):
        if switched:
            environment[f"BURSAR_UPSTREAM_{name.upper()}_INCLUDE_USAGE"] = switched
        dialect = load({}, environment, {}).upstreams[name].dialect
        call = dialect.open("POST", "/v1/chat/completions", "", {}, body)
        assert call.usage_inserted is expected
