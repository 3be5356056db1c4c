"""The installation that the end-to-end tests share; a test that disturbs it starts one of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.stack import Stack, running_stack, scratch_folder


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """Everything that `bursar up` starts, with a fake provider. Each test makes users of its own in it."""
    with scratch_folder() as folder, running_stack(folder) as running:
        yield running


@pytest.fixture
def folder() -> Iterator[Path]:
    """A throw-away folder for this test alone."""
    with scratch_folder() as scratch:
        yield scratch
