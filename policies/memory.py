"""What is remembered between turns, and `reduce`: how an event changes it.

Memory is rebuilt by reducing the journal in order. `reduce` is a fold: the same events give the same memory,
however they are cut into batches. The values are in `policies.records`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from policies import (
    adapter_memory,
    bars,
    boot_memory,
    call_memory,
    fallback,
    gpu_memory,
    hazard,
    part_memory,
    prices,
    resize,
    starts,
)
from policies.actions import ActionKind, Cause
from policies.adapter_events import AdapterAnswered, AdapterAsked, AdapterLost, NodeCurrent, NodeOutdated
from policies.clock_step import not_in_future
from policies.events import (
    AlarmRaised,
    BootFailed,
    CapNear,
    CapReached,
    ConfigRejected,
    DaemonStarted,
    DrainEnded,
    DrainHeld,
    DrainStarted,
    Event,
    FallbackBegan,
    FallbackEnded,
    GoneCause,
    GpuAcquitted,
    GpuCondemned,
    IntentClosed,
    IntentOpened,
    NodeBusy,
    NodeFound,
    NodeGone,
    NodeIdle,
    NodeMissing,
    NodeReady,
    NodeRouted,
    NodeSeen,
    NodeStopped,
    NoticeSeen,
    OperatorDrained,
    OperatorUndrained,
    PartBack,
    PartLost,
    Paused,
    PoolConfigured,
    PoolGrew,
    PoolRemoved,
    PoolWhole,
    PricesRead,
    ProviderBack,
    ProviderFailing,
    Resumed,
    StateChanged,
    TargetsApplied,
)
from policies.memory_builder import MemoryBuilder
from policies.model import TAKES_SPOT, Confidence, Market, Notice, NoticeKind, TargetPhase
from policies.records import (
    DrainRecord,
    Intent,
    Memory,
    NodeRecord,
    OperatorRequest,
    Pause,
    StartMeasured,
    Swap,
    add_notice,
    concerns,
    decayed,
    first_to_forget,
    intent_key,
    stop_notice,
)
from policies.value import replace

__all__ = ["Memory", "NodeRecord", "Swap", "add_notice", "decayed", "intent_key", "reduce", "replay"]

EARLY_NOTICES_KEPT = 256
"""Nodes not described yet whose notices are kept, and those that an operator wants drained."""

ENDED_FOR = 3600.0
"""Seconds for which it is remembered that a machine has ended: lists lag behind for less."""

ENDED_KEPT = 1024
"""Machines of which that is remembered at most."""

_START = {Market.SPOT: hazard.SPOT_START, Market.ON_DEMAND: hazard.ON_DEMAND_START}
"""What the time of a launch is remembered as."""


def reduce(memory: Memory, *events: Event) -> Memory:
    """Take events into memory, in order. Linear in the size of memory plus the number of events."""
    builder = MemoryBuilder(memory)
    for event in events:
        _REDUCERS[type(event)](builder, event)
    return builder.done()


def replay(events: Iterable[Event]) -> Memory:
    """Memory from a whole journal."""
    return reduce(Memory(), *events)


def _started(builder: MemoryBuilder, event: DaemonStarted) -> None:
    builder.become(not_in_future(builder.done(), event.at))
    builder.set("epoch", max(builder.get("epoch"), event.epoch))
    # A snapshot of a version that did not ask tells all the same.
    was_ready = [builder.get("served_at"), builder.get("whole_at")]
    was_ready += [record.ready_at for record in builder.get("nodes").values()]
    if any(at is not None for at in was_ready):
        builder.set("ready_once", True)
    # What balancers held last is still the best guess; but each set is written again by the new daemon.
    builder.set("applied_at", {})
    # Calls in flight when the last daemon ended have an unknown outcome: the same tokens are asked again.
    intents = builder.mapping("intents")
    for token, intent in intents.items():
        if intent.accepted_at is None:
            intents[token] = replace(intent, unanswered=True, landed=True)
    adapter_memory.restarted(builder)


def _removed(builder: MemoryBuilder, _event: PoolRemoved) -> None:
    """Only what makes the tokens of launches unique outlives a pool."""
    builder.become(Memory(epoch=builder.get("epoch"), serial=builder.get("serial")))


def _whole(builder: MemoryBuilder, event: PoolWhole) -> None:
    builder.set("whole_at", event.at)


def _grew(builder: MemoryBuilder, event: PoolGrew) -> None:
    builder.set("reached", max(builder.get("reached"), event.ready))


def _seen(builder: MemoryBuilder, event: NodeSeen) -> None:
    # An adopted node's boot is counted from its adoption: nobody remembers whether it was ready before.
    launched, known = event.token in builder.get("intents"), builder.record(event.node)
    record = NodeRecord(
        id=event.node,
        token=event.token,
        placement=event.placement,
        launched_at=event.launched_at,
        price=event.price,
        address=event.address,
        standby=event.standby,
        build=event.build,
        started_at=event.launched_at if launched else event.at,
    )
    if known is not None:  # a standby that is at work: what was said of it and decided holds all the same
        price = known.price if event.price is None else event.price
        record = replace(
            record,
            notices=known.notices,
            drain=known.drain,
            operator=known.operator,
            price=price,
            spared=known.spared,
        )
    early: OperatorRequest | None = builder.take("early_requests", event.node)
    if early is not None:
        record = replace(record, operator=early)
    builder.mapping("nodes")[event.node] = record
    builder.forget_intent(event.token)
    builder.learn(event.placement, event.at, hazard.took)
    builder.pair(builder.get("incoming").get(event.token, ""), event.node)
    for notice in builder.take("early_notices", event.node) or ():
        _noticed(builder, NoticeSeen(at=event.at, notice=notice))


def _ready(builder: MemoryBuilder, event: NodeReady) -> None:
    builder.node(event.node, ready_at=event.at, address=event.address)
    builder.spot_back(event.node)
    record = builder.record(event.node)
    if record is not None:
        _time_start(builder, event, record)
        builder.set("ready_once", True)
        bars.ready(builder, record)
        builder.take("boot_failures", record.placement)
    builder.reached(builder.get("incoming").get(event.node, ""), "replaced_at", event.at)
    builder.forget_intent(intent_key(event.node, ActionKind.START))


def _time_start(builder: MemoryBuilder, event: NodeReady, record: NodeRecord) -> None:
    """Learn how long starts take: of launches that we made, and of standbys that we started."""
    if intent_key(event.node, ActionKind.START) in builder.get("intents"):
        builder.timed(hazard.STANDBY_START, event.at - record.started_at)
    elif record.started_at == record.launched_at:
        builder.timed(_START[record.placement.market], event.at - record.launched_at)


def _stopped(builder: MemoryBuilder, event: NodeStopped) -> None:
    builder.node(event.node, ready_at=None)
    part_memory.forget_engine(builder, event.node)
    record, asked = builder.record(event.node), intent_key(event.node, ActionKind.STOP)
    if record is not None and record.placement.market is Market.SPOT and asked not in builder.get("intents"):
        _noticed(builder, NoticeSeen(at=event.at, notice=stop_notice(event.node, event.at)))
    builder.forget_intent(asked)


def _missing(builder: MemoryBuilder, event: NodeMissing) -> None:
    builder.node(event.node, missing_since=event.at)


def _found(builder: MemoryBuilder, event: NodeFound) -> None:
    builder.node(event.node, missing_since=None)


def _idle(builder: MemoryBuilder, event: NodeIdle) -> None:
    builder.node(event.node, idle_since=event.at)
    builder.reached(event.node, "drained_at", event.at)


def _busy(builder: MemoryBuilder, event: NodeBusy) -> None:
    builder.node(event.node, idle_since=None)
    builder.swap(event.node, drained_at=None)


def _routed(builder: MemoryBuilder, event: NodeRouted) -> None:
    builder.node(event.node, detached_at=None, idle_since=None)


def _gone(builder: MemoryBuilder, event: NodeGone) -> None:
    record = builder.record(event.node)
    if record is None:
        return
    ended: Intent | None = builder.get("intents").get(intent_key(event.node, ActionKind.TERMINATE))
    for kind in (ActionKind.TERMINATE, ActionKind.STOP, ActionKind.START):
        builder.forget_intent(intent_key(event.node, kind))
    builder.unpair(event.node)
    preempted = event.cause in (GoneCause.RECLAIMED, GoneCause.UNANNOUNCED)
    if not _takes_spot(record.notices):
        builder.learn(record.placement, event.at, hazard.lost if preempted else hazard.let_go)
    builder.set("preemptions", builder.get("preemptions") + preempted)
    if event.cause is GoneCause.UNANNOUNCED:
        builder.set("preemptions_without_notice", builder.get("preemptions_without_notice") + 1)
        builder.bad_news("reclaims", record.placement, event.at)
        builder.open_swap(event.node, Cause.NOTICE, event.at)
    _never_came_up(builder, event, record, given_up=ended is not None and ended.cause is Cause.BOOT)
    builder.mapping("nodes").pop(event.node)
    if event.cause is not GoneCause.NEVER_STARTED:
        builder.spot_lost(record.placement, event.at)
    part_memory.forget_engine(builder, event.node)
    if event.ended:
        _has_ended(builder, event.node, event.at)
    else:  # lists may be wrong, and show it again
        _keep_what_was_said(builder, record)
    builder.swap(event.node, gone_at=event.at)
    builder.reached(event.node, "detached_at", event.at)


def _never_came_up(builder: MemoryBuilder, event: NodeGone, record: NodeRecord, *, given_up: bool) -> None:
    """What the end of a machine that never was ready says of its placement and of its market."""
    if event.cause is GoneCause.REFUSED:
        builder.refused(record.placement, event.at)
    elif event.cause is GoneCause.NEVER_STARTED:
        builder.boot_failed(record.placement, event.at, since=record.started_at)
        bars.faulted(builder, record.placement, event.at, event.detail)
    elif given_up or (event.cause is GoneCause.LOST and record.ready_at is None):
        builder.boot_failed(record.placement, event.at, since=record.started_at)


def _has_ended(builder: MemoryBuilder, node: str, at: float) -> None:
    """No machine comes back from that: a list that shows it again is older."""
    ended = builder.mapping("ended")
    ended[node] = at
    oldest = next(iter(ended))
    while len(ended) > ENDED_KEPT or at - ended[oldest] >= ENDED_FOR:
        ended.pop(oldest)
        oldest = next(iter(ended))


def _keep_what_was_said(builder: MemoryBuilder, record: NodeRecord) -> None:
    """The cloud's word and an operator's hold until a list shows the node again."""
    if record.notices:
        _keep_early(builder, record.id, record.notices)
    if record.operator is not None:
        requests = builder.mapping("early_requests")
        requests[record.id] = record.operator
        if len(requests) > EARLY_NOTICES_KEPT:
            requests.pop(next(iter(requests)))


def _noticed(builder: MemoryBuilder, event: NoticeSeen) -> None:
    notice = event.notice
    record = builder.record(notice.node)
    if record is None:
        _early(builder, notice)
        return
    notices = add_notice(record.notices, notice)
    if notices is record.notices or not concerns(notice, record) or _says_what_we_did(builder, notice):
        return
    builder.node(notice.node, notices=notices)
    if notice.cancelled:
        if record.drain is None and all(n.cancelled for n in notices):
            builder.drop_swap(notice.node)
        return
    takes_it = notice.kind in TAKES_SPOT and record.placement.market is Market.SPOT
    if takes_it and not _takes_spot(record.notices):
        builder.bad_news("reclaims", record.placement, event.at)
        builder.learn(record.placement, event.at, hazard.lost)
        warned = notice.kind is NoticeKind.INTERRUPTION and record.ready_at is not None
        if warned and notice.deadline is not None:
            # A node younger than a notice is told late: it says nothing of how much warning there is.
            builder.timed(hazard.NOTICE_LEAD, max(0.0, notice.deadline - event.at))


def _says_what_we_did(builder: MemoryBuilder, notice: Notice) -> bool:
    """The node says that it goes, and we had asked for that: a machine's last word comes with every end."""
    intents = builder.get("intents")
    asked = (intent_key(notice.node, kind) for kind in (ActionKind.TERMINATE, ActionKind.STOP))
    return notice.confidence is Confidence.REPORTED and any(key in intents for key in asked)


def _takes_spot(notices: Iterable[Notice]) -> bool:
    """The cloud said that it takes the node, even if it took that back."""
    return any(notice.kind in TAKES_SPOT for notice in notices)


def _early(builder: MemoryBuilder, notice: Notice) -> None:
    """The notice was quicker than the list that describes its node: keep it for a while."""
    known = builder.get("early_notices").get(notice.node, ())
    notices = add_notice(known, notice)
    if notices is not known:
        _keep_early(builder, notice.node, notices)


def _keep_early(builder: MemoryBuilder, node: str, notices: tuple[Notice, ...]) -> None:
    """Keep the notices of a node that is not known, until a list shows it."""
    early = builder.mapping("early_notices")
    early[node] = notices
    if len(early) > EARLY_NOTICES_KEPT:
        early.pop(first_to_forget(early))


def _drain(builder: MemoryBuilder, event: DrainStarted) -> None:
    record = builder.record(event.node)
    if record is None:
        return
    drain = DrainRecord(since=event.at, deadline=event.deadline, cause=event.cause, reason=event.reason)
    if record.drain is None:
        builder.node(event.node, drain=drain, idle_since=None)
    else:  # its deadline moves: what was seen since it began still counts
        builder.node(event.node, drain=replace(drain, since=record.drain.since))
    builder.spot_lost(record.placement, event.at)
    builder.open_swap(event.node, event.cause, event.at)
    if event.cause is Cause.REBALANCE and record.drain is None:
        # Else the next launch could go back to the place that was just left.
        builder.bad_news("reclaims", record.placement, event.at)


def _undrain(builder: MemoryBuilder, event: DrainEnded) -> None:
    builder.node(event.node, drain=None, idle_since=None)
    builder.spot_back(event.node)
    builder.forget_intent(intent_key(event.node, ActionKind.TERMINATE))
    builder.drop_swap(event.node)


def _applied(builder: MemoryBuilder, event: TargetsApplied) -> None:
    targets = builder.mapping("targets")
    before = targets.get(event.balancer, {})
    # The first acknowledgement that a daemon gets names the whole set.
    first = event.balancer not in builder.get("applied_at")
    changes: dict[str, TargetPhase | None] = {**dict.fromkeys(before if first else ()), **dict(event.changes)}
    held = {node: phase for node, phase in {**before, **changes}.items() if phase is not None}
    for node, phase in changes.items():
        _moved(builder, node, phase, event.at, was_active=before.get(node) is TargetPhase.ACTIVE)
    for node, record in [*builder.get("nodes").items()]:
        # One that this balancer had let go, and sent requests to all the same, is let go of once more.
        out = record.drain is not None and held.get(node) is not TargetPhase.ACTIVE
        if out and record.detached_at is None and node not in changes:
            builder.node(node, detached_at=event.at)
    targets[event.balancer] = held
    builder.mapping("applied_at")[event.balancer] = event.at
    if builder.get("served_at") is None and TargetPhase.ACTIVE in held.values():
        builder.set("served_at", event.at)


def _moved(
    builder: MemoryBuilder, node: str, phase: TargetPhase | None, at: float, *, was_active: bool
) -> None:
    """Remember since when no balancer sends a node new requests."""
    if phase is TargetPhase.ACTIVE:
        builder.node(node, detached_at=None)
        return
    record = builder.record(node)
    if record is not None and (was_active or record.detached_at is None):
        builder.node(node, detached_at=at)
    builder.reached(node, "detached_at", at)


def _operator_drain(builder: MemoryBuilder, event: OperatorDrained) -> None:
    builder.node(
        event.node, operator=OperatorRequest(since=event.at, budget=event.budget, reason=event.reason)
    )


def _operator_undrain(builder: MemoryBuilder, event: OperatorUndrained) -> None:
    record = builder.record(event.node)
    if record is not None:
        by_others = record.operator is not None and record.operator.cause is not Cause.OPERATOR
        builder.node(event.node, operator=None, spared=record.spared or by_others)
    builder.take("early_requests", event.node)


def _paused(builder: MemoryBuilder, event: Paused) -> None:
    builder.set("pause", Pause(by=event.by, reason=event.reason, since=event.at, until=event.until))


def _told(_builder: MemoryBuilder, _event: AlarmRaised | ConfigRejected | DrainHeld) -> None:
    """For people and measurements; nothing is decided from it."""


_REDUCERS: dict[type, Callable[[MemoryBuilder, Any], None]] = {
    DaemonStarted: _started,
    PoolConfigured: resize.note,
    PoolRemoved: _removed,
    PoolWhole: _whole,
    PoolGrew: _grew,
    NodeSeen: _seen,
    NodeReady: _ready,
    NodeStopped: _stopped,
    NodeMissing: _missing,
    NodeFound: _found,
    NodeIdle: _idle,
    NodeBusy: _busy,
    NodeRouted: _routed,
    NodeGone: _gone,
    NoticeSeen: _noticed,
    IntentOpened: call_memory.opened,
    IntentClosed: call_memory.closed,
    DrainStarted: _drain,
    DrainEnded: _undrain,
    TargetsApplied: _applied,
    OperatorDrained: _operator_drain,
    OperatorUndrained: _operator_undrain,
    PricesRead: prices.note,
    Paused: _paused,
    Resumed: bars.resumed,
    PartLost: part_memory.lost,
    PartBack: part_memory.back,
    StateChanged: part_memory.state_changed,
    GpuCondemned: gpu_memory.condemned,
    GpuAcquitted: gpu_memory.acquitted,
    FallbackBegan: fallback.began,
    FallbackEnded: fallback.ended,
    ProviderFailing: fallback.failing,
    ProviderBack: fallback.back,
    CapNear: fallback.cap_told,
    CapReached: fallback.cap_told,
    AdapterAsked: adapter_memory.asked,
    AdapterAnswered: adapter_memory.answered,
    AdapterLost: adapter_memory.lost,
    NodeOutdated: adapter_memory.outdated,
    NodeCurrent: adapter_memory.current,
    BootFailed: boot_memory.failed,
    StartMeasured: starts.measured,
    AlarmRaised: _told,
    ConfigRejected: _told,
    DrainHeld: _told,
}
