"""What the sidecar asks of the control plane: the Connect protocol's unary calls, binary, in batches."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from bursar.v1.metering_service_pb2 import (
    BatchCheckResponse,
    BatchCheckResult,
    BatchDeductResponse,
    BatchDeductResult,
    CheckResponse,
    ReleaseHoldRequest,
    RenewHoldsRequest,
    RenewHoldsResponse,
)
from bursar_sidecar.channel import BrokenError, Channel, LateError, NotSentError
from bursar_sidecar.clock import Clock
from bursar_sidecar.telemetry import Counts

R = TypeVar("R")

_SERVICE = "/bursar.v1.MeteringService/"
#: Codes that say nothing is wrong with the request: it may be sent again as it is.
_PASSING = frozenset(
    {"unavailable", "deadline_exceeded", "internal", "unknown", "aborted", "canceled", "resource_exhausted"}
)
_TOKEN_CODES = frozenset({"unauthenticated", "permission_denied"})
#: While nothing gets through, one request tries again this often; the others are not kept waiting.
_PROBE_EVERY_S = 0.25
#: The longest that a budget lets a call wait for other calls' holds (max_wait_ms), and what the way there may take.
_WAIT_TIMEOUT_S = 65.0
#: For how long an answer proves that the control plane is there.
FRESH_S = 15.0


class UnreachableError(ConnectionError):
    """The control plane could not be asked. `seen`: it may have seen the request nevertheless; `late`: time ran out."""

    def __init__(self, message: str, seen: bool, late: bool = False) -> None:
        super().__init__(message)
        self.seen = seen
        self.late = late


class TokenRefusedError(PermissionError):
    """The control plane does not accept the sidecar's access token; only a person can change that."""


class RequestRefusedError(ValueError):
    """The control plane did not accept the request as a whole; `code` is Connect's word for why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class Token:
    """The sidecar's access token: given, or read from the file that the control plane writes at its first start."""

    def __init__(self, given: str | None, path: Path) -> None:
        self._given = given
        self._path = path
        self._read: str | None = None

    def value(self) -> str:
        """Return the token; empty while there is none."""
        if self._given:
            return self._given
        if not self._read:
            try:
                self._read = self._path.read_text(encoding="utf-8").strip()
            except OSError:
                return ""
        return self._read

    def refresh(self) -> bool:
        """Read the file again; return whether it holds another token than before."""
        before, self._read = self._read, None
        return not self._given and self.value() not in ("", before)


def framed(items: Sequence[bytes]) -> bytes:
    """Return a Batch request whose field 1 repeats the given messages, which are already in wire format."""
    parts: list[bytes] = []
    for item in items:
        parts.append(b"\x0a")
        size = len(item)
        while size > 0x7F:
            parts.append(bytes((size & 0x7F | 0x80,)))
            size >>= 7
        parts += (bytes((size,)), item)
    return b"".join(parts)


class ControlPlane:
    """The metering service, and whether it answers."""

    def __init__(
        self,
        channel: Channel,
        token: Token,
        clock: Clock,
        counts: Counts,
        logger: logging.Logger,
        timeout_s: float,
    ) -> None:
        self._channel = channel
        self._token = token
        self._clock = clock
        self._counts = counts
        self._logger = logger
        self._timeout_s = timeout_s
        self._headers: dict[tuple[str, int], str] = {}
        self._answered_at: float | None = None
        self._probe_at = 0.0
        self._probing = False
        self.failing = False
        self.token_refused = False
        self.on_return: Callable[[], None] = lambda: None

    @property
    def reachable(self) -> bool:
        """Whether it answered lately, accepted the token, and has not failed since."""
        fresh = self._answered_at is not None and self._clock.monotonic() - self._answered_at < FRESH_S
        return fresh and not self.failing and not self.token_refused

    @property
    def hangs(self) -> bool:
        """Whether it fails by not answering: whoever asks it waits in vain."""
        return self.failing and self._probe_at == float("inf")

    @property
    def idle_s(self) -> float:
        """Seconds since it answered last; infinite before it ever did."""
        return float("inf") if self._answered_at is None else self._clock.monotonic() - self._answered_at

    async def check(self, checks: Sequence[bytes]) -> Sequence[BatchCheckResult]:
        """Ask several Checks, given in wire format; one result for each. A lost connection is tried again once.

        Raises UnreachableError, at once while nothing gets through and another request is trying; TokenRefusedError;
        RequestRefusedError.
        """
        self._counts.checks += len(checks)
        self._counts.check_batches += 1
        if self.failing and (self._probing or self._clock.monotonic() < self._probe_at):
            raise UnreachableError("the control plane does not answer", seen=False)
        body = framed(checks)
        self._probing = self.failing
        try:
            try:
                data = await self._call("BatchCheck", body, self._timeout_s)
            except UnreachableError as error:
                if self._probing or error.late:
                    raise
                data = await self._call("BatchCheck", body, self._timeout_s)
        finally:
            self._probing = False
        return _as_many(BatchCheckResponse.FromString(data).results, len(checks))

    async def wait(self, check: bytes) -> CheckResponse:
        """Ask one Check, given in wire format, that waits for other calls' holds. Raises as `check`."""
        self._counts.check_waits += 1
        if self.failing:
            raise UnreachableError("the control plane does not answer", seen=False)
        try:
            data = await self._call("Check", check, _WAIT_TIMEOUT_S)
        except UnreachableError as error:
            if error.late:
                raise
            data = await self._call("Check", check, _WAIT_TIMEOUT_S)
        return CheckResponse.FromString(data)

    async def deduct(self, deducts: Sequence[bytes]) -> Sequence[BatchDeductResult]:
        """Send several Deducts, given in wire format; one result for each. Raises as `check`, but always tries."""
        self._counts.deduct_batches += 1
        data = await self._call("BatchDeduct", framed(deducts), self._timeout_s)
        return _as_many(BatchDeductResponse.FromString(data).results, len(deducts))

    async def renew(self, request_ids: Sequence[str]) -> RenewHoldsResponse:
        """Renew the holds of open calls, at most 1,000; also tells whether the control plane is there."""
        request = RenewHoldsRequest(request_ids=request_ids)
        data = await self._call("RenewHolds", request.SerializeToString(), min(self._timeout_s, 5.0))
        return RenewHoldsResponse.FromString(data)

    async def release(self, request: ReleaseHoldRequest) -> None:
        """Release the hold of a call that was never sent. Raises as `check`, but always tries.

        RequestRefusedError `permission_denied` where the token is not for this call's tenant, or for nothing of the sort.
        """
        await self._call("ReleaseHold", request.SerializeToString(), self._timeout_s)

    async def _call(self, method: str, body: bytes, timeout_s: float) -> bytes:
        started = self._clock.monotonic()
        for _ in range(2):
            try:
                answer = await self._channel.post(
                    _SERVICE + method, self._header_lines(timeout_s), body, timeout_s
                )
            except (NotSentError, BrokenError) as error:
                seen, late = isinstance(error, BrokenError), isinstance(error, LateError)
                self._failed(str(error), started)
                raise UnreachableError(str(error), seen, late) from error
            if answer.status == 200 and answer.content_type == "application/proto":
                self._succeeded()
                return answer.body
            code, message = _connect_error(answer.status, answer.content_type, answer.body)
            if code != "unauthenticated" or not self._token.refresh():
                break
        raise self._refusal(method, code, message, started)

    def _refusal(self, method: str, code: str, message: str, started: float) -> Exception:
        self._counts.control_plane_errors += 1
        # A release is of one call: it may be that only this call is none of the token's.
        if code in _TOKEN_CODES and (method, code) != ("ReleaseHold", "permission_denied"):
            if not self.token_refused:
                self._logger.error(
                    "the control plane refuses this sidecar's token", extra={"fields": {"code": code}}
                )
            self.token_refused = True
            self._answered_at = self._clock.monotonic()
            return TokenRefusedError(message)
        if code in _PASSING or code not in _CODES:
            self._failed(f"{code}: {message}", started)
            return UnreachableError(f"{code}: {message}", seen=True)
        self._answered_at = self._clock.monotonic()
        self._logger.error(
            "the control plane does not accept a request",
            extra={"fields": {"method": method, "code": code, "detail": message}},
        )
        return RequestRefusedError(code, message)

    def _header_lines(self, timeout_s: float) -> str:
        key = (self._token.value(), round(timeout_s * 1000))
        lines = self._headers.get(key)
        if lines is None:
            lines = (
                "content-type: application/proto\r\naccept-encoding: identity\r\nconnect-protocol-version: 1\r\n"
                f"connect-timeout-ms: {key[1]}\r\nauthorization: Bearer {key[0]}\r\n"
            )
            self._headers = {**self._headers, key: lines} if len(self._headers) < 8 else {key: lines}
        return lines

    def _succeeded(self) -> None:
        self._answered_at = self._clock.monotonic()
        self.token_refused = False
        if self.failing:
            self.failing = False
            self._logger.warning("the control plane answers again")
            self.on_return()

    def _failed(self, why: str, started: float) -> None:
        self._counts.control_plane_errors += 1
        now = self._clock.monotonic()
        # Who tries whether something that hangs is back waits for long. No call does: that is left to `renew`.
        hangs = now - started > _PROBE_EVERY_S
        self._probe_at = float("inf") if hangs else now + _PROBE_EVERY_S
        if not self.failing:
            self.failing = True
            self._logger.warning("the control plane cannot be asked", extra={"fields": {"detail": why}})


_CODES = (
    _PASSING
    | _TOKEN_CODES
    | {
        "invalid_argument",
        "not_found",
        "already_exists",
        "failed_precondition",
        "out_of_range",
        "unimplemented",
        "data_loss",
    }
)


def _as_many(results: Sequence[R], expected: int) -> Sequence[R]:
    if len(results) != expected:
        raise UnreachableError("the control plane answered another number of items", seen=True)
    return results


def _connect_error(status: int, content_type: str, body: bytes) -> tuple[str, str]:
    """Return code and message of a Connect error; of any other answer its status."""
    if content_type == "application/json":
        try:
            error = json.loads(body)
            return str(error["code"]), str(error.get("message", ""))
        except (ValueError, KeyError, TypeError, AttributeError):
            pass
    return f"http_{status}", "the answer is not the control plane's"
