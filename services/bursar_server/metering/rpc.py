"""MeteringService on the wire."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from connectrpc.request import RequestContext

from bursar.v1 import metering_service_pb2 as pb
from bursar_server.kit.errors import BursarError, Reason, invalid
from bursar_server.metering import messages
from bursar_server.metering.service import MeteringService
from bursar_server.rpc import fields
from bursar_server.rpc.auth import call_of

MAX_BATCH = 256
MAX_RENEWALS = 1_000

Context = RequestContext[Any, Any]
Message = TypeVar("Message")
Result = TypeVar("Result")

logger = logging.getLogger(__name__)


class MeteringRpc:
    """Check before a call, Deduct after it. Each item of a batch stands alone."""

    def __init__(self, metering: MeteringService) -> None:
        self._metering = metering

    async def check(self, request: pb.CheckRequest, ctx: Context) -> pb.CheckResponse:
        """Decide a call."""
        call = call_of(ctx)
        answer = await self._metering.check(messages.check_call(request, call.caller, call.deadline))
        return messages.check_response(answer)

    async def batch_check(self, request: pb.BatchCheckRequest, ctx: Context) -> pb.BatchCheckResponse:
        """Decide several calls."""
        call = call_of(ctx)

        async def one(check: pb.CheckRequest) -> pb.BatchCheckResult:
            answer = await self._metering.check(messages.check_call(check, call.caller, call.deadline))
            return pb.BatchCheckResult(check=messages.check_response(answer))

        def failed(error: BursarError) -> pb.BatchCheckResult:
            return pb.BatchCheckResult(error=messages.item_error(error))

        return pb.BatchCheckResponse(results=await _each(request.checks, "checks", one, failed))

    async def renew_holds(self, request: pb.RenewHoldsRequest, ctx: Context) -> pb.RenewHoldsResponse:
        """Renew the leases of open calls."""
        if len(request.request_ids) > MAX_RENEWALS:
            raise invalid("request_ids", f"must have at most {MAX_RENEWALS} entries")
        request_ids = [fields.uuid(value, "request_ids") for value in request.request_ids]
        expire_time, missing = await self._metering.renew(request_ids, call_of(ctx).caller.tenant_ids)
        return pb.RenewHoldsResponse(
            hold_expire_time=fields.timestamp_of(expire_time),
            missing_request_ids=[str(value) for value in missing],
        )

    async def deduct(self, request: pb.DeductRequest, ctx: Context) -> pb.DeductResponse:
        """Charge a call."""
        answer = await self._metering.deduct(messages.deduct_call(request, call_of(ctx).caller))
        return messages.deduct_response(answer)

    async def batch_deduct(self, request: pb.BatchDeductRequest, ctx: Context) -> pb.BatchDeductResponse:
        """Charge several calls."""
        caller = call_of(ctx).caller

        async def one(deduct: pb.DeductRequest) -> pb.BatchDeductResult:
            answer = await self._metering.deduct(messages.deduct_call(deduct, caller))
            return pb.BatchDeductResult(deduct=messages.deduct_response(answer))

        def failed(error: BursarError) -> pb.BatchDeductResult:
            return pb.BatchDeductResult(error=messages.item_error(error))

        return pb.BatchDeductResponse(results=await _each(request.deducts, "deducts", one, failed))

    async def release_hold(self, request: pb.ReleaseHoldRequest, ctx: Context) -> pb.ReleaseHoldResponse:
        """Remove the hold of a call that was never sent."""
        answer = await self._metering.release(messages.release_call(request, call_of(ctx).caller))
        return pb.ReleaseHoldResponse(released=answer.released)


async def _each(
    items: Sequence[Message],
    field: str,
    one: Callable[[Message], Awaitable[Result]],
    failed: Callable[[BursarError], Result],
) -> list[Result]:
    """Return the answer to each item, in order: they wait together, so that a lane takes them in one batch."""
    if len(items) > MAX_BATCH:
        raise invalid(field, f"must have at most {MAX_BATCH} entries")

    async def answer(item: Message) -> Result:
        try:
            return await one(item)
        except BursarError as error:
            return failed(error)
        except Exception:
            logger.exception("an item of a batch failed")
            return failed(BursarError(Reason.INTERNAL, "internal error"))

    return await asyncio.gather(*(answer(item) for item in items))
