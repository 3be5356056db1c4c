"""What is compiled is what the sources say: nothing out of date is run, tested or shipped."""

from pathlib import Path

import pytest
from tools import compile as compiling


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree with one source, and what was compiled of it."""
    package = tmp_path / "services" / "bursar_server" / "metering"
    package.mkdir(parents=True)
    (package / "rules.py").write_text("LIMIT = 1\n")
    monkeypatch.setattr(compiling, "ROOT", tmp_path)
    monkeypatch.setattr(compiling, "SOURCES", tmp_path / "services")
    monkeypatch.setattr(compiling, "STAMP", tmp_path / "stamp.json")
    monkeypatch.setattr(compiling, "__file__", str(tmp_path / "services" / "compile.py"))
    monkeypatch.setattr(compiling, "MODULES", {"metering": ("rules",)})
    (tmp_path / "services" / "compile.py").write_text("")
    (package / "rules.abi.so").write_text("")
    compiling.stamp()
    return package


def test_what_is_compiled_of_the_sources_as_they_are_is_current(tree: Path) -> None:
    assert compiling.current()
    assert compiling.main(["--check"]) == 0


@pytest.mark.parametrize("change", ["source", "product", "tool"])
def test_what_is_not_is_neither_tested_nor_shipped(
    tree: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if change == "source":
        (tree / "rules.py").write_text("LIMIT = 2\n")
    elif change == "product":
        (tree / "model.abi.so").write_text("")
    else:
        (tree.parent.parent / "compile.py").write_text("# otherwise\n")
    assert compiling.main(["--check"]) == 1
    assert "make compile" in capsys.readouterr().err
    hook = compiling.CompiledWheel.__new__(compiling.CompiledWheel)
    with pytest.raises(RuntimeError, match=r"compile\.py"):
        hook.initialize("standard", {})


def test_nothing_compiled_is_nothing_out_of_date(tree: Path) -> None:
    assert compiling.main(["--remove"]) == 0
    assert compiling.products() == []
    assert not compiling.current()
    assert compiling.main(["--check"]) == 0


def test_without_a_compiler_the_sources_run_as_they_are(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tree / "rules.py").write_text("LIMIT = 2\n")
    monkeypatch.setenv("CC", "no-such-compiler")
    assert compiling.main([]) == 0
    assert "no-such-compiler" in capsys.readouterr().err
    assert compiling.products() == []


def test_every_module_that_is_compiled_is_there() -> None:
    assert [file for file in compiling.sources() if not file.is_file()] == []
