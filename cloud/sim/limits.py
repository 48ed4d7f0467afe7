"""Watches what a daemon may spend: dollars, launches, calls, and nodes that it disturbs at once.

Apart from `cloud.sim.checker`, which watches what it does to nodes and requests.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence, Set

from cloud.sim.books import Books
from cloud.sim.counting import units
from cloud.sim.effects import Effect, Moment
from cloud.sim.numbers import Numbers
from cloud.sim.world import Machine, SimWorld
from policies.actions import ActionKind
from policies.events import DrainStarted, Event, IntentOpened
from policies.grant import SharedBudget
from policies.model import InstanceState, Pool

_CENT = 1e-6
_MINUTE = 60.0

_CALLS, _CALLS_PER_NODE = 360, 10
"""Calls in a minute: looks in a hurry, and for each node six attempts at its end and what comes before."""


class Together:
    """The pools of one daemon, and the budget that they share: what runs is counted on the machines."""

    def __init__(self, budget: SharedBudget) -> None:
        self._budget, self._pools = budget, list[Limits]()

    @property
    def bounded(self) -> bool:
        """Whether there is anything to share."""
        return self._budget != SharedBudget()

    def join(self, pool: Limits) -> None:
        """One more pool shares."""
        self._pools.append(pool)

    def hidden(self) -> frozenset[str]:
        """Machines of any pool that no daemon can know of now."""
        return frozenset().union(*(pool.hidden() for pool in self._pools))

    def exceeded(self, hidden: Set[str]) -> Iterator[str]:
        """What all pools have more than the budget, but for machines `hidden` when this was decided."""
        dollars, nodes = self._budget.spend_per_hour, self._budget.nodes
        spent = sum(pool.spent(hidden) for pool in self._pools)
        if dollars is not None and spent > dollars + _CENT:
            yield f"{spent:.2f} USD/h are spent by all pools, the budget is {dollars:.2f}"
        living = sum(pool.staying(hidden) for pool in self._pools)
        if nodes is not None and living > nodes:
            yield f"{living} nodes of all pools live, the budget is {nodes}"


class Limits:
    """`spend`, `budget`, `launch-rate`, `call-budget` and `disruption` of one pool.

    `report` takes what breaks.
    `known` says how many nodes the daemon has on its books: each may be asked to end a few times a minute.
    `hidden` says which machines no daemon can know of now: what those cost is in no account. `together`: the
    pools that share a budget with this one.
    """

    def __init__(
        self,
        world: SimWorld,
        pool: Pool,
        *,
        books: Callable[[], Books],
        checked: Callable[[str], None],
        report: Callable[[str, str, str], None],
        known: Callable[[], int],
        hidden: Callable[[], Set[str]],
        together: Together,
    ) -> None:
        self._world, self._pool, self._books = world, pool, books
        self._numbers = Numbers.of(pool)
        self._checked, self._report, self._nodes_known, self.hidden = checked, report, known, hidden
        self._together = together
        together.join(self)
        self._hidden_then: dict[str, Set[str]] = {}  # by the token or node of what was decided then
        self._launches: deque[float] = deque()
        self._known = 0
        self._calls_before: deque[tuple[float, int]] = deque()
        world.effects.watchers.append(self._on_effect)
        world.on_tick.append(self._on_tick)

    def hear(self, events: Sequence[Event]) -> None:
        """What the daemon puts into its journal; the books have it already."""
        for event in events:
            if isinstance(event, IntentOpened) and event.kind in (ActionKind.LAUNCH, ActionKind.START):
                asked = event.node if event.kind is ActionKind.START else event.token
                self._hidden_then[asked] = self._together.hidden()
        if begun := {event.node for event in events if isinstance(event, DrainStarted)}:
            self._disruption(begun)

    def _disruption(self, begun: Set[str]) -> None:
        """No drain by choice begins beyond the disruption budget; one node alone may.

        One that went on although the cloud took its notice back is nobody's decision. Nor is one that has a
        notice as far as the journal tells: an old one may lack that it was taken back.
        """
        self._checked("disruption")
        now, budget = self._world.clock.now(), self._numbers.disturbed
        books = self._books()
        by_choice = [n for n, drain in books.draining.items() if drain.disturbs and not books.told.get(n)]
        leaving = [self._world.machine(node) for node in by_choice]
        chosen = [m for m in leaving if m is not None and m.able(now) and not m.going]
        decided = any(m.id in begun for m in chosen)
        if decided and len(chosen) > 1 and units(self._pool, chosen) > budget:
            names = ", ".join(sorted(m.id for m in chosen))
            self._report("disruption", names, f"{names} drain by choice at once, the budget is {budget}")

    def _on_effect(self, effect: Effect, moment: Moment) -> None:
        if effect.kind not in ("launch", "start"):
            return
        if moment is Moment.BEFORE:
            self._known = self._world.launches
            return
        launched = self._world.launches - self._known
        if effect.kind == "launch" and not launched:
            return  # a token that was asked for again
        now = self._world.clock.now()
        self._launches.extend([now] * launched)
        while self._launches and now - self._launches[0] >= _MINUTE:
            self._launches.popleft()
        self._launch_rate()
        hidden = self._hidden_then.pop(effect.subject, frozenset())
        self._spend(hidden)
        self._budget(hidden)

    def _launch_rate(self) -> None:
        """Machines launched in a minute. What was refused and asked again later lands in another minute."""
        self._checked("launch-rate")
        most = 2 * self._pool.limits.launches_per_minute
        if len(self._launches) > most:
            text = f"{len(self._launches)} machines were launched within a minute, twice the limit is {most}"
            self._report("launch-rate", "launches", text)

    def _spend(self, hidden: Set[str]) -> None:
        """What all machines cost in an hour, but for those hidden when this was decided, is below the cap."""
        cap = self._pool.limits.spend_per_hour
        if cap is None:
            return
        self._checked("spend")
        spent = self.spent(hidden)
        if spent > cap + _CENT:
            self._report("spend", "cap", f"{spent:.2f} USD/h are spent, the cap is {cap:.2f}")

    def _budget(self, hidden: Set[str]) -> None:
        """Nothing is launched beyond what all pools may have together."""
        if not self._together.bounded:
            return
        self._checked("budget")
        for text in self._together.exceeded(hidden):
            self._report("budget", self._pool.name, f"{self._pool.name} launches: {text}")

    def spent(self, hidden: Set[str]) -> float:
        """USD/h of the machines that bill, but for those hidden."""
        bills = (InstanceState.PENDING, InstanceState.RUNNING)
        return sum(self._world.prices[m.placement] for m in self._ours(hidden) if m.state in bills)

    def staying(self, hidden: Set[str]) -> int:
        """Machines that live and are not on their way out, but for those hidden."""
        books = self._books()
        gone = books.leaving | books.told.keys()
        return sum(m.live and not m.going and m.id not in gone for m in self._ours(hidden))

    def _ours(self, hidden: Set[str]) -> list[Machine]:
        return [m for m in self._world.of(self._pool.name) if not m.foreign and m.id not in hidden]

    def _on_tick(self, now: float) -> None:
        """Calls on the provider and the balancers, in every minute, whatever goes wrong."""
        self._checked("call-budget")
        calls = self._world.faults.calls
        self._calls_before.append((now, calls))
        while now - self._calls_before[0][0] > _MINUTE:
            self._calls_before.popleft()
        made = calls - self._calls_before[0][1]
        most = _CALLS + _CALLS_PER_NODE * self._nodes_known()
        if made > most:
            text = f"{made} calls within a minute, the most is {most}"
            self._report("call-budget", "calls", text)
