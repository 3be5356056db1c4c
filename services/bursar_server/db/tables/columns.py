"""Column shorthands and the metadata that every table belongs to."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ARRAY, BigInteger, Column, MetaData, Text, Uuid, text
from sqlalchemy.dialects.postgresql import TIMESTAMP
from sqlalchemy.types import TypeEngine

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

Instant = TIMESTAMP(timezone=True)
TextArray = ARRAY(Text)
UuidArray = ARRAY(Uuid)

Kind = TypeEngine[Any] | type[TypeEngine[Any]]


def required(name: str, kind: Kind, default: str | None = None) -> Column[Any]:
    """Return a NOT NULL column; `default` is SQL."""
    return Column(name, kind, nullable=False, server_default=text(default) if default is not None else None)


def optional(name: str, kind: Kind) -> Column[Any]:
    """Return a column that may be NULL."""
    return Column(name, kind, nullable=True)


def counters(names: Sequence[str]) -> list[Column[Any]]:
    """Return NOT NULL int64 columns that start at 0."""
    return [required(name, BigInteger, "0") for name in names]
