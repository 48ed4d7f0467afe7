"""Which offering the next node goes to.

What it decides: the cheapest offering of a market after handicaps, or none.
Why: the cheapest zone alone is a trap: one reclaim there takes all nodes at once. So a zone looks dearer
with every node already in it, with every recent reclaim and refusal, and a refused placement is left alone
until its refusal has decayed to half.
Never: a placement that refused within its half-life, or within ten half-lives of a quota or of boots that
failed one after another, is tried; nor, in a pool that heeds them, one whose node is under a rebalance
recommendation. Nothing is random: equal scores go by name.

Example:
    >>> from policies.memory import Memory
    >>> from policies.model import Market, Offering, Placement, Pool
    >>> def offering(zone, price):
    ...     return Offering(placement=Placement("local", "r", zone, "gpu", Market.SPOT), price=price)
    >>> scorer = Scorer(Pool(name="p", replicas=4), Memory(), now=0.0,
    ...                 offerings=[offering("a", 1.0), offering("b", 1.2)], held={})
    >>> [scorer.take(Market.SPOT).placement.zone for _ in range(3)]
    ['a', 'b', 'a']
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping

from policies.interruption import recommended
from policies.model import Market, Offering, Placement, Pool
from policies.records import Memory, decayed

_BLOCKING_WEIGHT = 0.5
"""A refusal weighs 1 when it happens; at or below this the placement may be tried again."""

_LONG_HALF_LIVES = 10.0
"""Quotas and machines that never boot do not mend by themselves: half-lives until they are tried again."""


class Scorer:
    """Hands out placements one after another, counting each one taken.

    `held`: nodes already at each placement. `offerings`: what is sold now.
    """

    def __init__(
        self,
        pool: Pool,
        memory: Memory,
        *,
        now: float,
        offerings: Iterable[Offering],
        held: Mapping[Placement, int],
    ) -> None:
        self._pool, self._memory, self._now = pool, memory, now
        self._zone: dict[tuple[Market, str], int] = {}
        for placement, count in held.items():
            key = placement.market, placement.zone
            self._zone[key] = self._zone.get(key, 0) + count
        self._sold = [o for o in offerings if o.available]
        self._advised = {r.placement for r in memory.nodes.values() if recommended(pool, r, now)}
        self._queues: dict[tuple[Market, float], list[tuple[float, Placement, int]]] = {}

    def blocked(self, placement: Placement) -> str:
        """Why a placement may not be tried now, in words; empty when it may."""
        rules, memory, now = self._pool.placement, self._memory, self._now
        refusal = memory.refusals.get(placement)
        if refusal and decayed(refusal, now, rules.refusal_half_life) > _BLOCKING_WEIGHT:
            return f"{placement} refused {now - refusal.at:.0f} s ago"
        quota = memory.quota_at.get(placement)
        if quota is not None and now - quota < _LONG_HALF_LIVES * rules.refusal_half_life:
            return f"{placement} is over quota"
        if placement in self._advised:
            return f"{placement}: the cloud recommends to leave it"
        boots = memory.boot_failures.get(placement)
        if (
            boots is not None
            and boots.weight >= self._pool.health.boot_failures
            and now - boots.at < _LONG_HALF_LIVES * rules.refusal_half_life
        ):
            return f"{placement}: {boots.weight:.0f} nodes in a row never became ready"
        return ""

    def score(self, offering: Offering) -> float:
        """The price with handicaps, USD/h; lower is better."""
        rules, placement = self._pool.placement, offering.placement
        crowd = self._zone.get((placement.market, placement.zone), 0)
        reclaim = self._memory.reclaims.get(placement)
        refusal = self._memory.refusals.get(placement)
        risk = decayed(reclaim, self._now, rules.reclaim_half_life) if reclaim else 0.0
        risk += decayed(refusal, self._now, rules.refusal_half_life) if refusal else 0.0
        return offering.price * (1.0 + rules.spread * crowd) * (1.0 + risk)

    def quiet(self, placement: Placement, hold: float) -> bool:
        """True when nothing bad was heard of a placement for `hold` seconds."""
        for news in (self._memory.reclaims.get(placement), self._memory.refusals.get(placement)):
            if news is not None and self._now - news.at < hold:
                return False
        return True

    def take(self, market: Market, *, quiet_for: float = 0.0) -> Offering | None:
        """The best offering of a market, counted as taken; None when there is none.

        Scores only grow while offerings are taken, so the head of the queue is scored anew until it stays
        the head: a launch costs the logarithm of the number of offerings.
        """
        queue = self._queue(market, quiet_for)
        while queue:
            stored, placement, number = queue[0]
            offering = self._sold[number]
            score = self.score(offering)
            if score > stored:
                heapq.heapreplace(queue, (score, placement, number))
                continue
            key = market, placement.zone
            self._zone[key] = self._zone.get(key, 0) + 1
            return offering
        return None

    def why_none(self, market: Market) -> str:
        """Why `take` finds nothing, in words."""
        sold = [o for o in self._sold if o.placement.market is market]
        if not sold:
            return f"no {market} offering is for sale"
        reasons = sorted({self.blocked(o.placement) for o in sold} - {""})
        if not reasons:
            return f"no {market} offering has been quiet for long enough"
        more = f" and {len(reasons) - 1} more" if len(reasons) > 1 else ""
        return f"no {market} offering may be tried now: {reasons[0]}{more}"

    def _queue(self, market: Market, quiet_for: float) -> list[tuple[float, Placement, int]]:
        queue = self._queues.get((market, quiet_for))
        if queue is None:
            queue = [
                (self.score(o), o.placement, number)
                for number, o in enumerate(self._sold)
                if o.placement.market is market
                and not self.blocked(o.placement)
                and (quiet_for <= 0 or self.quiet(o.placement, quiet_for))
            ]
            heapq.heapify(queue)
            self._queues[market, quiet_for] = queue
        return queue
