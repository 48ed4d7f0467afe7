"""Through which channel a daemon learns each truth of a simulated world, and how soon it must have.

`WITHIN` is the one table of what no daemon can know yet: a truth younger than its moment is Unknown, and is
held against nobody. The moment counts from when the truth came about, and where the row names a channel that
may be out, from when that got through again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import Final

from cloud.sim.balancer import TargetTable
from cloud.sim.faults import within
from cloud.sim.invariants import Bounds, DaemonState
from cloud.sim.world import SimWorld


class Channel(StrEnum):
    """How a daemon looks at the world."""

    LISTS = "lists"
    LOOKS = "looks at engines"
    NOTICES = "notices"
    SETS = "reads of target sets"
    WRITES = "writes of target sets"


class Truth(StrEnum):
    """What is so in the world, whether a daemon knows it or not."""

    LIVES = "a machine lives"
    ENDED = "a machine has ended"
    ANSWERS = "an engine answers"
    ANSWERS_AGAIN = "an engine that was silent or out of reach answers again"
    SILENT = "an engine answers no more"
    NOTICED = "the cloud takes a node away"
    TAKEN_BACK = "the cloud took a notice back"
    ROUTED = "a node gets requests"
    UNROUTED = "a node gets no more requests"
    ASKED_TO_END = "the end of a node was asked for"


WITHIN: Final[Mapping[Truth, tuple[Channel, str]]] = {
    Truth.LIVES: (Channel.LISTS, "track"),
    Truth.ENDED: (Channel.LISTS, "forget_target"),
    Truth.ANSWERS: (Channel.LOOKS, "see_loss"),
    Truth.ANSWERS_AGAIN: (Channel.LOOKS, "see_loss"),
    Truth.SILENT: (Channel.LOOKS, "see_loss"),
    Truth.NOTICED: (Channel.NOTICES, "see_loss"),
    Truth.TAKEN_BACK: (Channel.NOTICES, "see_loss"),
    Truth.ROUTED: (Channel.SETS, "see_loss"),
    Truth.UNROUTED: (Channel.SETS, "see_loss"),
    Truth.ASKED_TO_END: (Channel.LISTS, "see_loss"),
}
"""Each truth, the channel through which it is seen, and the field of `Bounds` that says for how long it is
Unknown."""


class Channels:
    """Which channels get through in one world. `daemon`: the one that runs, None where none does."""

    def __init__(
        self,
        world: SimWorld,
        tables: Iterable[TargetTable],
        bounds: Bounds,
        *,
        daemon: Callable[[], DaemonState | None],
    ) -> None:
        self._world, self._tables, self._bounds, self._daemon = world, tuple(tables), bounds, daemon
        self._down_at: dict[Channel, float] = {}
        world.on_tick.append(self._on_tick)

    def young(self, truth: Truth, since: float | None, now: float) -> bool:
        """A truth that came about at this time, None for never, is Unknown to any daemon."""
        return since is not None and now - since < getattr(self._bounds, WITHIN[truth][1])

    def unknown(self, truth: Truth, since: float | None, now: float) -> bool:
        """The same, counted from when its channel got through again, and a daemon was there to look."""
        channel, _ = WITHIN[truth]
        return since is not None and self.young(truth, max(since, self.clear_since(channel)), now)

    def clear_since(self, *channels: Channel) -> float:
        """Since when a daemon runs and each of these channels gets through."""
        now, daemon = self._world.clock.now(), self._daemon()
        if daemon is None:
            return now
        return max(
            [daemon.up_since, *(max(self._down_at.get(c, -math.inf), self._out(c, now)) for c in channels)]
        )

    def _on_tick(self, now: float) -> None:
        for channel in Channel:
            until = self._out(channel, now)
            if until > self._down_at.get(channel, -math.inf):
                self._down_at[channel] = until

    def _out(self, channel: Channel, now: float) -> float:
        """When it last did not get through: now, or what is known of calls that ended."""
        faults = self._world.faults
        if channel is Channel.LISTS:
            lie = faults.stale_lists or faults.lost_pages or faults.hidden
            calls = ("list", *(name for r in self._world.regions for name in within(("list",), r)))
        elif channel is Channel.LOOKS:
            lie, calls = bool(faults.lost_probes or faults.unreachable), ()
        elif channel is Channel.NOTICES:
            lie, calls = False, ("stream",)
        else:
            lie, calls = faults.forgetful, ("observe",) if channel is Channel.SETS else ("apply", "observe")
        return now if lie else max((faults.troubled(call, now) for call in calls), default=-math.inf)
