"""Addresses for machines: a /24 of the loopback network for each cloud, one address for each machine."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Collection, Sequence

from cloud.errors import QuotaExceeded
from cloud.local.config import SetupError

MOST = 254


class Hosts:
    """Gives out the addresses of a network such as "127.20.31", the longest unused first."""

    def __init__(self, network: str, ports: Sequence[int]) -> None:
        self._network = network
        self._ports = tuple(ports)
        self._last = 0

    def next(self, taken: Collection[str]) -> str:
        """An address that is not taken and on which nobody holds the ports. Raises QuotaExceeded."""
        for step in range(MOST):
            number = (self._last + step) % MOST + 1
            host = f"{self._network}.{number}"
            if host not in taken and all(_free(host, port) for port in self._ports):
                self._last = number
                return host
        raise QuotaExceeded(f"a local cloud has {MOST} addresses and all are taken. Nothing was launched")


def free_network(ports: Sequence[int]) -> str:
    """A /24 of the loopback network that nobody uses: its first address must take the ports.

    Not seeded: two clouds with one seed may run side by side. Raises SetupError.
    """
    generator = secrets.SystemRandom()
    for _ in range(100):
        # 127.0 is where everything else listens.
        network = f"127.{generator.randint(1, 254)}.{generator.randint(0, 255)}"
        try:
            if all(_free(f"{network}.1", port) for port in ports):
                return network
        except PermissionError:
            raise SetupError(
                f"ports {', '.join(map(str, ports))}: not allowed for this user; use ports above 1023"
            ) from None
    raise SetupError(
        f"ports {', '.join(map(str, ports))}: taken or not to be had on 127.0.0.0/8; choose others"
    )


def _free(host: str, port: int) -> bool:
    """True when the port can be bound. Raises PermissionError."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except PermissionError:
            raise
        except OSError:
            return False
    return True
