"""Where missing node-seconds come from, by cause: the figures behind `policy_yardstick.py --why`.

Every instant with fewer ready nodes than wanted is put down to the nodes lost last, newest first, as many as
are missing. A loss explains what is missing for `start - notice` seconds after it; what is missing later is
put down to our own rules or to refusals.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from orchestrator.backtest.timeline import TimelineRecorder

LATER = "later than the quickest start"
NO_LOSS = "no loss in the last hour"
UNNOTICED = "lost without notice"
BRIEF = "lost with a shorter notice"
ALONE = "first of a zone, noticed in time"
MORE = "more of a zone at once, noticed in time"

KEPT = 3600.0
"""Seconds for which a loss may explain what is missing."""


class ShortfallCauses(TimelineRecorder):
    """Listens to a run and adds up missing node-seconds by cause. Times are seconds."""

    def __init__(self, *, wanted: int, spot_start: float, on_demand_start: float, notice: float) -> None:
        super().__init__(wanted=wanted, spot_start=spot_start, on_demand_start=on_demand_start)
        self._count, self._start, self._notice = wanted, min(spot_start, on_demand_start), notice
        self._heard: dict[str, float] = {}
        self._losses: list[tuple[float, float, str, bool]] = []  # at, lead, zone, first of its zone
        self._seconds = 0.0
        self._missing: defaultdict[str, float] = defaultdict(float)

    def noticed(self, at: float, node: str) -> None:
        """The cloud gave notice of a node."""
        super().noticed(at, node)
        self._heard.setdefault(node, at)

    def lost(self, at: float, node: str, zone: str) -> None:
        """The cloud took a node."""
        super().lost(at, node, zone)
        lead = at - self._heard.pop(node, at)
        first = not any(then == at and where == zone for then, _, where, _ in self._losses)
        self._losses = [loss for loss in self._losses if at - loss[0] < KEPT]
        self._losses.append((at, lead, zone, first))

    def span(self, begin: float, end: float, *, spot: int, on_demand: int, dollars: float) -> None:
        """From `begin` to `end` these nodes were ready."""
        super().span(begin, end, spot=spot, on_demand=on_demand, dollars=dollars)
        self._seconds += self._count * (end - begin)
        newest = [loss for loss in reversed(self._losses) if begin - loss[0] < KEPT]
        for number in range(self._count - spot - on_demand):
            if number >= len(newest):
                self._missing[NO_LOSS] += end - begin
                continue
            at, lead, _, first = newest[number]
            covered = at + max(0.0, self._start - lead)
            explained = max(0.0, min(end, covered) - begin)
            self._missing[self._cause(lead, first)] += explained
            self._missing[LATER] += end - begin - explained

    def _cause(self, lead: float, first: bool) -> str:
        if lead <= 0.0:
            return UNNOTICED
        if lead < self._notice:
            return BRIEF
        return ALONE if first else MORE

    def shares(self) -> Mapping[str, float]:
        """Missing node-seconds by cause, as shares of the wanted ones."""
        return {cause: seconds / self._seconds for cause, seconds in self._missing.items() if seconds > 0.0}
