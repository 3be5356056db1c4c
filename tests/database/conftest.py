"""What tests of metering begin with."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from support.metering import Ledger, ledger_on


@pytest.fixture
async def ledger(database_url: str) -> AsyncIterator[Ledger]:
    """Metering on a database of the test's own, whose books tie out at the end."""
    async with ledger_on(database_url) as ledger:
        yield ledger
        ledger.assert_books()


@pytest.fixture
async def other(database_url: str, ledger: Ledger) -> AsyncIterator[Ledger]:
    """Another process on the same database, or the same one after its restart."""
    async with ledger_on(database_url) as other:
        yield other
