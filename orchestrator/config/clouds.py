"""A pool as one of its clouds sees it, for what exists once for each kind: checks, adapters, looks."""

from __future__ import annotations

from collections.abc import Iterator

from cloud.kinds import CloudName
from orchestrator.config.tables.pool import PoolConfig
from orchestrator.config.types import revised


def on_cloud(pool: PoolConfig, kind: CloudName) -> PoolConfig:
    """The pool as if its machines came from that one of its clouds alone.

    Units of types that only others have are left out; those of types that none has stay with the first.
    """
    if pool.cloud.kinds == (kind,):
        return pool
    alone = pool.cloud.only(kind)
    known, own = pool.cloud.types(), alone.types()
    first = kind == pool.cloud.kinds[0]
    units = {name: n for name, n in pool.units.items() if name in own or (first and name not in known)}
    return revised(pool, {"cloud": alone, "units": units})


def each_cloud(pool: PoolConfig) -> Iterator[tuple[CloudName, PoolConfig]]:
    """Every kind of cloud of the pool, with the pool on it alone."""
    for kind in pool.cloud.kinds:
        yield kind, on_cloud(pool, kind)
