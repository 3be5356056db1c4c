"""What a lane of the hot path knows of its database: a blocking connection, and which errors mean what."""

from typing import Any

import psycopg
from psycopg import errors

LaneConnection = psycopg.Connection[Any]
"""A lane's own connection: blocking, in autocommit, used in pipeline mode."""

DatabaseError = psycopg.Error
"""Anything that the database or the way to it says."""

ConnectionLostError = psycopg.OperationalError
"""The database went away, or did not answer in time; what was under way may or may not be committed."""

LOCKED_ERROR = errors.LockNotAvailable
"""Somebody else holds the rows for longer than the lane waits."""

REPEATABLE_ERRORS = (
    errors.UniqueViolation,
    errors.DeadlockDetected,
    errors.SerializationFailure,
    errors.InvalidSqlStatementName,
)
"""Another transaction came first: the same batch can be repeated at once."""
