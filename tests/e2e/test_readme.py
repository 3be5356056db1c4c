"""Every command of the README is run, in its order, and does what the README says."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.embedded import is_running, wait_until
from support.readme import Block, blocks, install_curl, put_curl_on_the_path, script_of
from support.stack import BIN, ROOT, Stack, children_of, environment, stack_of, started

README = (ROOT / "README.md").read_text(encoding="utf-8")
# Run through the Makefile: what comes after them needs what the first of them started.
MAKE = ("make up\n", "make demo\n")


def steps() -> list[Block]:
    """Return what a reader runs after `make up`."""
    found = [block for block in blocks(README) if block.language in ("sh", "python")]
    assert tuple(block.text for block in found[:2]) == MAKE
    return found[2:]


@contextmanager
def made_up(folder: Path) -> Iterator[Stack]:
    """Run `make up` of this clone on free ports, with its data in `folder`."""
    environ = environment(BURSAR_DATA_DIR=str(folder / "data"))
    with started(("--no-print-directory", "-C", str(ROOT), "up"), environ, folder, program="make") as make:
        family = children_of(make.pid)
        try:
            # What to try next is said right after the ready line.
            wait_until(lambda: "Bursar is running" in make.log, "the hints")
            yield stack_of(make, folder)
        finally:
            # Ctrl-C reaches every process of the terminal; make itself passes nothing on.
            os.kill(family[0], signal.SIGINT)
            wait_until(lambda: not any(map(is_running, family)), "all of it has ended", 40)


def run_as_a_reader(stack: Stack, folder: Path) -> list[tuple[Block, str]]:
    """Run the steps in a folder that looks like the clone; return each with what it said."""
    clone, out, programs = folder / "clone", folder / "out", folder / "programs"
    for place in (clone, out, programs):
        place.mkdir()
    (clone / ".bursar").symlink_to(stack.data_dir)
    (clone / ".venv").symlink_to(BIN.parent)
    put_curl_on_the_path(programs)
    script = script_of(steps(), out)
    for written, real in (("127.0.0.1:8080", stack.url), ("127.0.0.1:4000", stack.sidecar_url)):
        assert written in script
        script = script.replace(f"http://{written}", real)
    environ = environment()
    environ["PATH"] = f"{programs}{os.pathsep}{environ['PATH']}"
    done = subprocess.run(
        ["sh", "-c", script], cwd=clone, env=environ, capture_output=True, text=True, check=False, timeout=120
    )
    said = [(out / f"{number}.out", out / f"{number}.err") for number in range(len(steps()))]
    errors = "".join(error.read_text() for _, error in said if error.exists())
    assert (done.returncode, errors) == (0, ""), errors + done.stderr
    return [(step, shown.read_text()) for step, (shown, _) in zip(steps(), said, strict=True)]


def objects_in(text: str) -> list[Any]:
    """Return the JSON values that stand one after the other in a text."""
    decoder, found, text = json.JSONDecoder(), [], text.lstrip()
    while text:
        value, end = decoder.raw_decode(text)
        found.append(value)
        text = text[end:].lstrip()
    return found


def test_every_command_does_what_it_says(folder: Path) -> None:
    """F099, F185, C04: the two commands, a call with curl and with an SDK, the 402, the grant, what is left."""
    with made_up(folder) as stack:
        said = run_as_a_reader(stack, folder)
        budget, curl, sdk, refusal, grant, left = (text for _, text in said)
        set_budget, *_ = objects_in(budget)
        assert set_budget["budget"]["limitUsd"] == 0.001

        # curl writes the head as it came, line by line with a carriage return.
        head, _, body = curl.replace("\r\n", "\n").partition("\n\n")
        assert head.startswith("HTTP/1.1 200")
        headers = dict(line.lower().split(": ", 1) for line in head.splitlines()[1:])
        assert float(headers["x-bursar-cost-usd"]) > 0
        assert float(headers["x-bursar-remaining-usd"]) < 0.001
        assert json.loads(body)["choices"][0]["message"]["content"] == sdk

        codes = re.findall(r"^\d{3}$", refusal, re.MULTILINE)
        assert len(codes) == 5
        assert codes == ["200"] * codes.index("402") + ["402"] * codes.count("402")
        assert same_shape(json.loads(refusal[refusal.index("{") :]), shown_refusal())

        made, answered = objects_in(grant)
        assert (made["grant"]["amountUsd"], made["grant"]["reason"]) == (0.05, "release week")
        assert answered["choices"][0]["message"]["content"]

        mine, summary = objects_in(left)
        assert mine["budgetRemainingUsd"] == 0
        assert 0.04 < mine["grantsRemainingUsd"] < 0.05
        assert mine["totalRemainingUsd"] == mine["grantsRemainingUsd"]
        (group,) = summary["groups"]
        assert group["key"]["model"] == "gpt-4o"
        assert int(group["totals"]["requests"]) == 3 + codes.count("200")


def shown_refusal() -> Any:
    """Return the refusal that the README shows."""
    (shown,) = [block.text for block in blocks(README) if block.language == "json"]
    return json.loads(shown)


def same_shape(found: Any, shown: Any) -> bool:
    """Whether a refusal is the one that is shown, but for ids, amounts and the day."""
    if isinstance(found, dict) and isinstance(shown, dict):
        return found.keys() == shown.keys() and all(same_shape(found[name], shown[name]) for name in found)
    if isinstance(found, str) and isinstance(shown, str):
        varies = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4,12}){4}|…|\$[0-9.]+|\d{4}-\d\d-\d\dT00:00:00Z")
        return varies.sub("#", found) == varies.sub("#", shown)
    if isinstance(found, float) and isinstance(shown, float):
        return True
    return bool(found == shown)


def test_the_demo_of_the_makefile_ends_by_itself(folder: Path) -> None:
    """`make demo` walks from the budget to the statement, and leaves nothing behind."""
    done = subprocess.run(
        ["make", "--no-print-directory", "-C", str(ROOT), "demo"], env=environment(TMPDIR=str(folder)),
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "report and the summary agree" in done.stdout
    assert [path.name for path in folder.iterdir() if "lock" not in path.name] == []


def test_the_stand_in_for_curl_does_as_curl(stack: Stack, folder: Path) -> None:
    """On a machine without `curl` the README is tested all the same."""
    curl = install_curl(folder)
    body = '{"user_id":"x@example.com","limit_usd":"NaN"}'
    url = f"{stack.url}/bursar.v1.UserService/SetBudget"
    header = ("-H", f"Authorization: Bearer {stack.token}", "-H", "Content-Type: application/json")
    done = subprocess.run(
        [str(curl), "-s", "-D", "-", "-o", "answer.json", "-w", "%{http_code}\\n", url, *header, "-d", body],
        cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("HTTP/1.1 400 ")
    assert done.stdout.endswith("\n400\n")
    assert json.loads((folder / "answer.json").read_bytes())["code"] == "invalid_argument"


@pytest.mark.parametrize("path", ["proto/bursar/v1/", "docs/configuration.md"])
def test_what_the_readme_points_to_is_there(path: str) -> None:
    """The map at the end is of this tree."""
    assert path in README
    assert (ROOT / path).exists()
