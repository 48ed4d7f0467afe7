"""A memory being changed by `policies.memory.reduce`: copies on first write, and the bookkeeping of swaps.

Every step is a function of the memory before it and of one event, never of the batch that the event came in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from policies import hazard
from policies.actions import Cause
from policies.model import Market, Placement
from policies.records import Memory, NodeRecord, Refusal, Swap, decayed
from policies.value import replace

SWAPS_KEPT = 128
"""Ended swaps that stay in memory for status pages; the journal has all of them."""

BAD_NEWS_HALF_LIFE = 1800.0
"""Seconds after which earlier bad news adds half its weight to a new piece."""

SAME_NEWS = 10.0
"""Seconds within which bad news of a placement is one piece: ten launches refused at once are one refusal."""

_NO_NEWS = Refusal(at=-math.inf, weight=0.0)
"""What is remembered of a placement without bad news."""


class MemoryBuilder:
    """A memory being changed: each collection is copied once, at its first write."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._changed: dict[str, Any] = {}
        self._spot_node = ""  # one that stays, when it was last looked for
        self._unsearched: Iterator[str] = iter(())

    def get(self, name: str) -> Any:
        """The value of a field as changed so far."""
        return self._changed[name] if name in self._changed else getattr(self._memory, name)

    def set(self, name: str, value: Any) -> None:
        """Replace a plain field."""
        self._changed[name] = value

    def become(self, memory: Memory) -> None:
        """Go on from another memory."""
        self._memory, self._changed = memory, {}

    def mapping(self, name: str) -> dict[Any, Any]:
        """A mapping field, to be changed in place."""
        if name not in self._changed:
            self._changed[name] = dict(getattr(self._memory, name))
        value: dict[Any, Any] = self._changed[name]
        return value

    def launches(self) -> list[float]:
        """The times of recent launches, to be changed in place."""
        if "launches" not in self._changed:
            self._changed["launches"] = list(self._memory.launches)
        value: list[float] = self._changed["launches"]
        return value

    def take(self, name: str, key: Any) -> Any:
        """Remove an entry of a mapping field and return it; None, and no change, where there is none."""
        return self.mapping(name).pop(key) if key in self.get(name) else None

    def record(self, node: str) -> NodeRecord | None:
        """The record of a node."""
        found: NodeRecord | None = self.get("nodes").get(node)
        return found

    def node(self, node: str, **changes: Any) -> None:
        """Change the record of a node; unknown nodes are ignored."""
        if node in self.get("nodes"):
            nodes = self.mapping("nodes")
            nodes[node] = replace(nodes[node], **changes)

    def forget_intent(self, token: str) -> None:
        """The call is settled, or what it was for is gone."""
        self.take("intents", token)

    def bad_news(self, name: str, placement: Placement, at: float) -> None:
        """Add one piece of bad news to what is left of the earlier ones."""
        known: Refusal = self.get(name).get(placement, _NO_NEWS)
        again = at - known.at < SAME_NEWS
        weight = known.weight if again else 1.0 + decayed(known, at, BAD_NEWS_HALF_LIFE)
        self.mapping(name)[placement] = Refusal(at=at, weight=weight)

    def refused(self, placement: Placement, at: float) -> None:
        """There was no capacity for a launch."""
        self.bad_news("refusals", placement, at)
        self.learn(placement, at, hazard.refused)
        self.spot_lost(placement, at)

    def boot_failed(self, placement: Placement, at: float, *, since: float) -> None:
        """One more machine in a row never became ready there. `since`: when its boot began."""
        resumed_at = self.get("resumed_at")
        if not self.get("ready_once") and (resumed_at is None or since >= resumed_at):
            self.set("failed_starts", self.get("failed_starts") + 1)
        before = self.get("boot_failures").get(placement, _NO_NEWS).weight
        self.mapping("boot_failures")[placement] = Refusal(at=at, weight=before + 1.0)

    # -- whether spot is there -------------------------------------------------------------------------

    def spot_back(self, node: str) -> None:
        """A node is ready or stays after all: if it is a spot node, spot is there."""
        record = self.record(node)
        if record is not None and _stays_on_spot(record):
            self.set("spot_lost_at", None)

    def spot_lost(self, placement: Placement, at: float) -> None:
        """Something went or was refused there: note since when no spot node is left."""
        if placement.market is not Market.SPOT or self.get("spot_lost_at") is not None:
            return
        if not self._some_spot_stays():
            self.set("spot_lost_at", at)

    def _some_spot_stays(self) -> bool:
        """Whether some spot node stays. A search goes on where the last one ended: losses stay linear."""
        nodes: Mapping[str, NodeRecord] = self.get("nodes")

        def stays(node: str) -> bool:
            return node in nodes and _stays_on_spot(nodes[node])

        if not stays(self._spot_node):
            self._spot_node = next(filter(stays, self._unsearched), "")
        if not self._spot_node:
            self._unsearched = iter(tuple(nodes))
            self._spot_node = next(filter(stays, self._unsearched), "")
        return bool(self._spot_node)

    # -- what is learned (policies.hazard) -----------------------------------------------------------

    def learn(
        self,
        placement: Placement,
        at: float,
        lesson: Callable[[hazard.ZoneHistory, float], hazard.ZoneHistory],
    ) -> None:
        """Take one piece of news of a spot placement; on-demand has no history."""
        if hazard.spot(placement):
            zones = self.mapping("zones")
            zones[placement] = lesson(zones.get(placement) or hazard.unknown(at), at)

    def timed(self, what: str, seconds: float) -> None:
        """Take one observation of how long something took."""
        timings = self.mapping("timings")
        known = timings.get(what)
        timings[what] = known.with_one(seconds) if known else hazard.RunningMean(mean=seconds)

    # -- swaps -------------------------------------------------------------------------------------

    def swap(self, outgoing: str, **changes: Any) -> None:
        """Change the swap of an outgoing node, if there is one."""
        if outgoing in self.get("swaps"):
            swaps = self.mapping("swaps")
            swaps[outgoing] = replace(swaps[outgoing], **changes)

    def open_swap(self, node: str, cause: Cause, at: float) -> None:
        """A node is on its way out and something should take its place."""
        if cause.voluntary or cause is Cause.STANDBY or node in self.get("swaps"):
            return
        swaps = self.mapping("swaps")
        known = self.record(node)
        live = [n for n in (known.notices if known else ()) if not n.cancelled]
        opened = min((n.seen_at for n in live), default=at)
        deadline = min((n.deadline for n in live if n.deadline is not None), default=None)
        swaps[node] = Swap(outgoing=node, cause=cause, opened_at=opened, deadline=deadline)
        # Looked over at powers of two only, so that a thousand notices at once stay linear.
        if len(swaps) > SWAPS_KEPT and len(swaps) & (len(swaps) - 1) == 0:
            ended = sorted((s.gone_at, s.outgoing) for s in swaps.values() if s.gone_at is not None)
            for _, outgoing in ended[: max(0, len(ended) - SWAPS_KEPT)]:
                self.drop_swap(outgoing)

    def drop_swap(self, outgoing: str) -> None:
        """The node stays after all, or the swap is history."""
        swap: Swap | None = self.take("swaps", outgoing)
        if swap is not None:
            self.take("incoming", swap.incoming)

    def pair(self, outgoing: str, incoming: str) -> None:
        """Name what takes the place of an outgoing node: a launch's token first, the node's id later."""
        swap = self.get("swaps").get(outgoing)
        if swap is None:
            return
        if self.get("incoming").get(incoming, outgoing) != outgoing:
            self.unpair(incoming)  # it was to take another place before
        self.take("incoming", swap.incoming)
        self.swap(outgoing, incoming=incoming)
        self.mapping("incoming")[incoming] = outgoing

    def unpair(self, incoming: str) -> None:
        """What was to take the place of an outgoing node did not come: the place is open again."""
        outgoing = self.take("incoming", incoming)
        swap = self.get("swaps").get(outgoing)
        if swap is not None and swap.replaced_at is None:
            self.swap(outgoing, incoming="")

    def reached(self, outgoing: str, stage: str, at: float) -> None:
        """The swap of an outgoing node reached a stage (a field of `Swap`); the first time counts."""
        swap = self.get("swaps").get(outgoing)
        if swap is not None and getattr(swap, stage) is None:
            self.swap(outgoing, **{stage: at})

    def done(self) -> Memory:
        """The changed memory."""
        if not self._changed:
            return self._memory
        if "launches" in self._changed:
            self._changed["launches"] = tuple(self._changed["launches"])
        return replace(self._memory, **self._changed)


def _stays_on_spot(record: NodeRecord) -> bool:
    """A spot node that is ready and not on its way out."""
    return record.placement.market is Market.SPOT and record.ready_at is not None and record.drain is None
