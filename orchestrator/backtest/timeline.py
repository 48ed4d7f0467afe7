"""What went on during a run: ready nodes and money over time, and every shortfall with its cause.

A driver reports spans in which nothing changes and what the cloud did to a `TimelineRecorder`, which makes a
`Timeline` to draw and the `Shortfall`s to show. It follows the same rules as the score (`score.py`): a
shortfall is an unbroken time with fewer ready nodes than wanted.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from orchestrator.words import plural

_HOUR = 3600.0
_SHOWN_ZONES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortfall:
    """An unbroken time with fewer ready nodes than wanted. `begin`: s since the scenario's begin.

    `most_missing`: nodes missing at its worst instant. `why`: what the cloud did to the pool, in words.
    """

    begin: float
    seconds: float
    most_missing: int
    node_hours: float
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """Ready nodes and money over time: from `times[i]` on `spot[i]` and `on_demand[i]` nodes are ready.

    `dollars[i]` was spent until `times[i]`. The last entry is the end. Times are s since the scenario began.
    """

    times: tuple[float, ...]
    spot: tuple[int, ...]
    on_demand: tuple[int, ...]
    dollars: tuple[float, ...]


@dataclass(slots=True)
class _Gap:
    """A shortfall that goes on."""

    begin: float
    seconds: float = 0.0
    most_missing: int = 0
    node_seconds: float = 0.0
    lost: Counter[str] = field(default_factory=Counter)
    leads: list[float] = field(default_factory=list)
    unnoticed: int = 0
    refused: set[str] = field(default_factory=set)


class TimelineRecorder:
    """Listens to one run. `wanted` nodes are wanted all the time; `spot_start` is s from launch to ready."""

    def __init__(self, *, wanted: int, spot_start: float, on_demand_start: float) -> None:
        self._wanted, self._starts = wanted, (spot_start, on_demand_start)
        self._times: list[float] = []
        self._spot: list[int] = []
        self._on_demand: list[int] = []
        self._dollars: list[float] = []
        self._spent, self._end = 0.0, 0.0
        self._gap: _Gap | None = None
        self._noticed: dict[str, float] = {}
        self._fresh: list[tuple[float, str, float | None]] = []  # losses since the last span: at, zone, lead
        self._refused: set[str] = set()
        self.shortfalls: list[Shortfall] = []

    # -- what the driver reports -------------------------------------------------------------------------

    def span(self, begin: float, end: float, *, spot: int, on_demand: int, dollars: float) -> None:
        """From `begin` to `end` these nodes were ready, for so much money. In order of time, without gaps."""
        if end <= begin:
            return
        if not self._times or (spot, on_demand) != (self._spot[-1], self._on_demand[-1]):
            self._times.append(begin)
            self._spot.append(spot)
            self._on_demand.append(on_demand)
            self._dollars.append(self._spent)
        self._spent += dollars
        self._end = end
        missing = self._wanted - spot - on_demand
        if missing <= 0:
            self._close()
        else:
            gap = self._gap = self._gap or _Gap(begin)
            gap.seconds = end - gap.begin
            gap.most_missing = max(gap.most_missing, missing)
            gap.node_seconds += missing * (end - begin)
            self._blame(gap)
        self._fresh.clear()
        self._refused.clear()

    def noticed(self, at: float, node: str) -> None:
        """The cloud gave notice of a node."""
        self._noticed.setdefault(node, at)

    def lost(self, at: float, node: str, zone: str) -> None:
        """The cloud took a node."""
        noticed = self._noticed.pop(node, None)
        self._fresh.append((at, zone, None if noticed is None else at - noticed))

    def refused(self, zone: str) -> None:
        """A launch was refused for want of capacity."""
        self._refused.add(zone)

    def end(self) -> Timeline:
        """The run is over."""
        self._close()
        return Timeline(
            times=(*self._times, self._end),
            spot=(*self._spot, *self._spot[-1:]),
            on_demand=(*self._on_demand, *self._on_demand[-1:]),
            dollars=(*self._dollars, self._spent),
        )

    # -- causes ----------------------------------------------------------------------------------------

    def _blame(self, gap: _Gap) -> None:
        for _, zone, lead in self._fresh:
            gap.lost[zone] += 1
            if lead is None:
                gap.unnoticed += 1
            else:
                gap.leads.append(lead)
        gap.refused |= self._refused

    def _close(self) -> None:
        gap, self._gap = self._gap, None
        if gap is None:
            return
        self.shortfalls.append(
            Shortfall(
                begin=gap.begin,
                seconds=gap.seconds,
                most_missing=gap.most_missing,
                node_hours=gap.node_seconds / _HOUR,
                why=self._why(gap),
            )
        )

    def _why(self, gap: _Gap) -> str:
        parts = []
        if gap.lost:
            ranked = sorted(gap.lost.items(), key=lambda item: (-item[1], item[0]))
            shown = [f"{zone} took {plural(count, 'node')}" for zone, count in ranked[:_SHOWN_ZONES]]
            if (more := len(ranked) - _SHOWN_ZONES) > 0:
                shown.append(f"{plural(more, 'more zone')} took {sum(n for _, n in ranked[_SHOWN_ZONES:])}")
            parts.append(f"{', '.join(shown)}, {_notices(gap)}")
            parts.append(_starts(*self._starts))
        else:
            parts.append("nodes were still starting; none was taken away meanwhile")
        if gap.refused:
            parts.append(f"{plural(len(gap.refused), 'zone')} refused spot")
        return "; ".join(parts)


def _notices(gap: _Gap) -> str:
    if not gap.leads:
        return "without notice"
    least, most = min(gap.leads), max(gap.leads)
    text = f"{least:.0f}" if most - least < 1 else f"{least:.0f} to {most:.0f}"
    text = f"noticed {text} s before"
    return text + (f", {gap.unnoticed} without notice" if gap.unnoticed else "")


def _starts(spot: float, on_demand: float) -> str:
    if spot == on_demand:
        return f"a new node takes {spot:g} s"
    return f"a new node takes {on_demand:g} s on demand, {spot:g} s on spot"
