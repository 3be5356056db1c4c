"""Whatever an app or a provider sends: what reads it says no in its own words or gives what was asked, never more.

`BURSAR_FUZZ_EXAMPLES` runs more examples, each time others. Requests' bodies and readers of answers have files of their own.
"""

from __future__ import annotations

import gzip
import os
import random
import re
import zlib
from typing import Any
from urllib.parse import parse_qsl, unquote

import brotli
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from bursar_sidecar.attribution import (
    SESSION_MAX_CHARACTERS,
    TAG_KEY_MAX_CHARACTERS,
    TAG_VALUE_MAX_CHARACTERS,
    TAGS_MAX,
    AttributionError,
    attribution_of,
)
from bursar_sidecar.config import load
from bursar_sidecar.credentials import CREDENTIAL_HEADERS, caller_of, query_without_key, without_credentials
from bursar_sidecar.decoding import PIECE_MAX_BYTES, DecodingError, decoded, decoder_for
from bursar_sidecar.headers import app_headers, upstream_headers
from bursar_sidecar.routes import RouteError, Router
from support.fake_control_plane import KEY

EXAMPLES = int(os.environ.get("BURSAR_FUZZ_EXAMPLES", "0"))
fuzz = settings(
    max_examples=EXAMPLES or 200,
    derandomize=not EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)

CONFIG = load(
    {},
    {
        "BURSAR_UPSTREAM_MY_VLLM_URL": "http://10.0.0.7:8000/base",
        "BURSAR_UPSTREAM_OPENAI_API_KEY": "sk-openai",
        "BURSAR_UPSTREAM_ANTHROPIC_API_KEY": "sk-anthropic",
    },
    {},
)

# -- targets -------------------------------------------------------------------------------------------

CRUMBS = st.sampled_from(
    [
        "/",
        "//",
        "..",
        ".",
        ";",
        "..;",
        "%2e",
        "%2E%2e",
        "%2f",
        "%5c",
        "\\",
        "%00",
        "%25",
        "@",
        ":",
        "?",
        "#",
        "&",
        "=",
        " ",
        "openai",
        "anthropic",
        "my-vllm",
        "v1",
        "chat/completions",
        "messages",
        "http:",
        "evil.example",
        "%",
        "%%",
        "\u00e4",
    ]
)


@fuzz
@given(st.lists(CRUMBS | st.text(max_size=3), max_size=12).map("".join))
def test_every_target_stays_in_its_place(rest: str) -> None:
    router = Router(CONFIG.upstreams, CONFIG.upstreams_missing)
    statuses: set[int] = set()
    for target in (rest, "/" + rest, "/openai/" + rest, "/my-vllm/v1/" + rest):
        try:
            route = router.route(target)
        except RouteError as refused:
            statuses.add(refused.status)
            continue
        first = unquote(re.split("[/?#]", target[1:])[0]).lower()
        assert route.upstream.name in (first.replace("-", "_"), "openai", "anthropic", "gemini")
        assert route.path.startswith("/")
        assert not route.path.startswith("//")
        assert (route.path + route.query).isascii()
        assert (route.path + route.query).isprintable()
        assert not {" ", "#", "?", "\\"} & set(route.path)
        understood = route.decoded_path
        for _ in range(4):
            segments = understood.replace("\\", "/").split("/")
            assert not {".", ".."} & {segment.partition(";")[0] for segment in segments}
            understood = unquote(understood)
    assert statuses <= {400, 404}


# -- credentials and headers ---------------------------------------------------------------------------

PLACES = ["Authorization", "x-api-key", "x-goog-api-key", "api-key", "X-API-Key"]
VALUES = st.sampled_from(
    [KEY, f"Bearer {KEY}", f"bearer  {KEY} ", f"Basic {KEY}", "sk-other", "Bearer sk-other", ""]
)
QUERY = st.lists(
    st.sampled_from(
        [
            f"key={KEY}",
            f"%6bey={KEY}",
            f"key={KEY.replace('_', '%5F')}",
            "key=other",
            "k=key",
            "a=b",
            "&",
            "alt=sse",
            "%",
            "key",
        ]
    ),
    max_size=5,
).map("&".join)


@fuzz
@given(st.lists(st.tuples(st.sampled_from(PLACES), VALUES), max_size=4), QUERY, st.booleans())
def test_an_apps_key_goes_no_further(placed: list[tuple[str, str]], query: str, every_key: bool) -> None:
    headers = CIMultiDict(placed)
    caller = caller_of(CIMultiDictProxy(headers), query, None)
    if caller is None:
        return
    assert caller.own
    assert KEY not in caller.key_sha256
    kept = query_without_key(query, every_key=every_key)
    without_credentials(headers)
    assert KEY not in str(headers)
    assert not set(headers) & set(CREDENTIAL_HEADERS)
    left = [value for name, value in parse_qsl(kept, keep_blank_values=True) if name == "key"]
    assert not any(value.startswith("bur_") for value in left)
    assert not (left and every_key)


NAMES = st.sampled_from(
    [
        "connection",
        "keep-alive",
        "te",
        "trailer",
        "upgrade",
        "transfer-encoding",
        "proxy-authorization",
        "host",
        "content-length",
        "content-encoding",
        "x-bursar-user",
        "X-Bursar-Cost-Usd",
        "x-a",
        "x-b",
        "accept-encoding",
        "expect",
    ]
)
LISTED = st.lists(NAMES, max_size=4).map(", ".join) | st.text("ab,; -=\t", max_size=12)


@fuzz
@given(st.lists(st.tuples(NAMES, LISTED), max_size=8))
def test_no_header_of_one_connection_reaches_the_other(sent: list[tuple[str, str]]) -> None:
    headers: CIMultiDictProxy[str] = CIMultiDictProxy(CIMultiDict(sent))
    up = upstream_headers(headers)
    named = {
        name.strip().lower()
        for value in headers.getall("connection", ())
        for name in value.split(",")
        if name.strip().lower() not in ("", "close")
    }
    never = {
        "connection",
        "keep-alive",
        "te",
        "trailer",
        "upgrade",
        "transfer-encoding",
        "proxy-authorization",
    }
    for out in (up, app_headers(headers, "id", keep_length=True, decoded=True)):
        names = {name.lower() for name in out} - {"accept-encoding", "x-bursar-request-id"}
        assert not names & never
        assert not names & named
        assert not [name for name in names if name.startswith("x-bursar-")]
    assert up.getall("accept-encoding") == ["identity"]
    assert not {"host", "content-length", "content-encoding", "expect"} & {name.lower() for name in up}
    assert all(value in headers.getall("x-a", ()) for value in up.getall("x-a", ()))


# -- tags and baggage ----------------------------------------------------------------------------------

SAID = st.text("abc=,;%2C%3D \t\u00e4\ud800\x7f\"'.bursartag", max_size=40) | st.text(max_size=20)
BAGGAGE = st.lists(
    st.tuples(st.sampled_from(["bursar.tag.", "bursar.tag", "x"]), SAID).map("".join), max_size=4
)


@fuzz
@given(
    SAID,
    BAGGAGE.map(",".join),
    SAID,
    SAID,
    st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=40),
)
def test_what_an_app_says_is_bounded_and_clean(
    tags: str, baggage: str, session: str, user: str, body_tags: dict[str, str]
) -> None:
    sent = {"x-bursar-tags": tags, "baggage": baggage, "x-bursar-session": session, "x-bursar-user": user}
    try:
        said = attribution_of(CIMultiDictProxy(CIMultiDict(sent)), body_tags)
    except AttributionError as refused:
        str(refused).encode()
        return
    assert len(said.tags) <= TAGS_MAX
    assert len(said.session_id) <= SESSION_MAX_CHARACTERS
    for text in (*said.tags, *said.tags.values(), said.session_id, said.user_id):
        assert text.isprintable()
        text.encode()
    assert all(1 <= len(key) <= TAG_KEY_MAX_CHARACTERS for key in said.tags)
    assert all(len(value) <= TAG_VALUE_MAX_CHARACTERS for value in said.tags.values())


# -- compression ---------------------------------------------------------------------------------------

CODINGS = ("gzip", "deflate", "br", "zstd", "gzip, br", "br, zstd, gzip", "x-gzip", "identity")
SQUEEZED = (gzip.compress, zlib.compress, brotli.compress, lambda data: data)


@fuzz
@given(
    st.sampled_from(CODINGS),
    st.sampled_from(SQUEEZED),
    st.binary(max_size=2000),
    st.integers(0, 2**32),
    st.integers(0, 6),
)
def test_damaged_compression_is_an_error_or_bounded(
    coding: str, squeeze: Any, data: bytes, seed: int, damages: int
) -> None:
    dice = random.Random(seed)
    damaged = bytearray(squeeze(data))
    for _ in range(damages):
        if damaged:
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
    body = bytes(damaged[: dice.randrange(len(damaged) + 1)]) if dice.random() < 0.3 else bytes(damaged)
    try:
        plain = decoded(body, coding, 4000)
    except DecodingError:
        plain = None
    assert plain is None or len(plain) <= 4000 or coding == "identity"
    decoder = decoder_for(coding)
    if decoder is None:
        return
    passed = b""
    try:
        for at in range(0, len(body), 7):
            for piece in decoder.feed(body[at : at + 7]):
                assert len(piece) <= 2 * PIECE_MAX_BYTES
                passed += piece
    except DecodingError:
        return
    assert plain is None or passed == plain
