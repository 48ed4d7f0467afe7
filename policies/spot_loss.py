"""Whether the pool runs on demand because spot cannot be had.

What it decides: that (nearly) no spot node is ready although spot is wanted and every spot offering has
lately been refused or reclaimed, or is not for sale; since when, and when spot is tried again.
Why: every request is served, so nothing looks wrong, and the pool costs more than it was built to cost. That
is a state of its own with its own words.
Never: one zone that is refused counts as none to be had; a try that is under way, or a node that has not
booted yet, ends it: spot is back when a spot node is ready. A pool that was not whole yet has lost nothing.

Example: 4 spot nodes are wanted, all were reclaimed 10 minutes ago and both zones refuse since: lost for
600 s, tried again when one of the refusals weighs half and is as old as `back_to_spot.hold`.
"""

from __future__ import annotations

from policies.fleet import Fleet
from policies.model import Market, Placement, World
from policies.placement import Scorer
from policies.records import Memory
from policies.value import value

_NEARLY_NONE = 10
"""Spot is as good as lost when no more than one in so many wanted spot units is ready."""

_REMEMBERED = 0.1
"""Weight of a refusal or reclaim from which on it says that spot is short there."""


@value
class SpotLoss:
    """Spot that cannot be had.

    `since`: when the last spot node was lost, or the first was refused; None while a few are left.
    `next_try`: when spot is tried again, None while nothing is for sale or the pool is paused. `ready` and
    `coming`: spot units that are ready, and on their way.
    """

    since: float | None
    next_try: float | None
    ready: int = 0
    coming: int = 0


def spot_loss(fleet: Fleet, world: World, memory: Memory) -> SpotLoss | None:
    """How spot is lost; None while some of it is there or may be had. Linear in the number of offerings."""
    pool, ready = fleet.pool, fleet.ready_by_market[Market.SPOT]
    if ready * _NEARLY_NONE > pool.spot_wanted or pool.spot_wanted == 0 or memory.whole_at is None:
        return None
    sold = [o for o in fleet.prices.on_sale if o.placement.market is Market.SPOT and o.available]
    if not sold and any(view.at is None for view in world.offerings.values()):
        return None  # not known
    hold = pool.back_to_spot.hold
    scorer = Scorer(pool, memory, now=world.now, offerings=sold, held={}, sight=fleet.sight)
    if not world.offerings or not all(_short(o.placement, hold, scorer) for o in sold):
        return None
    paused = memory.paused(world.now)
    return SpotLoss(
        since=memory.spot_lost_at,
        next_try=None if paused else scorer.next_try(Market.SPOT, quiet_for=hold),
        ready=ready,
        coming=fleet.counted_by_market[Market.SPOT] - ready,
    )


def _short(placement: Placement, hold: float, scorer: Scorer) -> bool:
    """True where spot was reclaimed or refused lately, or may not be tried now."""
    quiet = scorer.quiet(placement, hold)
    return bool(scorer.blocked(placement)) or not quiet or scorer.risk(placement) > _REMEMBERED
