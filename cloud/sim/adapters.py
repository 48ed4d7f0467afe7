"""Requests for adapters in a simulated gateway, and what must hold of how a daemon moves adapters.

Who asks for what follows Zipf's law: the adapter of rank k is asked for in proportion to 1 / k to the power
of `skew`, in an order that is drawn. A request for an adapter that no target holds waits until one does.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cloud.sim.effects import Effect, Moment
from cloud.sim.world import SimWorld
from policies.held import AdapterCount, Held, held_as
from policies.model import Target, TargetSpec
from policies.value import replace

TOKENS = 100
"""Tokens of a request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """Who asks for which adapters: `share` of the requests, the others are for the model itself."""

    names: Sequence[str]
    skew: float = 1.0
    share: float = 1.0
    seconds: tuple[float, float] = (1.0, 8.0)


class AdapterTraffic:
    """Draws requests for adapters, routes them as a gateway does, and counts.

    `waits`: seconds of each request that no target could take when it came. `missed`: requests that were
    sent to an engine which did not hold their adapter; `on_miss` is told of each.
    """

    def __init__(self, world: SimWorld, asking: Asking, rng: random.Random) -> None:
        self._world, self._asking, self._rng = world, asking, rng
        self.names = [*asking.names]
        rng.shuffle(self.names)
        weights = (1.0 / rank**asking.skew for rank in range(1, len(self.names) + 1))
        self._cumulated = list(itertools.accumulate(weights))
        self._asked: Counter[str] = Counter()
        self._waiting: dict[str, list[float]] = {}
        self._held: dict[tuple[str, str], list[float]] = {}  # node and engine's name -> ends of requests
        self.asked = self.missed = 0
        self.waits: list[float] = []
        self.on_miss: Callable[[str, str], object] = lambda *_: None

    def route(self, targets: Sequence[TargetSpec], owed: int, now: float) -> int:
        """Take so many requests, and those that wait; how many of the new ones were for adapters."""
        for name, since in [*self._waiting.items()]:
            if self._holders(targets, name, now):
                del self._waiting[name]
                for at in since:
                    self.waits.append(now - at)
                    self._send(targets, name, now)
        taken = 0
        for _ in range(owed):
            if self._rng.random() >= self._asking.share:
                continue
            taken += 1
            name = self._draw()
            self.asked += 1
            self._asked[name] += 1
            if not self._send(targets, name, now):
                self._waiting.setdefault(name, []).append(now)
        return taken

    def counts(self) -> Mapping[str, AdapterCount]:
        """What a gateway says of each adapter that was asked for."""
        return {
            name: AdapterCount(asked=asked, tokens=asked * TOKENS, cold=name in self._waiting)
            for name, asked in self._asked.items()
        }

    def shown(self, spec: TargetSpec, target: Target, now: float) -> Target:
        """The target with its adapters and what they have in flight."""
        rows = {held.served_as for held in spec.adapters}
        leaving = {
            name
            for (node, name), ends in self._held.items()
            if node == spec.id and name not in rows and self._in_flight(ends, now)
        }
        return replace(
            target,
            adapters=spec.adapters,
            adapter_in_flight=tuple(
                self._in_flight(self._held.get((spec.id, held.served_as), []), now) for held in spec.adapters
            ),
            adapters_leaving=tuple(held_as(name) for name in sorted(leaving)),
        )

    def _draw(self) -> str:
        return self.names[bisect.bisect(self._cumulated, self._rng.random() * self._cumulated[-1])]

    def _holders(self, targets: Sequence[TargetSpec], name: str, now: float) -> list[tuple[str, Held]]:
        found = []
        for spec in targets:
            held = next((h for h in spec.adapters if h.name == name), None)
            machine = self._world.machine(spec.id)
            if held is not None and machine is not None and machine.able(now):
                found.append((spec.id, held))
        return found

    def _send(self, targets: Sequence[TargetSpec], name: str, now: float) -> bool:
        """Send a request to the least busy holder. One that turns out not to hold it is passed over."""
        holders = self._holders(targets, name, now)
        for node, held in sorted(holders, key=lambda h: (self._world.machines[h[0]].in_flight(now), h[0])):
            machine = self._world.machines[node]
            if held.served_as not in machine.adapters:
                self.missed += 1
                self.on_miss(node, held.served_as)
                continue
            end = now + self._rng.uniform(*self._asking.seconds)
            heapq.heappush(machine.requests, end)
            heapq.heappush(self._held.setdefault((node, held.served_as), []), end)
            return True
        return False

    @staticmethod
    def _in_flight(ends: list[float], now: float) -> int:
        while ends and ends[0] <= now:
            heapq.heappop(ends)
        return len(ends)


class AdapterWatch:
    """Holds a daemon to two rules of adapters, on the truth of a world.

    `forgotten`: seconds that a daemon may take to see that an engine forgot what it held.
    """

    def __init__(
        self,
        world: SimWorld,
        traffic: AdapterTraffic,
        targets: Callable[[], Mapping[str, TargetSpec]],
        *,
        checked: Callable[[str], None],
        report: Callable[[str, str, str], None],
        forgotten: float,
    ) -> None:
        self._world, self._traffic, self._targets = world, traffic, targets
        self._checked, self._report, self._forgotten = checked, report, forgotten
        traffic.on_miss = self._missed
        world.effects.watchers.append(self._on_effect)

    def _missed(self, node: str, served_as: str) -> None:
        self._checked("adapter-held")
        since = self._world.clock.now() - self._world.machines[node].forgot_at
        if since > self._forgotten:
            text = f"{node} was sent a request for {served_as}, which it does not hold"
            self._report("adapter-held", f"{node} {served_as}", text)

    def _on_effect(self, effect: Effect, moment: Moment) -> None:
        if effect.kind != "unload" or moment is not Moment.BEFORE:
            return
        self._checked("adapter-unrouted")
        for spec in self._targets().values():
            if spec.address == effect.detail and any(h.served_as == effect.subject for h in spec.adapters):
                text = f"{effect.subject} is unloaded from {spec.id}, which is sent requests for it"
                self._report("adapter-unrouted", f"{spec.id} {effect.subject}", text)
