"""An observer at work on a port of every kind whose answers a test controls."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from cloud.ports import BalancerView, Capabilities, Clock, Sold
from orchestrator.loop.gpu_watch import GpuWatch
from orchestrator.loop.observer import Observer, Pace
from policies.gpu_readings import NodeGpus
from policies.model import EngineReading, Instance, InstanceState, Market, Offering, Placement, Target, World
from policies.value import replace

Play = Callable[[Callable[[Any], Awaitable[Any]]], Any]

PLACE = Placement("sim", "r", "a", "gpu", Market.SPOT)


def machine(node: str, state: InstanceState = InstanceState.RUNNING, address: str = "") -> Instance:
    return Instance(
        id=node,
        pool="p",
        token=f"p/1/{int.from_bytes(node.encode(), 'big')}",
        placement=PLACE,
        state=state,
        address=address or f"{node}:1",
        launched_at=1.0,
        price=1.0,
    )


@dataclass
class Port:
    """Every port at once. Each part takes 0.1 seconds or as `slow` says, hangs, fails, or answers."""

    clock: Clock
    name: str = "gw"
    regions: tuple[str, ...] = ("",)
    capabilities: Any = None
    machines: list[Instance] = field(default_factory=list)
    sells: dict[str, tuple[Offering, ...]] = field(
        default_factory=lambda: {
            "east": (Offering(placement=PLACE, price=1.0),),
            "west": (Offering(placement=PLACE, price=2.0),),
        }
    )
    problems: dict[str, str] = field(default_factory=dict)
    targets: tuple[Target, ...] = ()
    fails: dict[str, BaseException] = field(default_factory=dict)
    hangs: set[str] = field(default_factory=set)
    slow: dict[str, float] = field(default_factory=dict)
    looks: list[tuple[str, float]] = field(default_factory=list)
    silent: set[str] = field(default_factory=set)
    probes: list[tuple[str, str]] = field(default_factory=list)
    works: dict[str, tuple[int, float]] = field(default_factory=dict)  # requests, and tokens a second
    probing: int = 0
    slow_probe: float = 0.0
    slow_look: float = 0.1
    silence: float = math.inf
    most_probing: int = 0

    async def _look(self, part: str) -> None:
        self.looks.append((part, self.clock.now()))
        await self.clock.sleep(1e9 if part in self.hangs else self.slow_look)
        if part in self.fails:
            raise self.fails[part]

    def parts(self) -> dict[str, tuple[Offering, ...]]:
        return {part: tuple(replace(o, price=None) for o in sold) for part, sold in self.sells.items()}

    async def list(self, what: str, region: str | None = None) -> Any:
        if region is not None:
            await self._look(f"instances {region}".strip())
            return tuple(self.machines)
        await self._look(what)
        return Sold(offerings=self.sells[what], problem=self.problems.get(what, ""))

    async def observe(self) -> BalancerView:
        await self._look("targets")
        return BalancerView(incarnation="one", generation=1, targets=self.targets)

    async def probe(self, node: str, address: str, previous: EngineReading | None) -> EngineReading:
        self.probes.append((node, address))
        self.probing += 1
        self.most_probing = max(self.most_probing, self.probing)
        await self.clock.sleep(0.05 + self.slow_probe)
        self.probing -= 1
        if f"crash {node}" in self.fails:
            raise self.fails[f"crash {node}"]
        ok = node not in self.silent
        since = None
        if not ok:
            since = (
                previous.failing_since
                if previous is not None and previous.failing_since
                else self.clock.now()
            )
        running, rate = self.works.get(node, (0, 0.0))
        return EngineReading(
            node=node,
            at=self.clock.now(),
            ready=True,
            ok=ok,
            failing_since=since,
            running=running,
            progress=rate * self.clock.now(),
        )


@dataclass
class Source:
    """A source of notices that has been silent for as long as its port says."""

    port: Port
    name: str = "feed"

    def age(self) -> float:
        return self.port.silence


class Watch:
    """An observer at work, its port, and how often it woke the loop."""

    def __init__(
        self, clock: Clock, *, regions: tuple[str, ...] = ("",), in_path: bool = False, **pace: Any
    ) -> None:
        self.clock = clock
        can = Capabilities(drains=True, counts_in_flight=True, propagation=0.0, in_path=in_path)
        self.port = Port(clock, capabilities=can, regions=regions)
        self.woken = 0
        self.told: dict[str, NodeGpus] = {}
        self.observer = Observer(
            pool="p",
            clock=clock,
            instances=self.port,  # type: ignore[arg-type]
            offerings=self.port,  # type: ignore[arg-type]
            balancers=(self.port,),  # type: ignore[arg-type]
            engine=self.port,  # type: ignore[arg-type]
            pace=Pace(**{"instances": 5.0, "offerings": 60.0, "targets": 5.0, "engines": 2.0, **pace}),
            wake=self.wake,
            gpus=GpuWatch(clock, reported=lambda node: self.told.get(node)),
            sources=(Source(self.port),),  # type: ignore[arg-type]
        )
        self.tasks = [asyncio.ensure_future(t) for t in self.observer.tasks().values()]

    def wake(self) -> None:
        self.woken += 1

    def follow(self, *nodes: str) -> None:
        """Have the engines of these nodes looked at."""
        self.observer.follow({node: f"{node}:1" for node in nodes})

    def world(self) -> World:
        return self.observer.world(durable=True, leading=True, epoch=3)

    def looks(self, part: str) -> int:
        return sum(p == part for p, _ in self.port.looks)


def watch(play: Play, work: Callable[[Watch], Awaitable[Any]], **pace: Any) -> Any:
    async def whole(clock: Clock) -> Any:
        watching = Watch(clock, **pace)
        try:
            return await work(watching)
        finally:
            for task in watching.tasks:
                task.cancel()
            await watching.observer.stop()

    return play(whole)
