"""Warm on-demand capacity: when a standby is used, and when it is made anew.

What it decides: which stopped standby is started when on-demand nodes are missing, when new standbys are
launched, and when a warmed one is stopped.
Why: a cold launch of a large model rarely fits into a notice; a stopped instance that has its image and
weights on disk does (60-90 s), at the price of its disk. A hot standby is simply one more ready node, it is
part of the mix (`policies.mix`).
Standbys are counted in units as well: a pool that keeps 8 stopped may keep one machine of 8.
Never: standbys are refilled before the pool itself is whole; a standby that is still warming up for the
first time takes no requests; a standby is started and stopped at the same time; one that the cloud would not
start is tried again before its placement's refusal has decayed, and one that may not be started before a
pause; a market that is paused for launches keeps none from being started.

Example: one stopped standby, one notice: the standby starts in the same turn as the drain; once the pool is
whole again a new one is launched, warmed and stopped.
"""

from __future__ import annotations

from policies.actions import ActionKind, Cause
from policies.bars import PAUSE_FIRST
from policies.fleet import least_over
from policies.model import Market, Phase, StandbyKind, kept_aside
from policies.node import Node
from policies.plan_builder import Turn
from policies.records import intent_key


def use_stopped(turn: Turn, missing: int, why: str) -> int:
    """Start standbys for so many missing units; returns how many units they serve."""
    used = 0
    for node in least_over(_standbys(turn), missing):
        if used >= missing:
            break
        if _startable(turn, node) and turn.start(node, f"{why}: a standby is quicker than a launch"):
            used += node.units
    return used


def refill(turn: Turn) -> None:
    """Launch stopped standbys that are missing and stop those that are warm.

    None is stopped that may be at work, as one is after an old journal was restored, nor any while what
    works is too little.
    """
    held = _standbys(turn)
    for node in held:
        if node.phase is Phase.READY and node.in_flight == 0:
            turn.stop(node, "warm: kept as a stopped standby")
    launching = sum(turn.pool.units_of(i.placement) for i in turn.fleet.launching if kept_aside(i.standby))
    missing = turn.pool.standby.stopped - sum(n.units for n in held) - launching
    if missing <= 0 or turn.memory.whole_at is None or not turn.enough:
        return
    while missing > 0:
        offering = turn.offer(Market.ON_DEMAND, missing)
        if offering is None or not turn.launch(
            offering,
            Cause.STANDBY,
            "a stopped standby is missing",
            standby=StandbyKind.STOPPED,
            swap=False,
        ):
            return
        missing -= turn.pool.units_of(offering.placement)


def surplus(turn: Turn) -> None:
    """End stopped standbys beyond the wanted number, as far as any could go; the oldest are kept.

    So are those that run while what works is too little: where the journal is lost they may be what worked.
    """
    held = _standbys(turn)
    surplus, going = sum(n.units for n in held) - turn.pool.standby.stopped, []
    for node in reversed(held):
        if node.units <= surplus and node.in_flight == 0:
            going.append(node)
            surplus -= node.units
    for node in reversed(going):
        turn.terminate(node, Cause.EXCESS, "more stopped standbys than wanted")


def _startable(turn: Turn, node: Node) -> bool:
    """True when it may be asked for. One that is warm already needs no room, so its placement may be shut.

    Unless it was asked for just now, and refused, or it would be no standby. One that was found in a list
    looks the same for as long.
    """
    since = turn.now - node.started_at
    tried = node.started_at > node.launched_at and since < turn.pool.patience.effect_timeout
    if (node.phase is Phase.STOPPED or tried) and turn.scorer.refused(node.placement):
        return False
    denied_at = turn.memory.nodes[node.id].denied_at
    if denied_at is not None and turn.now - denied_at < PAUSE_FIRST:
        turn.note(f"{node.id}, a standby, may not be started: it was not allowed")
        return False
    stopping = intent_key(node.id, ActionKind.STOP) in turn.memory.intents
    return node.phase is Phase.STOPPED or (node.phase is Phase.READY and not stopping)


def _standbys(turn: Turn) -> list[Node]:
    """Stopped standbys that stay one in this turn, oldest first."""
    return [n for n in turn.fleet.standbys if n.id not in turn.leaving and n.id not in turn.starting]
