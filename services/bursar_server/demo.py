"""`bursar demo`: a scripted walk against a throw-away installation, from the first budget to the statement."""

import json
import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO

from bursar_server.kit.clock import Clock, SystemClock

ALICE = "alice@example.com"
MODEL = "gpt-4o"
LIMIT_USD = 0.003
GRANT_USD = 0.01
MOST_CALLS = 40
START_TIMEOUT_S = 120

_QUESTION = "In one sentence: why should spending on language models be governed?"


class DemoFailedError(Exception):
    """A step of the walk did not do what it should; the message says which."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer; `headers` have lower-case names."""

    status: int
    headers: Mapping[str, str]
    body: Any


def _post(url: str, body: Mapping[str, object], token: str) -> Reply:
    request = urllib.request.Request(  # noqa: S310  (addresses of the demo's own processes)
        url,
        data=json.dumps(body).encode(),
        headers={"content-type": "application/json", "authorization": f"Bearer {token}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            return _reply(answer.status, answer.headers, answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return _reply(error.code, error.headers, error.read())


def _reply(status: int, headers: Any, body: bytes) -> Reply:
    return Reply(
        status, {name.lower(): value for name, value in headers.items()}, json.loads(body or b"null")
    )


class Walk:
    """The steps, and how they are told."""

    def __init__(self, stack: Mapping[str, str], out: TextIO, clock: Clock) -> None:
        self._clock = clock
        self._control_plane = f"http://{stack['listen']}"
        self._sidecar = f"http://{stack['sidecar_listen']}"
        self._token = Path(stack["admin_token_file"]).read_text(encoding="utf-8").strip()
        self._out = out
        self._step = 0

    def say(self, text: str = "") -> None:
        """Tell a line."""
        self._out.write(text + "\n")
        self._out.flush()

    def step(self, title: str) -> None:
        """Tell what comes next."""
        self._step += 1
        self.say(f"\n{self._step}. {title}")

    def rpc(self, name: str, body: Mapping[str, object]) -> Any:
        """Call an RPC as the administrator. Raises DemoFailedError for anything but success."""
        reply = _post(f"{self._control_plane}/bursar.v1.{name}", body, self._token)
        if reply.status != 200:
            raise DemoFailedError(f"{name} answered {reply.status}: {reply.body}")
        return reply.body

    def chat(self, key: str) -> Reply:
        """Make one chat completion through the sidecar."""
        message = {"model": MODEL, "messages": [{"role": "user", "content": _QUESTION}]}
        return _post(f"{self._sidecar}/openai/v1/chat/completions", message, key)

    def run(self) -> None:
        """Walk from the first budget to the statement. Raises DemoFailedError where a step goes wrong."""
        self.step(f"A budget: {ALICE} may spend ${LIMIT_USD} a day")
        budget = self.rpc("UserService/SetBudget", {"user_id": ALICE, "limit_usd": LIMIT_USD})["budget"]
        self.say(f"   SetBudget -> {budget['name']!r}, {budget['period']}, {budget['enforcement']}")
        self.step("A key for her app, shown once")
        made = self.rpc("TenantService/CreateApiKey", {"name": "demo app", "user_id": ALICE})
        key = made["secret"]
        self.say(f"   CreateApiKey -> {made['apiKey']['maskedKey']}")
        self.step("Calls through the sidecar, until the budget is spent")
        denied = self._call_until_denied(key)
        self.step("The next call is refused before it reaches the provider")
        self._show_denial(denied)
        self.step(f"A grant of ${GRANT_USD} for a day")
        self._grant()
        self.step("The same call again")
        self._show_call(1, self.chat(key))
        self.step("What she has left")
        self._show_left()
        self.step("The statement for finance")
        self._statement()

    def _call_until_denied(self, key: str) -> Reply:
        for number in range(1, MOST_CALLS + 1):
            reply = self.chat(key)
            if reply.status == 402:
                return reply
            self._show_call(number, reply)
        raise DemoFailedError(f"the budget was not spent after {MOST_CALLS} calls")

    def _show_call(self, number: int, reply: Reply) -> None:
        if reply.status != 200:
            raise DemoFailedError(f"the call answered {reply.status}: {reply.body}")
        usage = reply.body["usage"]
        cost, left = reply.headers["x-bursar-cost-usd"], reply.headers["x-bursar-remaining-usd"]
        tokens = f"{usage['prompt_tokens']} tokens in, {usage['completion_tokens']} out"
        self.say(f"   call {number:>2}: {tokens}, cost ${cost}, ${left} left")

    def _show_denial(self, reply: Reply) -> None:
        error = reply.body["error"]
        self.say(f"   HTTP {reply.status} {error['code']}: {error['message']}")
        alerts = self.rpc("UserService/ListAuditLog", {"action": "BUDGET_CAP_SOFT", "limit": 1}).get(
            "entries", []
        )
        if not alerts:
            raise DemoFailedError("the soft limit raised no alert")
        details = alerts[0]["details"]
        self.say(
            f"   Before that, the alert: BUDGET_CAP_SOFT at {details['soft_limit_pct']:.0f} %, {details['spent']} spent"
        )

    def _grant(self) -> None:
        now = self._clock.now()
        grant = self.rpc(
            "UserService/CreateGrant",
            {
                "user_id": ALICE,
                "amount_usd": GRANT_USD,
                "reason": "demo day",
                "starts_at": f"{now:%Y-%m-%dT%H:%M:%SZ}",
                "expires_at": f"{now + timedelta(days=1):%Y-%m-%dT%H:%M:%SZ}",
            },
        )["grant"]
        self.say(f"   CreateGrant -> ${grant['amountUsd']} until {grant['expiresAt']}")

    def _show_left(self) -> None:
        left = self.rpc("UserService/GetBudget", {"user_id": ALICE})
        self.say(
            f"   grants ${left['grantsRemainingUsd']:.6f} + budget ${left['budgetRemainingUsd']:.6f}"
            f" = ${left['totalRemainingUsd']:.6f}"
        )

    def _statement(self) -> None:
        now = self._clock.now()
        span = {
            "from": f"{now - timedelta(days=1):%Y-%m-%dT%H:%M:%SZ}",
            "to": f"{now + timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}",
        }
        summary = self.rpc("UsageService/GetCostSummary", {**span, "group_by": ["USER", "MODEL"]})
        for group in summary["groups"]:
            totals = group["totals"]
            self.say(f"   {group['key']['model']}: {totals['requests']} calls, ${totals['costUsd']}")
        report = self.rpc("ChargebackService/GenerateReport", span)["report"]
        self.say(
            f"   report {report['reportId']}: ${report['totalUsd']}, sha256 {report['contentSha256'][:16]}…"
        )
        if report["totalNanos"] != summary["totals"]["costNanos"]:
            raise DemoFailedError("the report and the summary do not agree")
        self.say("   The report and the summary agree to the nano.")


@contextmanager
def _throw_away_stack(out: TextIO) -> Iterator[Mapping[str, str]]:
    """Run `bursar up` on free ports and an empty directory, with the fake provider; everything is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="bursar-demo-") as folder:
        environ = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("BURSAR_") and not name.endswith("_API_KEY")
        }
        free = dict.fromkeys(("BURSAR_LISTEN", "BURSAR_GRPC_LISTEN", "BURSAR_SIDECAR_LISTEN"), "127.0.0.1:0")
        log = Path(folder, "up.log")
        with log.open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "bursar_server", "up"],
                env={**environ, **free, "BURSAR_DATA_DIR": folder, "BURSAR_OUTBOX_DIR": f"{folder}/outbox"},
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=folder,
            )
        try:
            yield _ready_line(process, log)
        finally:
            process.terminate()
            process.wait(timeout=30)
            if process.stdout:
                process.stdout.close()
        out.write("\nEverything of this demo is stopped and removed.\n")


def _ready_line(process: "subprocess.Popen[bytes]", log: Path) -> Mapping[str, str]:
    assert process.stdout is not None  # noqa: S101  (asked for with PIPE)
    line = process.stdout.readline()
    if not line:
        process.wait(timeout=START_TIMEOUT_S)
        tail = log.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise DemoFailedError(f"the installation did not start:\n{tail}")
    stack: Mapping[str, str] = json.loads(line)
    return stack


def run_demo(out: TextIO) -> int:
    """Walk once; return 0, or 1 with what went wrong on stderr."""
    out.write("Bursar demo: a throw-away installation with a fake provider. Starting …\n")
    out.flush()
    try:
        with _throw_away_stack(out) as stack:
            Walk(stack, out, SystemClock()).run()
    except DemoFailedError as error:
        sys.stderr.write(f"\ndemo failed: {error}\n")
        return 1
    out.write("\nNext: `bursar up` (in a clone, `make up`), and the README.\n")
    return 0
