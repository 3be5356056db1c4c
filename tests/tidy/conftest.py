from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tidy.project import Project, repository

MakeProject = Callable[[dict[str, str]], Project]


@pytest.fixture(scope="session")
def project() -> Project:
    """This repository."""
    return repository()


@pytest.fixture
def make_project(tmp_path: Path) -> MakeProject:
    """Build a small project from paths and texts, to show that a check can fail."""

    def make(files: dict[str, str]) -> Project:
        for path, text in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text, encoding="utf-8")
        return Project(tmp_path, list(files))

    return make
