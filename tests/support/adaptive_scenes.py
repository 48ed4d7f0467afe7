"""Scenes of pools with the adaptive mix: spot nodes by zone, what zones were through, and what is bought."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from policies.actions import Cause, Drain, Launch
from policies.hazard import ZoneHistory
from policies.model import AdaptiveRules, InstanceState, Limits, Pool, StandbyKind
from tests.support.scene import Scene
from tests.support.toy_pools import ON_DEMAND, SPOT, of_kind, place

HOUR = 3600.0
SOON = AdaptiveRules(spot_start=90.0)
OLD, YOUNG = 240.0, 0.1  # hours that a zone was watched without bad news


def fleet(
    wanted: int,
    spot: str = "",
    on_demand: int = 0,
    *,
    rules: AdaptiveRules = SOON,
    prices: dict[str, float | None] | None = None,
    age: float = OLD,
    pool: dict[str, Any] | None = None,
    **memory: Any,
) -> Scene:
    """A pool with a spot node in each zone of `spot` ("aab": two in a, one in b), all ready for a day.

    `prices`: USD/h of spot in the zones that sell it; on demand it is 3. `age`: of every zone, in hours.
    """
    base = {"name": "p", "replicas": wanted, "spot_share": 1.0, "adaptive": rules}
    here = Scene(
        Pool(**{**base, "limits": Limits(surge=2 * wanted, disruption=1.0), **(pool or {})}), **memory
    )
    for i, zone in enumerate(spot):
        here.node(f"{zone}{i}", SPOT, zone, age=24 * HOUR)
    for i in range(on_demand):
        here.node(f"o{i}", ON_DEMAND, "a", age=24 * HOUR)
    sold = {"a": 0.9, "b": 0.9, "c": 0.9} if prices is None else prices
    here.offerings = [
        o for o in here.offerings if o.placement.market is ON_DEMAND or o.placement.zone in sold
    ]
    here.offerings = [
        o if o.placement.market is ON_DEMAND else replace(o, price=sold[o.placement.zone])
        for o in here.offerings
    ]
    here.fields["zones"] = {
        place(zone): ZoneHistory(
            held=spot.count(zone), seen_at=here.now, age=age, bad_at=here.now - age * HOUR
        )
        for zone in "abc"
    }
    return here


def standby(here: Scene, node: str = "sb") -> Scene:
    """A stopped standby."""
    return here.node(
        node, ON_DEMAND, ready=False, state=InstanceState.STOPPED, serving=False, standby=StandbyKind.STOPPED
    )


def unsold(here: Scene) -> Scene:
    """Spot cannot be had."""
    here.offerings = [replace(o, available=o.placement.market is ON_DEMAND) for o in here.offerings]
    return here


def zones(here: Scene) -> str:
    """Where spot nodes are launched, in order."""
    return "".join(a.placement.zone for a in of_kind(here.plan(), Launch) if a.placement.market is SPOT)


def covers(here: Scene) -> int:
    """How many on-demand nodes are launched."""
    return sum(a.placement.market is ON_DEMAND for a in of_kind(here.plan(), Launch))


def drains(here: Scene) -> list[tuple[str, Cause]]:
    return [(a.node, a.cause) for a in of_kind(here.plan(), Drain)]
