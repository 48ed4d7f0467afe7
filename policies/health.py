"""When a node counts as sick, and what is done about it.

What it decides: which silent nodes are replaced, and which nodes that never became ready are given up.
Why: a node whose engine died, or hangs while its health page answers, costs money and serves nobody.
Never: when more than `max_unhealthy` of all nodes are silent at once nothing is replaced: then the fault is
more likely on our side (a partition, a bad release of the prober) than in so many machines together.

Example: 4 of 10 nodes fall silent at once and `max_unhealthy` is 0.3: an alarm, and no node is replaced.
"""

from __future__ import annotations

from policies.actions import Alarm, Cause
from policies.model import Phase, StandbyKind
from policies.turn import Turn


def replace_sick(turn: Turn) -> None:
    """Drain nodes that have been silent for too long; their requests are lost already."""
    if turn.fleet.suspect:
        silent = sum(n.failing_since is not None for n in turn.fleet.nodes)
        turn.actions.append(
            Alarm(
                name="TooManyUnhealthy",
                reason=f"{silent} of {len(turn.fleet.nodes)} nodes are silent: nothing is replaced, "
                "look for a fault between this host and the nodes first",
            )
        )
        return
    for node in turn.fleet.nodes:
        if node.lost and node.drain is None and node.phase not in (Phase.TERMINATING, Phase.GONE):
            silent_for = turn.now - (node.failing_since or turn.now)
            reason = f"engine silent for {silent_for:.0f} s: {node.failure or 'no answer'}"
            turn.drain(node, turn.now, Cause.SICK, reason)


def give_up_boots(turn: Turn) -> None:
    """End nodes that did not become ready within the boot time-out."""
    timeout = turn.pool.health.boot_timeout
    for node in turn.fleet.nodes:
        waiting = node.phase in (Phase.PENDING, Phase.STARTING) or (
            node.phase is Phase.STOPPED and node.standby is not StandbyKind.STOPPED
        )
        if waiting and node.drain is None and turn.now - node.started_at > timeout:
            why = f": {node.failure}" if node.failure else ""
            turn.terminate(node, Cause.BOOT, f"not ready {timeout:.0f} s after its start{why}")
