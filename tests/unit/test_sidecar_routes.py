"""Where a request goes is decided by the configuration; nothing in its target can name another place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bursar_sidecar.config import load
from bursar_sidecar.routes import Route, RouteError, Router

CONFIG = load({}, {"BURSAR_UPSTREAM_MY_VLLM_URL": "http://10.0.0.7:8000/base"}, {})


@pytest.fixture
def router() -> Router:
    return Router(CONFIG.upstreams, CONFIG.upstreams_missing)


@pytest.mark.parametrize(
    ("target", "upstream", "path", "query"),
    [
        ("/openai/v1/chat/completions", "openai", "/v1/chat/completions", ""),
        ("/groq/openai/v1/chat/completions?a=b&c", "groq", "/openai/v1/chat/completions", "a=b&c"),
        ("/OpenAI/v1/models", "openai", "/v1/models", ""),
        ("/openai", "openai", "/", ""),
        ("/openai/", "openai", "/", ""),
        ("/v1/chat/completions", "openai", "/v1/chat/completions", ""),
        ("/v1/responses/resp_1/cancel", "openai", "/v1/responses/resp_1/cancel", ""),
        ("/v1/embeddings", "openai", "/v1/embeddings", ""),
        ("/v1/messages", "anthropic", "/v1/messages", ""),
        ("/v1/messages/count_tokens", "anthropic", "/v1/messages/count_tokens", ""),
        (
            "/v1beta/models/gemini-2.5-pro:generateContent?alt=sse",
            "gemini",
            "/v1beta/models/gemini-2.5-pro:generateContent",
            "alt=sse",
        ),
        ("/v1/models/g:streamGenerateContent", "gemini", "/v1/models/g:streamGenerateContent", ""),
        ("/my-vllm/v1/models", "my_vllm", "/v1/models", ""),
        ("/my_vllm/v1/models", "my_vllm", "/v1/models", ""),
    ],
)
def test_a_path_leads_to_its_provider(
    router: Router, target: str, upstream: str, path: str, query: str
) -> None:
    for _ in range(2):  # the second time it is remembered
        route = router.route(target)
        assert (route.upstream.name, route.path, route.query) == (upstream, path, query)


@pytest.mark.parametrize(
    "target",
    [
        "http://evil.example/v1/chat/completions",
        "//evil.example/v1/chat/completions",
        "evil.example:443",
        "*",
        "",
        "/openai/../anthropic/v1/messages",
        "/openai/v1/../../x",
        "/openai/%2e%2e/x",
        "/openai/.%2E/x",
        "/openai/..%2fx",
        "/openai/..%5cx",
        "/openai/%252e%252e/x",
        "/openai/%25252e%25252e/x",
        "/openai/a/..\\b",
        "/openai/v1//chat/completions",
        "/openai/v1/%2fchat",
        "/openai/v1/chat%00/completions",
        "/openai/v1/chat\x7f",
        "/openai/v1/ch\u00e4t",
        "/openai/./v1/models",
        "/openai/v1\\models",
        "/openai/..;/v1/models",
        "/openai/v1/..;a=b/..;/models",
        "/openai/v1/.%3b/models",
        "/openai/v1/models?a=\u00e4",
        "/openai/v1/models?a=\x01",
    ],
)
def test_a_target_that_leads_elsewhere_is_refused(router: Router, target: str) -> None:
    with pytest.raises(RouteError) as refused:
        router.route(target)
    assert refused.value.status == 400


def test_an_unknown_path_says_what_there_is(router: Router) -> None:
    with pytest.raises(RouteError, match=r"/openai/v1/chat/completions.*anthropic") as refused:
        router.route("/v2/other")
    assert refused.value.status == 404


@pytest.mark.parametrize(
    ("name", "says"),
    [("azure", "BURSAR_UPSTREAM_AZURE_URL"), ("bedrock", "bedrock")],
)
def test_a_provider_that_is_not_configured_says_what_is_missing(router: Router, name: str, says: str) -> None:
    with pytest.raises(RouteError, match=says) as refused:
        router.route(f"/{name}/v1/chat/completions")
    assert refused.value.status == 404


@pytest.mark.parametrize(
    ("target", "understood"),
    [
        ("/openai/v1/%63hat/completions", "/v1/chat/completions"),
        ("/openai/v1/chat%2Fcompletions", "/v1/chat/completions"),
        ("/gemini/v1beta/models/g%3AgenerateContent", "/v1beta/models/g:generateContent"),
    ],
)
def test_no_spelling_of_a_path_hides_what_is_called(router: Router, target: str, understood: str) -> None:
    """S14: a call that the provider understands is metered however its path is written."""
    assert router.route(target).decoded_path == understood


@given(st.text(alphabet="/.%25eEfFcC\\:@#?ab openai", max_size=40))
def test_whatever_is_asked_stays_on_the_configured_host(rest: str) -> None:
    router = Router(CONFIG.upstreams, CONFIG.upstreams_missing)
    try:
        route: Route = router.route("/my-vllm/" + rest)
    except RouteError:
        return
    assert route.path.startswith("/")
    assert not route.path.startswith("//")
    assert ".." not in route.decoded_path.replace("\\", "/").split("/")
    assert "#" not in route.path


def test_a_base_url_may_end_with_a_slash(router: Router) -> None:
    """F048: SDKs put the path behind whatever address they are given."""
    route = router.route("/openai//deployments/our-mini/chat/completions?api-version=1")
    assert (route.upstream.name, route.path) == ("openai", "/deployments/our-mini/chat/completions")


def test_many_paths_do_not_pile_up(router: Router) -> None:
    for number in range(2000):
        router.route(f"/openai/v1/files/{number}")
    assert len(router._known) <= 256
