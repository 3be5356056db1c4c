"""Ids: UUIDv7 (RFC 9562) for whatever is stored, and the secrets of keys and tokens."""

import hashlib
import re
import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

KEY_PREFIX = "bur_"
TOKEN_PREFIX = "bat_"  # noqa: S105  (a prefix, not a secret)

PLATFORM_TENANT_ID = UUID(int=0)
DEFAULT_TENANT_ID = UUID("00000000-0000-7000-8000-000000000001")

_UUID_TEXT = re.compile(
    "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.ASCII | re.IGNORECASE
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_RANDOM_BITS = 74


def uuid7_at(instant: datetime, random_bits: Callable[[int], int] = secrets.randbits) -> UUID:
    """Return a new UUIDv7 whose time is `instant`, to the millisecond."""
    milliseconds = (instant - _EPOCH) // _MILLISECOND
    random = random_bits(_RANDOM_BITS)
    value = (milliseconds & ((1 << 48) - 1)) << 80
    value |= 0x7 << 76
    value |= (random >> 62) << 64
    value |= 0b10 << 62
    value |= random & ((1 << 62) - 1)
    return UUID(int=value)


def floor_uuid7(instant: datetime) -> UUID:
    """Return the least UUID, of any version, whose first 48 bits are `instant`: a bound of a range of ids."""
    milliseconds = (instant - _EPOCH) // _MILLISECOND
    return UUID(int=(milliseconds & ((1 << 48) - 1)) << 80)


def time_of_uuid7(value: UUID) -> datetime | None:
    """Return the time in a UUIDv7 to the millisecond, or None if it is another kind of UUID or beyond year 9999."""
    number = value.int
    if number >> 76 & 0xF != 7 or number >> 62 & 0b11 != 0b10:
        return None
    try:
        return _EPOCH + timedelta(milliseconds=number >> 80)
    except OverflowError:
        return None


def parse_uuid(text: str) -> UUID | None:
    """Return the UUID that `text` writes in its usual 36 characters, or None."""
    if _UUID_TEXT.fullmatch(text) is None:
        return None
    return UUID(int=int(text.replace("-", ""), 16))


def new_key_secret() -> str:
    """Return a new API key: `bur_` and 256 random bits."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def new_token_secret() -> str:
    """Return a new access token: `bat_` and 256 random bits."""
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


def sha256_hex(secret: str) -> str:
    """Return the sha256 of a secret's UTF-8 text, in lower-case hexadecimal: what is stored instead of it."""
    return hashlib.sha256(secret.encode()).hexdigest()


def masked(secret: str) -> str:
    """Return a key as it may be shown: its prefix, four characters, and its last four (F104)."""
    return f"{secret[:8]}…{secret[-4:]}"
