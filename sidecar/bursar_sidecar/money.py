"""Money as text: nanos (1e-9 US dollar) to exact decimals and back, never through a float."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation

_NANO = Decimal("1e-9")
# The control plane takes no larger amount for an amount of money.
_MOST_USD = Decimal(10**9)


def usd_text(nanos: int) -> str:
    """Return an amount of nanos as plain decimal text in US dollars: 1500000 is `0.0015`, 0 is `0`."""
    whole, part = divmod(abs(nanos), 1_000_000_000)
    text = f"{whole}.{part:09d}".rstrip("0").rstrip(".")
    return f"-{text}" if nanos < 0 else text


def usd_of_text(text: str | None) -> float | None:
    """Return a provider's own amount as the double that the contract carries, at most 9 decimals.

    None for no amount, and for one that the control plane would refuse: the call must be charged all the same.
    """
    if text is None:
        return None
    try:
        amount = Decimal(text).quantize(_NANO, rounding=ROUND_HALF_EVEN)
    except InvalidOperation:
        return None
    return float(amount) if 0 <= amount <= _MOST_USD else None
