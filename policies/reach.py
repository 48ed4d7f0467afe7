"""Who can be reached: how long engines have been silent, what balancers find, and whose fault a silence is.

What it decides: how far each node is in its life, and whether so many are silent at once that the fault is
more likely on this side (a partition, a bad release of the prober) than in so many machines together.
Why: a silence says "it cannot be reached from here". What balancers find, and how many others are silent,
tells that from "it serves nobody".
Never: a node that is expected to fall silent says anything about a fault of ours. That is one which ends, one
whose deadline by the cloud's own word has passed (or that has none), one that drains since it was silent, and
any in a region that is silent itself while another one can be seen. A node that is noticed and not yet due is
as good a witness as another, and so is one that drains. What only a node reported, and may be forged, takes
no witness away.

Example: of four nodes three are noticed, with two minutes left, and all four fall silent at once: the fault
is on this side.
"""

from __future__ import annotations

from policies.actions import ActionKind, Cause
from policies.model import (
    TAKES_SPOT,
    Confidence,
    EngineReading,
    Instance,
    InstanceState,
    Market,
    Notice,
    NoticeKind,
    Phase,
    Pool,
    TargetState,
    World,
)
from policies.records import Memory, NodeRecord, intent_key
from policies.regions import Sight

BOOTING = (Phase.PENDING, Phase.STARTING)
STOPPED = (InstanceState.STOPPED, InstanceState.STOPPING)


def applies(notice: Notice, *, spot: bool) -> bool:
    """True when a notice of this kind can take away a node of this market."""
    if notice.cancelled or notice.kind is NoticeKind.REBALANCE:
        return False
    return spot or notice.kind not in TAKES_SPOT


def silent_for(reading: EngineReading | None) -> float:
    """Seconds for which an engine has answered nothing, as far as it was looked at."""
    return 0.0 if reading is None or reading.failing_since is None else reading.at - reading.failing_since


def mass_silence(pool: Pool, world: World, memory: Memory, sight: Sight) -> bool:
    """True when more than `max_unhealthy` of the nodes that should answer are silent, and more than one."""
    after = pool.health.unhealthy_after
    if sum(silent_for(reading) >= after for reading in world.engines.values()) < 2:
        return False
    instances = {i.id: i for i in world.instances}
    witnesses = [
        silent_for(world.engines.get(record.id))
        for record in memory.nodes.values()
        if _should_answer(pool, world, memory, record, instances.get(record.id))
        and not sight.passed_over(record.placement.region)
    ]
    silent = sum(lasted >= after for lasted in witnesses)
    return silent > 1 and silent > pool.health.max_unhealthy * len(witnesses)


def _should_answer(
    pool: Pool, world: World, memory: Memory, record: NodeRecord, instance: Instance | None
) -> bool:
    """True for a node that has booted, and whose silence would be no more than a silence."""
    phase = phase_of(pool, record, instance, world, memory)
    drains = phase is Phase.DRAINING and record.drain is not None and record.drain.cause is not Cause.SICK
    booted = phase is Phase.READY or (drains and record.ready_at is not None)
    return booted and not _due(world, record)


def _due(world: World, record: NodeRecord) -> bool:
    """True for a node that the cloud itself has said to take away by now."""
    spot = record.placement.market is Market.SPOT
    return any(
        n.confidence is Confidence.CONFIRMED
        and applies(n, spot=spot)
        and (n.deadline is None or world.now >= n.deadline)
        for n in record.notices
    )


def vouched_for(world: World, *, read_well: bool = False) -> set[str]:
    """Nodes that some balancer finds healthy, by its last word. It may reach whom this host cannot.

    `read_well`: only balancers whose last look did not fail; else nodes that nobody can take out of a set any
    more would never be given up.
    """
    return {
        t.id
        for view in world.balancers.values()
        if not (view.error and read_well)
        for t in view.value
        if t.state is TargetState.HEALTHY
    }


def runs_all_the_same(pool: Pool, world: World, record: NodeRecord) -> bool:
    """True for a node at work whose engine is not silent: a list that has it stopped is older than its start.

    One look that failed is no silence. Where this daemon never saw it ready, a balancer's word counts.
    """
    if record.standby is not None:
        return False
    reading = world.engines.get(record.id)
    if reading is None:
        return record.id in vouched_for(world)
    if reading.failing_since is None:
        return record.ready_at is not None or reading.ready
    briefly = reading.at - reading.failing_since < pool.health.unhealthy_after
    return briefly and (record.ready_at is not None or record.id in vouched_for(world))


def phase_of(
    pool: Pool, record: NodeRecord, instance: Instance | None, world: World, memory: Memory
) -> Phase:
    """How far a node is, by the list of machines (None: it lacks the node), its engine and the journal."""
    reading = world.engines.get(record.id)
    state = InstanceState.RUNNING if instance is None else instance.state
    if state is InstanceState.TERMINATED:
        return Phase.GONE
    asked = memory.intents and intent_key(record.id, ActionKind.TERMINATE) in memory.intents
    if state is InstanceState.SHUTTING_DOWN or asked:
        return Phase.TERMINATING
    if state in STOPPED and not runs_all_the_same(pool, world, record):
        return Phase.STOPPED
    if record.drain is not None:
        return Phase.DRAINING
    if state is InstanceState.PENDING and record.ready_at is None:
        return Phase.PENDING  # one that was ready since its start is shown by an old list
    if record.ready_at is not None or (reading is not None and reading.ready and reading.ok):
        return Phase.READY
    return Phase.STARTING
