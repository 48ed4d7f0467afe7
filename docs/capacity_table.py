"""What the loss of a zone leaves of a pool, by the policies' own placement: a part of docs/generate.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

from policies.evidence import Evidence
from policies.memory import Memory
from policies.model import Market, Observed, Offering, Placement, Pool, StandbyRules, World
from policies.placement import Scorer
from policies.regions import Sight

REPLICAS: Final = (4, 10, 20, 50)
ZONES: Final = (2, 3, 4, 6)


def placed(pool: Pool, zones: int) -> Counter[tuple[Market, str]]:
    """Nodes by market and zone of a whole pool that was launched into zones of one price."""
    names = [f"zone-{number}" for number in range(zones)]
    sold = [
        Offering(placement=Placement("aws", "region", zone, "gpu", market), price=price)
        for market, price in ((Market.SPOT, 1.0), (Market.ON_DEMAND, 3.0))
        for zone in names
    ]
    world = World(now=0.0, regions={"region": Observed(value=(), at=0.0)})
    sight = Sight(Evidence(pool, world, Memory()), world)
    scorer = Scorer(pool, Memory(), now=0.0, offerings=sold, held={}, sight=sight)
    wanted = {
        Market.SPOT: pool.spot_wanted,
        Market.ON_DEMAND: pool.on_demand_floor + pool.standby.hot,
    }
    found: Counter[tuple[Market, str]] = Counter()
    for market, count in wanted.items():
        for _ in range(count):
            offering = scorer.take(market)
            if offering is None:
                raise RuntimeError(f"no {market} offering")
            found[market, offering.placement.zone] += 1
    return found


def left_without_spot_of_a_zone(pool: Pool, zones: int) -> int:
    """Ready nodes at worst when the cloud takes all spot nodes of one zone."""
    nodes = placed(pool, zones)
    return nodes.total() - max(count for (market, _), count in nodes.items() if market is Market.SPOT)


def left_without_a_zone(pool: Pool, zones: int) -> int:
    """Ready nodes at worst when one zone fails with all that is in it."""
    nodes = placed(pool, zones)
    by_zone: Counter[str] = Counter()
    for (_, zone), count in nodes.items():
        by_zone[zone] += count
    return nodes.total() - max(by_zone.values())


def pool_of(replicas: int, hot: int) -> Pool:
    """A 70/30 pool with so many hot standbys."""
    return Pool(name="pool", replicas=replicas, standby=StandbyRules(hot=hot))


def enough(left: Callable[[Pool, int], int], replicas: int, zones: int) -> int:
    """The fewest hot standbys with which as many nodes are left as are wanted."""
    return next(hot for hot in range(2 * replicas) if left(pool_of(replicas, hot), zones) >= replicas)


def table(left: Callable[[Pool, int], int]) -> str:
    """Ready nodes that are left, of those wanted; a star where they are fewer than `drain.min_serving`."""
    rows = [
        "| nodes wanted | spot + on-demand | hot standbys | "
        + " | ".join(f"{z} zones" for z in ZONES)
        + " |",
        "|---|---|---|" + "---|" * len(ZONES),
    ]
    for replicas in REPLICAS:
        for hot in (0, 1):
            pool = pool_of(replicas, hot)
            cells = []
            for zones in ZONES:
                ready = left(pool, zones)
                star = "" if ready >= pool.min_serving else " *"
                cells.append(f"{ready} ({100 * ready / replicas:.0f} %){star}")
            rows.append(
                f"| {replicas} | {pool.spot_wanted} + {pool.on_demand_floor} | {hot} | {' | '.join(cells)} |"
            )
        needed = " | ".join(f"**{enough(left, replicas, zones)}**" for zones in ZONES)
        rows.append(f"| {replicas} | | to keep all {replicas} | {needed} |")
    return "\n".join(rows)


def page() -> str:
    """The whole of docs/explanation/capacity.md."""
    return _PAGE.format(
        spot=table(left_without_spot_of_a_zone),
        zone=table(left_without_a_zone),
    )


_PAGE: Final = """# What the loss of a zone costs

<!-- Made by docs/generate.py with the policies' own placement. Do not edit. -->

A GPU node takes minutes from launch to ready and a notice lasts two at most. So what carries the load after a
reclaim is what was ready before it. This page says how much that is; the replacements come afterwards, one
boot later, on demand if spot is not to be had. `orchestrator doctor --only pool` says it for your own file.

The pools are 70 % spot, zones cost the same, every node serves one unit, and nodes lie as the daemon places
them: each market is spread evenly over the zones. A hot standby is one more ready on-demand node. Cells say
how many nodes are ready at worst, and how much of the wanted capacity that is. With a star it is less than
`drain.min_serving` (75 %): then noticed nodes serve on until the last instant that leaves their requests the
budget ([late drains](drain.md#early-and-late)), so with notice the load falls later than the cells say.

## The spot nodes of one zone are taken

The common case: the cloud wants its capacity back in one zone. With notice no request is lost; what is left
must carry the load.

{spot}

## A whole zone fails

Rare: on-demand nodes and standbys of the zone are gone too, and there is no notice. Streams that were on them
are cut.

{zone}

## All spot is taken

The on-demand floor and the hot standbys are left, 30 % of the wanted nodes rounded up, whatever the number of
zones. It happens when an instance type is short in the whole region; several instance types, or several
regions, make it rarer.

## What to buy

- **More zones** cost nothing: from two zones to four the loss halves.
- **Hot standbys** cost one on-demand node each, all the time. One helps a pool of four much and a pool of
  fifty little.
- **Stopped standbys** cost about their disks. They are ready within `starts.standby` (75 s if not said
  otherwise): inside a notice of 120 s, so with notice they count like hot ones; without notice the gap is
  that long.
- **`mix = "adaptive"`** buys what holds a stated availability, from what it has seen of each zone:
  [how](adaptive.md).
"""
