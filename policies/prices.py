"""What is sold and what it costs, from what was read last and what is remembered.

What it decides: the price of every offering: the one that was read, where it can be believed, else the last
good one, else none. And which prices are worth a note in the journal.
Why: a price says which offering is best and what the spend cap has left. It says nothing of whether there is
capacity, so prices that cannot be read hold back no launch: the last good ones stand in, however old they
are, through restarts and takeovers. They change by percents within a month, and spot never costs more than
on-demand; a pool that cannot replace its nodes costs more than that. See docs/decisions/0015.
Never: an unknown price is zero. Zero, less, infinity and NaN are no prices. A price that is TEN_TIMES the
last good one, or a tenth of it, is believed only when that is BELIEVED_AFTER old: a list that lies must
neither empty the spend cap nor fill it. Nothing is sold before each part is remembered or was looked at once:
of half of the offerings one half would be bought in place of the other. Where an earlier daemon knew other
prices and not these, FIRST_LOOK is enough: most likely it is as it was.

Example:
    >>> from policies.model import Market, Observed
    >>> spot = Placement("aws", "r", "a", "gpu", Market.SPOT)
    >>> before = Memory(prices={spot: LastPrice(at=0.0, price=1.5, part="r spot")})
    >>> failed = Observed(value=(Offering(placement=spot, price=None),), error="denied")
    >>> world = World(now=60.0, regions={}, offerings={"r spot": failed})
    >>> PriceView(world, before).of(spot)
    1.5
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from policies.events import PricesRead
from policies.evidence.sources import overtaken, watched_since
from policies.memory_builder import MemoryBuilder
from policies.model import Observed, Offering, Placement, World
from policies.records import LastPrice, Memory
from policies.value import lazy, replace

NOTICEABLE = 0.05
"""Share of a price by which another one is worth a note."""

NOTED_EVERY = 3 * 3600.0
"""Seconds after which a price that stays the same is noted again: so exact is its age after a restart."""

TEN_TIMES = 10.0
"""How many times dearer or cheaper than the last good price one is that is not believed."""

BELIEVED_AFTER = 24 * 3600.0
"""Seconds for which such a price must have been said before it is believed all the same."""

FIRST_LOOK = 3.0
"""Seconds that a part which was never known gets after a restart to answer, before all else is sold."""


class PriceView:
    """What is sold in one world, with the prices to go by. Worked out when the first one asks."""

    def __init__(self, world: World, memory: Memory) -> None:
        self._world, self._memory = world, memory

    @lazy
    def on_sale(self) -> tuple[Offering, ...]:
        """Every offering; its price is None only where none was ever known."""
        parts = self._world.offerings
        if any(self._waits(part) for part in parts):
            return ()
        return tuple(offering for part in parts for offering in self._part(part))

    def of(self, placement: Placement) -> float | None:
        """What a node there costs, USD/h; None as long as it is not known."""
        if placement in self._priced:
            return self._priced[placement]
        last = self._memory.prices.get(placement)
        return None if last is None else last.price

    @lazy
    def _priced(self) -> Mapping[Placement, float]:
        return {o.placement: o.price for o in self.on_sale if o.price is not None}

    def _waits(self, part: str) -> bool:
        """Nothing is known of a part yet, and its first look is under way."""
        view, known = self._world.offerings[part], self._memory.prices
        if view.at is not None or view.error:
            return False
        if any(o.placement in known for o in may_be_bought(self._world, self._memory, part)):
            return False
        started = watched_since(self._world, -math.inf)
        before = any(last.at < started for last in known.values())
        return not before or self._world.now - started < FIRST_LOOK

    def _part(self, part: str) -> Iterator[Offering]:
        for offering in may_be_bought(self._world, self._memory, part):
            last = self._memory.prices.get(offering.placement)
            price = believed(offering.price, last, self._world.now)
            if price is None and last is not None:
                price = last.price
            yield offering if price == offering.price else replace(offering, price=price)


def may_be_bought(world: World, memory: Memory, part: str) -> Iterable[Offering]:
    """The offerings of a part as they were read; what was sold out may be had again once that cannot be read.

    Before the first reading those whose prices are remembered: what else may be bought was not sold when it
    was read last. Where none is remembered, whatever may be.
    """
    view, known = world.offerings[part], memory.prices
    if view.at is not None:
        again = [o if o.available else replace(o, available=True) for o in view.value]
        return again if overtaken(view) else view.value
    if view.value:
        return [o for o in view.value if o.placement in known] or view.value
    return [Offering(placement=p, price=None) for p, last in known.items() if last.part == part]


def believed(price: float | None, last: LastPrice | None, now: float) -> float | None:
    """The price that was read, or None where it is none or cannot be right."""
    if price is None or not math.isfinite(price) or price <= 0.0:
        return None
    if last is None or now - last.at >= BELIEVED_AFTER:
        return price
    return price if last.price / TEN_TIMES < price < last.price * TEN_TIMES else None


def changes(world: World, memory: Memory) -> Iterator[PricesRead]:
    """What is worth a note of the prices that were read. Linear in the number of offerings."""
    held = Counter(last.part for last in memory.prices.values())
    for part, view in sorted(world.offerings.items()):
        if view.at is None:
            continue
        noted, missing = [], held[part]
        for offering in view.value:
            last = memory.prices.get(offering.placement)
            missing -= last is not None and last.part == part
            price = believed(offering.price, last, world.now)
            if price is not None and (last is None or _is_news(price, last, view.at)):
                noted.append((offering.placement, price))
        gone = _gone(part, view, memory) if missing and not view.error else ()
        if noted or gone:
            yield PricesRead(at=world.now, part=part, prices=tuple(noted), gone=gone)


def note(builder: MemoryBuilder, event: PricesRead) -> None:
    """Take prices into memory."""
    known = builder.mapping("prices")
    for placement, price in event.prices:
        known[placement] = LastPrice(at=event.at, price=price, part=event.part)
    for placement in event.gone:
        known.pop(placement, None)


def _is_news(price: float, last: LastPrice, read_at: float) -> bool:
    return abs(price - last.price) > NOTICEABLE * last.price or abs(read_at - last.at) >= NOTED_EVERY


def _gone(part: str, view: Observed[tuple[Offering, ...]], memory: Memory) -> tuple[Placement, ...]:
    sold = {o.placement for o in view.value}
    return tuple(sorted(p for p, last in memory.prices.items() if last.part == part and p not in sold))


@dataclass(frozen=True, slots=True, kw_only=True)
class Failing:
    """A part of the prices of which not all could be read.

    `error`: what failed, in words. `read_at`: when the oldest of the prices to go by was read, None where
    there is none. `unknown`: placements whose price was never known.
    """

    part: str
    error: str
    read_at: float | None
    unknown: tuple[Placement, ...]


def failing(world: World, memory: Memory) -> tuple[Failing, ...]:
    """The parts whose prices are not what was read last."""
    found = []
    for part, view in sorted(world.offerings.items()):
        read_at: list[float] = []
        unknown: list[Placement] = []
        error = view.error
        for offering in may_be_bought(world, memory, part):
            last = memory.prices.get(offering.placement)
            if believed(offering.price, last, world.now) is not None:
                read_at += [] if view.at is None else [view.at]
            elif last is not None:
                read_at.append(last.at)
                if offering.price is not None:
                    error = error or _doubt(offering, last)
            else:
                unknown.append(offering.placement)
        if error:
            oldest = min(read_at, default=None)
            found.append(Failing(part=part, error=error, read_at=oldest, unknown=tuple(unknown)))
    return tuple(found)


def _doubt(offering: Offering, last: LastPrice) -> str:
    return (
        f"{offering.placement} is said to cost {offering.price} USD/h after {last.price:.2f}, "
        "which is not believed before it was said for a day"
    )


def usd_per_hour(price: float | None) -> str:
    """A price in words."""
    return "price not known" if price is None else f"{price:.2f} USD/h"
