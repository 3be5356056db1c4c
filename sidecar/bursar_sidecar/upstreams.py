"""The providers that the sidecar knows by name, and how each is reached."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from urllib.parse import urlsplit

from bursar_sidecar.clock import SystemClock
from bursar_sidecar.providers.base import DIALECTS, Dialect, LaterRule, dialect_named
from bursar_sidecar.providers.gemini import stored_interaction
from bursar_sidecar.providers.openai import OpenAI, stored, stored_responses
from bursar_sidecar.providers.openrouter import generation
from bursar_sidecar.providers.registry import dialect_at
from bursar_sidecar.signing import AwsSigner, Signer, TokenSigner, entra_token, google_token

#: How requests get their credential: a key, a bearer token (Azure), or one made for them (`signing`).
AUTHS = ("key", "token", "aws", "google", "entra")

#: Variables that say where AWS's tools find credentials; without any, and without a key, none are looked for.
_AWS_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_PROFILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_SHARED_CREDENTIALS_FILE",
)
_ENTRA_VARIABLES = ("AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET")
_AZURE_TOKEN = "AZURE_OPENAI_AD_TOKEN"  # noqa: S105  (the name of a variable)
_AWS_HOST = re.compile(r"//bedrock[a-z-]*\.([a-z0-9-]+)\.(?:amazonaws|api\.aws)")
_REGION = re.compile(r"[a-z]{2,}(?:-[a-z]+)+-\d")


class UpstreamError(ValueError):
    """A setting of an upstream that cannot hold; the message names the setting."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a provider by its name.

    `keys` are the variables that usually hold its credential, `url_variable` the one that usually holds its address.
    `include_usage`: a stream reports its usage only when asked (`stream_options.include_usage`); None where that is to be
    found out. `later` is what can be asked there when an answer broke off.
    """

    url: str = ""
    dialect: str = "openai"
    keys: tuple[str, ...] = ()
    include_usage: bool | None = False
    key_header: str = ""
    url_variable: str = ""
    later: LaterRule | None = None


# Public addresses and variables as the providers' own documentation gives them (docs/providers.md names the pages).
# Prices know them by the same names.
KNOWN: Mapping[str, Known] = {
    "openai": Known("https://api.openai.com", keys=("OPENAI_API_KEY",), include_usage=True, later=stored),
    "anthropic": Known("https://api.anthropic.com", "anthropic", keys=("ANTHROPIC_API_KEY",)),
    "gemini": Known(
        "https://generativelanguage.googleapis.com",
        "gemini",
        keys=("GEMINI_API_KEY", "GOOGLE_API_KEY"),
        later=stored_interaction,
    ),
    "vertex": Known("https://aiplatform.googleapis.com", "vertex"),
    "bedrock": Known(dialect="bedrock", keys=("AWS_BEARER_TOKEN_BEDROCK",)),
    "azure": Known(
        keys=("AZURE_OPENAI_API_KEY", "AZURE_API_KEY"),
        include_usage=True,
        key_header="api-key",
        url_variable="AZURE_OPENAI_ENDPOINT",
        later=stored_responses,
    ),
    "mistral": Known("https://api.mistral.ai", keys=("MISTRAL_API_KEY",)),
    "groq": Known("https://api.groq.com", keys=("GROQ_API_KEY",)),
    "deepseek": Known("https://api.deepseek.com", keys=("DEEPSEEK_API_KEY",)),
    "xai": Known("https://api.x.ai", keys=("XAI_API_KEY",), later=stored_responses),
    "cohere": Known("https://api.cohere.com", "cohere", keys=("COHERE_API_KEY", "CO_API_KEY")),
    "openrouter": Known("https://openrouter.ai", keys=("OPENROUTER_API_KEY",), later=generation),
    "together": Known("https://api.together.xyz", keys=("TOGETHER_API_KEY",)),
    "cerebras": Known("https://api.cerebras.ai", keys=("CEREBRAS_API_KEY",)),
    "perplexity": Known("https://api.perplexity.ai", keys=("PERPLEXITY_API_KEY",)),
    "huggingface": Known("https://router.huggingface.co", keys=("HF_TOKEN",)),
    "ollama": Known("http://127.0.0.1:11434", "ollama", include_usage=True),
}

#: What may be set of an upstream: `BURSAR_UPSTREAM_<NAME>_<FIELD>`.
FIELDS = ("URL", "API_KEY", "AUTH", "DIALECT", "PROVIDER", "INCLUDE_USAGE")


@dataclass(frozen=True, slots=True)
class Upstream:
    """One provider as it is reached.

    `origin` is scheme, host and port, `base_path` what comes before every path (never ends with a slash).
    `credential_headers` carry the provider's own key; empty where none is configured. `signer` makes a credential for
    each request instead. `provider` is its name in prices. `compatible` is OpenAI's dialect as it is spoken here.
    `key_in_query`: the provider takes a credential as `?key=`, whatever API is called. `later` says how it is asked
    afterwards about a call.
    """

    name: str
    origin: str
    base_path: str
    dialect: Dialect
    provider: str
    credential_headers: Mapping[str, str]
    compatible: Dialect
    signer: Signer | None = None
    key_in_query: bool = False
    later: LaterRule | None = None

    def at(self, path: str) -> Upstream:
        """Return this upstream with the dialect that is spoken at `path`: many offer another vendor's API beside theirs."""
        dialect = dialect_at(self.dialect, self.compatible, path)
        return self if dialect is self.dialect else replace(self, dialect=dialect)


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
        known = KNOWN.get(name, Known(include_usage=None))
        dialect = _dialect_name(name, given, known)
        region = _region(environment)
        url = given.get("URL") or environment.get(known.url_variable) or known.url
        if not url and dialect == "bedrock" and region:
            url = f"https://bedrock-runtime.{region}.amazonaws.com"
        if not url:
            missing[name] = _no_address(name, known)
            if given:
                raise UpstreamError(missing[name])
            continue
        ready[name] = _upstream(name, url, given, known, dialect, environment)
        ready.setdefault(name.replace("_", "-"), ready[name])
    return ready, missing


def _no_address(name: str, known: Known) -> str:
    usual = known.url_variable or ("AWS_REGION" if known.dialect == "bedrock" else "")
    return f"no address is configured for {name}: set {_variable(name, 'URL')}{usual and f' or {usual}'}"


def _upstream(
    name: str,
    url: str,
    given: Mapping[str, str],
    known: Known,
    dialect_name: str,
    environment: Mapping[str, str],
) -> Upstream:
    origin, base_path = _split(name, url)
    compatible = OpenAI(inserts_usage=_include_usage(name, given.get("INCLUDE_USAGE"), known.include_usage))
    dialect = compatible if dialect_name == "openai" else dialect_named(dialect_name)
    key = given.get("API_KEY") or next(
        (environment[variable] for variable in known.keys if environment.get(variable)), ""
    )
    auth = _auth(name, given, dialect_name, key, environment)
    headers: dict[str, str] = {}
    if auth == "key" and key:
        headers = {known.key_header: key} if known.key_header else dialect.credential_headers(key)
    elif auth == "token":
        headers = {"authorization": f"Bearer {key or environment.get(_AZURE_TOKEN, '')}"}
    return Upstream(
        name,
        origin,
        base_path,
        dialect,
        given.get("PROVIDER") or name,
        headers,
        compatible,
        _signer(name, auth, origin, environment),
        dialect_name in ("gemini", "vertex"),
        known.later,
    )


def _auth(name: str, given: Mapping[str, str], dialect: str, key: str, environment: Mapping[str, str]) -> str:
    """Return how requests get their credential: as configured, else a key, else what the environment has."""
    auth = given.get("AUTH", "").lower()
    if auth and auth not in AUTHS:
        raise UpstreamError(f"{_variable(name, 'AUTH')}: {auth!r} is not one of {', '.join(AUTHS)}")
    if auth or key:
        return auth or "key"
    if dialect == "bedrock" and any(environment.get(variable) for variable in _AWS_VARIABLES):
        return "aws"
    if dialect == "vertex" and environment.get("GOOGLE_APPLICATION_CREDENTIALS"):
        return "google"
    if name == "azure" and environment.get(_AZURE_TOKEN):
        return "token"
    if name == "azure" and all(environment.get(variable) for variable in _ENTRA_VARIABLES):
        return "entra"
    return "key"


def _signer(name: str, auth: str, origin: str, environment: Mapping[str, str]) -> Signer | None:
    if auth == "aws":
        found = _AWS_HOST.search(origin)
        region = found.group(1) if found is not None else _region(environment)
        return AwsSigner(region or "us-east-1")
    if auth == "google":
        return TokenSigner(google_token, SystemClock())
    if auth == "entra":
        tenant, client, secret = (environment.get(variable, "") for variable in _ENTRA_VARIABLES)
        if not (tenant and client and secret):
            raise UpstreamError(f"{_variable(name, 'AUTH')}: entra needs {', '.join(_ENTRA_VARIABLES)}")
        return TokenSigner(partial(entra_token, tenant, client, secret), SystemClock())
    return None


def _region(environment: Mapping[str, str]) -> str:
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or ""
    return region if _REGION.fullmatch(region) else ""


def _dialect_name(name: str, given: Mapping[str, str], known: Known) -> str:
    wanted = given.get("DIALECT", "").lower()
    if wanted and wanted not in DIALECTS:
        raise UpstreamError(
            f"{_variable(name, 'DIALECT')}: {wanted!r} is not one of {', '.join(DIALECTS)} (what this version speaks)"
        )
    return wanted or known.dialect


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


def _include_usage(name: str, text: str | None, default: bool | None) -> bool | None:
    if text is None or text == "":
        return default
    if text.lower() in ("on", "true", "yes", "1"):
        return True
    if text.lower() in ("off", "false", "no", "0"):
        return False
    if text.lower() == "auto":
        return None
    raise UpstreamError(f"{_variable(name, 'INCLUDE_USAGE')}: must be on, off or auto")


def _variable(name: str, field: str) -> str:
    return f"BURSAR_UPSTREAM_{name.upper().replace('-', '_')}_{field}"
