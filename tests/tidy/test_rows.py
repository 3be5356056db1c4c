"""The rows and rules that tests cite exist, and the list of what is proven counts only what passed."""

from __future__ import annotations

from pathlib import Path

from tools.coverage_rows import defined_rows, find_proofs, passed, rows_in, table

from tidy.conftest import MakeProject
from tidy.project import ROOT, expect_none


def unknown_rows(root: Path) -> list[str]:
    rows = defined_rows(root)
    return [f"{test.label}: {row}" for test in find_proofs(root) for row in test.rows if row not in rows]


def test_every_row_that_a_test_names_exists() -> None:
    expect_none(unknown_rows(ROOT))


def test_the_documents_have_all_their_rows() -> None:
    rows = defined_rows(ROOT)
    assert [row for row in rows if row[0] == "F"] == [f"F{number:03d}" for number in range(1, 203)]
    assert [row for row in rows if row[0] == "C"] == [f"C{number:02d}" for number in range(1, 27)]
    assert [row for row in rows if row[0] == "S"] == [f"S{number}" for number in range(1, 27)]


def test_rows_are_found_in_a_docstring() -> None:
    assert rows_in("F200, S6: to the nano; F074–F076 and S14-S15, C03. Not AS14, S267 or F1.") == (
        "C03",
        "F074",
        "F075",
        "F076",
        "F200",
        "S14",
        "S15",
        "S6",
    )


SUITE = '''
def test_plain():
    """F001: it works."""

class TestGroup:
    async def test_inside(self):
        """S2: it works, C01 too."""

def test_broken():
    """F002: it would."""

def test_cases():
    """F999: in all cases."""
'''
REPORT = """<testsuites><testsuite>
<testcase classname="tests.unit.test_a" name="test_plain"/>
<testcase classname="tests.unit.test_a.TestGroup" name="test_inside[x]"/>
<testcase classname="tests.unit.test_a" name="test_broken"><failure/></testcase>
<testcase classname="tests.unit.test_a" name="test_cases[a.b]"/>
<testcase classname="tests.unit.test_a" name="test_cases[c]"><skipped/></testcase>
</testsuite></testsuites>"""


def test_only_what_passed_proves_a_row(make_project: MakeProject) -> None:
    small = make_project(
        {
            "docs/requirements.md": "| F001 | One |\n| F002 | Two |\n| C01 | Q | D |\n",
            "docs/semantics.md": "- **S1** One\n- **S2** Two\n",
            "tests/unit/test_a.py": SUITE,
            "junit.xml": REPORT,
        }
    )
    assert unknown_rows(small.root) == ["tests/unit/test_a.py::test_cases: F999"]
    lines = list(
        table(defined_rows(small.root), list(find_proofs(small.root)), passed(small.root / "junit.xml"))
    )
    assert lines == [
        "PROVEN",
        "F001  tests/unit/test_a.py::test_plain",
        "C01   tests/unit/test_a.py::TestGroup::test_inside",
        "S2    tests/unit/test_a.py::TestGroup::test_inside",
        "\nNOT PROVEN",
        "F002  Two",
        "S1    One",
        "",
        "proven F: 1 of 2, C: 1 of 1, S: 1 of 2",
    ]
