"""Looks at every port at its own pace, each look with its own deadline, and keeps the newest of each part.

The loop never waits for a look: it takes a snapshot. A look that fails leaves the last good value in place
with its age and the failure, so that policies see how old their knowledge is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Set
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import structlog

from cloud.errors import CloudError
from cloud.ports import Clock, Engine, Instances, LoadBalancer, Offerings
from orchestrator.calls import counted
from policies.model import (
    EngineReading,
    Instance,
    InstanceState,
    Observed,
    Offering,
    Target,
    World,
)

log = structlog.get_logger("observer")

T = TypeVar("T")

_AFTER_FAILURE = 1.0
"""Seconds after which a look that failed is repeated."""

_FOLLOW_ABSENT = 600.0
"""Seconds for which the engine of a machine is probed that lists lack and that answers all the same."""


_NOT_ANSWERING = frozenset(InstanceState) - {InstanceState.PENDING, InstanceState.RUNNING}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How often and how patiently to look; seconds."""

    instances: float = 5.0
    offerings: float = 60.0
    targets: float = 5.0
    engines: float = 2.0
    hurry: float = 0.25  # pace of instances and targets while something is on its way
    call_timeout: float = 10.0
    probe_concurrency: int = 64


class Observer:
    """Keeps the newest view of one pool's world. `run` lists the tasks; `wake` is called on every change.

    `condemned` says why a node must be replaced whatever its engine answers; empty for one that need not.
    """

    def __init__(
        self,
        *,
        pool: str,
        clock: Clock,
        instances: Instances,
        offerings: Offerings,
        balancers: tuple[LoadBalancer, ...],
        engine: Engine,
        pace: Pace,
        wake: Callable[[], None],
        condemned: Callable[[str], str] = lambda _node: "",
    ) -> None:
        self._pool, self._clock, self._pace, self._wake = pool, clock, pace, wake
        self._condemned = condemned
        self._instances_port, self._offerings_port, self._engine = instances, offerings, engine
        self._balancers_port = balancers
        self._instances: Observed[tuple[Instance, ...]] = Observed(value=())
        self._offerings: Observed[tuple[Offering, ...]] = Observed(value=())
        self._targets: dict[str, Observed[tuple[Target, ...]]] = {
            b.name: Observed(value=()) for b in balancers
        }
        self.incarnations: dict[str, str] = {}
        self._engines: dict[str, EngineReading] = {}
        self._probes: dict[str, asyncio.Task[None]] = {}
        self._addresses: dict[str, str] = {}
        self._absent_since: dict[str, float] = {}
        self._slots = asyncio.Semaphore(pace.probe_concurrency)
        self._hurry = asyncio.Event()
        self._draining: Set[str] = frozenset()

    def world(self, *, durable: bool, leading: bool, epoch: int) -> World:
        """A snapshot. Costs a copy of two small dictionaries, no I/O."""
        return World(
            now=self._clock.now(),
            instances=self._instances,
            engines=dict(self._engines),
            balancers=dict(self._targets),
            offerings=self._offerings,
            durable=durable,
            leading=leading,
            epoch=epoch,
        )

    def hurry(self, *, on: bool, draining: Set[str] = frozenset()) -> None:
        """Look at instances and targets at the fast pace while something is starting, leaving or draining.

        Of the nodes in `draining` it is news when they have no request left.
        """
        self._draining = draining
        if on:
            self._hurry.set()
        else:
            self._hurry.clear()

    def tasks(self) -> dict[str, Coroutine[Any, Any, None]]:
        """The root tasks of the observer by name."""
        looks = {
            "watch instances": self._every(self._pace.instances, self._look_at_instances),
            "watch offerings": self._every(self._pace.offerings, self._look_at_offerings, steady=True),
        }
        for balancer in self._balancers_port:
            looks[f"watch {balancer.name}"] = self._every(
                self._pace.targets, partial(self._look_at_targets, balancer)
            )
        return looks

    async def stop(self) -> None:
        """End the probes."""
        for task in self._probes.values():
            task.cancel()
        await asyncio.gather(*self._probes.values(), return_exceptions=True)
        self._probes.clear()

    # -- looks -------------------------------------------------------------------------------------

    async def _every(
        self, seconds: float, look: Callable[[], Awaitable[bool]], *, steady: bool = False
    ) -> None:
        """Look for ever; a look that failed is repeated soon, whatever the pace."""
        while True:
            good = await look()
            await self._pause(seconds if good else min(seconds, _AFTER_FAILURE), steady=steady)

    async def _pause(self, seconds: float, *, steady: bool) -> None:
        """Wait `seconds`, or only the fast pace once there is a hurry."""
        if steady:
            await self._clock.sleep(seconds)
            return
        waited = 0.0
        while waited < seconds:
            step = min(self._pace.hurry, seconds - waited)
            await self._clock.sleep(step)
            waited += step
            if self._hurry.is_set():
                return

    async def _look_at_instances(self) -> bool:
        known = self._instances
        call = partial(self._instances_port.list, self._pool)
        self._instances = await self._look(known, "instances", "list", call)
        if self._instances.at != known.at:
            self._follow_engines(self._instances.value)
        if self._instances.value != known.value or known.at is None:
            self._wake()
        return not self._instances.error

    async def _look_at_offerings(self) -> bool:
        first = self._offerings.at is None
        self._offerings = await self._look(self._offerings, "offerings", "list", self._offerings_port.list)
        if first:
            self._wake()
        return not self._offerings.error

    async def _look_at_targets(self, balancer: LoadBalancer) -> bool:
        known = self._targets[balancer.name]

        async def targets() -> tuple[Target, ...]:
            view = await balancer.observe()
            self.incarnations[balancer.name] = view.incarnation
            return view.targets

        self._targets[balancer.name] = await self._look(known, balancer.name, "read", targets)
        if self._shown(self._targets[balancer.name].value) != self._shown(known.value):
            self._wake()
        return not self._targets[balancer.name].error

    def _shown(self, targets: tuple[Target, ...]) -> Set[tuple[object, ...]]:
        """What of a balancer's view is news when it changes: requests come and go all the time."""
        return {(t.id, t.address, t.state, t.id in self._draining and not t.in_flight) for t in targets}

    async def _look(
        self, known: Observed[T], port: str, operation: str, call: Callable[[], Awaitable[T]]
    ) -> Observed[T]:
        """One look with a deadline; a failure keeps the known value."""
        asked_at = self._clock.now()
        try:
            with counted(self._pool, port, operation):
                async with asyncio.timeout(self._pace.call_timeout):
                    value = await call()
        except TimeoutError:
            return replace(known, error=f"no answer within {self._pace.call_timeout:.0f} s")
        except CloudError as error:
            return replace(known, error=str(error))
        return Observed(value=value, at=asked_at)

    # -- engines -----------------------------------------------------------------------------------

    def _follow_engines(self, instances: tuple[Instance, ...]) -> None:
        """One probing task for each machine that runs and has an address.

        A machine that the list lacks, or shows as it was before it ran, is probed on while it answers: a list
        that omits a node or is old must not look like an engine that fell silent.
        """
        running = {i.id: i.address for i in instances if i.state is InstanceState.RUNNING and i.address}
        ended = {i.id for i in instances if i.state in _NOT_ANSWERING}
        for node in [n for n in self._probes if not self._goes_on(n, running, ended)]:
            task = self._probes.pop(node)
            if task.done() and not task.cancelled():
                log.error("probe.crashed", node=node, error=repr(task.exception()))
            task.cancel()
            self._engines.pop(node, None)
            self._absent_since.pop(node, None)
        for node, address in running.items():
            if node not in self._probes:
                self._addresses[node] = address
                self._probes[node] = asyncio.create_task(self._probe(node, address), name=f"probe {node}")
        self._addresses = {n: a for n, a in self._addresses.items() if n in self._probes}

    def _goes_on(self, node: str, running: Mapping[str, str], ended: Set[str]) -> bool:
        """True when the probing task of a node is still the right one."""
        if self._probes[node].done():
            return False
        if node in running:
            self._absent_since.pop(node, None)
            return running[node] == self._addresses[node]
        if node in ended:
            return False
        since = self._absent_since.setdefault(node, self._clock.now())
        reading = self._engines.get(node)
        return reading is not None and reading.ok and self._clock.now() - since < _FOLLOW_ABSENT

    async def _probe(self, node: str, address: str) -> None:
        while True:
            previous = self._engines.get(node)
            async with self._slots:
                reading = await self._engine.probe(node, address, previous)
            if fault := self._condemned(node):
                reading = _failed(reading, previous, fault)
            self._engines[node] = reading
            if _notable(previous, reading, draining=node in self._draining):
                self._wake()
            await self._clock.sleep(self._pace.engines)


def _failed(reading: EngineReading, previous: EngineReading | None, fault: str) -> EngineReading:
    """The reading of a node that is not well although its engine may answer."""
    since = previous.failing_since if previous is not None else None
    return replace(reading, ok=False, failing_since=since if since is not None else reading.at, failure=fault)


def _notable(before: EngineReading | None, after: EngineReading, *, draining: bool) -> bool:
    """True when a probe saw something that the loop should hear of at once.

    That a node has nothing to do any more is news only of one that drains: in a pool with little traffic
    every other probe would wake the loop.
    """
    if before is None:
        return after.ready or not after.ok
    if (before.ready, before.ok) != (after.ready, after.ok):
        return True
    return draining and (before.in_flight == 0) != (after.in_flight == 0)
