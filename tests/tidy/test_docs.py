"""Every link in the documents leads somewhere, and decision records have one form."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from tidy.conftest import MakeProject
from tidy.project import Project, expect_none

LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
SECTIONS = ["Context", "Decision", "Alternatives", "Consequences"]
STATUS = re.compile(
    r"^Status: (accepted|proposed|superseded by \[\d{4}\]\(\d{4}-[a-z0-9-]+\.md\))$", re.MULTILINE
)


def without_code(text: str) -> str:
    """Return Markdown with its code blanked out, line for line."""
    text = re.sub(
        r"^(```|~~~).*?^\1", lambda found: "\n" * found[0].count("\n"), text, flags=re.MULTILINE | re.DOTALL
    )
    return re.sub(r"`[^`\n]*`", "", text)


def anchors(text: str) -> set[str]:
    """Return the anchors that headings get: lower case, punctuation dropped, spaces as hyphens, repeats numbered."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} (.+?)\s*$", re.sub(r"(?ms)^```.*?^```", "", text), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        base = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        anchor, repeat = base, 0
        while anchor in found:
            repeat += 1
            anchor = f"{base}-{repeat}"
        found.add(anchor)
    return found


def dead_links(project: Project) -> list[str]:
    found = []
    for path in project.matching("**/*.md"):
        for number, line in enumerate(without_code(project.text(path)).splitlines(), start=1):
            for match in LINK.finditer(line):
                target = match[1] or match[2]
                if not target.startswith(("https://", "http://", "mailto:")) and not _resolves(
                    project, path, target
                ):
                    found.append(f"{path}:{number}: {target}")
    return found


def _resolves(project: Project, path: str, target: str) -> bool:
    name, _, anchor = target.partition("#")
    file = (project.root / PurePosixPath(path).parent / name).resolve() if name else project.root / path
    if not file.exists() or not file.is_relative_to(project.root.resolve()):
        return False
    return not anchor or (file.suffix == ".md" and anchor in anchors(file.read_text(encoding="utf-8")))


def odd_records(project: Project) -> list[str]:
    found = []
    listed = project.text("docs/adr/README.md") if "docs/adr/README.md" in project.files else ""
    numbers: dict[str, str] = {}
    for path in project.matching("docs/adr/*.md"):
        name = PurePosixPath(path).name
        if name == "README.md":
            continue
        text = project.text(path)
        number = name[:4]
        if not re.fullmatch(r"\d{4}-[a-z0-9-]+\.md", name):
            found.append(f"{path}: not NNNN-a-few-words.md")
        if numbers.setdefault(number, path) != path:
            found.append(f"{path}: the number of {numbers[number]}")
        if not text.startswith(f"# {number}. "):
            found.append(f"{path}: does not start with '# {number}. '")
        if not STATUS.search(text):
            found.append(f"{path}: no status")
        if re.findall(r"^## (.+)$", text, re.MULTILINE) != SECTIONS:
            found.append(f"{path}: sections are not {', '.join(SECTIONS)}")
        if f"]({name})" not in listed:
            found.append(f"{path}: not in docs/adr/README.md")
    return found


def test_every_link_resolves(project: Project) -> None:
    expect_none(dead_links(project))


def test_decision_records_have_one_form(project: Project) -> None:
    expect_none(odd_records(project))


def test_a_dead_link_is_seen(make_project: MakeProject) -> None:
    bad = make_project(
        {
            "README.md": "# A title, with: signs\n## Twice\n## Twice\n"
            "[good](docs/a.md), [good](docs/a.md#part-two), [good](#a-title-with-signs), [good](#twice-1), [good](docs)\n"
            "[good](https://example.org/#x) `[code](nowhere.md)`\n"
            "```\n[code](nowhere.md)\n```\n"
            "[bad](nowhere.md)\n[bad](docs/a.md#part-three) ![bad](picture.png)\n[bad](../outside.md)\n",
            "docs/a.md": "# A\n## Part two\n[back](../README.md)",
        }
    )
    assert dead_links(bad) == [
        "README.md:9: nowhere.md",
        "README.md:10: docs/a.md#part-three",
        "README.md:10: picture.png",
        "README.md:11: ../outside.md",
    ]


def test_an_odd_record_is_seen(make_project: MakeProject) -> None:
    good = "# 0001. T\n\nStatus: accepted\n\n" + "".join(f"## {section}\n\nx\n\n" for section in SECTIONS)
    bad = make_project(
        {
            "docs/adr/README.md": "[0001](0001-good.md) [0002](0002-short.md) [0001](0001-again.md)",
            "docs/adr/0001-good.md": good,
            "docs/adr/0001-again.md": good,
            "docs/adr/0002-short.md": "# 0002. T\n\nStatus: maybe\n\n## Decision\n",
            "docs/adr/0003-unlisted.md": good.replace("0001", "0003"),
            "docs/adr/Four.md": good,
        }
    )
    assert odd_records(bad) == [
        "docs/adr/0001-good.md: the number of docs/adr/0001-again.md",
        "docs/adr/0002-short.md: no status",
        f"docs/adr/0002-short.md: sections are not {', '.join(SECTIONS)}",
        "docs/adr/0003-unlisted.md: not in docs/adr/README.md",
        "docs/adr/Four.md: not NNNN-a-few-words.md",
        "docs/adr/Four.md: does not start with '# Four. '",
        "docs/adr/Four.md: not in docs/adr/README.md",
    ]
