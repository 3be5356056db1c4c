"""The installation that the end-to-end tests share; a test that disturbs it starts one of its own."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from support.fake_control_plane import Served, fake_control_plane
from support.odd_upstream import OddUpstream, odd_upstream
from support.sidecars import RunningSidecar, environment, running_sidecar
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


@pytest.fixture
async def plane() -> AsyncIterator[Served]:
    """A control plane that does as it is told, in this process."""
    async with fake_control_plane() as served:
        yield served


@pytest.fixture
async def upstream() -> AsyncIterator[OddUpstream]:
    """A provider that misbehaves as it is told, in this process."""
    async with odd_upstream() as odd:
        yield odd


@pytest.fixture
async def sidecar(plane: Served, upstream: OddUpstream, tmp_path: Path) -> AsyncIterator[RunningSidecar]:
    """A sidecar between the two, in this process; a file that needs other settings has a `sidecar` of its own."""
    async with running_sidecar(environment(plane.url, tmp_path, openai=upstream.url)) as running:
        yield running
