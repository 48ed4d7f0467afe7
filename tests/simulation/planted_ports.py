"""Bugs that sit in a port or in the journal: each class does what the real one does, except for its bug."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any

from cloud.ports import BalancerView, LaunchRequest
from orchestrator.journal.turn_log import TurnLog, TurnRecord
from orchestrator.simulation.recorded_store import RecordedStore
from orchestrator.simulation.simulate import Simulation
from orchestrator.wiring.ports import Ports
from policies.events import Event, IntentOpened
from policies.model import EngineReading, Instance, Notice, TargetPhase, TargetSpec, TargetState


class Around:
    """A port that does what the real one does, except where a subclass says otherwise."""

    def __init__(self, real: Any, sim: Simulation) -> None:
        self._real, self._sim = real, sim

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def around(port: str, kind: type[Around]) -> Callable[[Simulation, Ports], Ports]:
    """Wrap one port of every daemon."""

    def wrap(sim: Simulation, ports: Ports) -> Ports:
        old = getattr(ports, port)
        new = tuple(kind(each, sim) for each in old) if isinstance(old, tuple) else kind(old, sim)
        return dataclasses.replace(ports, **{port: new})

    return wrap


# -- the cloud -------------------------------------------------------------------------------------


class HidesNewMachines(Around):
    async def list(self, pool: str, region: str) -> tuple[Instance, ...]:
        found = await self._real.list(pool, region)
        return tuple(i for i in found if i.id <= "i-0004")


class ShowsOthersMachines(Around):
    async def list(self, pool: str, region: str) -> tuple[Instance, ...]:
        others = [dataclasses.replace(i, pool=pool) for i in self._sim.world.listed("another", region)]
        return (*await self._real.list(pool, region), *others)


class NeverTerminates(Around):
    async def terminate(self, node: str) -> None:
        return None


class ListsWithABug(Around):
    async def list(self, pool: str, region: str) -> tuple[Instance, ...]:
        raise ValueError("a bug of the adapter")


class ListsWithoutAPause(Around):
    """Tries again in a loop of its own, as some client libraries do."""

    async def list(self, pool: str, region: str) -> tuple[Instance, ...]:
        found: list[tuple[Instance, ...]] = await asyncio.gather(
            *(self._real.list(pool, region) for _ in range(40))
        )
        return found[0]


class LaunchesWithABug(Around):
    async def launch(self, request: LaunchRequest) -> Instance:
        raise ValueError("a bug of the adapter")


# -- the balancer ----------------------------------------------------------------------------------


class AcknowledgesTooEarly(Around):
    """Says yes at once, shows what it said, and does it much later."""

    def __init__(self, real: Any, sim: Simulation) -> None:
        super().__init__(real, sim)
        self._said: dict[str, TargetPhase] = {}

    async def observe(self) -> BalancerView:
        view: BalancerView = await self._real.observe()
        shown = [t for t in view.targets if t.id in self._said]
        return dataclasses.replace(
            view,
            targets=tuple(
                dataclasses.replace(t, state=TargetState.DRAINING, in_flight=0)
                if self._said[t.id] is TargetPhase.DRAINING
                else t
                for t in shown
            ),
        )

    async def apply(self, desired: Sequence[TargetSpec], generation: int) -> None:
        table = self._sim.table
        self._said = {s.id: s.phase for s in desired}
        delay = 100.0 if table.targets else 0.0
        self._sim.world.later(delay, lambda: table.replace(desired, table.generation))


class EmptiesOnce(Around):
    writes = 0

    async def apply(self, desired: Sequence[TargetSpec], generation: int) -> None:
        self.writes += 1
        await self._real.apply([] if self.writes == 4 else desired, generation)


class LosesATarget(Around):
    async def apply(self, desired: Sequence[TargetSpec], generation: int) -> None:
        await self._real.apply(desired[1:] if len(desired) == 4 else desired, generation)


class NeverAdds(Around):
    """What was in the first set stays, and nothing is added to it."""

    async def apply(self, desired: Sequence[TargetSpec], generation: int) -> None:
        if not hasattr(self._sim, "first_set") and desired:
            self._sim.first_set = {s.id for s in desired}  # type: ignore[attr-defined]
        first = getattr(self._sim, "first_set", set())
        await self._real.apply([s for s in desired if s.id in first], generation)


class PutsDrainingBack(Around):
    async def apply(self, desired: Sequence[TargetSpec], generation: int) -> None:
        await self._real.apply(desired, generation)
        back = [dataclasses.replace(s, phase=TargetPhase.ACTIVE, drain_deadline=None) for s in desired]
        await self._real.apply(back, generation)


class NeverForgets(Around):
    def __init__(self, real: Any, sim: Simulation) -> None:
        super().__init__(real, sim)
        self._all: dict[str, TargetSpec] = {}

    async def apply(self, desired: Sequence[TargetSpec], generation: int) -> None:
        self._all |= {s.id: s for s in desired}
        await self._real.apply(list(self._all.values()), generation)

    async def observe(self) -> BalancerView:
        view: BalancerView = await self._real.observe()
        return dataclasses.replace(view, targets=())


# -- engines and notices ---------------------------------------------------------------------------


class ReadyTooEarly(Around):
    async def probe(self, node: str, address: str, previous: EngineReading | None) -> EngineReading:
        reading: EngineReading = await self._real.probe(node, address, previous)
        return dataclasses.replace(reading, ready=True, ok=True, failing_since=None)


class SeesNoRequests(Around):
    async def probe(self, node: str, address: str, previous: EngineReading | None) -> EngineReading:
        reading: EngineReading = await self._real.probe(node, address, previous)
        return dataclasses.replace(reading, running=0)

    async def observe(self) -> BalancerView:
        view: BalancerView = await self._real.observe()
        return dataclasses.replace(
            view, targets=tuple(dataclasses.replace(t, in_flight=0) for t in view.targets)
        )


class AcknowledgesWithABug(Around):
    async def acknowledge(self, notice: Notice) -> None:
        raise ValueError("a bug of the adapter")


class Deaf(Around):
    async def stream(self) -> AsyncIterator[Notice]:
        async for _ in self._real.stream():
            continue
        yield  # type: ignore[misc]


def deaf_to(source: str) -> Callable[[Simulation, Ports], Ports]:
    """Nothing that one source tells is heard, and all that the others tell is."""

    def wrap(sim: Simulation, ports: Ports) -> Ports:
        notices = tuple(Deaf(each, sim) if each.name == source else each for each in ports.notices)
        return dataclasses.replace(ports, notices=notices)

    return wrap


# -- the journal -----------------------------------------------------------------------------------


class ForgetsIntents(RecordedStore):
    async def append(self, pool: str, events: Sequence[Event]) -> None:
        await super().append(pool, [e for e in events if not isinstance(e, IntentOpened)])


class ForgetsAll(RecordedStore):
    async def append(self, pool: str, events: Sequence[Event]) -> None:
        return None


class RecordsHalfTheWorld(RecordedStore):
    """What the engines answered is not recorded: plans depend on what the journal does not hold."""

    def turns(self, pool: str) -> TurnLog:
        """See Store."""
        log = super().turns(pool)
        hold = partial(TurnLog.hold, log)

        def hold_half(turn: TurnRecord) -> bool:
            return hold(dataclasses.replace(turn, world=dataclasses.replace(turn.world, engines={})))

        log.hold = hold_half  # type: ignore[method-assign]
        return log


def both(sim: Simulation, ports: Ports) -> Ports:
    return around("balancers", SeesNoRequests)(sim, around("engine", SeesNoRequests)(sim, ports))
