"""What is remembered between turns, and `reduce`: how an event changes it.

Memory holds only what the next observation cannot tell again: notices, intents whose effect is not seen
yet, drains, refusals, the swap history, pauses. It is rebuilt by reducing the journal in order, so the
same events always give the same memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from policies.actions import ActionKind, Cause
from policies.events import (
    AlarmRaised,
    DaemonStarted,
    DrainEnded,
    DrainStarted,
    Event,
    GoneCause,
    IntentClosed,
    IntentOpened,
    NodeBusy,
    NodeFound,
    NodeGone,
    NodeIdle,
    NodeMissing,
    NodeReady,
    NodeSeen,
    NodeStopped,
    NoticeSeen,
    OperatorDrained,
    OperatorUndrained,
    Outcome,
    Paused,
    PoolConfigured,
    PoolWhole,
    Resumed,
    TargetsApplied,
)
from policies.model import Notice, NoticeKind, Placement, StandbyKind, TargetPhase

SWAPS_KEPT = 200
"""Closed swaps that stay in memory for `history`; the journal has all of them."""

ATTEMPTS = 6
"""Times that a call which surely did nothing is repeated before it is given up."""

EARLY_NOTICES_KEPT = 256
"""Nodes not described yet whose notices are kept."""

BAD_NEWS_HALF_LIFE = 1800.0
"""Seconds after which earlier bad news adds half its weight to a new piece."""

LAUNCH_WINDOW = 60.0
"""Seconds over which launches are counted for the rate limit."""

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainRecord:
    """A drain that was decided."""

    since: float
    deadline: float
    cause: Cause
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorRequest:
    """A drain that an operator asked for; `budget` is seconds for the requests in flight."""

    since: float
    budget: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRecord:
    """What is remembered of one node.

    `started_at`: when it was launched or last started from being stopped. `ready_at`: when its engine
    became ready since then. `idle_since`: since when a
    draining node has held no request. `missing_since`: since when complete lists lack it. `notices`:
    the newest notice of each (source, id).
    """

    id: str
    token: str
    placement: Placement
    launched_at: float
    price: float
    address: str = ""
    standby: StandbyKind | None = None
    ready_at: float | None = None
    notices: tuple[Notice, ...] = ()
    drain: DrainRecord | None = None
    idle_since: float | None = None
    missing_since: float | None = None
    operator: OperatorRequest | None = None
    started_at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """A call that was opened and whose effect is not yet seen.

    A launch stays open until its instance is described, refused or given up. `unanswered`: the last call
    failed or its answer was lost; the same token is asked again. `accepted_at`: when the call came back as
    done. `asked_at` and `attempts` pace the asking.
    """

    token: str
    kind: ActionKind
    node: str
    at: float
    placement: Placement | None = None
    standby: StandbyKind | None = None
    replaces: str = ""
    price: float = 0.0
    cause: Cause | None = None
    reason: str = ""
    accepted_at: float | None = None
    unanswered: bool = False
    asked_at: float = 0.0
    attempts: int = 1

    def due(self, now: float, timeout: float) -> bool:
        """True when the same call should be made again: soon after a failure, late after silence."""
        wait = min(timeout, 2.0 ** (self.attempts - 1)) if self.unanswered else timeout
        return now - self.asked_at >= wait


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Remembered bad news about a placement. `weight` is as of `at`; it decays (policies.placement)."""

    at: float
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Swap:
    """An outgoing node, what takes its place, and when each stage was reached (None: not yet)."""

    outgoing: str
    cause: Cause
    opened_at: float
    deadline: float | None = None
    incoming: str = ""  # node id; the launch's token until the node is described
    detached_at: float | None = None
    drained_at: float | None = None
    replaced_at: float | None = None
    gone_at: float | None = None

    @property
    def stage(self) -> str:
        """The furthest stage in words."""
        if self.replaced_at is not None and self.gone_at is not None:
            return "done"
        for at, name in (
            (self.replaced_at, "replaced"),
            (self.gone_at, "gone"),
            (self.drained_at, "drained"),
            (self.detached_at, "detached"),
        ):
            if at is not None:
                return name
        return "noticed" if self.cause is Cause.NOTICE else "opened"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """Hands off, asked for by an operator."""

    by: str
    reason: str
    since: float
    until: float | None

    def holds(self, now: float) -> bool:
        """True while the pause is in force."""
        return self.until is None or now < self.until


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Everything remembered about one pool. Immutable: `reduce` returns a new one."""

    epoch: int = 0
    serial: int = 0
    replicas: int = 0
    whole_at: float | None = None
    nodes: Mapping[str, NodeRecord] = field(default_factory=dict)
    intents: Mapping[str, Intent] = field(default_factory=dict)
    refusals: Mapping[Placement, Refusal] = field(default_factory=dict)
    reclaims: Mapping[Placement, Refusal] = field(default_factory=dict)
    boot_failures: Mapping[Placement, Refusal] = field(default_factory=dict)
    quota_at: Mapping[Placement, float] = field(default_factory=dict)
    targets: Mapping[str, Mapping[str, TargetPhase]] = field(default_factory=dict)
    applied_at: Mapping[str, float] = field(default_factory=dict)
    swaps: Mapping[str, Swap] = field(default_factory=dict)
    incoming: Mapping[str, str] = field(default_factory=dict)  # what comes in -> whom it replaces
    early_notices: Mapping[str, tuple[Notice, ...]] = field(default_factory=dict)
    launches: tuple[float, ...] = ()
    pause: Pause | None = None
    preemptions: int = 0
    preemptions_without_notice: int = 0


def intent_key(node: str, kind: ActionKind) -> str:
    """The token of an action on a node: at most one of a kind is open, and asking twice is harmless."""
    return f"{node}:{kind}"


class _Draft:
    """A memory being changed: each mapping is copied once, at its first write."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._changed: dict[str, Any] = {}

    def get(self, name: str) -> Any:
        """The value of a field as changed so far."""
        return self._changed[name] if name in self._changed else getattr(self._memory, name)

    def set(self, name: str, value: Any) -> None:
        """Replace a plain field."""
        self._changed[name] = value

    def mapping(self, name: str) -> dict[Any, Any]:
        """A mapping field, to be changed in place."""
        if name not in self._changed:
            self._changed[name] = dict(getattr(self._memory, name))
        value: dict[Any, Any] = self._changed[name]
        return value

    def node(self, node: str, **changes: Any) -> None:
        """Change the record of a node; unknown nodes are ignored."""
        if node in self.get("nodes"):
            nodes = self.mapping("nodes")
            nodes[node] = replace(nodes[node], **changes)

    def swap(self, outgoing: str, **changes: Any) -> None:
        """Change the swap of an outgoing node, if there is one."""
        if outgoing in self.get("swaps"):
            swaps = self.mapping("swaps")
            swaps[outgoing] = replace(swaps[outgoing], **changes)

    def done(self) -> Memory:
        """The changed memory."""
        return replace(self._memory, **self._changed) if self._changed else self._memory


def reduce(memory: Memory, *events: Event) -> Memory:
    """Take events into memory, in order. Linear in the size of memory plus the number of events."""
    draft = _Draft(memory)
    for event in events:
        _REDUCERS[type(event)](draft, event)
    return draft.done()


def _started(draft: _Draft, event: DaemonStarted) -> None:
    draft.set("epoch", max(draft.get("epoch"), event.epoch))
    # A new daemon has asked nothing of any balancer yet: it writes every set again.
    draft.set("targets", {})
    draft.set("applied_at", {})
    # Calls in flight when the last daemon ended have an unknown outcome: the same tokens are asked again.
    intents = draft.mapping("intents")
    for token, intent in intents.items():
        if intent.accepted_at is None:
            intents[token] = replace(intent, unanswered=True)


def _configured(draft: _Draft, event: PoolConfigured) -> None:
    if event.replicas != draft.get("replicas"):
        draft.set("replicas", event.replicas)
        draft.set("whole_at", None)


def _whole(draft: _Draft, event: PoolWhole) -> None:
    draft.set("whole_at", event.at)


def _seen(draft: _Draft, event: NodeSeen) -> None:
    draft.mapping("nodes")[event.node] = NodeRecord(
        id=event.node,
        token=event.token,
        placement=event.placement,
        launched_at=event.launched_at,
        price=event.price,
        address=event.address,
        standby=event.standby,
        started_at=event.launched_at,
    )
    _forget_intent(draft, event.token)
    _pair(draft, draft.get("incoming").get(event.token, ""), event.node)
    if event.node in draft.get("early_notices"):
        for notice in draft.mapping("early_notices").pop(event.node):
            _noticed(draft, NoticeSeen(at=event.at, notice=notice))


def _ready(draft: _Draft, event: NodeReady) -> None:
    draft.node(event.node, ready_at=event.at, address=event.address)
    record = draft.get("nodes").get(event.node)
    if record is not None and record.placement in draft.get("boot_failures"):
        draft.mapping("boot_failures").pop(record.placement)
    outgoing = draft.get("incoming").get(event.node, "")
    if outgoing in draft.get("swaps") and draft.get("swaps")[outgoing].replaced_at is None:
        draft.swap(outgoing, replaced_at=event.at)
    _forget_intent(draft, intent_key(event.node, ActionKind.START))


def _stopped(draft: _Draft, event: NodeStopped) -> None:
    draft.node(event.node, ready_at=None)
    _forget_intent(draft, intent_key(event.node, ActionKind.STOP))


def _missing(draft: _Draft, event: NodeMissing) -> None:
    draft.node(event.node, missing_since=event.at)


def _found(draft: _Draft, event: NodeFound) -> None:
    draft.node(event.node, missing_since=None)


def _idle(draft: _Draft, event: NodeIdle) -> None:
    draft.node(event.node, idle_since=event.at)
    swap = draft.get("swaps").get(event.node)
    if swap is not None and swap.drained_at is None:
        draft.swap(event.node, drained_at=event.at)


def _busy(draft: _Draft, event: NodeBusy) -> None:
    draft.node(event.node, idle_since=None)
    if event.node in draft.get("swaps"):
        draft.swap(event.node, drained_at=None)


def _gone(draft: _Draft, event: NodeGone) -> None:
    record = draft.get("nodes").get(event.node)
    if record is None:
        return
    draft.mapping("nodes").pop(event.node)
    ended = draft.get("intents").get(intent_key(event.node, ActionKind.TERMINATE))
    for kind in (ActionKind.TERMINATE, ActionKind.STOP, ActionKind.START):
        _forget_intent(draft, intent_key(event.node, kind))
    _unpair(draft, event.node)
    if event.cause in (GoneCause.RECLAIMED, GoneCause.UNANNOUNCED):
        draft.set("preemptions", draft.get("preemptions") + 1)
        if event.cause is GoneCause.UNANNOUNCED:
            draft.set("preemptions_without_notice", draft.get("preemptions_without_notice") + 1)
            _bad_news(draft, "reclaims", record.placement, event.at)
            _open_swap(draft, event.node, Cause.NOTICE, event.at, event.at)
            draft.swap(event.node, detached_at=event.at)
    if ended is not None and ended.cause is Cause.BOOT:
        known = draft.get("boot_failures").get(record.placement)
        count = 1.0 if known is None else known.weight + 1.0
        draft.mapping("boot_failures")[record.placement] = Refusal(at=event.at, weight=count)
    draft.swap(event.node, gone_at=event.at)


def _noticed(draft: _Draft, event: NoticeSeen) -> None:
    notice = event.notice
    record = draft.get("nodes").get(notice.node)
    if record is None:
        # The notice was quicker than the list that describes its node: keep it for a while.
        early = draft.mapping("early_notices")
        early[notice.node] = (*early.get(notice.node, ()), notice)[-3:]
        for node in list(early)[: max(0, len(early) - EARLY_NOTICES_KEPT)]:
            early.pop(node)
        return
    same = [n for n in record.notices if (n.source, n.id) == (notice.source, notice.id)]
    others = tuple(n for n in record.notices if (n.source, n.id) != (notice.source, notice.id))
    kept = notice if not same else replace(notice, seen_at=same[0].seen_at)
    draft.node(notice.node, notices=(*others, kept))
    if notice.kind is NoticeKind.INTERRUPTION and not record.notices and not notice.cancelled:
        _bad_news(draft, "reclaims", record.placement, event.at)


def _opened(draft: _Draft, event: IntentOpened) -> None:
    intents = draft.mapping("intents")
    known = intents.get(event.token)
    intents[event.token] = Intent(
        token=event.token,
        kind=event.kind,
        node=event.node,
        at=event.at if known is None else known.at,
        asked_at=event.at,
        attempts=1 if known is None else known.attempts + 1,
        placement=event.placement,
        standby=event.standby,
        replaces=event.replaces,
        price=event.price,
        cause=event.cause,
        reason=event.reason,
    )
    if event.kind is ActionKind.LAUNCH and known is None:
        draft.set("serial", draft.get("serial") + 1)
        recent = tuple(t for t in draft.get("launches") if event.at - t < LAUNCH_WINDOW)
        draft.set("launches", (*recent, event.at))
    if event.kind is ActionKind.START:
        draft.node(event.node, standby=None, started_at=event.at, ready_at=None)
    if event.replaces in draft.get("nodes"):
        _open_swap(draft, event.replaces, Cause.NOTICE, event.at, _deadline(draft, event.replaces))
    _pair(draft, event.replaces, event.node or event.token)


def _closed(draft: _Draft, event: IntentClosed) -> None:
    intent = draft.get("intents").get(event.token)
    if intent is None:
        return
    intents = draft.mapping("intents")
    if event.outcome is Outcome.DONE:
        node = event.node or intent.node
        intents[event.token] = replace(intent, accepted_at=event.at, unanswered=False, node=node)
        return
    given_up = event.outcome is Outcome.FAILED and intent.attempts >= ATTEMPTS
    if event.outcome in (Outcome.UNCERTAIN, Outcome.FAILED) and not given_up:
        intents[event.token] = replace(intent, unanswered=True)
        return
    intents.pop(event.token)
    _unpair(draft, event.token)
    if intent.placement is None:
        return
    if event.outcome is Outcome.QUOTA:
        draft.mapping("quota_at")[intent.placement] = event.at
    elif event.outcome is not Outcome.DIED:
        _bad_news(draft, "refusals", intent.placement, event.at)


def _drain(draft: _Draft, event: DrainStarted) -> None:
    record = DrainRecord(since=event.at, deadline=event.deadline, cause=event.cause, reason=event.reason)
    draft.node(event.node, drain=record, idle_since=None)
    if event.node in draft.get("nodes"):
        _open_swap(draft, event.node, event.cause, event.at, _deadline(draft, event.node))


def _undrain(draft: _Draft, event: DrainEnded) -> None:
    draft.node(event.node, drain=None, idle_since=None)
    if event.node in draft.get("swaps"):
        incoming = draft.mapping("swaps").pop(event.node).incoming
        if incoming in draft.get("incoming"):
            draft.mapping("incoming").pop(incoming)


def _applied(draft: _Draft, event: TargetsApplied) -> None:
    targets = draft.mapping("targets")
    held = dict(targets.get(event.balancer, {}))
    for node, phase in event.changes:
        if phase is None:
            held.pop(node, None)
        else:
            held[node] = phase
        if phase is not TargetPhase.ACTIVE:
            swap = draft.get("swaps").get(node)
            if swap is not None and swap.detached_at is None:
                draft.swap(node, detached_at=event.at)
    targets[event.balancer] = held
    draft.mapping("applied_at")[event.balancer] = event.at


def _operator_drain(draft: _Draft, event: OperatorDrained) -> None:
    draft.node(event.node, operator=OperatorRequest(since=event.at, budget=event.budget, reason=event.reason))


def _operator_undrain(draft: _Draft, event: OperatorUndrained) -> None:
    draft.node(event.node, operator=None)


def _paused(draft: _Draft, event: Paused) -> None:
    draft.set("pause", Pause(by=event.by, reason=event.reason, since=event.at, until=event.until))


def _resumed(draft: _Draft, _event: Resumed) -> None:
    draft.set("pause", None)


def _alarm(_draft: _Draft, _event: AlarmRaised) -> None:
    """Alarms are for people; nothing is decided from them."""


def _bad_news(draft: _Draft, name: str, placement: Placement, at: float) -> None:
    """Add one piece of bad news to what is left of the earlier ones."""
    known = draft.get(name).get(placement)
    weight = 1.0 if known is None else 1.0 + decayed(known, at, BAD_NEWS_HALF_LIFE)
    draft.mapping(name)[placement] = Refusal(at=at, weight=weight)


def decayed(refusal: Refusal, now: float, half_life: float) -> float:
    """The weight of bad news at `now` when it halves every `half_life` seconds."""
    weight: float = refusal.weight * 0.5 ** (max(0.0, now - refusal.at) / half_life)
    return weight


def _open_swap(draft: _Draft, node: str, cause: Cause, at: float, deadline: float | None) -> None:
    if cause.voluntary or cause in (Cause.DUPLICATE, Cause.STANDBY):
        return
    swaps = draft.mapping("swaps")
    if node in swaps:
        return
    notices = draft.get("nodes")[node].notices if node in draft.get("nodes") else ()
    opened = min((n.seen_at for n in notices), default=at)
    swaps[node] = Swap(outgoing=node, cause=cause, opened_at=opened, deadline=deadline)
    if len(swaps) > SWAPS_KEPT:
        finished = [k for k, s in swaps.items() if s.gone_at is not None]
        for key in finished[: len(swaps) - SWAPS_KEPT]:
            incoming = swaps.pop(key).incoming
            if incoming in draft.get("incoming"):
                draft.mapping("incoming").pop(incoming)


def _deadline(draft: _Draft, node: str) -> float | None:
    deadlines = [n.deadline for n in draft.get("nodes")[node].notices if n.deadline is not None]
    return min(deadlines, default=None)


def _pair(draft: _Draft, outgoing: str, incoming: str) -> None:
    """Name what takes the place of an outgoing node: a launch's token first, the node's id later."""
    swap = draft.get("swaps").get(outgoing)
    if swap is None:
        return
    if swap.incoming in draft.get("incoming"):
        draft.mapping("incoming").pop(swap.incoming)
    draft.swap(outgoing, incoming=incoming)
    draft.mapping("incoming")[incoming] = outgoing


def _unpair(draft: _Draft, incoming: str) -> None:
    """What was to take the place of an outgoing node did not come: the place is open again."""
    outgoing = draft.get("incoming").get(incoming, "")
    if not outgoing:
        return
    draft.mapping("incoming").pop(incoming)
    swap = draft.get("swaps").get(outgoing)
    if swap is not None and swap.replaced_at is None:
        draft.swap(outgoing, incoming="")


def _forget_intent(draft: _Draft, token: str) -> None:
    if token in draft.get("intents"):
        draft.mapping("intents").pop(token)


_REDUCERS: dict[type, Callable[[_Draft, Any], None]] = {
    DaemonStarted: _started,
    PoolConfigured: _configured,
    PoolWhole: _whole,
    NodeSeen: _seen,
    NodeReady: _ready,
    NodeStopped: _stopped,
    NodeMissing: _missing,
    NodeFound: _found,
    NodeIdle: _idle,
    NodeBusy: _busy,
    NodeGone: _gone,
    NoticeSeen: _noticed,
    IntentOpened: _opened,
    IntentClosed: _closed,
    DrainStarted: _drain,
    DrainEnded: _undrain,
    TargetsApplied: _applied,
    OperatorDrained: _operator_drain,
    OperatorUndrained: _operator_undrain,
    Paused: _paused,
    Resumed: _resumed,
    AlarmRaised: _alarm,
}


def replay(events: Iterable[Event]) -> Memory:
    """Memory from a whole journal."""
    return reduce(Memory(), *events)
