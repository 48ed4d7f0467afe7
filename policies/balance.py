"""Which nodes belong in the target set.

What it decides: the whole wanted target set, the same for every balancer, and which balancers to write.
A target's weight is in proportion to the units that its node serves.
Why: the set is written whole, so a lost write, a restarted balancer or a hand edit is mended by the next
turn. A node that begins to drain in this turn is out of the active set in the same turn.
Never: a node that is not ready enters; a node that drains is active; the last node that can answer is taken
out by choice. When too many nodes fall silent at once, they stay: the balancer's own checks are closer to
the truth than ours. A daemon that has just started takes out nothing that it has not looked at: a target
stays while its node's engine was not probed, or gave no answer yet and a balancer finds it healthy, or while
the cloud was not seen whole, and no balancer is written before it was read.

Example: of three nodes one drains and one is starting: the set is one active and one draining target.
"""

from __future__ import annotations

from collections.abc import Mapping

from policies.actions import Attach, Detach, Drain, Terminate
from policies.fleet import Node, perhaps_at_work
from policies.model import (
    WEIGHT_OF_A_UNIT,
    Observed,
    Phase,
    StandbyKind,
    Target,
    TargetPhase,
    TargetSpec,
    TargetState,
)
from policies.turn import Turn


def targets(turn: Turn) -> tuple[TargetSpec, ...]:
    """The wanted target set, by node id."""
    shown = shown_active(turn)
    drains = {a.node: a.deadline for a in turn.actions if isinstance(a, Drain)}
    active = [n for n in turn.fleet.nodes if n.id not in turn.leaving and _belongs(turn, n, shown)]
    if not active:
        active = _last_resort(turn, shown)
    chosen = {n.id for n in active}
    specs = [TargetSpec(id=n.id, address=n.address, weight=_weight(n)) for n in active]
    for node in turn.fleet.nodes:
        held = node.attached or node.id in shown
        if node.id in chosen or not held or node.phase in (Phase.TERMINATING, Phase.GONE):
            continue
        deadline = drains.get(node.id, node.drain.deadline if node.drain is not None else None)
        ends_now = node.id in turn.leaving and node.id not in drains
        if deadline is not None and not ends_now:
            specs.append(_draining(node.id, node.address, deadline, weight=_weight(node)))
    specs += _unseen(turn, {s.id for s in specs})
    return tuple(sorted(specs, key=lambda s: s.id))


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
    phases = {s.id: s.phase for s in wanted}
    active = {i for i, phase in phases.items() if phase is TargetPhase.ACTIVE}
    return tuple(
        name
        for name, view in sorted(turn.world.balancers.items())
        if _differs(turn, name, view, phases, active)
    )


def _differs(
    turn: Turn,
    name: str,
    view: Observed[tuple[Target, ...]],
    wanted: Mapping[str, TargetPhase],
    active: set[str],
) -> bool:
    if view.at is None:
        return False
    if turn.hastened:
        return True  # phases are the same, a deadline is not
    written_at = turn.memory.applied_at.get(name)
    if written_at is None or turn.memory.targets.get(name) != wanted:
        return True
    # How a balancer shows a target that drains, and for how long, is its own affair.
    return view.at > written_at and {t.id for t in view.value if _gets_requests(t)} != active


def _gets_requests(target: Target) -> bool:
    return target.state not in (TargetState.DRAINING, TargetState.UNUSED)


def shown_active(turn: Turn) -> set[str]:
    """Nodes that some balancer was last seen to send requests to."""
    return {t.id for view in turn.world.balancers.values() for t in view.value if _gets_requests(t)}


def may_route(turn: Turn) -> set[str]:
    """Nodes that some balancer sends requests to, by its word since it last acknowledged a set, if ever."""
    applied = turn.memory.applied_at
    return {
        t.id
        for name, view in turn.world.balancers.items()
        if view.at is not None and view.at > applied.get(name, 0.0)
        for t in view.value
        if _gets_requests(t)
    }


def _weight(node: Node) -> int:
    return WEIGHT_OF_A_UNIT * node.units


def _draining(node: str, address: str, deadline: float, weight: int = WEIGHT_OF_A_UNIT) -> TargetSpec:
    return TargetSpec(
        id=node, address=address, phase=TargetPhase.DRAINING, weight=weight, drain_deadline=deadline
    )


def _belongs(turn: Turn, node: Node, shown: set[str]) -> bool:
    if not node.address or node.standby is StandbyKind.STOPPED:
        return False
    if node.id in turn.returning:
        return True
    if node.drain is not None:
        return False
    if perhaps_at_work(turn.world, node):
        return node.id in shown and (node.serving or node.id in may_route(turn))
    return node.phase is Phase.READY and (node.healthy or (turn.fleet.suspect and node.serving))


def _unseen(turn: Turn, known: set[str]) -> list[TargetSpec]:
    """Targets that memory knows too little of: they stay while the cloud has not been seen whole."""
    if turn.world.instances.at is not None:
        return []
    found: dict[str, TargetSpec] = {}
    for _, view in sorted(turn.world.balancers.items()):
        for target in view.value:
            node = turn.fleet.by_id.get(target.id)
            if target.id in known or target.state is TargetState.UNUSED or _decided(turn, node):
                continue
            if _gets_requests(target):
                found[target.id] = TargetSpec(id=target.id, address=target.address)
            elif target.id not in found:
                deadline = turn.now + turn.pool.drain.budget
                found[target.id] = _draining(target.id, target.address, deadline)
    return list(found.values())


def _decided(turn: Turn, node: Node | None) -> bool:
    """True for a node that is on its way out, as far as memory goes."""
    return node is not None and (node.leaving or node.id in turn.leaving)


def _last_resort(turn: Turn, shown: set[str]) -> list[Node]:
    """Nobody belongs in the set: keep who serves now, or can, and has the best chance to answer.

    One that does not serve may all the same: the write that makes it a target may be under way.
    """
    ends = {a.node for a in turn.actions if isinstance(a, Terminate)}
    here = [
        n for n in turn.fleet.nodes if n.phase not in (Phase.TERMINATING, Phase.GONE) and n.id not in ends
    ]
    left = [n for n in here if n.serving or n.id in shown]
    left = left or [n for n in here if n.answers and n.standby is not StandbyKind.STOPPED]
    left = [n for n in left if n.healthy] or left
    return sorted(left, key=lambda n: (-_last_second(n), n.id))[:1]


def _last_second(node: Node) -> float:
    notice = node.doomed
    return notice.deadline if notice is not None and notice.deadline is not None else 0.0
