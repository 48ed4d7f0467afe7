"""What an observation says that was not known before, as events.

What it decides: which differences between the world and memory are facts worth remembering.
Why: observations are full pictures and repeat; the journal holds only changes.
Never: an incomplete or old list makes no node missing; a node missing from a list is not gone until it has
been missing for the grace time: ten times that while its engine answers, before it was ever ready, or while
so many are missing that the list is to be doubted rather than the nodes. A draining node is not idle before
its detachment was acknowledged and every count was taken after that, nor while neither its engine nor a
balancer counts. A machine with our tag and a token that we never made is nobody's node here.

Example: a node that a fresh list lacks becomes `NodeMissing`, and `NodeGone` after the grace time.
"""

from __future__ import annotations

from dataclasses import replace

from policies.actions import ActionKind
from policies.events import (
    Event,
    GoneCause,
    NodeBusy,
    NodeFound,
    NodeGone,
    NodeIdle,
    NodeMissing,
    NodeReady,
    NodeSeen,
    NodeStopped,
    PoolWhole,
)
from policies.fleet import Fleet, vouched_for
from policies.model import (
    Instance,
    InstanceState,
    Market,
    NoticeKind,
    Pool,
    StandbyKind,
    TargetPhase,
    TargetState,
    World,
)
from policies.records import Memory, NodeRecord, intent_key

_ALIVE = (InstanceState.PENDING, InstanceState.RUNNING, InstanceState.STOPPING, InstanceState.STOPPED)


def changes(pool: Pool, world: World, memory: Memory) -> tuple[Event, ...]:
    """Events that bring memory up to date with the world. Linear in the number of nodes."""
    found: list[Event] = []
    listed = {i.id: i for i in world.instances.value}
    load = world.balancer_load()
    for instance in world.instances.value:
        record = memory.nodes.get(instance.id)
        if record is None:
            if stranger(pool, memory, instance):
                continue
            if instance.state in _ALIVE or instance.token in memory.intents:
                at_work = instance.token not in memory.intents and _may_work(world, instance)
                seen = replace(instance, standby=None) if at_work else instance
                intent = memory.intents.get(instance.token)
                found.append(_seen(world.now, seen, asked_at=intent.at if intent is not None else None))
                if instance.state is InstanceState.TERMINATED:
                    gone = GoneCause.UNANNOUNCED
                    if instance.placement.market is not Market.SPOT:
                        gone = GoneCause.LOST
                    found.append(NodeGone(at=world.now, node=instance.id, cause=gone))
        else:
            found.extend(_known(world, memory, record, instance, load.get(instance.id)))
    found.extend(_missing(pool, world, memory, listed))
    return tuple(found)


def stranger(pool: Pool, memory: Memory, instance: Instance) -> bool:
    """True for a machine that carries this pool's tag and that no daemon of this pool ever launched.

    Anybody who may tag can put our tag on a machine of theirs: what we never asked for is not ours to end.
    Our tokens are pool/epoch/serial.
    """
    if instance.token in memory.intents or instance.id in memory.nodes:
        return False
    name, _, rest = instance.token.rpartition("/")[0].rpartition("/")
    serial = instance.token.rpartition("/")[2]
    return not (name == pool.name and rest.isdecimal() and serial.isdecimal())


def whole(pool: Pool, world: World, memory: Memory, fleet: Fleet) -> tuple[Event, ...]:
    """`PoolWhole`, the first time that the wanted number of units is ready."""
    if memory.whole_at is None and memory.replicas == pool.replicas <= fleet.ready_units:
        return (PoolWhole(at=world.now),)
    return ()


def _seen(now: float, instance: Instance, *, asked_at: float | None) -> NodeSeen:
    """A new node. `asked_at`: when we asked for it, None for one that an earlier daemon launched.

    The provider dates a launch by its own clock. Ours may be hours off, and a boot's patience is counted by
    ours: a launch was not before we asked for it, and is not in the future.
    """
    launched_at = min(now, instance.launched_at if asked_at is None else max(asked_at, instance.launched_at))
    return NodeSeen(
        at=now,
        node=instance.id,
        token=instance.token,
        placement=instance.placement,
        launched_at=launched_at,
        price=instance.price,
        address=instance.address,
        standby=instance.standby,
    )


def _may_work(world: World, instance: Instance) -> bool:
    """True for a machine that may have been put to work by a daemon whose journal is lost.

    The tag of a standby cannot tell, it says what the machine was launched for. Only a balancer can; until
    every one was read a running machine counts as working, which at worst costs a second standby.
    """
    return instance.state is InstanceState.RUNNING and any(
        view.at is None or any(t.id == instance.id and t.state is not TargetState.UNUSED for t in view.value)
        for view in world.balancers.values()
    )


def _works(world: World, instance: Instance) -> bool:
    """True for a running machine that some balancer was last seen to send requests to."""
    return instance.state is InstanceState.RUNNING and any(
        t.id == instance.id and t.state in (TargetState.HEALTHY, TargetState.INITIAL)
        for view in world.balancers.values()
        for t in view.value
    )


def _known(
    world: World, memory: Memory, record: NodeRecord, instance: Instance, load: int | None
) -> list[Event]:
    now = world.now
    found: list[Event] = []
    if record.standby is StandbyKind.STOPPED and _works(world, instance):
        # An older memory than what was done since: a journal that was restored from a copy.
        return [_seen(now, replace(instance, standby=None), asked_at=None)]
    if record.missing_since is not None:
        found.append(NodeFound(at=now, node=record.id))
    if instance.state is InstanceState.TERMINATED:
        return [*found, _gone(now, memory, record)]
    if instance.state in (InstanceState.STOPPED, InstanceState.STOPPING) and (
        record.ready_at is not None or intent_key(record.id, ActionKind.STOP) in memory.intents
    ):
        found.append(NodeStopped(at=now, node=record.id))
    reading = world.engines.get(record.id)
    if instance.state is InstanceState.RUNNING and reading is not None:
        if reading.ready and record.ready_at is None:
            found.append(NodeReady(at=now, node=record.id, address=instance.address))
        if record.drain is not None:
            found.extend(_drained(world, memory, record, load))
    return found


def _drained(world: World, memory: Memory, record: NodeRecord, load: int | None) -> list[Event]:
    """Idle and busy edges of a draining node, by the engine's count and every balancer's.

    A count taken before the node was detached says nothing; a balancer that cannot be read has no say. `load`
    is None for a node that no balancer shows.
    """
    drain, reading = record.drain, world.engines.get(record.id)
    if drain is None or reading is None:
        return []
    active = any(
        held.get(record.id) is TargetPhase.ACTIVE
        for name, held in memory.targets.items()
        if name in world.balancers
    )
    since = max(drain.since, record.detached_at or drain.since)
    fresh = reading.at >= since and all(
        view.error or (view.at is not None and view.at >= since) for view in world.balancers.values()
    )
    if load is None and not reading.ok:
        return []
    in_flight = (load or 0) + (reading.in_flight if reading.ok else 0)
    if active or (fresh and in_flight > 0):
        return [NodeBusy(at=world.now, node=record.id)] if record.idle_since is not None else []
    if fresh and record.idle_since is None:
        return [NodeIdle(at=world.now, node=record.id)]
    return []


def _missing(pool: Pool, world: World, memory: Memory, listed: dict[str, Instance]) -> list[Event]:
    read_at = world.instances.at
    if read_at is None or world.instances.error:
        return []
    absent = [r for r in memory.nodes.values() if r.id not in listed and r.launched_at < read_at]
    absent.sort(key=lambda r: r.id)
    suspicious = len(absent) > max(1.0, pool.health.max_unhealthy * len(memory.nodes))
    vouched = vouched_for(world) if absent else set()
    found: list[Event] = []
    for record in absent:
        if record.missing_since is None:
            found.append(NodeMissing(at=world.now, node=record.id))
            continue
        reading = world.engines.get(record.id)
        # One that was not looked at yet is in doubt only where no balancer finds it healthy either.
        silent = record.id not in vouched if reading is None else reading.failing_since is not None
        missing = world.now - record.missing_since
        # Of a node that never was ready there is no other word, and lists lag behind launches.
        doubtful = suspicious or not silent or record.ready_at is None
        patience = pool.patience.vanish_grace * (10.0 if doubtful else 1.0)
        if missing >= patience:
            found.append(_gone(world.now, memory, record))
    return found


def _gone(now: float, memory: Memory, record: NodeRecord) -> NodeGone:
    """Why it went: a notice beforehand, our own wish, or neither.

    A state change is no notice: it comes with every end, also with those that we asked for.
    """
    spot = record.placement.market is Market.SPOT
    said = (NoticeKind.INTERRUPTION, NoticeKind.MAINTENANCE)
    if spot and any(n.kind in said and not n.cancelled for n in record.notices):
        cause = GoneCause.RECLAIMED
    elif intent_key(record.id, ActionKind.TERMINATE) in memory.intents:
        cause = GoneCause.TERMINATED
    elif spot:
        cause = GoneCause.UNANNOUNCED
    else:
        cause = GoneCause.LOST
    return NodeGone(at=now, node=record.id, cause=cause)
