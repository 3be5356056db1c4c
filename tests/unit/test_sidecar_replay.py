"""What the outbox owes reaches the control plane: no call keeps another from it, and none is forgotten."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bursar.v1.errors_pb2 import ERROR_REASON_PERMISSION_DENIED, ERROR_REASON_REQUEST_TOO_OLD
from bursar.v1.metering_pb2 import ItemError
from bursar.v1.metering_service_pb2 import (
    BatchDeductResult,
    DeductRequest,
    DeductResponse,
    ReleaseHoldRequest,
)
from bursar_sidecar.control_plane import RequestRefusedError, TokenRefusedError
from bursar_sidecar.ids import unpacked
from bursar_sidecar.outbox import DEAD_LETTER_NAME, Outbox
from bursar_sidecar.replay import Replayer
from bursar_sidecar.telemetry import Counts
from support.outboxes import KEY, call
from support.sidecars import until

DENIED = ItemError(code=7, reason=ERROR_REASON_PERMISSION_DENIED, message="not bound to the tenant")
TOO_OLD = ItemError(code=9, reason=ERROR_REASON_REQUEST_TOO_OLD, message="too old")


@dataclass
class Plane:
    """A control plane that says what a test wants of single calls."""

    errors: dict[bytes, ItemError] = field(default_factory=dict)
    releases: dict[bytes, str] = field(default_factory=dict)  # Connect's code
    token_refused: bool = False
    deducted: list[str] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    released: list[str] = field(default_factory=list)

    def _admit(self) -> None:
        if self.token_refused:
            raise TokenRefusedError("no such token")

    async def deduct(self, payloads: Sequence[bytes]) -> list[BatchDeductResult]:
        self._admit()
        self.asked.append(len(payloads))
        return [self._deduct(DeductRequest.FromString(payload).request_id) for payload in payloads]

    def _deduct(self, request_id: str) -> BatchDeductResult:
        for given, error in self.errors.items():
            if unpacked(given) == request_id:
                return BatchDeductResult(error=error)
        self.deducted.append(request_id)
        return BatchDeductResult(deduct=DeductResponse(request_id=request_id))

    async def release(self, request: ReleaseHoldRequest) -> None:
        for given, code in self.releases.items():
            if unpacked(given) == request.request_id:
                raise RequestRefusedError(code, "refused")
        self._admit()
        self.released.append(request.request_id)

    async def renew(self, request_ids: Sequence[str]) -> None:
        self._admit()


@dataclass
class Scene:
    """A replayer at work, and what it works with."""

    plane: Plane
    outbox: Outbox
    replayer: Replayer
    counts: Counts
    directory: Path

    def owe(self, *numbers: int) -> None:
        for number in numbers:
            request = DeductRequest(request_id=unpacked(call(number)))
            self.outbox.deduct(call(number), request.SerializeToString())

    @property
    def dead_letters(self) -> list[str]:
        path = self.directory / DEAD_LETTER_NAME
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line)["request_id"] for line in lines]


def names(*numbers: int) -> list[str]:
    return [unpacked(call(number)) for number in numbers]


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    outbox, counts = Outbox(tmp_path, 1 << 20), Counts()
    plane: Any = Plane()
    replayer = Replayer(outbox, plane, counts, logging.getLogger("bursar_sidecar"))
    yield Scene(plane, outbox, replayer, counts, tmp_path)
    await replayer.stop()
    outbox.close()


async def test_a_release_that_is_refused_keeps_no_charge_back(scene: Scene) -> None:
    """S17: a call of a tenant that the token is not for is put aside; what waits with it is charged."""
    scene.plane.releases[call(1)] = "permission_denied"
    scene.outbox.release(call(1), KEY)
    scene.outbox.release(call(2), KEY)
    scene.owe(3, 4)
    scene.replayer.add([call(1), call(2), call(3), call(4)])
    await until(lambda: scene.outbox.depth == 0)
    assert scene.plane.deducted == names(3, 4)
    assert scene.plane.released == names(2)
    assert scene.dead_letters == names(1)
    assert scene.counts.dead_letters == 1


async def test_a_token_that_is_refused_puts_nothing_aside(scene: Scene) -> None:
    scene.plane.releases[call(1)] = "permission_denied"
    scene.plane.token_refused = True
    scene.outbox.release(call(1), KEY)
    scene.owe(2)
    scene.replayer.add([call(1), call(2)])
    await until(lambda: scene.replayer.stuck)
    assert scene.outbox.depth == 2
    scene.plane.token_refused = False
    scene.plane.releases.clear()
    scene.replayer.hurry()
    await until(lambda: scene.outbox.depth == 0)
    assert (scene.plane.deducted, scene.plane.released) == (names(2), names(1))
    assert scene.dead_letters == []


async def test_a_release_of_what_is_nobody_s_is_no_dead_letter(scene: Scene) -> None:
    """Anybody can send keys that nobody has, and leave: no hold is left behind, and nothing for a person to do."""
    scene.plane.releases[call(1)] = "failed_precondition"
    scene.outbox.release(call(1), KEY)
    scene.replayer.add([call(1)])
    await until(lambda: scene.outbox.depth == 0)
    assert scene.dead_letters == []


async def test_a_charge_that_is_not_taken_yet_is_tried_again_and_delays_no_other(scene: Scene) -> None:
    """S20: it waits for a person to bind the token anew; other Deducts do not wait behind it."""
    scene.plane.errors[call(1)] = DENIED
    scene.owe(1)
    scene.replayer.add([call(1)])
    await until(lambda: len(scene.plane.asked) >= 2)
    assert not scene.replayer.stuck
    scene.owe(2)
    scene.replayer.add([call(2)])
    await until(lambda: scene.plane.deducted == names(2))
    del scene.plane.errors[call(1)]
    await until(lambda: scene.plane.deducted == names(2, 1))
    assert scene.dead_letters == []


async def test_what_cannot_be_put_aside_is_still_owed(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """S16: on a full disk a charge that is never accepted waits, half of it is not written, and the others go on."""
    scene.plane.errors[call(1)] = TOO_OLD
    scene.owe(1, 2, 3)
    real = os.write

    def short(fd: int, data: bytes) -> int:
        if len(data) < 100:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data[:100])

    monkeypatch.setattr(os, "write", short)
    scene.replayer.add([call(1), call(2), call(3)])
    await until(lambda: scene.plane.deducted == names(2, 3))
    await asyncio.sleep(0.05)
    assert scene.outbox.depth == 1
    assert scene.dead_letters == []
    assert scene.counts.dead_letters == 0
    monkeypatch.undo()
    await until(lambda: scene.outbox.depth == 0)
    assert scene.dead_letters == names(1)
