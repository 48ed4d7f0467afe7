"""The words every other module speaks: pools, placements, instances, notices, targets, the world.

No value is ever changed. Times are seconds since the epoch as the daemon's clock tells them, durations are
seconds, money is US dollars, prices are US dollars per node-hour, shares are fractions of one. Capacity is
counted in serving units: a node serves as many as `Pool.units` says for its instance type, else one.
"""

from __future__ import annotations  # noqa: I001 - what is exported from rules stays in one piece

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, TypeVar

from policies.gpu_readings import GpuState
from policies.grant import Grant, Share
from policies.held import AdapterRules, AdapterUse, Held
from policies.rules import (
    AdaptiveRules as AdaptiveRules,
    DrainRules as DrainRules,
    GpuRules as GpuRules,
    HealthRules as HealthRules,
    Limits as Limits,
    Patience as Patience,
    PlacementRules as PlacementRules,
    RebalanceRules as RebalanceRules,
    ReturnRules as ReturnRules,
    StandbyRules as StandbyRules,
)
from policies.service import Service
from policies.value import value

T = TypeVar("T")

WEIGHT_OF_A_UNIT = 100
"""A target's weight for each serving unit of its node."""

EVERYWHERE = ""
"""The name of all regions together, for a provider that lists them at once."""

_ROUNDING = 1e-9  # shares arrive as binary floats: 10 * (1 - 0.7) must round up to 3, not 4


class Word(StrEnum):
    """A word of a fixed vocabulary.

    Hashed as the string that it is: the hash of an enumeration is a function in Python, and words are keys
    in every turn.
    """

    __hash__ = str.__hash__


class Market(Word):
    """How capacity is bought."""

    SPOT = "spot"
    ON_DEMAND = "on-demand"


class Phase(Word):
    """Where a node is in its life. Everything else about it is a condition (see `policies.fleet.Node`)."""

    PENDING = "pending"  # launched, the machine is not running yet
    STARTING = "starting"  # the machine runs, the engine is not ready yet
    READY = "ready"  # the engine answers
    STOPPED = "stopped"  # a stopped standby, or on its way there
    DRAINING = "draining"  # takes no new work, finishes what it has
    TERMINATING = "terminating"  # we asked the cloud to end it
    GONE = "gone"  # the cloud says it no longer exists


class InstanceState(Word):
    """What the cloud says of a machine; the words are EC2's."""

    PENDING = "pending"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    SHUTTING_DOWN = "shutting-down"
    TERMINATED = "terminated"


class Ending(Word):
    """Why a machine ended or is ending, as the provider tells it."""

    UNKNOWN = ""  # it lives, or nobody says
    RECLAIM = "reclaim"  # the provider took spot capacity back
    REQUEST = "request"  # somebody asked for it by the API
    CAPACITY = "capacity"  # accepted and then not given: there was no capacity after all
    FAULT = "fault"  # it could not be started or it broke: its configuration or the hardware


class TargetState(Word):
    """What a load balancer says of a target; the words are ELBv2's."""

    INITIAL = "initial"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    DRAINING = "draining"
    UNUSED = "unused"


USABLE = frozenset({TargetState.INITIAL, TargetState.HEALTHY})
"""States of targets that answer requests, or that the balancer has not looked at yet."""


class TargetPhase(Word):
    """What we want of a target. A target that is not listed is wanted absent."""

    ACTIVE = "active"
    DRAINING = "draining"


class NoticeKind(Word):
    """Why the cloud (or the node) says that a node will not last."""

    INTERRUPTION = "interruption"  # spot reclaim at the deadline
    REBALANCE = "rebalance"  # raised risk, no deadline
    MAINTENANCE = "maintenance"  # scheduled event at the deadline
    STATE_CHANGE = "state-change"  # already ending or gone
    STOP = "stop"  # stopping or stopped: takes a spot node, another one may be a standby and comes back


TAKES_SPOT = (NoticeKind.INTERRUPTION, NoticeKind.STOP)
"""Kinds by which the cloud takes spot nodes, and no others."""


class Confidence(Word):
    """How far a notice may be believed."""

    CONFIRMED = "confirmed"  # from the cloud itself, under our own credentials
    REPORTED = "reported"  # from the node, or from anything that could be forged


class StandbyKind(Word):
    """Warm capacity kept to take over."""

    HOT = "hot"
    SLEEPING = "sleeping"
    STOPPED = "stopped"


def kept_aside(standby: StandbyKind | None) -> bool:
    """True for a standby that takes no requests. A hot one is one more node that serves."""
    return standby not in (None, StandbyKind.HOT)


@dataclass(frozen=True, slots=True, order=True)
class Placement:
    """Where a node is or should go."""

    provider: str
    region: str
    zone: str
    instance_type: str
    market: Market
    reservation: str = ""  # capacity that is held there, by the provider's id; empty: what is sold to all

    def __str__(self) -> str:
        held = f" in reservation {self.reservation}" if self.reservation else ""
        return f"{self.market} {self.instance_type} in {self.zone}{held}"


@value
class Offering:
    """What can be bought: a placement, its price now (USD/h) and whether the provider sells it now.

    `price` is None where it may be bought and what it costs is not known: never zero.
    """

    placement: Placement
    price: float | None
    available: bool = True


@value
class Instance:
    """A machine as the cloud describes it."""

    id: str
    pool: str
    token: str  # the idempotency token of the launch, kept by the cloud as a tag
    placement: Placement
    state: InstanceState
    address: str = ""  # the engine's "host:port", empty until the cloud knows it
    launched_at: float
    price: float | None  # USD/h now, None where the list does not say
    standby: StandbyKind | None = None  # the tag of the launch
    build: str = ""  # the same for all that were launched to run the same; empty where nobody can tell
    ending: Ending = Ending.UNKNOWN
    ending_why: str = ""  # the provider's words, one line, at most 300 long
    ended_at: float | None = None  # since when it is not billed, by the provider's clock; None if not known


@value
class EngineReading:
    """What the last probe of a node's engine saw.

    What an engine does not report is None or empty.
    """

    node: str
    at: float
    ready: bool  # it loaded its model and produced a token since it started
    ok: bool  # the last probe succeeded
    failing_since: float | None = None  # when the unbroken run of failed probes began
    running: int = 0  # requests that it works on
    waiting: int = 0  # requests in its queue
    progress: float = 0.0  # its tokens since it started
    failure: str = ""  # of the last failed probe
    rate: float | None = None  # tokens a second, lately while it had work
    load: float = 0.0  # requests, lately while it had work
    kv: float | None = None  # share of its KV cache in use, 0 to 1
    tokens_in: float | None = None  # prompt tokens since it started
    tokens_out: float | None = None  # tokens made since it started
    first_token: float | None = None  # mean seconds, over the requests that ended since the look before
    between_tokens: float | None = None  # the same
    adapters: tuple[str, ...] = ()  # what its model list names beside the model
    adapters_at: float | None = None  # when that list was read
    revision: str = ""  # of the model, as the engine says it

    @property
    def in_flight(self) -> int:
        """Requests the engine still owes an answer to."""
        return self.running + self.waiting


@value
class Target:
    """A node's entry in a load balancer."""

    id: str  # the node's: addresses are used again, ids are not
    address: str  # "host:port" of its engine
    state: TargetState
    in_flight: int | None = None  # requests; None where the balancer does not count them
    reason: str = ""  # of a state that is not healthy, in the balancer's words
    failing_since: float | None = None  # the first of the looks without a gap that show it unhealthy
    build: str | None = None  # as it was written to the balancer; None where that keeps none
    continues: str | None = None  # how others finish what it began, "none" for not; None: it does not say
    continues_why: str = ""
    adapters: tuple[Held, ...] | None = None  # as they were written; None where the balancer keeps none
    adapter_in_flight: tuple[int, ...] = ()  # requests for each of `adapters`, in their order
    adapters_leaving: tuple[Held, ...] = ()  # that left the set and still have requests


@value
class TargetSpec:
    """What we want a load balancer to hold for a node."""

    id: str  # the node's
    address: str  # "host:port" of its engine
    phase: TargetPhase = TargetPhase.ACTIVE
    weight: int = WEIGHT_OF_A_UNIT  # its share of the requests: 100 for each unit that it serves
    drain_deadline: float | None = None  # until when requests in flight may finish; None unless it drains
    build: str = ""  # the node's, see `Instance`: only targets of one build finish each other's answers

    adapters: tuple[Held, ...] = ()
    """Those that it is sent requests for. Of several revisions of one name the first gets the new requests,
    the others only go on with what they began."""


@value
class Notice:
    """A word that a node will not last."""

    id: str  # the same for every copy of one notice from one source
    kind: NoticeKind
    node: str
    deadline: float | None  # when the node goes away; None where the kind has none (rebalance)
    source: str  # the name of the `cloud.ports.Notices` that it came from
    confidence: Confidence
    seen_at: float  # when the source got it
    cancelled: bool = False  # an earlier notice with this id no longer holds


class PartKind(Word):
    """What the daemon depends on and that can be lost. See `policies.parts`."""

    CLOUD = "cloud"  # the list of machines
    PRICES = "prices"  # of one market in one region, or whatever else is read apart
    BALANCER = "balancer"
    NOTICES = "notices"  # one source of notices
    ENGINE = "engine"  # of one node


@value
class Observed(Generic[T]):
    """One part of the world with its age: the last good value, when it was read, and what failed since.

    A failed reading shows as an age and a reason, never as an empty list.
    """

    value: T  # of the last good reading
    at: float | None = None  # of that reading; None before the first complete one
    error: str = ""  # the failure of the newest attempt, empty when it succeeded

    since: float | None = None
    """When the run of readings without a gap began: before it the daemon did not run, or could not read."""

    failing_since: float | None = None
    """The first attempt of the unbroken run of failed ones; None when the newest one succeeded."""

    def age(self, now: float) -> float:
        """Seconds since the last good reading; infinite before the first."""
        return math.inf if self.at is None else max(0.0, now - self.at)


@value
class World:
    """Everything known at one instant, each part with its age."""

    now: float

    regions: Mapping[str, Observed[tuple[Instance, ...]]]
    """Region -> the list of its machines: each has its own age, and fails alone. The key `EVERYWHERE` stands
    for every region that is not named, as where a provider lists all of them at once."""

    engines: Mapping[str, EngineReading] = field(default_factory=dict)  # by node
    balancers: Mapping[str, Observed[tuple[Target, ...]]] = field(default_factory=dict)  # what each reports
    services: Mapping[str, Service] = field(default_factory=dict)  # how each balancer serves clients

    writing: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Balancer -> the nodes that get requests by sets that were written to it since the last one that it
    acknowledged: any of them may have landed."""

    offerings: Mapping[str, Observed[tuple[Offering, ...]]] = field(default_factory=dict)
    """What is sold, by the part of the prices that is read apart ("us-east-1 spot"); `policies.prices` joins
    them. A part that was read with an error has no price where the error is; before its first reading it may
    hold what can be bought without any."""

    heard: Mapping[str, float | None] = field(default_factory=dict)
    """Source of notices -> when it was last surely read, None before the first time."""

    gpus: Mapping[str, GpuState] = field(default_factory=dict)  # of nodes that report them
    durable: bool = True  # the journal accepts writes
    leading: bool = True  # this daemon holds the lease, under `epoch`
    epoch: int = 0

    awake_since: float = 0.0
    """When this daemon started, or woke up after it had hung. What it saw before may be over."""

    failsafe_since: float | None = None
    """When the lease ran out, as the database does not answer (`policies.failsafe`); None while it holds."""

    grant: Grant | None = None  # the pool's share of a budget, None where there is none
    adapter_use: Mapping[str, AdapterUse] = field(default_factory=dict)  # adapters asked for lately

    @property
    def able(self) -> bool:
        """This daemon may act: it holds the lease, and what it does can be journalled."""
        return self.leading and self.durable

    @property
    def instances(self) -> tuple[Instance, ...]:
        """Every machine that the newest list of some region shows."""
        lists = [view.value for view in self.regions.values()]
        return lists[0] if len(lists) == 1 else tuple(i for part in lists for i in part)

    def region(self, name: str) -> Observed[tuple[Instance, ...]] | None:
        """The list that shows the machines of a region; None where nobody lists it."""
        return self.regions.get(name) or self.regions.get(EVERYWHERE)

    def seen(self, view: Observed[tuple[Instance, ...]]) -> bool:
        """A list was read whole since the daemon is awake."""
        return view.at is not None and view.at >= self.awake_since

    @property
    def listed(self) -> bool:
        """Some region was listed by this daemon."""
        return any(view.at is not None for view in self.regions.values())

    @property
    def unlisted(self) -> tuple[str, ...]:
        """Regions that this daemon has never listed: which nodes they hold only the journal tells."""
        return tuple(name for name, view in self.regions.items() if view.at is None)


@value
class Pool:
    """The wanted state of one pool: so many ready serving units, a share of them on spot.

    Nodes come whole: see docs/decisions/0011 for what is rounded and which way. With `adaptive` rules the
    policy finds the mix; it knows only nodes of one unit. Raises ValueError.
    """

    name: str
    replicas: int  # wanted units; 0: no standby, no launches, and it lets go of all it has
    model: str = ""  # what its engines serve
    priority: int = 0  # the higher first where pools share a budget
    spot_share: float = 0.7  # of the units; with `adaptive` rules the most that may be on spot
    units: Mapping[str, int] = field(default_factory=dict, hash=False)  # of one node, by type; else one
    drain: DrainRules = DrainRules()
    back_to_spot: ReturnRules = ReturnRules()
    health: HealthRules = HealthRules()
    standby: StandbyRules = StandbyRules()
    placement: PlacementRules = PlacementRules()
    rebalance: RebalanceRules = RebalanceRules()
    gpu: GpuRules = GpuRules()
    adapters: AdapterRules = AdapterRules()
    adaptive: AdaptiveRules | None = None
    limits: Limits = Limits()
    patience: Patience = Patience()
    share: Share | None = None  # set only by `policies.budget.in_effect`

    def __post_init__(self) -> None:
        if not self.replicas:
            self.standby = StandbyRules()  # type: ignore[misc]
        if any(units < 1 for units in self.units.values()):
            raise ValueError(f"units: {dict(self.units)}: a node serves at least one unit")
        if self.adaptive is not None and self.weighted:
            raise ValueError(f"units: {dict(self.units)}: the adaptive mix counts nodes of one unit only")

    @property
    def weighted(self) -> bool:
        """True where some node serves more than one unit, so that units and nodes differ."""
        return any(units != 1 for units in self.units.values())

    @property
    def largest(self) -> int:
        """The most units that one node may serve."""
        return max(self.units.values(), default=1)

    def units_of(self, placement: Placement | None) -> int:
        """The units that a node at a placement serves; one where nobody knows the placement."""
        return 1 if placement is None else self.units.get(placement.instance_type, 1)

    def noun(self, count: int = 2) -> str:
        """What capacity is counted in, in words: nodes, or units where they differ."""
        return ("unit" if self.weighted else "node") + ("" if count == 1 else "s")

    @property
    def on_demand_floor(self) -> int:
        """On-demand units that the mix always holds: the on-demand share of wanted, rounded up."""
        return math.ceil(self.replicas * (1.0 - self.spot_share) - _ROUNDING)

    @property
    def spot_wanted(self) -> int:
        """Spot units that the mix aims at."""
        return self.replicas - self.on_demand_floor

    @property
    def min_serving(self) -> int:
        """Serving units below which a noticed node drains late instead of at once."""
        return math.ceil(self.replicas * self.drain.min_serving - _ROUNDING)

    @property
    def most_units(self) -> int:
        """The units at which no further node may live, not counting those that are on their way out.

        The node that reaches it may go over it, by less than its own units.
        """
        return self.replicas and self.replicas + self.standby.hot + self.standby.stopped + self.limits.surge

    @property
    def disruption_budget(self) -> int:
        """Units that may drain by our own choice at once: one node always may, all where none is wanted."""
        if self.share is not None or not self.replicas:
            return sys.maxsize if self.share is None else self.share.drains
        return max(1, math.floor(self.replicas * self.limits.disruption + _ROUNDING))
