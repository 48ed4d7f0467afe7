"""The loop: take events, observe, journal, decide, journal intents, act.

One turn never waits for the world: the observer's newest snapshot is taken, calls run beside the loop and
come back as events. The only thing a turn waits for is the journal, because a fact must be on disk before it
is acted on. When the journal cannot be written, or is slow while a notice waits, the loop goes on without it:
notices still drain and target sets are still written, and nothing is launched or ended (`writing`). When the
lease has run out because its database does not answer, noticed nodes are still taken out of the balancers
(`policies.failsafe`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cloud.logger import structlog
from cloud.ports import Clock, Lease
from orchestrator.journal.store import Journal
from orchestrator.loop.actuator import Actuator
from orchestrator.loop.counters import PoolCounters, takes_node
from orchestrator.loop.inbox import Inbox
from orchestrator.loop.ledger import Ledger
from orchestrator.loop.observer import Observer
from orchestrator.loop.recorder import Recorder
from orchestrator.loop.start_watch import StartWatch
from orchestrator.loop.writing import Writing
from orchestrator.metrics import metrics
from policies import drain, gpu_health, observations, outdated, parts
from policies.actions import (
    Action,
    ActionKind,
    Alarm,
    Drain,
    Launch,
    LoadAdapter,
    Plan,
    Start,
    Stop,
    Terminate,
    Undrain,
    UnloadAdapter,
)
from policies.adapter_events import AdapterAsked, AdapterLost, NodeCurrent, NodeOutdated
from policies.budget import Shares, ask_of
from policies.decide import decide_for
from policies.events import (
    AlarmRaised,
    DrainEnded,
    DrainHeld,
    DrainStarted,
    Event,
    GoneCause,
    GpuAcquitted,
    GpuCondemned,
    IntentOpened,
    NodeGone,
    NoticeSeen,
    PartBack,
    PartLost,
    StateChanged,
    TargetsApplied,
)
from policies.fleet import Fleet
from policies.memory import Memory, add_notice, reduce
from policies.model import Notice, Phase, Placement, Pool, TargetPhase, World
from policies.records import concerns
from policies.value import lazy, replace
from policies.verdict import State, Verdict, change, judge

log = structlog.get_logger("loop")

_PARTS = ("observe", "journal", "decide", "act")
"""Of a turn, each with its own duration."""

_RUNS = frozenset({Phase.STARTING, Phase.READY, Phase.DRAINING, Phase.TERMINATING})
"""Phases of nodes whose engine may answer."""

_CALM = (State.OK, State.EMPTY, State.STARTING, State.PAUSED)
"""States that nobody need look after."""

_INTENTS = (IntentOpened, AdapterAsked)
_REQUESTS = (GpuCondemned, GpuAcquitted, NodeOutdated, NodeCurrent)  # that a node goes, and that it stays
"""Events that say what is about to be done."""

_DEBOUNCE = 0.01
"""Seconds in which further wake-ups join a turn, unless a notice waits."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What the last turn saw and decided, for status pages."""

    fleet: Fleet
    world: World
    memory: Memory
    plan: Plan
    at: float

    @lazy
    def verdict(self) -> Verdict:
        """How the pool is: the one judgement that every page, metric and exit code goes by."""
        return judge(self.fleet, self.world, self.memory)


@dataclass
class _Alarms:
    """Which alarms are raised now, so that each is journalled once."""

    raised: set[tuple[str, str]] = field(default_factory=set)  # by name, and by what each is about

    def fresh(self, pool: str, alarms: Sequence[Alarm]) -> list[Alarm]:
        present = {(a.name, a.about) for a in alarms}
        names = {name for name, _ in present}
        for name, _ in self.raised | present:
            metrics.ALARMS.labels(pool, name).set(name in names)
        found = {(a.name, a.about): a for a in alarms if (a.name, a.about) not in self.raised}
        self.raised = present
        return list(found.values())


class Loop:
    """One pool's loop. `run` is its root task; `turn` runs once, for tests and the simulator.

    `shares`: the budget that it shares with other pools, None where there is none. `starts`: what measures
    them, None for nothing.
    """

    def __init__(
        self,
        *,
        pool: Pool,
        memory: Memory,
        clock: Clock,
        lease: Lease,
        epoch: int,
        journal: Journal,
        ledger: Ledger,
        inbox: Inbox,
        observer: Observer,
        actuator: Actuator,
        tick: float,
        recorder: Recorder | None = None,
        shares: Shares | None = None,
        starts: StartWatch | None = None,
        on_turn: Callable[[Snapshot], None] | None = None,
    ) -> None:
        self.pool, self.memory = pool, memory
        self._clock, self._lease, self._epoch, self._journal = clock, lease, epoch, journal
        self._ledger, self._inbox, self._observer, self._actuator = ledger, inbox, observer, actuator
        self._tick, self._recorder, self._on_turn = tick, recorder, on_turn
        self._shares, self._starts = shares, starts
        self._counters = PoolCounters(pool.name)
        self._seconds = {part: metrics.TURN_SECONDS.labels(pool.name, part) for part in _PARTS}
        self._writing = Writing(pool.name, journal, inbox)
        self._alarms = _Alarms()
        self._failsafe = False
        self._next: tuple[Pool, float] | None = None
        self.turns = 0
        self.last: Snapshot | None = None

    def reconfigure(self, pool: Pool, *, tick: float) -> None:
        """Have the next turn, and those after it, go by another wanted state of the same pool."""
        self._next = pool, tick
        self._inbox.poke()

    @property
    def settled(self) -> bool:
        """True while everything in memory is on disk: only then may memory be stored as a snapshot."""
        return self._writing.settled

    @property
    def unwritten(self) -> int:
        """Events that wait for the journal to accept writes."""
        return self._writing.behind

    @property
    def waiting(self) -> Sequence[Event]:
        """These events, oldest first."""
        return self._writing.waiting

    async def run(self) -> None:
        """Turn for ever: at once when a notice waits, soon after other events, and at every tick.

        Also when a noticed node that serves on has to leave.
        """
        seconds = asyncio.get_running_loop().time
        while True:
            seen = (await self.turn()).fleet
            leaves_in = drain.next_start(self.pool, seen.nodes, seen.now) - self._clock.now()
            pause, waits_since = min(self._tick, max(_DEBOUNCE, leaves_in)), seconds()
            if not await self._inbox.wait(pause, debounce=_DEBOUNCE):
                metrics.LOOP_LAG.labels(self.pool.name).observe(max(0.0, seconds() - waits_since - pause))

    async def turn(self) -> Snapshot:
        """One turn. A failing journal is a state, not an exception.

        Raises Superseded when another daemon has taken over.
        """
        seconds = asyncio.get_running_loop().time
        started = seconds()
        if self._next is not None:
            (self.pool, self._tick), self._next = self._next, None
            if self._recorder is not None:
                self._recorder.begin()
        arrived, ticket = self._inbox.take_all()
        world = self._observer.world(
            durable=self._writing.durable, leading=self._lease.valid(), epoch=self._epoch
        )
        world = replace(world, writing=self._actuator.writing, failsafe_since=self._failsafe_since(world))
        heard = self._heard(arrived)
        memory = reduce(self.memory, *heard)
        seen = observations.changes(self.pool, world, memory)
        memory = reduce(memory, *seen)
        fleet = Fleet.of(self.pool, world, memory)
        if self._shares is not None and self._shares.bounded:
            world = replace(world, grant=self._shares.turn(ask_of(fleet, world, memory)))
        news = self._news(world, memory, fleet)
        _log(seen)
        self._counters.events((*heard, *seen), self.memory, memory)
        self._counters.tokens(world)
        if self._starts is not None:
            self._starts.events((*heard, *seen), self.memory, memory)
            self._starts.look()
        self.memory = reduce(memory, *news)
        if any(isinstance(event, _REQUESTS) for event in news):
            fleet = Fleet.of(self.pool, world, self.memory)
        observed = seconds()
        noticed = any(isinstance(event, NoticeSeen) for event in heard)
        written = await self._writing.write((*heard, *seen, *news), urgent=noticed)
        if written:
            self._inbox.mark_written(ticket)
        self._note_lost()
        if world.leading:
            self._hear_last_words(seen, world)
        if world.durable is not self._writing.durable:
            world = replace(world, durable=self._writing.durable)
        journalled = seconds()
        bound = world if written else replace(world, durable=False)  # what is not on disk yet binds alike
        plan = self._decide(fleet, bound)
        decided = seconds()
        await self._act(plan, bound)
        snapshot = self._publish(fleet, world, plan)
        await self._writing.account(self._ledger.count(fleet, bound))
        acted = seconds()
        for part, took in zip(
            _PARTS,
            (observed - started, journalled - observed, decided - journalled, acted - decided),
            strict=True,
        ):
            self._seconds[part].observe(took)
        return snapshot

    def _failsafe_since(self, world: World) -> float | None:
        """When the database answered last, once the lease has run out because it does not."""
        silent = None if world.leading else self._lease.unanswered()
        if (silent is not None) is not self._failsafe:
            self._failsafe = silent is not None
            if self._failsafe:
                log.warning("failsafe.started", silent=silent)
            else:
                log.warning("failsafe.ended")
        return None if silent is None else world.now - silent

    def _decide(self, fleet: Fleet, world: World) -> Plan:
        """The plan. A decision that raises ends the daemon; what it was asked is recorded for a replay."""
        try:
            return decide_for(fleet, world, self.memory)
        except Exception as error:
            if self._recorder is not None:
                self._recorder.raised(self.pool, world, self.memory, error, behind=self._writing.behind)
            raise

    # -- in ----------------------------------------------------------------------------------------

    def _heard(self, events: Sequence[Event]) -> list[Event]:
        """Events worth journalling: a notice heard before, from the same source, is not news."""
        found: list[Event] = []
        fresh: dict[str, tuple[Notice, ...]] = {}
        for event in events:
            if isinstance(event, NoticeSeen):
                node = event.notice.node
                record = self.memory.nodes.get(node)
                if record is not None and not concerns(event.notice, record):
                    continue
                if node not in fresh:
                    early = self.memory.early_notices.get(node, ())
                    fresh[node] = record.notices if record is not None else early
                heard = add_notice(fresh[node], event.notice)
                if heard is fresh[node]:
                    continue
                first = not any(map(takes_node, fresh[node]))
                fresh[node] = heard
                self._counters.notice(event, known=record is not None, first=first)
                log.warning(
                    "notice.heard",
                    node=node,
                    kind=str(event.notice.kind),
                    source=event.notice.source,
                    deadline=event.notice.deadline,
                )
            elif isinstance(event, TargetsApplied):
                self._counters.detached(event, self.memory)
            found.append(event)
        return found

    def _news(self, world: World, memory: Memory, fleet: Fleet) -> tuple[Event, ...]:
        """What people should read of this turn: it is whole, parts are lost or back, the state is another.

        Logged here, whether or not the journal takes it.
        """
        found: tuple[Event, ...] = (
            *observations.whole(self.pool, world, memory, fleet),
            *parts.news(world, fleet, memory),
            *gpu_health.news(self.pool, world, fleet, memory),
            *outdated.news(self.pool, world, fleet, memory),
        )
        memory = reduce(memory, *found)
        found += change(judge(fleet, world, memory), fleet, world, memory)
        _log(found)
        return found

    # -- out ---------------------------------------------------------------------------------------

    async def _act(self, plan: Plan, world: World) -> None:
        """Write target sets at once, journal what costs money or ends nodes, then do it.

        An intent that could not be journalled never was: it leaves memory again and is not acted on.
        """
        if world.failsafe_since is not None:
            out = [t for t in plan.targets if t.phase is TargetPhase.DRAINING]
            self._actuator.take_out(plan.write, out, self._epoch)
        else:
            self._actuator.write(plan.write, plan.targets, self._epoch, leading=world.leading)
        if self._recorder is not None and not self._writing.under_way:  # else nobody can say what is on disk
            self._recorder.decided(self.pool, world, self.memory, plan, behind=self._writing.behind)
        now = self._clock.now()
        alarms = self._alarms.fresh(self.pool.name, [a for a in plan.actions if isinstance(a, Alarm)])
        news = [*records(now, plan.actions), *self._newly_held(now, plan)]
        news += [AlarmRaised(at=now, name=a.name, text=a.reason) for a in alarms]
        if news:
            before = self.memory
            self.memory = reduce(before, *news)
            if not await self._writing.write(news, urgent=True if self._writing.under_way else None):
                self._writing.void([event for event in news if isinstance(event, _INTENTS)])
                self.memory = reduce(before, *(e for e in news if not isinstance(e, _INTENTS)))
            elif self._lease.valid():  # a process that was suspended may have lost it since the turn began
                self._actuator.perform(plan.actions, place_of=self._place_of)
        self._tell(plan, alarms)

    def _hear_last_words(self, seen: Sequence[Event], world: World) -> None:
        """Report what machines wrote that a fault ended before they were ready."""
        unready = {
            e.node: e.detail for e in seen if isinstance(e, NodeGone) and e.cause is GoneCause.NEVER_STARTED
        }
        for instance in world.instances if unready else ():
            if instance.id in unready:
                why = unready[instance.id] or "a fault ended it before it was ready"
                self._actuator.ended_unready(instance.id, instance.placement, why)

    def _place_of(self, node: str) -> Placement | None:
        record = self.memory.nodes.get(node)
        return None if record is None else record.placement

    def _note_lost(self) -> None:
        """Memory has taken in what will never be on disk: a recording cannot go on with that."""
        if self._writing.lost and self._recorder is not None:
            self._recorder.events_lost()
        self._writing.lost = False

    def _newly_held(self, now: float, plan: Plan) -> list[Event]:
        """Noticed nodes that go on serving by choice, each reported once."""
        held = {d.node: d.reason for d in plan.deferred if d.kind is ActionKind.DRAIN}
        return [DrainHeld(at=now, node=n, reason=held[n]) for n in self._counters.newly_held([*held])]

    def _tell(self, plan: Plan, alarms: Sequence[Alarm]) -> None:
        """Count and log what was decided; after the deed, since a notice waits for nothing."""
        for action in plan.actions:
            metrics.ACTIONS.labels(self.pool.name, str(action.kind)).inc()
            if not isinstance(action, Alarm):
                log.info(
                    "action.decided",
                    kind=str(action.kind),
                    node=getattr(action, "node", "") or None,
                    reason=action.reason,
                    placement=str(getattr(action, "placement", "") or "") or None,
                )
        for alarm in alarms:
            log.error("alarm.raised", name=alarm.name, reason=alarm.reason)

    def _publish(self, fleet: Fleet, world: World, plan: Plan) -> Snapshot:
        self.turns += 1
        snapshot = Snapshot(fleet=fleet, world=world, memory=self.memory, plan=plan, at=self._clock.now())
        self.last = snapshot
        moving = (Phase.PENDING, Phase.STARTING, Phase.DRAINING, Phase.TERMINATING)
        busy = any(n.phase in moving or n.notice is not None for n in fleet.nodes)
        draining = frozenset(n.id for n in fleet.nodes if n.drain is not None)
        self._observer.hurry(
            on=busy or bool(fleet.launching),
            draining=draining,
            routes=_adapters_move(self.pool, self.memory, plan),
        )
        self._observer.follow(engines(fleet, world))
        metrics.TURNS.labels(self.pool.name).inc()
        metrics.LAST_TURN.labels(self.pool.name).set(snapshot.at)
        if self._on_turn is not None:
            self._on_turn(snapshot)
        return snapshot


def _adapters_move(pool: Pool, memory: Memory, plan: Plan) -> bool:
    """Requests may wait for an adapter that no node holds, or one is being loaded, drained or unloaded."""
    if pool.adapters.runtime and not pool.adapters.fit:
        return True
    if any(isinstance(action, LoadAdapter | UnloadAdapter) for action in plan.actions):
        return True
    kept = {adapter.served_as for adapter in pool.adapters.wanted}
    records = (a for record in memory.nodes.values() for a in record.adapters)
    return any((a.call and not a.call.failure) or (a.held and a.adapter not in kept) for a in records)


def _log(events: Sequence[Event]) -> None:
    """Log what was lost, what is back, which nodes go for their GPUs, and what the pool is now."""
    for event in events:
        match event:
            case PartLost():
                away = round(event.at - event.since, 1)
                log.warning(
                    "part.lost", kind=str(event.kind), part=event.part, seconds=away, error=event.error
                )
            case GpuCondemned():
                log.warning("gpu.condemned", node=event.node, urgent=event.urgent, reason=event.reason)
            case AdapterLost():
                log.warning("adapter.lost", node=event.node, adapter=event.adapter)
            case GpuAcquitted():
                log.info("gpu.acquitted", node=event.node)
            case NodeOutdated():
                log.info("node.outdated", node=event.node, reason=event.reason)
            case PartBack():
                log.info("part.recovered", kind=str(event.kind), part=event.part, after=round(event.after, 1))
            case StateChanged():
                log.log(
                    logging.INFO if event.state in _CALM else logging.WARNING,
                    "state.changed",
                    state=event.state,
                    before=event.before or None,
                    reason=event.why,
                )


def engines(fleet: Fleet, world: World) -> dict[str, str]:
    """Where the engines of nodes listen that may run, empty where that is not known now.

    An address is used again: one that lists lack is not where another machine is. One that lists show stopped
    may run where a balancer finds it healthy: what the last look saw is not forgotten.
    """
    taken = {i.address for i in world.instances}
    running = [n for n in fleet.nodes if n.phase in _RUNS]
    running += [n for n in fleet.nodes if n.phase is Phase.STOPPED and not n.aside and n.found_healthy]
    return {n.id: n.address for n in running if n.exists.holds or not n.address or n.address not in taken}


def records(now: float, actions: Sequence[Action]) -> list[Event]:
    """What is journalled before actions are carried out."""
    found: list[Event] = []
    for action in actions:
        match action:
            case Drain():
                found.append(
                    DrainStarted(
                        at=now,
                        node=action.node,
                        deadline=action.deadline,
                        cause=action.cause,
                        reason=action.reason,
                    )
                )
            case Undrain():
                found.append(DrainEnded(at=now, node=action.node, reason=action.reason))
            case Launch():
                found.append(
                    IntentOpened(
                        at=now,
                        token=action.token,
                        kind=action.kind,
                        node="",
                        placement=action.placement,
                        standby=action.standby,
                        replaces=action.replaces,
                        price=action.price,
                        cause=action.cause,
                        reason=action.reason,
                    )
                )
            case LoadAdapter() | UnloadAdapter():
                found.append(
                    AdapterAsked(
                        at=now,
                        node=action.node,
                        adapter=action.served_as,
                        load=isinstance(action, LoadAdapter),
                        reason=action.reason,
                    )
                )
            case Start() | Stop() | Terminate():
                found.append(
                    IntentOpened(
                        at=now,
                        token=action.token,
                        kind=action.kind,
                        node=action.node,
                        replaces=getattr(action, "replaces", ""),
                        cause=getattr(action, "cause", None),
                        reason=action.reason,
                    )
                )
    return found
