"""Which nodes belong in the target set.

What it decides: the whole wanted target set, the same for every balancer, and which balancers to write.
Why: the set is written whole, so a lost write, a restarted balancer or a hand edit is mended by the next
turn. A node that begins to drain in this turn is out of the active set in the same turn.
Never: a node that is not ready enters; a node that drains is active; the last node that can answer is taken
out by choice. When too many nodes fall silent at once, they stay: the balancer's own checks are closer to
the truth than ours.

Example: of three nodes one drains and one is starting: the set is one active and one draining target.
"""

from __future__ import annotations

from collections.abc import Mapping

from policies.actions import Attach, Detach, Drain, Terminate
from policies.fleet import Node
from policies.model import Phase, StandbyKind, Target, TargetPhase, TargetSpec, TargetState
from policies.turn import Turn


def targets(turn: Turn) -> tuple[TargetSpec, ...]:
    """The wanted target set, by node id."""
    drains = {a.node: a.deadline for a in turn.actions if isinstance(a, Drain)}
    active = [n for n in turn.fleet.nodes if n.id not in turn.leaving and _belongs(turn, n)]
    if not active:
        active = _last_resort(turn)
    chosen = {n.id for n in active}
    specs = [TargetSpec(id=n.id, address=n.address) for n in active]
    for node in turn.fleet.nodes:
        if node.id in chosen or not node.attached or node.phase in (Phase.TERMINATING, Phase.GONE):
            continue
        deadline = node.drain.deadline if node.drain is not None else drains.get(node.id)
        ends_now = node.id in turn.leaving and node.id not in drains
        if deadline is not None and not ends_now:
            specs.append(
                TargetSpec(
                    id=node.id, address=node.address, phase=TargetPhase.DRAINING, drain_deadline=deadline
                )
            )
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
    phases = {s.id: s.phase for s in wanted}
    return tuple(name for name in turn.world.balancers if _differs(turn, name, phases))


def _differs(turn: Turn, name: str, wanted: Mapping[str, TargetPhase]) -> bool:
    acknowledged = turn.memory.targets.get(name)
    if acknowledged is None or acknowledged != wanted:
        return True
    view = turn.world.balancers[name]
    written_at = turn.memory.applied_at.get(name, 0.0)
    return view.at is not None and view.at > written_at and _shown(view.value) != wanted


def _shown(view: tuple[Target, ...]) -> Mapping[str, TargetPhase]:
    return {
        t.id: TargetPhase.DRAINING if t.state is TargetState.DRAINING else TargetPhase.ACTIVE
        for t in view
        if t.state is not TargetState.UNUSED
    }


def _belongs(turn: Turn, node: Node) -> bool:
    if node.phase is not Phase.READY or node.drain is not None or not node.address:
        return False
    if node.standby is StandbyKind.STOPPED:
        return False
    return node.healthy or (turn.fleet.suspect and node.serving)


def _last_resort(turn: Turn) -> list[Node]:
    """Nobody belongs in the set: keep who serves now and has the best chance to answer."""
    left = [n for n in turn.fleet.nodes if n.serving and n.phase not in (Phase.TERMINATING, Phase.GONE)]
    left = [n for n in left if n.healthy] or left
    return sorted(left, key=lambda n: (-_last_second(n), n.id))[:1]


def _last_second(node: Node) -> float:
    notice = node.doomed
    return notice.deadline if notice is not None and notice.deadline is not None else 0.0
