"""What a run is worth: cost, availability, preemptions, launches, shortfalls.

Rules, so that runs of different drivers compare:

* A node is ready from the moment its engine is until its machine goes away or leaves by our own choice. A
  node under notice counts until the cloud takes it.
* A node costs money from launch to termination, starting time included; a stopped one does not.
* Nothing before `begin` counts: the pool must have time to start.
* The cost is measured against as many on-demand nodes as are wanted, in the cheapest zone.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass

_HOUR = 3600.0

WARM_UP = 7200.0
"""Seconds at the start of a scenario that are not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The result of one run; the fields of the JSON of `orchestrator simulate`.

    `capacity_availability`: ready node-seconds up to wanted, as a share of the wanted ones.
    `time_availability`: share of time with at least as many ready nodes as wanted.
    """

    cost_ratio: float
    capacity_availability: float
    time_availability: float
    mean_spot_share: float
    preemptions: int
    spot_launches: int
    on_demand_launches: int
    worst_shortfall_s: float
    shortfall_node_hours: float
    steps_simulated: int
    trace_hash: str

    def as_dict(self) -> dict[str, float | int | str]:
        """The JSON fields."""
        return asdict(self)


class Tally:
    """Counts while a run goes on. `begin` is when measuring starts, s; `base_price` the cheapest on-demand
    price, USD/h."""

    def __init__(self, *, begin: float, base_price: float) -> None:
        self._begin, self._base = begin, base_price
        self._wanted = self._served = self._seconds = self._good = 0.0
        self._spot = self._ready = self._serving = 0.0
        self._short = self._worst = 0.0
        self._dollars = 0.0
        self._preemptions = self._spot_launches = self._on_demand_launches = 0
        self._hash = hashlib.sha256()
        self.steps = 0

    def ready(
        self, begin: float, end: float, *, spot: int, on_demand: int, wanted: int, serving: int | None = None
    ) -> None:
        """From `begin` to `end` these nodes were ready. Call in order of time, without gaps.

        `serving`: of these, the nodes that took new requests; None when all did.
        """
        begin = max(begin, self._begin)
        span = end - begin
        if span <= 0:
            return
        ready = spot + on_demand
        self._seconds += span
        self._wanted += wanted * span
        self._served += min(ready, wanted) * span
        self._serving += min(ready if serving is None else serving, wanted) * span
        self._spot += spot * span
        self._ready += ready * span
        if ready >= wanted:
            self._good += span
            self._short = 0.0
        else:
            self._short += span
            self._worst = max(self._worst, self._short)

    def charge(self, dollars: float) -> None:
        """Add money that was spent after measuring began."""
        self._dollars += dollars

    def preempted(self, at: float) -> None:
        """The cloud took a spot node."""
        self._preemptions += at >= self._begin

    def launched(self, at: float, *, spot: bool) -> None:
        """A node was launched."""
        if at >= self._begin:
            self._spot_launches += spot
            self._on_demand_launches += not spot

    def record(self, line: str) -> None:
        """Put one line of what happened into the trace hash."""
        self._hash.update(line.encode())
        self._hash.update(b"\n")

    @property
    def serving_availability(self) -> float:
        """Like `capacity_availability`, for nodes that take new requests: those that drain do not count."""
        return self._serving / self._wanted if self._wanted else 1.0

    def score(self) -> Score:
        """The result so far."""
        wanted = self._wanted or 1.0
        return Score(
            cost_ratio=self._dollars / (self._base * wanted / _HOUR),
            capacity_availability=self._served / wanted if self._wanted else 1.0,
            time_availability=self._good / self._seconds if self._seconds else 1.0,
            mean_spot_share=self._spot / self._ready if self._ready else 0.0,
            preemptions=self._preemptions,
            spot_launches=self._spot_launches,
            on_demand_launches=self._on_demand_launches,
            worst_shortfall_s=self._worst,
            shortfall_node_hours=(self._wanted - self._served) / _HOUR,
            steps_simulated=self.steps,
            trace_hash=self._hash.hexdigest(),
        )
