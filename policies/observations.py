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

from collections import Counter
from collections.abc import Iterator

from policies import adapter_set
from policies.actions import ActionKind
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
from policies.evidence import STOPPED, Evidence, ours
from policies.fleet import Fleet
from policies.model import (
    TAKES_SPOT,
    Ending,
    Instance,
    InstanceState,
    Market,
    NoticeKind,
    Placement,
    Pool,
    TargetState,
    World,
    kept_aside,
)
from policies.prices import changes as price_changes
from policies.records import DrainRecord, Intent, Memory, NodeRecord, intent_key
from policies.regions import Sight
from policies.value import replace

_DOUBTED = 10.0
"""So many times `vanish_grace` a list is doubted that lacks what may be there all the same."""

_ALIVE = (InstanceState.PENDING, InstanceState.RUNNING, InstanceState.STOPPING, InstanceState.STOPPED)


def changes(pool: Pool, world: World, memory: Memory) -> tuple[Event, ...]:
    """Events that bring memory up to date with the world. Linear in the number of nodes."""
    evidence, found = Evidence(pool, world, memory), list[Event]()
    for instance in world.instances:
        record = memory.nodes.get(instance.id)
        if record is None:
            found.extend(_new(evidence, instance))
        else:
            found.extend(_known(evidence, record, instance))
    unlisted = sorted((r for r in memory.nodes.values() if r.id not in evidence.listed), key=lambda r: r.id)
    for record in unlisted:
        if kept_aside(record.standby) and record.id in evidence.routing.finds_healthy:
            found.append(_at_work(world.now, record))
        found.extend(_engine_says(evidence, record, evidence.address(record)))
    found.extend(_missing(evidence, unlisted))
    found.extend(price_changes(world, memory))
    found.extend(_withdrawn(evidence, Sight(evidence, world)))
    found.extend(adapter_set.lost(evidence))
    return tuple(found)


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


def _new(evidence: Evidence, instance: Instance) -> Iterator[Event]:
    """A machine that is not known yet, if it is ours.

    The tag of a standby says what it was launched for, and not whether a daemon whose journal is lost has put
    it to work. Only a balancer can; until every one was read a running machine counts as working, which at
    worst costs a second standby.
    """
    memory, now = evidence.memory, evidence.now
    if instance.id in memory.ended or not ours(evidence.pool, memory, instance).holds:
        return
    intent = memory.intents.get(instance.token)
    if intent is None and instance.state not in _ALIVE:
        return
    adopted = intent is None and instance.state is InstanceState.RUNNING
    works = _works(evidence, instance) or (adopted and evidence.routing.may_have_put_to_work(instance.id))
    spot = instance.placement.market is Market.SPOT  # never a standby: the cloud takes it away
    yield _seen(now, replace(instance, standby=None) if works or spot else instance, intent)
    if instance.state is InstanceState.TERMINATED:
        yield _gone_for(now, instance, _ended(instance) or _unasked(instance.placement, instance.ending))


def _works(evidence: Evidence, instance: Instance) -> bool:
    """True for a machine that some balancer was last seen to send requests to.

    One that a balancer finds healthy runs, whatever an old list shows.
    """
    shown = {target.state for target in evidence.routing.targets.get(instance.id, ())}
    running = instance.state is InstanceState.RUNNING and TargetState.INITIAL in shown
    return running or (instance.state in _ALIVE and TargetState.HEALTHY in shown)


def _known(evidence: Evidence, record: NodeRecord, instance: Instance) -> list[Event]:
    now, memory, found = evidence.now, evidence.memory, list[Event]()
    if kept_aside(record.standby) and _works(evidence, instance):
        return [_at_work(now, instance)]
    if record.missing_since is not None:
        found.append(NodeFound(at=now, node=record.id))
    if instance.state is InstanceState.TERMINATED:
        cause = _ended(instance) if record.ready_at is None else None
        return [*found, _gone_for(now, instance, cause or _why_gone(memory, record, instance.ending))]
    stopped = instance.state in STOPPED and _stop_is_news(memory, record)
    if stopped and not evidence.contradicts_stopped(record):
        found.append(NodeStopped(at=now, node=record.id))
    if instance.state is InstanceState.RUNNING:
        found.extend(_engine_says(evidence, record, instance.address))
    return found


def _stop_is_news(memory: Memory, record: NodeRecord) -> bool:
    """True for a node that was ready, that we asked to stop, or that the cloud takes by stopping it."""
    asked = intent_key(record.id, ActionKind.STOP) in memory.intents
    spot = record.placement.market is Market.SPOT
    taken = spot and not any(n.kind is NoticeKind.STOP for n in record.notices)
    return record.ready_at is not None or asked or taken


def _engine_says(evidence: Evidence, record: NodeRecord, address: str) -> list[Event]:
    """What looks at the engine of a node tell, and at the requests that it gets."""
    now, found = evidence.now, list[Event]()
    # What was ready before it was stopped and started again is so only when it answers; and nobody can send
    # requests to a node whose address no list has told yet.
    if record.ready_at is None and address and evidence.is_up(record.id):
        found.append(NodeReady(at=now, node=record.id, address=address))
    if record.drain is not None and evidence.look(record.id) is not None:
        found.extend(_drained(evidence, record, record.drain))
        if record.detached_at is not None and evidence.routing.sends_anew(record.id):
            found.append(NodeRouted(at=now, node=record.id))
    return found


def _drained(evidence: Evidence, record: NodeRecord, drain: DrainRecord) -> list[Event]:
    """Idle and busy edges of a draining node, by the engine's count and every balancer's.

    A count taken before the node was detached says nothing; a balancer that cannot be read has no say.
    """
    node, count = record.id, evidence.counted(record.id)
    if count is None:
        return []
    fresh = evidence.looked_at(node) >= max(drain.since, record.detached_at or drain.since)
    if (fresh and count > 0) or node in evidence.routing.may_send_to:
        return [NodeBusy(at=evidence.now, node=node)] if record.idle_since is not None else []
    return [NodeIdle(at=evidence.now, node=node)] if fresh and record.idle_since is None else []


def _missing(evidence: Evidence, unlisted: list[NodeRecord]) -> list[Event]:
    """What the list of its region lacks, by region."""
    now, found = evidence.now, list[Event]()
    absent = [(record, evidence.exists(record)) for record in unlisted]
    lacking = Counter(record.placement.region for record, exists in absent if not exists.open)
    known = Counter(record.placement.region for record in evidence.memory.nodes.values()) if lacking else {}
    for record, exists in sorted(absent, key=lambda entry: entry[0].placement.region):
        region = record.placement.region
        many = lacking[region] > max(1.0, evidence.pool.health.max_unhealthy * known.get(region, 0))
        if record.missing_since is None:
            if not exists.open:
                found.append(NodeMissing(at=now, node=record.id))
        elif exists.holds:
            found.append(NodeFound(at=now, node=record.id))
        elif exists.fails(_patience(evidence, record, many=many)):
            cause = _why_gone(evidence.memory, record)
            found.append(NodeGone(at=now, node=record.id, cause=cause))
    return found


def _patience(evidence: Evidence, record: NodeRecord, *, many: bool) -> float:
    """Seconds for which lists must lack a node before it is gone: longer while a list is to be doubted.

    It is where it lacks so many, or what is not silent. Of a node that never was ready there is no other
    word, and lists lag behind launches; a standby that was stopped is silent; and in a region that nobody
    lists no list is to be waited for.
    """
    waits = record.ready_at is None or kept_aside(record.standby)
    doubtful = many or waits or not evidence.silent_to_most(record.id) or evidence.unlisted(record)
    return evidence.pool.patience.vanish_grace * (_DOUBTED if doubtful else 1.0)


def _withdrawn(evidence: Evidence, sight: Sight) -> list[Event]:
    """Launches that surely did nothing, in a region that cannot be seen now: they are not asked for again.

    Else they would hold the place of launches elsewhere until that region is back. What may have been
    launched stays open.
    """
    return [
        IntentClosed(at=evidence.now, token=intent.token, outcome=Outcome.WITHDRAWN, detail=why)
        for intent in evidence.memory.intents.values()
        if intent.placement is not None and intent.unanswered and not intent.landed
        if (why := sight.passed_over(intent.placement.region))
    ]


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
