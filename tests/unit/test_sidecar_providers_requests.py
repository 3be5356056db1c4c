"""What requests ask, and the only changes that their bodies see."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bursar_sidecar.providers.base import DIALECTS, ApiCall, InvalidTags, dialect_named, token_estimate
from bursar_sidecar.providers.json_edit import applied, members, removal
from bursar_sidecar.providers.openai import OpenAI
from bursar_sidecar.providers.request import BINARY_TOKENS

CHAT = "/v1/chat/completions"


def opened(body: str | bytes, path: str = CHAT, method: str = "POST", dialect: str = "openai") -> ApiCall:
    raw = body.encode() if isinstance(body, str) else body
    return dialect_named(dialect).open(method, path, "", {}, raw)


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        (
            '{"model":"m","stream":true}',
            '{"stream_options":{"include_usage":true},"model":"m","stream":true}',
        ),
        ('\n{ "stream" : true }\n', '\n{"stream_options":{"include_usage":true}, "stream" : true }\n'),
        (
            '{"stream":true,"stream_options":{}}',
            '{"stream":true,"stream_options":{"include_usage":true}}',
        ),
        (
            '{"stream":true,"stream_options":{ "include_obfuscation":true }}',
            '{"stream":true,"stream_options":{"include_usage":true, "include_obfuscation":true }}',
        ),
        (
            '{"stream":true,"stream_options":{"include_usage" : false}}',
            '{"stream":true,"stream_options":{"include_usage" : true}}',
        ),
        (
            '{"stream":true,"stream_options":null}',
            '{"stream":true,"stream_options":{"include_usage":true}}',
        ),
        (  # twice, in either place: whichever the server heeds, it is asked
            '{"stream_options":{"include_usage":true,"include_usage":false},"stream":true,"stream_options":null}',
            '{"stream_options":{"include_usage":true,"include_usage":true},"stream":true,"stream_options":{"include_usage":true}}',
        ),
        (  # the keys written with escapes
            '{"stream":true,"stream\\u005foptions":{"include\\u005fusage":false}}',
            '{"stream":true,"stream\\u005foptions":{"include\\u005fusage":true}}',
        ),
        (  # the same words in nested objects and in texts are not it
            '{"stream":true,"x":{"stream_options":{"include_usage":false}},"y":"\\"stream_options\\":{"}',
            '{"stream_options":{"include_usage":true},"stream":true,"x":{"stream_options":{"include_usage":false}},"y":"\\"stream_options\\":{"}',
        ),
    ],
)
def test_usage_is_asked_for_where_the_app_did_not(asked: str, sent: str) -> None:
    """F099: the app's body travels byte for byte, but for the option that makes the provider say what it used."""
    call = opened(asked)
    assert call.body.decode() == sent
    assert call.usage_inserted


@pytest.mark.parametrize(
    "body",
    [
        '{"stream":true,"stream_options":{"include_usage":true}}',
        '{"stream":false}',
        '{"model":"m"}',
        '{"stream":1}',
        '{"stream":true,"stream_options":"odd"}',
        "[1, 2]",
        "{not json",
        "",
        '\ufeff{"stream":true}',
    ],
)
def test_a_body_that_needs_nothing_is_left_alone(body: str) -> None:
    call = opened(body)
    assert call.body == body.encode()
    assert not call.usage_inserted


def test_only_streams_of_chat_and_completions_are_asked() -> None:
    for path in ("/v1/responses", "/v1/embeddings", "/v1/audio/speech"):
        assert not opened('{"stream":true}', path).usage_inserted
    assert not opened('{"stream":true}', "/v1/messages", dialect="anthropic").usage_inserted
    assert not OpenAI(inserts_usage=False).open("POST", CHAT, "", {}, b'{"stream":true}').usage_inserted


@pytest.mark.parametrize(
    ("body", "sent", "tags"),
    [
        ('{"model":"m","metadata":{"tags":{"team":"core"}}}', '{"model":"m"}', {"team": "core"}),
        ('{"metadata":{"tags":{"team":"core"}},"model":"m"}', '{"model":"m"}', {"team": "core"}),
        ('{ "metadata" : { "tags" : {} } }', "{  }", {}),
        (
            '{"metadata":{"a":"1", "tags":{"p":"ż","q":""} , "b":"2"},"model":"m"}',
            '{"metadata":{"a":"1", "b":"2"},"model":"m"}',
            {"p": "ż", "q": ""},
        ),
        (
            '{"metadata":{"a":"1","tags":{"p":"x"}}, "model" :"m"}',
            '{"metadata":{"a":"1"}, "model" :"m"}',
            {"p": "x"},
        ),
        (
            '{"metadata":{"tags":{"p":"x"},"a":"1"}}',
            '{"metadata":{"a":"1"}}',
            {"p": "x"},
        ),
        (  # duplicates: the last one counts, all of them go
            '{"metadata":{"tags":{"p":"x"}},"n":1,"metadata":{"tags":{"p":"y"},"tags":{"p":"z"},"k":"v"}}',
            '{"n":1,"metadata":{"k":"v"}}',
            {"p": "z"},
        ),
        ('{"meta\\u0064ata":{"t\\u0061gs":{"p":"x"}},"n":1}', '{"n":1}', {"p": "x"}),
    ],
)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_tags_are_read_and_taken_out(dialect: str, body: str, sent: str, tags: dict[str, str]) -> None:
    """F107: `metadata.tags` tags the call; the provider never sees it, nor a `metadata` that it alone filled."""
    call = opened(body, "/v1/anything", dialect=dialect)
    assert call.tags == tags
    assert call.body.decode() == sent


@pytest.mark.parametrize(
    "body",
    [
        '{"metadata":{"tags":"the provider\'s own"}}',
        '{"metadata":{"tags":["a"]}}',
        '{"metadata":{}}',
        '{"metadata":null,"tags":{"a":"b"}}',
        '{"x":{"metadata":{"tags":{"a":"b"}}}}',
    ],
)
def test_other_metadata_is_the_providers(body: str) -> None:
    call = opened(body)
    assert call.tags == {}
    assert call.body == body.encode()


@pytest.mark.parametrize(
    ("tags", "field"),
    [
        ('{"team":1}', "metadata.tags.team"),
        ('{"team":null}', "metadata.tags.team"),
        ('{"ok":"x","team":{"a":"b"}}', "metadata.tags.team"),
        ('{"team":"\\ud800"}', "metadata.tags"),
    ],
)
def test_tags_must_be_text(tags: str, field: str) -> None:
    with pytest.raises(InvalidTags) as raised:
        opened(f'{{"metadata":{{"tags":{tags}}}}}')
    assert raised.value.field == field
    assert raised.value.message


def test_both_changes_fit_into_one_body() -> None:
    call = opened('{"metadata":{"tags":{"a":"b"}},"stream":true,"model":"m"}')
    assert call.body == b'{"stream_options":{"include_usage":true},"stream":true,"model":"m"}'
    call = opened('{"stream":true,"stream_options":{"include_usage":false},"metadata":{"tags":{"a":"b"}}}')
    assert call.body == b'{"stream":true,"stream_options":{"include_usage":true}}'


texts = st.text(max_size=6)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(st.sampled_from(["model", "metadata", "stream_options", 'a"b', "ż"]), json_values),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5)),
    st.dictionaries(st.sampled_from(["k", "l"]), st.text(max_size=3)),
    st.booleans(),
    st.sampled_from([None, 1]),
)
def test_changes_are_what_they_would_be_on_the_parsed_body(
    rest: dict[str, Any], tags: dict[str, str], metadata: dict[str, str], escaped: bool, indent: int | None
) -> None:
    document = {**rest, "metadata": {**metadata, "tags": tags}, "stream": True}
    document.pop("stream_options", None)
    body = json.dumps(document, ensure_ascii=escaped, indent=indent)
    call = opened(body)
    wanted = {**document, "stream_options": {"include_usage": True}, "metadata": metadata}
    if not metadata:
        del wanted["metadata"]
    assert json.loads(call.body) == wanted
    assert call.tags == tags


@given(st.dictionaries(texts, json_values, max_size=5), st.data(), st.sampled_from([None, 2]))
def test_members_can_be_taken_out(document: dict[str, Any], data: st.DataObject, indent: int | None) -> None:
    body = json.dumps(document, indent=indent).encode()
    found = members(body)
    assert [member.key for member in found] == list(document)
    assert [json.loads(body[member.value_start : member.end]) for member in found] == list(document.values())
    gone = data.draw(st.sets(st.integers(0, max(len(found) - 1, 0)))) if found else set()
    left = json.loads(applied(body, removal(found, gone)))
    assert left == {key: value for at, (key, value) in enumerate(document.items()) if at not in gone}


@pytest.mark.parametrize(
    ("dialect", "method", "path", "api", "metered"),
    [
        ("openai", "POST", "/v1/chat/completions", "openai.chat_completions", True),
        ("openai", "POST", "/openai/deployments/x/chat/completions", "openai.chat_completions", True),
        ("openai", "POST", "/v1/completions", "openai.completions", True),
        ("openai", "POST", "/v1/responses", "openai.responses", True),
        ("openai", "POST", "/v1/embeddings/", "openai.embeddings", True),
        ("openai", "GET", "/v1/responses/resp_1", "openai.responses_read", False),
        ("openai", "POST", "/v1/responses/resp_1/cancel", "openai.responses_read", False),
        ("openai", "POST", "/v1/responses/input_tokens", "openai.other", False),
        ("openai", "GET", "/v1/chat/completions", "openai.other", False),
        ("openai", "DELETE", "/v1/responses/resp_1", "openai.other", False),
        ("openai", "GET", "/v1/responses/resp_1/input_items", "openai.other", False),
        ("openai", "GET", "/v1/models", "openai.other", False),
        ("openai", "POST", "/v1/moderations", "openai.other", False),
        ("openai", "POST", "/v1/batches", "openai.other", False),
        ("openai", "POST", "/v1/images/edits", "openai.images", True),
        ("openai", "POST", "/v1/audio/translations", "openai.audio_transcriptions", True),
        ("openai", "POST", "/v1/audio/speech", "openai.audio_speech", True),
        ("anthropic", "POST", "/v1/messages", "anthropic.messages", True),
        ("anthropic", "POST", "/v1/messages/count_tokens", "anthropic.other", False),
        ("anthropic", "POST", "/v1/messages/batches", "anthropic.other", False),
        ("gemini", "POST", "/v1beta/models/g:generateContent", "gemini.generate_content", True),
        ("gemini", "POST", "/v1/models/g%3AstreamGenerateContent", "gemini.stream_generate_content", True),
        ("gemini", "POST", "/v1beta/models/g:embedContent", "gemini.embed_content", True),
        ("gemini", "POST", "/v1beta/models/g:countTokens", "gemini.count_tokens", False),
        ("gemini", "GET", "/v1beta/models", "gemini.other", False),
        ("gemini", "POST", "/v1beta/interactions", "gemini.interactions", True),
        ("gemini", "GET", "/v1beta/interactions/v1_x", "gemini.interactions_read", False),
        ("vertex", "POST", "/v1/p/publishers/anthropic/models/c:rawPredict", "anthropic.messages", True),
        ("vertex", "POST", "/v1/p/publishers/google/models/g:countTokens", "gemini.count_tokens", False),
        ("bedrock", "POST", "/model/m/converse", "bedrock.converse", True),
        ("bedrock", "POST", "/model/m/count-tokens", "bedrock.other", False),
        ("bedrock", "GET", "/foundation-models", "bedrock.other", False),
        ("cohere", "POST", "/v2/rerank", "cohere.rerank", True),
        ("cohere", "POST", "/v1/tokenize", "cohere.other", False),
        ("ollama", "POST", "/api/chat", "ollama.chat", True),
        ("ollama", "POST", "/api/pull", "ollama.other", False),
        ("ollama", "GET", "/api/tags", "ollama.other", False),
    ],
)
def test_only_what_is_billed_is_metered(
    dialect: str, method: str, path: str, api: str, metered: bool
) -> None:
    call = opened('{"model":"g"}', path, method, dialect)
    assert (call.api, call.metered, call.body) == (api, metered, b'{"model":"g"}')


def test_the_model_is_in_the_body_or_in_the_path() -> None:
    assert opened('{"model":"gpt-4o"}').model == "gpt-4o"
    assert opened('{"model":7}').model == ""
    assert (
        opened("", "/v1beta/models/gemini-2.5-pro:generateContent", dialect="gemini").model
        == "gemini-2.5-pro"
    )
    assert opened("", "/v1beta/tunedModels/mine:generateContent", dialect="gemini").model == "mine"


@pytest.mark.parametrize(
    ("dialect", "path", "body", "most"),
    [
        ("openai", CHAT, '{"max_tokens":5}', 5),
        ("openai", CHAT, '{"max_tokens":5,"max_completion_tokens":7,"n":3}', 21),
        ("openai", CHAT, "{}", None),
        ("openai", CHAT, '{"max_tokens":"many"}', None),
        ("openai", "/v1/completions", '{"n":2,"best_of":4}', 64),
        ("openai", "/v1/responses", '{"max_output_tokens":9}', 9),
        ("openai", "/v1/embeddings", "{}", 0),
        ("anthropic", "/v1/messages", '{"max_tokens":9}', 9),
        (
            "gemini",
            "/v1beta/models/g:generateContent",
            '{"generationConfig":{"maxOutputTokens":9,"candidateCount":2}}',
            18,
        ),
        (
            "gemini",
            "/v1beta/models/g:generateContent",
            '{"generation_config":{"max_output_tokens":9}}',
            9,
        ),
    ],
)
def test_the_output_limit_is_over_all_choices(dialect: str, path: str, body: str, most: int | None) -> None:
    """S11: UPPER_BOUND holds what a call can cost at most."""
    assert opened(body, path, dialect=dialect).max_output_tokens == most


def test_the_input_is_estimated_by_its_bytes() -> None:
    """S11: a quarter of the bytes, and a flat figure for each binary, however large."""
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "word " * 400}]})
    assert opened(body).input_tokens_estimate == token_estimate(len(body)) == -(-len(body) // 4)
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "iVBORw0K" * 100_000}}
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": [image, image]}]})
    assert 2 * BINARY_TOKENS <= opened(body).input_tokens_estimate < 2 * BINARY_TOKENS + 100


def test_the_user_field_is_openais() -> None:
    assert opened('{"user":"alice@example.com"}').user == "alice@example.com"
    assert opened('{"user":7}').user is None
    assert opened("{}").user is None


def test_odd_numbers_and_texts_do_not_hide_a_request() -> None:
    """A body that only a lenient reader accepts may still reach a provider that accepts it."""
    call = opened('{"model":"m","temperature":NaN,"stream":true,"messages":["\\ud800"]}')
    assert call.model == "m"
    assert call.body.startswith(b'{"stream_options":{"include_usage":true},"model"')


def test_a_deeply_nested_body_passes() -> None:
    body = b'{"model":"m","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    assert opened(body).body == body


def test_credentials_go_where_the_provider_looks() -> None:
    assert dialect_named("openai").credential_headers("k") == {"authorization": "Bearer k"}
    assert dialect_named("anthropic").credential_headers("k") == {"x-api-key": "k"}
    assert dialect_named("gemini").credential_headers("k") == {"x-goog-api-key": "k"}


def test_a_dialect_that_is_not_spoken() -> None:
    with pytest.raises(LookupError):
        dialect_named("latin")
    assert {dialect_named(name).name for name in DIALECTS} == set(DIALECTS)
