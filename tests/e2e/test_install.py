"""`bursar[sidecar]` installed alone in a bare environment runs the sidecar against a control plane."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tools.bench_weight import UNWANTED, install, run, unwanted
from tools.compile import products

from support.stack import Stack, call, environment, started


def test_the_sidecar_alone_needs_nothing_of_the_control_plane(stack: Stack, folder: Path) -> None:
    """F099: a wheel with one extra, no grpc and no database, and a call through it is charged."""
    bare = install(folder)
    assert unwanted(bare / "bin" / "python", folder) == []
    assert not (bare / "bin" / "bursar").exists() or "grpc" in UNWANTED
    find = "import importlib.util as i; print(i.find_spec('bursar_server.metering.rules').origin)"
    origin = run(str(bare / "bin" / "python"), "-c", find, cwd=folder).strip()
    assert origin.endswith(".so") == bool(products()), "a wheel has what is compiled in the tree"
    token = (stack.data_dir / "sidecar-token").read_text(encoding="utf-8").strip()
    environ = environment(
        BURSAR_CONTROL_PLANE_URL=stack.url,
        BURSAR_SIDECAR_TOKEN=token,
        BURSAR_DATA_DIR=str(folder / "data"),
        BURSAR_UPSTREAM_OPENAI_URL=stack.provider_url,
        BURSAR_UPSTREAM_OPENAI_API_KEY="sk-its-own",
    )
    email, key = stack.person("bare", 1)
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hello."}]}
    with started((), environ, folder, program=bare / "bin" / "bursar-sidecar") as sidecar:
        reply = call(sidecar.url, "/v1/chat/completions", body, key)
    assert reply.status == 200
    (record,) = stack.records(user_id=email)
    assert float(reply.headers["x-bursar-cost-usd"]) == record["costUsd"]


def test_the_sidecars_command_teaches(folder: Path) -> None:
    """What to do next is in its help, without a control plane to ask."""
    done = subprocess.run(
        ["bursar-sidecar", "--help"],
        env=environment(),
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "OPENAI_BASE_URL=http://127.0.0.1:4000/openai/v1" in done.stdout
