"""Which API is spoken at a path of an upstream, and how its requests get their credential."""

from __future__ import annotations

import pytest

from bursar_sidecar.providers.base import DIALECTS, dialect_named
from bursar_sidecar.signing import AwsSigner, TokenSigner
from bursar_sidecar.upstreams import KNOWN, UpstreamError, resolve

ADDRESSES = {name: {"URL": "https://provider.test"} for name in ("azure", "bedrock", "my_vllm")}
UPSTREAMS, _ = resolve(ADDRESSES, {})


def test_every_name_of_the_contract_is_known() -> None:
    """F048: the providers by name, and any other by configuration."""
    names = (
        "openai anthropic gemini vertex bedrock azure mistral groq deepseek xai cohere openrouter together"
    )
    assert set(KNOWN) == {*names.split(), "cerebras", "perplexity", "huggingface", "ollama"}
    assert {UPSTREAMS[name].dialect.name for name in UPSTREAMS} == set(DIALECTS)


@pytest.mark.parametrize("name", DIALECTS)
def test_a_dialect_speaks_its_own_paths(name: str) -> None:
    paths = {
        "openai": "/v1/chat/completions",
        "anthropic": "/v1/messages",
        "gemini": "/v1beta/models/m:generateContent",
        "vertex": "/v1/projects/p/locations/l/publishers/anthropic/models/m:rawPredict",
        "bedrock": "/model/m/converse",
        "cohere": "/v2/chat",
        "ollama": "/api/chat",
    }
    dialect = dialect_named(name)
    assert (dialect.name, dialect.speaks(paths[name]), dialect.speaks("/v1/files")) == (name, True, False)


@pytest.mark.parametrize(
    ("upstream", "path", "dialect", "api"),
    [
        ("openai", "/v1/chat/completions", "openai", "openai.chat_completions"),
        ("openai", "/v1/files", "openai", "openai.other"),
        ("my_vllm", "/v1/messages", "anthropic", "anthropic.messages"),
        ("deepseek", "/anthropic/v1/messages", "anthropic", "anthropic.messages"),
        ("openrouter", "/api/v1/chat/completions", "openai", "openai.chat_completions"),
        ("gemini", "/v1beta/openai/chat/completions", "openai", "openai.chat_completions"),
        ("gemini", "/v1beta/models/m:embedContent", "gemini", "gemini.embed_content"),
        ("vertex", "/v1/projects/p/locations/l/endpoints/openapi/chat/completions", "openai", "openai.chat_completions"),
        ("vertex", "/v1/projects/p/locations/l/endpoints/123:generateContent", "vertex", "gemini.generate_content"),
        ("vertex", "/v1/p/publishers/anthropic/models/count-tokens:rawPredict", "vertex", "anthropic.other"),
        ("bedrock", "/openai/v1/responses", "openai", "openai.responses"),
        ("bedrock", "/model/m/invoke-with-response-stream", "bedrock", "bedrock.invoke_with_response_stream"),
        ("bedrock", "/anthropic/v1/messages", "anthropic", "anthropic.messages"),
        ("cohere", "/v1/chat", "cohere", "cohere.chat"),
        ("cohere", "/compatibility/v1/chat/completions", "openai", "openai.chat_completions"),
        ("together", "/v1/rerank", "openai", "openai.embeddings"),
        ("ollama", "/v1/chat/completions", "openai", "openai.chat_completions"),
        ("ollama", "/api/generate", "ollama", "ollama.generate"),
        ("huggingface", "/nebius/v1/chat/completions", "openai", "openai.chat_completions"),
        ("azure", "/openai/deployments/d/images/generations", "openai", "openai.images"),
    ],
)  # fmt: skip
def test_the_api_is_known_by_its_path(upstream: str, path: str, dialect: str, api: str) -> None:
    """F099: another vendor's API at an upstream's paths is read in its own words."""
    found = UPSTREAMS[upstream].at(path)
    assert (found.name, found.dialect.name) == (upstream, dialect)
    assert found.dialect.open("POST", path, "", {}, b'{"model":"m"}').api == api


def test_usage_is_asked_for_where_the_upstream_needs_it() -> None:
    """F099: at OpenAI, Azure and Ollama, and nowhere else; a setting decides otherwise."""
    path, body = "/v1/chat/completions", b'{"model":"m","stream":true}'
    asking = {
        name
        for name, upstream in UPSTREAMS.items()
        if upstream.at(path).dialect.open("POST", path, "", {}, body).usage_inserted
    }
    assert asking == {"openai", "azure", "ollama"}
    off, _ = resolve({"openai": {"INCLUDE_USAGE": "off"}}, {})
    assert not off["openai"].dialect.open("POST", path, "", {}, body).usage_inserted


SILENT = b'data: {"model":"m","choices":[{"index":0,"delta":{"content":"Sea"},"finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"
ERROR = b'data: {"error":{"message":"overloaded"}}\n\n'


@pytest.mark.parametrize(
    ("answer", "asked", "needs"),
    [
        (SILENT + DONE, b"", True),
        (SILENT, b"", False),
        (ERROR + DONE, b"", False),
        (SILENT + DONE, b',"stream_options":{"include_usage":true}', False),
        (SILENT.replace(b"]}", b'],"usage":{"prompt_tokens":1}}') + DONE, b"", False),
    ],
)
def test_an_upstream_of_ones_own_shows_whether_it_needs_to_be_asked(
    answer: bytes, asked: bytes, needs: bool
) -> None:
    """F103: only a whole stream that says nothing of its usage is a reason; the next one is exact."""
    ready, _ = resolve({"ours": {"URL": "https://provider.test"}}, {})
    path, body = "/v1/chat/completions", b'{"model":"m","stream":true%b}' % asked
    dialect = ready["ours"].at(path).dialect
    call = dialect.open("POST", path, "", {}, body)
    assert not call.usage_inserted
    reader = dialect.reader(call, 200, "text/event-stream")
    assert reader.feed(answer) + reader.end() + reader.held == answer
    again = dialect.open("POST", path, "", {}, b'{"model":"m","stream":true}')
    assert again.usage_inserted is needs


def test_addresses_come_from_the_usual_variables() -> None:
    ready, missing = resolve(
        {}, {"AZURE_OPENAI_ENDPOINT": "https://ours.openai.azure.com/", "AWS_REGION": "eu-west-3"}
    )
    assert (ready["azure"].origin, ready["azure"].base_path) == ("https://ours.openai.azure.com", "")
    assert ready["bedrock"].origin == "https://bedrock-runtime.eu-west-3.amazonaws.com"
    assert missing == {}
    _, missing = resolve({}, {"AWS_REGION": "evil.test/?"})
    assert "AWS_REGION" in missing["bedrock"]
    assert "AZURE_OPENAI_ENDPOINT" in missing["azure"]


@pytest.mark.parametrize(
    ("name", "settings", "environment", "headers", "signer"),
    [
        ("bedrock", {}, {"AWS_BEARER_TOKEN_BEDROCK": "k"}, {"authorization": "Bearer k"}, None),
        ("bedrock", {"API_KEY": "k"}, {"AWS_ACCESS_KEY_ID": "a"}, {"authorization": "Bearer k"}, None),
        ("bedrock", {}, {"AWS_PROFILE": "ours"}, {}, AwsSigner),
        ("bedrock", {"AUTH": "aws"}, {}, {}, AwsSigner),
        ("bedrock", {}, {}, {}, None),
        ("vertex", {}, {"GOOGLE_APPLICATION_CREDENTIALS": "/k.json"}, {}, TokenSigner),
        ("vertex", {"API_KEY": "k"}, {}, {"x-goog-api-key": "k"}, None),
        ("vertex", {"AUTH": "Google"}, {}, {}, TokenSigner),
        ("azure", {}, {"AZURE_OPENAI_API_KEY": "k"}, {"api-key": "k"}, None),
        ("azure", {}, {"AZURE_OPENAI_AD_TOKEN": "t"}, {"authorization": "Bearer t"}, None),
        ("azure", {"AUTH": "token", "API_KEY": "t"}, {}, {"authorization": "Bearer t"}, None),
        (
            "azure",
            {},
            {"AZURE_TENANT_ID": "t", "AZURE_CLIENT_ID": "c", "AZURE_CLIENT_SECRET": "s"},
            {},
            TokenSigner,
        ),
        ("ollama", {}, {}, {}, None),
        ("cohere", {}, {"CO_API_KEY": "k"}, {"authorization": "Bearer k"}, None),
    ],
)
def test_a_credential_is_what_is_configured_or_what_is_there(
    name: str,
    settings: dict[str, str],
    environment: dict[str, str],
    headers: dict[str, str],
    signer: type | None,
) -> None:
    """F183: a key where there is one, else what the environment has for that provider."""
    ready, _ = resolve({name: {"URL": "https://provider.test", **settings}}, environment)
    assert ready[name].credential_headers == headers
    assert (type(ready[name].signer) if ready[name].signer is not None else None) is signer


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"AUTH": "kerberos"}, "BURSAR_UPSTREAM_AZURE_AUTH: 'kerberos' is not one of key, token, aws"),
        ({"AUTH": "entra"}, "entra needs AZURE_TENANT_ID"),
        ({"DIALECT": "klingon"}, "BURSAR_UPSTREAM_AZURE_DIALECT"),
    ],
)
def test_what_cannot_hold_is_named(settings: dict[str, str], says: str) -> None:
    with pytest.raises(UpstreamError, match=says):
        resolve({"azure": {"URL": "https://provider.test", **settings}}, {})
