"""Events as sentences: the story of a node, for `orchestrator node` and `orchestrator events`.

What it decides: nothing. Why: at three in the morning the journal is read by a person.
Never: a sentence claims more than its event says.

Example:
    >>> from policies.events import NodeMissing
    >>> sentence(NodeMissing(at=0.0, node="i-1"))
    'not in a complete list of instances'
"""

from __future__ import annotations

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
    match event:
        case NodeSeen():
            return f"seen for the first time: {event.placement}, {usd_per_hour(event.price)}"
        case NodeReady():
            return f"ready at {event.address}"
        case NodeStopped():
            return "stopped"
        case NodeMissing():
            return "not in a complete list of instances"
        case NodeFound():
            return "in the list of instances again"
        case NodeIdle():
            return "drained: no request in flight"
        case NodeBusy():
            return "requests in flight again"
        case NodeRouted():
            return "a balancer that had let it go sends it requests again"
        case NodeGone():
            return f"{_GONE[event.cause]}{f' ({event.detail})' if event.detail else ''}"
        case NoticeSeen():
            return _notice(event)
        case IntentOpened() | IntentClosed() | TargetsApplied() | DrainStarted() | DrainEnded():
            return _deed(event)
        case DrainHeld():
            return f"keeps serving for now: {event.reason}"
        case OperatorDrained() | GpuCondemned() | NodeOutdated():
            asked = isinstance(event, OperatorDrained)
            return f"{'an operator asked for a drain' if asked else 'to be replaced'}: {event.reason}"
        case GpuAcquitted():
            return "no trouble of its GPUs for long: it stays"
        case OperatorUndrained():
            return f"an operator took the drain back: {event.reason}"
        case DaemonStarted():
            return f"daemon started, epoch {event.epoch}"
        case PoolConfigured():
            return f"replicas is {event.replicas} from now on"
        case PoolRemoved():
            return "the pool was removed; it has no nodes any more"
        case ConfigRejected():
            return f"the configuration was not taken up: {'; '.join(event.problems)}"
        case PoolWhole():
            return "all replicas are ready for the first time"
        case PoolGrew():
            return f"{event.ready} ready at once, more than before"
        case PricesRead():
            return _prices(event)
        case Paused():
            until = "until resumed" if event.until is None else f"for {event.until - event.at:.0f} s"
            return f"paused {until} by {event.by}: {event.reason}"
        case Resumed():
            return f"resumed by {event.by}"
        case AlarmRaised():
            return f"alarm {event.name}: {event.text}"
        case BootFailed():
            return _boot_failed(event)
        case StartMeasured():
            return _start(event)
        case StateChanged():
            before = f", and was {event.before}" if event.before else ""
            return f"the pool is {event.state}{before}: {event.why}"
        case PartLost():
            seconds = max(0.0, event.at - event.since)
            error = f": {event.error}" if event.error else ""
            return f"{part_words(event.kind, event.part)} has not answered for {seconds:.0f} s{error}"
        case PartBack():
            return f"{part_words(event.kind, event.part)} answers again after {event.after:.0f} s"
        case (
            FallbackBegan() | FallbackEnded() | ProviderFailing() | ProviderBack() | CapNear() | CapReached()
        ):
            return _paid(event)
        case AdapterAsked() | AdapterAnswered() | AdapterLost() | NodeCurrent():
            return _adapter(event)


def part_words(kind: PartKind, part: str) -> str:
    """A part in words, for the middle of a sentence."""
    if kind is PartKind.BALANCER:
        return "the gateway" if part == "gateway" else f"balancer {part}"
    if kind is PartKind.NOTICES:
        return f"notice source {part}"
    if kind is PartKind.ENGINE:
        return "its engine"
    if kind is PartKind.PRICES:
        return f"the price list of {part}"
    machines = "the cloud's list of machines"
    return machines if part == "instances" else f"{machines} in {part}"


def _deed(event: IntentOpened | IntentClosed | TargetsApplied | DrainStarted | DrainEnded) -> str:
    match event:
        case IntentOpened():
            where = f" {event.placement}" if event.placement is not None else ""
            return f"about to {_ASKED.get(event.kind, event.kind)}{where}: {event.reason}"
        case IntentClosed():
            detail = f" ({event.detail})" if event.detail else ""
            return f"{event.token}: {_OUTCOMES[event.outcome]}{detail}"
        case DrainStarted():
            return f"drain begins, requests get {max(0.0, event.deadline - event.at):.0f} s: {event.reason}"
        case DrainEnded():
            return f"drain ended: {event.reason}"
        case TargetsApplied():
            words = {TargetPhase.ACTIVE: "in", TargetPhase.DRAINING: "draining", None: "out"}
            changed = ", ".join(f"{node} {words[phase]}" for node, phase in event.changes)
            return f"{event.balancer} acknowledged its targets: {changed or 'no change'}"


def _adapter(event: AdapterAsked | AdapterAnswered | AdapterLost | NodeCurrent) -> str:
    match event:
        case AdapterAsked():
            return f"about to {_verb(event)} adapter {event.adapter}: {event.reason}"
        case AdapterAnswered() if event.failure:
            return f"could not {_verb(event)} adapter {event.adapter}: {event.failure}"
        case AdapterAnswered():
            done = "loaded and tried" if event.load else "unloaded"
            return f"adapter {event.adapter} is {done}"
        case AdapterLost():
            return f"its engine does not hold adapter {event.adapter} any more"
        case NodeCurrent():
            return "its engine has the adapters that are wanted: it stays"


def _verb(event: AdapterAsked | AdapterAnswered) -> str:
    return "load" if event.load else "unload"


def _paid(
    event: FallbackBegan | FallbackEnded | ProviderFailing | ProviderBack | CapNear | CapReached,
) -> str:
    match event:
        case FallbackBegan():
            return f"provider {event.provider} answers the requests of {event.route}, for money: {event.why}"
        case FallbackEnded():
            cost = f"{event.requests} requests went to providers for {cents(event.amount)}"
            return f"no provider stands in for {event.route} after {event.after:.0f} s: {cost}"
        case ProviderFailing():
            return f"provider {event.provider} {event.why}"
        case ProviderBack():
            return f"provider {event.provider} answers again after {event.after:.0f} s"
        case CapNear() | CapReached():
            used = f"{cents(event.used)} of {cents(event.cap)} on {event.day}"
            then = ": requests are not sent because of it" if isinstance(event, CapReached) else ""
            return f"the cap of {event.about} is {'reached' if then else 'near'}, {used} used{then}"


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
