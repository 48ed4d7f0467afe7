"""Looks at every port at its own pace, each look with its own deadline, and keeps the newest of each part.

The loop never waits for a look: it takes a snapshot. A look that fails leaves the last good value in place
with its age and the failure, so that policies see how old their knowledge is.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from cloud.errors import CloudError
from cloud.logger import structlog
from cloud.ports import BalancerView, Clock, Engine, Instances, LoadBalancer, Notices, Offerings
from orchestrator.loop.balancer_call import kept_apart
from orchestrator.loop.gpu_watch import GpuWatch
from orchestrator.metrics.calls import counted
from policies.adapter_use import AdapterMeter, together
from policies.gpu_peers import paced
from policies.held import Held
from policies.model import (
    EVERYWHERE,
    USABLE,
    EngineReading,
    Instance,
    Observed,
    Offering,
    Target,
    TargetState,
    World,
)
from policies.service import Service
from policies.value import replace

log = structlog.get_logger("loop")

T = TypeVar("T")

_AFTER_FAILURE = 1.0
"""Seconds from its beginning after which a look that failed is repeated; each failure in a row doubles them,
up to the pace."""

_GAP = 10.0
"""Seconds without a look, and at least three paces, after which what was seen before is not continued: the
process hung, or could not look. Silence and absence are counted anew from the first look after it."""

_UNREAD = 6.0
"""Seconds at least for which the last answer of a balancer is believed."""

_BEAT = 2.0
"""Seconds between two looks at whether this process has hung."""

_HUNG = 4.0
"""Seconds by which such a look is late when the process was stopped or its host suspended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How often and how patiently to look; seconds. `instances` is the pace for each region."""

    instances: float = 5.0
    offerings: float = 60.0
    targets: float = 2.0
    engines: float = 2.0
    hurry: float = 0.25  # pace of instances and targets while something is on its way
    call_timeout: float = 10.0
    probe_concurrency: int = 64

    @property
    def unread_after(self) -> float:
        """Without an answer for so long, it is not known what a balancer holds: one look may be lost."""
        return max(_UNREAD, 3.0 * self.targets)


class Observer:
    """Keeps the newest view of one pool's world. `run` lists the tasks; `wake` is called on every change.

    `gpus` knows what nodes report of theirs. `sources`: of notices, which are heard elsewhere; only how long
    they have been silent is looked at here.
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
        gpus: GpuWatch | None = None,
        sources: Sequence[Notices] = (),
    ) -> None:
        self._pool, self._clock, self._pace, self._wake = pool, clock, pace, wake
        self.gpus, self._sources = gpus or GpuWatch(clock), sources
        self._instances_port, self._offerings_port, self._engine = instances, offerings, engine
        self._balancers_port = balancers
        self._regions: dict[str, Observed[tuple[Instance, ...]]] = {
            region: Observed(value=()) for region in instances.regions
        }
        self._offerings: dict[str, Observed[tuple[Offering, ...]]] = {
            part: Observed(value=sold) for part, sold in offerings.parts().items()
        }
        self._targets: dict[str, Observed[tuple[Target, ...]]] = {
            b.name: Observed(value=()) for b in balancers
        }
        self._services = {
            b.name: Service(in_path=b.capabilities.in_path, unread_after=pace.unread_after) for b in balancers
        }
        self._meters: dict[str, AdapterMeter] = {b.name: AdapterMeter() for b in balancers}
        self.incarnations: dict[str, str] = {}
        self._engines: dict[str, EngineReading] = {}
        self._probes: dict[str, asyncio.Task[None]] = {}
        self._addresses: dict[str, str] = {}
        self._slots = asyncio.Semaphore(pace.probe_concurrency)
        self._hurry, self._hurry_routes = asyncio.Event(), asyncio.Event()
        self._draining: Set[str] = frozenset()
        self._awake_since = self._beat_at = clock.now()

    def world(self, *, durable: bool, leading: bool, epoch: int) -> World:
        """A snapshot. Costs a copy of small dictionaries, no I/O."""
        now = self._beat()
        return World(
            now=now,
            regions=dict(self._regions),
            engines=dict(self._engines),
            balancers=dict(self._targets),
            services=dict(self._services),
            offerings=dict(self._offerings),
            heard={source.name: _heard_at(now, source.age()) for source in self._sources},
            gpus=self.gpus.states(self._engines, self._kinds()),
            adapter_use=together(self._meters.values(), now),
            durable=durable,
            leading=leading,
            epoch=epoch,
            awake_since=self._awake_since,
        )

    def age(self, region: str) -> float:
        """Seconds since the newest whole list of a region's machines; infinite where there is none."""
        view = self._regions.get(region) or self._regions.get(EVERYWHERE)
        return math.inf if view is None else view.age(self._clock.now())

    def _kinds(self) -> dict[str, object]:
        """What each machine is and runs: those of one kind should be equally fast."""
        lists = (view.value for view in self._regions.values())
        return {i.id: (i.placement.instance_type, i.build) for machines in lists for i in machines}

    def hurry(self, *, on: bool, draining: Set[str] = frozenset(), routes: bool = False) -> None:
        """Look at instances and targets at the fast pace while something is starting, leaving or draining.

        Of the nodes in `draining` it is news when they have no request left. `routes`: look at targets alone
        at that pace, and so at what clients ask for that no node holds.
        """
        self._draining = draining
        for event, wanted in ((self._hurry, on), (self._hurry_routes, on or routes)):
            if wanted:
                event.set()
            else:
                event.clear()

    def tasks(self) -> dict[str, Coroutine[Any, Any, None]]:
        """The root tasks of the observer by name."""
        looks = {"watch over itself": self._keep_awake(), **self.gpus.tasks()}
        for region in self._regions:
            look = partial(self._look_at_instances, region)
            looks[f"watch instances {region}".strip()] = self._every(
                self._pace.instances, look, hurry=self._hurry
            )
        for part in self._offerings:
            look = partial(self._look_at_offerings, part)
            looks[f"watch prices {part}"] = self._every(self._pace.offerings, look)
        for balancer in self._balancers_port:
            look = partial(self._look_at_targets, balancer)
            looks[f"watch {balancer.name}"] = self._every(self._pace.targets, look, hurry=self._hurry_routes)
        return looks

    async def stop(self) -> None:
        """End the probes."""
        for task in self._probes.values():
            task.cancel()
        await asyncio.gather(*self._probes.values(), return_exceptions=True)
        self._probes.clear()

    async def _keep_awake(self) -> None:
        while True:
            self._beat()
            await self._clock.sleep(_BEAT)

    def _beat(self) -> float:
        """The time now; notes when this process did nothing for a while before it."""
        now = self._clock.now()
        if now - self._beat_at > _BEAT + _HUNG:
            log.warning("daemon.hung", seconds=round(now - self._beat_at, 1))
            self._awake_since = now
        self._beat_at = now
        return now

    # -- looks -------------------------------------------------------------------------------------

    async def _every(
        self, seconds: float, look: Callable[[], Awaitable[bool]], *, hurry: asyncio.Event | None = None
    ) -> None:
        """Look for ever; a look that failed is repeated soon, and less soon while it goes on failing."""
        wait = _AFTER_FAILURE
        while True:
            began = self._clock.now()
            if await look():
                wait = _AFTER_FAILURE
                await self._pause(seconds, hurry)
            else:
                took = self._clock.now() - began
                await self._clock.sleep(max(0.0, min(seconds, wait) - took))
                wait *= 2.0

    async def _pause(self, seconds: float, hurry: asyncio.Event | None) -> None:
        """Wait `seconds`, or only the fast pace once there is a hurry."""
        if hurry is None:
            await self._clock.sleep(seconds)
            return
        waited = 0.0
        while waited < seconds:
            step = min(self._pace.hurry, seconds - waited)
            await self._clock.sleep(step)
            waited += step
            if hurry.is_set():
                return

    async def _look_at_instances(self, region: str) -> bool:
        known = self._regions[region]
        call = partial(self._instances_port.list, self._pool, region)
        found = await self._look(known, "instances", "list", call, pace=self._pace.instances)
        self._regions[region] = found
        if found.at != known.at and (found.value != known.value or known.at is None):
            self._wake()
        self._wake_if_turned(known, found)
        return not found.error

    async def _look_at_offerings(self, part: str) -> bool:
        known, problem = self._offerings[part], ""

        async def sold() -> tuple[Offering, ...]:
            nonlocal problem
            found = await self._offerings_port.list(part)
            problem = found.problem
            return found.offerings

        asked_at = self._clock.now()
        view = await self._look(known, "offerings", "list", sold, pace=self._pace.offerings)
        if problem and not view.error:
            since = known.failing_since if known.failing_since is not None else asked_at
            view = replace(view, error=problem, failing_since=since)
        self._offerings[part] = view
        if known.at is None and view.at is not None:
            self._wake()
        self._wake_if_turned(known, view)
        return not view.error

    async def _look_at_targets(self, balancer: LoadBalancer) -> bool:
        known = self._targets[balancer.name]

        async def targets() -> tuple[Target, ...]:
            seen = await kept_apart(balancer.name, "read", balancer.observe())
            self.incarnations[balancer.name] = seen.incarnation
            waited = self._meters[balancer.name].waiting
            meter = self._meters[balancer.name].read(seen.adapters, self._clock.now())
            self._meters[balancer.name] = meter
            if meter.waiting != waited:
                self._wake()
            self._services[balancer.name] = _service(self._services[balancer.name], seen, self._clock.now())
            return seen.targets

        pace = self._pace.targets
        view = await self._look(known, balancer.name, "read", targets, pace=pace)
        self._targets[balancer.name] = _followed(known, view)
        if self._shown(self._targets[balancer.name].value) != self._shown(known.value):
            self._wake()
        self._wake_if_turned(known, view)
        return not view.error

    def _wake_if_turned(self, before: Observed[Any], after: Observed[Any]) -> None:
        """That a part cannot be read any more, or can be again, is news."""
        if before.at is not None and bool(before.error) is not bool(after.error):
            self._wake()

    def _shown(self, targets: tuple[Target, ...]) -> Set[tuple[object, ...]]:
        """What of a balancer's view is news when it changes: requests come and go all the time."""
        return {
            (
                *(t.id, t.address, t.state, t.id in self._draining and not t.in_flight),
                *(t.adapters, _done(t), t.adapters_leaving),
            )
            for t in targets
        }

    async def _look(
        self,
        known: Observed[T],
        port: str,
        operation: str,
        call: Callable[[], Awaitable[T]],
        *,
        pace: float,
    ) -> Observed[T]:
        """One look with a deadline; a failure keeps the known value."""
        asked_at = self._clock.now()
        try:
            with counted(self._pool, port, operation):
                async with asyncio.timeout(self._pace.call_timeout):
                    value = await call()
        except TimeoutError:
            failure = f"no answer within {self._pace.call_timeout:.0f} s"
        except CloudError as error:
            failure = str(error) or type(error).__name__
        else:
            goes_on = known.at is not None and asked_at - known.at <= _gap(pace)
            return Observed(value=value, at=asked_at, since=known.since if goes_on else asked_at)
        since = known.failing_since if known.failing_since is not None else asked_at
        return replace(known, error=failure, failing_since=since)

    # -- engines -----------------------------------------------------------------------------------

    def follow(self, addresses: Mapping[str, str]) -> None:
        """Look at the engines of these nodes, each at its address, and at no others.

        Those are the nodes that memory knows and that may run, whatever a list shows: one that omits a node
        or is old must not look like an engine that fell silent, and before the first list, or where lists
        lack a node, its engine is what can still tell. One of no address is looked at where it was before.
        """
        self.gpus.follow(dict(addresses))
        for node in [n for n in self._probes if not self._goes_on(n, addresses)]:
            task = self._probes.pop(node)
            if task.done() and not task.cancelled():
                log.error("probe.crashed", node=node, error=repr(task.exception()))
            task.cancel()
            self._engines.pop(node, None)
            self._addresses.pop(node)
        for node, address in addresses.items():
            if address and node not in self._probes:
                self._addresses[node] = address
                self._probes[node] = asyncio.create_task(self._probe(node, address), name=f"probe {node}")

    def _goes_on(self, node: str, addresses: Mapping[str, str]) -> bool:
        """True when the probing task of a node is still the right one."""
        return addresses.get(node) in ("", self._addresses[node]) and not self._probes[node].done()

    async def _probe(self, node: str, address: str) -> None:
        while True:
            previous = self._engines.get(node)
            async with self._slots:
                reading = await self._engine.probe(node, address, previous)
            reading = paced(previous, reading)
            if previous is not None and reading.at - previous.at > _gap(self._pace.engines):
                reading = _anew(reading)
            self._engines[node] = reading
            if _notable(previous, reading, draining=node in self._draining):
                self._wake()
            await self._clock.sleep(self._pace.engines)


def _done(target: Target) -> tuple[Held, ...]:
    """Revisions of adapters that get no new requests, and have no others left."""
    rows, seen, found = target.adapters or (), set[str](), list[Held]()
    for held, in_flight in zip(rows, target.adapter_in_flight, strict=False):
        if held.name in seen and not in_flight:
            found.append(held)
        seen.add(held.name)
    return tuple(found)


def _heard_at(now: float, age: float) -> float | None:
    """When a source was last surely read; None before the first time."""
    return None if math.isinf(age) else now - age


def _gap(pace: float) -> float:
    """Seconds between two looks beyond which they do not follow each other."""
    return max(_GAP, 3.0 * pace)


def _anew(reading: EngineReading) -> EngineReading:
    """A reading after a time in which nobody looked: its engine may have answered all the while."""
    return reading if reading.failing_since is None else replace(reading, failing_since=reading.at)


def _followed(
    before: Observed[tuple[Target, ...]], view: Observed[tuple[Target, ...]]
) -> Observed[tuple[Target, ...]]:
    """A view whose unhealthy targets say since when they were, as far as looks followed each other."""
    failing = [t for t in view.value if t.state is TargetState.UNHEALTHY and t.failing_since is None]
    if not failing:
        return view
    known = {t.id: t.failing_since for t in before.value} if view.since == before.since else {}
    since = {t.id: known.get(t.id) or view.at for t in failing}
    value = tuple(replace(t, failing_since=since[t.id]) if t.id in since else t for t in view.value)
    return replace(view, value=value)


def _service(before: Service, seen: BalancerView, now: float) -> Service:
    """How a balancer serves by a new look at it."""
    bare = not any(t.state in USABLE for t in seen.targets)
    since = (before.bare_since if before.bare_since is not None else now) if bare else None
    return replace(
        before,
        bare_since=since,
        refuses=seen.refuses,
        answered=seen.answered,
        failed=seen.failed,
        held=seen.held,
        certificate=seen.certificate,
    )


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
