"""The 70/30: how many units of each market the pool should hold now.

What it decides: wanted spot units, and wanted on-demand units as floor + standby + cover.
Why: the floor (the on-demand share of wanted, rounded up) is what survives when all spot is lost at once.
Cover is temporary: it stands in for spot that is wanted and not ready, so that the number of ready units
holds while spot is away, and it is given back when spot is whole again. The spot target itself never
moves: a pool that forgot it would drift to all on-demand.

    on-demand wanted = floor + hot standby + cover,   cover = spot wanted - spot ready

Until the pool has been whole for the first time, spot nodes on their way count as ready for the cover:
nothing was lost yet, and doubling every first launch would only cost money. Nor is spot covered that was
never there while its market is paused (`policies.bars`): of a pool that has had `kept` units ready at once no
more than those are.
Never: cover is not counted in the mix; it does not lower the spot target.

Example:
    >>> from policies.model import Pool
    >>> wanted(Pool(name="p", replicas=10), spot_ready=7, spot_coming=0, whole=True)
    Mix(spot=7, floor=3, hot=0, cover=0)
    >>> wanted(Pool(name="p", replicas=4), spot_ready=1, spot_coming=1, whole=True)
    Mix(spot=2, floor=2, hot=0, cover=1)
    >>> wanted(Pool(name="p", replicas=10), spot_ready=3, spot_coming=0, whole=False, kept=8)
    Mix(spot=7, floor=3, hot=0, cover=2)
"""

from __future__ import annotations

from dataclasses import dataclass

from policies.model import Pool


@dataclass(frozen=True, slots=True)
class Mix:
    """Wanted units by purpose."""

    spot: int
    floor: int
    hot: int
    cover: int

    @property
    def on_demand(self) -> int:
        """All on-demand units wanted now."""
        return self.floor + self.hot + self.cover


def wanted(pool: Pool, *, spot_ready: int, spot_coming: int, whole: bool, kept: int | None = None) -> Mix:
    """The mix wanted now. `spot_coming` are units of spot nodes starting or being launched.

    `kept`: units in all beyond which nothing is covered, None where everything is.
    """
    present = spot_ready if whole else spot_ready + spot_coming
    cover = pool.spot_wanted - present
    if kept is not None:
        cover = min(cover, kept - pool.on_demand_floor - pool.standby.hot - present)
    return Mix(spot=pool.spot_wanted, floor=pool.on_demand_floor, hot=pool.standby.hot, cover=max(0, cover))
