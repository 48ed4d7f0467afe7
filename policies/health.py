"""When a node counts as sick, and what is done about it.

What it decides: which silent nodes are replaced, and which nodes that never became ready are given up.
Why: a node whose engine died, or hangs while its health page answers, costs money and serves nobody.
Never: when more than `max_unhealthy` of all nodes are silent at once none is ended on that evidence alone:
then the fault is more likely on our side (a partition, a bad release of the prober) than in so many machines
together. New nodes are launched as far as the surge limit allows, and only for each one that becomes ready,
which shows that nodes can be reached, silent nodes of no more units go: ready and silent units together
never fall below wanted. A silent node that a balancer finds healthy leaves the target set before it is given
up, where others serve. A node that this daemon has not looked at yet is never given up.

Example: 4 of 10 nodes fall silent at once and `max_unhealthy` is 0.3: an alarm, and no node is ended until
the first new one is ready.
"""

from __future__ import annotations

from policies.actions import Alarm, Cause
from policies.model import Phase
from policies.node import ENDING, Node
from policies.plan_builder import Turn


def replace_sick(turn: Turn) -> None:
    """Drain nodes that have been silent for too long.

    Their requests get their budget all the same: it may be only this host that cannot reach them.
    """
    silent = [n for n in turn.fleet.nodes if n.lost and n.drain is None and n.phase not in ENDING]
    # Those in a region that cannot be seen must wait, and keep no other from being replaced.
    silent.sort(key=lambda n: (bool(turn.fleet.sight.passed_over(n.placement.region)), *_longest_first(n)))
    if many := turn.fleet.mass_silence:
        text = (
            "none is ended before a new one is ready, look for a fault between this host and the nodes first"
        )
        turn.actions.append(Alarm(name="TooManyUnhealthy", reason=f"{many}: {text}"))
    for node in silent:
        silent_for = turn.now - (node.heard.since or turn.now)
        reason = f"engine silent for {silent_for:.0f} s: {node.failure or 'no answer'}"
        turn.drain(node, turn.now + turn.pool.drain.budget, Cause.SICK, reason)


def give_up_boots(turn: Turn) -> None:
    """End nodes that did not become ready within the boot time-out, unless a balancer finds them healthy."""
    timeout = turn.pool.health.boot_timeout
    waiting = [n for n in turn.fleet.nodes if _waiting(n) and not n.may_be_at_work and n.drain is None]
    waiting = [n for n in waiting if n.id not in turn.leaving]
    for node in waiting:
        if not node.found_healthy and _booting_for(turn, node) > timeout:
            why = f": {node.failure}" if node.failure else ""
            turn.terminate(node, Cause.BOOT, f"not ready {timeout:.0f} s after its start{why}")


def _waiting(node: Node) -> bool:
    """Launched or started, and not ready yet."""
    stopped = node.phase is Phase.STOPPED and not node.aside
    return stopped or node.phase in (Phase.PENDING, Phase.STARTING)


def _booting_for(turn: Turn, node: Node) -> float:
    """Seconds from its start to the last look at it while this daemon was awake; none while it hardly looked.

    A daemon that hung knows no more than before, what another one launched may be at work, and how long ago
    that was is not known where this host's clock may have been set since.
    """
    since, look = turn.evidence.watched_since(node.started_at), turn.evidence.look(node.id)
    if look is None or node.heard.since is None:
        return turn.now - since
    watched = node.heard.lasted >= turn.pool.health.replace_after
    return look.at - since if watched else 0.0


def _longest_first(node: Node) -> tuple[float, str]:
    return node.heard.since or 0.0, node.id
