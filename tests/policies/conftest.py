"""A toy cloud for the policies: dictionaries that carry out plans, break on request and count for themselves.

`ToyCloud` owns the truth (machines, engines, capacity, the target set); the policies see it through a `World`
that may lag, miss parts or lie by omission. Everything that happens is an event in `journal`, so a run can be
replayed. Nothing here computes what a policy computes: the checks count machines, not fleets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from policies import facts, gpu_health, outdated
from policies.actions import ActionKind, Alarm, Cause, Drain, Launch, Plan, Start, Stop, Terminate, Undrain
from policies.budget import ask_of, in_effect
from policies.decide import decide
from policies.events import (
    DaemonStarted,
    DrainEnded,
    DrainStarted,
    Event,
    IntentClosed,
    IntentOpened,
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
from policies.interruption import doom
from policies.memory import reduce
from policies.model import (
    Confidence,
    DrainRules,
    EngineReading,
    HealthRules,
    Instance,
    InstanceState,
    Limits,
    Market,
    Notice,
    NoticeKind,
    Observed,
    Offering,
    Patience,
    Placement,
    PlacementRules,
    Pool,
    ReturnRules,
    Target,
    TargetPhase,
    TargetSpec,
    TargetState,
    World,
)
from policies.records import DrainRecord, Intent, LastPrice, Memory, NodeRecord
from policies.turn import Turn as DecisionTurn

ENDED = (InstanceState.SHUTTING_DOWN, InstanceState.TERMINATED)


def place(zone: str = "a", market: Market = Market.SPOT, kind: str = "gpu") -> Placement:
    """A placement of the toy region."""
    return Placement("toy", "r", zone, kind, market)


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


@dataclass
class ToyCloud:
    """One pool and its world. `step` seconds pass between turns; `kinds` are the prices of its types, as
    multiples of `prices`."""

    pool: Pool
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
    checks: list[Callable[[ToyCloud, Turn], None]] = field(default_factory=list)
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
        self.happen(*facts.changes(self.pool, world, self.memory))
        fleet = Fleet.of(self.pool, world, self.memory)
        self.happen(*facts.whole(self.pool, world, self.memory, fleet))
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
        found = {}
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


def opened(now: float, action: Launch | Start | Stop | Terminate) -> IntentOpened:
    """The journal's record of an action that calls the world."""
    return IntentOpened(
        at=now,
        token=action.token,
        kind=action.kind,
        node=getattr(action, "node", ""),
        placement=getattr(action, "placement", None),
        standby=getattr(action, "standby", None),
        replaces=getattr(action, "replaces", ""),
        price=getattr(action, "price", 0.0),
        cause=getattr(action, "cause", None),
        reason=action.reason,
    )


def quick_pool(replicas: int = 10, **changes: Any) -> Pool:
    """A pool whose waits are short, so that a run of minutes shows what takes hours."""
    rules: dict[str, Any] = {
        "name": "p",
        "replicas": replicas,
        "drain": DrainRules(budget=10.0, margin=2.0, settle=1.0),
        "back_to_spot": ReturnRules(hold=30.0, stable=10.0, at_once=2),
        "health": HealthRules(unhealthy_after=4.0, replace_after=10.0, boot_timeout=120.0),
        "placement": PlacementRules(refusal_half_life=15.0, reclaim_half_life=60.0),
        "limits": Limits(surge=2, launches_per_minute=60),
        "patience": Patience(stale_after=20.0, vanish_grace=10.0, effect_timeout=10.0),
    }
    return Pool(**{**rules, **changes})


# -- invariants, counted on the truth (DESIGN section 5) ------------------------------------------------


def taken(memory: Memory, node: str, *, sure: bool) -> bool:
    """A notice that can apply says that the node goes; `sure`: the cloud itself says so."""
    record = memory.nodes[node]
    spot = record.placement.market is Market.SPOT
    return any(
        not n.cancelled
        and n.kind is not NoticeKind.REBALANCE
        and (spot or n.kind not in (NoticeKind.INTERRUPTION, NoticeKind.STOP))
        and (not sure or n.confidence is Confidence.CONFIRMED)
        for n in record.notices
    )


def ending(memory: Memory, node: str) -> bool:
    """We asked the cloud to end it."""
    return f"{node}:terminate" in memory.intents


def check_bounds(toy: ToyCloud, turn: Turn) -> None:
    """Never more units than wanted + standby + surge (but for the rest of the last node), never more than the
    spend cap, one machine a token."""
    plan, memory = turn.plan, turn.memory
    added = [a for a in plan.actions if isinstance(a, Launch) and a.token not in memory.intents]
    starting = {a.node for a in plan.actions if isinstance(a, Start)}
    cap = turn.pool.limits.spend_per_hour
    if added:
        leaving = {a.node for a in plan.actions if isinstance(a, Drain | Terminate)}
        back = {a.node for a in plan.actions if isinstance(a, Undrain)}
        gone = {i.id for i in turn.world.instances if i.state in ENDED}
        staying = [
            i
            for i, r in memory.nodes.items()
            if i in back
            or not (r.drain or i in leaving or i in gone or ending(memory, i) or taken(memory, i, sure=False))
        ]
        unseen = [i for i in memory.intents.values() if i.kind == "launch"]
        units = turn.pool.units_of
        fresh = [units(a.placement) for a in added]
        living = sum(units(memory.nodes[i].placement) for i in staying)
        living += sum(units(i.placement) for i in unseen) + sum(fresh)
        assert living - max(fresh) < turn.pool.most_units, plan.actions
        tokens = [a.token for a in added]
        assert len(set(tokens)) == len(tokens)
        assert not set(tokens) & set(toy.by_token), "a token was used for a second intent"
    if cap is not None and (added or starting):
        spend = sum(m.instance.price for m in toy.machines.values() if m.alive and bills(m, starting))
        unmet = [i for i in memory.intents.values() if i.kind == "launch" and i.token not in toy.by_token]
        assert spend + sum(i.price for i in unmet) + sum(a.price for a in added) <= cap + 1e-6
    machines = [m.instance.token for m in toy.machines.values()]
    assert len(set(machines)) == len(machines), "two machines for one token"


def bills(machine: Machine, starting: set[str]) -> bool:
    return machine.instance.state is not InstanceState.STOPPED or machine.instance.id in starting


def check_no_self_harm(toy: ToyCloud, turn: Turn) -> None:
    """What we choose to do leaves wanted ready nodes and the floor, and ends nothing that works."""
    plan, memory = turn.plan, turn.memory
    leaves = [a for a in plan.actions if isinstance(a, Drain | Terminate)]
    chosen = {a.node for a in leaves if a.cause.voluntary}
    going = {a.node for a in leaves} | {a.node for a in plan.actions if isinstance(a, Stop)}
    back = {a.node for a in plan.actions if isinstance(a, Undrain)}

    def stays(node: str) -> bool:
        record = memory.nodes.get(node)
        if record is None or record.operator is not None or record.standby is not None:
            return False
        draining = record.drain is not None and node not in back
        return not (draining or ending(memory, node) or taken(memory, node, sure=True))

    working = {i for i, r in turn.world.engines.items() if r.ready and r.ok and stays(i)}
    if chosen & working:
        assert toy.units(working - going) >= turn.pool.replicas, (plan.actions, sorted(working))
        on_demand = {i for i in working if not toy.machines[i].spot}
        if chosen & on_demand:
            assert toy.units(on_demand - going) >= turn.pool.on_demand_floor
    for action in leaves:
        ended = isinstance(action, Terminate) and action.node in working
        assert not ended, f"{action.node} works and would be ended: {action}"
    workers = {i for i in toy.answering() if i in memory.nodes and memory.nodes[i].standby is None}
    fresh = [a for a in leaves if isinstance(a, Drain) and a.cause.by_choice and a.node in workers]
    draining = [
        i
        for i, r in memory.nodes.items()
        if r.drain is not None
        and r.drain.cause.by_choice
        and i in workers
        and i not in back
        and not ending(memory, i)
        and not taken(memory, i, sure=False)
    ]
    disturbed = [*draining, *(a.node for a in fresh)]
    if fresh and len(disturbed) > 1:
        assert toy.units(disturbed) <= turn.pool.disruption_budget, (draining, fresh)


def check_forgery(toy: ToyCloud, turn: Turn) -> None:
    """Reports that the cloud does not confirm drain no more working units than the disruption budget."""
    memory = turn.memory
    drains = {a.node for a in turn.plan.actions if isinstance(a, Drain) and a.cause is Cause.NOTICE}
    drains |= {i for i, r in memory.nodes.items() if r.drain is not None and r.drain.cause is Cause.NOTICE}
    drains -= {a.node for a in turn.plan.actions if isinstance(a, Undrain)}
    reported = {
        i
        for i in drains
        if taken(memory, i, sure=False)
        and not taken(memory, i, sure=True)
        and not ending(memory, i)
        and (i in turn.world.engines and turn.world.engines[i].ok)
    }
    fresh = {a.node for a in turn.plan.actions if isinstance(a, Drain)} & reported
    if fresh and len(reported) > 1:
        assert toy.units(reported) <= turn.pool.disruption_budget, reported


def check_targets(toy: ToyCloud, turn: Turn) -> None:
    """Targets: never a dead node, never a draining one while others serve, never nobody by choice."""
    listed = {i.id: i.state for i in turn.world.instances}
    draining = {r.id for r in turn.memory.nodes.values() if r.drain is not None}
    draining |= {a.node for a in turn.plan.actions if isinstance(a, Drain)}
    draining -= {a.node for a in turn.plan.actions if isinstance(a, Undrain)}
    active = {t.id for t in turn.plan.targets if t.phase is TargetPhase.ACTIVE}
    for spec in turn.plan.targets:
        if turn.world.regions[""].at is not None:
            assert listed.get(spec.id) not in ENDED, f"{spec.id} has ended and is a target"
    if active - draining and turn.world.failsafe_since is None:
        assert not active & draining, "a draining node would get new requests"
    answering = {i for i in toy.active() if i in toy.answering() and listed.get(i) not in ENDED}
    ended = {i for i in turn.memory.nodes if ending(turn.memory, i)}
    if turn.plan.write and answering - ended and turn.pool.replicas:
        assert active, "the last target that can answer would be taken out"


def check_sound(_toy: ToyCloud, turn: Turn) -> None:
    """The production check agrees, and nothing raised."""
    broken = [a for a in turn.plan.actions if isinstance(a, Alarm) and a.name == "InvariantViolated"]
    assert not broken, broken


def check_authority(_toy: ToyCloud, turn: Turn) -> None:
    """Nothing that costs money or ends a node without lease, journal, or a look at the whole cloud."""
    calls = [a for a in turn.plan.actions if isinstance(a, Launch | Start | Stop | Terminate)]
    if calls:
        assert turn.world.leading
        assert turn.world.durable
        assert turn.world.regions[""].at is not None
        assert turn.memory.pause is None
    if not (turn.world.leading or turn.world.failsafe_since is not None):
        assert not turn.plan.write


def check_failsafe(toy: ToyCloud, turn: Turn) -> None:
    """Beyond the lease no target enters, and none leaves without a notice that is believed."""
    if turn.world.failsafe_since is None:
        return
    doomed = doom(turn.pool, turn.world, turn.memory)
    healthy = {t.id for t in turn.world.balancers["gw"].value if t.state is TargetState.HEALTHY}
    out = {t.id for t in turn.plan.targets if t.phase is TargetPhase.DRAINING}
    assert out <= doomed.keys(), "a target would leave without a notice"
    assert {t.id for t in turn.plan.targets} <= {*toy.targets, *turn.memory.targets.get("gw", {})}
    assert not turn.plan.write or not healthy or healthy - out, "the last healthy target would leave"


# -- one instant, by hand ------------------------------------------------------------------------------


class Scene:
    """One instant of a pool, written down node by node. `now` is 10,000 s."""

    def __init__(self, pool: Pool | None = None, **memory: Any) -> None:
        self.pool = pool if pool is not None else Pool(name="p", replicas=4)
        self.now = 10_000.0
        self.records: dict[str, NodeRecord] = {}
        self.instances: dict[str, Instance] = {}
        self.engines: dict[str, EngineReading] = {}
        self.held: dict[str, TargetPhase] = {}
        self.shown: dict[str, Target] = {}
        self.offerings = [
            Offering(placement=place(zone, market), price=1.0 if market is Market.SPOT else 3.0)
            for market in Market
            for zone in "abc"
        ]
        self.fields: dict[str, Any] = {
            "replicas": self.pool.replicas,
            "whole_at": 9_000.0,
            "ready_once": True,
            **memory,
        }
        self.settings: dict[str, Any] = {}

    def node(
        self,
        node: str,
        market: Market = Market.SPOT,
        zone: str = "a",
        kind: str = "gpu",
        *,
        ready: bool = True,
        age: float = 1000.0,
        state: InstanceState = InstanceState.RUNNING,
        serving: bool | None = None,
        target: TargetPhase | None = None,
        silent_for: float | None = None,
        probed: bool = True,
        listed: bool = True,
        vouched: bool | None = None,
        in_flight: int = 0,
        price: float | None = None,
        **record: Any,
    ) -> Scene:
        """A node that runs, is ready and serves, unless told otherwise.

        `vouched`: the balancer finds it healthy; by default one that is silent is not.
        """
        began = self.now - age
        price = price if price is not None else (1.0 if market is Market.SPOT else 3.0)
        base = NodeRecord(
            id=node,
            token=f"{self.pool.name}/7/{node}",  # this daemon launched it
            placement=place(zone, market, kind),
            launched_at=began,
            started_at=began,
            price=price,
            address=f"{node}:1",
            ready_at=began + 60.0 if ready else None,
        )
        self.records[node] = replace(base, **record)
        if listed:
            self.instances[node] = Instance(
                id=node,
                pool=self.pool.name,
                token=base.token,
                placement=base.placement,
                state=state,
                address=base.address,
                launched_at=began,
                price=price,
                standby=self.records[node].standby,
            )
        if probed and state is InstanceState.RUNNING:
            silent = silent_for is not None or not ready
            self.engines[node] = EngineReading(
                node=node,
                at=self.now,
                ready=ready,
                ok=not silent,
                failing_since=self.now - (silent_for or age) if silent else None,
                running=in_flight,
                failure="connection refused" if silent else "",
            )
        if serving is None:
            serving = ready and state is InstanceState.RUNNING and self.records[node].drain is None
        held = TargetPhase.ACTIVE if serving else target
        self.held.pop(node, None)
        self.shown.pop(node, None)
        if held is not None:
            self.held[node] = held
            found = TargetState.HEALTHY if vouched or (vouched is None and silent_for is None) else None
            shown = (found or TargetState.UNHEALTHY) if serving else TargetState.DRAINING
            sick = self.now - (silent_for or age) if shown is TargetState.UNHEALTHY else None
            self.shown[node] = Target(
                id=node, address=base.address, state=shown, in_flight=in_flight, failing_since=sick
            )
        return self

    def nodes(self, count: int, market: Market = Market.SPOT, prefix: str = "", **more: Any) -> Scene:
        """Several nodes named s0, s1 ... or o0, o1 ..., spread over the zones."""
        prefix = prefix or ("s" if market is Market.SPOT else "o")
        for i in range(count):
            self.node(f"{prefix}{i}", market, "abc"[i % 3], **more)
        return self

    def notice(self, node: str, lead: float | None = 120.0, **more: Any) -> Notice:
        """A notice for a node, already heard."""
        said = Notice(
            **{
                "id": f"n-{node}",
                "kind": NoticeKind.INTERRUPTION,
                "node": node,
                "deadline": None if lead is None else self.now + lead,
                "source": "feed",
                "confidence": Confidence.CONFIRMED,
                "seen_at": self.now,
                **more,
            }
        )
        record = self.records[node]
        self.records[node] = replace(record, notices=(*record.notices, said))
        return said

    def drain(self, node: str, cause: Cause, *, since: float = 5.0, left: float = 25.0) -> Scene:
        """The node has been draining for `since` seconds and has `left` of them."""
        self.records[node] = replace(
            self.records[node],
            drain=DrainRecord(
                since=self.now - since, deadline=self.now + left, cause=cause, reason=f"because {cause}"
            ),
            detached_at=self.now - since + 0.1,
        )
        self.held[node] = TargetPhase.DRAINING
        shown = self.shown.get(node)
        if shown is not None:
            self.shown[node] = replace(shown, state=TargetState.DRAINING)
        return self

    def launching(self, token: str, market: Market = Market.SPOT, *, ago: float = 1.0, **more: Any) -> Scene:
        """A launch that is open."""
        known = Intent(
            **{
                "token": token,
                "kind": ActionKind.LAUNCH,
                "node": "",
                "at": self.now - ago,
                "asked_at": self.now - ago,
                "placement": place("a", market),
                "price": 1.0 if market is Market.SPOT else 3.0,
                "cause": Cause.SHORT,
                "reason": "missing",
                **more,
            }
        )
        self.fields["intents"] = {**self.fields.get("intents", {}), token: known}
        return self

    def asked(self, node: str, kind: ActionKind, *, ago: float = 1.0, **more: Any) -> Scene:
        """A call on a node that is open."""
        token = f"{node}:{kind}"
        known = Intent(token=token, kind=kind, node=node, at=self.now - ago, asked_at=self.now - ago, **more)
        self.fields["intents"] = {**self.fields.get("intents", {}), token: known}
        return self

    @property
    def memory(self) -> Memory:
        """What is remembered."""
        return Memory(
            nodes=dict(self.records),
            **{
                "prices": {
                    o.placement: LastPrice(at=self.now, price=o.price, part="sim")
                    for o in self.offerings
                    if o.price is not None
                },
                "targets": {"gw": dict(self.held)},
                "applied_at": {"gw": self.now - 50.0},
                **self.fields,
            },
        )

    @property
    def world(self) -> World:
        """What is seen."""
        return World(
            **{
                "now": self.now,
                "regions": {"": Observed(value=tuple(self.instances.values()), at=self.now)},
                "engines": dict(self.engines),
                "balancers": {"gw": Observed(value=tuple(self.shown.values()), at=self.now)},
                "offerings": {"sim": Observed(value=tuple(self.offerings), at=self.now)},
                "epoch": 7,
                **self.settings,
            }
        )

    @property
    def fleet(self) -> Fleet:
        """The nodes as the policies see them."""
        return Fleet.of(self.pool, self.world, self.memory)

    def turn(self) -> DecisionTurn:
        """A decision in the making."""
        return DecisionTurn(self.pool, self.world, self.memory, self.fleet)

    def plan(self) -> Plan:
        """The whole decision."""
        return decide(self.pool, self.world, self.memory)


def of_kind(plan: Plan, kind: type) -> list[Any]:
    """The actions of a plan that are of one type."""
    return [a for a in plan.actions if isinstance(a, kind)]


CHECKS = [
    check_bounds,
    check_no_self_harm,
    check_forgery,
    check_targets,
    check_sound,
    check_authority,
    check_failsafe,
]


@pytest.fixture(scope="session")
def toy_cloud() -> Callable[..., ToyCloud]:
    """Makes toy clouds that check every invariant after every turn."""

    def make(pool: Pool | None = None, **settings: Any) -> ToyCloud:
        return ToyCloud(pool if pool is not None else quick_pool(), checks=list(CHECKS), **settings)

    return make


@pytest.fixture(scope="session")
def quick() -> Callable[..., Pool]:
    """Makes pools with short waits."""
    return quick_pool


@pytest.fixture(scope="session")
def at() -> Callable[..., Placement]:
    """Makes placements of the toy region."""
    return place


@pytest.fixture(scope="session")
def scene() -> type[Scene]:
    """Makes scenes."""
    return Scene


@pytest.fixture(scope="session")
def actions() -> Callable[[Plan, type], list[Any]]:
    """Picks the actions of one type out of a plan."""
    return of_kind
