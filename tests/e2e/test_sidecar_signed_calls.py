"""Credentials that are made for a request: Amazon's signatures, Google's and Microsoft's tokens."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import botocore.config
import botocore.session
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from yarl import URL

from bursar_sidecar import signing
from support.eventstream import event
from support.fake_control_plane import KEY, Served
from support.odd_upstream import Heard, OddUpstream, head, json_answer, odd_upstream
from support.sidecars import AUTHORIZED, RunningSidecar, environment, running_sidecar

MODEL = "us.amazon.nova-lite-v1:0"
CONVERSE = f"/bedrock/model/{MODEL}/converse"
ANSWER = json_answer(
    json.dumps(
        {
            "output": {"message": {"role": "assistant", "content": [{"text": "Sea"}]}},
            "stopReason": "end_turn",
            "usage": {"inputTokens": 7, "outputTokens": 3, "totalTokens": 10},
            "metrics": {"latencyMs": 1},
        }
    ).encode()
)
ASKED = {"messages": [{"role": "user", "content": [{"text": "Name a sea."}]}]}
SECRET = "wJalr/secret+EXAMPLE"


@pytest.fixture
async def upstream() -> AsyncIterator[OddUpstream]:
    async with odd_upstream() as odd:
        odd.answer = ANSWER
        yield odd


def without_key(settings: dict[str, str], name: str, **more: str) -> dict[str, str]:
    return {**settings, f"BURSAR_UPSTREAM_{name}_API_KEY": "", **more}


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Mapping[str, str]:
    """Return AWS credentials, as they are in this process's environment too: botocore looks there."""
    found = {
        "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_SESSION_TOKEN": "a-session",
        "AWS_REGION": "eu-north-1",
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
    }
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    return found


def signature_of(heard: Heard, region: str) -> str:
    """Return what the signature of a request must be, by the published recipe (Signature Version 4)."""
    authorization = heard.header("authorization") or ""
    named = authorization.partition("SignedHeaders=")[2].partition(",")[0].split(";")
    canonical = "\n".join(
        [
            heard.method,
            quote(urlsplit(heard.target).path, safe="/~"),
            "",
            *(f"{name}:{heard.header(name)}" for name in named),
            "",
            ";".join(named),
            hashlib.sha256(heard.body).hexdigest(),
        ]
    )
    when = heard.header("x-amz-date") or ""
    scope = f"{when[:8]}/{region}/bedrock/aws4_request"
    to_sign = f"AWS4-HMAC-SHA256\n{when}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = f"AWS4{SECRET}".encode()
    for part in (when[:8], region, "bedrock", "aws4_request", to_sign):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return key.hex()


@pytest.mark.parametrize("model", [MODEL, MODEL.replace(":", "%3A")])
async def test_bedrock_calls_are_signed(
    plane: Served, upstream: OddUpstream, tmp_path: Path, aws: Mapping[str, str], model: str
) -> None:
    """F183: the app has a bur_ key, the provider gets a signature that fits what it gets."""
    settings = without_key(environment(plane.url, tmp_path, bedrock=upstream.url), "BEDROCK", **aws)
    async with running_sidecar(settings) as sidecar:
        path = f"/bedrock/model/{model}/converse"
        url = URL(f"{sidecar.url}{path}", encoded=True)
        headers = {**AUTHORIZED, "x-amz-date": "of the app"}
        async with sidecar.client.post(url, json=ASKED, headers=headers) as answer:
            assert answer.status == 200
    (heard,) = upstream.heard
    assert heard.target == f"/model/{model}/converse"
    authorization = heard.header("authorization") or ""
    assert authorization.startswith("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/")
    assert "content-type;host;x-amz-date;x-amz-security-token" in authorization
    assert heard.header("x-amz-security-token") == "a-session"
    assert authorization.endswith(f"Signature={signature_of(heard, 'eu-north-1')}")
    assert KEY not in str(heard.headers)
    (record,) = plane.service.records.values()
    assert (record.items[0].model, record.items[0].usage.input_tokens) == (MODEL, 7)


async def test_an_app_that_signs_for_the_sidecar_is_signed_for_the_provider(
    plane: Served, upstream: OddUpstream, tmp_path: Path, aws: Mapping[str, str]
) -> None:
    """A signature holds for one address: where the sidecar carries the key, it makes the one that the provider needs."""
    settings = without_key(
        environment(plane.url, tmp_path, bedrock=upstream.url), "BEDROCK", BURSAR_API_KEY=KEY, **aws
    )
    async with running_sidecar(settings) as sidecar:
        with closing(bedrock_client(sidecar)) as client:
            reply = await asyncio.to_thread(client.converse, modelId=MODEL, **ASKED)
    assert reply["usage"]["inputTokens"] == 7
    (heard,) = upstream.heard
    assert (heard.header("authorization") or "").endswith(f"Signature={signature_of(heard, 'eu-north-1')}")
    assert len([name for name, _ in heard.headers if name == "authorization"]) == 1


def bedrock_client(sidecar: RunningSidecar) -> Any:
    config = botocore.config.Config(retries={"max_attempts": 0})
    session = botocore.session.Session()
    return session.create_client(
        "bedrock-runtime", "eu-north-1", endpoint_url=f"{sidecar.url}/bedrock", config=config
    )


async def test_the_aws_sdk_with_a_bur_key(
    plane: Served, upstream: OddUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F048: the SDK changes its address and its access key id, and reads answers, streams and refusals as ever."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "anything")
    async with running_sidecar(environment(plane.url, tmp_path, bedrock=upstream.url)) as sidecar:
        with closing(bedrock_client(sidecar)) as client:
            reply = await asyncio.to_thread(client.converse, modelId=MODEL, **ASKED)
            assert reply["output"]["message"]["content"] == [{"text": "Sea"}]
            assert upstream.heard[0].header("authorization") == "Bearer sk-bedrock"
            frames = event("messageStart", {"role": "assistant"})
            frames += event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "Sea"}})
            frames += event("messageStop", {"stopReason": "end_turn"})
            usage = {"inputTokens": 7, "outputTokens": 4, "totalTokens": 11}
            frames += event("metadata", {"usage": usage, "metrics": {"latencyMs": 1}})
            lines = ("content-type: application/vnd.amazon.eventstream", f"content-length: {len(frames)}")
            upstream.answer = head("200 OK", *lines) + frames
            stream = await asyncio.to_thread(client.converse_stream, modelId=MODEL, **ASKED)
            events = await asyncio.to_thread(list, stream["stream"])
            assert [next(iter(one)) for one in events][-1] == "metadata"
            assert events[-1]["metadata"]["usage"] == usage
            plane.service.account.limit_nanos = 0
            with pytest.raises(client.exceptions.ClientError) as refused:
                await asyncio.to_thread(client.converse, modelId=MODEL, **ASKED)
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 402
    assert refused.value.response["Error"]["Code"] == "BUDGET_CAP_HARD"
    used = [record.items[0].usage.output_tokens for record in plane.service.records.values()]
    assert used == [3, 4]


async def test_without_the_extra_the_app_hears_which_is_missing(
    plane: Served,
    upstream: OddUpstream,
    tmp_path: Path,
    aws: Mapping[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`bursar[sidecar]` alone runs; what needs more says so, and the call is given back."""

    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("bursar_sidecar.signing.importlib.import_module", missing)
    settings = without_key(environment(plane.url, tmp_path, bedrock=upstream.url), "BEDROCK", **aws)
    async with running_sidecar(settings) as sidecar, await sidecar.post(CONVERSE, json=ASKED) as answer:
        refused = await answer.json()
    assert (answer.status, refused["code"]) == (500, "UPSTREAM_CREDENTIAL")
    assert "pip install 'bursar[sidecar,bedrock]'" in refused["message"]
    assert (upstream.heard, plane.service.holds, plane.service.records) == ([], {}, {})


async def test_vertex_gets_a_token_of_the_service_account(
    plane: Served, upstream: OddUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F183: fetched once, kept while it holds."""
    async with odd_upstream() as tokens:
        tokens.answer = json_answer(b'{"access_token":"ya29.x","expires_in":3599,"token_type":"Bearer"}')
        key = rsa.generate_private_key(65537, 2048).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        account = tmp_path / "account.json"
        account.write_text(
            json.dumps(
                {
                    "type": "service_account",
                    "project_id": "p",
                    "private_key_id": "1",
                    "private_key": key.decode(),
                    "client_email": "bursar@p.iam.gserviceaccount.com",
                    "token_uri": f"{tokens.url}/token",
                }
            )
        )
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(account))
        monkeypatch.setenv("NO_PROXY", "*")
        upstream.answer = json_answer(
            b'{"candidates":[{"content":{"parts":[{"text":"Sea"}]},"finishReason":"STOP"}],"usageMetadata":'
            b'{"promptTokenCount":7,"candidatesTokenCount":1,"trafficType":"ON_DEMAND"},"modelVersion":"gemini-3"}'
        )
        settings = without_key(
            environment(plane.url, tmp_path, vertex=upstream.url),
            "VERTEX",
            GOOGLE_APPLICATION_CREDENTIALS=str(account),
        )
        path = "/vertex/v1/projects/p/locations/global/publishers/google/models/gemini-3:generateContent"
        async with running_sidecar(settings) as sidecar:
            for _ in range(2):
                async with await sidecar.post(path, json={"contents": []}) as answer:
                    assert answer.status == 200
    assert [heard.header("authorization") for heard in upstream.heard] == ["Bearer ya29.x"] * 2
    (asked,) = tokens.heard
    assert parse_qs(asked.body.decode())["grant_type"] == ["urn:ietf:params:oauth:grant-type:jwt-bearer"]
    assert {record.items[0].service_tier for record in plane.service.records.values()} == {"ON_DEMAND"}


async def test_azure_gets_a_token_of_entra_id(
    plane: Served, upstream: OddUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F183: a refusal of Entra's is told without what was sent to it."""
    async with odd_upstream() as entra:
        entra.answer = json_answer(b'{"access_token":"ey.x","expires_in":3599}')
        monkeypatch.setattr(signing, "_ENTRA", entra.url)
        monkeypatch.setenv("NO_PROXY", "*")
        settings = without_key(
            environment(plane.url, tmp_path, azure=upstream.url),
            "AZURE",
            AZURE_TENANT_ID="our tenant",
            AZURE_CLIENT_ID="our-app",
            AZURE_CLIENT_SECRET="hush",
        )
        path = "/azure/openai/deployments/our-mini/chat/completions?api-version=2024-10-21"
        async with running_sidecar(settings) as sidecar, await sidecar.post(path) as answer:
            assert answer.status == 200
        entra.answer = json_answer(b'{"error":"invalid_client"}', "401 Unauthorized")
        async with running_sidecar(settings) as sidecar, await sidecar.post(path) as answer:
            refused = await answer.text()
    assert (answer.status, "hush" in refused, "status 401" in refused) == (500, False, True)
    (heard,) = upstream.heard
    assert heard.header("authorization") == "Bearer ey.x"
    assert entra.heard[0].target == "/our%20tenant/oauth2/v2.0/token"
    form = parse_qs(entra.heard[0].body.decode())
    assert (form["client_secret"], form["scope"]) == (
        ["hush"],
        ["https://cognitiveservices.azure.com/.default"],
    )
