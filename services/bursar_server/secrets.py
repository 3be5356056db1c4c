"""Secrets that an installation makes for itself, in files that only its owner can read."""

import os
from collections.abc import Callable
from pathlib import Path


def ensure_secret_file(path: Path, make: Callable[[], str]) -> str:
    """Return the secret in a file, making the file (mode 0600) with a new one where there is none.

    Of several processes that start at once, one makes it and the others read it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    found = _read(path)
    if found:
        return found
    secret = make()
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(secret + "\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        # A link fails where another process was first, and then its secret counts.
        path.hardlink_to(fresh)
    except FileExistsError:
        return _read(path)
    finally:
        fresh.unlink()
    return secret


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""
