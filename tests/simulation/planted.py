"""Bugs that are planted on purpose: each must be caught by its invariant, within a stated number of seeds.

A checker that says nothing proves nothing until it was seen to speak. A bug sits in a wrapper around a port,
in the journal, in the world, or in a rule of the daemon that is switched off. `PLANTED` is the whole list;
`caught` plays one of them, seed after seed.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from planted_ports import (
    AcknowledgesTooEarly,
    AcknowledgesWithABug,
    Deaf,
    EmptiesOnce,
    ForgetsAll,
    ForgetsIntents,
    HidesNewMachines,
    LaunchesWithABug,
    ListsWithABug,
    LosesATarget,
    NeverForgets,
    NeverTerminates,
    PutsDrainingBack,
    ReadyTooEarly,
    RecordsHalfTheWorld,
    ShowsOthersMachines,
    around,
    both,
)
from scenarios import PACE, bootstrap, config, loss, notice, place, return_to_spot, sales

from cloud.ports import EngineCommand, LaunchRequest
from cloud.sim.balancer import Traffic
from cloud.sim.effects import Point
from cloud.sim.faults import Fault
from orchestrator.recorded_store import RecordedStore
from orchestrator.simulate import Outcome, Simulation
from orchestrator.wiring import Ports
from policies.model import Market

Script = Callable[[Simulation], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A bug: where it sits, the script that shows it, and the invariant that must say so.

    `within`: the number of seeds, from 1 on, one of which must show it.
    """

    name: str
    invariant: str
    script: Script
    within: int = 5
    wrap: Callable[[Simulation, Ports], Ports] = lambda _, ports: ports
    prepare: Callable[[Simulation], object] = lambda _: None
    store: type[RecordedStore] = RecordedStore
    pool: dict[str, Any] = field(default_factory=dict)

    def play(self, folder: Path, *, seed: int = 1, crash: Point | None = None) -> Outcome:
        """One run of one seed, in a folder of its own."""
        folder.mkdir(parents=True, exist_ok=True)
        sim = Simulation(
            config(folder, **self.pool),
            sales=sales(),
            seed=seed,
            pace=PACE,
            traffic=Traffic(per_second=2.0),
            wrap=lambda ports: self.wrap(sim, ports),
            store=self.store,
            crash=crash,
        )
        self.prepare(sim)
        return sim.run(self.script)

    def caught(self) -> Outcome | None:
        """The first run in which the invariant speaks; None when it is silent in all `within` seeds."""
        for seed in range(1, self.within + 1):
            with tempfile.TemporaryDirectory() as folder:
                outcome = self.play(Path(folder), seed=seed)
            if self.invariant in {b.name for b in outcome.broken}:
                return outcome
        return None


# -- scripts and worlds ----------------------------------------------------------------------------


def forget_tokens(sim: Simulation) -> None:
    sim.world.launch = lambda request: sim.world.described(sim.world.add(request))  # type: ignore[method-assign]


async def bootstrap_with_lost_answer(sim: Simulation) -> None:
    sim.world.pace = dataclasses.replace(PACE, list_lag=(8.0, 8.0))
    sim.world.faults.arm("launch", Fault.LOST)
    await bootstrap(sim)


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


def other_pool(**pool: Any) -> Callable[[Simulation], object]:
    """The daemon keeps another pool than the checker watches for."""

    def prepare(sim: Simulation) -> None:
        sim.config = config(sim.config.daemon.state_dir.parent, **pool)

    return prepare


PLANTED: tuple[Planted, ...] = (
    Planted(
        name="the cloud ignores tokens",
        invariant="one-per-token",
        script=bootstrap_with_lost_answer,
        prepare=forget_tokens,
    ),
    Planted(
        name="lists hide new machines",
        invariant="tracked",
        script=loss,
        wrap=around("instances", HidesNewMachines),
    ),
    Planted(
        name="lists show another pool's machines",
        invariant="own-only",
        script=beside_another_pool,
        wrap=around("instances", ShowsOthersMachines),
    ),
    Planted(
        name="machines are never ended",
        invariant="convergence",
        script=return_to_spot,
        wrap=around("instances", NeverTerminates),
    ),
    Planted(
        name="an adapter raises what it may not, in a root task",
        invariant="daemon-lives",
        script=bootstrap,
        wrap=around("instances", ListsWithABug),
    ),
    Planted(
        name="an adapter raises what it may not, in a call",
        invariant="convergence",
        script=bootstrap,
        wrap=around("instances", LaunchesWithABug),
    ),
    Planted(
        name="an adapter raises what it may not, beside the loop",
        invariant="nothing-unhandled",
        script=notice,
        wrap=around("notices", AcknowledgesWithABug),
    ),
    Planted(
        name="a set is acknowledged and not applied",
        invariant="detach-first",
        script=return_to_spot,
        wrap=around("balancers", AcknowledgesTooEarly),
    ),
    Planted(
        name="the set is emptied",
        invariant="last-target",
        script=bootstrap,
        wrap=around("balancers", EmptiesOnce),
    ),
    Planted(
        name="a healthy target is left out",
        invariant="convergence",
        script=bootstrap,
        wrap=around("balancers", LosesATarget),
    ),
    Planted(
        name="a healthy target is taken out by choice",
        invariant="no-self-harm",
        script=steady,
        prepare=other_pool(replicas=3),
    ),
    Planted(
        name="a draining node is put back",
        invariant="no-way-back",
        script=notice,
        wrap=around("balancers", PutsDrainingBack),
    ),
    Planted(
        name="ended nodes stay targets",
        invariant="dead-target",
        script=notice,
        wrap=around("balancers", NeverForgets),
    ),
    Planted(
        name="a node is a target before it is ready",
        invariant="ready-first",
        script=bootstrap,
        wrap=around("engine", ReadyTooEarly),
    ),
    Planted(name="requests in flight are not seen", invariant="drain-first", script=notice, wrap=both),
    Planted(
        name="notices are not heard", invariant="prompt-detach", script=notice, wrap=around("notices", Deaf)
    ),
    Planted(
        name="notices are not heard, and requests pay for it",
        invariant="no-request-cut",
        script=notice,
        wrap=around("notices", Deaf),
    ),
    Planted(
        name="the on-demand floor is forgotten",
        invariant="floor",
        script=notice,
        prepare=other_pool(spot_share=1.0, limits={"disruption": 1.0}),
    ),
    Planted(
        name="too many are launched",
        invariant="bounded",
        script=bootstrap,
        prepare=other_pool(replicas=8),
    ),
    Planted(name="intents are not journalled", invariant="journal", script=bootstrap, store=ForgetsIntents),
    Planted(name="nothing is journalled", invariant="journal", script=notice, store=ForgetsAll),
    Planted(
        name="what was probed is not recorded", invariant="replay", script=notice, store=RecordsHalfTheWorld
    ),
)
