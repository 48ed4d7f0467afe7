"""Where the gateway listens: its sockets, and the names by which callers may ask for it there."""

from __future__ import annotations

import errno
import socket

from cloud.serving.hosts import ANY, Hosts
from orchestrator.gateway.config import GatewayConfig, GatewayError
from orchestrator.units import HostPort


def names_of(config: GatewayConfig, at: HostPort) -> Hosts:
    """The names that callers of the listener `at` may ask for.

    On the loopback, who asks for a name that is not ours may be a page in a browser on this machine. An
    address that other machines reach has names that only its users know.
    """
    one = len(config.pools) == 1
    table = f"pool.{config.pools[0].name or 'NAME'}.gateway" if one else "gateway"
    more = config.allowed_hosts or (() if at.loopback else (ANY,))
    return Hosts((at.host, *more), table=table, listener=str(at))


def open_listener(host: str, port: int) -> socket.socket:
    """A bound socket for the listener. Raises GatewayError."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, proto)
    except OSError as error:
        raise GatewayError(
            f"gateway: host: {host!r}: {error.strerror}; give an address of this host"
        ) from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            remedy = "another program listens there; stop it or choose another port"
        else:
            remedy = "give an address of this host and a port you may use"
        raise GatewayError(f"gateway: {host}:{port}: {error.strerror}; {remedy}") from None
    return listener
