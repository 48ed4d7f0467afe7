"""The hot swap: what happens to a node that must go, step by step.

What it decides: which doomed, sick or unwanted nodes drain in this turn, and which drained ones end.
Why: order is everything. A node leaves the target set first (`drain`), then its requests finish, then it
ends; and where time allows its replacement is ready before it leaves. A doomed node is paired with what
takes its place (`Launch.replaces`), so that `history` can say how long each stage took.
Never: a node is ended while a balancer sends it requests, or before its requests finished or its deadline
passed; the last node that serves is not ended while it can still answer.

Example: with 10 nodes serving and `min_serving` 8, three notices at once drain the two earliest deadlines at
once; the third node keeps serving until a replacement serves or its latest start comes.
"""

from __future__ import annotations

from policies import drain as draining
from policies.actions import Cause, Undrain
from policies.fleet import Node
from policies.model import NoticeKind, Phase
from policies.turn import Turn


def drain_doomed(turn: Turn) -> None:
    """Begin the drain of doomed nodes, earliest deadline first; late ones keep serving."""
    doomed = [n for n in turn.fleet.nodes if n.doomed is not None and n.drain is None]
    doomed = [n for n in doomed if n.phase not in (Phase.TERMINATING, Phase.GONE)]
    serving = sum(n.serving and n.drain is None for n in turn.fleet.nodes)
    for node in sorted(doomed, key=_deadline):
        notice = node.doomed
        if notice is None:
            continue
        others = serving - node.serving
        deadline = draining.drain_deadline(turn.pool.drain, now=turn.now, deadline=notice.deadline)
        if draining.begins_now(turn.pool, node, now=turn.now, serving_without=others):
            serving -= node.serving
            left = "" if notice.deadline is None else f", {max(0.0, notice.deadline - turn.now):.0f} s left"
            turn.drain(node, deadline, Cause.NOTICE, f"{_name(notice.kind)} ({notice.source}){left}")
        else:
            turn.note(
                f"{node.id} is doomed and keeps serving: without it {others} nodes would serve, "
                f"fewer than {turn.pool.min_serving}"
            )


def drain_asked(turn: Turn) -> None:
    """Drain what an operator asked for once a replacement is ready, or when none came within a boot time.

    A cordoned node does not count as capacity, so its replacement is launched while it goes on serving.
    A request that is taken back puts a node that drains for it to work again.
    """
    serving = sum(n.serving for n in turn.fleet.nodes)
    for node in turn.fleet.nodes:
        asked = node.operator
        if asked is None and node.phase is Phase.DRAINING and node.drain is not None:
            if node.drain.cause is Cause.OPERATOR and node.doomed is None:
                turn.actions.append(Undrain(node=node.id, reason="the drain request was taken back"))
            continue
        if asked is None or node.drain is not None or node.doomed is not None:
            continue
        replaced = len(turn.fleet.ready) >= turn.pool.replicas
        waited = turn.now - asked.since >= turn.pool.health.boot_timeout
        due = waited and serving - 1 >= turn.pool.min_serving
        if replaced or due or not node.serving:
            turn.drain(node, turn.now + asked.budget, Cause.OPERATOR, asked.reason)
            serving -= node.serving
        else:
            turn.note(f"{node.id}: drain asked for; it serves until its replacement is ready")


def end_drained(turn: Turn) -> None:
    """End draining nodes that are done; the last serving node stays until it goes by itself."""
    serving = sum(n.serving for n in turn.fleet.nodes)
    for node in turn.fleet.nodes:
        if node.drain is None or node.phase in (Phase.TERMINATING, Phase.GONE):
            if node.phase is Phase.TERMINATING:
                _ask_again(turn, node)
            continue
        if not draining.finished(turn.pool.drain, node, now=turn.now):
            continue
        if node.serving and node.healthy and (serving <= 1 or node.drain.cause is not Cause.NOTICE):
            turn.note(f"{node.id} should end and is still in a target set: it stays")
            continue
        idle = node.idle_since is not None
        text = "drained" if idle else f"drain deadline passed with {node.in_flight} requests in flight"
        turn.terminate(node, node.drain.cause, f"{text} ({node.drain.reason})")


def _ask_again(turn: Turn, node: Node) -> None:
    """A termination that shows no effect is asked for again."""
    cause = node.drain.cause if node.drain is not None else Cause.EXCESS
    turn.terminate(node, cause, "termination asked for again: the node is still there")


def _deadline(node: Node) -> tuple[float, str]:
    notice = node.doomed
    if notice is None or notice.deadline is None:
        return 0.0, node.id
    return notice.deadline, node.id


def _name(kind: NoticeKind) -> str:
    return {NoticeKind.STATE_CHANGE: "state change"}.get(kind, str(kind)) + " notice"
