"""MeteringService on the wire: requests are validated on the way in, answers filled on the way out."""

import hashlib
import logging
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from operator import attrgetter
from typing import Any, TypeVar
from uuid import UUID

from connectrpc.request import RequestContext

from bursar.v1 import budget_pb2, metering_pb2
from bursar.v1 import metering_service_pb2 as pb
from bursar_server.budgets.model import OnUnreachable
from bursar_server.kit import ids
from bursar_server.kit.caller import Caller
from bursar_server.kit.errors import BursarError, Reason, invalid
from bursar_server.kit.money import usd_of_nanos
from bursar_server.ledger.model import Account, FiredThreshold, PostingLine
from bursar_server.metering.model import (
    CheckAnswer,
    CheckCall,
    DeductAnswer,
    DeductCall,
    DeductItem,
    Denial,
    Outlook,
    PrincipalRef,
    RefusedCalls,
    ReleaseCall,
)
from bursar_server.metering.service import MeteringService
from bursar_server.notify.rules import alert_message
from bursar_server.pricing.model import Usage
from bursar_server.rpc import fields
from bursar_server.rpc.auth import call_of

MAX_BATCH = 256
MAX_RENEWALS = 1_000

Message = TypeVar("Message")
Asked = TypeVar("Asked")
Answered = TypeVar("Answered")
# What a message is made of. One that is made at once, with all that it holds, costs half of making its parts first.
Parts = dict[str, Any]
MAX_ITEMS = 16
# With these bounds and those of prices, no cost leaves int64.
MAX_TOKENS = 1_000_000_000
MAX_PIECES = 1_000_000
_PIECES = frozenset({"images", "web_searches", "requests"})
_USAGE_FIELDS = Usage._fields
_usage_parts = attrgetter(*_USAGE_FIELDS)
# Ids of tenants, users, keys and budgets are said again and again.
_id_text: Callable[[UUID], str] = lru_cache(maxsize=16_384)(str)
_SHA256 = re.compile("[0-9a-f]{64}")

Context = RequestContext[Any, Any]
logger = logging.getLogger(__name__)


class MeteringRpc:
    """Check before a call, Deduct after it. Each item of a batch stands alone."""

    def __init__(self, metering: MeteringService) -> None:
        self._metering = metering

    async def check(self, request: pb.CheckRequest, ctx: Context) -> pb.CheckResponse:
        """Decide a call."""
        call = call_of(ctx)
        asked = check_call(request, call.caller, call.deadline)._replace(may_wait=True)
        return check_response(await self._metering.check(asked))

    async def batch_check(self, request: pb.BatchCheckRequest, ctx: Context) -> pb.BatchCheckResponse:
        """Decide several calls."""
        call = call_of(ctx)
        asked = _read_each(
            request.checks, "checks", lambda check: check_call(check, call.caller, call.deadline)
        )
        response = pb.BatchCheckResponse()
        _say_each(response.results, "check", _check_parts, await self._metering.check_each(asked))
        return response

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
        answer = await self._metering.deduct(deduct_call(request, call_of(ctx).caller))
        return deduct_response(answer)

    async def batch_deduct(self, request: pb.BatchDeductRequest, ctx: Context) -> pb.BatchDeductResponse:
        """Charge several calls."""
        caller = call_of(ctx).caller
        asked = _read_each(request.deducts, "deducts", lambda deduct: deduct_call(deduct, caller))
        response = pb.BatchDeductResponse()
        _say_each(response.results, "deduct", _deduct_parts, await self._metering.deduct_each(asked))
        return response

    async def release_hold(self, request: pb.ReleaseHoldRequest, ctx: Context) -> pb.ReleaseHoldResponse:
        """Remove the hold of a call that was never sent."""
        answer = await self._metering.release(release_call(request, call_of(ctx).caller))
        return pb.ReleaseHoldResponse(released=answer.released)


def _read_each(
    items: Sequence[Message], field: str, read: Callable[[Message], Asked]
) -> list[Asked | BursarError]:
    """Return each item as it is asked, or what is wrong with it."""
    if len(items) > MAX_BATCH:
        raise invalid(field, f"must have at most {MAX_BATCH} entries")
    asked: list[Asked | BursarError] = []
    for item in items:
        try:
            asked.append(read(item))
        except BursarError as error:
            asked.append(error)
        except Exception as error:
            asked.append(_unexpected(error))
    return asked


def _say_each(
    results: Any,
    name: str,
    parts: Callable[[Answered], Parts],
    answers: Sequence[Answered | BaseException],
) -> None:
    """Add each answer as it goes out, in order, under a name."""
    for answer in answers:
        if isinstance(answer, BaseException):
            results.add(error=item_error(answer))
            continue
        try:
            results.add(**{name: parts(answer)})
        except Exception as error:
            results.add(error=item_error(error))


def _unexpected(error: BaseException) -> BursarError:
    logger.error("an item of a batch failed", exc_info=error)
    return BursarError(Reason.INTERNAL, "internal error")


def principal_of(
    message: pb.CheckRequest | pb.DeductRequest | pb.ReleaseHoldRequest,
) -> PrincipalRef:
    """Return how a request names its principal. Raises INVALID_FIELD for a malformed hash or an over-long name."""
    digest = message.api_key_sha256
    if digest and _SHA256.fullmatch(digest) is None:
        raise invalid("api_key_sha256", "must be 64 lower-case hexadecimal characters")
    # Of a release nobody needs to know for whom the key acted, but of refused calls.
    named = message.refused if isinstance(message, pb.ReleaseHoldRequest) else message
    user = named.user_id
    if user:
        found = fields.user_ref(user, "user_id")
        user = str(found)
    body_user = ""
    if not user and named.body_user:
        # It is the app's own field and may hold anything: what names nobody is left aside.
        with suppress(BursarError):
            body_user = str(fields.user_ref(named.body_user, "body_user"))
    tenant = fields.text(message.tenant_id, "tenant_id", max_length=200)
    # A key says its tenant itself: two ways to name one principal would be two entries of the directory.
    return PrincipalRef(digest, user, "" if digest else tenant, body_user if digest else "")


def check_call(message: pb.CheckRequest, caller: Caller, deadline: float | None) -> CheckCall:
    """Return a Check as it is asked. Raises INVALID_FIELD naming the field."""
    principal = principal_of(message)
    if not principal.api_key_sha256 and not principal.user:
        raise invalid("api_key_sha256", "is needed, or user_id")
    tags = fields.tags(message.tags)
    most = fields.optional_integer(message, "max_output_tokens", maximum=MAX_TOKENS)
    estimate = fields.integer(message.input_tokens_estimate, "input_tokens_estimate", maximum=MAX_TOKENS)
    provider = fields.text(message.provider, "provider", max_length=64)
    model = fields.text(message.model, "model", max_length=256)
    session = fields.text(message.session_id, "session_id", max_length=128)
    named = (principal, provider, model, estimate, most, sorted(tags.items()), session)
    return CheckCall(
        _request_id(message.request_id), principal, caller.tenant_ids, provider, model, estimate, most, tags, session,
        _digest(named), deadline, can_fit_output=message.can_fit_output, with_budgets=message.with_budgets,
    )  # fmt: skip


def _request_id(value: str) -> UUID:
    """Return a Check's id; what is no UUID at all is refused here, its time where the database's clock is known."""
    return fields.uuid(value, "request_id")


def _digest(named: object) -> str:
    return hashlib.sha256(repr(named).encode()).hexdigest()


def deduct_call(message: pb.DeductRequest, caller: Caller) -> DeductCall:
    """Return a Deduct as it is asked. Raises INVALID_FIELD naming the field."""
    given_id = fields.text(message.request_id, "request_id", max_length=128, required=True)
    if len(message.items) > MAX_ITEMS:
        raise invalid("items", f"must have at most {MAX_ITEMS} entries")
    items = tuple(_item(item, f"items[{index}].") for index, item in enumerate(message.items))
    outcome = fields.enum_name(message.outcome, metering_pb2.Outcome, "outcome") or "SUCCESS"
    provider = fields.text(message.provider, "provider", max_length=64)
    provider_cost = fields.usd(message, "provider_cost_usd")
    start, end = fields.instant(message, "start_time"), fields.instant(message, "end_time")
    if start and end and end < start:
        raise invalid("end_time", "must not lie before start_time")
    named = (
        provider,
        [(i.model, i.service_tier, i.usage) for i in items],
        outcome,
        message.estimated,
        provider_cost,
        start,
        end,
    )
    return DeductCall(
        given_id, ids.parse_uuid(given_id), principal_of(message), caller.tenant_ids, provider, items, outcome,
        message.estimated, provider_cost, start, end, fields.tags(message.tags),
        fields.text(message.session_id, "session_id", max_length=128), _digest(named),
        fields.choice(message.degraded, budget_pb2.OnUnreachable, OnUnreachable, "degraded"),
    )  # fmt: skip


def _item(message: metering_pb2.UsageItem, path: str) -> DeductItem:
    parts = _usage_parts(message.usage)
    # Nearly every part is small: which one is at fault is looked for only where one may be.
    if min(parts) < 0 or max(parts) > MAX_PIECES:
        for name, part in zip(_USAGE_FIELDS, parts, strict=True):
            fields.integer(part, f"{path}usage.{name}", maximum=MAX_PIECES if name in _PIECES else MAX_TOKENS)
    return DeductItem(
        fields.text(message.model, f"{path}model", max_length=256, required=True),
        fields.text(message.service_tier, f"{path}service_tier", max_length=64),
        Usage(*parts),
    )


def release_call(message: pb.ReleaseHoldRequest, caller: Caller) -> ReleaseCall:
    """Return a release as it is asked. Raises INVALID_FIELD naming the field."""
    refused = None
    if message.HasField("refused"):
        said = message.refused
        policy = fields.choice(said.policy, budget_pb2.OnUnreachable, OnUnreachable, "refused.policy")
        refused = RefusedCalls(
            fields.integer(said.calls, "refused.calls"),
            policy or OnUnreachable.CLOSED,
            fields.instant(said, "first_time", path="refused."),
            fields.instant(said, "last_time", path="refused."),
        )
    return ReleaseCall(_request_id(message.request_id), principal_of(message), caller.tenant_ids, refused)


def check_response(answer: CheckAnswer) -> pb.CheckResponse:
    """Return the decision as it goes out."""
    return pb.CheckResponse(**_check_parts(answer))


def _check_parts(answer: CheckAnswer) -> Parts:
    remaining = answer.remaining_nanos
    parts: Parts = {
        "request_id": str(answer.request_id),
        "decision": metering_pb2.DECISION_ALLOW if answer.allowed else metering_pb2.DECISION_DENY,
        "denials": [_denial_parts(denial) for denial in answer.denials],
        "remaining_usd": None if remaining is None else usd_of_nanos(remaining),
        "remaining_nanos": remaining,
        "held_nanos": answer.held_nanos,
        "hold_expire_time": _instant_parts(answer.hold_expire_time),
        "duplicate": answer.duplicate,
        "retry_after_ms": answer.retry_after_ms,
        "fit_output_tokens": answer.fit_output_tokens,
        "guard_output_tokens": answer.guard_output_tokens,
    }
    if answer.outlook is not None:
        parts |= _outlook_parts(answer.outlook)
    subject = answer.subject
    if subject is not None:
        parts["tenant_id"] = _id_text(subject.tenant_id)
        parts["user_id"] = _id_text(subject.user_id) if subject.user_id else ""
        parts["api_key_id"] = _id_text(subject.api_key_id) if subject.api_key_id else ""
    return parts


def _outlook_parts(outlook: Outlook) -> Parts:
    policy = outlook.policy
    return {
        "budgets_by_tags": outlook.by_tags,
        "on_unreachable": None if policy is None else fields.enum_number(budget_pb2.OnUnreachable, policy),
        "budgets": [
            {
                "budget_id": _id_text(left.budget_id),
                "remaining_tokens" if left.in_tokens else "remaining_nanos": left.amount,
            }
            for left in outlook.budgets
        ],
    }


def _denial_parts(denial: Denial) -> Parts:
    limit, spent = denial.limit_nanos, denial.spent_nanos
    return {
        "code": denial.code,
        "reason": denial.reason,
        "message": denial.message,
        "scope": denial.scope,
        "budget_id": _id_text(denial.budget_id) if denial.budget_id else "",
        "retryable": denial.retryable,
        "limit_usd": None if limit is None else usd_of_nanos(limit),
        "spent_usd": None if spent is None else usd_of_nanos(spent),
        "limit_tokens": denial.limit_tokens,
        "spent_tokens": denial.spent_tokens,
        "period_reset_time": _instant_parts(denial.reset_time),
    }


def _instant_parts(instant: datetime | None) -> Parts | None:
    if instant is None:
        return None
    seconds, microseconds = fields.since_1970(instant)
    return {"seconds": seconds, "nanos": microseconds * 1000}


def _alert_parts(alert: FiredThreshold) -> Parts:
    return {
        "budget_id": _id_text(alert.budget_id),
        "threshold_pct": alert.threshold_pct,
        "period_key": alert.period_key,
        "message": alert_message(alert.threshold_pct),
    }


def _posting_parts(line: PostingLine) -> Parts:
    if line.account is Account.GRANT:
        return {"grant_id": _id_text(line.account_id), "amount_nanos": line.nanos}
    return {"budget_id": _id_text(line.account_id), "amount_nanos": line.nanos, "period_key": line.period_key}


def deduct_response(answer: DeductAnswer) -> pb.DeductResponse:
    """Return what was charged as it goes out."""
    return pb.DeductResponse(**_deduct_parts(answer))


def _deduct_parts(answer: DeductAnswer) -> Parts:
    cost, remaining = answer.cost, answer.remaining_nanos
    return {
        "request_id": str(answer.request_id),
        "cost_usd": usd_of_nanos(cost.total_nanos),
        "cost_nanos": cost.total_nanos,
        "input_cost_nanos": cost.input_nanos,
        "output_cost_nanos": cost.output_nanos,
        "other_cost_nanos": cost.other_nanos,
        "postings": [_posting_parts(line) for line in answer.postings],
        "remaining_usd": None if remaining is None else usd_of_nanos(remaining),
        "overage_nanos": answer.overage_nanos,
        "duplicate": answer.duplicate,
        "alerts": [_alert_parts(alert) for alert in answer.alerts],
        "remaining_nanos": remaining,
        "hold_shortfall_nanos": answer.hold_shortfall_nanos,
        "unpriced": answer.unpriced,
        "unchecked": answer.unchecked,
    }


def item_error(error: BaseException) -> metering_pb2.ItemError:
    """Return why one item of a batch failed."""
    if not isinstance(error, BursarError):
        error = _unexpected(error)
    message = metering_pb2.ItemError(
        code=error.code,
        reason=f"ERROR_REASON_{error.reason.value}",
        message=error.message,
        field=error.field,
    )
    server_time = error.metadata.get("server_time")
    if server_time:
        message.server_time.FromJsonString(server_time)
    return message
