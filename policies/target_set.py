"""Which nodes belong in the target set.

What it decides: the whole wanted target set, the same for every balancer, and which balancers to write.
A target's weight is in proportion to the units that its node serves.
Why: the set is written whole, so a lost write, a restarted balancer or a hand edit is fixed by the next
turn. A node that begins to drain in this turn is out of the active set in the same turn.
Never: a node enters that is not ready, that did not answer the last look, or that no list shows and nobody
has looked at; a node that drains is active; the last node that can answer is taken out by choice. When too
many nodes fall silent at once, they stay: the balancer's own checks are closer to the truth than ours. A
daemon that has just started or woken up takes out nothing that it has not looked at: a target stays while its
node's engine was not probed, or gave no answer yet and a balancer finds it healthy, or while the cloud was
not seen whole, and no balancer is written before it was read. The last node of a pool that is wanted empty
goes as well.

Example: of three nodes one drains and one is starting: the set is one active and one draining target.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

from policies.actions import Attach, Detach, Drain, Terminate
from policies.disruption import Act
from policies.evidence import Balancer
from policies.model import (
    WEIGHT_OF_A_UNIT,
    Phase,
    Target,
    TargetPhase,
    TargetSpec,
    TargetState,
)
from policies.node import ENDING, Node
from policies.plan_builder import Turn
from policies.value import replace

_GIVEN_UP = 3.0
"""The last target is let go of when it was silent for so many times as long as it takes to replace a node."""


def targets(turn: Turn) -> tuple[TargetSpec, ...]:
    """The wanted target set, by node id."""
    active = [n for n in turn.fleet.nodes if n.id not in turn.leaving and _belongs(turn, n)]
    if turn.pool.replicas and not active and not any(map(_is_active, _unseen(turn, set()))):
        active = _last_resort(turn)
    specs = {n.id: _spec(turn, n) for n in active}
    drains = {a.node: a.deadline for a in turn.actions if isinstance(a, Drain)}
    shown = turn.evidence.routing.shows_active
    for node in turn.fleet.nodes:
        if node.id not in specs and node.phase not in ENDING and (node.attached or node.id in shown):
            goes_on = None if node.drain is None or node.id in turn.leaving else node.drain.deadline
            deadline = drains.get(node.id, goes_on)
            if deadline is not None:
                specs[node.id] = _spec(turn, node, deadline)
    found = [*specs.values(), *_unseen(turn, specs.keys())]
    return tuple(sorted(found, key=lambda s: s.id))


def _spec(turn: Turn, node: Node, deadline: float | None = None) -> TargetSpec:
    """The target of a node: active, or draining until a deadline."""
    return TargetSpec(
        id=node.id,
        address=node.address,
        phase=TargetPhase.ACTIVE if deadline is None else TargetPhase.DRAINING,
        weight=WEIGHT_OF_A_UNIT * node.units,
        drain_deadline=deadline,
        build=node.build,
        adapters=turn.adapters.rows(node.id),
    )


def _is_active(spec: TargetSpec) -> bool:
    return spec.phase is TargetPhase.ACTIVE


def with_active(turn: Turn, wanted: tuple[TargetSpec, ...], stays: set[str]) -> tuple[TargetSpec, ...]:
    """The same set, with nodes that do not drain after all as they were."""
    serving = {n.id for n in turn.fleet.serving} & stays
    return tuple(
        replace(s, phase=TargetPhase.ACTIVE, drain_deadline=None) if s.id in serving else s for s in wanted
    )


def explain_changes(turn: Turn, wanted: tuple[TargetSpec, ...]) -> None:
    """Add an `Attach` or `Detach` for every node that enters or leaves the active set."""
    active = {s.id for s in wanted if s.phase is TargetPhase.ACTIVE}
    reasons = {a.node: a.reason for a in turn.actions if isinstance(a, Drain | Terminate)}
    for node in turn.fleet.nodes:
        if node.id in active and not node.serving:
            turn.actions.append(Attach(node=node.id, reason="ready"))
        elif node.serving and node.id not in active:
            reason = reasons.get(node.id) or (
                node.drain.reason if node.drain else node.failure or "not ready"
            )
            turn.actions.append(Detach(node=node.id, reason=reason))


def to_write(turn: Turn, wanted: tuple[TargetSpec, ...]) -> tuple[str, ...]:
    """Balancers whose set differs from the wanted one, by what they acknowledged or by what they show."""
    if not turn.world.leading:
        return ()
    specs = {s.id: s for s in wanted}
    return tuple(each.name for each in turn.evidence.routing if _differs(turn, each, specs))


def _differs(turn: Turn, balancer: Balancer, wanted: Mapping[str, TargetSpec]) -> bool:
    if balancer.read_at is None:
        return False
    if turn.hastened:
        return True  # phases are the same, a deadline is not
    if balancer.applied_at is None or balancer.held != {i: s.phase for i, s in wanted.items()}:
        return True
    active = {i for i, s in wanted.items() if _is_active(s)}
    if balancer.read_again and (balancer.shows_active != active or _mistakes(balancer, wanted)):
        return True
    # How long it shows a target that drains is its own affair; but it may have forgotten the removal.
    left = any(t.id not in wanted and t.state is not TargetState.UNUSED for t in balancer.targets)
    return left and balancer.read_at - balancer.applied_at >= turn.pool.patience.effect_timeout


def _mistakes(balancer: Balancer, wanted: Mapping[str, TargetSpec]) -> bool:
    """It keeps builds, or routes adapters, and has others for a target than it should.

    As after its upgrade, when it was sent none.
    """
    return any(
        target.build not in (None, spec.build) or target.adapters not in (None, spec.adapters)
        for target in balancer.targets
        if (spec := wanted.get(target.id)) is not None
    )


def _belongs(turn: Turn, node: Node) -> bool:
    """True for a node that is to get requests.

    What gets some stays until its engine is known to be silent for long, also then where so many are that the
    fault may be on this side. What gets none enters once it answers and holds its adapters, if anything says
    that it is there.
    """
    if not node.address or node.aside:
        return False
    if node.id in turn.returning or node.drain is not None:
        return node.id in turn.returning
    routed = node.id in turn.evidence.routing.sends_to
    if node.id in turn.undecided or node.may_be_at_work:
        return routed
    if node.phase is not Phase.READY or not (routed or node.exists.holds or node.heard.known):
        return False
    if node.healthy and (node.serving or routed):
        return True
    return not turn.allows(Act.LEAVE, node) if node.serving else turn.allows(Act.ENTER, node)


def _unseen(turn: Turn, known: Set[str]) -> list[TargetSpec]:
    """Targets that memory knows too little of: they stay while some region has never been seen whole.

    One that a balancer showed draining gets requests by a set that was taken since.
    """
    if not turn.world.unlisted:
        return []
    partly = len(turn.world.unlisted) < len(turn.world.regions)
    routing, found = turn.evidence.routing, dict[str, TargetSpec]()
    for target in (target for balancer in routing for target in balancer.targets):
        decided = _decided(turn, turn.fleet.by_id.get(target.id))
        # It was in a region that is seen, as far as anybody can tell.
        over = target.state is TargetState.UNHEALTHY or target.id in turn.memory.ended
        if target.id in known or target.state is TargetState.UNUSED or decided or (partly and over):
            continue
        active = target.state is not TargetState.DRAINING or target.id in routing.sends_to
        if active or target.id not in found:
            found[target.id] = _as_it_is(turn, target, active=active)
    return list(found.values())


def _as_it_is(turn: Turn, target: Target, *, active: bool) -> TargetSpec:
    """A target of which nobody here knows the node."""
    return TargetSpec(
        id=target.id,
        address=target.address,
        phase=TargetPhase.ACTIVE if active else TargetPhase.DRAINING,
        drain_deadline=None if active else turn.now + turn.pool.drain.budget,
        build=target.build or "",
        adapters=target.adapters or (),
    )


def _decided(turn: Turn, node: Node | None) -> bool:
    """True for a node that is on its way out, as far as memory goes.

    Memory may be old: one whose end was asked for in vain may have been put to work since.
    """
    if node is None:
        return False
    put_to_work = node.drain is None and node.end_unconfirmed
    return node.id in turn.leaving or (node.leaving and not put_to_work)


def _last_resort(turn: Turn) -> list[Node]:
    """Nobody belongs in the set: keep who serves now, or can, and has the best chance to answer.

    One that serves and has not been silent for long; else one that answers, whether it serves or not: the
    write that makes it a target may be under way, or it drained; else one that serves. Of those, one that was
    asked to rather than put into the set by hand, and the one that lasts longest. Where there is none, the
    answer of the write that made one a target may be lost; and one whose end was asked for, so far in vain,
    lives while a balancer finds it healthy. One that has been dead for long is let go of: what takes its
    place may only be had when it has ended.
    """
    ends = {a.node for a in turn.actions if isinstance(a, Terminate)}
    ranked = ((_chance(turn, node), node) for node in turn.fleet.nodes if node.id not in ends)
    able = sorted((entry for entry in ranked if entry[0]), key=lambda entry: entry[0])
    return [node for _, node in able[:1]]


def _chance(turn: Turn, node: Node) -> tuple[int, bool, bool, bool, float, str] | tuple[()]:
    """How good a last resort a node is, the lowest first; empty for one that is none."""
    routing, long = turn.evidence.routing, _GIVEN_UP * turn.pool.health.replace_after
    routed = node.serving or node.id in routing.shows_active or node.id in routing.sends_to
    able = node.answers and not node.aside
    if node.phase in ENDING:
        lives = node.found_healthy and node.end_unconfirmed
        kind = 2 if lives else None
    elif node.reachable.fails(long) or not (routed or not turn.adapters.waits(node.id)):
        kind = None
    elif routed or able:
        kind = 0
    else:
        kind = None if node.aside or node.ready_at is None or node.phase is Phase.STOPPED else 1
    if kind is None:
        return ()
    notice = node.notice
    lasts = notice.deadline if notice is not None and notice.deadline is not None else 0.0
    return kind, not (node.healthy and routed), not able, not node.serving, -lasts, node.id
