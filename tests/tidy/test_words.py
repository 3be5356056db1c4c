"""One word for one thing: words that have a better name here appear neither in identifiers nor in documents."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator

import pytest

from tidy.conftest import MakeProject
from tidy.project import Project, expect_none, matches

BANNED = {
    "reservation": "hold",
    "quota": "budget or rate limit",
    "allowance": "budget or grant",
    "wallet": "balance",
    "credit": "grant",
    "department": "group",
    "manager": "what it does",
    "helper": "what it does",
    "util": "what it does",
    "utils": "what it does",
    "mapper": "what it does",
    "lease": "hold, unless it is how long a hold lives",
}
FORMS = {form: word for word in BANNED for form in (word, f"{word}s")}

# A hold's lifetime is its lease: these words may stand beside it in an identifier, and one of them in a paragraph.
LIFETIME = re.compile(
    r"leases?|holds?|m?s|time|learn|expir(e|es|ed|y|ies|ing)|renew(s|ed|al)?|ends?|ended|on|past|until|left|open|default"
    r"|the|of|beside|test|sweep"
)
ABOUT_HOLDS = re.compile(r"hold|held|expir|renew|lease (has )?end|HOLD_LEASE", re.IGNORECASE)

# The user's own rows, word for word.
QUOTED = ("docs/requirements.md",)
# Providers say such words on the wire, and comments have to name what they parse.
WIRE = (
    "sidecar/bursar_sidecar/providers/*.py",
    "tests/**/fake_provider*.py",
    "tests/**/fake_provider/**/*.py",
)

ROOTS = ("services", "sidecar", "tests", "tools", "bench")


def words_of(identifier: str) -> list[str]:
    """Split `onLease_expiryMS` into lower-case words."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", identifier)]


def identifiers(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield every name that the file itself gives to something; what others named is theirs."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno
        elif isinstance(node, ast.alias) and node.asname:
            yield node.asname, node.lineno if hasattr(node, "lineno") else 0


def prose_of_python(text: str, tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield docstrings and comments, each with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node, clean=False)
            if docstring:
                yield docstring, node.body[0].lineno
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.string, token.start[0]


def paragraphs(text: str) -> Iterator[tuple[str, int]]:
    """Yield blocks of text between blank lines, each with its first line."""
    line = 1
    for block in re.split(r"(\n\s*\n)", text):
        if block.strip():
            yield block, line
        line += block.count("\n")


def bad_identifier(name: str) -> str | None:
    if name.startswith("test_"):
        return next(bad_prose(name.replace("_", " ")), None)
    words = words_of(name)
    for word in words:
        banned = FORMS.get(word)
        if banned and not (banned == "lease" and all(LIFETIME.fullmatch(word) for word in words)):
            return banned
    return None


def bad_prose(text: str) -> Iterator[str]:
    for found in re.finditer(r"[A-Za-z_]+", text):
        banned = FORMS.get(found[0].lower())
        if not banned or (banned == "lease" and ABOUT_HOLDS.search(text)):
            continue
        # Python's own name for what stands behind `with`.
        if banned == "manager" and re.search(r"context[ -]$", text[: found.start()], re.IGNORECASE):
            continue
        yield banned


def banned_words(project: Project) -> list[str]:
    found = [f"{path}: the name" for path in project.files if any(word in FORMS for word in words_of(path))]
    for path, tree in project.python(*ROOTS):
        for name, line in identifiers(tree):
            word = bad_identifier(name)
            if word:
                found.append(f"{path}:{line}: {name}: say {BANNED[word]}")
        if not matches(path, *WIRE):
            found += _in_prose(path, prose_of_python(project.text(path), tree))
    for path in project.matching("**/*.md", "proto/**/*.proto", "*.toml", "Makefile", ".ci/run", "**/*.yaml"):
        if path not in QUOTED:
            found += _in_prose(path, paragraphs(project.text(path)))
    return found


def _in_prose(path: str, blocks: Iterator[tuple[str, int]]) -> list[str]:
    return [f"{path}:{line}: {word}: say {BANNED[word]}" for text, line in blocks for word in bad_prose(text)]


def test_no_banned_word_is_used(project: Project) -> None:
    expect_none(banned_words(project))


@pytest.mark.parametrize(
    "name",
    [
        "BudgetManager",
        "reservations",
        "make_reservation",
        "QUOTA",
        "userQuotas",
        "db_utils",
        "LeaseStore",
        "lease_key",
        "ErrorMapper",
        "test_that_credit_runs_out",
        "credit_nanos",
    ],
)
def test_a_banned_identifier_is_seen(make_project: MakeProject, name: str) -> None:
    for source in (
        f"{name} = 1",
        f"def {name}(): ...",
        f"def f({name}): ...",
        f"self.{name} = 1",
        f"import x as {name}",
    ):
        assert len(banned_words(make_project({"services/x.py": source}))) == 1


@pytest.mark.parametrize(
    "name",
    [
        "lease_ms",
        "hold_lease_ms",
        "on_lease_expiry",
        "LEASE_EXPIRED",
        "lease_expire_time",
        "test_a_lease_is_renewed_while_its_call_is_open",
        "released",
        "utilization_pct",
        "managed_by",
        "asynccontextmanager",
        "credentials",
        "ManagedBy",
    ],
)
def test_these_names_are_fine(name: str) -> None:
    assert bad_identifier(name) is None


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("README.md", "Each department has its own budget."),
        ("README.md", "A lease is a contract.\n\nA hold is not."),
        ("docs/a.md", "Helpers live here."),
        ("proto/bursar/v1/a.proto", "// The user's quota.\nmessage A {}"),
        ("services/x.py", '"""The manager of budgets."""'),
        ("services/x.py", "x = 1  # a helper"),
        ("services/utils/x.py", ""),
    ],
)
def test_a_banned_word_in_prose_is_seen(make_project: MakeProject, path: str, text: str) -> None:
    assert len(banned_words(make_project({path: text}))) == 1


def test_the_words_that_others_chose_are_fine(make_project: MakeProject) -> None:
    good = {
        "services/x.py": '"""An async context manager."""\nimport importlib.util\nx = {"type": "insufficient_quota"}',
        "sidecar/bursar_sidecar/providers/openai.py": "# insufficient quota is what it says\n",
        "docs/a.md": "A hold has a lease. The lease\nexpires.",
        "docs/requirements.md": "a department's monthly spend",
    }
    assert banned_words(make_project(good)) == []
