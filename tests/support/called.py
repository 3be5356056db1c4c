"""A handler's context without a door: who calls, and nothing else."""

from __future__ import annotations

from typing import Any

from bursar_server.kit.caller import Caller
from bursar_server.rpc.auth import Call


def called_by(caller: Caller) -> Any:
    """Return a context for calling a method of an `*/rpc.py` class directly."""
    call = Call.__new__(Call)
    call.caller = caller
    return call
