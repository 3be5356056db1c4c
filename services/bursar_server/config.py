"""How the settings are read: flags win over environment, environment over the file that `--config` names."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bursar_server.kit.addresses import Address, Tls
from bursar_server.settings import SETTINGS, OnMissing, Setting


class ConfigError(ValueError):
    """A setting that cannot hold; the message names it and says what it must be."""


@dataclass(frozen=True, slots=True)
class Config:
    """The settings of a control plane, read and checked; units are in the names."""

    data_dir: Path
    listen: Address
    grpc_listen: Address
    database_url: str | None = field(default=None, repr=False)
    admin_token: str | None = field(default=None, repr=False)
    sidecar_token: str | None = field(default=None, repr=False)
    tls: Tls | None = None
    http2: bool = True
    hold_lease_ms: int = 60_000
    sweep_delay_ms: int = 60_000
    default_daily_budget_nanos: int | None = None
    no_budget_policy: str = "ALLOW"
    pricing_on_missing: str = "RECORD_ZERO"
    fallback_rates: Mapping[str, int] | None = None
    lanes: int = 1
    shutdown_timeout_ms: int = 20_000
    log_level: str = "INFO"

    @property
    def admin_token_file(self) -> Path:
        """Where the operator's token is, unless it is given."""
        return self.data_dir / "admin-token"

    @property
    def sidecar_token_file(self) -> Path:
        """Where the sidecars' token is, unless it is given."""
        return self.data_dir / "sidecar-token"


def load(flags: Mapping[str, str], environ: Mapping[str, str], file: Mapping[str, object]) -> Config:
    """Return the settings; `flags` by variable name, `file` as the YAML file has them. Raises ConfigError.

    An empty flag or variable counts as unset.
    """
    from_file = _of_file(file)
    values: dict[str, Any] = {}
    for setting in SETTINGS:
        text = flags.get(setting.name) or environ.get(setting.name) or from_file.get(setting.name)
        text = text or setting.default
        try:
            values[setting.key] = None if text is None else setting.parse(text.strip())
        except ValueError as error:
            shown = "" if setting.secret else f"; it is {text!r}"
            raise ConfigError(f"{setting.name} ({setting.flag}): {error}{shown}") from error
    missing: OnMissing = values.pop("pricing_on_missing")
    return Config(
        default_daily_budget_nanos=values.pop("default_daily_budget_usd"),
        pricing_on_missing=missing.policy,
        fallback_rates=missing.fallback_rates,
        tls=_tls(values.pop("tls_cert"), values.pop("tls_key")),
        **values,
    )


def _tls(certificate: Path | None, key: Path | None) -> Tls | None:
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise ConfigError("BURSAR_TLS_CERT (--tls-cert) and BURSAR_TLS_KEY (--tls-key): give both or neither")
    for name, path in (("BURSAR_TLS_CERT", certificate), ("BURSAR_TLS_KEY", key)):
        try:
            path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{name}: {path}: {(error.strerror or str(error)).lower()}") from error
    return Tls(certificate, key)


def read_file(path: Path | None) -> dict[str, object]:
    """Return what a YAML file of settings holds; nothing for None. Raises ConfigError."""
    if path is None:
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--config {path}: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"--config {path}: must hold `name: value`, one on a line")
    return {str(key): value for key, value in content.items()}


def _of_file(file: Mapping[str, object]) -> dict[str, str]:
    """Return a file's settings by variable name; nested maps count as dotted names."""
    names = {
        name: setting for setting in SETTINGS for name in (setting.key, setting.name, setting.path) if name
    }
    found: dict[str, str] = {}
    for name, value in _flat(file, ""):
        setting = names.get(name)
        if setting is None:
            raise ConfigError(f"the file has a setting that does not exist: {name}")
        if setting.name in found:
            raise ConfigError(f"the file has {setting.name} twice")
        if value is not None:
            found[setting.name] = _text(setting, value)
    return found


def _flat(content: Mapping[str, object], prefix: str) -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = []
    for key, value in content.items():
        name = f"{prefix}{key}"
        found += _flat(value, f"{name}.") if isinstance(value, Mapping) else [(name, value)]
    return found


def _text(setting: Setting, value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if not isinstance(value, str | int | float):
        raise ConfigError(f"the file's {setting.key} must be a text or a number")
    return str(value)
