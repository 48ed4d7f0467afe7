"""What must hold for pools of a local cloud."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.config.checks.paths import socket_errors
from orchestrator.config.errors import Found, Key
from orchestrator.config.tables.file import ConfigFile
from orchestrator.config.tables.pool import PoolConfig


def local_pool_errors(at: Key, pool: PoolConfig) -> Iterator[Found]:
    """What the local cloud could not open."""
    yield from socket_errors((*at, "cloud", "socket"), pool.cloud.socket)


def local_among(parsed: ConfigFile) -> Iterator[Found]:
    """One local cloud serves all pools that name it; its directory and its socket go together."""
    seen: dict[object, tuple[str, tuple[object, object]]] = {}
    for name, pool in parsed.pool.items():
        if "local" not in pool.cloud.kinds:
            continue
        place = (pool.cloud.state_dir, pool.cloud.socket)
        for key, value in zip(("state_dir", "socket"), place, strict=True):
            first, other = seen.setdefault(value, (name, place))
            if other != place:
                yield (
                    ("pool", name, "cloud", key),
                    f"{value} is that of pool {first} too, whose local cloud is another; write both "
                    "state_dir and socket as there, or neither",
                )
