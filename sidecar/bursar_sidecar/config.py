"""How the settings are read: flags win over environment, environment over file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bursar_sidecar.settings import SETTINGS, OnDisconnect, OnUnreachable
from bursar_sidecar.upstreams import FIELDS, Upstream, UpstreamError, resolve


class ConfigError(ValueError):
    """A setting that cannot hold; the message names it and says what it may be."""


@dataclass(frozen=True, slots=True)
class Config:
    """The settings of one sidecar, read and checked; units are in the names."""

    sidecar_listen: tuple[str, int]
    control_plane_url: str
    control_plane_ca: Path | None
    sidecar_token: str | None
    data_dir: Path
    outbox_dir: Path
    outbox_max_bytes: int
    api_key: str | None
    on_unreachable: OnUnreachable
    last_known_max_age_ms: int
    on_disconnect: OnDisconnect
    read_on_max_ms: int
    read_on_max_bytes: int
    request_max_bytes: int
    open_calls_max: int
    body_timeout_ms: int
    check_timeout_ms: int
    deduct_wait_ms: int
    upstream_connect_timeout_ms: int
    upstream_answer_timeout_ms: int
    upstream_idle_timeout_ms: int
    true_up_ms: int
    shutdown_timeout_ms: int
    log_level: str
    upstreams: Mapping[str, Upstream]
    upstreams_missing: Mapping[str, str]

    @property
    def token_file(self) -> Path:
        """Where the token is read from when no setting gives it."""
        return self.data_dir / "sidecar-token"


def load(
    flags: Mapping[str, str],
    environment: Mapping[str, str],
    file: Mapping[str, object],
    upstream_flags: tuple[str, ...] = (),
) -> Config:
    """Return the settings; `flags` by variable name, `file` as the YAML file has them. Raises ConfigError.

    An empty variable counts as unset. `upstream_flags` are `name.field=value`, for example `openai.url=http://…`.
    """
    from_file, upstreams = _of_file(file)
    values: dict[str, Any] = {}
    for setting in SETTINGS:
        text = flags.get(setting.name) or environment.get(setting.name) or from_file.get(setting.name)
        text = text or setting.default
        try:
            values[setting.key] = None if text is None else setting.parse(text)
        except ValueError as error:
            shown = "" if setting.secret else f" (given: {text!r})"
            raise ConfigError(f"{setting.name} ({setting.flag}): {error}{shown}") from None
    if values["outbox_dir"] is None:
        values["outbox_dir"] = values["data_dir"] / "outbox"
    for source in (_of_environment(environment), _of_flags(upstream_flags)):
        for name, fields in source.items():
            upstreams.setdefault(name, {}).update(fields)
    try:
        values["upstreams"], values["upstreams_missing"] = resolve(upstreams, environment)
    except UpstreamError as error:
        raise ConfigError(str(error)) from None
    return Config(**values)


Upstreams = dict[str, dict[str, str]]


def _of_environment(environment: Mapping[str, str]) -> Upstreams:
    own = {setting.name for setting in SETTINGS}
    found: Upstreams = {}
    pattern = re.compile(rf"BURSAR_UPSTREAM_([A-Z0-9_]+?)_({'|'.join(FIELDS)})")
    for variable, value in environment.items():
        match = pattern.fullmatch(variable)
        if match and value and variable not in own:
            found.setdefault(match[1].lower(), {})[match[2]] = value
    return found


def _of_flags(flags: tuple[str, ...]) -> Upstreams:
    found: Upstreams = {}
    for flag in flags:
        match = re.fullmatch(r"([a-z0-9][a-z0-9_-]*)\.([a-z_]+)=(.*)", flag, re.DOTALL)
        if not match or match[2].upper() not in FIELDS:
            fields = ", ".join(field.lower() for field in FIELDS)
            raise ConfigError(f"--upstream: must be name.field=value, field one of {fields}")
        found.setdefault(match[1], {})[match[2].upper()] = match[3]
    return found


def _of_file(file: Mapping[str, object]) -> tuple[dict[str, str], Upstreams]:
    names = {spelling: setting.name for setting in SETTINGS for spelling in (setting.key, setting.name)}
    values: dict[str, str] = {}
    upstreams: Upstreams = {}
    for key, value in file.items():
        if key == "upstreams":
            upstreams = _upstreams_of_file(value)
        elif key not in names:
            raise ConfigError(f"the file names a setting that does not exist: {key}")
        elif isinstance(value, bool) or not isinstance(value, str | int):
            raise ConfigError(f"the file's {key} must be a text or a whole number")
        else:
            values[names[key]] = str(value)
    return values, upstreams


def _upstreams_of_file(value: object) -> Upstreams:
    shape = "the file's upstreams must be name: {url: …, api_key: …, dialect: …}"
    if not isinstance(value, dict):
        raise ConfigError(shape)
    found: Upstreams = {}
    for name, fields in value.items():
        if not isinstance(fields, dict) or not {str(key).upper() for key in fields} <= set(FIELDS):
            raise ConfigError(shape)
        found[str(name)] = {
            str(key).upper(): ("on" if item else "off") if isinstance(item, bool) else str(item)
            for key, item in fields.items()
        }
    return found
