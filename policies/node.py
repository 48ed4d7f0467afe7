"""One node at one instant: what it is, what is known of it, and what it counts for.

A node has a `Phase` (where it is in its life), a `Role` (what it is there for) and conditions (what witnesses
say of it, `policies.evidence`). The predicates here are the only ones that policies have for it; each says
what it adds to the one before it. docs/explanation/life-of-a-node.md shows them as a picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field

from policies.evidence import CONFIRMED, Condition, Evidence, Status, Witness
from policies.model import Market, Notice, Phase, Placement, StandbyKind, Word, kept_aside
from policies.records import DrainRecord, NodeRecord, OperatorRequest, applies
from policies.value import value

BOOTING = (Phase.PENDING, Phase.STARTING)
ENDING = (Phase.TERMINATING, Phase.GONE)
BOOTED = (Phase.READY, Phase.DRAINING)
_OUTGOING = (Phase.DRAINING, *ENDING)


_STOPPED = Condition(status=Status.FALSE, reason="its machine is stopped or gone", witness=Witness.LIST)
_NOT_BELIEVED = Condition(
    status=Status.UNKNOWN, reason="nodes report more than is believed", witness=Witness.AGENT
)
_NOT_NOTICED = Condition(status=Status.FALSE, reason="no notice holds")


class Role(Word):
    """What a node is there for: the last of these that holds."""

    COUNTED = "counted"  # counts towards the wanted units, ready or on its way there
    CORDONED = "cordoned"  # is to be replaced and works until then: counts no more
    STANDBY = "standby"  # kept aside to take over: gets no requests
    LEAVING = "leaving"  # noticed, draining, or ending


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
    attached: bool  # by what balancers acknowledged it is a target, active or draining
    serving: bool  # by what they acknowledged some balancer sends it new requests
    in_service: bool  # it serves, or there is no balancer by which it could
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
        answering = self.heard.status is Status.TRUE
        self.ready = working and (answering or (self.heard.known and self.healthy))  # type: ignore[misc]
        self.reliable = working and answering and self.in_service  # type: ignore[misc]

    # -- conditions ------------------------------------------------------------------------------------

    @property
    def exists(self) -> Condition:
        """Whether there is such a machine."""
        return self.evidence.exists(self.evidence.memory.nodes[self.id])

    @property
    def noticed(self) -> Condition:
        """Whether the cloud takes it away. Unknown where only nodes report it, beyond what is believed."""
        if self.notice is not None:
            witness = Witness.CLOUD if self.notice.confidence in CONFIRMED else Witness.AGENT
            since, reason = self.notice.seen_at, f"{self.notice.kind} notice"
            return Condition(status=Status.TRUE, since=since, reason=reason, witness=witness)
        if any(applies(notice, spot=self.spot) for notice in self.notices):
            return _NOT_BELIEVED
        return _NOT_NOTICED

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
            return _STOPPED
        return self.evidence.holds_requests(self.evidence.memory.nodes[self.id])

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
    def healthy(self) -> bool:
        """It has booted, and its engine is not known to have been silent for long enough to matter."""
        return self.phase in BOOTED and not self.heard.fails(self.healthy_for)

    @property
    def answers(self) -> bool:
        """It has booted, was ready, and answered the last look: it could take requests, whatever its role."""
        return self.phase in BOOTED and self.ready_at is not None and self.heard.status is Status.TRUE

    @property
    def drains_by_choice(self) -> bool:
        """It drains now because somebody chose so, as far as nothing else takes it. A standby serves nobody.

        One that has fallen silent since may only be out of this host's reach.
        """
        taken = self.notice is not None and self.notice.confidence in CONFIRMED
        chosen = self.phase is Phase.DRAINING and self.drain is not None and self.drain.cause.by_choice
        return chosen and not taken and not self.aside

    @property
    def may_be_at_work(self) -> bool:
        """It has not answered this daemon, and an earlier one may have put it to work: journals are lost.

        One look that fails, or a list that is old, does not tell otherwise; a balancer that was restarted
        tells nothing.
        """
        if self.phase not in BOOTING:
            return False
        unseen = self.phase is Phase.STARTING and not self.heard.known
        briefly = self.heard.since is not None and self.heard.lasted < self.healthy_for
        return (
            (unseen and (bool(self.address) or not self.exists.holds))
            or (briefly and self.serving)
            or self.found_healthy
        )

    @property
    def never_served(self) -> bool:
        """This very daemon launched it and never saw it ready: no request can have reached it."""
        return self.evidence.never_served(self.token, self.ready_at)

    @property
    def may_be_sent(self) -> bool:
        """Some balancer may send it requests, by its newest word or an older one."""
        return self.id in self.evidence.routing.may_send_to

    @property
    def end_unconfirmed(self) -> bool:
        """Its end was asked for, and neither the call nor a list says that it ends: it may live."""
        return self.evidence.end_unconfirmed(self.id)

    @property
    def found_healthy(self) -> bool:
        """Some balancer reaches it, even if nobody else does."""
        return self.id in self.evidence.routing.finds_healthy

    @property
    def conditions(self) -> tuple[str, ...]:
        """What is special about it, for people."""
        found = (
            ("noticed", self.notice is not None),
            ("reported", self.notice is None and bool(self.notices)),
            ("cordoned", self.operator is not None),
            ("attached", self.attached),
            ("unhealthy", self.phase is Phase.READY and not self.healthy),
            ("lost", self.lost),
            ("out of sight", self.out_of_sight),
            ("standby", self.standby is not None),
        )
        return tuple(name for name, holds in found if holds)


def join(
    evidence: Evidence,
    record: NodeRecord,
    *,
    notice: Notice | None,
    price: float | None,
    passed_over: Callable[[str], str],
) -> Node:
    """One node from what is remembered of it and what witnesses say.

    `passed_over`: why a region is not seen now, while another one is.
    """
    pool, routing, node = evidence.pool, evidence.routing, record.id
    instance, look = evidence.listed.get(node), evidence.look(node)
    phase, address = evidence.phase(record), evidence.address(record)
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
        attached=node in routing.attached,
        serving=node in routing.serving,
        in_service=node in routing.serving or not routing,
        out_of_sight=late and bool(passed_over(record.placement.region)),
        units=pool.units_of(record.placement),
        build=record.build or (instance.build if instance is not None else ""),
    )
