"""Which offering the next node goes to.

What it decides: the cheapest offering of a market after handicaps, or none. Cheapest is the price for each
unit that is needed of it: where 2 units are missing, a node of 8 is worth the price of its 2.
Why: the cheapest zone alone is a trap: one reclaim there takes all nodes at once. So a zone looks dearer
with every unit already in it, with every recent reclaim and refusal, and a refused placement is left alone
until its refusal has decayed to half. A node of many units puts them into one zone together, each beside
those before it, and looks as dear as if they came one by one. A region looks dearer by the share of the
wanted units that it holds: equal prices are spread over regions, and less is lost with one. A region that
cannot be seen, or answers no launch, gets nothing while another may, and one whose newest look failed looks
twice as dear. An offering of unknown price looks as dear as the dearest of its market, unit for unit.
Never: a placement that refused within its half-life, or within ten half-lives of a quota or of boots that
failed one after another, is tried; nor one whose market is paused (policies.bars), and after the pause one
launch at a time; nor, in a pool that heeds them, one whose node is under a rebalance recommendation; nor,
under a spend cap, one whose price is not known. Nothing is random: equal scores go by
name.

Example:
    >>> from policies.evidence import Evidence
    >>> from policies.memory import Memory
    >>> from policies.model import Market, Observed, Offering, Placement, Pool, World
    >>> from policies.regions import Sight
    >>> def offering(zone, price):
    ...     return Offering(placement=Placement("local", "r", zone, "gpu", Market.SPOT), price=price)
    >>> pool, world = Pool(name="p", replicas=4), World(now=0.0, regions={"r": Observed(value=(), at=0.0)})
    >>> scorer = Scorer(pool, Memory(), now=0.0, offerings=[offering("a", 1.0), offering("b", 1.2)], held={},
    ...                 sight=Sight(Evidence(pool, world, Memory()), world))
    >>> [scorer.take(Market.SPOT).placement.zone for _ in range(3)]
    ['a', 'b', 'a']
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Set

from policies.bars import Key, key_of, on_sale, pauses, words
from policies.interruption import recommended
from policies.model import Market, Offering, Placement, Pool
from policies.records import Memory, decayed
from policies.regions import Sight

_BLOCKING_WEIGHT = 0.5
"""A refusal weighs 1 when it happens; at or below this the placement may be tried again."""

_JUST_FAILED = 1000.0
"""How many times as dear a placement looks that was not allowed in a market that is tried again."""

_DOUBT = 1.01
"""How many times as dear as the dearest known one an offering of unknown price looks."""

_LONG_HALF_LIVES = 10.0
"""Half-lives until a placement over quota, or one whose machines never boot, is tried again."""


class Scorer:
    """Hands out placements one after another, counting each one taken.

    `held`: units already at each placement. `offerings`: what is sold now. `sight`: which regions are seen.
    `trying`: markets that were paused and where a launch is under way.
    """

    def __init__(
        self,
        pool: Pool,
        memory: Memory,
        *,
        now: float,
        offerings: Iterable[Offering],
        held: Mapping[Placement, int],
        sight: Sight,
        trying: Set[Key] = frozenset(),
    ) -> None:
        self._pool, self._memory, self._now, self._sight = pool, memory, now, sight
        self._zone: dict[tuple[Market, str], int] = {}
        self._region: dict[str, int] = {}
        for placement, count in held.items():
            self._count(placement, count)
        capped = pool.limits.spend_per_hour is not None
        available = [o for o in offerings if o.available]
        self._sold = [o for o in available if not (capped and o.price is None)]
        self._unpriced = [o for o in available if o.price is None]
        self.pauses = pauses(pool, memory, on_sale(available))
        self._trying = set(trying)
        self._dearest = self._dearest_units() if self._unpriced else {}
        self._advised = {r.placement for r in memory.nodes.values() if recommended(pool, r, now)}
        self._queues: dict[tuple[Market, float], dict[tuple[str, int], _Queue]] = {}
        self._risk: dict[Placement, float] = {}
        self._bad_at: dict[Placement, float] = {}
        rules = pool.placement
        for newest, half_life in (
            (memory.reclaims, rules.reclaim_half_life),
            (memory.refusals, rules.refusal_half_life),
        ):
            for placement, news in newest.items():
                self._risk[placement] = self.risk(placement) + decayed(news, now, half_life)
                self._bad_at[placement] = max(self._bad_at.get(placement, -math.inf), news.at)

    def blocked(self, placement: Placement) -> str:
        """Why no launch may be tried at a placement now, in words; empty when one may."""
        return self.paused(placement) or self.refused(placement)

    def refused(self, placement: Placement) -> str:
        """Why a placement is left alone, whatever holds of its market; empty when it is not."""
        return next((why for until, why in self._bars(placement) if until > self._now), "")

    def paused(self, placement: Placement) -> str:
        """Why nothing is launched in the market of a placement, in words; empty when one launch may be."""
        key = key_of(placement)
        over_at = self.pauses.get(key)
        if over_at is None:
            return ""
        if over_at > self._now:
            return f"{words(key)} is paused for {over_at - self._now:.0f} s more"
        return f"{words(key)} was paused, and one launch tries it" if key in self._trying else ""

    def tries(self, placement: Placement) -> None:
        """A launch is planned there: in a market that was paused it is the only one."""
        if key_of(placement) in self.pauses:
            self._trying.add(key_of(placement))

    def opens_at(self, placement: Placement, *, quiet_for: float = 0.0) -> float:
        """When a placement may be tried, as far as is known now: not before now, infinite where not known."""
        quiet = self._bad_at.get(placement, -math.inf) + quiet_for
        paused = self.pauses.get(key_of(placement), self._now)
        return max([self._now, paused, *(until for until, _ in self._bars(placement)), quiet])

    def next_try(self, market: Market, *, quiet_for: float = 0.0) -> float | None:
        """When the first offering of a market may be tried; None when none is for sale or it is not known."""
        sold = (o.placement for o in self._sold if o.placement.market is market)
        first = min((self.opens_at(p, quiet_for=quiet_for) for p in sold), default=math.inf)
        return first if math.isfinite(first) else None

    def _bars(self, placement: Placement) -> Iterator[tuple[float, str]]:
        """What keeps a placement from being tried, each until when, also what is over."""
        memory, half_life = self._memory, self._pool.placement.refusal_half_life
        if why := self._sight.avoided(placement.region):
            yield math.inf, f"{placement.region} is passed over: {why}"
        refusal = memory.refusals.get(placement)
        if refusal is not None:
            halvings = math.log2(max(refusal.weight, _BLOCKING_WEIGHT) / _BLOCKING_WEIGHT)
            ago = self._now - refusal.at
            yield refusal.at + half_life * halvings, f"{placement} refused {ago:.0f} s ago"
        quota = memory.quota_at.get(placement)
        if quota is not None:
            yield quota + _LONG_HALF_LIVES * half_life, f"{placement} is over quota"
        if placement in self._advised:
            yield math.inf, f"{placement}: the cloud recommends to leave it"
        boots = memory.boot_failures.get(placement)
        if boots is not None and boots.weight >= self._pool.health.boot_failures:
            failed = f"{placement}: {boots.weight:.0f} nodes in a row never became ready"
            yield boots.at + _LONG_HALF_LIVES * half_life, failed

    def score(self, offering: Offering) -> float:
        """The price of the whole node with handicaps, USD/h; lower is better among nodes of as many units in
        one region."""
        rules, placement = self._pool.placement, offering.placement
        held = self._zone.get((placement.market, placement.zone), 0)
        # Its own units as well, each beside those before it: the mean of held, held + 1 and so on.
        crowd = held + (self._pool.units_of(placement) - 1) / 2
        price = offering.price
        if price is None:
            price = _DOUBT * self._dearest.get(placement.market, 1.0) * self._pool.units_of(placement)
        bar = self._memory.bars.get(key_of(placement))
        if bar is not None and placement in bar.places:
            price *= _JUST_FAILED
        return price * (1.0 + rules.spread * crowd) * (1.0 + self.risk(placement))

    def risk(self, placement: Placement) -> float:
        """What is left of the weight of a reclaim and a refusal there."""
        return self._risk.get(placement, 0.0)

    def _dearest_units(self) -> dict[Market, float]:
        """What a unit costs at the dearest known offering of each market."""
        found: dict[Market, float] = {}
        for offering in self._sold:
            if offering.price is not None:
                market = offering.placement.market
                each = offering.price / self._pool.units_of(offering.placement)
                found[market] = max(found.get(market, 0.0), each)
        return found

    def _handicap(self, region: str) -> float:
        """By how much a region looks dearer than its offerings do."""
        share = self._region.get(region, 0) / max(1, self._pool.replicas)
        return (1.0 + self._pool.placement.spread * share) * (2.0 if self._sight.doubtful(region) else 1.0)

    def _count(self, placement: Placement, units: int) -> None:
        """Units more at a placement."""
        key, region = (placement.market, placement.zone), placement.region
        self._zone[key] = self._zone.get(key, 0) + units
        self._region[region] = self._region.get(region, 0) + units

    def quiet(self, placement: Placement, hold: float) -> bool:
        """True when a placement had neither a reclaim nor a refusal for `hold` seconds."""
        return self._now - self._bad_at.get(placement, -math.inf) >= hold

    def take(
        self,
        market: Market,
        *,
        units: int = 1,
        quiet_for: float = 0.0,
        affordable: Callable[[float | None], bool] = lambda _: True,
    ) -> Offering | None:
        """The best offering of a market where so many units are missing, counted as taken; None when none.

        Of nodes of several sizes those whose price is `affordable` come first. A launch costs the logarithm
        of the number of offerings for each region and size.
        """
        found: list[tuple[bool, float, Placement, Offering]] = []
        for (region, size), queue in self._queue(market, quiet_for).items():
            if (region, market) in self._trying:
                continue
            score, placement, number = self._head(queue)
            offering = self._sold[number]
            each = score * self._handicap(region) / min(size, units)
            found.append((not affordable(offering.price), each, placement, offering))
        if not found:
            return None
        _, _, placement, offering = min(found, key=lambda f: f[:3])
        self._count(placement, self._pool.units_of(placement))
        return offering

    def _head(self, queue: _Queue) -> tuple[float, Placement, int]:
        """The best of a queue. Scores only grow as offerings are taken: it is scored until it stays."""
        while True:
            stored, placement, number = queue[0]
            score = self.score(self._sold[number])
            if score <= stored:
                return queue[0]
            heapq.heapreplace(queue, (score, placement, number))

    def why_none(self, market: Market) -> str:
        """Why `take` finds nothing, in words."""
        sold = [o for o in self._sold if o.placement.market is market]
        if not sold:
            if any(o.placement.market is market for o in self._unpriced):
                return f"no {market} price is known, and the spend cap needs one"
            return f"no {market} offering is for sale"
        reasons = sorted({self.blocked(o.placement) for o in sold} - {""})
        if not reasons:
            return f"no {market} offering has been quiet for long enough"
        more = f" and {len(reasons) - 1} more" if len(reasons) > 1 else ""
        return f"no {market} offering may be tried now: {reasons[0]}{more}"

    def _queue(self, market: Market, quiet_for: float) -> Mapping[tuple[str, int], _Queue]:
        """What may be taken, best first, by region and by the units of its nodes."""
        queues = self._queues.get((market, quiet_for))
        if queues is None:
            queues = self._queues[market, quiet_for] = {}
            for number, offering in enumerate(self._sold):
                place = offering.placement
                if (
                    place.market is market
                    and not self.blocked(place)
                    and (quiet_for <= 0 or self.quiet(place, quiet_for))
                ):
                    entry = self.score(offering), place, number
                    queues.setdefault((place.region, self._pool.units_of(place)), []).append(entry)
            for queue in queues.values():
                heapq.heapify(queue)
        return queues


_Queue = list[tuple[float, Placement, int]]
"""Score, placement, place in the list of what is sold: a heap."""
