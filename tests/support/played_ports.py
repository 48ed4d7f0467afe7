"""Machines and load balancers whose calls do what a test says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from adapter_engine import HoldingEngine

from cloud.errors import Denied
from cloud.ports import BalancerView, Capabilities, Clock, EngineCommand, LaunchRequest
from orchestrator.loop.actuator import Actuator
from policies.events import Event
from policies.model import Ending, Instance, InstanceState, TargetPhase, TargetSpec

Play = Callable[[Callable[[Any], Awaitable[Any]]], Any]

COMMAND = EngineCommand(argv=("serve",))

CAN = Capabilities(drains=True, counts_in_flight=True, propagation=0.0)


@dataclass
class Machines:
    """Instances whose calls do what the test says."""

    clock: Clock
    fails: BaseException | None = None
    hangs: bool = False
    state: InstanceState = InstanceState.PENDING
    ending: Ending = Ending.UNKNOWN
    calls: list[tuple[str, Any]] = field(default_factory=list)
    hangs_in: str = ""
    wrote: str = ""
    at_once: int = 0
    most_at_once: int = 0
    regions: tuple[str, ...] = ("r",)

    async def _called(self, name: str, what: Any) -> None:
        self.calls.append((name, what))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            hangs = self.hangs or (self.hangs_in and str(what).startswith(self.hangs_in))
            await self.clock.sleep(1e6 if hangs else 0.5)
        finally:
            self.at_once -= 1
        if self.fails is not None:
            raise self.fails

    async def launch(self, request: LaunchRequest) -> Instance:
        await self._called("launch", request)
        return Instance(
            id=f"i-{request.token}",
            pool=request.pool,
            token=request.token,
            placement=request.placement,
            state=self.state,
            launched_at=self.clock.now(),
            price=1.0,
            ending=self.ending,
            ending_why=f"the words of {self.ending}" if self.ending else "",
        )

    async def list(self, pool: str, region: str) -> tuple[Instance, ...]:
        return ()

    async def terminate(self, node: str) -> None:
        await self._called("terminate", node)

    async def stop(self, node: str) -> None:
        await self._called("stop", node)

    async def start(self, node: str) -> None:
        await self._called("start", node)

    async def console(self, node: str) -> str:
        await self._called("console", node)
        return self.wrote

    async def close(self) -> None:
        return


def hands_of(
    clock: Clock,
    machines: Machines,
    heard: list[Event],
    leading: bool = True,
    sees: Callable[[str], bool] = lambda _: True,
) -> Actuator:
    """An actuator over these machines whose outcomes `heard` gets."""
    return Actuator(
        pool="p",
        clock=clock,
        instances=machines,
        balancers=(),
        engine=HoldingEngine(clock),
        command=COMMAND,
        call_timeout=10.0,
        emit=heard.append,
        leading=lambda: leading,
        failsafe=lambda: False,
        sees=sees,
    )


@dataclass
class Balancer:
    """A load balancer that fails or hangs when told to: `fails` and `hangs` at writes, `blind` at looks."""

    clock: Clock
    name: str = "gw"
    capabilities: Capabilities = CAN
    fails: list[BaseException] = field(default_factory=list)
    hangs: int = 0
    blind: BaseException | None = None
    deaf: bool = False  # looks hang
    sees: float = 0.0  # seconds that a look takes
    looks: int = 0
    takes: float = 0.01
    generation: int = 0
    written: list[tuple[float, tuple[str, ...], int]] = field(default_factory=list)
    let_go: list[tuple[float, tuple[str, ...], int]] = field(default_factory=list)

    async def observe(self) -> BalancerView:
        self.looks += 1
        await self.clock.sleep(1e6 if self.deaf else self.sees)
        if self.blind is not None:
            raise self.blind
        return BalancerView(incarnation="one", generation=self.generation, targets=())

    async def apply(self, desired: Sequence[TargetSpec], generation: int) -> None:
        await self._take(self.written, desired, generation)

    async def detach(self, leaving: Sequence[TargetSpec], generation: int) -> None:
        await self._take(self.let_go, leaving, generation)

    async def _take(
        self,
        taken: list[tuple[float, tuple[str, ...], int]],
        targets: Sequence[TargetSpec],
        generation: int,
    ) -> None:
        ids = tuple(t.id for t in targets)
        await self.clock.sleep(self.takes)
        if self.hangs:
            self.hangs -= 1
            await self.clock.sleep(1e6)
        if self.fails:
            raise self.fails.pop(0)
        if generation < self.generation:
            raise Denied(f"generation {generation} is older than {self.generation}")
        self.generation = generation
        taken.append((self.clock.now(), ids, generation))

    async def close(self) -> None:
        return


def targets(*ids: str, draining: Sequence[str] = ()) -> tuple[TargetSpec, ...]:
    active = [TargetSpec(id=i, address=f"{i}:1") for i in ids]
    leaving = [
        TargetSpec(id=i, address=f"{i}:1", phase=TargetPhase.DRAINING, drain_deadline=9.0) for i in draining
    ]
    return (*active, *leaving)
