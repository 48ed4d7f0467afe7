"""What is read at all, when, and since when it fails.

A part of the world that cannot be read shows as an age and a reason. How long it has failed is counted from
when this daemon is awake: while it hung nobody asked.
"""

from __future__ import annotations

import math
from typing import Any

from policies.model import Observed, PartKind, World
from policies.value import value

INSTANCES = "instances"
"""The name of the list of machines, where one has all regions; else it is the region's."""


@value
class Part:
    """One part now.

    `read_at`: when it was last read. `away_since`: when the first look failed, None while all is well; of a
    source of notices, since when it is not known to have been read. `error`: how the newest look failed.
    """

    kind: PartKind
    name: str
    read_at: float | None
    away_since: float | None
    error: str = ""

    def age(self, now: float) -> float:
        """Seconds since it was last read; infinite before the first time."""
        return math.inf if self.read_at is None else max(0.0, now - self.read_at)

    def away_for(self, now: float) -> float:
        """Seconds for which it has not been read, none while all is well."""
        return 0.0 if self.away_since is None else now - self.away_since


def parts(world: World, notices_after: float) -> tuple[Part, ...]:
    """Every part but the engines. A source of notices is away when it was not read for `notices_after`."""
    views: tuple[tuple[PartKind, str, Observed[Any]], ...] = (
        *((PartKind.CLOUD, name or INSTANCES, view) for name, view in world.regions.items()),
        *((PartKind.PRICES, name, view) for name, view in world.offerings.items()),
        *((PartKind.BALANCER, name, view) for name, view in world.balancers.items()),
    )
    return (
        *(
            Part(kind=kind, name=name, read_at=view.at, away_since=fails_since(view, world), error=view.error)
            for kind, name, view in views
        ),
        *(_source(name, at, world, notices_after) for name, at in world.heard.items()),
    )


def _source(name: str, at: float | None, world: World, notices_after: float) -> Part:
    heard = at is not None and world.now - at < notices_after
    since = None if heard else watched_since(world, at or 0.0)
    return Part(kind=PartKind.NOTICES, name=name, read_at=at, away_since=since)


def watched_since(world: World, since: float) -> float:
    """Since when this daemon has watched what began then.

    Of the time before it was awake nobody knows how long it was: this host's clock may have been set.
    """
    return max(since, world.awake_since)


def fails_since(view: Observed[Any], world: World) -> float | None:
    """Since when a part cannot be read, as far as this daemon was awake; None while it can."""
    return None if view.failing_since is None else watched_since(world, view.failing_since)


def overtaken(view: Observed[Any]) -> bool:
    """What was read last is older than the first of the reads that fail now."""
    return view.at is not None and view.failing_since is not None and view.at < view.failing_since
