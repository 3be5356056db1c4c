"""What follows a committed batch: counts, alerts to people, and the call's span where a collector is named (F146)."""

from collections.abc import Sequence

from bursar_server.kit.errors import BursarError
from bursar_server.ledger.model import Record
from bursar_server.metering.evaluation import Outcome
from bursar_server.metering.model import CheckAnswer, DeductAnswer
from bursar_server.notify.service import NotifyService
from bursar_server.telemetry import MeteredCall, Telemetry


class MeteringObserver:
    """Called by lanes after each commit, from the event loop or their threads; plain integers are all it costs without a collector."""

    def __init__(self, telemetry: Telemetry, notify: NotifyService) -> None:
        self._telemetry = telemetry
        self._notify = notify
        metrics = telemetry.metrics
        self._batches = metrics.counter("bursar.metering.batches", "Batches that were committed.")
        self._items = metrics.counter("bursar.metering.items", "Calls that batches held.")
        self._checks = metrics.counter(
            "bursar.metering.checks",
            "Checks by decision; a denial by its first code.",
            labels=("decision", "code"),
        )
        self._deducts = metrics.counter(
            "bursar.metering.deducts",
            "Deducts that charged a call.",
            labels=("outcome", "estimated", "unchecked"),
        )
        self._duplicates = metrics.counter(
            "bursar.metering.duplicates", "Repeats of calls that were answered before."
        )
        self._expired = metrics.counter("bursar.metering.lease_expired", "Calls charged at their estimate.")
        self._unpriced = metrics.counter("bursar.metering.unpriced", "Calls of models without a price.")
        self._errors = metrics.counter(
            "bursar.metering.errors", "Calls that were refused.", labels=("reason",)
        )
        self._cost = metrics.counter(
            "bursar.cost", "What calls cost, in nanos (1e-9 US dollar).", unit="nanos"
        )
        self._overshoot = metrics.counter(
            "bursar.overshoot", "What calls cost beyond the limits of their budgets, in nanos.", unit="nanos"
        )
        overshoot = self._overshoot
        metrics.gauge(
            "bursar.overshoot.usd",
            "What calls cost beyond the limits of their budgets since the start, in US dollars.",
            lambda: sum(overshoot.values().values()) / 1e9,
        )
        self._shortfall = metrics.counter(
            "bursar.hold_shortfall", "What calls cost beyond what was held for them, in nanos.", unit="nanos"
        )
        self._alerts = metrics.counter(
            "bursar.budget.alerts", "Thresholds that were reached.", labels=("threshold_pct",)
        )

    def batch_committed(self, outcome: Outcome, size: int) -> None:
        """Count what a batch did, and tell people what it reached."""
        self._batches.add()
        self._items.add(amount=size)
        for result in outcome.results:
            if isinstance(result, BursarError):
                self._errors.add(result.reason.value)
            elif isinstance(result, CheckAnswer):
                self._checks.add(*(("allow", "") if result.allowed else ("deny", result.denials[0].code)))
                if result.duplicate:
                    self._duplicates.add()
            elif isinstance(result, DeductAnswer):
                self._deducted(result)
        for budget, threshold in outcome.fired:
            self._alerts.add(str(threshold.threshold_pct))
            self._notify.budget_alert(budget, threshold)
        for record in outcome.expired:
            self._expired.add()
            self._cost.add(amount=max(0, record.cost.total_nanos))
            self._overshoot.add(amount=max(0, record.overage_nanos))

    def _deducted(self, answer: DeductAnswer) -> None:
        record = answer.record
        if record is None:
            self._duplicates.add()
            return
        self._deducts.add(record.outcome, str(record.estimated).lower(), str(record.unchecked).lower())
        self._cost.add(amount=max(0, record.cost.total_nanos))
        self._overshoot.add(amount=max(0, record.overage_nanos))
        self._shortfall.add(amount=max(0, answer.hold_shortfall_nanos))
        if record.unpriced:
            self._unpriced.add()
        if self._telemetry.exports_calls:
            self._telemetry.record_call(_metered_call(record))


def _metered_call(record: Record) -> MeteredCall:
    who = record.attribution
    first = record.items[0] if record.items else None
    return MeteredCall(
        request_id=str(record.request_id),
        start_time=record.start_time or record.usage_time,
        end_time=record.end_time or record.start_time or record.usage_time,
        tenant_id=str(who.tenant_id),
        user_id=str(who.user_id) if who.user_id else "",
        api_key_id=str(who.api_key_id) if who.api_key_id else "",
        provider=record.provider,
        model=first.model if first else record.model,
        input_tokens=_sum(record, "input_tokens"),
        output_tokens=_sum(record, "output_tokens"),
        cost_nanos=record.cost.total_nanos,
        outcome=record.outcome,
        session_id=who.session_id,
        service_tier=first.service_tier if first else "",
        estimated=record.estimated,
        unpriced=record.unpriced,
        tags=who.tags,
    )


def _sum(record: Record, part: str) -> int:
    values: Sequence[int] = [getattr(item.usage, part) for item in record.items]
    return sum(values)
