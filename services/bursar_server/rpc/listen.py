"""Addresses to listen on, and the certificate that both doors show."""

import socket
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


@dataclass(frozen=True, slots=True)
class Tls:
    """A certificate chain and its key, both PEM files."""

    certificate: Path
    key: Path


class AddressInUseError(Exception):
    """Nothing can listen on an address; the message says which and why."""


def bind(address: Address) -> socket.socket:
    """Return a socket bound to an address. Raises AddressInUseError where that is not possible."""
    host = address.host or "0.0.0.0"  # noqa: S104  (an empty host asks for every interface)
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(
            host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise AddressInUseError(f"{address}: {error.strerror or error}") from error
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(target)
        bound.listen(2048)
    except OSError as error:
        bound.close()
        raise AddressInUseError(f"{address}: {(error.strerror or str(error)).lower()}") from error
    return bound


def bound_address(address: Address, bound: socket.socket) -> Address:
    """Return the address as it was bound: the same host, the port that was free."""
    return Address(address.host, bound.getsockname()[1])
