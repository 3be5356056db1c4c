"""Where a process listens, and the certificate it shows: values only, nothing is opened here."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Address:
    """A host and a port; port 0 is any free one, an empty host every interface."""

    host: str
    port: int

    def __str__(self) -> str:
        """Write the address as people type it, IPv6 in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def reachable(self) -> "Address":
        """The address under which this machine reaches itself: loopback in place of every interface."""
        if self.host in ("", "0.0.0.0"):  # noqa: S104  (compared, not bound)
            return Address("127.0.0.1", self.port)
        return Address("::1", self.port) if self.host == "::" else self


@dataclass(frozen=True, slots=True)
class Tls:
    """A certificate chain and its key, both PEM files."""

    certificate: Path
    key: Path
