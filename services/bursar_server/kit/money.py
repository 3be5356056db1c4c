"""Money is int64 nanos (1e-9 US dollar); doubles exist only where people type or read, and convert through decimal text."""

from decimal import Decimal

from bursar_server.kit.errors import BursarError, Reason, invalid

NANOS_PER_USD = 1_000_000_000
MAX_NANOS = 2**63 - 1
# Above this, nine decimals do not fit a double, and a sum of a tenant's budgets could leave int64.
MAX_USD = 1_000_000_000


def nanos_of_usd(value: float, field: str) -> int:
    """Return the nanos that a double's shortest decimal text says: 0.1 is exactly 100,000,000.

    Raises INVALID_FIELD naming `field` for NaN, infinities, negatives, more than 9 decimals and amounts above 1e9 USD.
    """
    if value != value or value in (float("inf"), float("-inf")):
        raise invalid(field, "must be a finite number of US dollars")
    if value < 0:
        raise invalid(field, "must not be negative")
    if value > MAX_USD:
        raise invalid(field, f"must be at most {MAX_USD} US dollars")
    nanos = Decimal(repr(float(value))).scaleb(9)
    if nanos != nanos.to_integral_value():
        raise invalid(field, "must have at most 9 decimals")
    return int(nanos)


def usd_of_nanos(nanos: int) -> float:
    """Return the double nearest to an amount: what JSON shows as its shortest decimal text."""
    return nanos / NANOS_PER_USD  # of two integers: rounded once, whatever their size


def usd_text(nanos: int) -> str:
    """Return an amount as exact decimal text without an exponent: 100000000 is `0.1`, 0 is `0`."""
    sign = "-" if nanos < 0 else ""
    whole, part = divmod(abs(nanos), NANOS_PER_USD)
    return f"{sign}{whole}.{part:09d}".rstrip("0").rstrip(".") if part else f"{sign}{whole}"


def nanos_of_text(text: str, field: str) -> int:
    """Return the nanos of decimal text such as `12.5`. Raises INVALID_FIELD as `nanos_of_usd` does."""
    try:
        value = Decimal(text)
    except ArithmeticError as error:
        raise invalid(field, "must be a number of US dollars") from error
    if not value.is_finite() or value < 0 or value > MAX_USD:
        raise invalid(field, f"must be between 0 and {MAX_USD} US dollars")
    nanos = value.scaleb(9)
    if nanos != nanos.to_integral_value():
        raise invalid(field, "must have at most 9 decimals")
    return int(nanos)


def divide_half_even(numerator: int, denominator: int) -> int:
    """Return numerator / denominator rounded to an integer, half to even; the denominator is positive (S15)."""
    quotient, remainder = divmod(numerator, denominator)
    twice = 2 * remainder
    if twice > denominator or (twice == denominator and quotient & 1):
        return quotient + 1
    return quotient


def bounded(nanos: int) -> int:
    """Return the amount, or raise INVALID_FIELD where it does not fit int64."""
    if not -MAX_NANOS <= nanos <= MAX_NANOS:
        raise BursarError(Reason.INVALID_FIELD, "amount does not fit 64 bits")
    return nanos
