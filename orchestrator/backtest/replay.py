"""Runs the real decision code against a recorded market on virtual time: fast, without sockets or a journal.

Every turn does what the daemon's loop does, in the same order: events into memory (`reduce`), the world's
changes into memory (`observations.changes`), the fleet, the decision, its records into memory. Calls are
answered at once and their answers are taken up in a further turn at the same instant. Engines are always
healthy, the balancer acknowledges at once, the view of the cloud is always fresh. A node under notice has
requests until the cloud takes it; any other draining node is idle at once.

Time jumps to the next instant at which something can happen: a change of the market that matters, a notice,
a node that becomes ready, the end of a drain, or the next look that the policy itself wants.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from orchestrator.backtest.machines import PROVIDER, Machine, Machines, Timings
from orchestrator.backtest.scenario import Scenario
from orchestrator.backtest.score import WARM_UP, Score, Tally
from orchestrator.backtest.timeline import TimelineRecorder
from orchestrator.loop.loop import records as records_of
from policies import observations
from policies.actions import Action, Launch, Plan, Start, Stop, Terminate
from policies.decide import decide_for
from policies.events import (
    DaemonStarted,
    Event,
    IntentClosed,
    NoticeSeen,
    Outcome,
    PoolConfigured,
    TargetsApplied,
)
from policies.fleet import Fleet
from policies.memory import reduce
from policies.model import (
    EVERYWHERE,
    EngineReading,
    Market,
    Observed,
    Offering,
    Placement,
    Pool,
    Target,
    TargetPhase,
    TargetState,
    World,
)
from policies.records import Memory

BALANCER = "replay"

LOOK = 60.0
"""Seconds between two looks while a policy waits for something only it knows of (a refusal that expires)."""

CALM_LOOK = 600.0
"""Seconds between two looks while the pool is whole and nothing moves."""

COVER_LOOK = 10.0
"""Seconds between two looks while cover is only kept until spot has been ready for long enough."""

_ROUNDS = 256
"""Turns at one instant before the replay says that the policy never comes to rest."""


class ReplayError(Exception):
    """A policy that cannot be replayed: it asks for ever at one instant, or for what does not exist."""


class Policy(Protocol):
    """A decision function with a name. Baselines may keep state of their own; `decide` has none."""

    @property
    def name(self) -> str:
        """What it is called in tables."""

    def decide(self, fleet: Fleet, world: World, memory: Memory) -> Plan:
        """What should be done now."""

    def next_look(self, now: float, fleet: Fleet, plan: Plan, retry: float) -> float:
        """When it wants to look again if nothing happens until then; infinite when it need not.

        `retry` is for those who would try again every minute: the next minute if any zone has room, else the
        next change of the market, since every try would be refused until then. Nothing else may be concluded.
        """


@dataclass(frozen=True, slots=True)
class Decide:
    """The daemon's own decision as a policy. `look` caps every pause, for the test that skipping is sound."""

    name: str
    look: float = CALM_LOOK

    def decide(self, fleet: Fleet, world: World, memory: Memory) -> Plan:
        """The daemon's decision."""
        return decide_for(fleet, world, memory)

    def next_look(self, now: float, fleet: Fleet, plan: Plan, retry: float) -> float:  # noqa: ARG002
        """Soon while something moves or is missing, seldom while the pool is calm. On a grid of time."""
        pool = fleet.pool
        moving = len(fleet.ready) != len(fleet.nodes) - pool.standby.stopped or fleet.launching
        calm = not (plan.actions or plan.deferred or plan.notes or moving)
        mix = fleet.ready_by_market
        calm = calm and mix[Market.SPOT] >= pool.spot_wanted
        step = min(self.look, CALM_LOOK if calm else LOOK)
        if calm and pool.adaptive is None and mix[Market.ON_DEMAND] > pool.on_demand_floor + pool.standby.hot:
            step = min(step, COVER_LOOK)
        return (math.floor(now / step) + 1) * step


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """A finished run: the score, and the share of wanted capacity that took new requests."""

    score: Score
    serving_availability: float


class Replay:
    """One run of a policy against a scenario. Use once."""

    def __init__(
        self,
        scenario: Scenario,
        pool: Pool,
        policy: Policy,
        *,
        timings: Timings | None = None,
        seed: int = 0,
        warm_up: float = WARM_UP,
        watch: Callable[[float, Fleet, Memory, Plan], None] | None = None,
        recorder: TimelineRecorder | None = None,
    ) -> None:
        self._scenario, self._pool, self._policy = scenario, pool, policy
        self._machines = Machines(scenario, timings or Timings(), pool=pool.name, seed=seed)
        self._begin = min(warm_up, scenario.seconds)
        self._watch, self._recorder = watch, recorder
        self.tally = Tally(begin=self._begin, base_price=scenario.on_demand_price)
        self._memory = reduce(
            Memory(), DaemonStarted(at=0.0, epoch=1), PoolConfigured(at=0.0, replicas=pool.replicas)
        )
        self._pending: list[Event] = []
        self._ended: list[Machine] = []
        self._offerings: tuple[Offering, ...] = ()
        self._reprice_at = 0.0
        self._targets: tuple[Target, ...] = ()
        self._held: dict[str, TargetPhase] = {}
        self._generation = 0

    def run(self) -> Outcomes:
        """Play the whole scenario. Raises ReplayError."""
        now, end = 0.0, self._scenario.seconds
        while now < end:
            self._cloud_acts(now)
            fleet, plan = self._settle(now)
            then = min(end, self._next(now, fleet, plan))
            self._count(now, then)
            now = then
        for machine in list(self._machines.alive.values()):
            self._charge(machine, end)
        return Outcomes(score=self.tally.score(), serving_availability=self.tally.serving_availability)

    # -- one instant -----------------------------------------------------------------------------------

    def _cloud_acts(self, now: float) -> None:
        for machine in self._machines.due(now):
            self._charge(machine, now)
            self._machines.end(machine)
            self._ended.append(machine)
            self.tally.preempted(now)
            self.tally.record(f"{now:.3f} preempted {machine.id}")
            if self._recorder is not None:
                self._recorder.lost(now, machine.id, machine.placement.zone)
        for notice in self._machines.draw_losses(now):
            if self._recorder is not None:
                self._recorder.noticed(now, notice.node)
            self._pending.append(NoticeSeen(at=now, notice=notice))

    def _settle(self, now: float) -> tuple[Fleet, Plan]:
        """Turns at one instant until the policy has nothing more to do."""
        for _ in range(_ROUNDS):
            fleet, plan = self._turn(now)
            if not self._pending:
                return fleet, plan
        raise ReplayError(f"{self._policy.name}: still acting at {now:.0f} s after {_ROUNDS} turns")

    def _turn(self, now: float) -> tuple[Fleet, Plan]:
        events, self._pending = self._pending, []
        memory = reduce(self._memory, *events) if events else self._memory
        world = self._world(now)
        if seen := observations.changes(self._pool, world, memory):
            memory = reduce(memory, *seen)
        self._ended = []
        fleet = Fleet.of(self._pool, world, memory)
        if whole := observations.whole(self._pool, world, memory, fleet):
            memory = reduce(memory, *whole)
        plan = self._policy.decide(fleet, world, memory)
        self.tally.steps += 1
        if self._watch is not None:
            self._watch(now, fleet, memory, plan)
        if records := records_of(now, plan.actions):
            memory = reduce(memory, *records)
        self._memory = memory
        if plan.write:
            self._acknowledge(now, plan)
        for action in plan.actions:
            self._perform(now, action)
        return fleet, plan

    def _world(self, now: float) -> World:
        machines = self._machines
        alive = [*machines.alive.values(), *self._ended]
        readings = {}
        for machine in machines.alive.values():
            if machine.running:
                readings[machine.id] = self._reading(now, machine)
        return World(
            now=now,
            regions={EVERYWHERE: Observed(value=tuple(machines.described(now, m) for m in alive), at=now)},
            engines=readings,
            balancers={BALANCER: Observed(value=self._targets, at=now)},
            offerings={PROVIDER: Observed(value=self._prices(now), at=now)},
            epoch=1,
        )

    def _reading(self, now: float, machine: Machine) -> EngineReading:
        ready = now >= machine.ready_at
        noticed = machine.taken_at < math.inf
        return EngineReading(
            node=machine.id, at=now, ready=ready, ok=ready, running=1 if ready and noticed else 0
        )

    def _prices(self, now: float) -> tuple[Offering, ...]:
        if now >= self._reprice_at:
            self._reprice_at = self._scenario.next_change(now)
            found = []
            for tape in self._scenario.tapes:
                for market in Market:
                    price = tape.price(now) if market is Market.SPOT else tape.on_demand_price
                    place = Placement(PROVIDER, tape.region, tape.zone, self._scenario.instance_type, market)
                    found.append(Offering(placement=place, price=price))
            if tuple(found) != self._offerings:
                self._offerings = tuple(found)
        return self._offerings

    # -- what a plan does ------------------------------------------------------------------------------

    def _acknowledge(self, now: float, plan: Plan) -> None:
        wanted = {t.id: t.phase for t in plan.targets}
        changes: list[tuple[str, TargetPhase | None]] = [
            (node, phase) for node, phase in wanted.items() if self._held.get(node) is not phase
        ]
        changes += [(node, None) for node in self._held if node not in wanted]
        self._held = wanted
        self._generation += 1
        self._targets = tuple(
            Target(
                id=t.id,
                address=t.address,
                state=TargetState.DRAINING if t.phase is TargetPhase.DRAINING else TargetState.HEALTHY,
                in_flight=0,
            )
            for t in plan.targets
        )
        self._pending.append(
            TargetsApplied(at=now, balancer=BALANCER, generation=self._generation, changes=tuple(changes))
        )

    def _perform(self, now: float, action: Action) -> None:
        outcome, node = Outcome.DONE, getattr(action, "node", "")
        match action:
            case Launch():
                machine = self._machines.launch(now, action.token, action.placement, action.standby)
                place = f"{action.placement.market} {action.placement.zone}"
                if machine is None:
                    outcome = Outcome.REFUSED
                    self.tally.record(f"{now:.3f} refused {place}")
                    if self._recorder is not None:
                        self._recorder.refused(action.placement.zone)
                else:
                    node = machine.id
                    self.tally.launched(now, spot=machine.spot)
                    self.tally.record(f"{now:.3f} launch {node} {place}")
            case Terminate():
                if machine := self._machines.alive.get(action.node):
                    self._charge(machine, now)
                    self._machines.end(machine)
                    self._ended.append(machine)
                    self.tally.record(f"{now:.3f} terminate {node}")
            case Stop():
                if machine := self._machines.alive.get(action.node):
                    self._charge(machine, now)
                    self._machines.stop(machine)
                    self.tally.record(f"{now:.3f} stop {node}")
            case Start():
                if machine := self._machines.alive.get(action.node):
                    self._charge(machine, now)
                    self._machines.start(now, machine)
                    self.tally.record(f"{now:.3f} start {node}")
            case _:
                return
        self._pending.append(IntentClosed(at=now, token=action.token, outcome=outcome, node=node))

    # -- time and money --------------------------------------------------------------------------------

    def _next(self, now: float, fleet: Fleet, plan: Plan) -> float:
        retry = self._scenario.next_change(now)
        if any(self._machines.held[t.zone] < t.capacity(now) for t in self._scenario.tapes):
            retry = min(retry, now + LOOK)
        found = min(self._machines.next_event(now), self._policy.next_look(now, fleet, plan, retry))
        for record in self._memory.nodes.values():
            if record.drain is not None:
                idle = record.idle_since
                settled = math.inf if idle is None else idle + self._pool.drain.settle
                found = min([found, *(t for t in (settled, record.drain.deadline) if t > now)])
        return max(found, math.nextafter(now, math.inf))

    def _count(self, begin: float, end: float) -> None:
        spot = on_demand = serving = 0
        for machine in self._machines.alive.values():
            if machine.ready_at > begin or machine.standby is not None:
                continue
            record = self._memory.nodes.get(machine.id)
            drain = record.drain if record is not None else None
            serving += drain is None
            if drain is not None and machine.taken_at == math.inf:
                continue
            spot += machine.spot
            on_demand += not machine.spot
        wanted = self._pool.replicas
        self.tally.ready(begin, end, spot=spot, on_demand=on_demand, wanted=wanted, serving=serving)
        if self._recorder is not None and end > self._begin:
            begin = max(begin, self._begin)
            dollars = sum(self._machines.dollars(m, begin, end) for m in self._machines.alive.values())
            self._recorder.span(begin, end, spot=spot, on_demand=on_demand, dollars=dollars)

    def _charge(self, machine: Machine, until: float) -> None:
        begin = max(machine.billed_from, self._begin)
        self.tally.charge(self._machines.dollars(machine, begin, until))
        machine.billed_from = until


def replay(
    scenario: Scenario,
    pool: Pool,
    policy: Policy,
    *,
    timings: Timings | None = None,
    seed: int = 0,
    warm_up: float = WARM_UP,
) -> Outcomes:
    """Run a policy against a scenario and score it. The same arguments give the same result anywhere."""
    return Replay(scenario, pool, policy, timings=timings, seed=seed, warm_up=warm_up).run()
