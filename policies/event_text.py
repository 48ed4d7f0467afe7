"""Events as sentences: the story of a node, for `orchestrator node` and `orchestrator events`.

What it decides: nothing. Why: at three in the morning the journal is read by a person.
Never: a sentence claims more than its event says.

Example:
    >>> from policies.events import NodeMissing
    >>> sentence(NodeMissing(at=0.0, node="i-1"))
    'not in a complete list of instances'
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from policies.actions import ActionKind
from policies.adapter_events import AdapterAnswered, AdapterAsked, AdapterLost, NodeCurrent, NodeOutdated
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
    Outcome,
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
from policies.model import PartKind, TargetPhase
from policies.plain_text import one_line
from policies.prices import usd_per_hour
from policies.records import StartMeasured
from policies.spend import cents

_GONE = {
    GoneCause.TERMINATED: "gone, as asked",
    GoneCause.RECLAIMED: "gone: reclaimed, as its notice said",
    GoneCause.UNANNOUNCED: "gone: reclaimed without a notice",
    GoneCause.LOST: "gone, and nobody here asked for it",
    GoneCause.NEVER_STARTED: "never started: a fault ended it before it was ready",
    GoneCause.REFUSED: "never started: accepted, and then there was no capacity",
}
_WROTE = 200
"""Characters of a console's last line in a sentence."""

_OUTCOMES = {
    Outcome.DONE: "done",
    Outcome.REFUSED: "refused: no capacity",
    Outcome.QUOTA: "refused: over quota",
    Outcome.DIED: "done, and the node has ended already",
    Outcome.FAILED: "failed, nothing was done",
    Outcome.THROTTLED: "too many calls, nothing was done; asked again after a pause",
    Outcome.DENIED: "not allowed, nothing was done",
    Outcome.MISCONFIGURED: "asks for what cannot be, nothing was done",
    Outcome.WITHDRAWN: "nothing was done, and it is not asked for again",
    Outcome.UNCERTAIN: "outcome unknown, asked again with the same token",
}
_ASKED = {
    ActionKind.LAUNCH: "launch",
    ActionKind.START: "start",
    ActionKind.STOP: "stop",
    ActionKind.TERMINATE: "end",
}


def sentence(event: Event) -> str:
    """One event in words, without its time and node."""
    text = _TEXTS.get(type(event))
    return _WORDS[type(event)](event) if text is None else text.format(event)


_PARTS = {
    PartKind.BALANCER: "balancer {}",
    PartKind.NOTICES: "notice source {}",
    PartKind.ENGINE: "its engine",
    PartKind.PRICES: "the price list of {}",
    PartKind.CLOUD: "the cloud's list of machines in {}",
}
_ONLY = {
    (PartKind.BALANCER, "gateway"): "the gateway",
    (PartKind.CLOUD, "instances"): "the cloud's list of machines",
}


def part_words(kind: PartKind, part: str) -> str:
    """A part in words, for the middle of a sentence."""
    return _ONLY.get((kind, part)) or _PARTS[kind].format(part)


def _gone(event: NodeGone) -> str:
    return f"{_GONE[event.cause]}{_in_brackets(event.detail)}"


def _in_brackets(text: str) -> str:
    return f" ({text})" if text else ""


def _seen(event: NodeSeen) -> str:
    return f"seen for the first time: {event.placement}, {usd_per_hour(event.price)}"


def _rejected(event: ConfigRejected) -> str:
    return f"the configuration was not taken up: {'; '.join(event.problems)}"


def _paused(event: Paused) -> str:
    until = "until resumed" if event.until is None else f"for {event.until - event.at:.0f} s"
    return f"paused {until} by {event.by}: {event.reason}"


def _changed(event: StateChanged) -> str:
    before = f", and was {event.before}" if event.before else ""
    return f"the pool is {event.state}{before}: {event.why}"


def _part_lost(event: PartLost) -> str:
    seconds = max(0.0, event.at - event.since)
    error = f": {event.error}" if event.error else ""
    return f"{part_words(event.kind, event.part)} has not answered for {seconds:.0f} s{error}"


def _part_back(event: PartBack) -> str:
    return f"{part_words(event.kind, event.part)} answers again after {event.after:.0f} s"


def _opened(event: IntentOpened) -> str:
    where = f" {event.placement}" if event.placement is not None else ""
    return f"about to {_ASKED.get(event.kind, event.kind)}{where}: {event.reason}"


def _closed(event: IntentClosed) -> str:
    return f"{event.token}: {_OUTCOMES[event.outcome]}{_in_brackets(event.detail)}"


def _drain_began(event: DrainStarted) -> str:
    return f"drain begins, requests get {max(0.0, event.deadline - event.at):.0f} s: {event.reason}"


def _applied(event: TargetsApplied) -> str:
    words = {TargetPhase.ACTIVE: "in", TargetPhase.DRAINING: "draining", None: "out"}
    changed = ", ".join(f"{node} {words[phase]}" for node, phase in event.changes)
    return f"{event.balancer} acknowledged its targets: {changed or 'no change'}"


def _adapter_asked(event: AdapterAsked) -> str:
    return f"about to {_verb(event)} adapter {event.adapter}: {event.reason}"


def _adapter_answered(event: AdapterAnswered) -> str:
    if event.failure:
        return f"could not {_verb(event)} adapter {event.adapter}: {event.failure}"
    return f"adapter {event.adapter} is {'loaded and tried' if event.load else 'unloaded'}"


def _verb(event: AdapterAsked | AdapterAnswered) -> str:
    return "load" if event.load else "unload"


def _fallback_ended(event: FallbackEnded) -> str:
    cost = f"{event.requests} requests went to providers for {cents(event.amount)}"
    return f"no provider stands in for {event.route} after {event.after:.0f} s: {cost}"


def _used(event: CapNear | CapReached) -> str:
    return f"{cents(event.used)} of {cents(event.cap)} on {event.day} used"


def _cap_near(event: CapNear) -> str:
    return f"the cap of {event.about} is near, {_used(event)}"


def _cap_reached(event: CapReached) -> str:
    return f"the cap of {event.about} is reached, {_used(event)}: requests are not sent because of it"


def _prices(event: PricesRead) -> str:
    noted = f"{len(event.prices)} noted" if event.prices else ""
    gone = f"{len(event.gone)} sold no more" if event.gone else ""
    return f"prices of {event.part}: {', '.join(filter(None, (noted, gone)))}"


def _notice(event: NoticeSeen) -> str:
    notice = event.notice
    if notice.cancelled:
        return f"{notice.kind} notice from {notice.source} cancelled"
    when = f", {notice.deadline - event.at:.0f} s left" if notice.deadline is not None else ""
    return f"{notice.kind} notice from {notice.source} ({notice.confidence}){when}"


def _boot_failed(event: BootFailed) -> str:
    wrote = event.console.rpartition("\n")[2]
    last = f"; the last that it wrote: {one_line(wrote, _WROTE)}" if wrote else ""
    return f"never became ready: {event.why}{last}"


def _start(event: StartMeasured) -> str:
    parts = ", ".join(f"{part} {seconds:.1f} s" for part, seconds in event.parts)
    what = "from being stopped" if event.standby else "from the launch"
    return f"its start {what} took {event.seconds:.1f} s: {parts}"


_TEXTS: Mapping[type[Any], str] = {
    AdapterLost: "its engine does not hold adapter {0.adapter} any more",
    AlarmRaised: "alarm {0.name}: {0.text}",
    DaemonStarted: "daemon started, epoch {0.epoch}",
    DrainEnded: "drain ended: {0.reason}",
    DrainHeld: "keeps serving for now: {0.reason}",
    FallbackBegan: "provider {0.provider} answers the requests of {0.route}, for money: {0.why}",
    GpuAcquitted: "no trouble of its GPUs for long: it stays",
    GpuCondemned: "to be replaced: {0.reason}",
    NodeBusy: "requests in flight again",
    NodeCurrent: "its engine has the adapters that are wanted: it stays",
    NodeFound: "in the list of instances again",
    NodeIdle: "drained: no request in flight",
    NodeMissing: "not in a complete list of instances",
    NodeOutdated: "to be replaced: {0.reason}",
    NodeReady: "ready at {0.address}",
    NodeRouted: "a balancer that had let it go sends it requests again",
    NodeStopped: "stopped",
    OperatorDrained: "an operator asked for a drain: {0.reason}",
    OperatorUndrained: "an operator took the drain back: {0.reason}",
    PoolConfigured: "replicas is {0.replicas} from now on",
    PoolGrew: "{0.ready} ready at once, more than before",
    PoolRemoved: "the pool was removed; it has no nodes any more",
    PoolWhole: "all replicas are ready for the first time",
    ProviderBack: "provider {0.provider} answers again after {0.after:.0f} s",
    ProviderFailing: "provider {0.provider} {0.why}",
    Resumed: "resumed by {0.by}",
}
"""By event, what is said of it; `0` is the event."""

_WORDS: Mapping[type[Any], Callable[[Any], str]] = {
    AdapterAnswered: _adapter_answered,
    AdapterAsked: _adapter_asked,
    BootFailed: _boot_failed,
    CapNear: _cap_near,
    CapReached: _cap_reached,
    ConfigRejected: _rejected,
    DrainStarted: _drain_began,
    FallbackEnded: _fallback_ended,
    IntentClosed: _closed,
    IntentOpened: _opened,
    NodeGone: _gone,
    NodeSeen: _seen,
    NoticeSeen: _notice,
    PartBack: _part_back,
    PartLost: _part_lost,
    Paused: _paused,
    PricesRead: _prices,
    StartMeasured: _start,
    StateChanged: _changed,
    TargetsApplied: _applied,
}
"""By event, what puts it into words where that takes more than its fields."""
