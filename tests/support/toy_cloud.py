"""A toy cloud for the policies: dictionaries that carry out plans, break on request and count for themselves.

`ToyCloud` owns the truth (machines, engines, capacity, the target set); the policies see it through a `World`
that may lag, miss parts or lie by omission. Everything that happens is an event in `journal`, so a run can be
replayed. Nothing here computes what a policy computes. Tests take `toy_checks.CheckedCloud`, which looks at
every turn whether the invariants hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from policies import gpu_health, observations, outdated
from policies.actions import Drain, Launch, Plan, Start, Stop, Terminate, Undrain
from policies.budget import ask_of, in_effect
from policies.decide import decide
from policies.events import (
    DaemonStarted,
    DrainEnded,
    DrainStarted,
    Event,
    IntentClosed,
    NoticeSeen,
    OperatorDrained,
    OperatorUndrained,
    Outcome,
    Paused,
    PoolConfigured,
    Resumed,
    TargetsApplied,
)
from policies.fleet import Fleet
from policies.gpu_readings import GpuState
from policies.grant import Ask, Grant
from policies.memory import reduce
from policies.model import (
    Confidence,
    EngineReading,
    Instance,
    InstanceState,
    Market,
    Notice,
    NoticeKind,
    Observed,
    Offering,
    Placement,
    Pool,
    Target,
    TargetPhase,
    TargetSpec,
    TargetState,
    World,
)
from policies.records import Memory
from tests.support.toy_pools import ENDED, opened, place, quick_pool


@dataclass
class Machine:
    """The truth about one machine; `ready_at`: when its engine answers, `dies_at`: when it is taken."""

    instance: Instance
    ready_at: float
    dead_engine: bool = False
    dies_at: float | None = None
    ended_at: float | None = None
    failing_since: float | None = None
    running: int = 0
    started_once: bool = False

    @property
    def alive(self) -> bool:
        return self.instance.state not in ENDED

    @property
    def spot(self) -> bool:
        return self.instance.placement.market is Market.SPOT


@dataclass
class Turn:
    """What one turn saw and decided, enough to decide it again."""

    pool: Pool
    world: World
    memory: Memory
    plan: Plan
    events_before: int


Check = Callable[["ToyCloud", Turn], None]
"""Looks at one turn before it is carried out, and raises AssertionError."""


@dataclass
class ToyCloud:
    """One pool and its world. `step` seconds pass between turns; `kinds` are the prices of its types, as
    multiples of `prices`."""

    pool: Pool = field(default_factory=quick_pool)
    boot: float = 20.0
    step: float = 2.0
    zones: tuple[str, ...] = ("a", "b", "c")
    prices: dict[Market, float] = field(default_factory=lambda: {Market.SPOT: 1.0, Market.ON_DEMAND: 3.0})
    kinds: dict[str, float] = field(default_factory=lambda: {"gpu": 1.0})
    now: float = 1000.0
    epoch: int = 1
    memory: Memory = field(default_factory=Memory)
    machines: dict[str, Machine] = field(default_factory=dict)
    by_token: dict[str, str] = field(default_factory=dict)
    capacity: dict[Placement, int] = field(default_factory=dict)
    journal: list[Event] = field(default_factory=list)
    arriving: list[Event] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    targets: dict[str, TargetSpec] = field(default_factory=dict)
    balancer_works: bool = True
    list_works: bool = True
    list_lag: float = 0.0
    losing_answers: bool = False  # calls take effect and their answers get lost
    failing_calls: bool = False  # calls do nothing and say so
    leading: bool = True
    durable: bool = True
    silent_since: float | None = None  # the database does not answer, and the lease has run out
    probing: bool = True
    record: bool = False
    checks: list[Check] = field(default_factory=list)
    listed: list[tuple[float, tuple[Instance, ...]]] = field(default_factory=list)
    listed_at: float | None = None
    listed_value: tuple[Instance, ...] = ()
    gpus: dict[str, GpuState] = field(default_factory=dict)
    awake_since: float = 0.0
    count: int = 0
    share: Callable[[Ask], Grant | None] = lambda _: None  # what it gets of a budget
    cut: int = 0  # machines that we ended while they held requests

    def __post_init__(self) -> None:
        self.happen(
            DaemonStarted(at=self.now, epoch=self.epoch),
            self._configured(),
        )

    def _configured(self) -> PoolConfigured:
        return PoolConfigured(
            at=self.now, replicas=self.pool.replicas, adapters=self.pool.adapters.started_with
        )

    # -- what tests do to it -----------------------------------------------------------------------

    def happen(self, *events: Event) -> None:
        """Journal events and take them into memory at once."""
        self.journal.extend(events)
        self.memory = reduce(self.memory, *events)

    def configure(self, **changes: Any) -> None:
        """Change the wanted state, as a reload does."""
        self.pool = replace(self.pool, **changes)
        self.happen(self._configured())

    def restart(self) -> None:
        """Kill the daemon and start another one on the same journal."""
        self.epoch += 1
        self.arriving.clear()
        self.listed_at, self.listed_value = None, ()
        for machine in self.machines.values():
            machine.failing_since = None
        self.happen(
            DaemonStarted(at=self.now, epoch=self.epoch),
            self._configured(),
        )

    def set_capacity(self, market: Market, count: int, zones: Iterable[str] = ()) -> None:
        """How many machines of a market each zone sells."""
        for zone in zones or self.zones:
            for kind in self.kinds:
                self.capacity[place(zone, market, kind)] = count

    def notice(
        self,
        node: str,
        lead: float | None = 120.0,
        *,
        kind: NoticeKind = NoticeKind.INTERRUPTION,
        confidence: Confidence = Confidence.CONFIRMED,
        source: str = "feed",
        notice_id: str = "",
        cancelled: bool = False,
    ) -> Notice:
        """Say that a node goes away in `lead` seconds; the truth does not change."""
        said = Notice(
            id=notice_id or f"n-{node}-{kind}",
            kind=kind,
            node=node,
            deadline=None if lead is None else self.now + lead,
            source=source,
            confidence=confidence,
            seen_at=self.now,
            cancelled=cancelled,
        )
        self.arriving.append(NoticeSeen(at=self.now, notice=said))
        return said

    def reclaim(self, node: str, lead: float = 120.0, *, told: bool = True) -> None:
        """Take a machine away in `lead` seconds, with notice or without."""
        machine = self.machines[node]
        machine.dies_at = min(machine.dies_at or self.now + lead, self.now + lead)
        if told:
            self.notice(node, machine.dies_at - self.now)

    def kill_engine(self, node: str) -> None:
        """The engine stops answering for good; the machine stays."""
        self.machines[node].dead_engine = True

    def operator_drain(self, node: str, budget: float = 10.0) -> None:
        self.arriving.append(OperatorDrained(at=self.now, node=node, budget=budget, reason="asked"))

    def operator_undrain(self, node: str) -> None:
        self.arriving.append(OperatorUndrained(at=self.now, node=node, reason="asked"))

    def pause(self) -> None:
        self.arriving.append(Paused(at=self.now, by="op", reason="test", until=None))

    def resume(self) -> None:
        self.arriving.append(Resumed(at=self.now, by="op"))

    def load(self, requests: int) -> None:
        """Every engine holds this many requests until told otherwise."""
        for machine in self.machines.values():
            machine.running = requests

    # -- what tests ask of it ----------------------------------------------------------------------

    def alive(self, market: Market | None = None) -> list[str]:
        """Machines that have not ended."""
        return [
            i
            for i, m in self.machines.items()
            if m.alive and (market is None or m.instance.placement.market is market)
        ]

    def answering(self, market: Market | None = None) -> list[str]:
        """Running machines whose engine answers."""
        return [
            i
            for i in self.alive(market)
            if self.machines[i].instance.state is InstanceState.RUNNING
            and self.now >= self.machines[i].ready_at
            and not self.machines[i].dead_engine
        ]

    def units(self, nodes: Iterable[str]) -> int:
        """The units that machines serve."""
        return sum(self.pool.units_of(self.machines[n].instance.placement) for n in nodes)

    def active(self) -> list[str]:
        """Nodes that the balancer sends new requests to."""
        return sorted(i for i, t in self.targets.items() if t.phase is TargetPhase.ACTIVE)

    def fleet(self) -> Fleet:
        """What the policies make of the last world."""
        return Fleet.of(self.pool, self.turns[-1].world, self.memory)

    def zone(self, zone: str, market: Market = Market.SPOT) -> list[str]:
        """Living machines of a zone."""
        return [i for i in self.alive(market) if self.machines[i].instance.placement.zone == zone]

    # -- time --------------------------------------------------------------------------------------

    def turn(self) -> Plan:
        """One turn of the daemon, then `step` seconds pass."""
        heard, self.arriving = self.arriving, []
        self.happen(*heard)
        world = self._world()
        self.happen(*observations.changes(self.pool, world, self.memory))
        fleet = Fleet.of(self.pool, world, self.memory)
        self.happen(*observations.whole(self.pool, world, self.memory, fleet))
        self.happen(*gpu_health.news(self.pool, world, fleet, self.memory))
        self.happen(*outdated.news(self.pool, world, fleet, self.memory))
        world = replace(world, grant=self.share(ask_of(fleet, world, self.memory)))
        plan = decide(self.pool, world, self.memory)
        turn = Turn(in_effect(self.pool, world.grant), world, self.memory, plan, len(self.journal))
        if not self.record:
            self.turns.clear()
        self.turns.append(turn)
        for check in self.checks:
            check(self, turn)
        self._carry_out(plan)
        self._pass_time()
        return plan

    def run(self, seconds: float) -> list[Plan]:
        """Turns for a while."""
        return [self.turn() for _ in range(max(1, round(seconds / self.step)))]

    def settle(self, seconds: float = 600.0, *, quiet: int = 5) -> None:
        """Turns until nothing was done for `quiet` turns, at most `seconds`."""
        still = 0
        for _ in range(max(1, round(seconds / self.step))):
            plan = self.turn()
            still = 0 if plan.actions or plan.write or self.arriving else still + 1
            if still >= quiet and self.units(self.answering()) >= self.pool.replicas:
                return

    # -- the machinery -----------------------------------------------------------------------------

    def _world(self) -> World:
        self.listed.append((self.now, tuple(m.instance for m in self.machines.values())))
        error = "" if self.list_works else "no answer"
        if self.list_works:
            fitting = [entry for entry in self.listed if entry[0] <= self.now - self.list_lag]
            if fitting:
                self.listed_value = fitting[-1][1]
                self.listed_at = self.now
                self.listed = self.listed[self.listed.index(fitting[-1]) :]
        shown = tuple(
            Target(
                id=t.id,
                address=t.address,
                state=self._target_state(t),
                in_flight=self.machines[t.id].running if t.id in self.machines else 0,
            )
            for t in self.targets.values()
        )
        offerings = tuple(
            Offering(placement=place(zone, market, kind), price=self.prices[market] * factor)
            for market in Market
            for zone in self.zones
            for kind, factor in self.kinds.items()
        )
        return World(
            now=self.now,
            regions={"": Observed(value=self.listed_value, at=self.listed_at, error=error)},
            engines=self._readings(),
            balancers={"gw": Observed(value=shown, at=self.now)},
            offerings={"sim": Observed(value=offerings, at=self.now)},
            gpus={node: state for node, state in self.gpus.items() if node in self.memory.nodes},
            awake_since=self.awake_since,
            durable=self.durable and self.silent_since is None,
            leading=self.leading and self.silent_since is None,
            failsafe_since=self.silent_since,
            epoch=self.epoch,
        )

    def _target_state(self, target: TargetSpec) -> TargetState:
        """What a balancer that never notices a dead engine makes of a target; a stopped machine it does."""
        if target.phase is TargetPhase.DRAINING:
            return TargetState.DRAINING
        machine = self.machines.get(target.id)
        stopped = machine is not None and machine.instance.state is InstanceState.STOPPED
        return TargetState.UNHEALTHY if stopped else TargetState.HEALTHY

    def _readings(self) -> dict[str, EngineReading]:
        found: dict[str, EngineReading] = {}
        if not self.probing:
            return found
        for instance in self.listed_value:
            machine = self.machines.get(instance.id)
            if machine is None or instance.state is not InstanceState.RUNNING:
                continue
            running = machine.instance.state is InstanceState.RUNNING
            ok = running and self.now >= machine.ready_at and not machine.dead_engine
            if ok:
                machine.failing_since = None
                machine.started_once = True
            elif machine.failing_since is None:
                machine.failing_since = self.now
            found[instance.id] = EngineReading(
                node=instance.id,
                at=self.now,
                ready=ok,
                ok=ok,
                failing_since=machine.failing_since,
                running=machine.running if ok else 0,
                failure="" if ok else "connection refused",
            )
        return found

    def _carry_out(self, plan: Plan) -> None:
        closed: list[Event] = []
        for action in plan.actions:
            match action:
                case Drain():
                    self.happen(
                        DrainStarted(
                            at=self.now,
                            node=action.node,
                            deadline=action.deadline,
                            cause=action.cause,
                            reason=action.reason,
                        )
                    )
                case Undrain():
                    self.happen(DrainEnded(at=self.now, node=action.node, reason=action.reason))
                case Launch() | Start() | Stop() | Terminate():
                    self.happen(opened(self.now, action))
                    closed.append(self._call(action))
        if plan.write and self.balancer_works:
            want = {t.id: t for t in plan.targets}
            if self.silent_since is not None:
                going = {i: t for i, t in want.items() if t.phase is TargetPhase.DRAINING}
                want = {i: going.get(i, t) for i, t in self.targets.items()}
            changes: list[tuple[str, TargetPhase | None]] = [
                (i, t.phase)
                for i, t in want.items()
                if i not in self.targets or self.targets[i].phase is not t.phase
            ]
            if "gw" not in self.memory.applied_at and self.silent_since is not None:
                self.targets = want
                self.arriving.extend(closed)
                return
            if "gw" not in self.memory.applied_at:  # a new daemon's first write names the whole set
                changes = [(i, t.phase) for i, t in want.items()]
            changes += [(i, None) for i in self.targets if i not in want]
            self.targets = want
            self.arriving.append(
                TargetsApplied(at=self.now, balancer="gw", generation=1, changes=tuple(changes))
            )
        self.arriving.extend(closed)

    def _call(self, action: Launch | Start | Stop | Terminate) -> IntentClosed:
        node = getattr(action, "node", "")
        if self.failing_calls:
            return IntentClosed(at=self.now, token=action.token, outcome=Outcome.FAILED, node=node)
        outcome = Outcome.DONE
        match action:
            case Launch():
                outcome, node = self._launch(action)
            case Terminate():
                self._end(node)
            case Stop():
                self._set(node, InstanceState.STOPPED)
            case Start():
                machine = self.machines[node]
                if machine.alive and self._full(machine.instance.placement):
                    outcome = Outcome.REFUSED
                elif machine.alive:
                    self._set(node, InstanceState.RUNNING)
                    machine.ready_at = self.now + self.boot / 4
                    machine.failing_since = None
        if self.losing_answers:
            return IntentClosed(at=self.now, token=action.token, outcome=Outcome.UNCERTAIN)
        return IntentClosed(at=self.now, token=action.token, outcome=outcome, node=node)

    def _full(self, placement: Placement) -> bool:
        held = sum(
            m.instance.placement == placement and m.instance.state is InstanceState.RUNNING
            for m in self.machines.values()
        )
        return held >= self.capacity.get(placement, 100)

    def _launch(self, action: Launch) -> tuple[Outcome, str]:
        known = self.by_token.get(action.token)
        if known is not None:
            return (Outcome.DONE if self.machines[known].alive else Outcome.DIED), known
        if self._full(action.placement):
            return Outcome.REFUSED, ""
        self.count += 1
        node = f"i{self.count:04d}"
        self.by_token[action.token] = node
        self.machines[node] = Machine(
            Instance(
                id=node,
                pool=self.pool.name,
                token=action.token,
                placement=action.placement,
                state=InstanceState.RUNNING,
                address=f"10.0.0.{self.count}:8000",
                launched_at=self.now,
                price=action.price,
                standby=action.standby,
            ),
            ready_at=self.now + self.boot,
        )
        return Outcome.DONE, node

    def _set(self, node: str, state: InstanceState) -> None:
        machine = self.machines[node]
        if machine.alive:
            machine.instance = replace(machine.instance, state=state)

    def _end(self, node: str) -> None:
        machine = self.machines[node]
        if machine.alive:
            self.cut += machine.running > 0 and node in self.answering()
            machine.instance = replace(machine.instance, state=InstanceState.SHUTTING_DOWN)
            machine.ended_at = self.now

    def _pass_time(self) -> None:
        self.now += self.step
        for machine in self.machines.values():
            if machine.dies_at is not None and self.now >= machine.dies_at and machine.alive:
                machine.instance = replace(machine.instance, state=InstanceState.SHUTTING_DOWN)
                machine.ended_at = self.now
            if machine.ended_at is not None and self.now >= machine.ended_at + 4.0:
                machine.instance = replace(machine.instance, state=InstanceState.TERMINATED)
        for node in [
            i
            for i, m in self.machines.items()
            if m.ended_at is not None and self.now > m.ended_at + 300.0 and i not in self.memory.nodes
        ]:
            del self.machines[node]
