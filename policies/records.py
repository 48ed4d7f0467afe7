"""The values that memory is made of: nodes, intents, refusals, swaps, pauses.

Memory holds only what the next observation cannot tell again. How events change it is `policies.memory`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import field
from hashlib import blake2b
from itertools import chain

from policies.actions import ActionKind, Cause
from policies.hazard import RunningMean, ZoneHistory
from policies.model import (
    TAKES_SPOT,
    Confidence,
    Market,
    Notice,
    NoticeKind,
    PartKind,
    Placement,
    StandbyKind,
    TargetPhase,
)
from policies.value import replace, value

LOST_AGAIN_SOON = 3600.0
"""Seconds after its return within which another loss of a part makes it one that comes and goes."""

STATE_WINDOW = 600.0
"""Seconds for which changes of the state are counted."""

NOTICES_KEPT = 8
"""Notices kept per node: a flood of forged ones must not grow memory."""


@value
class DrainRecord:
    """A drain that was decided."""

    since: float
    deadline: float
    cause: Cause
    reason: str


@value
class OperatorRequest:
    """A drain that an operator asked for, or a GPU; `budget` is seconds for the requests in flight."""

    since: float
    budget: float
    reason: str
    cause: Cause = Cause.OPERATOR


@value
class Condemned:
    """A node that was to be replaced for its GPUs, and when: see `GpuCondemned`."""

    at: float
    node: str
    reason: str
    fault: bool  # else a doubt


@value
class AdapterCall:
    """A call for an adapter of a node that is under way, or that failed last.

    `load`: else it is to be unloaded. `attempts`: of the same call in a row. `failure`: why the last of them
    was not done, empty while it is under way.
    """

    load: bool
    asked_at: float
    attempts: int = 1
    reason: str = ""
    failure: str = ""


@value
class AdapterRecord:
    """What is remembered of an adapter of a node, by the engine's name of it.

    `held`: it was loaded and seen to work, and nothing was heard of it since. `since`: when that changed.
    """

    adapter: str
    held: bool = False
    since: float = 0.0
    call: AdapterCall | None = None

    def fails(self, adapter: str) -> bool:
        """It is that adapter, and could not be loaded."""
        failed = self.call is not None and self.call.load and bool(self.call.failure)
        return self.adapter == adapter and failed


@value
class StartedWith:
    """The adapters that engines are started with: `policies.held.AdapterRules.started_with`.

    `since`: epoch and serial of the newest launch before that; every later one is with them. `again_at`: when
    a node of those was last to be replaced, since it does not have them.
    """

    adapters: str = ""
    since: tuple[int, int] = (0, 0)
    again_at: float | None = None


@value
class NodeRecord:
    """What is remembered of one node."""

    id: str
    token: str  # of its launch
    placement: Placement
    launched_at: float
    price: float | None  # USD/h, None where not known
    address: str = ""  # the engine's "host:port"
    standby: StandbyKind | None = None
    ready_at: float | None = None  # when its engine became ready since `started_at`
    notices: tuple[Notice, ...] = ()  # the newest of each (source, id)
    drain: DrainRecord | None = None
    idle_since: float | None = None  # since when it has held no request while draining
    missing_since: float | None = None  # since when complete lists lack it
    denied_at: float | None = None  # when its start was last not allowed
    operator: OperatorRequest | None = None
    started_at: float = 0.0  # when it was launched, adopted, or last started from being stopped
    detached_at: float | None = None  # when a balancer last acknowledged that it gets no new requests
    build: str = ""  # what it was launched to run, see `policies.model.Instance`
    spared: bool = False  # an operator kept it after it was to be replaced for its GPUs or adapters
    adapters: tuple[AdapterRecord, ...] = ()  # those that its engine loads while it runs


_THROTTLED_MOST = 16.0  # s


@value
class Intent:
    """A call that was opened and whose effect is not yet seen.

    A launch stays open until its instance is described, refused or given up.
    """

    token: str
    kind: ActionKind
    node: str  # empty for a launch that was not answered
    at: float  # of the first call
    placement: Placement | None = None
    standby: StandbyKind | None = None
    replaces: str = ""
    price: float | None = None
    cause: Cause | None = None
    reason: str = ""
    accepted_at: float | None = None  # when a call came back as done
    unanswered: bool = False  # the last call failed or its answer was lost: the same token is asked again
    landed: bool = False  # some call may have taken effect, whatever the later ones said
    asked_at: float = 0.0  # of the last call
    attempts: int = 1
    throttled: int = 0  # attempts refused by the provider's rate limit, which says nothing of the request

    def due(self, now: float, timeout: float) -> bool:
        """True when the same call should be made again: soon after a failure, late after silence.

        What met too many calls waits for a few seconds at most, however often: who makes the calls keeps to
        the provider's rate, and a long pause of many would leave it unused. So would one that ends for all at
        one moment: each takes a moment of its own in the second half of its pause.
        """
        failed = 2.0 ** min(max(self.attempts - self.throttled - 1, 0), 20)
        throttled = 0.0
        if self.throttled:
            pause = min(_THROTTLED_MOST, 2.0 ** min(self.throttled - 1, 20))
            throttled = pause * (0.5 + 0.5 * _share(f"{self.token}/{self.throttled}"))
        wait = min(timeout, max(failed, throttled)) if self.unanswered else timeout
        return now - self.asked_at >= wait


@value
class Refusal:
    """Remembered bad news about a placement. `weight` is as of `at`; it decays (policies.placement)."""

    at: float
    weight: float = 1.0


@value
class Bar:
    """A market of a region where launches fail for another reason than capacity. See `policies.bars`."""

    at: float  # when a launch there last failed so
    count: int  # pauses in a row
    why: str  # the provider's words
    denied: bool = True  # a call was not allowed or could not be met
    boots: int = 0  # machines in a row that a fault ended before they were ready
    places: tuple[Placement, ...] = ()  # where calls were not allowed or could not be met, each once


@value
class LastPrice:
    """The last good price of a placement, USD/h, when it was noted, and in which part of the prices."""

    at: float
    price: float
    part: str


@value
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


@value
class Pause:
    """Hands off, asked for by an operator."""

    by: str
    reason: str
    since: float
    until: float | None

    def holds(self, now: float) -> bool:
        """True while the pause is in force."""
        return self.until is None or now < self.until


@value
class PartRecord:
    """A part that was lost, and when it came back."""

    kind: PartKind
    part: str
    since: float  # when the first look failed
    lost_at: float  # when that was reported
    back_at: float | None = None  # None: not yet
    times: int = 1  # losses in a row, each soon after the last return


@value
class FailedBoot:
    """A machine that never became ready: why, and what it wrote last on its console. See `BootFailed`."""

    at: float
    node: str
    placement: Placement
    why: str
    console: str = ""


@value
class StartMeasured:
    """A start of a node is over: its engine is ready and, as a rule, routed. An event, kept as it is."""

    at: float
    node: str
    placement: Placement
    standby: bool  # it was a stopped standby
    began_at: float  # when it was launched or, a stopped standby, started
    seconds: float  # from then on
    parts: tuple[tuple[str, float], ...]  # known ones (`policies.starts.Part`) and seconds, in their order


@value
class StateRecord:
    """The state of the pool that was reported last, since when, and when it changed lately, oldest first."""

    state: str
    since: float
    changes: tuple[float, ...] = ()


@value
class FallbackRecord:
    """A route that a provider stands in on: see `policies.events.FallbackBegan`."""

    provider: str
    since: float
    day: str
    requests: int
    amount: int


@value
class CapRecord:
    """What was told of a cap on the UTC day `day`: that it is near, or `reached`."""

    day: str
    reached: bool = False


@value
class Memory:
    """Everything remembered about one pool. Immutable: `reduce` returns a new one.

    `fallbacks`, `failing` and `caps` are of the gateway's routes and providers, which have their own memory.
    """

    epoch: int = 0  # of the newest daemon
    serial: int = 0  # launches so far
    replicas: int = 0  # units wanted
    hot: int | None = None  # the wanted standby, None where the journal does not say
    stopped: int | None = None
    whole_before: int = 0  # the replicas with which the pool was last whole, before those now
    whole_at: float | None = None
    reached: int = 0  # the most units that were ready at once since `replicas` was set
    ready_once: bool = False  # some node of the pool was ready at some time
    failed_starts: int = 0  # boots that failed before that, of those that began since `resumed_at`
    resumed_at: float | None = None  # when an operator last resumed
    served_at: float | None = None  # when a balancer first had a node as an active target
    spot_lost_at: float | None = None  # since when no spot node is ready and staying, after one was lost
    nodes: Mapping[str, NodeRecord] = field(default_factory=dict)
    intents: Mapping[str, Intent] = field(default_factory=dict)
    refusals: Mapping[Placement, Refusal] = field(default_factory=dict)
    reclaims: Mapping[Placement, Refusal] = field(default_factory=dict)
    boot_failures: Mapping[Placement, Refusal] = field(default_factory=dict)
    quota_at: Mapping[Placement, float] = field(default_factory=dict)
    bars: Mapping[tuple[str, Market], Bar] = field(default_factory=dict)  # by region and market
    targets: Mapping[str, Mapping[str, TargetPhase]] = field(default_factory=dict)  # acknowledged last
    applied_at: Mapping[str, float] = field(default_factory=dict)  # when, since this daemon started
    swaps: Mapping[str, Swap] = field(default_factory=dict)
    incoming: Mapping[str, str] = field(default_factory=dict)  # what comes in -> the node it replaces
    early_notices: Mapping[str, tuple[Notice, ...]] = field(default_factory=dict)
    early_requests: Mapping[str, OperatorRequest] = field(default_factory=dict)  # to drain, as with notices
    ended: Mapping[str, float] = field(default_factory=dict)  # machines -> since when known, oldest first
    launches: tuple[float, ...] = ()
    pause: Pause | None = None
    preemptions: int = 0
    preemptions_without_notice: int = 0
    zones: Mapping[Placement, ZoneHistory] = field(default_factory=dict)  # spot placements only
    timings: Mapping[str, RunningMean] = field(default_factory=dict)  # seconds, see `policies.hazard`
    parts: Mapping[str, PartRecord] = field(default_factory=dict)  # lost ones, and those back not long ago
    prices: Mapping[Placement, LastPrice] = field(default_factory=dict)
    state: StateRecord | None = None
    condemned: tuple[Condemned, ...] = ()  # of the last day, oldest first
    failed_boots: tuple[FailedBoot, ...] = ()  # the newest ones, oldest first, each node once
    starts: tuple[StartMeasured, ...] = ()  # the newest ones, oldest first
    fallbacks: Mapping[str, FallbackRecord] = field(default_factory=dict)  # by route
    failing: Mapping[str, float] = field(default_factory=dict)  # provider -> since when
    caps: Mapping[str, CapRecord] = field(default_factory=dict)  # by whose it is
    started_with: StartedWith = StartedWith()

    def paused(self, now: float) -> bool:
        """An operator asked for hands off, and that is in force."""
        return self.pause is not None and self.pause.holds(now)

    @property
    def whole_with(self) -> int:
        """The replicas with which the pool was last whole; 0 for never."""
        return self.replicas if self.whole_at is not None else self.whole_before


def part_key(kind: PartKind, part: str) -> str:
    """What a part is remembered under."""
    return f"{kind} {part}"


def _share(text: str) -> float:
    """A number from 0 to 1, the same for the same text and another one for each."""
    return int.from_bytes(blake2b(text.encode(), digest_size=4).digest()) / 2**32


def intent_key(node: str, kind: ActionKind) -> str:
    """The token of an action on a node: at most one of a kind is open, and asking twice is harmless."""
    return f"{node}:{kind}"


def decayed(refusal: Refusal, now: float, half_life: float) -> float:
    """The weight of bad news at `now` when it halves every `half_life` seconds."""
    weight: float = refusal.weight * 0.5 ** (max(0.0, now - refusal.at) / half_life)
    return weight


def stop_notice(node: str, at: float) -> Notice:
    """What a list says that shows a spot node stopped, and nobody here asked for it.

    The cloud does that, and nothing says that it starts the node again.
    """
    return Notice(
        id=f"stopped/{node}",
        kind=NoticeKind.STOP,
        node=node,
        deadline=at,
        source="instances",
        confidence=Confidence.CONFIRMED,
        seen_at=at,
    )


def concerns(notice: Notice, record: NodeRecord) -> bool:
    """True for a notice that may mean something for a node.

    A stop means nothing for one that is not spot: it is a standby that we stopped, or may be started again.
    """
    return notice.kind is not NoticeKind.STOP or record.placement.market is Market.SPOT


def applies(notice: Notice, *, spot: bool) -> bool:
    """True when a notice of this kind can take away a node of this market."""
    if notice.cancelled or notice.kind is NoticeKind.REBALANCE:
        return False
    return spot or notice.kind not in TAKES_SPOT


def add_notice(known: tuple[Notice, ...], notice: Notice) -> tuple[Notice, ...]:
    """The notices of a node after one more; `known` itself when it says nothing new.

    A notice keeps the time at which it was first seen. One that was cancelled stays cancelled, since copies
    may arrive in any order, and what the cloud confirmed is not changed by a report. A deadline that is no
    number of seconds counts as none. Where there are too many, what was taken back goes first, then reports.
    """
    if notice.deadline is not None and not math.isfinite(notice.deadline):
        notice = replace(notice, deadline=None)
    earlier = next((n for n in known if (n.source, n.id) == (notice.source, notice.id)), None)
    if earlier is not None:
        weaker = notice.confidence is Confidence.REPORTED and earlier.confidence is Confidence.CONFIRMED
        notice = replace(notice, seen_at=earlier.seen_at)
        if earlier.cancelled or weaker or notice == earlier:
            return known
    found = [*(n for n in known if n is not earlier), notice]
    if len(found) > NOTICES_KEPT:
        taken_back = (n for n in found if n.cancelled)
        reported = (n for n in found if n.confidence is Confidence.REPORTED)
        found.remove(next(chain(taken_back, reported, found)))
    return tuple(found)


def first_to_forget(early: Mapping[str, tuple[Notice, ...]]) -> str:
    """The node whose notices go where too many are kept.

    The oldest of the kind that has more than half the room, reported or confirmed: neither a flood of forged
    reports nor of what the cloud says of others' nodes pushes out what the other kind says of ours.
    """
    reported = [n for n, held in early.items() if all(x.confidence is Confidence.REPORTED for x in held)]
    if 2 * len(reported) > len(early):
        return reported[0]
    return next(node for node in early if node not in set(reported))
