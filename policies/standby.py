"""Warm on-demand capacity: when a standby is used, and when it is made anew.

What it decides: which stopped standby is started when on-demand nodes are missing, when new standbys are
launched, and when a warmed one is stopped.
Why: a cold launch of a large model rarely fits into a notice; a stopped instance that has its image and
weights on disk does (60-90 s), at the price of its disk. A hot standby is simply one more ready node, it is
part of the mix (`policies.mix`).
Never: standbys are refilled before the pool itself is whole; a standby that is still warming up for the
first time takes no requests; a standby is started and stopped at the same time; one that the cloud would not
start is tried again before its placement's refusal has decayed.

Example: one stopped standby, one notice: the standby starts in the same turn as the drain; once the pool is
whole again a new one is launched, warmed and stopped.
"""

from __future__ import annotations

from policies.actions import ActionKind, Cause
from policies.fleet import Node
from policies.model import Market, Phase, StandbyKind
from policies.records import intent_key
from policies.turn import Turn


def use_stopped(turn: Turn, missing: int, why: str) -> int:
    """Start up to `missing` standbys; returns how many."""
    used = 0
    for node in turn.fleet.standbys:
        if node.id in turn.leaving or node.id in turn.starting:
            continue
        if used >= missing:
            break
        if _startable(turn, node) and turn.start(node, f"{why}: a standby is quicker than a launch"):
            used += 1
    return used


def refill(turn: Turn) -> None:
    """Launch stopped standbys that are missing and stop those that are warm.

    None is stopped before every balancer was read: after an old journal was restored, it may be at work.
    """
    held = _standbys(turn)
    read = all(view.at is not None for view in turn.world.balancers.values())
    for node in held:
        if node.phase is Phase.READY and read:
            turn.stop(node, "warm: kept as a stopped standby")
    launching = sum(i.standby is StandbyKind.STOPPED for i in turn.fleet.launching)
    missing = turn.pool.standby.stopped - len(held) - launching
    if missing <= 0 or turn.memory.whole_at is None or turn.sure_in_all < turn.pool.replicas:
        return
    for _ in range(missing):
        offering = turn.scorer.take(Market.ON_DEMAND)
        if offering is None or not turn.launch(
            offering,
            Cause.STANDBY,
            "a stopped standby is missing",
            standby=StandbyKind.STOPPED,
            swap=False,
        ):
            return


def surplus(turn: Turn) -> None:
    """End stopped standbys beyond the wanted number."""
    for node in _standbys(turn)[turn.pool.standby.stopped :]:
        turn.terminate(node, Cause.EXCESS, "more stopped standbys than wanted")


def _startable(turn: Turn, node: Node) -> bool:
    if node.phase is Phase.STOPPED:
        return not turn.scorer.blocked(node.placement)
    # Warm and about to be stopped: usable at once, unless the stop is already under way.
    return node.phase is Phase.READY and intent_key(node.id, ActionKind.STOP) not in turn.memory.intents


def _standbys(turn: Turn) -> list[Node]:
    """Stopped standbys that stay one in this turn, oldest first."""
    return [n for n in turn.fleet.standbys if n.id not in turn.leaving and n.id not in turn.starting]
