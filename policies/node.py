"""One node at one instant: what it is, what is known of it, and what it counts for.

A node has a `Phase` (where it is in its life), a `Role` (what it is there for) and conditions (what witnesses
say of it, `policies.evidence`). The predicates here are the only ones that policies have for it; each says
what it adds to the one before it. docs/explanation/life-of-a-node.md shows them as a picture.
"""

from __future__ import annotations

from dataclasses import field

from policies.evidence import Condition, Evidence, Status, Witness
from policies.model import Confidence, InstanceState, Market, Notice, Phase, Placement, StandbyKind, Word
from policies.records import DrainRecord, NodeRecord, OperatorRequest
from policies.value import value

BOOTING = (Phase.PENDING, Phase.STARTING)
ENDING = (Phase.TERMINATING, Phase.GONE)
STOPPED = (InstanceState.STOPPED, InstanceState.STOPPING)
_BOOTED = (Phase.READY, Phase.DRAINING)
_OUTGOING = (Phase.DRAINING, *ENDING)


class Role(Word):
    """What a node is there for. The first that holds of these, from the last to the first."""

    COUNTED = "counted"  # counts towards the wanted units, ready or on its way there
    CORDONED = "cordoned"  # is to be replaced and works until then: counts no more
    STANDBY = "standby"  # kept aside to take over: gets no requests
    LEAVING = "leaving"  # noticed, draining, or ending


def kept_aside(standby: StandbyKind | None) -> bool:
    """True for a standby that takes no requests. A hot one is one more node that serves."""
    return standby not in (None, StandbyKind.HOT)


@value
class Node:
    """One node at one instant.

    `notice` takes it away, once believed. `healthy_for`: seconds of silence from which on it does not belong
    in a target set. `detached_at`: when a balancer last acknowledged that it gets no new requests.
    `idle_since`: since when it holds none while it drains. `in_flight`: the most requests that its engine or
    balancers count. `units`: how many it serves when ready. `price`: USD/h now, None as long as it is not
    known. `build`: what it was launched to run, see `policies.model.Instance`. `failure`: what the last look
    at its engine met.

    `heard` is the condition that every turn asks for; the others are worked out when asked for.
    """

    id: str
    token: str
    placement: Placement
    phase: Phase
    address: str
    launched_at: float
    started_at: float
    price: float | None
    standby: StandbyKind | None
    ready_at: float | None
    notice: Notice | None
    notices: tuple[Notice, ...]
    drain: DrainRecord | None
    operator: OperatorRequest | None
    idle_since: float | None
    detached_at: float | None
    in_flight: int
    failure: str
    heard: Condition
    healthy_for: float = field(repr=False)
    evidence: Evidence = field(repr=False, compare=False)
    listed: bool  # the newest list shows it
    attached: bool  # by what balancers acknowledged it is a target, active or draining
    serving: bool  # by what they acknowledged some balancer sends it new requests
    unserved: bool  # no balancer could send it any: there is none
    out_of_sight: bool = False  # it had not booted when its region was last seen, and nobody could see it now
    lost: bool = False  # silent for so long that it is given up, see `policies.fleet`
    units: int = 1
    build: str = ""
    role: Role = field(init=False, repr=False, compare=False)
    leaving: bool = field(init=False, repr=False, compare=False)
    capacity: bool = field(init=False, repr=False, compare=False)
    working: bool = field(init=False, repr=False, compare=False)
    ready: bool = field(init=False, repr=False, compare=False)
    reliable: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        leaving = self.notice is not None or self.drain is not None or self.phase in _OUTGOING
        if leaving:
            role = Role.LEAVING
        elif self.standby is not None and kept_aside(self.standby):
            role = Role.STANDBY
        else:
            role = Role.COUNTED if self.operator is None else Role.CORDONED
        capacity = role is Role.COUNTED and not self.lost and not self.out_of_sight
        working = capacity and self.phase is Phase.READY
        self.role, self.leaving = role, leaving  # type: ignore[misc]
        self.capacity, self.working = capacity, working  # type: ignore[misc]
        self.ready = working and self.probed and self.healthy  # type: ignore[misc]
        in_service = self.serving or self.unserved
        self.reliable = working and in_service and self.heard.status is Status.TRUE  # type: ignore[misc]

    # -- conditions ------------------------------------------------------------------------------------

    @property
    def reachable(self) -> Condition:
        """Whether its engine answers anybody."""
        return self.evidence.reachable(self.id)

    @property
    def routed(self) -> Condition:
        """Whether some balancer sends it new requests, by each one's newest word."""
        return self.evidence.routed(self.id)

    @property
    def holds_requests(self) -> Condition:
        """Whether it has requests that are not answered yet. A machine that is stopped or gone has none."""
        if self.phase in (Phase.STOPPED, Phase.GONE):
            return Condition(status=Status.FALSE, reason=f"it is {self.phase}", witness=Witness.LIST)
        return self.evidence.holds_requests(self.id)

    # -- predicates ------------------------------------------------------------------------------------

    @property
    def spot(self) -> bool:
        """Bought on the spot market."""
        return self.placement.market is Market.SPOT

    @property
    def aside(self) -> bool:
        """Kept aside as a standby, warming ones included: whatever its role, it gets no requests."""
        return kept_aside(self.standby)

    @property
    def probed(self) -> bool:
        """This daemon has looked at its engine since it is awake."""
        return self.heard.status is not Status.UNKNOWN

    @property
    def healthy(self) -> bool:
        """It has booted, and its engine is not known to have been silent for long enough to matter."""
        return self.phase in _BOOTED and not self.heard.fails(self.healthy_for)

    @property
    def answers(self) -> bool:
        """It has booted, was ready, and answered the last look: it could take requests, whatever its role."""
        return self.phase in _BOOTED and self.ready_at is not None and self.heard.status is Status.TRUE

    @property
    def taken(self) -> bool:
        """The cloud itself says that it takes it away: what somebody chose for it makes no difference."""
        return self.notice is not None and self.notice.confidence is Confidence.CONFIRMED

    @property
    def drains_by_choice(self) -> bool:
        """It drains now because somebody chose so, as far as nothing else takes it. A standby serves nobody.

        One that has fallen silent since may only be out of this host's reach.
        """
        chosen = self.phase is Phase.DRAINING and self.drain is not None and self.drain.cause.by_choice
        return chosen and not self.taken and not self.aside

    @property
    def unknown(self) -> bool:
        """Its machine may run, and this daemon has not looked at its engine yet: it may well be serving."""
        return self.phase is Phase.STARTING and not self.probed and (bool(self.address) or not self.listed)

    @property
    def may_be_at_work(self) -> bool:
        """It has not answered this daemon, and an earlier one may have put it to work: journals are lost.

        One look that fails, or a list that is old, does not tell otherwise; a balancer that was restarted
        tells nothing.
        """
        if self.phase not in BOOTING:
            return False
        if self.unknown or self.id in self.evidence.balancers.finds_healthy:
            return True
        return self.serving and self.heard.since is not None and self.heard.lasted < self.healthy_for

    @property
    def conditions(self) -> tuple[str, ...]:
        """What is special about it, for people."""
        found = (
            ("noticed", bool(self.notices)),
            ("doomed", self.notice is not None),
            ("cordoned", self.operator is not None),
            ("attached", self.attached),
            ("unhealthy", self.phase is Phase.READY and not self.healthy),
            ("lost", self.lost),
            ("out of sight", self.out_of_sight),
            ("standby", self.standby is not None),
        )
        return tuple(name for name, holds in found if holds)


def contradicts_stopped(evidence: Evidence, record: NodeRecord) -> bool:
    """True for a node at work whose engine is not silent: a list that has it stopped is older than its start.

    One look that failed is no silence. Where this daemon never saw it ready, a balancer's word counts.
    """
    if kept_aside(record.standby) or evidence.heard(record.id).fails(evidence.pool.health.unhealthy_after):
        return False
    look = evidence.look(record.id)
    proven = look is not None and (look.ready or record.ready_at is not None)
    return proven or record.id in evidence.balancers.finds_healthy


def phase_of(evidence: Evidence, record: NodeRecord) -> Phase:
    """Where a node is in its life."""
    instance = evidence.listed.get(record.id)
    state = InstanceState.RUNNING if instance is None else instance.state
    if state is InstanceState.TERMINATED:
        return Phase.GONE
    if state is InstanceState.SHUTTING_DOWN or evidence.end_asked_for(record.id) is not None:
        return Phase.TERMINATING
    if state in STOPPED and not contradicts_stopped(evidence, record):
        return Phase.STOPPED
    if record.drain is not None:
        return Phase.DRAINING
    if state is InstanceState.PENDING and record.ready_at is None:
        return Phase.PENDING  # one that was ready since its start is shown by an old list
    return Phase.READY if record.ready_at is not None or evidence.is_up(record.id) else Phase.STARTING


def address_of(evidence: Evidence, record: NodeRecord) -> str:
    """Where its engine listens. An old journal may not know, and a list may lack the node."""
    instance = evidence.listed.get(record.id)
    listed = instance.address if instance is not None else ""
    return listed or record.address or evidence.balancers.address(record.id)


def join(
    evidence: Evidence,
    record: NodeRecord,
    *,
    notice: Notice | None,
    price: float | None,
    in_sight: bool,
) -> Node:
    """One node from what is remembered of it and what witnesses say.

    `in_sight`: its region is seen, or what happens there is waited for.
    """
    pool, node = evidence.pool, record.id
    instance, look = evidence.listed.get(node), evidence.look(node)
    attached, serving = evidence.balancers.attached, evidence.balancers.serving
    phase = phase_of(evidence, record)
    address = address_of(evidence, record)
    waits = phase in BOOTING or phase is Phase.STOPPED
    late = waits and (not address or evidence.now - record.started_at > pool.health.boot_timeout)
    return Node(
        id=node,
        token=record.token,
        placement=record.placement,
        phase=phase,
        address=address,
        launched_at=record.launched_at,
        started_at=record.started_at,
        price=price,
        standby=record.standby,
        ready_at=record.ready_at,
        notice=notice,
        notices=record.notices,
        drain=record.drain,
        operator=record.operator,
        idle_since=record.idle_since,
        detached_at=record.detached_at,
        in_flight=evidence.in_flight(node),
        failure=look.failure if look is not None else "",
        heard=evidence.heard(node),
        healthy_for=pool.health.unhealthy_after,
        evidence=evidence,
        listed=instance is not None,
        attached=node in attached,
        serving=node in serving,
        unserved=not evidence.balancers,
        out_of_sight=late and not in_sight,
        units=pool.units_of(record.placement),
        build=record.build or (instance.build if instance is not None else ""),
    )
