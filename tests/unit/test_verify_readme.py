"""The ledger's README and the proof speak of the same invariants."""

import re

from bursar_server.verify.model import INVARIANTS
from tidy.project import ROOT


def test_every_invariant_is_in_the_readme_and_checked() -> None:
    """S26: what is written is what is proved."""
    folder = ROOT / "services" / "bursar_server"
    readme = (folder / "ledger" / "README.md").read_text(encoding="utf-8")
    written = re.findall(r"^- \*\*(I\d+)\*\* ", readme, re.MULTILINE)
    assert written == [invariant.number for invariant in INVARIANTS]
    checks = "".join(
        path.read_text(encoding="utf-8")
        for path in (folder / "verify").glob("*.py")
        if path.name != "model.py"
    )
    assert {number for number in written if f'"{number}"' not in checks} == set()
