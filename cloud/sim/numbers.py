"""What a configuration asks of a pool, counted from its numbers alone.

The daemon counts the same by properties of `policies.model.Pool`. Those are not asked here: a mistake in them
would be made twice, and seem right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from policies.model import Pool


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """Units: `floor` on demand at least and `spot` beside them, `hot` and `stopped` standbys.

    `serving`: below so many a noticed node stays in the target set as long as it can. `most`: the next node
    may be launched while fewer live. `disturbed`: as many may drain by choice at once, or one node.
    """

    wanted: int
    floor: int
    spot: int
    hot: int
    stopped: int
    serving: int
    most: int
    disturbed: int

    @staticmethod
    def of(pool: Pool) -> Numbers:
        """By the configured numbers of a pool. Shares are taken as written: 0.3 is three tenths."""
        wanted, limits = pool.replicas, pool.limits
        floor = math.ceil(wanted * (1 - Fraction(str(pool.spot_share))))
        hot, stopped = (pool.standby.hot, pool.standby.stopped) if wanted else (0, 0)
        return Numbers(
            wanted=wanted,
            floor=floor,
            spot=wanted - floor,
            hot=hot,
            stopped=stopped,
            serving=math.ceil(wanted * Fraction(str(pool.drain.min_serving))),
            most=wanted + hot + stopped + limits.surge if wanted else 0,
            disturbed=max(1, math.floor(wanted * Fraction(str(limits.disruption)))) if wanted else 10**9,
        )
