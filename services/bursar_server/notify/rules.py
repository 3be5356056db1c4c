"""The words of notifications."""


def alert_message(threshold_pct: int) -> str:
    """Return the words of an alert, the same in every channel: people filter logs by them (F088)."""
    return f"🔔 budget alert: {threshold_pct}% threshold reached"
