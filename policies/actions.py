"""What the daemon may do, as values. Every action says why in words an operator can read."""

from __future__ import annotations

from policies.model import Placement, StandbyKind, TargetSpec, Word
from policies.value import value


class ActionKind(Word):
    """The name of an action in the journal, the metrics and the API."""

    LAUNCH = "launch"
    START = "start"
    STOP = "stop"
    ATTACH = "attach"
    DETACH = "detach"
    DRAIN = "drain"
    UNDRAIN = "undrain"
    TERMINATE = "terminate"
    LOAD_ADAPTER = "load-adapter"
    UNLOAD_ADAPTER = "unload-adapter"
    ALARM = "alarm"


class Cause(Word):
    """What set an action off; it decides which limits apply."""

    NOTICE = "notice"
    SICK = "sick"
    BOOT = "boot"  # never became ready
    OPERATOR = "operator"
    EXCESS = "excess"  # more nodes than wanted
    RETURN = "return"  # on-demand cover given back to spot
    GPU = "gpu"  # a GPU is broken
    GPU_DOUBT = "gpu-doubt"  # a GPU is slow, or may be broken; it goes once its replacement is ready
    OUTDATED = "outdated"  # its engine was started with other adapters; it goes once its replacement is ready
    REBALANCE = "rebalance"  # the cloud recommends another place, and a successor is there
    STANDBY = "standby"
    SHORT = "short"  # fewer nodes than wanted

    @property
    def voluntary(self) -> bool:
        """True where waiting costs only money: these never reduce ready nodes below wanted."""
        return self in (Cause.EXCESS, Cause.RETURN, Cause.REBALANCE)

    @property
    def by_choice(self) -> bool:
        """True where the node works and somebody chose that it goes: the disruption budget applies."""
        return self.voluntary or self in (Cause.OPERATOR, Cause.GPU_DOUBT, Cause.OUTDATED)


@value
class Launch:
    """Launch one node at a placement."""

    token: str  # makes it happen at most once
    placement: Placement
    price: float | None  # USD/h when it was decided; None where it is not known
    cause: Cause
    reason: str
    standby: StandbyKind | None = None  # what it is to be; None: a node that serves
    replaces: str = ""  # the node whose place it takes
    kind: ActionKind = ActionKind.LAUNCH


@value
class Start:
    """Put a stopped standby to work."""

    token: str
    node: str
    reason: str
    replaces: str = ""
    kind: ActionKind = ActionKind.START


@value
class Stop:
    """Stop a warm node and keep it as a standby."""

    token: str
    node: str
    reason: str
    kind: ActionKind = ActionKind.STOP


@value
class Attach:
    """The node enters the target set."""

    node: str
    reason: str
    kind: ActionKind = ActionKind.ATTACH


@value
class Detach:
    """The node gets no new requests; those in flight may finish."""

    node: str
    reason: str
    kind: ActionKind = ActionKind.DETACH


@value
class Drain:
    """Take the node out of service; requests in flight may finish until `deadline`."""

    node: str
    deadline: float
    cause: Cause
    reason: str
    kind: ActionKind = ActionKind.DRAIN


@value
class Undrain:
    """Put a draining node back to work."""

    node: str
    reason: str
    kind: ActionKind = ActionKind.UNDRAIN


@value
class Terminate:
    """End the node."""

    token: str
    node: str
    cause: Cause
    reason: str
    kind: ActionKind = ActionKind.TERMINATE


@value
class LoadAdapter:
    """Have a node's engine load an adapter, and see that it works.

    `served_as`: the engine's name of it; `source`: the folder or repository that the engine loads it from.
    """

    node: str
    address: str
    served_as: str
    source: str
    reason: str
    kind: ActionKind = ActionKind.LOAD_ADAPTER

    @property
    def token(self) -> str:
        """The same for each try of the same call."""
        return f"{self.node}:{self.kind}:{self.served_as}"


@value
class UnloadAdapter:
    """Have a node's engine let go of an adapter that gets no requests there."""

    node: str
    address: str
    served_as: str
    reason: str
    kind: ActionKind = ActionKind.UNLOAD_ADAPTER

    @property
    def token(self) -> str:
        """The same for each try of the same call."""
        return f"{self.node}:{self.kind}:{self.served_as}"


@value
class Alarm:
    """Tell a person. `name` is stable, `reason` has the details; `about` tells alarms of one name apart."""

    name: str
    reason: str
    about: str = ""
    kind: ActionKind = ActionKind.ALARM


Action = (
    Launch
    | Start
    | Stop
    | Attach
    | Detach
    | Drain
    | Undrain
    | Terminate
    | LoadAdapter
    | UnloadAdapter
    | Alarm
)


@value
class Deferred:
    """Something that should happen and may not happen yet, with the limit that holds it back."""

    kind: ActionKind
    node: str = ""
    placement: Placement | None = None
    reason: str


@value
class Plan:
    """The decision of one turn."""

    actions: tuple[Action, ...] = ()  # in the order in which they are carried out
    targets: tuple[TargetSpec, ...] = ()  # the whole wanted target set, the same for every balancer

    write: tuple[str, ...] = ()
    """The balancers whose set has to be written. Beyond the lease (`policies.failsafe`) only targets that
    drain are written, and what else a balancer holds stays."""

    deferred: tuple[Deferred, ...] = ()
    notes: tuple[str, ...] = ()  # why the pool is as it is, in words
