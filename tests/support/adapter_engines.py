"""What makes the policies' toy cloud one whose engines load adapters, with a gateway that routes them.

Calls take one turn; engines hold what they were asked to, and forget it when a test says so. `violations`
counts on the truth: what is routed to an engine that does not hold it, and what is unloaded though routed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from policies.actions import LoadAdapter, Plan, UnloadAdapter
from policies.adapter_events import AdapterAnswered, AdapterAsked
from policies.held import Adapter, AdapterRules, AdapterUse, beside, held_as
from policies.model import World


def adapters(*names: str, revision: str = "1") -> tuple[Adapter, ...]:
    return tuple(Adapter(name=name, source=f"/lora/{name}@{revision}") for name in names)


@dataclass
class AdapterEngines:
    """To be mixed into `ToyCloud`.

    `held`: what each engine holds. `broken`: what no engine can load. `busy`: requests in flight, by node
    and the engine's name of the adapter. `asking`: what clients ask for, requests a minute. `forgotten`: what
    an engine lost behind our back at this instant. `takes`: seconds until a call comes back, by node and the
    engine's name, either empty for any; it takes effect then. `most_calls`: those of one node that were under
    way at the same time."""

    held: dict[str, set[str]] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    busy: dict[tuple[str, str], int] = field(default_factory=dict)
    asking: dict[str, AdapterUse] = field(default_factory=dict)
    counts: bool = True
    losing_loads: bool = False
    violations: list[str] = field(default_factory=list)
    calls: list[LoadAdapter | UnloadAdapter] = field(default_factory=list)
    takes: dict[tuple[str, str], float] = field(default_factory=dict)
    under_way: list[tuple[float, LoadAdapter | UnloadAdapter]] = field(default_factory=list)
    most_calls: int = 0

    def forget(self, node: str) -> None:
        """Its engine was started again behind our back."""
        self.held[node] = set()

    def want(self, *wanted: Adapter, slots: int | None = None) -> None:
        """Another configuration."""
        self.configure(adapters=AdapterRules(wanted=wanted, slots=slots))

    def routed(self, node: str) -> list[str]:
        """What the gateway sends a node requests for."""
        target = self.targets.get(node)
        return [] if target is None else [held.served_as for held in target.adapters]

    def _world(self) -> World:
        world = super()._world()
        readings = {
            node: replace(reading, adapters=tuple(sorted(self.held.get(node, ()))), adapters_at=self.now)
            for node, reading in world.engines.items()
        }
        view = world.balancers["gw"]
        shown = tuple(
            replace(
                target,
                adapters=self.targets[target.id].adapters if self.counts else None,
                adapter_in_flight=tuple(
                    self.busy.get((target.id, h.served_as), 0) for h in self.targets[target.id].adapters
                ),
                adapters_leaving=self._leaving(target.id),
            )
            for target in view.value
        )
        routed = {held.name for target in self.targets.values() for held in target.adapters}
        use = {n: replace(u, waiting=u.waiting and n not in routed) for n, u in self.asking.items()}
        balancers = {"gw": replace(view, value=shown)}
        return replace(world, engines=readings, balancers=balancers, adapter_use=use)

    def _leaving(self, node: str) -> tuple[Any, ...]:
        routed = self.routed(node)
        return tuple(
            held_as(name)
            for (n, name), count in self.busy.items()
            if n == node and count and name not in routed
        )

    def _carry_out(self, plan: Plan) -> None:
        asked = [a for a in plan.actions if isinstance(a, LoadAdapter | UnloadAdapter)]
        for action in asked:
            load = isinstance(action, LoadAdapter)
            self.happen(
                AdapterAsked(
                    at=self.now, node=action.node, adapter=action.served_as, load=load, reason=action.reason
                )
            )
        super()._carry_out(plan)
        for action in asked:
            self.calls.append(action)
            self.under_way.append((self.now + self._takes(action.node, action.served_as), action))
        nodes = Counter(action.node for _, action in self.under_way)
        self.most_calls = max(self.most_calls, *nodes.values(), 0)
        due = [action for at, action in self.under_way if at <= self.now]
        self.under_way = [row for row in self.under_way if row[0] > self.now]
        self.arriving += [self._adapter(action) for action in due]
        self._judge()

    def _takes(self, node: str, served_as: str) -> float:
        keys = ((node, served_as), (node, ""), ("", ""))
        return next((self.takes[key] for key in keys if key in self.takes), 0.0)

    def restart(self) -> None:
        """Kill the daemon: answers of calls that it made get lost, whatever engines made of them."""
        super().restart()
        for _, action in self.under_way:
            self._adapter(action)
        self.under_way.clear()

    def _adapter(self, action: LoadAdapter | UnloadAdapter) -> AdapterAnswered:
        held, failure = self.held.setdefault(action.node, set()), ""
        load = isinstance(action, LoadAdapter)
        if isinstance(action, UnloadAdapter):
            if action.served_as in self.routed(action.node) or self.busy.get((action.node, action.served_as)):
                self.violations.append(f"{action.served_as} unloaded from {action.node} under requests")
            held.discard(action.served_as)
        elif action.served_as in self.broken:
            failure = "rank 64 is too high"
        else:
            held.add(action.served_as)
        if self.losing_loads:
            failure = "no answer"
        return AdapterAnswered(
            at=self.now,
            node=action.node,
            adapter=action.served_as,
            load=load,
            failure=failure,
            certain=not self.losing_loads,
        )

    def _judge(self) -> None:
        slots = self.pool.adapters.slots
        for node in self.targets:
            for name in self.routed(node):
                if name not in self.held.get(node, ()):
                    self.violations.append(f"{name} is routed to {node}, which does not hold it")
        for node, held in self.held.items():
            if slots is not None and len(held) > slots + beside(slots):
                self.violations.append(f"{node} holds {len(held)} of {slots}")
