"""Counts simulated machines in serving units, by the weights of a pool and nothing else."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from cloud.sim.world import Machine
from policies.model import Placement, Pool


def weight(pool: Pool, placement: Placement) -> int:
    """The units that a machine at a placement serves."""
    return pool.units.get(placement.instance_type, 1)


def units(pool: Pool, machines: Iterable[Machine]) -> int:
    """The units that machines serve together."""
    return sum(weight(pool, m.placement) for m in machines)


def enough(pool: Pool, machines: Collection[Machine], wanted: int) -> bool:
    """They serve what is wanted, and none of them could go: nodes only come whole."""
    over = units(pool, machines) - wanted
    return over >= 0 and all(over < weight(pool, m.placement) for m in machines)
