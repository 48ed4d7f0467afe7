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
from policies.evidence import Balancer
from policies.model import WEIGHT_OF_A_UNIT, TargetPhase, TargetSpec
from policies.node import ENDING, Node
from policies.plan_builder import Turn


def targets(turn: Turn) -> tuple[TargetSpec, ...]:
    """The targets that get requests now, by node id; those that go are draining."""
    sent = turn.evidence.routing.sends_to
    here = [n for n in turn.fleet.nodes if n.id in sent and n.address and n.phase not in ENDING]
    drains = {a.node: a for a in turn.actions if isinstance(a, Drain) and a.cause is Cause.NOTICE}
    deadlines = {n.id: d for n in here if (d := _deadline(n, drains.get(n.id))) is not None}
    for balancer in _writable(turn):  # no other one is written
        _keep_the_last(turn, balancer, deadlines)
    for node in here:
        if node.id in deadlines and node.serving:
            why = drains.get(node.id) or node.drain
            turn.actions.append(Detach(node=node.id, reason=why.reason if why is not None else ""))
    return tuple(sorted((_spec(n, deadlines.get(n.id)) for n in here), key=lambda s: s.id))


def to_write(turn: Turn, wanted: tuple[TargetSpec, ...]) -> tuple[str, ...]:
    """Balancers that still send requests to a node that is to be taken out."""
    out = {s.id for s in wanted if s.phase is TargetPhase.DRAINING}
    return tuple(balancer.name for balancer in _writable(turn) if out & balancer.sends_to)


def _writable(turn: Turn) -> list[Balancer]:
    """Balancers that were read since this daemon is awake, and lately."""
    within = turn.pool.patience.stale_after
    return [balancer for balancer in turn.evidence.routing if balancer.fresh(within)]


def _deadline(node: Node, begun: Drain | None) -> float | None:
    """Until when the requests of a noticed node may finish; None for one that stays."""
    if node.notice is None:
        return None
    if begun is not None:
        return begun.deadline
    return node.drain.deadline if node.drain is not None else None


def _keep_the_last(turn: Turn, balancer: Balancer, deadlines: dict[str, float]) -> None:
    """Let one stay where no healthy target would be left: of those that go, the one that lasts longest."""
    healthy, sent = balancer.finds_healthy & balancer.sends_to, balancer.sends_to
    if not deadlines.keys() & sent or healthy - deadlines.keys():
        return
    kept = max(deadlines.keys() & (healthy or sent), key=lambda node: (deadlines[node], node))
    del deadlines[kept]
    turn.note(f"{kept} is noticed and goes on serving: {balancer.name} has no other healthy target")


def _spec(node: Node, deadline: float | None) -> TargetSpec:
    return TargetSpec(
        id=node.id,
        address=node.address,
        phase=TargetPhase.ACTIVE if deadline is None else TargetPhase.DRAINING,
        weight=WEIGHT_OF_A_UNIT * node.units,
        drain_deadline=deadline,
        build=node.build,
    )
