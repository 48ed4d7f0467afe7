"""Which addresses and paths of a configuration cannot be had together: each is opened by one process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Final

from orchestrator.client import reading_socket
from orchestrator.units import HostPort

if TYPE_CHECKING:
    from orchestrator.config import PoolConfig
    from orchestrator.config_daemon import DaemonConfig

Key = tuple[str, ...]
Found = tuple[Key, str]  # key path, sentence

_ANY: Final = {"0.0.0.0": "4", "::": "6"}  # noqa: S104 - compared, not listened on


def listener_errors(daemon: DaemonConfig, name: str, pool: PoolConfig) -> Iterator[Found]:
    """Listeners that meet on one port, and paths that are given twice."""
    for (key, one), (other, two) in combinations(_addresses(daemon, name, pool), 2):
        if meet(one, two):
            text = f"{two} cannot be opened beside {one} of {'.'.join(key)}; write another port"
            yield other, text
    taken: dict[Path, Key] = {}
    for key, path in _paths(daemon, name, pool):
        if path in taken:
            yield key, f"{path} is the path of {'.'.join(taken[path])} too; write another path"
        taken.setdefault(path, key)


def local_errors(daemon: DaemonConfig, name: str, pool: PoolConfig, ports: Sequence[int]) -> Iterator[Found]:
    """Listeners on every address that take a port which the machines of a local cloud need on theirs."""
    for key, address in _addresses(daemon, name, pool):
        if address.host in _ANY and address.port in ports:
            yield (
                key,
                f"{address} takes port {address.port} on every address of this host, and the machines of the "
                "local cloud need it on theirs; write another port, or one address",
            )


def meet(one: HostPort, two: HostPort) -> bool:
    """True when the second of two listeners finds its port taken. Port 0 is any free one.

    Every address of a family covers each of it. A name is taken to have addresses of both families, unless it
    is this machine's own.
    """
    if one.port != two.port or not one.port:
        return False
    here, there = _hosts(one), _hosts(two)
    return bool(here & there) or any(
        wild in ours and any(_family(host) in (family, "") for host in theirs)
        for wild, family in _ANY.items()
        for ours, theirs in ((here, there), (there, here))
    )


def _hosts(address: HostPort) -> set[str]:
    return {"127.0.0.1", "::1"} if address.host == "localhost" else {address.host}


def _family(host: str) -> str:
    """4 or 6, empty for a name."""
    if ":" in host:
        return "6"
    return "4" if host.replace(".", "").isdigit() else ""


def takes_requests(pool: PoolConfig) -> bool:
    """Whether the pool's gateway gets the requests, and not a balancer of the cloud."""
    return not (pool.cloud.kind == "aws" and pool.cloud.aws.target_group)


def _addresses(daemon: DaemonConfig, name: str, pool: PoolConfig) -> Iterator[tuple[Key, HostPort]]:
    if daemon.listen is not None:
        yield ("daemon", "listen"), daemon.listen
    if takes_requests(pool):
        yield ("pool", name, "gateway", "listen"), pool.gateway.listen
    if pool.agents.listen is not None:
        yield ("pool", name, "agents", "listen"), pool.agents.listen


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
