"""A pool of two balancers, one of which is dead, frozen, slow or lies: the other gets its sets, nodes are
replaced as ever, and that one is in trouble is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from dataclasses import replace as changed
from pathlib import Path

import orjson
import pytest
from scenarios import PACE, config, sales

from cloud.errors import Denied, Uncertain
from cloud.ports import BalancerView, Capabilities
from cloud.sim.balancer import Traffic
from orchestrator.api.gauges import publish_balancers
from orchestrator.metrics import metrics
from orchestrator.simulation.simulate import Simulation
from orchestrator.wiring.ports import Ports
from policies.events import PartLost, StateChanged
from policies.model import Market, Target, TargetPhase, TargetSpec, TargetState

POOL = "p"
OTHER = "other"
LOST, DEGRADED, DIFFERS = f"lost {OTHER}", "ends degraded", "differs"


CAN = Capabilities(drains=True, counts_in_flight=True, propagation=0.0, in_path=True)


@dataclass
class Other:
    """A second balancer, which does what it is asked to until `how` says otherwise."""

    sim: Simulation
    how: str = ""
    name: str = OTHER
    capabilities: Capabilities = CAN
    held: tuple[TargetSpec, ...] = ()
    generation: int = 0

    async def observe(self) -> BalancerView:
        await self._answer()
        if self.how == "sends what no adapter can read":
            raise AttributeError("'list' object has no attribute 'get'")
        held = self.held
        if self.how == "shows nothing":
            held = ()
        if self.how == "shows strangers":
            held = tuple(TargetSpec(id=f"x-{n}", address=f"10.9.9.{n}:1") for n in range(5))
        if self.how == "shows what it was told to drain as healthy":
            held = tuple(changed(spec, phase=TargetPhase.ACTIVE) for spec in held)
        generation = 1 << 61 if self.how == "shows a generation that nobody gave it" else self.generation
        return BalancerView(incarnation="one", generation=generation, targets=tuple(map(_target, held)))

    async def apply(self, desired: Sequence[TargetSpec], generation: int) -> None:
        await self._answer()
        if self.how == "sends what no adapter can read":
            raise KeyError("workers")
        if self.how in ("refuses", "shows a generation that nobody gave it"):
            raise Denied("generation 1 is older than 2")
        self.held, self.generation = tuple(desired), generation

    async def detach(self, leaving: Sequence[TargetSpec], generation: int) -> None:
        await self._answer()

    async def close(self) -> None:
        return

    async def _answer(self) -> None:
        if self.how == "is dead":
            raise Uncertain("HAProxy at x cannot be reached: connection refused")
        if self.how == "is frozen":
            await asyncio.Event().wait()
        await self.sim.clock.sleep(9.0 if self.how == "is slow" else 0.01)


def _target(spec: TargetSpec) -> Target:
    drains = spec.phase is TargetPhase.DRAINING
    state = TargetState.DRAINING if drains else TargetState.HEALTHY
    return Target(id=spec.id, address=spec.address, state=state, in_flight=0)


@dataclass
class Seen:
    """What a run came to: seconds from the notice to the detachment, and to four nodes that serve without it.

    `alarms`: whether the balancer was told to be lost since the trouble began, whether it differs from the
    wanted set in the end, as the alert has it, and the state in which the pool ends.
    """

    detached: float = 0.0
    whole: float = 0.0
    alarms: frozenset[str] = frozenset()


async def until(sim: Simulation, holds: Callable[[], bool]) -> float:
    """Seconds until it holds."""
    began = sim.clock.now()
    while not holds():
        await sim.clock.sleep(0.05)
        assert sim.clock.now() - began < 300.0
    return sim.clock.now() - began


def run(folder: Path, how: str) -> Seen:
    """A spot node of four gets a notice while the other balancer is in trouble."""
    seen = Seen()
    others: list[Other] = []

    def wrap(ports: Ports) -> Ports:
        others.append(Other(sim))
        return changed(ports, balancers=(others[-1], *ports.balancers))

    sim = Simulation(config(folder), sales=sales(), pace=PACE, traffic=Traffic(per_second=2.0), wrap=wrap)

    def active() -> set[str]:
        return {s.id for s in sim.pools[POOL].table.active()}

    async def script(sim: Simulation) -> None:
        sim.furnish()
        process = sim.boot()
        await until(sim, lambda: len(active()) == 4)
        await sim.clock.sleep(10.0)
        others[-1].how, troubled = how, sim.clock.now()
        await sim.clock.sleep(30.0)
        world, board = sim.pools[POOL].world, sim.pools[POOL].board
        node = next(m.id for m in world.of(POOL) if m.live and m.placement.market is Market.SPOT)
        board.reclaim(node, after=60.0, notice=60.0)
        seen.detached = await until(sim, lambda: node not in active())
        seen.whole = await until(sim, lambda: len(active()) == 4)
        await sim.clock.sleep(120.0)
        assert process.ended == ""
        assert len(active()) == 4
        last = process.daemon.runs[POOL].last
        assert last is not None
        publish_balancers(last)
        differs = metrics.TARGETS_DIFFER.labels(POOL, OTHER)._value.get()
        events = await process.stores[-1].events(pool=POOL, limit=100_000)
        kinds = (PartLost.__name__, StateChanged.__name__)
        bodies = [orjson.loads(e.body) for e in events if e.kind in kinds]
        states = [f"ends {body['state']}" for body in bodies if "state" in body]
        lost = [f"lost {body['part']}" for body in bodies if "part" in body and body["at"] >= troubled]
        seen.alarms = frozenset([*lost, *states[-1:], *([DIFFERS] if differs else [])])

    outcome = sim.run(script)
    assert outcome.broken == ()
    return seen


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return run(tmp_path_factory.mktemp("sound"), "")


@pytest.mark.parametrize(
    ("how", "alarm"),
    [
        ("is dead", LOST),
        ("is frozen", LOST),
        ("sends what no adapter can read", LOST),
        ("is slow", DEGRADED),
        ("shows nothing", DIFFERS),
        ("shows strangers", DIFFERS),
        ("shows what it was told to drain as healthy", DIFFERS),
        ("refuses", DIFFERS),
        ("shows a generation that nobody gave it", DIFFERS),
    ],
)
def test_one_of_several_balancers_holds_up_no_other(
    tmp_path: Path, sound: Seen, how: str, alarm: str
) -> None:
    seen = run(tmp_path, how)
    assert seen.detached == pytest.approx(sound.detached, abs=0.3)
    assert seen.whole == pytest.approx(sound.whole, abs=1.0)
    assert alarm in seen.alarms
    assert sound.alarms == {"ends ok"}
