"""The checker can fail: every invariant catches a bug that was planted for it.

A bug sits in a wrapper around a port, in the journal or in the world; the daemon itself is the real one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from scenarios import PACE, SCENARIOS, bootstrap, config, loss, notice, place, return_to_spot, sales

from cloud.ports import BalancerView, EngineCommand, LaunchRequest, LoadBalancer
from cloud.sim.balancer import Traffic
from cloud.sim.effects import Moment, Point
from cloud.sim.faults import Fault
from orchestrator.simulate import Outcome, RecordedStore, Simulation
from orchestrator.wiring import Ports
from policies.events import Event, IntentOpened
from policies.model import EngineReading, Instance, Market, Notice, TargetPhase, TargetSpec

Script = Callable[[Simulation], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A bug: where it sits, the script that shows it, and the invariant that must say so."""

    name: str
    caught_by: str
    script: Script
    wrap: Callable[[Simulation, Ports], Ports] = lambda _, ports: ports
    prepare: Callable[[Simulation], object] = lambda _: None
    store: type[RecordedStore] = RecordedStore
    pool: dict[str, Any] = field(default_factory=dict)


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


def forget_tokens(sim: Simulation) -> None:
    sim.world.launch = lambda request: sim.world.described(sim.world.add(request))  # type: ignore[method-assign]


async def bootstrap_with_lost_answer(sim: Simulation) -> None:
    sim.world.pace = dataclasses.replace(PACE, list_lag=(8.0, 8.0))
    sim.world.faults.arm("launch", Fault.LOST)
    await bootstrap(sim)


class HidesNewMachines(Around):
    async def list(self, pool: str) -> tuple[Instance, ...]:
        found = await self._real.list(pool)
        return tuple(i for i in found if i.id <= "i-0004")


class ShowsOthersMachines(Around):
    async def list(self, pool: str) -> tuple[Instance, ...]:
        others = [dataclasses.replace(i, pool=pool) for i in self._sim.world.listed("another")]
        return (*await self._real.list(pool), *others)


async def beside_another_pool(sim: Simulation) -> None:
    for number in range(5):
        request = LaunchRequest(
            token=f"another/1/{number}",
            pool="another",
            placement=place(Market.SPOT, "a"),
            command=EngineCommand(argv=("sim",)),
        )
        machine = sim.world.add(request)
        machine.visible_at = machine.until = machine.loaded_at = sim.clock.now()
    await bootstrap(sim)


async def steady(sim: Simulation) -> None:
    """A whole pool with nothing to do."""
    sim.furnish()
    sim.boot()
    await sim.settle(steady=60.0)


class NeverTerminates(Around):
    async def terminate(self, node: str) -> None:
        return None


class ListsWithABug(Around):
    async def list(self, pool: str) -> tuple[Instance, ...]:
        raise ValueError("a bug of the adapter")


class LaunchesWithABug(Around):
    async def launch(self, request: LaunchRequest) -> Instance:
        raise ValueError("a bug of the adapter")


# -- the balancer ----------------------------------------------------------------------------------


class AcknowledgesTooEarly(Around):
    """Says yes at once and does it much later."""

    async def apply(self, desired: Sequence[TargetSpec], generation: int) -> None:
        table = self._sim.table
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


# -- the journal -----------------------------------------------------------------------------------


class ForgetsIntents(RecordedStore):
    async def append(self, pool: str, events: Sequence[Event]) -> None:
        await super().append(pool, [e for e in events if not isinstance(e, IntentOpened)])


class ForgetsAll(RecordedStore):
    async def append(self, pool: str, events: Sequence[Event]) -> None:
        return None


def other_pool(**pool: Any) -> Callable[[Simulation], object]:
    """The daemon keeps another pool than the checker watches for."""

    def prepare(sim: Simulation) -> None:
        sim.config = config(sim.config.daemon.state_dir.parent, **pool)

    return prepare


def both(sim: Simulation, ports: Ports) -> Ports:
    return around("balancers", SeesNoRequests)(sim, around("engine", SeesNoRequests)(sim, ports))


PLANTED = [
    Planted(
        name="the cloud ignores tokens",
        caught_by="one-per-token",
        script=bootstrap_with_lost_answer,
        prepare=forget_tokens,
    ),
    Planted(
        name="lists hide new machines",
        caught_by="tracked",
        script=loss,
        wrap=around("instances", HidesNewMachines),
    ),
    Planted(
        name="lists show another pool's machines",
        caught_by="own-only",
        script=beside_another_pool,
        wrap=around("instances", ShowsOthersMachines),
    ),
    Planted(
        name="machines are never ended",
        caught_by="convergence",
        script=return_to_spot,
        wrap=around("instances", NeverTerminates),
    ),
    Planted(
        name="an adapter raises what it may not, in a root task",
        caught_by="daemon-lives",
        script=bootstrap,
        wrap=around("instances", ListsWithABug),
    ),
    Planted(
        name="an adapter raises what it may not, in a call",
        caught_by="convergence",
        script=bootstrap,
        wrap=around("instances", LaunchesWithABug),
    ),
    Planted(
        name="an adapter raises what it may not, beside the loop",
        caught_by="nothing-unhandled",
        script=notice,
        wrap=around("notices", AcknowledgesWithABug),
    ),
    Planted(
        name="a set is acknowledged and not applied",
        caught_by="detach-first",
        script=return_to_spot,
        wrap=around("balancers", AcknowledgesTooEarly),
    ),
    Planted(
        name="the set is emptied",
        caught_by="last-target",
        script=bootstrap,
        wrap=around("balancers", EmptiesOnce),
    ),
    Planted(
        name="a healthy target is left out",
        caught_by="convergence",
        script=bootstrap,
        wrap=around("balancers", LosesATarget),
    ),
    Planted(
        name="a healthy target is taken out by choice",
        caught_by="no-self-harm",
        script=steady,
        prepare=other_pool(replicas=3),
    ),
    Planted(
        name="a draining node is put back",
        caught_by="no-way-back",
        script=notice,
        wrap=around("balancers", PutsDrainingBack),
    ),
    Planted(
        name="ended nodes stay targets",
        caught_by="dead-target",
        script=notice,
        wrap=around("balancers", NeverForgets),
    ),
    Planted(
        name="a node is a target before it is ready",
        caught_by="ready-first",
        script=bootstrap,
        wrap=around("engine", ReadyTooEarly),
    ),
    Planted(name="requests in flight are not seen", caught_by="drain-first", script=notice, wrap=both),
    Planted(
        name="notices are not heard", caught_by="prompt-detach", script=notice, wrap=around("notices", Deaf)
    ),
    Planted(
        name="notices are not heard, and requests pay for it",
        caught_by="no-request-cut",
        script=notice,
        wrap=around("notices", Deaf),
    ),
    Planted(
        name="the on-demand floor is forgotten",
        caught_by="floor",
        script=notice,
        prepare=other_pool(spot_share=1.0, limits={"disruption": 1.0}),
    ),
    Planted(
        name="too many are launched",
        caught_by="bounded",
        script=bootstrap,
        prepare=other_pool(replicas=8),
    ),
    Planted(name="intents are not journalled", caught_by="journal", script=bootstrap, store=ForgetsIntents),
    Planted(name="nothing is journalled", caught_by="journal", script=notice, store=ForgetsAll),
]


def play_planted(planted: Planted, folder: Path, *, crash: Point | None = None) -> Outcome:
    folder.mkdir(exist_ok=True)
    sim = Simulation(
        config(folder, **planted.pool),
        sales=sales(),
        seed=1,
        pace=PACE,
        traffic=Traffic(per_second=2.0),
        wrap=lambda ports: planted.wrap(sim, ports),
        store=planted.store,
        crash=crash,
    )
    planted.prepare(sim)
    return sim.run(planted.script)


@pytest.mark.parametrize("planted", PLANTED, ids=lambda p: p.name.replace(" ", "-"))
def test_a_planted_bug_is_caught(planted: Planted, tmp_path: Path) -> None:
    outcome = play_planted(planted, tmp_path)
    assert planted.caught_by in {b.name for b in outcome.broken}


def test_without_journalled_intents_some_crash_launches_twice(tmp_path: Path) -> None:
    """What the write-ahead intent is for: the machine that a dead daemon launched is not launched again."""

    def lag(sim: Simulation) -> None:
        sim.world.pace = dataclasses.replace(PACE, list_lag=(8.0, 8.0))

    planted = Planted(name="", caught_by="", script=bootstrap, store=ForgetsIntents, prepare=lag)
    scenario = SCENARIOS["bootstrap"]
    launches = [e for e in play_planted(planted, tmp_path / "clean").effects if e.kind == "launch"]
    counts = [
        play_planted(
            planted, tmp_path / f"{effect.number}-{moment}", crash=Point(effect.number, moment)
        ).launches
        for effect in launches
        for moment in (Moment.AFTER, Moment.LATE)
    ]
    assert max(counts) > scenario.launches


def test_every_invariant_has_its_planted_bug(tmp_path: Path, sound) -> None:
    """No invariant is counted as kept that nothing was ever shown to break."""
    outcome = sound(play_planted(Planted(name="", caught_by="", script=notice), tmp_path))
    assert set(outcome.checked) - {p.caught_by for p in PLANTED} == set()


def test_wrappers_are_ports() -> None:
    """A wrapper that no longer matches the port would plant nothing."""
    for kind in (AcknowledgesTooEarly, EmptiesOnce, LosesATarget, PutsDrainingBack, NeverForgets):
        assert kind.apply.__code__.co_varnames[1:3] == LoadBalancer.apply.__code__.co_varnames[1:3]
