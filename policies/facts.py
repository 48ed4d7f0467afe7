"""What an observation says that was not known before, as events.

What it decides: which differences between the world and memory are facts worth remembering.
Why: observations are full pictures and repeat; the journal holds only changes.
Never: an incomplete or old list makes no node missing, nor does the list of another region; a node missing
from a list is not gone until it has been missing for the grace time, as far as lists were read: ten times
that unless its engine was silent for as long, before it was ever ready, or while so many are missing that the
list is to be doubted rather than the nodes. A draining node is not idle before its detachment was
acknowledged and every count was taken after that, nor while it may still get requests, or neither its engine
nor a balancer counts. A machine with our tag and a token that we never made is nobody's node here, and one
that a list showed as ended none any more, whatever an older list shows. A spot machine is nobody's standby:
one that stops is taken by the cloud. A machine that a fault ended, or that somebody else ended, was taken by
nobody: before it was ready its boot failed, later it is lost.

Example: a node that a fresh list lacks becomes `NodeMissing`, and `NodeGone` after the grace time.
"""

from __future__ import annotations

from collections.abc import Set

from policies import adapter_set
from policies.actions import ActionKind
from policies.at_work import gets_requests, routed
from policies.drain import looked_at
from policies.events import (
    Event,
    GoneCause,
    IntentClosed,
    NodeBusy,
    NodeFound,
    NodeGone,
    NodeIdle,
    NodeMissing,
    NodeReady,
    NodeRouted,
    NodeSeen,
    NodeStopped,
    Outcome,
    PoolGrew,
    PoolWhole,
)
from policies.fleet import Fleet, address_of, balancer_load
from policies.model import (
    TAKES_SPOT,
    Ending,
    Instance,
    InstanceState,
    Market,
    NoticeKind,
    Observed,
    Placement,
    Pool,
    StandbyKind,
    TargetPhase,
    TargetState,
    World,
)
from policies.prices import changes as price_changes
from policies.reach import STOPPED, runs_all_the_same, vouched_for
from policies.records import Intent, Memory, NodeRecord, intent_key
from policies.regions import Sight
from policies.value import replace

_DOUBTED = 10.0
"""So many times `vanish_grace` a list is doubted that lacks what may be there all the same."""

_ALIVE = (InstanceState.PENDING, InstanceState.RUNNING, InstanceState.STOPPING, InstanceState.STOPPED)


def changes(pool: Pool, world: World, memory: Memory) -> tuple[Event, ...]:
    """Events that bring memory up to date with the world. Linear in the number of nodes."""
    found: list[Event] = []
    listed = {i.id: i for i in world.instances}
    load, sent = balancer_load(world), routed(world, memory)
    for instance in world.instances:
        record = memory.nodes.get(instance.id)
        if record is None:
            if instance.id in memory.ended or stranger(pool, memory, instance):
                continue
            if instance.state in _ALIVE or instance.token in memory.intents:
                adopted = instance.token not in memory.intents
                at_work = _works(world, instance) or (adopted and _may_work(world, instance))
                spot = instance.placement.market is Market.SPOT  # never a standby: the cloud takes it away
                seen = replace(instance, standby=None) if at_work or spot else instance
                intent = memory.intents.get(instance.token)
                found.append(_seen(world.now, seen, intent))
                if instance.state is InstanceState.TERMINATED:
                    gone = _ended(instance) or _unasked(instance.placement, instance.ending)
                    found.append(_gone_for(world.now, instance, gone))
        else:
            found.extend(_known(pool, world, memory, record, instance, load.get(instance.id), sent))
    unlisted = sorted((r for r in memory.nodes.values() if r.id not in listed), key=lambda r: r.id)
    vouched = vouched_for(world) if unlisted else set()
    for record in unlisted:
        if record.standby is StandbyKind.STOPPED and record.id in vouched:
            found.append(_at_work(world.now, record))
        address = address_of(record, None, world)
        found.extend(_engine_says(world, memory, record, address, load.get(record.id), sent))
    found.extend(_missing(pool, world, memory, listed))
    found.extend(price_changes(world, memory))
    found.extend(_withdrawn(pool, world, memory))
    found.extend(adapter_set.lost(world, memory))
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
    """`PoolWhole`, the first time that the wanted number of units is ready, and how far it is until then."""
    if memory.whole_at is not None or memory.replicas != pool.replicas:
        return ()
    if fleet.ready_units >= pool.replicas:
        return (PoolWhole(at=world.now),)
    if fleet.ready_units > memory.reached:
        return (PoolGrew(at=world.now, ready=fleet.ready_units),)
    return ()


def _seen(now: float, instance: Instance, intent: Intent | None) -> NodeSeen:
    """A new node. `intent`: the launch that we asked for, None for one of an earlier daemon.

    The provider dates a launch by its own clock. Ours may be hours off, and a boot's patience is counted by
    ours: a launch was not before we asked for it, the last time if more than once, and is not in the future.
    """
    asked_at = instance.launched_at if intent is None else intent.asked_at
    launched_at = min(now, max(asked_at, instance.launched_at))
    price = instance.price if instance.price is not None or intent is None else intent.price
    return NodeSeen(
        at=now,
        node=instance.id,
        token=instance.token,
        placement=instance.placement,
        launched_at=launched_at,
        price=price,
        address=instance.address,
        standby=instance.standby,
        build=instance.build,
    )


def _at_work(now: float, standby: Instance | NodeRecord) -> NodeSeen:
    """A standby that works: memory is older than what was done since, as where a journal was restored."""
    return NodeSeen(
        at=now,
        node=standby.id,
        token=standby.token,
        placement=standby.placement,
        launched_at=min(now, standby.launched_at),
        price=standby.price,
        address=standby.address,
        standby=None,
        build=standby.build,
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
    """True for a machine that some balancer was last seen to send requests to.

    One that a balancer finds healthy runs, whatever an old list shows.
    """
    found = {t.state for view in world.balancers.values() for t in view.value if t.id == instance.id}
    runs = instance.state is InstanceState.RUNNING and TargetState.INITIAL in found
    return runs or (instance.state in _ALIVE and TargetState.HEALTHY in found)


def _known(
    pool: Pool,
    world: World,
    memory: Memory,
    record: NodeRecord,
    instance: Instance,
    load: int | None,
    sent: Set[str],
) -> list[Event]:
    now = world.now
    found: list[Event] = []
    if record.standby is StandbyKind.STOPPED and _works(world, instance):
        return [_at_work(now, instance)]
    if record.missing_since is not None:
        found.append(NodeFound(at=now, node=record.id))
    if instance.state is InstanceState.TERMINATED:
        cause = _ended(instance) if record.ready_at is None else None
        return [*found, _gone_for(now, instance, cause or _why_gone(memory, record, instance.ending))]
    if (
        instance.state in STOPPED
        and _stop_is_news(memory, record)
        and not runs_all_the_same(pool, world, record)
    ):
        found.append(NodeStopped(at=now, node=record.id))
    if instance.state is InstanceState.RUNNING:
        found.extend(_engine_says(world, memory, record, instance.address, load, sent))
    return found


def _stop_is_news(memory: Memory, record: NodeRecord) -> bool:
    """True for a node that was ready, that we asked to stop, or that the cloud takes by stopping it."""
    asked = intent_key(record.id, ActionKind.STOP) in memory.intents
    spot = record.placement.market is Market.SPOT
    taken = spot and not any(n.kind is NoticeKind.STOP for n in record.notices)
    return record.ready_at is not None or asked or taken


def _engine_says(
    world: World, memory: Memory, record: NodeRecord, address: str, load: int | None, sent: Set[str]
) -> list[Event]:
    """What looks at the engine of a node tell, and at the requests that it gets."""
    now, reading, found = world.now, world.engines.get(record.id), list[Event]()
    if reading is None:
        return found
    # What was ready before it was stopped and started again is so only when it answers; and nobody can send
    # requests to a node whose address no list has told yet.
    if reading.ready and reading.ok and record.ready_at is None and address:
        found.append(NodeReady(at=now, node=record.id, address=address))
    if record.drain is not None:
        found.extend(_drained(world, record, load, sent))
        if record.detached_at is not None and _sent_anew(world, memory, record.id):
            found.append(NodeRouted(at=now, node=record.id))
    return found


def _drained(world: World, record: NodeRecord, load: int | None, sent: Set[str]) -> list[Event]:
    """Idle and busy edges of a draining node, by the engine's count and every balancer's.

    A count taken before the node was detached says nothing; a balancer that cannot be read has no say. `load`
    is None for a node that no balancer shows, `sent` are the nodes that may be sent requests.
    """
    drain, reading = record.drain, world.engines.get(record.id)
    if drain is None or reading is None:
        return []
    since = max(drain.since, record.detached_at or drain.since)
    if load is None and not reading.ok:
        return []
    fresh = looked_at(world, record.id) >= since
    in_flight = (load or 0) + (reading.in_flight if reading.ok else 0)
    if record.id in sent or (fresh and in_flight > 0):
        return [NodeBusy(at=world.now, node=record.id)] if record.idle_since is not None else []
    if fresh and record.idle_since is None:
        return [NodeIdle(at=world.now, node=record.id)]
    return []


def _sent_anew(world: World, memory: Memory, node: str) -> bool:
    """True when a balancer shows a node as active, by a look after the last set that it took, without it."""
    return any(
        view.at is not None
        and view.at > memory.applied_at.get(name, 0.0)
        and memory.targets.get(name, {}).get(node) is not TargetPhase.ACTIVE
        and any(t.id == node and gets_requests(t) for t in view.value)
        for name, view in world.balancers.items()
    )


def _missing(pool: Pool, world: World, memory: Memory, listed: dict[str, Instance]) -> list[Event]:
    """What the list of its region lacks. So many that a list is to be doubted are many of that region."""
    by_region: dict[str, list[NodeRecord]] = {}
    for record in memory.nodes.values():
        by_region.setdefault(record.placement.region, []).append(record)
    found: list[Event] = []
    for region, records in sorted(by_region.items()):
        view = world.region(region)
        if view is None:
            found.extend(_abandoned(pool, world, memory, records))
        elif world.seen(view) and not view.error:
            unlisted = [r for r in records if r.id not in listed]
            found.extend(_missing_in(pool, world, memory, view, unlisted, len(records)))
    return found


def _abandoned(pool: Pool, world: World, memory: Memory, records: list[NodeRecord]) -> list[Event]:
    """Nodes in a region that is not configured any more: no list will tell when they are gone.

    They are as soon as neither their engines nor a balancer has answered for so long that a list would be
    doubted no more.
    """
    vouched = vouched_for(world)
    found: list[Event] = []
    for record in sorted(records, key=lambda r: r.id):
        silent = _silent(pool, world, record.id) and record.id not in vouched
        if silent and record.missing_since is None:
            found.append(NodeMissing(at=world.now, node=record.id))
        elif not silent and record.missing_since is not None:
            found.append(NodeFound(at=world.now, node=record.id))
        elif record.missing_since is not None and (
            world.now - max(record.missing_since, world.awake_since) >= _DOUBTED * pool.patience.vanish_grace
        ):
            found.append(NodeGone(at=world.now, node=record.id, cause=_why_gone(memory, record)))
    return found


def _missing_in(
    pool: Pool,
    world: World,
    memory: Memory,
    view: Observed[tuple[Instance, ...]],
    unlisted: list[NodeRecord],
    known: int,
) -> list[Event]:
    read_at, looking_since = view.at or 0.0, view.since or 0.0
    absent = sorted((r for r in unlisted if r.launched_at < read_at), key=lambda r: r.id)
    suspicious = len(absent) > max(1.0, pool.health.max_unhealthy * known)
    vouched = vouched_for(world) if absent else set()
    found: list[Event] = []
    for record in absent:
        if record.missing_since is None:
            found.append(NodeMissing(at=world.now, node=record.id))
            continue
        # What an earlier list lacked counts from when this daemon has looked at lists without a gap.
        missing = read_at - max(record.missing_since, looking_since)
        # Of a node that never was ready there is no other word, and lists lag behind launches. A standby that
        # was stopped is silent.
        silent = _silent(pool, world, record.id) and record.id not in vouched
        waits = record.ready_at is None or record.standby is StandbyKind.STOPPED
        doubtful = suspicious or not silent or waits
        patience = pool.patience.vanish_grace * (_DOUBTED if doubtful else 1.0)
        if missing >= patience:
            found.append(NodeGone(at=world.now, node=record.id, cause=_why_gone(memory, record)))
    return found


def _withdrawn(pool: Pool, world: World, memory: Memory) -> list[Event]:
    """Launches that surely did nothing, in a region that cannot be seen now: they are not asked for again.

    Else they would hold the place of launches elsewhere until that region is back. What may have been
    launched stays open.
    """
    sight = Sight(pool, world, memory)
    return [
        IntentClosed(at=world.now, token=intent.token, outcome=Outcome.WITHDRAWN, detail=why)
        for intent in memory.intents.values()
        if intent.placement is not None and intent.unanswered and not intent.landed
        if (why := sight.passed_over(intent.placement.region))
    ]


def _silent(pool: Pool, world: World, node: str) -> bool:
    """True when an engine has been silent for as long as a list may lack its machine.

    One look that failed is not enough, and one that nobody has looked at may well answer.
    """
    reading = world.engines.get(node)
    if reading is None or reading.failing_since is None:
        return False
    return reading.at - reading.failing_since >= pool.patience.vanish_grace


def _gone_for(now: float, instance: Instance, cause: GoneCause) -> NodeGone:
    return NodeGone(at=now, node=instance.id, cause=cause, ended=True, detail=instance.ending_why)


def _ended(instance: Instance) -> GoneCause | None:
    """Why a machine ended that never was ready; None where the provider's word says nothing of its start.

    What ends so took no request and tells nothing of how long spot lasts there.
    """
    if instance.ending is Ending.FAULT:
        return GoneCause.NEVER_STARTED
    return GoneCause.REFUSED if instance.ending is Ending.CAPACITY else None


def _why_gone(memory: Memory, record: NodeRecord, ending: Ending = Ending.UNKNOWN) -> GoneCause:
    """Why a node went: a notice beforehand, our own wish, what the provider says, or none of them.

    A state change is no notice: it comes with every end, also with those that we asked for.
    """
    spot = record.placement.market is Market.SPOT
    said = (*TAKES_SPOT, NoticeKind.MAINTENANCE)
    if spot and any(n.kind in said and not n.cancelled for n in record.notices):
        return GoneCause.RECLAIMED
    if intent_key(record.id, ActionKind.TERMINATE) in memory.intents:
        return GoneCause.TERMINATED
    return _unasked(record.placement, ending)


def _unasked(placement: Placement, ending: Ending) -> GoneCause:
    taken = placement.market is Market.SPOT and ending not in (Ending.FAULT, Ending.REQUEST)
    return GoneCause.UNANNOUNCED if taken else GoneCause.LOST
