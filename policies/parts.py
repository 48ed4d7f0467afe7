"""Which parts that the daemon depends on are lost, and which are back, as events.

What it decides: when a list, a balancer, a source of notices or an engine has failed for so long that people
should read of it, and when it counts as back.
Why: at three in the morning the journal must say what was away, since when, and for how long.
Never: one look that failed is a loss, nor the time in which this daemon itself hung. A part that comes and
goes does not fill the journal: one that is lost again and again, each time within an hour of its return,
counts as back only some time after the loss, twice as long with each. A node on its way out is no news.

Example: the gateway is killed. The first look at it that fails is repeated; after 2.5 s it is `PartLost`, and
with the first look that succeeds `PartBack`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from policies.events import PartBack, PartLost
from policies.fleet import Fleet, Node
from policies.model import Observed, PartKind, Phase, World
from policies.records import Memory, PartRecord, part_key
from policies.value import value

LOST_AFTER = {
    PartKind.BALANCER: 2.5,  # clients get nothing: the second look has failed too
    PartKind.CLOUD: 15.0,
    PartKind.PRICES: 15.0,
    PartKind.NOTICES: 60.0,  # a source may be asked every 20 s only
}
"""Seconds of failed looks after which a part is lost; an engine is after `health.unhealthy_after`."""

FREE = 3
"""Losses in a row, each within the hour after the return before it, after which a part comes and goes."""

HOLD = 30.0
"""Seconds from a loss within which a part that comes and goes does not count as back; they double with each
further loss."""

HOLD_MOST = 3600.0
"""The most that they grow to."""

INSTANCES = "instances"
"""The name of the list of machines, where one has all regions; else it is the region's."""


@value
class Part:
    """One part now.

    `read_at`: when it was last read. `failing_since`: when the first look failed, None while all is well; of
    a source of notices, since when it is not known to have been read. `error`: how the newest look failed.
    """

    kind: PartKind
    name: str
    read_at: float | None
    failing_since: float | None
    error: str = ""

    def age(self, now: float) -> float:
        """Seconds since it was last read; infinite before the first time."""
        return math.inf if self.read_at is None else max(0.0, now - self.read_at)

    def lost(self, now: float) -> bool:
        """It has failed for so long that it counts as lost."""
        return self.failing_since is not None and now - self.failing_since >= LOST_AFTER[self.kind]


def parts(world: World) -> tuple[Part, ...]:
    """Every part but the engines, with its state. What failed before the daemon woke up is not counted."""
    return (
        *(_observed(PartKind.CLOUD, name or INSTANCES, view, world) for name, view in world.regions.items()),
        *(_observed(PartKind.PRICES, part, view, world) for part, view in world.offerings.items()),
        *(_observed(PartKind.BALANCER, name, view, world) for name, view in world.balancers.items()),
        *(_source(name, at, world) for name, at in world.heard.items()),
    )


def news(world: World, fleet: Fleet, memory: Memory) -> tuple[PartLost | PartBack, ...]:
    """What memory does not know yet of parts and engines. Linear in the number of nodes."""
    found: list[PartLost | PartBack] = []
    for part in parts(world):
        record, lost = memory.parts.get(part_key(part.kind, part.name)), part.lost(world.now)
        if record is None or record.back_at is not None:
            if lost and part.failing_since is not None:
                found.append(_lost(world.now, part.kind, part.name, part.failing_since, part.error))
        elif part.failing_since is None and part.read_at is not None and part.read_at > record.since:
            found += _back(world.now, record)
    found += _engines(world, fleet, memory)
    return tuple(found)


def hold(times: int) -> float:
    """Seconds from a loss before which the return is no news: none for the first losses in a while."""
    return 0.0 if times <= FREE else min(HOLD_MOST, HOLD * 2.0 ** min(times - FREE - 1, 20))


def _observed(kind: PartKind, name: str, view: Observed[Any], world: World) -> Part:
    since = view.failing_since if view.failing_since is None else max(view.failing_since, world.awake_since)
    return Part(kind=kind, name=name, read_at=view.at, failing_since=since, error=view.error)


def _source(name: str, at: float | None, world: World) -> Part:
    heard = at is not None and world.now - at < LOST_AFTER[PartKind.NOTICES]
    since = None if heard else max(at or 0.0, world.awake_since)
    return Part(kind=PartKind.NOTICES, name=name, read_at=at, failing_since=since)


def _engines(world: World, fleet: Fleet, memory: Memory) -> Iterator[PartLost | PartBack]:
    """One line for each node, also when many fall silent at once: each is drained and replaced by itself."""
    for node in fleet.nodes:
        record = memory.parts.get(part_key(PartKind.ENGINE, node.id))
        if record is None or record.back_at is not None:
            if _silent(node):
                since = world.now if node.failing_since is None else node.failing_since
                yield _lost(world.now, PartKind.ENGINE, node.id, since, node.failure)
        elif node.probed and node.healthy:
            yield from _back(world.now, record)


def _silent(node: Node) -> bool:
    return node.phase is Phase.READY and node.probed and not node.healthy and not node.leaving


def _lost(now: float, kind: PartKind, name: str, since: float, error: str) -> PartLost:
    return PartLost(at=now, kind=kind, part=name, since=since, error=error)


def _back(now: float, record: PartRecord) -> Iterator[PartBack]:
    if now - record.lost_at >= hold(record.times):
        yield PartBack(at=now, kind=record.kind, part=record.part, after=max(0.0, now - record.since))
