"""Which addresses and paths of a configuration cannot be had together: each is opened by one process."""

from __future__ import annotations

import contextlib
import ipaddress
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Final

from orchestrator.config.errors import Found, Key, dotted
from orchestrator.config.gateways import place
from orchestrator.config.sockets import reading_socket
from orchestrator.config.tables.daemon import DaemonConfig
from orchestrator.config.tables.gateway import SharedGatewayTable
from orchestrator.config.tables.pool import PoolConfig
from orchestrator.units import HostPort

Pools = Mapping[str, PoolConfig]

_ANY: Final = ("0.0.0.0", "::")  # noqa: S104 - compared, not listened on


def listener_errors(daemon: DaemonConfig, gateway: SharedGatewayTable, pools: Pools) -> Iterator[Found]:
    """Listeners that meet on one port, and paths that are given twice."""
    for one, two in combinations(_listeners(daemon, gateway, pools), 2):
        if meet(one, two):
            beside = f"{one.address} of {dotted(one.key)}"
            yield two.key, f"{two.address} cannot be opened beside {beside}; write another port"
    taken: dict[Path, Key] = {}
    for key, path in _paths(daemon, gateway, pools):
        real = Path(os.path.realpath(path))
        if real in taken:
            yield key, f"{path} is the path of {dotted(taken[real])} too; write another path"
        taken.setdefault(real, key)


def local_errors(
    daemon: DaemonConfig, gateway: SharedGatewayTable, pools: Pools, ports: Sequence[int]
) -> Iterator[Found]:
    """Listeners on every address that take a port which the machines of a local cloud need on theirs."""
    for listener in _listeners(daemon, gateway, pools):
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
    """Whether a gateway gets requests of the pool, and not other balancers alone."""
    if pool.balancer:
        return any(balancer.kind == "gateway" for balancer in pool.balancer)
    return not pool.cloud.target_group


def gateway_takes_requests(pools: Pools) -> bool:
    """Whether there is anything for a gateway to do."""
    return not pools or any(map(takes_requests, pools.values()))


def _listeners(daemon: DaemonConfig, gateway: SharedGatewayTable, pools: Pools) -> Iterator[Listener]:
    if daemon.listen is not None:
        yield Listener(("daemon", "listen"), daemon.listen)
    if gateway_takes_requests(pools):
        at = partial(place, gateway, pools)
        yield Listener(at("listen"), gateway.listen, dual=gateway.listen.host == "::")
        if gateway.metrics_listen is not None:
            yield Listener(at("metrics_listen"), gateway.metrics_listen)
        if gateway.control_listen is not None:
            yield Listener(at("control_listen"), gateway.control_listen)
    for name, pool in pools.items():
        if pool.agents.listen is not None:
            yield Listener(("pool", name, "agents", "listen"), pool.agents.listen)


def _paths(daemon: DaemonConfig, gateway: SharedGatewayTable, pools: Pools) -> Iterator[tuple[Key, Path]]:
    at = partial(place, gateway, pools)
    yield ("daemon", "socket"), daemon.socket
    if daemon.readers == "all":
        yield ("daemon", "readers"), reading_socket(daemon.socket)
    if gateway_takes_requests(pools):
        yield at("socket"), gateway.socket
        yield at("spend_file"), gateway.spend_file
        yield at("usage_file"), gateway.usage_file
        if gateway.keys_file is not None:
            yield at("keys_file"), gateway.keys_file
    clouds: dict[Path, Key] = {}
    for name, pool in pools.items():
        if takes_requests(pool):
            yield at("targets_file", name), pool.gateway.targets_file
        if "local" in pool.cloud.kinds:
            clouds.setdefault(pool.cloud.socket, ("pool", name, "cloud", "socket"))
    # one local cloud may serve several pools
    yield from ((key, socket) for socket, key in clouds.items())
