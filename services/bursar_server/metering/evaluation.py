"""One call of a batch after the other, on the batch's context; and what came of a batch that is committed."""

from dataclasses import dataclass, field
from uuid import UUID

from bursar_server.budgets.model import Budget
from bursar_server.kit import ids
from bursar_server.kit.errors import BursarError, Reason
from bursar_server.ledger.model import FiredThreshold, Record
from bursar_server.metering.checks import evaluate_check
from bursar_server.metering.context import BatchContext
from bursar_server.metering.deducts import evaluate_deduct, evaluate_expiry, evaluate_release
from bursar_server.metering.model import Answer, Call, CheckCall, DeductCall, ReleaseCall

Result = Answer | BursarError


@dataclass
class Outcome:
    """What a committed batch answered, the thresholds that it reached, and the calls whose lease it charged."""

    results: list[Result]
    fired: list[tuple[Budget, FiredThreshold]] = field(default_factory=list)
    expired: list[Record] = field(default_factory=list)
    # Whether holds were removed, so that calls that wait can be decided again.
    freed: bool = False


def evaluate(call: Call, request_id: UUID, context: BatchContext) -> Result:
    """Evaluate one call; a BursarError of its own is its answer. Nothing is changed before one is raised."""
    try:
        if isinstance(call, CheckCall):
            return evaluate_check(call, context)
        if isinstance(call, DeductCall):
            _check_age(request_id, context)
            return evaluate_deduct(call, request_id, context)
        if isinstance(call, ReleaseCall):
            return evaluate_release(call, context)
        return evaluate_expiry(call, context)
    except BursarError as error:
        return error


def _check_age(request_id: UUID, context: BatchContext) -> None:
    made = ids.time_of_uuid7(request_id)
    if made is None or made < context.months.start:
        raise BursarError(
            Reason.REQUEST_TOO_OLD, "request_id: older than the months that are kept", field="request_id"
        )
