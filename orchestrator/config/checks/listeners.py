"""Which addresses and paths of a configuration cannot be had together: each is opened by one process."""

from __future__ import annotations

import contextlib
import ipaddress
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Final

from orchestrator.config.sockets import reading_socket
from orchestrator.config.tables.daemon import DaemonConfig
from orchestrator.config.tables.pool import PoolConfig
from orchestrator.units import HostPort

Key = tuple[str, ...]
Found = tuple[Key, str]  # key path, sentence

_ANY: Final = ("0.0.0.0", "::")  # noqa: S104 - compared, not listened on


def listener_errors(daemon: DaemonConfig, name: str, pool: PoolConfig) -> Iterator[Found]:
    """Listeners that meet on one port, and paths that are given twice."""
    for one, two in combinations(_listeners(daemon, name, pool), 2):
        if meet(one, two):
            beside = f"{one.address} of {'.'.join(one.key)}"
            yield two.key, f"{two.address} cannot be opened beside {beside}; write another port"
    taken: dict[Path, Key] = {}
    for key, path in _paths(daemon, name, pool):
        place = Path(os.path.realpath(path))
        if place in taken:
            yield key, f"{path} is the path of {'.'.join(taken[place])} too; write another path"
        taken.setdefault(place, key)


def local_errors(daemon: DaemonConfig, name: str, pool: PoolConfig, ports: Sequence[int]) -> Iterator[Found]:
    """Listeners on every address that take a port which the machines of a local cloud need on theirs."""
    for listener in _listeners(daemon, name, pool):
        address = listener.address
        if address.host in _ANY and address.port in ports:
            yield (
                listener.key,
                f"{address} takes port {address.port} on every address of this host, and the machines of the "
                "local cloud need it on theirs; write another port, or one address",
            )


@dataclass(frozen=True, slots=True)
class Listener:
    """An address that is listened on. `dual`: it takes IPv4 addresses beside those of IPv6."""

    key: Key
    address: HostPort
    dual: bool = False

    def takes(self, host: str) -> bool:
        """Whether it is on every address of the family of `host`, an address or a name."""
        here = self.address.host
        return here in _ANY and (self.dual or _family(host) in (_family(here), ""))


def meet(one: Listener, two: Listener) -> bool:
    """True when the second of two listeners finds its port taken. Port 0 is any free one.

    A name is taken to have addresses of both families, unless it is this machine's own.
    """
    if one.address.port != two.address.port or not one.address.port:
        return False
    here, there = _hosts(one.address), _hosts(two.address)
    return bool(here & there) or any(map(one.takes, there)) or any(map(two.takes, here))


def _hosts(address: HostPort) -> set[str]:
    if address.host == "localhost":
        return {"127.0.0.1", "::1"}
    with contextlib.suppress(ValueError):
        return {str(ipaddress.ip_address(address.host))}
    return {address.host}


def _family(host: str) -> str:
    """4 or 6, empty for a name."""
    if ":" in host:
        return "6"
    return "4" if host.replace(".", "").isdigit() else ""


def takes_requests(pool: PoolConfig) -> bool:
    """Whether the pool's gateway gets the requests, and not a balancer of the cloud."""
    return not (pool.cloud.kind == "aws" and pool.cloud.aws.target_group)


def _listeners(daemon: DaemonConfig, name: str, pool: PoolConfig) -> Iterator[Listener]:
    if daemon.listen is not None:
        yield Listener(("daemon", "listen"), daemon.listen)
    if takes_requests(pool):
        yield Listener(
            ("pool", name, "gateway", "listen"), pool.gateway.listen, dual=pool.gateway.listen.host == "::"
        )
        if pool.gateway.metrics_listen is not None:
            yield Listener(("pool", name, "gateway", "metrics_listen"), pool.gateway.metrics_listen)
    if pool.agents.listen is not None:
        yield Listener(("pool", name, "agents", "listen"), pool.agents.listen)


def _paths(daemon: DaemonConfig, name: str, pool: PoolConfig) -> Iterator[tuple[Key, Path]]:
    at = ("pool", name)
    yield ("daemon", "socket"), daemon.socket
    if daemon.readers == "all":
        yield ("daemon", "readers"), reading_socket(daemon.socket)
    if takes_requests(pool):
        yield (*at, "gateway", "socket"), pool.gateway.socket
        yield (*at, "gateway", "targets_file"), pool.gateway.targets_file
    if pool.cloud.kind == "local":
        yield (*at, "cloud", "socket"), pool.cloud.socket
