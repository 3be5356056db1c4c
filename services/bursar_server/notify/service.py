"""Tells people that a threshold was reached. The built-in channel is the structured log (F087)."""

import logging

from bursar_server.budgets.model import Budget
from bursar_server.ledger.model import FiredThreshold
from bursar_server.notify.rules import alert_message

logger = logging.getLogger(__name__)


class NotifyService:
    """Sends what a committed batch reached. That it fired is in the database; a message is sent once, after that."""

    def budget_alert(self, budget: Budget, threshold: FiredThreshold) -> None:
        """Write the warning of a threshold to the log, with what an alert policy can filter by (F088)."""
        logger.warning(
            alert_message(threshold.threshold_pct),
            extra={
                "event": "budget_alert",
                "budget_id": str(budget.budget_id),
                "budget_name": budget.name,
                "tenant_id": str(budget.tenant_id),
                "scope": budget.scope.kind.value.lower(),
                "user_id": str(budget.scope.user_id) if budget.scope.user_id else "",
                "period_key": threshold.period_key,
                "threshold_pct": threshold.threshold_pct,
                "soft_limit": threshold.soft_limit,
                "spent_nanos": threshold.spent_nanos,
                "limit_nanos": budget.limit_nanos,
                "spent_tokens": threshold.spent_tokens,
                "limit_tokens": budget.limit_tokens,
                "owners": list(budget.owners),
            },
        )
