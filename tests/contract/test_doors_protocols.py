"""Every protocol on both doors, asked by the real `buf curl`, in clear text and over TLS, with and without a schema."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bursar_server.rpc.listen import Tls
from support.certificates import make_certificate
from support.door_clients import post, request
from support.doors import Doors, buf_curl

BODY = {"user_id": "alice@example.com", "limit_usd": 0.1, "period": "BUDGET_PERIOD_DAILY"}


@pytest.fixture(scope="module")
def doors() -> Iterator[Doors]:
    with Doors() as running:
        yield running


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Doors, Path]]:
    certificate, key = make_certificate(tmp_path_factory.mktemp("tls"))
    with Doors(tls=Tls(certificate, key)) as running:
        yield running, certificate


@pytest.mark.parametrize("schema", [False, True], ids=["reflection", "schema"])
@pytest.mark.parametrize("protocol", ["connect", "grpcweb", "grpc"])
def test_buf_curl_in_clear_text(doors: Doors, protocol: str, schema: bool) -> None:
    """F185: the user's commands, in each protocol."""
    budget = buf_curl(doors.url, "UserService/SetBudget", BODY, protocol=protocol, schema=schema).answer[
        "budget"
    ]
    assert budget == {
        "name": "alice@example.com",
        "period": "BUDGET_PERIOD_DAILY",
        "limitUsd": 0.1,
        "limitNanos": "100000000",
    }


@pytest.mark.parametrize("schema", [False, True], ids=["reflection", "schema"])
@pytest.mark.parametrize("protocol", ["connect", "grpcweb", "grpc"])
def test_buf_curl_over_tls(secure: tuple[Doors, Path], protocol: str, schema: bool) -> None:
    """F185: HTTP/2 is agreed on by ALPN."""
    doors, authority = secure
    done = buf_curl(
        doors.url, "UserService/SetBudget", BODY, protocol=protocol, schema=schema, authority=authority
    )
    assert done.answer["budget"]["limitNanos"] == "100000000"


@pytest.mark.parametrize("schema", [False, True], ids=["reflection", "schema"])
def test_buf_curl_at_the_grpc_door(doors: Doors, secure: tuple[Doors, Path], schema: bool) -> None:
    clear = buf_curl(doors.grpc_url, "UserService/SetBudget", BODY, protocol="grpc", schema=schema)
    assert clear.answer["budget"]["limitUsd"] == 0.1
    over_tls, authority = secure
    done = buf_curl(
        over_tls.grpc_url, "UserService/SetBudget", BODY, protocol="grpc", schema=schema, authority=authority
    )
    assert done.answer == clear.answer


@pytest.mark.parametrize("at", ["connect", "grpc"])
def test_reflection_lists_the_services_without_a_token(doors: Doors, at: str) -> None:
    url = doors.url if at == "connect" else doors.grpc_url
    for version in ("grpc-v1", "grpc-v1alpha"):
        done = buf_curl(
            url,
            "UserService/GetMyBudget",
            protocol=at,
            token="alice",
            options=("--reflect-protocol", version),
        )
        assert done.answer["periodKey"] == "alice@example.com"


def test_a_person_asks_for_its_own_budget(doors: Doors) -> None:
    """F008: authenticated as the current user, without a body; a zero is shown, not left out."""
    answer = buf_curl(doors.url, "UserService/GetMyBudget", token="alice").answer
    assert answer == {"periodKey": "alice@example.com", "totalRemainingUsd": 0}


@pytest.mark.parametrize("protocol", ["connect", "grpcweb", "grpc"])
def test_a_download_arrives_in_pieces(doors: Doors, protocol: str) -> None:
    done = buf_curl(doors.url, "ChargebackService/DownloadReport", {"report_id": "x"}, protocol=protocol)
    assert done.code == 0
    assert [word for word in ("b25l", "dHdv", "dGhyZWU=") if word in done.out] == ["b25l", "dHdv", "dGhyZWU="]


@pytest.mark.parametrize("protocol", ["connect", "grpcweb", "grpc"])
def test_a_download_that_breaks_says_so_and_nothing_more(doors: Doors, protocol: str) -> None:
    url = doors.grpc_url if protocol == "grpc" else doors.url
    broken = buf_curl(url, "ChargebackService/DownloadReport", {"report_id": "half"}, protocol=protocol)
    assert broken.code != 0
    assert "b25l" in broken.out
    assert '"code": "internal"' in broken.err
    assert "secret text" not in broken.err + broken.out
    wrong = buf_curl(url, "ChargebackService/DownloadReport", {"report_id": "wrong"}, protocol=protocol)
    assert '"code": "invalid_argument"' in wrong.err
    assert "google.rpc.BadRequest" in wrong.err


def test_curl_with_json_over_tls(secure: tuple[Doors, Path]) -> None:
    doors, authority = secure
    reply = post(doors.url, "UserService/SetBudget", BODY, authority=authority)
    assert (reply.status, reply.json["budget"]["limitUsd"]) == (200, 0.1)


def test_reads_can_be_had_with_get(doors: Doors) -> None:
    path = "/bursar.v1.UserService/GetMyBudget?connect=v1&encoding=json&message=%7B%7D"
    headers = {"authorization": "Bearer alice"}
    assert request(doors.url, path, method="GET", headers=headers).json["periodKey"] == "alice@example.com"
    changing = path.replace("GetMyBudget", "SetBudget")
    assert request(doors.url, changing, method="GET", headers=headers).status == 405


def test_http2_can_be_turned_off() -> None:
    with Doors(http2=False) as doors:
        assert post(doors.url, "UserService/SetBudget", BODY).status == 200
        assert buf_curl(doors.url, "UserService/SetBudget", BODY, schema=True).code == 0
        assert buf_curl(doors.url, "UserService/SetBudget", BODY, protocol="grpc", schema=True).code != 0
        assert buf_curl(doors.grpc_url, "UserService/SetBudget", BODY, protocol="grpc").code == 0
