"""Keys are found wherever SDKs put them, and go no further; headers travel as the contract says."""

from __future__ import annotations

import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from bursar_sidecar.credentials import caller_of, has_credentials, query_without_key, without_credentials
from bursar_sidecar.headers import app_headers, upstream_headers
from bursar_sidecar.ids import sha256_hex

KEY = "bur_" + "a-_9" * 10 + "abc"


def given(*pairs: tuple[str, str]) -> CIMultiDictProxy[str]:
    return CIMultiDictProxy(CIMultiDict(pairs))


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ([("Authorization", f"Bearer {KEY}")], ""),
        ([("authorization", f"bearer   {KEY} ")], ""),
        ([("X-Api-Key", KEY)], ""),
        ([("x-goog-api-key", KEY)], ""),
        ([("api-key", KEY)], ""),
        ([], f"key={KEY}"),
        ([], f"alt=sse&key={KEY}"),
        ([], f"%6bey={KEY.replace('_', '%5F')}"),
        ([("Authorization", "Bearer sk-other"), ("x-api-key", KEY)], ""),
        ([("Authorization", "Basic abc"), ("Authorization", f"Bearer {KEY}")], ""),
        (
            [
                (
                    "Authorization",
                    f"AWS4-HMAC-SHA256 Credential={KEY}/20260304/us-east-1/bedrock/aws4_request, x",
                )
            ],
            "",
        ),
    ],
)
def test_a_key_is_found_wherever_sdks_put_it(headers: list[tuple[str, str]], query: str) -> None:
    """F098: of the key only its sha256 is kept."""
    caller = caller_of(given(*headers), query, None)
    assert caller is not None
    assert caller.own
    assert caller.key_sha256 == sha256_hex(KEY)


def test_a_signature_for_the_sidecars_address_is_no_credential_at_the_providers() -> None:
    headers = CIMultiDict({"Authorization": "AWS4-HMAC-SHA256 Credential=AKID/x, Signature=1"})
    assert not has_credentials(headers, "")


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ([], ""),
        ([("Authorization", "Bearer sk-proj-1")], ""),
        ([("Authorization", KEY)], ""),
        ([("Authorization", f"Basic {KEY}")], ""),
        ([("Authorization", f"AWS4-HMAC-SHA256 Credential=AKID/{KEY}/us-east-1/bedrock/aws4_request")], ""),
        ([("x-api-key", "bur_" + "x" * 300)], ""),
        ([("x-other", KEY)], "nokey=bur_x&monkey=bur_y"),
    ],
)
def test_anything_else_is_no_key(headers: list[tuple[str, str]], query: str) -> None:
    assert caller_of(given(*headers), query, None) is None
    carried = caller_of(given(*headers), query, "f" * 64)
    assert carried is not None
    assert carried == ("f" * 64, False)


def test_every_credential_is_removed() -> None:
    headers = CIMultiDict(
        [
            ("Authorization", "Bearer x"),
            ("X-API-KEY", "y"),
            ("x-goog-api-key", "z"),
            ("Api-Key", "w"),
            ("X-Amz-Date", "20260304T050607Z"),
            ("X-Amz-Security-Token", "v"),
            ("Accept", "a"),
        ]
    )
    assert has_credentials(headers, "")
    without_credentials(headers)
    assert list(headers.items()) == [("Accept", "a")]
    assert not has_credentials(headers, "a=b")


@pytest.mark.parametrize(
    ("query", "every", "left"),
    [
        ("", True, ""),
        ("alt=sse", True, "alt=sse"),
        (f"key={KEY}", False, ""),
        (f"a=%20b&key={KEY}&c", False, "a=%20b&c"),
        (f"%6Bey={KEY}&alt=sse", False, "alt=sse"),
        ("key=AIzaOther&alt=sse", True, "alt=sse"),
        ("key=sort-by-name&x=1", False, "key=sort-by-name&x=1"),
        ("key=%62ur_abc&x=1", False, "x=1"),
        ("monkey=bur_x&keys=1", True, "monkey=bur_x&keys=1"),
    ],
)
def test_the_query_travels_without_the_key(query: str, every: bool, left: str) -> None:
    assert query_without_key(query, every) == left


def test_what_travels_to_the_provider() -> None:
    """The contract: everything but hop-by-hop, x-bursar-*, host, lengths and encodings, unchanged and in order."""
    sent = upstream_headers(
        given(
            ("Host", "127.0.0.1:4000"),
            ("Connection", "keep-alive, X-Hop, close"),
            ("X-Hop", "1"),
            ("Keep-Alive", "timeout=5"),
            ("TE", "trailers"),
            ("Trailer", "x"),
            ("Transfer-Encoding", "chunked"),
            ("Upgrade", "h2c"),
            ("HTTP2-Settings", "x"),
            ("Proxy-Authorization", "secret"),
            ("Content-Length", "5"),
            ("Accept-Encoding", "gzip, br"),
            ("Expect", "100-continue"),
            ("x-bursar-tags", "a=b"),
            ("X-Bursar-Anything", "1"),
            ("anthropic-version", "2023-06-01"),
            ("OpenAI-Beta", "one"),
            ("OpenAI-Beta", "two"),
            ("Cookie", "a=b"),
            ("baggage", "bursar.tag.x=y"),
        )
    )
    assert list(sent.items()) == [
        ("anthropic-version", "2023-06-01"),
        ("OpenAI-Beta", "one"),
        ("OpenAI-Beta", "two"),
        ("Cookie", "a=b"),
        ("baggage", "bursar.tag.x=y"),
        ("Accept-Encoding", "identity"),
    ]


def test_what_travels_back() -> None:
    answer = given(
        ("Content-Type", "application/json"),
        ("Content-Length", "12"),
        ("Content-Encoding", "gzip"),
        ("Transfer-Encoding", "chunked"),
        ("Connection", "close, X-Private"),
        ("X-Private", "1"),
        ("Set-Cookie", "a=1"),
        ("Set-Cookie", "b=2"),
        ("x-bursar-cost-usd", "forged"),
        ("x-request-id", "req_1"),
    )
    kept = app_headers(answer, "the-id", keep_length=False, decoded=True)
    assert list(kept.items()) == [
        ("Content-Type", "application/json"),
        ("Set-Cookie", "a=1"),
        ("Set-Cookie", "b=2"),
        ("x-request-id", "req_1"),
        ("x-bursar-request-id", "the-id"),
    ]
    as_it_is = app_headers(answer, "the-id", keep_length=True, decoded=False)
    assert as_it_is["Content-Length"] == "12"
    assert as_it_is["Content-Encoding"] == "gzip"
