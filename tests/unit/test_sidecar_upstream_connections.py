"""An answer's connection: kept where the next request can use it, closed where it cannot."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import StreamReader
from aiohttp.base_protocol import BaseProtocol

from bursar_sidecar.upstream_channel import Answer


class _Connection:
    """What becomes of it."""

    def __init__(self, unsent_bytes: int) -> None:
        self.transport = SimpleNamespace(get_write_buffer_size=lambda: unsent_bytes)
        self.fate: list[str] = []

    def release(self) -> None:
        self.fate.append("kept")

    def close(self) -> None:
        self.fate.append("closed")


def answer_on(connection: Any) -> tuple[Answer, StreamReader]:
    loop = asyncio.get_running_loop()
    content = StreamReader(BaseProtocol(loop), 1024, loop=loop)
    message: Any = SimpleNamespace(code=200, reason="OK", headers={})
    return Answer(connection, message, content), content


@pytest.mark.parametrize(("unsent_bytes", "fate"), [(0, "kept"), (1, "closed")])
async def test_a_connection_is_kept_if_its_request_has_gone_out_whole(unsent_bytes: int, fate: str) -> None:
    connection = _Connection(unsent_bytes)
    answer, content = answer_on(connection)
    content.feed_data(b"x")
    assert connection.fate == []
    content.feed_eof()
    answer.close()
    assert connection.fate == [fate]


async def test_a_connection_is_closed_with_an_answer_that_is_not_read_whole() -> None:
    connection = _Connection(0)
    answer, content = answer_on(connection)
    content.feed_data(b"x")
    answer.close()
    answer.close()
    content.feed_eof()
    assert connection.fate == ["closed"]
