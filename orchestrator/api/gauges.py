"""Sets the daemon's gauges when somebody reads them: turns are more frequent than readers.

What has a label that comes and goes (nodes, targets, placements, states) is cleared first, so that no series
outlives what it describes.
"""

from __future__ import annotations

import asyncio
import math
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from prometheus_client import generate_latest

from cloud.agent_receiver import NodeReport
from orchestrator import __version__, logs
from orchestrator.api import agents, gpus, status
from orchestrator.api.runs import Run, Runs
from orchestrator.journal.store import Totals
from orchestrator.loop.loop import Snapshot
from orchestrator.metrics import metrics
from orchestrator.views import api as views
from policies import bars
from policies.actions import ActionKind
from policies.economics import rate
from policies.evidence import ours
from policies.memory import decayed
from policies.model import InstanceState, Market, PartKind, Phase, StandbyKind, TargetPhase, TargetState
from policies.parts import is_lost, parts
from policies.plan_builder import Turn
from policies.prices import failing

POOL_FAILED = "pool-failed"
"""Name of the alarm of a pool whose loop does not turn."""

_CALLS = (ActionKind.LAUNCH, ActionKind.START, ActionKind.STOP, ActionKind.TERMINATE)
_OPEN_STAGES = ("noticed", "opened", "detached", "drained", "gone")
_LIVES = frozenset(InstanceState) - {InstanceState.SHUTTING_DOWN, InstanceState.TERMINATED}


_COME_AND_GO = (
    metrics.MARKET_PAUSED,
    metrics.PRICE,
    metrics.PRICES_AGE,
    metrics.SPEND_CAP,
    metrics.NODE,
    metrics.ENGINE_READY,
    metrics.ENGINE_RUNNING,
    metrics.ENGINE_WAITING,
    metrics.TARGETS,
    metrics.TARGETS_DIFFER,
    metrics.ENGINE_RATE,
    metrics.ADAPTER_NODES,
    metrics.ADAPTER_MISSING,
    *metrics.OF_GPUS,
    metrics.NODE_REPORT_AGE,
)
"""Gauges whose labels name what comes and goes."""


@dataclass(frozen=True, slots=True)
class _Look:
    """What was read of one pool, and does not change any more. `snapshot`: None before its first turn."""

    pool: str
    snapshot: Snapshot | None
    totals: Totals
    reports: Mapping[str, NodeReport]
    gpus: gpus.Seen
    down: str


class Gauges:
    """Everything that a daemon shows beside what it counts as it goes.

    `state_dir`: where the journal is. `clock_step`: see the metric of that name.
    """

    def __init__(self, *, runs: Runs, state_dir: Path, clock_step: Callable[[], float]) -> None:
        self._runs, self._state_dir, self._clock_step = runs, state_dir, clock_step
        self._shown: set[str] = set()
        self._one = asyncio.Lock()

    async def exposition(self) -> bytes:
        """The text that Prometheus scrapes.

        What grows with the pools is worked out in a thread: with a thousand nodes it takes tenths of a
        second, and a notice must not wait for a scrape. One at a time: the gauges are the process's own.
        """
        async with self._one:
            return await asyncio.to_thread(self._text, self._look())

    def publish(self) -> None:
        """Set all of them to what holds now, in place."""
        self._publish(self._look())

    def _look(self) -> list[_Look]:
        """Read what changes under the loops' hands: their own parts, sources, agents."""
        metrics.CLOCK_STEP.set(self._clock_step())
        metrics.LOG_DROPPED.set(logs.dropped_lines())
        metrics.BUILD.labels(__version__).set(1)
        for gone in self._shown - self._runs.keys():
            metrics.forget(gone)
        self._shown = {*self._runs}
        return [_look_at(run) for run in self._runs.values()]

    def _publish(self, looks: Sequence[_Look]) -> None:
        """Set the gauges that follow from what does not change any more, and from the disk."""
        with suppress(OSError):  # a directory that is gone has no size; its alert is the journal's
            metrics.STATE_FREE.set(shutil.disk_usage(self._state_dir).free)
            metrics.JOURNAL_BYTES.set(sum(f.stat().st_size for f in self._state_dir.glob("journal.db*")))
        clear()
        for look in looks:
            if look.snapshot is not None:
                publish_all(look.snapshot, look.totals, look.reports, look.gpus, down=look.down)

    def _text(self, looks: Sequence[_Look]) -> bytes:
        self._publish(looks)
        return generate_latest(metrics.REGISTRY)


def _look_at(run: Run) -> _Look:
    metrics.INBOX_WAITING.labels(run.name).set(run.inbox.waiting)
    metrics.INBOX_DROPPED.labels(run.name).set(run.inbox.dropped)
    down = run.why_down()
    if run.loop is not None:
        metrics.JOURNAL_UNWRITTEN.labels(run.name).set(run.loop.unwritten)
    if down or run.failures:
        metrics.ALARMS.labels(run.name, POOL_FAILED).set(bool(down))
        metrics.POOL_FAILURES.labels(run.name).set(run.failures)
    for source in run.sources:
        metrics.NOTICE_SOURCE_AGE.labels(run.name, source.name).set(source.age())
    reports: Mapping[str, NodeReport] = {}
    if run.agents is not None:
        agents.publish(run.agents, run.name)
        reports = run.agents.reports()
    return _Look(run.name, run.last, run.totals, reports, gpus.Seen.of(run.gpus), down)


def clear() -> None:
    """Drop what labels of nodes, targets, places and parts were set before: they are set anew."""
    for gauge in _COME_AND_GO:
        gauge.clear()


def publish_all(
    snapshot: Snapshot,
    totals: Totals,
    reports: Mapping[str, NodeReport],
    seen: gpus.Seen,
    *,
    down: str = "",
) -> None:
    """Everything that follows from the newest turn of a pool. `down`: why its loop does not turn."""
    publish_pool(snapshot, down=down)
    publish_market(snapshot)
    publish_money(snapshot, totals)
    publish_nodes(snapshot)
    publish_swaps(snapshot)
    publish_adapters(snapshot)
    publish_balancers(snapshot)
    publish_reports(snapshot, reports)
    gpus.publish(snapshot, seen)


def publish_pool(snapshot: Snapshot, *, down: str = "") -> None:
    """How many nodes there are, in what state, and what is under way."""
    fleet, world, memory = snapshot.fleet, snapshot.world, snapshot.memory
    pool, now = fleet.pool.name, world.now
    metrics.WANTED.labels(pool).set(fleet.pool.replicas)
    metrics.FLOOR.labels(pool).set(fleet.pool.on_demand_floor)
    metrics.MIN_SERVING.labels(pool).set(fleet.pool.min_serving)
    phases = Counter((n.placement.market, n.phase) for n in fleet.nodes)
    for market in Market:
        ready = fleet.ready_by_market[market]
        metrics.READY.labels(pool, str(market)).set(ready)
        metrics.COMING.labels(pool, str(market)).set(fleet.counted_by_market[market] - ready)
        for phase in Phase:
            metrics.NODES.labels(pool, str(market), str(phase)).set(phases[market, phase])
    found = snapshot.verdict
    metrics.SERVING.labels(pool).set(found.serving)
    metrics.NOTICED.labels(pool).set(sum(n.notice is not None for n in fleet.nodes))
    metrics.UNHEALTHY.labels(pool).set(sum(n.phase is Phase.READY and not n.healthy for n in fleet.nodes))
    metrics.STANDBYS.labels(pool, str(StandbyKind.HOT)).set(status.hot_standbys(fleet))
    metrics.STANDBYS.labels(pool, str(StandbyKind.STOPPED)).set(status.stopped_standbys(fleet))
    for name in get_args(views.PoolState):
        metrics.STATE.labels(pool, name).set(name == ("down" if down else found.state))
    metrics.PAUSED.labels(pool).set(memory.pause is not None and memory.pause.holds(now))
    deferred = Counter(d.kind for d in snapshot.plan.deferred)
    for kind in (*_CALLS, ActionKind.DRAIN, ActionKind.UNDRAIN):
        metrics.DEFERRED.labels(pool, str(kind)).set(deferred[kind])
    for kind in _CALLS:
        opened = [i.at for i in memory.intents.values() if i.kind is kind]
        metrics.OPEN_CALLS.labels(pool, str(kind)).set(len(opened))
        metrics.OLDEST_CALL.labels(pool, str(kind)).set(max(0.0, now - min(opened, default=now)))
    unknown = [i for i in world.instances if i.state in _LIVES and not ours(fleet.pool, memory, i).holds]
    metrics.UNKNOWN_INSTANCES.labels(pool).set(len(unknown))
    metrics.LEADING.labels(pool).set(world.leading)
    silent = 0.0 if world.failsafe_since is None else now - world.failsafe_since
    metrics.DATABASE_SILENT.labels(pool).set(silent)
    metrics.EPOCH.labels(pool).set(world.epoch)
    for part in parts(world):
        if part.kind not in (PartKind.NOTICES, PartKind.PRICES):  # which tell their age themselves
            metrics.OBSERVATION_AGE.labels(pool, str(part.kind), part.name).set(part.age(now))


def publish_adapters(snapshot: Snapshot) -> None:
    """Who holds which adapter, and who lacks one."""
    pool, nodes = snapshot.fleet.pool, snapshot.memory.nodes
    active = [t for t in snapshot.plan.targets if t.phase is TargetPhase.ACTIVE]
    for adapter in pool.adapters.wanted:
        holds = {t.id for t in active if any(held.name == adapter.name for held in t.adapters)}
        lacks = [
            t.id
            for t in active
            if t.id not in holds
            and (
                pool.adapters.fit
                or (t.id in nodes and any(a.fails(adapter.served_as) for a in nodes[t.id].adapters))
            )
        ]
        metrics.ADAPTER_NODES.labels(pool.name, adapter.name).set(len(holds))
        metrics.ADAPTER_MISSING.labels(pool.name, adapter.name).set(len(lacks))


def publish_market(snapshot: Snapshot) -> None:
    """What is sold, at what price, and what may not be tried now."""
    memory, pool, now = snapshot.memory, snapshot.fleet.pool, snapshot.world.now
    half_life = pool.placement.refusal_half_life
    recent = sum(decayed(r, now, half_life) > 0.5 for r in memory.refusals.values())
    metrics.REFUSALS.labels(pool.name).set(recent)
    for region, market in bars.to_mend(pool, memory):
        metrics.MARKET_PAUSED.labels(pool.name, region, str(market)).set(1)
    scorer = _turn(snapshot).scorer
    states: Counter[tuple[Market, str]] = Counter()
    failed = {f.part: f for f in failing(snapshot.world, memory)}
    for part, view in snapshot.world.offerings.items():
        read_at = view.at
        if part in failed:
            read_at = None if failed[part].unknown else failed[part].read_at
        age = math.inf if read_at is None else max(0.0, now - read_at)
        metrics.PRICES_AGE.labels(pool.name, part).set(age)
    for offering in snapshot.fleet.prices.on_sale:
        place = offering.placement
        state = "unavailable" if not offering.available else "blocked" if scorer.blocked(place) else "open"
        states[place.market, state] += 1
        if offering.price is not None and not place.reservation:
            price = metrics.PRICE.labels(pool.name, str(place.market), place.zone, place.instance_type)
            price.set(offering.price)
    for market in Market:
        for state in ("open", "blocked", "unavailable"):
            metrics.OFFERINGS.labels(pool.name, str(market), state).set(states[market, state])


def publish_money(snapshot: Snapshot, totals: Totals) -> None:
    """Dollars an hour, dollars so far, and the cap."""
    fleet = snapshot.fleet
    pool, cap = fleet.pool.name, fleet.pool.limits.spend_per_hour
    money = rate(fleet)
    for gauge, dollars in ((metrics.COST_RATE, money.cost), (metrics.ON_DEMAND_RATE, money.on_demand)):
        gauge.labels(pool).set(math.nan if dollars is None else dollars)
    metrics.SPENT.labels(pool).set(totals.usd)
    metrics.SAVED.labels(pool).set(totals.on_demand_usd - totals.usd)
    if cap is not None:
        metrics.SPEND_CAP.labels(pool).set(cap)
    cheapest = min(
        (o.price for o in fleet.prices.on_sale if o.available and o.price is not None), default=0.0
    )
    reached = bool(_turn(snapshot).budget.refuses_cost(cheapest))
    metrics.SPEND_CAP_REACHED.labels(pool).set(reached)


def _turn(snapshot: Snapshot) -> Turn:
    """The last turn once more, to ask it what the policies ask."""
    return Turn(snapshot.fleet.pool, snapshot.world, snapshot.memory, snapshot.fleet)


def publish_nodes(snapshot: Snapshot) -> None:
    """Every node and its engine."""
    pool = snapshot.fleet.pool.name
    for node in snapshot.fleet.nodes:
        place = node.placement
        metrics.NODE.labels(pool, node.id, str(place.market), place.zone, place.instance_type).set(1)
        reading = snapshot.world.engines.get(node.id)
        if reading is not None:
            metrics.ENGINE_READY.labels(pool, node.id).set(reading.ready and reading.ok)
            metrics.ENGINE_RUNNING.labels(pool, node.id).set(reading.running)
            metrics.ENGINE_WAITING.labels(pool, node.id).set(reading.waiting)
            metrics.ENGINE_RATE.labels(pool, node.id).set(reading.rate or 0.0)


def publish_swaps(snapshot: Snapshot) -> None:
    """Swaps whose replacement is not ready: how far they are, and which are late."""
    pool = snapshot.fleet.pool.name
    open_swaps = [s for s in snapshot.memory.swaps.values() if s.replaced_at is None and s.incoming]
    stages = Counter(s.stage for s in open_swaps)
    for stage in _OPEN_STAGES:
        metrics.OPEN_SWAPS.labels(pool, stage).set(stages[stage])
    metrics.OVERDUE_SWAPS.labels(pool).set(sum(s.gone_at is not None for s in open_swaps))


def publish_balancers(snapshot: Snapshot) -> None:
    """What every balancer shows, and where that is not what is wanted of it; nothing of one that is lost."""
    pool, plan, world = snapshot.fleet.pool.name, snapshot.plan, snapshot.world
    lost = {part.name for part in parts(world) if part.kind is PartKind.BALANCER and is_lost(part, world.now)}
    wanted = {t.id for t in plan.targets if t.phase is TargetPhase.ACTIVE}
    for name, view in world.balancers.items():
        if view.at is None or name in lost:
            continue
        states = Counter(target.state for target in view.value)
        for state in TargetState:
            metrics.TARGETS.labels(pool, name, str(state)).set(states[state])
        shown = {t.id for t in view.value if t.state not in (TargetState.DRAINING, TargetState.UNUSED)}
        metrics.TARGETS_DIFFER.labels(pool, name).set(len(shown ^ wanted))


def publish_reports(snapshot: Snapshot, reports: Mapping[str, NodeReport]) -> None:
    """How old the reports of living nodes' agents are."""
    pool, known = snapshot.fleet.pool.name, snapshot.fleet.by_id
    for node, report in reports.items():
        if node in known:
            age = max(0.0, snapshot.world.now - report.heard_at)
            metrics.NODE_REPORT_AGE.labels(pool, node).set(age)
