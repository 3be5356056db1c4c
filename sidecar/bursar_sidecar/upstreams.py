"""The providers that the sidecar knows by name, and how each is reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from bursar_sidecar.providers.base import DIALECTS, Dialect, dialect_named


class UpstreamError(ValueError):
    """A setting of an upstream that cannot hold; the message names the setting."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a provider by its name.

    `dialects` are tried in order until this version speaks one. `keys` are the variables that usually hold its
    credential. `include_usage`: a stream reports its usage only when asked (`stream_options.include_usage`).
    """

    url: str = ""
    dialects: tuple[str, ...] = ("openai",)
    keys: tuple[str, ...] = ()
    include_usage: bool = False
    key_header: str = ""


# Public addresses and variables as the providers' own documentation gives them. Prices know them by the same names.
KNOWN: Mapping[str, Known] = {
    "openai": Known("https://api.openai.com", keys=("OPENAI_API_KEY",), include_usage=True),
    "anthropic": Known("https://api.anthropic.com", ("anthropic",), keys=("ANTHROPIC_API_KEY",)),
    "gemini": Known(
        "https://generativelanguage.googleapis.com",
        ("gemini",),
        keys=("GEMINI_API_KEY", "GOOGLE_API_KEY"),
    ),
    "vertex": Known("https://aiplatform.googleapis.com", ("vertex", "gemini")),
    "bedrock": Known(dialects=("bedrock",)),
    "azure": Known(
        keys=("AZURE_OPENAI_API_KEY", "AZURE_API_KEY"),
        include_usage=True,
        key_header="api-key",
    ),
    "mistral": Known("https://api.mistral.ai", keys=("MISTRAL_API_KEY",)),
    "groq": Known("https://api.groq.com", keys=("GROQ_API_KEY",)),
    "deepseek": Known("https://api.deepseek.com", keys=("DEEPSEEK_API_KEY",), include_usage=True),
    "xai": Known("https://api.x.ai", keys=("XAI_API_KEY",)),
    "cohere": Known(
        "https://api.cohere.com",
        ("cohere", "openai"),
        keys=("COHERE_API_KEY", "CO_API_KEY"),
    ),
    "openrouter": Known("https://openrouter.ai", keys=("OPENROUTER_API_KEY",)),
    "together": Known("https://api.together.xyz", keys=("TOGETHER_API_KEY",)),
    "cerebras": Known("https://api.cerebras.ai", keys=("CEREBRAS_API_KEY",)),
    "perplexity": Known("https://api.perplexity.ai", keys=("PERPLEXITY_API_KEY",)),
    "huggingface": Known("https://router.huggingface.co", keys=("HF_TOKEN",), include_usage=True),
    "ollama": Known("http://127.0.0.1:11434", ("ollama", "openai"), include_usage=True),
}

#: What may be set of an upstream: `BURSAR_UPSTREAM_<NAME>_<FIELD>`.
FIELDS = ("URL", "API_KEY", "DIALECT", "PROVIDER", "INCLUDE_USAGE")


@dataclass(frozen=True, slots=True)
class Upstream:
    """One provider as it is reached.

    `origin` is scheme, host and port, `base_path` what comes before every path (never ends with a slash).
    `credential_headers` carry the provider's own key; empty where none is configured. `provider` is its name in prices.
    """

    name: str
    origin: str
    base_path: str
    dialect: Dialect
    provider: str
    credential_headers: Mapping[str, str]


def resolve(
    settings: Mapping[str, Mapping[str, str]], environment: Mapping[str, str]
) -> tuple[dict[str, Upstream], dict[str, str]]:
    """Return the upstreams that can be reached, and for each known one that cannot the reason.

    `settings` holds FIELDS by upstream name. Raises UpstreamError where a setting cannot hold.
    """
    ready: dict[str, Upstream] = {}
    missing: dict[str, str] = {}
    for name in {**KNOWN, **settings}:
        given = settings.get(name, {})
        known = KNOWN.get(name, Known(include_usage=True))
        url = given.get("URL") or known.url
        if not url:
            missing[name] = f"no address is configured for {name}: set {_variable(name, 'URL')}"
            if given:
                raise UpstreamError(missing[name])
            continue
        dialect_name = _dialect_name(name, given, known)
        if dialect_name is None:
            missing[name] = f"this version does not speak the API of {name}"
            continue
        ready[name] = _upstream(name, url, given, known, dialect_name, environment)
        ready.setdefault(name.replace("_", "-"), ready[name])
    return ready, missing


def _upstream(
    name: str,
    url: str,
    given: Mapping[str, str],
    known: Known,
    dialect_name: str,
    environment: Mapping[str, str],
) -> Upstream:
    origin, base_path = _split(name, url)
    dialect = dialect_named(dialect_name)
    if dialect_name == "openai":
        dialect = _openai(_on(name, given.get("INCLUDE_USAGE"), known.include_usage))
    key = given.get("API_KEY") or next(
        (environment[variable] for variable in known.keys if environment.get(variable)), ""
    )
    headers: dict[str, str] = {}
    if key:
        headers = {known.key_header: key} if known.key_header else dialect.credential_headers(key)
    return Upstream(name, origin, base_path, dialect, given.get("PROVIDER") or name, headers)


def _openai(inserts_usage: bool) -> Dialect:
    from bursar_sidecar.providers.openai import OpenAI  # late: most of it is never needed for a `--help`

    return OpenAI(inserts_usage=inserts_usage)


def _dialect_name(name: str, given: Mapping[str, str], known: Known) -> str | None:
    wanted = given.get("DIALECT", "").lower()
    if wanted and wanted not in DIALECTS:
        raise UpstreamError(
            f"{_variable(name, 'DIALECT')}: {wanted!r} is not one of {', '.join(DIALECTS)} (what this version speaks)"
        )
    return wanted or next((each for each in known.dialects if each in DIALECTS), None)


def _split(name: str, url: str) -> tuple[str, str]:
    variable = _variable(name, "URL")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UpstreamError(f"{variable}: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UpstreamError(f"{variable}: must be http://host or https://host, with a path or without")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UpstreamError(f"{variable}: must have no user, password, query or fragment")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}", parts.path.rstrip("/")


def _on(name: str, text: str | None, default: bool) -> bool:
    if text is None or text == "":
        return default
    if text.lower() in ("on", "true", "yes", "1"):
        return True
    if text.lower() in ("off", "false", "no", "0"):
        return False
    raise UpstreamError(f"{_variable(name, 'INCLUDE_USAGE')}: must be on or off")


def _variable(name: str, field: str) -> str:
    return f"BURSAR_UPSTREAM_{name.upper().replace('-', '_')}_{field}"
