"""Opening the sockets that the doors listen on."""

import socket

from bursar_server.kit.addresses import Address, Tls

__all__ = ["Address", "AddressInUseError", "Tls", "bind", "bound_address"]


class AddressInUseError(Exception):
    """Nothing can listen on `address`; the message says which it is and why."""

    def __init__(self, address: Address, reason: str) -> None:
        super().__init__(f"{address}: {reason}")
        self.address = address


def bind(address: Address) -> socket.socket:
    """Return a socket that listens on an address. Raises AddressInUseError where that is not possible."""
    host = address.host or "0.0.0.0"  # noqa: S104  (an empty host asks for every interface)
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(
            host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise AddressInUseError(address, (error.strerror or str(error)).lower()) from error
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(target)
        bound.listen(2048)
    except OSError as error:
        bound.close()
        raise AddressInUseError(address, (error.strerror or str(error)).lower()) from error
    return bound


def bound_address(address: Address, bound: socket.socket) -> Address:
    """Return the address as it was bound: the same host, the port that was free."""
    return Address(address.host, bound.getsockname()[1])
