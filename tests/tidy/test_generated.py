"""gen/ is what proto/ gives, byte for byte, with nothing left over."""

from __future__ import annotations

from pathlib import Path

import pytest
from tools.generate import differences, main, tree, write

from tidy.conftest import MakeProject
from tidy.project import ROOT

PROTO = """syntax = "proto3";
package bursar.v1;
message Small { string name = 1; }
"""


def test_generated_code_is_up_to_date(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0, capfd.readouterr().err


def test_generating_twice_changes_nothing_and_drift_is_seen(
    make_project: MakeProject, capfd: pytest.CaptureFixture[str]
) -> None:
    files = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("buf.yaml", "buf.gen.yaml")}
    root = make_project(
        {**files, "proto/bursar/v1/small.proto": PROTO, "gen/bursar/v1/old_pb2.py": "x = 1"}
    ).root
    assert main(["--root", str(root)]) == 0
    assert sorted(tree(root / "gen")) == [
        "bursar/__init__.py",
        "bursar/py.typed",
        "bursar/v1/__init__.py",
        "bursar/v1/small_pb2.py",
        "bursar/v1/small_pb2.pyi",
    ]
    assert main(["--root", str(root), "--check"]) == 0
    (root / "proto/bursar/v1/small.proto").write_text(PROTO.replace("name", "label"), encoding="utf-8")
    assert main(["--root", str(root), "--check"]) == 1
    assert "gen/bursar/v1/small_pb2.py: differs" in capfd.readouterr().err


def test_missing_and_left_over_files_are_differences(tmp_path: Path) -> None:
    write({"a.py": b"1", "b.py": b"2"}, tmp_path)
    found = tree(tmp_path)
    assert differences({"a.py": b"1", "b.py": b"2"}, found) == []
    assert differences({"a.py": b"1", "c.py": b"3"}, found) == [
        "gen/b.py: no proto gives this file",
        "gen/c.py: missing",
    ]
