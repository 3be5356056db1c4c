"""The main job, told once from end to end: budget, call, refusal, grant, call again, statement, trail."""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from support.door_clients import request
from support.stack import Stack

CHAT = "/v1/chat/completions"
HELLO = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Say hello to finance."}]}
CLAUDE = {"model": "claude-sonnet-5", "max_tokens": 50, "messages": HELLO["messages"]}
GEMINI = "/gemini/v1beta/models/gemini-2.5-flash:generateContent"
CONTENTS = {"contents": [{"parts": [{"text": "Say hello to finance."}]}]}


def today() -> dict[str, str]:
    """Return a range around now, in instants."""
    now = datetime.now(UTC)
    return {
        "from": f"{now - timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}",
        "to": f"{now + timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}",
    }


def actions(stack: Stack, email: str) -> list[str]:
    entries = stack.rpc("UserService/ListAuditLog", {"user_id": email, "limit": 1000})["entries"]
    return [str(entry["action"]) for entry in entries]


def test_from_the_budget_to_the_grant(stack: Stack) -> None:
    """F051, F053, F054, F072, F076, F085, C04, S6, S10, S14: what everybody does on the first day."""
    email, key = stack.person("spine", 0.001)
    first = stack.call(CHAT, HELLO, key)
    assert first.status == 200
    assert first.json["choices"][0]["message"]["content"].endswith(".")
    cost = float(first.headers["x-bursar-cost-usd"])
    assert float(first.headers["x-bursar-remaining-usd"]) == pytest.approx(0.001 - cost)
    spent, calls = cost, 1
    while (reply := stack.call(CHAT, HELLO, key)).status == 200:
        spent, calls = spent + float(reply.headers["x-bursar-cost-usd"]), calls + 1
        assert calls < 20

    assert reply.status == 402
    assert reply.headers["x-should-retry"] == "false"
    assert reply.headers["x-bursar-request-id"]
    error = reply.json["error"]
    assert (error["code"], error["type"], error["param"]) == ("BUDGET_CAP_HARD", "insufficient_budget", None)
    assert error["message"].startswith("budget exhausted")
    assert "of $0.001 spent" in error["message"]

    grant = {
        "user_id": email,
        "amount_usd": 0.05,
        "reason": "release week",
        "expires_at": "2099-01-01T00:00:00Z",
    }
    stack.rpc("UserService/CreateGrant", grant)
    again = stack.call(CHAT, HELLO, key)
    assert again.status == 200
    mine = stack.rpc("UserService/GetMyBudget", {}, key)
    assert mine["budgetRemainingUsd"] == 0
    assert mine["grantsRemainingUsd"] == pytest.approx(0.05 - float(again.headers["x-bursar-cost-usd"]))
    assert mine["totalRemainingUsd"] == mine["effectiveRemainingUsd"] == mine["grantsRemainingUsd"]
    assert float(again.headers["x-bursar-remaining-usd"]) == mine["effectiveRemainingUsd"]
    assert mine["budget"]["spentUsd"] == pytest.approx(spent)
    assert mine["budget"]["color"] == "BUDGET_COLOR_RED"
    assert len(stack.records(user_id=email)) == calls + 1
    done = actions(stack, email)
    assert {"create_user", "set_budget", "create_grant"} <= set(done)
    assert done.count("BUDGET_CAP_HARD") == 1
    assert done.count("BUDGET_CAP_SOFT") == 1


def test_an_alert_is_logged_to_the_letter(stack: Stack) -> None:
    """F081, F082, F088, S21: each threshold once, as a line that a log-based alert can look for."""
    email, key = stack.person("warned", 0.0005)
    assert stack.child is not None
    before = len(stack.child.log)
    while stack.call(CHAT, HELLO, key).status == 200:
        pass
    lines = [json.loads(line) for line in stack.child.log[before:].splitlines() if line.startswith("{")]
    said = [line["message"] for line in lines if "budget alert" in line["message"]]
    assert sorted(said) == sorted(f"🔔 budget alert: {pct}% threshold reached" for pct in (80, 90, 100))
    user_id = stack.rpc("UserService/GetUser", {"user_id": email})["user"]["userId"]
    assert user_id in stack.child.log[before:]


def test_the_statement_adds_up(stack: Stack) -> None:
    """F119, F131, F134, F138, C20, S24, S25: summary, report and records agree to the nano, and the hash is the file's."""
    email, key = stack.person("statement", 1)
    for path, body in ((CHAT, HELLO), ("/anthropic/v1/messages", CLAUDE), (GEMINI, CONTENTS)):
        assert stack.call(path, body, key).status == 200
    records = stack.records(user_id=email)
    own = stack.rpc("UsageService/GetCostSummary", today() | {"user_id": email})
    assert int(own["totals"]["requests"]) == len(records) == 3
    total = sum(int(record["costNanos"]) for record in records)
    assert int(own["totals"]["costNanos"]) == total
    grouped = stack.rpc(
        "UsageService/GetCostSummary",
        today() | {"user_id": email, "group_by": ["COST_DIMENSION_PROVIDER", "COST_DIMENSION_MODEL"]},
    )
    seen = {(group["key"]["provider"], group["key"]["model"]) for group in grouped["groups"]}
    assert seen == {
        ("openai", "gpt-4o"),
        ("anthropic", "claude-sonnet-5"),
        ("gemini", "gemini-2.5-flash"),
    }
    assert sum(int(group["totals"]["costNanos"]) for group in grouped["groups"]) == total

    everybody = stack.rpc("UsageService/GetCostSummary", today())["totals"]
    report = stack.rpc("ChargebackService/GenerateReport", today())["report"]
    assert report["totalNanos"] == everybody["costNanos"]
    as_json = download(stack, report["reportId"], "REPORT_FORMAT_JSON")
    assert hashlib.sha256(as_json).hexdigest() == report["contentSha256"]
    assert stack.call(CHAT, HELLO, key).status == 200
    assert download(stack, report["reportId"], "REPORT_FORMAT_JSON") == as_json
    assert b"gpt-4o" in download(stack, report["reportId"], "REPORT_FORMAT_CSV")


def download(stack: Stack, report_id: str, report_format: str) -> bytes:
    """Return a report as the Connect protocol streams it: enveloped JSON messages, the last one the end's."""
    body = json.dumps({"report_id": report_id, "format": report_format}).encode()
    reply = request(
        stack.url,
        "/bursar.v1.ChargebackService/DownloadReport",
        b"\0" + len(body).to_bytes(4, "big") + body,
        headers={"content-type": "application/connect+json", "authorization": f"Bearer {stack.token}"},
    )
    assert reply.status == 200, reply.body
    data, rest = b"", reply.body
    while rest:
        flags, size = rest[0], int.from_bytes(rest[1:5], "big")
        message: dict[str, Any] = json.loads(rest[5 : 5 + size])
        rest = rest[5 + size :]
        if flags & 2:
            assert message == {}, message
        data += base64.b64decode(message.get("data", ""))
    return data


@pytest.mark.parametrize(
    ("path", "body"),
    [(CHAT, HELLO), ("/anthropic/v1/messages", CLAUDE), (GEMINI, CONTENTS)],
    ids=["openai", "anthropic", "gemini"],
)
def test_who_may_not_call_is_told_in_the_words_of_the_api(
    stack: Stack, path: str, body: dict[str, Any]
) -> None:
    """F098, F182, C04: 401 for an unknown key, 403 for a revoked one, 429 above the rate limit."""
    before = len(stack.served())
    unknown = stack.call(path, body, "bur_" + "x" * 43)
    assert (unknown.status, "KEY_UNKNOWN" in unknown.body.decode()) == (401, True)
    assert stack.call(path, body, None).status == 401

    email, key = stack.person("revoked", 1)
    (shown,) = stack.rpc("TenantService/ListApiKeys", {"user_id": email})["apiKeys"]
    assert key not in json.dumps(shown)
    stack.rpc("TenantService/RevokeApiKey", {"key_id": shown["keyId"]})
    revoked = stack.call(path, body, key)
    assert (revoked.status, "KEY_REVOKED" in revoked.body.decode()) == (403, True)

    email, key = stack.person("hasty", 1)
    stack.rpc("UserService/UpdateUser", {"id": email, "rate_limit": 1})
    replies = [stack.call(path, body, key) for _ in range(3)]
    limited = [reply for reply in replies if reply.status == 429]
    assert len(limited) >= 1
    assert 0 < int(limited[0].headers["retry-after"]) <= 60
    assert len(stack.served()) - before == 3 - len(limited)


def test_what_an_app_says_about_itself_is_on_the_record(stack: Stack) -> None:
    """F107, S1: tags from header and body, the session, and nothing of it reaches the provider."""
    email, key = stack.person("tagged", 1)
    body = HELLO | {"metadata": {"tags": {"project": "apollo"}}}
    headers = {"x-bursar-tags": "team=core", "x-bursar-session": "s-1", "baggage": "bursar.tag.env=test,a=b"}
    assert stack.call(CHAT, body, key, headers).status == 200
    (record,) = stack.records(user_id=email)
    assert record["tags"] == {"team": "core", "project": "apollo", "env": "test"}
    assert record["sessionId"] == "s-1"
    seen = stack.served()[-1]
    assert json.loads(seen["body"]) == HELLO
    assert not [name for name in seen["headers"] if name.startswith("x-bursar")]


def test_every_process_says_how_it_is(stack: Stack) -> None:
    """Liveness, readiness and numbers for Prometheus at the usual places, without a token."""
    for url in (stack.url, stack.sidecar_url):
        for path in ("/healthz", "/readyz", "/metrics"):
            assert request(url, path, method="GET").status == 200
    assert b"bursar" in request(stack.url, "/metrics", method="GET").body


def test_what_is_shown_once_is_nowhere_else(stack: Stack) -> None:
    """F098, F181: secrets are in no log, and token files are their owner's alone."""
    _, key = stack.person("secret", 1)
    assert stack.call(CHAT, HELLO, key).status == 200
    assert stack.child is not None
    for secret in (key, stack.token, (stack.data_dir / "sidecar-token").read_text().strip()):
        assert secret not in stack.child.log
    for name in ("admin-token", "sidecar-token"):
        assert (stack.data_dir / name).stat().st_mode & 0o077 == 0
