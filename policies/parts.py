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

from collections.abc import Iterator

from policies.events import PartBack, PartLost
from policies.evidence import Part, sources
from policies.fleet import Fleet
from policies.model import PartKind, Phase, World
from policies.node import Node
from policies.records import Memory, PartRecord, part_key

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


def parts(world: World) -> tuple[Part, ...]:
    """Every part but the engines, with its state. What failed before the daemon woke up is not counted."""
    return sources.parts(world, LOST_AFTER[PartKind.NOTICES])


def is_lost(part: Part, now: float) -> bool:
    """It has failed for so long that it counts as lost."""
    return part.away_since is not None and part.away_for(now) >= LOST_AFTER[part.kind]


def news(world: World, fleet: Fleet, memory: Memory) -> tuple[PartLost | PartBack, ...]:
    """What memory does not know yet of parts and engines. Linear in the number of nodes."""
    found: list[PartLost | PartBack] = []
    for part in parts(world):
        record = memory.parts.get(part_key(part.kind, part.name))
        if record is None or record.back_at is not None:
            if part.away_since is not None and is_lost(part, world.now):
                found.append(_lost(world.now, part.kind, part.name, part.away_since, part.error))
        elif part.away_since is None and part.read_at is not None and part.read_at > record.since:
            found += _back(world.now, record)
    found += _engines(world, fleet, memory)
    return tuple(found)


def hold(times: int) -> float:
    """Seconds from a loss before which the return is no news: none for the first losses in a while."""
    return 0.0 if times <= FREE else min(HOLD_MOST, HOLD * 2.0 ** min(times - FREE - 1, 20))


def _engines(world: World, fleet: Fleet, memory: Memory) -> Iterator[PartLost | PartBack]:
    """One line for each node, also when many fall silent at once: each is drained and replaced by itself."""
    for node in fleet.nodes:
        record = memory.parts.get(part_key(PartKind.ENGINE, node.id))
        if record is None or record.back_at is not None:
            if _silent(node):
                since = world.now if node.heard.since is None else node.heard.since
                yield _lost(world.now, PartKind.ENGINE, node.id, since, node.failure)
        elif node.heard.known and node.healthy:
            yield from _back(world.now, record)


def _silent(node: Node) -> bool:
    return node.phase is Phase.READY and not node.healthy and not node.leaving


def _lost(now: float, kind: PartKind, name: str, since: float, error: str) -> PartLost:
    return PartLost(at=now, kind=kind, part=name, since=since, error=error)


def _back(now: float, record: PartRecord) -> Iterator[PartBack]:
    if now - record.lost_at >= hold(record.times):
        yield PartBack(at=now, kind=record.kind, part=record.part, after=max(0.0, now - record.since))
