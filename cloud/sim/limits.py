"""Watches what a daemon may spend: dollars, launches, calls, and nodes that it disturbs at once.

Apart from `cloud.sim.checker`, which watches what it does to nodes and requests.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from cloud.sim.balancer import TargetTable
from cloud.sim.counting import units
from cloud.sim.effects import Effect, Moment
from cloud.sim.world import Machine, SimWorld
from policies.actions import ActionKind
from policies.events import DrainEnded, DrainStarted, Event, IntentOpened, NodeGone
from policies.model import InstanceState, Pool

_CENT = 1e-6
_MINUTE = 60.0


class Limits:
    """`spend`, `launch-rate`, `call-budget` and `disruption` of one pool. `report` takes what breaks.

    A node that gets no requests from any of `tables` is not disturbed by a drain, and a daemon that cannot
    reach it cannot know that it could serve.
    """

    def __init__(
        self,
        world: SimWorld,
        tables: Iterable[TargetTable],
        pool: Pool,
        *,
        checked: Callable[[str], None],
        report: Callable[[str, str, str], None],
        calls_per_minute: int = 400,
    ) -> None:
        self._world, self._tables, self._pool = world, tuple(tables), pool
        self._checked, self._report, self._calls_per_minute = checked, report, calls_per_minute
        self._launches: deque[float] = deque()
        self._known = 0
        self._leaving: dict[str, bool] = {}  # node that drains -> by choice
        self._calls_before: deque[tuple[float, int]] = deque()
        world.effects.watchers.append(self._on_effect)
        world.on_tick.append(self._on_tick)

    def hear(self, events: Iterable[Event]) -> None:
        """What the daemon puts into its journal: which nodes it disturbs, and why."""
        now = self._world.clock.now()
        for event in events:
            if isinstance(event, DrainStarted):
                machine = self._world.machine(event.node)
                works = machine is not None and machine.able(now) and not machine.doomed
                works = works and any(s.id == event.node for t in self._tables for s in t.active())
                self._leaving[event.node] = event.cause.by_choice and works
                self._disruption()
            elif isinstance(event, DrainEnded | NodeGone) or (
                isinstance(event, IntentOpened) and event.kind is ActionKind.TERMINATE
            ):
                self._leaving.pop(event.node, None)

    def forget(self) -> None:
        """The daemon lost its memory."""
        self._leaving.clear()

    def _disruption(self) -> None:
        """Units that work and drain by choice at once stay within the disruption budget; one node may."""
        self._checked("disruption")
        now, budget = self._world.clock.now(), self._pool.disruption_budget
        leaving = [self._world.machine(node) for node, by_choice in self._leaving.items() if by_choice]
        chosen = [m for m in leaving if m is not None and m.able(now) and not m.doomed]
        if len(chosen) > 1 and units(self._pool, chosen) > budget:
            names = ", ".join(sorted(m.id for m in chosen))
            self._report("disruption", names, f"{names} drain by choice at once, the budget is {budget}")

    def _on_effect(self, effect: Effect, moment: Moment) -> None:
        if effect.kind not in ("launch", "start"):
            return
        if moment is Moment.BEFORE:
            self._known = self._world.launches
            return
        now = self._world.clock.now()
        self._launches.extend([now] * (self._world.launches - self._known))
        while self._launches and now - self._launches[0] >= _MINUTE:
            self._launches.popleft()
        self._launch_rate()
        self._spend()

    def _launch_rate(self) -> None:
        """Machines launched in a minute. What was refused and asked again later lands in another minute."""
        self._checked("launch-rate")
        most = 2 * self._pool.limits.launches_per_minute
        if len(self._launches) > most:
            text = f"{len(self._launches)} machines were launched within a minute, twice the limit is {most}"
            self._report("launch-rate", "launches", text)

    def _spend(self) -> None:
        """What all machines cost in an hour stays below the cap."""
        cap = self._pool.limits.spend_per_hour
        if cap is None:
            return
        self._checked("spend")
        spent = sum(self._world.prices[m.placement] for m in self._bills())
        if spent > cap + _CENT:
            self._report("spend", "cap", f"{spent:.2f} USD/h are spent, the cap is {cap:.2f}")

    def _bills(self) -> list[Machine]:
        return [
            m
            for m in self._world.of(self._pool.name)
            if not m.foreign and m.state in (InstanceState.PENDING, InstanceState.RUNNING)
        ]

    def _on_tick(self, now: float) -> None:
        """Calls on the provider and the balancers, in every minute, whatever goes wrong."""
        self._checked("call-budget")
        calls = self._world.faults.calls
        self._calls_before.append((now, calls))
        while now - self._calls_before[0][0] > _MINUTE:
            self._calls_before.popleft()
        made = calls - self._calls_before[0][1]
        if made > self._calls_per_minute:
            text = f"{made} calls within a minute, the most is {self._calls_per_minute}"
            self._report("call-budget", "calls", text)
