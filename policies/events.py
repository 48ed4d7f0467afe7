"""Facts that arrive. The journal is a list of these; `policies.memory.reduce` says what they change.

Every event carries `at`, the time it was taken up by the daemon.
"""

from __future__ import annotations

from policies.actions import ActionKind, Cause
from policies.adapter_events import AdapterEvent
from policies.model import Notice, PartKind, Placement, StandbyKind, TargetPhase, Word
from policies.records import StartMeasured
from policies.value import value


class Outcome(Word):
    """How a call on the world ended."""

    DONE = "done"
    REFUSED = "refused"  # no capacity there now
    QUOTA = "quota"  # the account may not have more
    DIED = "died"  # launched, and already ended again
    FAILED = "failed"  # nothing was done; a later turn asks again with the same token
    THROTTLED = "throttled"  # too many calls, nothing was done; asked again after a growing pause
    DENIED = "denied"  # not allowed, nothing was done; another zone of the market does not help
    MISCONFIGURED = "misconfigured"  # what is asked for cannot be, nothing was done; nor does another zone
    WITHDRAWN = "withdrawn"  # nothing was done, and it is not asked for again: its region cannot be seen
    UNCERTAIN = "uncertain"  # may or may not have been done; ask again with the same token


class GoneCause(Word):
    """Why a node no longer exists."""

    TERMINATED = "terminated"  # we asked for it
    RECLAIMED = "reclaimed"  # a notice said so before
    UNANNOUNCED = "unannounced"  # a spot node went away without a notice
    LOST = "lost"  # it went away, nobody here asked, and no provider took spot capacity back
    NEVER_STARTED = "never-started"  # a fault ended it before it was ready: its boot failed
    REFUSED = "refused"  # accepted, and then there was no capacity for it after all


@value
class DaemonStarted:
    """A daemon took the lease under a new epoch."""

    at: float
    epoch: int


@value
class PoolConfigured:
    """The wanted number of units was set or changed. `hot` and `stopped` are the wanted standby, `adapters`
    is `AdapterRules.started_with`.
    """

    at: float
    replicas: int
    hot: int | None = None  # None: written by a version that did not say
    stopped: int | None = None
    adapters: str = ""


@value
class PoolRemoved:
    """The pool was taken out of the configuration and has no nodes any more: its stream ends here.

    A pool of the same name that is added later begins with an empty memory.
    """

    at: float


@value
class ConfigRejected:
    """A configuration was offered, and it or its size was not taken up."""

    at: float
    problems: tuple[str, ...]


@value
class PoolWhole:
    """For the first time since `replicas` was set, that many units were ready."""

    at: float


@value
class PoolGrew:
    """`ready` units were ready at once, more than ever since `replicas` was set."""

    at: float
    ready: int


@value
class NodeSeen:
    """The cloud described a node of ours that we did not know yet: launched or adopted."""

    at: float
    node: str
    token: str
    placement: Placement
    launched_at: float
    price: float | None
    address: str
    standby: StandbyKind | None
    build: str = ""  # also where a version wrote it that did not ask


@value
class NodeReady:
    """The engine of a node became ready."""

    at: float
    node: str
    address: str


@value
class NodeStopped:
    """A node was stopped; its engine has to become ready again after the next start.

    A spot node that we did not ask to stop is taken by that, as by a notice.
    """

    at: float
    node: str


@value
class NodeMissing:
    """A known node was not in a complete list."""

    at: float
    node: str


@value
class NodeFound:
    """A missing node was in the list again."""

    at: float
    node: str


@value
class NodeIdle:
    """A draining node holds no request any more."""

    at: float
    node: str


@value
class NodeBusy:
    """A draining node that was idle holds requests again."""

    at: float
    node: str


@value
class NodeRouted:
    """A balancer that had let a draining node go was seen to send it requests all the same."""

    at: float
    node: str


@value
class NodeGone:
    """A node no longer exists."""

    at: float
    node: str
    cause: GoneCause
    ended: bool = False  # a list showed that it has ended, and not only lacked it
    detail: str = ""  # the provider's own words for the end, where it has any


@value
class NoticeSeen:
    """A notice arrived (or was cancelled) for a node."""

    at: float
    notice: Notice


@value
class IntentOpened:
    """We are about to call the world. Written before the call."""

    at: float
    token: str
    kind: ActionKind
    node: str  # empty for a launch
    placement: Placement | None = None  # of a launch
    standby: StandbyKind | None = None
    replaces: str = ""  # the outgoing node
    price: float | None = None  # USD/h
    cause: Cause | None = None
    reason: str = ""


@value
class IntentClosed:
    """The call came back. `node` is the instance's id after a launch."""

    at: float
    token: str
    outcome: Outcome
    node: str = ""
    detail: str = ""


@value
class DrainHeld:
    """A noticed node goes on serving for now: without it too few nodes would."""

    at: float
    node: str
    reason: str


@value
class DrainStarted:
    """A node takes no new work from now on; what it holds may finish until `deadline`."""

    at: float
    node: str
    deadline: float
    cause: Cause
    reason: str


@value
class DrainEnded:
    """A draining node is put back to work."""

    at: float
    node: str
    reason: str


@value
class TargetsApplied:
    """A balancer acknowledged a target set. `changes` lists (node, phase), None meaning removed."""

    at: float
    balancer: str
    generation: int
    changes: tuple[tuple[str, TargetPhase | None], ...]


@value
class OperatorDrained:
    """An operator asked for a node to be drained and replaced; `budget` is seconds for its requests."""

    at: float
    node: str
    budget: float
    reason: str


@value
class OperatorUndrained:
    """An operator took a drain request back."""

    at: float
    node: str
    reason: str


@value
class PricesRead:
    """Prices that are new, changed noticeably, or were not noted for a while; `gone` is sold no more."""

    at: float
    part: str
    prices: tuple[tuple[Placement, float], ...]
    gone: tuple[Placement, ...] = ()


@value
class Paused:
    """An operator asked for hands off until `until` (None: until resumed)."""

    at: float
    by: str
    reason: str
    until: float | None


@value
class Resumed:
    """Hands on again."""

    at: float
    by: str


@value
class AlarmRaised:
    """Something a person should know, once per turn of the pool."""

    at: float
    name: str
    text: str


@value
class BootFailed:
    """A machine that we launched never became ready, and that is its end."""

    at: float
    node: str
    placement: Placement
    why: str
    console: str = ""  # what it wrote last: printable lines, at most `policies.boot_memory.CONSOLE_BYTES`


@value
class PartLost:
    """A part that the daemon depends on could not be read for so long that it counts as lost."""

    at: float
    kind: PartKind
    part: str  # its name; of an engine the node's id
    since: float  # when the first look failed
    error: str  # of the newest look

    @property
    def node(self) -> str:
        """The node whose engine it is, empty for any other part."""
        return self.part if self.kind is PartKind.ENGINE else ""


@value
class PartBack:
    """A lost part answers again. `after`: seconds since the first look that had failed."""

    at: float
    kind: PartKind
    part: str
    after: float

    @property
    def node(self) -> str:
        """The node whose engine it is, empty for any other part."""
        return self.part if self.kind is PartKind.ENGINE else ""


@value
class GpuCondemned:
    """A node is to be replaced for its GPUs (`policies.gpu_health`)."""

    at: float
    node: str
    reason: str
    remedy: str  # a word of `policies.gpu_errors.Remedy`; empty where the fault has none
    urgent: bool  # it goes at once, and not only when its replacement is ready
    budget: float  # seconds for requests in flight


@value
class GpuAcquitted:
    """A node that was doubted, and does not drain yet, has shown no trouble for long: it stays."""

    at: float
    node: str


@value
class StateChanged:
    """The pool is judged otherwise than before."""

    at: float
    state: str  # a word of `policies.verdict.State`
    before: str  # the same; empty where nothing was known
    why: str  # what the judgement goes by


@value
class FallbackBegan:
    """A provider answers requests of a route in the place of those before it (`policies.fallback`)."""

    at: float
    route: str
    provider: str
    why: str
    since: float  # when that was first seen
    day: str  # of UTC, as "2026-11-30"
    requests: int  # that providers in this place had answered on that day before
    amount: int  # picodollars paid for them


@value
class FallbackEnded:
    """The backend that a route names first has its requests again."""

    at: float
    route: str
    after: float  # seconds since the first request that another backend answered
    requests: int  # that providers answered meanwhile
    amount: int  # picodollars paid for them


@value
class ProviderFailing:
    """A provider cannot be asked, or failed and is left alone. `since`: when that was first seen."""

    at: float
    provider: str
    why: str
    since: float


@value
class ProviderBack:
    """A provider that failed answers again. `after`: seconds since that was first seen."""

    at: float
    provider: str
    after: float


@value
class CapNear:
    """Most of a cap of a day is used: spent, or held for requests in flight."""

    at: float
    about: str  # whose cap it is, as "provider claude" or "route chat"
    day: str  # of UTC
    used: int  # picodollars
    cap: int  # picodollars


@value
class CapReached:
    """Requests are not sent because of a cap; see `CapNear`."""

    at: float
    about: str
    day: str
    used: int
    cap: int


Event = (
    DaemonStarted
    | PoolConfigured
    | PoolRemoved
    | ConfigRejected
    | PoolWhole
    | PoolGrew
    | NodeSeen
    | NodeReady
    | NodeStopped
    | NodeMissing
    | NodeFound
    | NodeIdle
    | NodeBusy
    | NodeRouted
    | NodeGone
    | NoticeSeen
    | IntentOpened
    | IntentClosed
    | DrainHeld
    | DrainStarted
    | DrainEnded
    | TargetsApplied
    | OperatorDrained
    | OperatorUndrained
    | PricesRead
    | Paused
    | Resumed
    | AlarmRaised
    | BootFailed
    | StartMeasured
    | PartLost
    | PartBack
    | GpuCondemned
    | GpuAcquitted
    | StateChanged
    | FallbackBegan
    | FallbackEnded
    | ProviderFailing
    | ProviderBack
    | CapNear
    | CapReached
    | AdapterEvent
)
