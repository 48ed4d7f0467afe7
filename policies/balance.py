"""Which nodes belong in the target set.

What it decides: the whole wanted target set, the same for every balancer, and which balancers to write.
A target's weight is in proportion to the units that its node serves.
Why: the set is written whole, so a lost write, a restarted balancer or a hand edit is mended by the next
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
from policies.at_work import gets_requests, perhaps_at_work, shown_active
from policies.disruption import Act
from policies.fleet import Node
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
from policies.reach import vouched_for
from policies.turn import Turn
from policies.value import replace

_GIVEN_UP = 3.0
"""The last target is let go of when it was silent for so many times as long as it takes to replace a node."""


def targets(turn: Turn) -> tuple[TargetSpec, ...]:
    """The wanted target set, by node id."""
    shown, routed = shown_active(turn.world), turn.at_work.sent
    drains = {a.node: a.deadline for a in turn.actions if isinstance(a, Drain)}
    active = [n for n in turn.fleet.nodes if n.id not in turn.leaving and _belongs(turn, n, routed)]
    if (
        turn.pool.replicas
        and not active
        and not any(s.phase is TargetPhase.ACTIVE for s in _unseen(turn, set(), routed))
    ):
        active = _last_resort(turn, shown | routed)
    chosen = {n.id for n in active}
    specs = [
        TargetSpec(
            id=n.id,
            address=n.address,
            weight=_weight(n),
            build=n.build,
            adapters=turn.adapters.rows(n.id),
        )
        for n in active
    ]
    for node in turn.fleet.nodes:
        held = node.attached or node.id in shown
        if node.id in chosen or not held or node.phase in (Phase.TERMINATING, Phase.GONE):
            continue
        deadline = drains.get(node.id, node.drain.deadline if node.drain is not None else None)
        ends_now = node.id in turn.leaving and node.id not in drains
        if deadline is not None and not ends_now:
            specs.append(
                TargetSpec(
                    id=node.id,
                    address=node.address,
                    phase=TargetPhase.DRAINING,
                    weight=_weight(node),
                    drain_deadline=deadline,
                    build=node.build,
                    adapters=turn.adapters.rows(node.id),
                )
            )
    specs += _unseen(turn, {s.id for s in specs}, routed)
    return tuple(sorted(specs, key=lambda s: s.id))


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
    return tuple(
        name for name, view in sorted(turn.world.balancers.items()) if _differs(turn, name, view, specs)
    )


def _differs(
    turn: Turn,
    name: str,
    view: Observed[tuple[Target, ...]],
    wanted: Mapping[str, TargetSpec],
) -> bool:
    if view.at is None:
        return False
    if turn.hastened:
        return True  # phases are the same, a deadline is not
    written_at = turn.memory.applied_at.get(name)
    if written_at is None or turn.memory.targets.get(name) != {i: s.phase for i, s in wanted.items()}:
        return True
    if view.at > written_at and (
        _sends_elsewhere(view, wanted) or _mistakes_builds(view, wanted) or _mistakes_adapters(view, wanted)
    ):
        return True
    # How long it shows a target that drains is its own affair; but it may have forgotten the removal.
    left = any(t.id not in wanted and t.state is not TargetState.UNUSED for t in view.value)
    return left and view.at - written_at >= turn.pool.patience.effect_timeout


def _sends_elsewhere(view: Observed[tuple[Target, ...]], wanted: Mapping[str, TargetSpec]) -> bool:
    """It sends requests to others than the active targets."""
    active = {i for i, s in wanted.items() if s.phase is TargetPhase.ACTIVE}
    return {t.id for t in view.value if gets_requests(t)} != active


def _mistakes_builds(view: Observed[tuple[Target, ...]], wanted: Mapping[str, TargetSpec]) -> bool:
    """It keeps builds and has another one for a target, as after its upgrade, when it was told of none."""
    return any(t.build not in (None, wanted[t.id].build) for t in view.value if t.id in wanted)


def _mistakes_adapters(view: Observed[tuple[Target, ...]], wanted: Mapping[str, TargetSpec]) -> bool:
    """It routes adapters, and not those of a target that it should."""
    return any(t.adapters not in (None, wanted[t.id].adapters) for t in view.value if t.id in wanted)


def _weight(node: Node) -> int:
    return WEIGHT_OF_A_UNIT * node.units


def _belongs(turn: Turn, node: Node, routed: Set[str]) -> bool:
    if not node.address or node.standby is StandbyKind.STOPPED:
        return False
    if node.id in turn.returning:
        return True
    if node.drain is not None:
        return False
    if node.id in turn.undecided or perhaps_at_work(turn.pool, turn.world, node):
        return node.id in routed
    if node.id not in routed and not (node.listed or node.probed):
        return False  # nothing says that it is still there
    if node.phase is not Phase.READY:
        return False
    if node.healthy and (node.serving or node.id in routed):
        return True
    return turn.allows(Act.ENTER, node) or (node.serving and not turn.allows(Act.LEAVE, node))


def _unseen(turn: Turn, known: set[str], routed: Set[str]) -> list[TargetSpec]:
    """Targets that memory knows too little of: they stay while some region has never been seen whole.

    One that a balancer showed draining gets requests by a set that was taken since.
    """
    if not turn.world.unlisted:
        return []
    partly = len(turn.world.unlisted) < len(turn.world.regions)
    found: dict[str, TargetSpec] = {}
    for _, view in sorted(turn.world.balancers.items()):
        for target in view.value:
            node = turn.fleet.by_id.get(target.id)
            if target.id in known or target.state is TargetState.UNUSED or _decided(turn, node):
                continue
            if partly and (target.state is TargetState.UNHEALTHY or target.id in turn.memory.ended):
                continue  # it was in a region that is seen, as far as anybody can tell
            if gets_requests(target) or target.id in routed:
                found[target.id] = TargetSpec(
                    id=target.id,
                    address=target.address,
                    build=target.build or "",
                    adapters=target.adapters or (),
                )
            elif target.id not in found:
                found[target.id] = TargetSpec(
                    id=target.id,
                    address=target.address,
                    phase=TargetPhase.DRAINING,
                    drain_deadline=turn.now + turn.pool.drain.budget,
                    build=target.build or "",
                    adapters=target.adapters or (),
                )
    return list(found.values())


def _decided(turn: Turn, node: Node | None) -> bool:
    """True for a node that is on its way out, as far as memory goes.

    Memory may be old: one whose end was asked for in vain may have been put to work since.
    """
    if node is None:
        return False
    put_to_work = node.drain is None and turn.at_work.asked_in_vain(node)
    return node.id in turn.leaving or (node.leaving and not put_to_work)


def _last_resort(turn: Turn, shown: set[str]) -> list[Node]:
    """Nobody belongs in the set: keep who serves now, or can, and has the best chance to answer.

    One that serves and has not been silent for long; else one that answers, whether it serves or not: the
    write that makes it a target may be under way, or it drained; else one that serves. Of those, one that was
    asked to rather than put into the set by hand, and the one that lasts longest. Where there is none, the
    answer of the write that made one a target may be lost; and one whose end was asked for, so far in vain,
    lives while a balancer finds it healthy. One that has been dead for long is let go of: what takes its
    place may only be had when it has ended.
    """
    ends = {a.node for a in turn.actions if isinstance(a, Terminate)}
    here = [
        n
        for n in turn.fleet.nodes
        if n.phase not in (Phase.TERMINATING, Phase.GONE)
        and n.id not in ends
        and not turn.at_work.dead(n, _GIVEN_UP)
        and (n.serving or n.id in shown or not turn.adapters.waits(n.id))
    ]
    works = [n for n in here if n.standby is not StandbyKind.STOPPED]
    vouched = vouched_for(turn.world)
    left = (
        [n for n in here if n.serving or n.id in shown or _can_take(n)]
        or [n for n in works if n.ready_at is not None and n.phase is not Phase.STOPPED]
        or [n for n in turn.fleet.nodes if n.id in vouched - ends and turn.at_work.asked_in_vain(n)]
    )

    def chance(node: Node) -> tuple[bool, bool, bool, float, str]:
        serves_well = node.healthy and (node.serving or node.id in shown)
        return not serves_well, not _can_take(node), not node.serving, -_last_second(node), node.id

    return sorted(left, key=chance)[:1]


def _can_take(node: Node) -> bool:
    """True for a node that answers, and is no standby that waits."""
    return node.answers and node.standby is not StandbyKind.STOPPED


def _last_second(node: Node) -> float:
    notice = node.doomed
    return notice.deadline if notice is not None and notice.deadline is not None else 0.0
