"""Writes docs/configuration.md from the tables of settings; `--check` says whether it is up to date."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bursar_server.settings import SETTINGS as CONTROL_PLANE
from bursar_sidecar.settings import SETTINGS as SIDECAR

DOCUMENT = Path(__file__).resolve().parent.parent / "docs/configuration.md"


_HEAD = """# Configuration

<!-- Written by `python tools/configuration_docs.py` from the tables of settings; a test compares. -->

Every setting is an environment variable, a flag, and a name in a YAML file (`--config bursar.yaml` or `BURSAR_CONFIG`).
Flags win over the environment, the environment over the file. An empty variable counts as unset. In the file a name is
the variable's without `BURSAR_`, in lower case: `listen: 127.0.0.1:8080`.

## Control plane: `bursar serve`, `bursar up`

"""

_NESTED = """
The file may also write {nested}.

`bursar up` takes the sidecar's settings from the environment, and `--sidecar-listen`.

"""

_SIDECAR = """## Sidecar: `bursar-sidecar`

"""

_UPSTREAMS = """
And for each upstream, by its name in capitals (`OPENAI`, `ANTHROPIC`, `GEMINI`, … or one of your own):

| Variable | Default | Meaning |
|---|---|---|
| `BURSAR_UPSTREAM_<NAME>_URL` | the provider's public address | where `/<name>/…` goes |
| `BURSAR_UPSTREAM_<NAME>_API_KEY` | the provider's usual variable (`OPENAI_API_KEY` …) | the credential put on the request |
| `BURSAR_UPSTREAM_<NAME>_AUTH` | a key where there is one, else what the environment has | how requests get their credential: `key`, `token`, `aws`, `google` or `entra` (`docs/providers.md`) |
| `BURSAR_UPSTREAM_<NAME>_DIALECT` | by name, else `openai` | the API spoken there: `openai`, `anthropic`, `gemini`, `vertex`, `bedrock`, `cohere` or `ollama` |
| `BURSAR_UPSTREAM_<NAME>_PROVIDER` | the upstream's name | its name in prices |
| `BURSAR_UPSTREAM_<NAME>_INCLUDE_USAGE` | `on` for `openai`, `azure` and `ollama`, `auto` for names of your own, else `off` | whether `stream_options.include_usage` is inserted where an app did not ask |

## OpenTelemetry

The control plane sends traces and metrics over OTLP when the standard `OTEL_*` variables name a collector; it is off by default.
Every deducted call is a span with its tenant, user, key, model, provider, tags, tokens and cost.

| Variable | Default | Meaning |
|---|---|---|
| `OTEL_EXPORTER_OTLP_ENDPOINT` | none: off | the collector, OTLP over HTTP: `http://127.0.0.1:4318` |
| `OTEL_EXPORTER_OTLP_HEADERS` | none | headers for the collector, `name=value,…` |
| `OTEL_SERVICE_NAME` | `bursar` | `service.name` of everything sent |
| `OTEL_RESOURCE_ATTRIBUTES` | none | further attributes, `name=value,…` |
| `OTEL_TRACES_EXPORTER`, `OTEL_METRICS_EXPORTER` | `otlp` | `none` turns one of them off |
| `OTEL_TRACES_SAMPLER`, `OTEL_TRACES_SAMPLER_ARG` | `parentbased_always_on` | which traces are sent |
| `OTEL_METRIC_EXPORT_INTERVAL` | `60000` | milliseconds between exports of metrics |
| `OTEL_SDK_DISABLED` | `false` | `true` turns everything off |
"""


def document() -> str:
    """Return the whole document."""
    nested = " and ".join(f"`{setting.path}`" for setting in CONTROL_PLANE if setting.path)
    parts = [_HEAD, _table(CONTROL_PLANE), _NESTED.format(nested=f"{nested} as nested maps"), _SIDECAR]
    return "".join([*parts, _table(SIDECAR), _UPSTREAMS])


def _table(settings: Iterable[Any]) -> str:
    lines = ["| Variable | Flag | Default | Unit | Meaning |", "|---|---|---|---|---|"]
    for setting in settings:
        default = "none" if setting.default is None else f"`{setting.default}`"
        lines.append(
            f"| `{setting.name}` | `{setting.flag}` | {default} | {setting.unit} | {setting.help.replace('|', '/')} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the document, or with `--check` return 1 where it differs."""
    if "--check" not in sys.argv[1:]:
        DOCUMENT.write_text(document(), encoding="utf-8")
        return 0
    if DOCUMENT.is_file() and DOCUMENT.read_text(encoding="utf-8") == document():
        return 0
    print("docs/configuration.md is out of date: run python tools/configuration_docs.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
