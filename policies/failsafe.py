"""What a daemon may still do when its lease has run out because the database does not answer.

What it decides: which targets are taken out of which balancers beyond the lease, and nothing else.
Why: a pair without its database can no longer prove who leads, and a notice does not wait. To take a node out
that is leaving anyway is right whichever daemon leads, and twice does no harm: the other daemon, if it leads
by now, does the same. All other writes may contradict it. It is Patroni's failsafe mode for the one action
that needs no proof. A balancer that has accepted the other daemon's set refuses this one's.
Never: a target enters, or leaves without a notice that is believed now (`policies.interruption`: what only
nodes report is believed up to the disruption budget); the last target that a balancer finds healthy leaves; a
balancer is written that was not read since this daemon is awake, or not lately.

A notice that is taken back changes nothing: its node is put back by who leads next.

Example: of three targets one is noticed: the plan has it draining and the other two as they are.
"""

from __future__ import annotations

from policies.actions import Cause, Detach, Drain
from policies.at_work import sends_to, sent_by
from policies.fleet import Node
from policies.model import (
    WEIGHT_OF_A_UNIT,
    Observed,
    Phase,
    Target,
    TargetPhase,
    TargetSpec,
    TargetState,
)
from policies.turn import Turn


def targets(turn: Turn) -> tuple[TargetSpec, ...]:
    """The targets that get requests now, by node id; those that go are draining."""
    sent = sends_to(turn.world, turn.memory)
    ends = (Phase.TERMINATING, Phase.GONE)
    here = [n for n in turn.fleet.nodes if n.id in sent and n.address and n.phase not in ends]
    drains = {a.node: a for a in turn.actions if isinstance(a, Drain) and a.cause is Cause.NOTICE}
    deadlines = {n.id: d for n in here if (d := _deadline(n, drains.get(n.id))) is not None}
    for name, view in sorted(turn.world.balancers.items()):
        if _fresh(turn, view):  # no other one is written
            _keep_the_last(turn, name, deadlines)
    for node in here:
        if node.id in deadlines and node.serving:
            why = drains.get(node.id) or node.drain
            turn.actions.append(Detach(node=node.id, reason=why.reason if why is not None else ""))
    return tuple(sorted((_spec(n, deadlines.get(n.id)) for n in here), key=lambda s: s.id))


def to_write(turn: Turn, wanted: tuple[TargetSpec, ...]) -> tuple[str, ...]:
    """Balancers that still send requests to a node that is to be taken out."""
    out = {s.id for s in wanted if s.phase is TargetPhase.DRAINING}
    return tuple(
        name
        for name, view in sorted(turn.world.balancers.items())
        if _fresh(turn, view) and out & sent_by(turn.world, turn.memory, name)
    )


def _deadline(node: Node, begun: Drain | None) -> float | None:
    """Until when the requests of a noticed node may finish; None for one that stays."""
    if node.doomed is None:
        return None
    if begun is not None:
        return begun.deadline
    return node.drain.deadline if node.drain is not None else None


def _keep_the_last(turn: Turn, balancer: str, deadlines: dict[str, float]) -> None:
    """Let one stay where no healthy target would be left: of those that go, the one that lasts longest."""
    healthy = {t.id for t in turn.world.balancers[balancer].value if t.state is TargetState.HEALTHY}
    sent = sent_by(turn.world, turn.memory, balancer)
    if not deadlines.keys() & sent or healthy & sent - deadlines.keys():
        return
    kept = max(deadlines.keys() & (healthy & sent or sent), key=lambda node: (deadlines[node], node))
    del deadlines[kept]
    turn.note(f"{kept} is noticed and goes on serving: {balancer} has no other healthy target")


def _fresh(turn: Turn, view: Observed[tuple[Target, ...]]) -> bool:
    awake = view.at is not None and view.at >= turn.world.awake_since
    return awake and view.age(turn.now) <= turn.pool.patience.stale_after


def _spec(node: Node, deadline: float | None) -> TargetSpec:
    return TargetSpec(
        id=node.id,
        address=node.address,
        phase=TargetPhase.ACTIVE if deadline is None else TargetPhase.DRAINING,
        weight=WEIGHT_OF_A_UNIT * node.units,
        drain_deadline=deadline,
        build=node.build,
    )
